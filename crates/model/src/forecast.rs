//! What a live migration is expected to take; computed in `plan::forecast`, kept beside what was measured.

use serde::{Deserialize, Serialize};
use sterna_base::units::{Bytes, Span};
use utoipa::ToSchema;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Forecast {
    /// From the order to the guest running on the target and the source gone.
    #[schema(value_type = String)]
    pub total: Span,
    #[schema(value_type = String)]
    pub downtime: Span,
    #[schema(value_type = String)]
    pub bytes: Bytes,
    pub verdict: Verdict,
    /// What it was computed from, in words.
    pub basis: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Meets the downtime asked for.
    Fits,
    /// Converges only when the guest is slowed.
    NeedsThrottling,
    /// Converges, but with a longer pause than asked for.
    NeedsLongerPause,
    /// The guest writes faster than the line carries.
    WillNotConverge,
}

/// What an agent measured of a VM lately: the input of a forecast. Kept in memory, never stored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LoadSample {
    /// Memory that holds something: what a first pass has to carry.
    #[schema(value_type = String)]
    pub used: Bytes,
    /// Bytes in distinct pages written during `dirty_window`.
    #[schema(value_type = String)]
    pub dirty: Bytes,
    #[schema(value_type = String)]
    pub dirty_window: Span,
    /// Host CPU the VM uses, in thousandths of one CPU.
    pub cpu_milli: u32,
}
