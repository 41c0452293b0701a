//! A VM that ends, crashes or hangs without being asked: how often it is brought back, and what a host tells of it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Waits before the first, second, ... restart in a row. The first is at once: most crashes do not repeat.
const RESTART_WAITS: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(60),
];
/// A copy that ran this long counts as healthy: the next crash starts the waits anew. Also the window in which restarts
/// in place are counted.
pub const HEALTHY_AFTER: Duration = Duration::from_secs(600);
/// Restarts on the same host within [`HEALTHY_AFTER`]: what crashes once more may be the host's fault.
pub const IN_PLACE_MAX: u32 = 3;

/// The wait before a restart that has so many before it in a row.
#[must_use]
pub fn restart_wait(before: u32) -> Duration {
    let last = RESTART_WAITS.len() - 1;
    RESTART_WAITS[usize::try_from(before).map_or(last, |before| before.min(last))]
}

/// What a host did by itself for the copy that it reports.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct HealthReport {
    /// Times that QEMU ended and was started again under the same epoch.
    #[serde(skip_serializing_if = "is_zero")]
    pub restarts: u32,
    /// Of those, the ones of the last ten minutes, when the last one happened.
    #[serde(skip_serializing_if = "is_zero")]
    pub recent: u32,
    /// Why it was last restarted in place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

impl HealthReport {
    /// Nothing has happened.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_then_stay() {
        let waits: Vec<_> = [0, 1, 2, 3, 4, 5, u32::MAX].map(|n| restart_wait(n).as_secs()).into();
        assert_eq!(waits, [0, 1, 5, 30, 60, 60, 60]);
    }
}
