//! A setting that a request turns and a thread works by, and work at a steady rate.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A guest that was paused does not make up for the lost time in one burst.
const CATCH_UP_MAX: Duration = Duration::from_millis(50);

#[derive(Default)]
pub struct Knob<T> {
    setting: Mutex<T>,
    turned: Condvar,
}

impl<T: Copy + PartialEq> Knob<T> {
    pub fn get(&self) -> T {
        *self.lock()
    }

    pub fn set(&self, setting: T) {
        *self.lock() = setting;
        self.turned.notify_all();
    }

    /// Waits for a setting like this.
    pub fn wait_for(&self, is_it: impl Fn(&T) -> bool) -> T {
        let mut setting = self.lock();
        while !is_it(&setting) {
            setting = self.turned.wait(setting).unwrap_or_else(PoisonError::into_inner);
        }
        *setting
    }

    /// Waits for so long, or until it is turned; whether it is as it was.
    pub fn stays(&self, as_it_was: T, time: Duration) -> bool {
        let setting = self.lock();
        let waited = self.turned.wait_timeout(setting, time).unwrap_or_else(PoisonError::into_inner);
        *waited.0 == as_it_was
    }

    fn lock(&self) -> MutexGuard<'_, T> {
        self.setting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How much is due now, at so much a second.
pub struct Pace {
    per_s: u64,
    last: Instant,
    due: f64,
}

impl Pace {
    pub fn new(per_s: u64) -> Self {
        Self { per_s, last: Instant::now(), due: 0.0 }
    }

    /// Whole pieces; what is left counts towards the next.
    pub fn take_due(&mut self) -> u64 {
        self.take_after(self.last.elapsed())
    }

    fn take_after(&mut self, elapsed: Duration) -> u64 {
        self.last = Instant::now();
        self.due += elapsed.min(CATCH_UP_MAX).as_secs_f64() * self.per_s as f64;
        let whole = self.due as u64;
        self.due = self.due.fract();
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_work_adds_up_and_a_long_pause_is_not_made_up_for() {
        let mut pace = Pace::new(50);
        let tick = Duration::from_millis(5);
        assert_eq!((0..40).map(|_| pace.take_after(tick)).sum::<u64>(), 10);
        assert!(pace.take_after(Duration::from_secs(60)) <= 3);
    }

    #[test]
    fn a_turn_is_seen_by_who_waits() {
        let knob = Knob::default();
        assert!(knob.stays(0, Duration::ZERO));
        knob.set(7);
        assert_eq!(knob.wait_for(|setting| *setting > 0), 7);
        assert!(!knob.stays(0, Duration::ZERO));
    }
}
