//! Who may talk to the API. Secrets are never stored, only their SHA-256.

use serde::{Deserialize, Serialize};
use sterna_base::clock::Timestamp;
use utoipa::ToSchema;

use crate::meta::Name;

/// A person's or program's token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenSpec {
    /// Lower-case hex SHA-256 of the secret.
    pub hash: String,
    /// What it may do.
    pub role: Role,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Everything.
    Admin,
    /// Only reading.
    Viewer,
}

/// A single-use right to join one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JoinTokenSpec {
    pub hash: String,
    #[schema(value_type = String, format = DateTime)]
    pub expires: Timestamp,
    /// Only a host of this name may use it; absent: any name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<Name>,
    /// The host that used it. A used token is kept until it expires, so that a second use can be named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_by: Option<Name>,
}
