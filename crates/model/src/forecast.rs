//! What a live migration is expected to take; computed in `plan::forecast`, kept beside what was measured.

use serde::{Deserialize, Serialize};
use sterna_base::units::{Bytes, Span};
use utoipa::ToSchema;

use crate::meta::Name;

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
    /// What would help, in words; empty when nothing has to.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub advice: String,
    #[serde(default)]
    pub confidence: Confidence,
    /// What it was computed from, in words.
    pub basis: String,
}

/// A pause that is enough, in two digits at the most: nobody knows it more exactly before the end.
#[must_use]
pub fn enough(pause: Span) -> Span {
    let ms = pause.as_millis().saturating_add(1);
    let step = 10u64.pow(ms.ilog10().saturating_sub(1));
    Span::from_millis(ms.div_ceil(step).saturating_mul(step))
}

/// How much of what a forecast rests on was measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Confidence {
    /// The guest's writes or the line are an assumption.
    #[default]
    Low,
    /// Both were measured, but not over all windows, or how well the memory packs is an assumption.
    Fair,
    /// The guest's writes over several windows, the line, and what memory costs on it.
    Good,
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

/// A forecast of the past beside what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Past {
    pub migration: Name,
    #[schema(value_type = String)]
    pub total_expected: Span,
    #[schema(value_type = String)]
    pub total: Span,
    #[schema(value_type = String)]
    pub downtime_expected: Span,
    /// Absent: it was not measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub downtime: Option<Span>,
}

/// What an agent measured of a VM lately: the input of a forecast. Kept in memory, never stored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LoadSample {
    /// Memory that holds something: what a first pass has to carry.
    #[schema(value_type = String)]
    pub used: Bytes,
    /// How much memory is written within short and long windows; a page written twice in one counts once there.
    /// Several of the same length are several measurements, the oldest first.
    #[serde(default)]
    pub written: Vec<Written>,
    /// Host CPU the VM uses, in thousandths of one CPU.
    pub cpu_milli: u32,
}

/// One measurement of a guest's writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Written {
    #[schema(value_type = String)]
    pub window: Span,
    /// In distinct pages.
    #[schema(value_type = String)]
    pub bytes: Bytes,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enough_is_more_than_the_pause_and_has_two_digits() {
        for (ms, expected) in [(0, 1), (9, 10), (300, 310), (1234, 1300), (2096, 2100), (99_900, 100_000)] {
            assert_eq!(enough(Span::from_millis(ms)), Span::from_millis(expected), "{ms} ms");
        }
    }
}
