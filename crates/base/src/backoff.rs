//! When to try again: doubling delays with a ceiling.
//!
//! Infrastructure failures are retried for ever, so there is no "last" attempt; callers stop by other means.

use std::time::Duration;

/// Delays `first, 2*first, 4*first, ...` up to `ceiling`.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    ceiling: Duration,
    attempt: u32,
}

impl Backoff {
    #[must_use]
    pub fn new(first: Duration, ceiling: Duration) -> Self {
        Self { first, ceiling, attempt: 0 }
    }

    /// The delay before the next attempt; each call moves one step on.
    pub fn next_delay(&mut self) -> Duration {
        let delay = delay_after(self.attempt, self.first, self.ceiling);
        self.attempt = self.attempt.saturating_add(1);
        delay
    }

    /// Call after a success: the next failure starts again at `first`.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }
}

/// The delay after `attempt` failures (0-based), a pure function for planners that keep only a count.
#[must_use]
pub fn delay_after(attempt: u32, first: Duration, ceiling: Duration) -> Duration {
    let factor = 1u32.checked_shl(attempt.min(31)).unwrap_or(u32::MAX);
    first.saturating_mul(factor).min(ceiling)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_ceiling_and_restart_after_a_success() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(350));
        let delays: Vec<_> = (0..4).map(|_| backoff.next_delay().as_millis()).collect();
        assert_eq!(delays, [100, 200, 350, 350]);
        backoff.reset();
        assert_eq!(backoff.next_delay().as_millis(), 100);
    }

    #[test]
    fn a_very_large_count_stays_at_the_ceiling() {
        assert_eq!(
            delay_after(u32::MAX, Duration::from_secs(1), Duration::from_secs(60)),
            Duration::from_secs(60)
        );
    }
}
