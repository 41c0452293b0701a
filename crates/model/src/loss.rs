//! What would become of VMs whose hosts are lost.

use serde::{Deserialize, Serialize};
use sterna_base::units::Bytes;
use utoipa::ToSchema;

use crate::meta::Name;
use crate::vm::Priority;

/// Everything that runs on hosts that are taken to be lost together, in the order in which it would be started again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Loss {
    pub hosts: Vec<Name>,
    /// How many hosts each of their clusters keeps room for, by cluster.
    pub reserves: Vec<Reserve>,
    pub vms: Vec<VmLoss>,
}

/// The losses that a cluster keeps room for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Reserve {
    pub cluster: Name,
    pub losses: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmLoss {
    pub vm: Name,
    /// The lost host that it ran on.
    pub from: Name,
    #[serde(default)]
    pub priority: Priority,
    /// What the guest has.
    #[schema(value_type = String)]
    pub memory: Bytes,
    #[serde(flatten)]
    pub fate: Fate,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "fate", rename_all = "kebab-case")]
pub enum Fate {
    /// It starts again on this host.
    Restarts { host: Name, why: String },
    /// It could, and no host has room.
    LacksRoom { why: String },
    /// It waits for its own host, whatever room there is.
    Stays { why: String },
}

impl Fate {
    /// One or two words for tables.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Fate::Restarts { .. } => "restarts",
            Fate::LacksRoom { .. } => "lacks room",
            Fate::Stays { .. } => "stays down",
        }
    }

    #[must_use]
    pub fn why(&self) -> &str {
        match self {
            Fate::Restarts { why, .. } | Fate::LacksRoom { why } | Fate::Stays { why } => why,
        }
    }
}
