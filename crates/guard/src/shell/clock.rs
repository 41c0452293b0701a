//! The one clock of this crate, and a timer that follows it: both also pass while the machine sleeps.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};

use crate::core::time::BootInstant;

const NANOS: u64 = 1_000_000_000;

/// Now, by `CLOCK_BOOTTIME`.
#[must_use]
pub fn now() -> BootInstant {
    let at = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(at.tv_sec).unwrap_or(0);
    BootInstant(seconds.saturating_mul(NANOS).saturating_add(u64::try_from(at.tv_nsec).unwrap_or(0)))
}

/// Readable from a given instant on.
pub struct Alarm(OwnedFd);

impl Alarm {
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self(timerfd_create(TimerfdClockId::Boottime, flags)?))
    }

    /// An instant that has passed rings at once.
    pub fn set(&self, at: BootInstant) -> io::Result<()> {
        // Zero would turn it off.
        let at = at.as_nanos().max(1);
        let it_value =
            Timespec { tv_sec: i64::try_from(at / NANOS).unwrap_or(i64::MAX), tv_nsec: (at % NANOS) as i64 };
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        let once = Itimerspec { it_interval, it_value };
        timerfd_settime(&self.0, TimerfdTimerFlags::ABSTIME, &once)?;
        Ok(())
    }
}

impl AsFd for Alarm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    #[test]
    fn an_alarm_for_an_instant_that_has_passed_rings_at_once() {
        let alarm = Alarm::new().unwrap();
        alarm.set(BootInstant(0)).unwrap();
        let ten_seconds = Timespec { tv_sec: 10, tv_nsec: 0 };
        let mut fds = [PollFd::new(&alarm, PollFlags::IN)];
        assert_eq!(poll(&mut fds, Some(&ten_seconds)).unwrap(), 1);
    }

    #[test]
    fn the_clock_does_not_go_back() {
        let before = now();
        assert!(now() >= before);
    }
}
