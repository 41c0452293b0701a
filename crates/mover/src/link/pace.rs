//! Keeps the bytes of all connections together under a rate that may change at any time.

use std::time::{Duration, Instant};

use super::UNLIMITED;

/// What may go at once after a pause.
const BURST: Duration = Duration::from_millis(20);

#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When everything that went has had its time.
    free_at: Option<Instant>,
}

impl Pace {
    /// How long to wait before anything may go.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        self.free_at.map_or(Duration::ZERO, |free_at| free_at.saturating_duration_since(now + BURST))
    }

    /// `bytes` go now.
    pub(super) fn charge(&mut self, now: Instant, bytes: usize, bytes_per_second: u64) {
        if bytes_per_second == UNLIMITED {
            self.free_at = None;
            return;
        }
        // A limit of nothing still lets a little through: the caller who wants silence stops the session.
        let takes = Duration::from_secs_f64(bytes as f64 / bytes_per_second.max(1000) as f64);
        self.free_at = Some(self.free_at.map_or(now, |free_at| free_at.max(now)) + takes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_at_the_rate_that_is_set() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let mut now = start;
        for _ in 0..100 {
            now += pace.wait(now);
            pace.charge(now, 10_000, 1_000_000);
        }
        let took = now - start;
        assert!((950..=1000).contains(&took.as_millis()), "{took:?}");
        pace.charge(now, 10_000, UNLIMITED);
        assert_eq!(pace.wait(now), Duration::ZERO);
    }

    #[test]
    fn a_pause_saves_up_a_burst_and_no_more() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        pace.charge(start, 1_000_000, 1_000_000);
        let later = start + Duration::from_secs(60);
        assert_eq!(pace.wait(later), Duration::ZERO);
        pace.charge(later, 1_000_000, 1_000_000);
        assert_eq!(pace.wait(later), Duration::from_millis(980));
    }
}
