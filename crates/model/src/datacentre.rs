//! Sites with their own failure domain.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What was asked for: for now a datacentre is its name and its description.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DatacentreSpec {
    /// Where it is, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
}
