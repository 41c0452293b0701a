//! Instants of one host's `CLOCK_BOOTTIME`, which also passes while the machine sleeps.
//!
//! `std::time::Instant` is `CLOCK_MONOTONIC` on Linux and stands still then: a host that wakes after an hour would
//! believe in a lease that ended long ago. It appears nowhere in this crate.

use std::fmt;
use std::ops::Add;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Nanoseconds since this host started. Two hosts' instants have nothing to do with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootInstant(pub u64);

impl BootInstant {
    /// Later than anything that will be waited for.
    pub const NEVER: Self = Self(u64::MAX);

    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Time from `earlier` to here; zero when it is not earlier.
    #[must_use]
    pub fn since(self, earlier: BootInstant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// This much earlier, at most back to the start.
    #[must_use]
    pub fn before(self, by: Duration) -> BootInstant {
        Self(self.0.saturating_sub(nanos(by)))
    }
}

impl Add<Duration> for BootInstant {
    type Output = BootInstant;

    fn add(self, by: Duration) -> BootInstant {
        Self(self.0.saturating_add(nanos(by)))
    }
}

impl fmt::Display for BootInstant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}s", self.0 / 1_000_000_000, self.0 / 1_000_000 % 1000)
    }
}

/// Five centuries are enough for whoever asks for more.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_stops_at_both_ends_and_never_wraps() {
        assert_eq!(BootInstant::NEVER + Duration::from_secs(1), BootInstant::NEVER);
        assert_eq!(BootInstant(1) + Duration::MAX, BootInstant::NEVER);
        assert_eq!(BootInstant(5).before(Duration::from_secs(1)), BootInstant(0));
        assert_eq!(BootInstant(5).since(BootInstant(9)), Duration::ZERO);
        assert_eq!(BootInstant(9).since(BootInstant(5)), Duration::from_nanos(4));
    }

    #[test]
    fn an_instant_reads_as_seconds() {
        assert_eq!(BootInstant(12_345_678_901).to_string(), "12.345s");
    }
}
