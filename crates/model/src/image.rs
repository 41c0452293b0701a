//! Immutable sources of boot disks. The server keeps the content; hosts fetch it into their pools.

use serde::{Deserialize, Serialize};
use sterna_base::units::Bytes;
use utoipa::ToSchema;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageSpec {
    /// Where it came from: a URL, or `upload`.
    #[serde(default = "upload")]
    pub source: String,
    /// Lower-case hex SHA-256 that the content must have; absent: whatever arrives is taken and its sum recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

fn upload() -> String {
    "upload".to_owned()
}

/// Disk formats that Sterna stores. Everything else is refused at import.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    Raw,
    Qcow2,
}

/// Written by the importer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum ImageReport {
    /// The content has not arrived yet.
    Waiting,
    Ready {
        sha256: String,
        format: Format,
        /// Size of the file.
        #[schema(value_type = String)]
        size: Bytes,
        /// Size of the disk that a guest sees.
        #[schema(value_type = String)]
        virtual_size: Bytes,
    },
    Failed {
        why: String,
    },
}
