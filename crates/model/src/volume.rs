//! Virtual disks.

use serde::{Deserialize, Serialize};
use sterna_base::units::Bytes;
use utoipa::ToSchema;

use crate::image::Format;
use crate::meta::Name;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeSpec {
    /// Absent: a default pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<Name>,
    /// Size of the disk that the guest sees; it may only grow. Absent: the image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub size: Option<Bytes>,
    /// A thin clone of this image; absent: blank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Name>,
    /// The VM that uses it; set for the boot volume that came with a VM, which also goes with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<Name>,
}

/// What control chose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeDecision {
    pub pool: Name,
    /// The host that makes, grows and removes it; for a `dir` pool also the only one that can open it.
    pub host: Name,
    pub format: Format,
    #[schema(value_type = String)]
    pub size: Bytes,
    /// Image and its checksum: the backing file of the clone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageRef>,
    pub why: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageRef {
    pub name: Name,
    pub sha256: String,
    pub format: Format,
}

/// What the host that makes it saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum VolumeReport {
    Making {
        /// 0-100: how much of the image has been fetched.
        percent: u8,
    },
    Ready {
        #[schema(value_type = String)]
        size: Bytes,
    },
    Failed {
        why: String,
    },
    /// Removed from the pool.
    Gone,
}
