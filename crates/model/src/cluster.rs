//! Clusters: hosts with one CPU baseline, reserve and balancing domain; one per datacentre unless split.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::cpu::Baseline;
use crate::meta::Name;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterSpec {
    pub datacentre: Name,
    /// A QEMU CPU model that overrides the computed baseline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_model: Option<String>,
    /// How many hosts may be lost with room left for those of their VMs that can start elsewhere. Absent: one where hosts
    /// can take each other's VMs, else none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserve: Option<u32>,
}

/// No cluster is asked to survive more at once.
pub const RESERVE_MAX: u32 = 16;

/// What control chose: the CPU and machine version every host of the cluster can run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClusterDecision {
    pub baseline: Baseline,
    /// The hosts it was computed from.
    pub hosts: Vec<Name>,
}
