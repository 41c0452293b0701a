//! Sites with their own failure domain.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::bandwidth::BandwidthLimit;
use crate::ha::HaSettings;

/// What was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DatacentreSpec {
    /// Where it is, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
    /// What moves to and from other datacentres may take of its line, in each direction. The lowest that holds counts;
    /// while none does, moves take what the line carries.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bandwidth: Vec<BandwidthLimit>,
    /// How long the leases of its hosts last.
    #[serde(skip_serializing_if = "is_usual")]
    pub ha: HaSettings,
}

fn is_usual(ha: &HaSettings) -> bool {
    *ha == HaSettings::default()
}
