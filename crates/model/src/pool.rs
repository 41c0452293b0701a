//! Places that hold volumes.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::meta::Name;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PoolSpec {
    pub kind: PoolKind,
    /// Hosts of this datacentre use the pool; absent: hosts of every datacentre.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datacentre: Option<Name>,
    /// Volumes that name no pool go to a default one.
    #[serde(default)]
    pub default: bool,
}

/// Kinds of pools, by who can reach a volume in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum PoolKind {
    /// A folder on each host's own disk: a volume lives on one host.
    Dir { path: String },
    /// One folder that all hosts mount, such as NFS: a volume is reachable from all of them.
    SharedDir { path: String },
    /// A folder on one host, served to the others as a network block device, one export per VM and epoch.
    Nbd { host: Name, path: String },
}

impl PoolKind {
    /// A volume of a shared pool can be opened by any host that sees the pool.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        !matches!(self, PoolKind::Dir { .. })
    }

    #[must_use]
    pub fn path(&self) -> &str {
        match self {
            PoolKind::Dir { path } | PoolKind::SharedDir { path } | PoolKind::Nbd { path, .. } => path,
        }
    }
}
