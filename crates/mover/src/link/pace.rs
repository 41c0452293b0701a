//! Keeps the bytes of all connections together under a rate that may change at any time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::UNLIMITED;

/// What may go at once after a pause.
const BURST: Duration = Duration::from_millis(20);
/// A limit of nothing still lets a little through: the caller who wants silence stops the session.
const LEAST: u64 = 1000;

/// Links with clones of one pace keep to its rate together.
#[derive(Debug, Clone)]
pub struct Pace {
    /// Bytes a second.
    rate: watch::Receiver<u64>,
    owed: Arc<Mutex<Owed>>,
}

/// What went and has not had its time yet.
#[derive(Debug, Default)]
struct Owed {
    bytes: f64,
    at: Option<Instant>,
}

impl Owed {
    fn settle(&mut self, now: Instant, rate: u64) {
        let passed = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.bytes = (self.bytes - passed.as_secs_f64() * rate as f64).max(0.0);
        self.at = Some(now);
    }
}

impl Pace {
    /// Bytes a second, whenever they change; [`UNLIMITED`] for no limit.
    #[must_use]
    pub fn limited(rate: watch::Receiver<u64>) -> Self {
        Self { rate, owed: Arc::default() }
    }

    #[must_use]
    pub fn unlimited() -> Self {
        Self::limited(watch::channel(UNLIMITED).1)
    }

    /// For those who wait for a change.
    pub(super) fn rate(&self) -> watch::Receiver<u64> {
        self.rate.clone()
    }

    fn settled(&self, now: Instant) -> (MutexGuard<'_, Owed>, u64) {
        let rate = (*self.rate.borrow()).max(LEAST);
        let mut owed = self.owed.lock().unwrap_or_else(PoisonError::into_inner);
        owed.settle(now, rate);
        (owed, rate)
    }

    /// How long to wait before anything may go.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        let (owed, rate) = self.settled(now);
        Duration::from_secs_f64(owed.bytes / rate as f64).saturating_sub(BURST)
    }

    /// `bytes` go now.
    pub(super) fn charge(&self, now: Instant, bytes: usize) {
        self.settled(now).0.bytes += bytes as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_at_the_rate_that_is_set() {
        let (rate, pace) = watch::channel(1_000_000);
        let (pace, start) = (Pace::limited(pace), Instant::now());
        let mut now = start;
        for _ in 0..100 {
            now += pace.wait(now);
            pace.charge(now, 10_000);
        }
        let took = now - start;
        assert!((950..=1000).contains(&took.as_millis()), "{took:?}");
        rate.send_replace(UNLIMITED);
        pace.charge(now, 10_000);
        assert_eq!(pace.wait(now), Duration::ZERO);
    }

    #[test]
    fn a_pause_saves_up_a_burst_and_no_more() {
        let (_rate, pace) = watch::channel(1_000_000);
        let (pace, start) = (Pace::limited(pace), Instant::now());
        pace.charge(start, 1_000_000);
        let later = start + Duration::from_secs(60);
        assert_eq!(pace.wait(later), Duration::ZERO);
        pace.charge(later, 1_000_000);
        assert_eq!(pace.wait(later), Duration::from_millis(980));
    }

    #[test]
    fn what_went_under_an_old_rate_is_waited_for_under_the_new_one() {
        let (rate, pace) = watch::channel(10_000);
        let (pace, start) = (Pace::limited(pace), Instant::now());
        pace.charge(start, 1_000_000);
        assert_eq!(pace.wait(start), Duration::from_millis(99_980));
        rate.send_replace(10_000_000);
        assert_eq!(pace.wait(start), Duration::from_millis(80));
    }

    #[test]
    fn clones_keep_to_the_rate_together() {
        let (_rate, pace) = watch::channel(1_000_000);
        let (pace, now) = (Pace::limited(pace), Instant::now());
        let beside = pace.clone();
        pace.charge(now, 500_000);
        beside.charge(now, 500_000);
        assert_eq!(pace.wait(now), Duration::from_millis(980));
        assert_eq!(beside.wait(now), pace.wait(now));
    }
}
