//! How long a guest waits for its own move: for a line that is gone, and for a journal that is full.
//!
//! Told what is so, it says what follows. Never asks QEMU, and never ends a move itself.

use std::time::Duration;

use sterna_base::units::Span;
use sterna_mover::volume::Pressure;
use tokio::time::Instant;

/// A guest that stands still, with no line to the target, runs on at the source after this.
const PAUSE_PATIENCE: Duration = Duration::from_millis(1500);
/// A guest that runs waits this long for a line to come back; what has arrived by then is not lost on it.
pub(super) const LINE_PATIENCE: Duration = Duration::from_secs(3600);
/// Guests give a disk up after 30 s and more, and people a program that does not answer after about this.
const FULL_PATIENCE: Duration = Duration::from_secs(10);
/// A full journal has room for a moment each time that something leaves: it is full until it had room for so long.
const EASE: Duration = Duration::from_secs(1);
/// Milliseconds say nothing to people beyond this.
const EXACT_MAX: Duration = Duration::from_secs(10);

/// Why a guest stays where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CalledOff {
    #[error("there was no line to the target for {}: the guest stays", rounded(*.down))]
    NoLine { down: Duration },
    #[error(
        "the line is slower than the guest writes, and the journal is full: its writes have waited for {}",
        rounded(*.waited)
    )]
    Outrun { waited: Duration },
    #[error(
        "the line is slower than the guest writes, and the journal is full: this host's disk has no room for more"
    )]
    NoSpace,
}

fn rounded(time: Duration) -> Span {
    Span(if time < EXACT_MAX { time } else { Duration::from_secs(time.as_secs()) })
}

/// A line on which a guest depends.
#[derive(Debug)]
pub(super) struct LineWatch {
    /// The last time that it was seen to be up.
    up: Instant,
}

impl LineWatch {
    /// A line that was not up yet has as long to come as one that is gone.
    pub fn new(now: Instant) -> Self {
        Self { up: now }
    }

    /// Whether it matters by now if the guest stands still, which only QEMU can say.
    pub fn is_long_down(&self, now: Instant) -> bool {
        now - self.up >= PAUSE_PATIENCE
    }

    pub fn on(&mut self, now: Instant, is_connected: bool, stands: bool) -> Result<(), CalledOff> {
        if is_connected {
            self.up = now;
        }
        let (down, patience) = (now - self.up, if stands { PAUSE_PATIENCE } else { LINE_PATIENCE });
        if down < patience { Ok(()) } else { Err(CalledOff::NoLine { down }) }
    }
}

/// What the guest's writes meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Easy,
    Slowing,
    Full,
}

impl Level {
    fn of(pressure: Pressure) -> Self {
        match pressure {
            Pressure::None => Self::Easy,
            Pressure::Slowing(_) => Self::Slowing,
            Pressure::Full | Pressure::NoSpace => Self::Full,
        }
    }
}

/// A journal for which each write of a guest waits. While it does not, there is nothing to watch.
#[derive(Debug)]
pub(super) struct JournalWatch {
    level: Level,
    since: Instant,
    /// The last time that it was seen at this level.
    seen: Instant,
}

impl JournalWatch {
    pub fn new(now: Instant) -> Self {
        Self { level: Level::Easy, since: now, seen: now }
    }

    pub fn on(&mut self, now: Instant, pressure: Pressure) -> Result<(), CalledOff> {
        let level = Level::of(pressure);
        // Worse is so at once, better only when it lasts.
        if level > self.level || (level < self.level && now - self.seen >= EASE) {
            (self.level, self.since) = (level, now);
        }
        if level >= self.level {
            self.seen = now;
        }
        let waited = now - self.since;
        match self.level {
            _ if pressure == Pressure::NoSpace => Err(CalledOff::NoSpace),
            Level::Full if waited > FULL_PATIENCE => Err(CalledOff::Outrun { waited }),
            _ => Ok(()),
        }
    }

    pub fn level(&self) -> Level {
        self.level
    }

    /// What one write waits for, when the journal says this.
    pub fn delay(&self, now: Instant, pressure: Pressure) -> Duration {
        // How long it will be full nobody knows: as long as it was, at least.
        let full = if self.level == Level::Full { now - self.since } else { Duration::ZERO };
        pressure.delay().max(full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const SLOWING: Pressure = Pressure::Slowing(Duration::from_millis(7));

    #[test]
    fn a_guest_that_runs_waits_an_hour_for_a_line_and_one_that_stands_still_a_moment() {
        let begin = Instant::now();
        let mut line = LineWatch::new(begin);
        assert_eq!(line.on(begin + SECOND, false, true), Ok(()));
        assert!(!line.is_long_down(begin + SECOND) && line.is_long_down(begin + 2 * SECOND));
        assert_eq!(line.on(begin + 3599 * SECOND, false, false), Ok(()));
        let down = 3600 * SECOND;
        assert_eq!(line.on(begin + down, false, false), Err(CalledOff::NoLine { down }));
        let down = 2 * SECOND;
        assert_eq!(line.on(begin + down, false, true), Err(CalledOff::NoLine { down }));
    }

    #[test]
    fn a_line_that_comes_back_is_waited_for_anew() {
        let begin = Instant::now();
        let mut line = LineWatch::new(begin);
        for hour in 1..5 {
            let now = begin + hour * 3600 * SECOND;
            assert_eq!(line.on(now - SECOND, hour % 2 == 0, false), Ok(()), "hour {hour}");
            assert_eq!(line.on(now, true, true), Ok(()), "hour {hour}");
        }
    }

    #[test]
    fn a_guest_that_has_waited_too_long_for_a_full_journal_stays_whatever_left_it_meanwhile() {
        let begin = Instant::now();
        let mut journal = JournalWatch::new(begin);
        let tenth = SECOND / 10;
        // Each time that a batch leaves there is room for a moment.
        for round in 0..=100 {
            let pressure = if round % 5 == 4 { SLOWING } else { Pressure::Full };
            assert_eq!(journal.on(begin + round * tenth, pressure), Ok(()), "round {round}");
        }
        let waited = 101 * tenth;
        assert_eq!(journal.delay(begin + waited, SLOWING), waited);
        assert_eq!(journal.on(begin + waited, Pressure::Full), Err(CalledOff::Outrun { waited }));
    }

    #[test]
    fn a_journal_that_had_room_for_a_while_is_full_anew() {
        let begin = Instant::now();
        let mut journal = JournalWatch::new(begin);
        let steps = [
            (0, Pressure::None, Level::Easy),
            (1, Pressure::Full, Level::Full),
            (9, Pressure::Full, Level::Full),
            (10, SLOWING, Level::Slowing),
            (11, Pressure::Full, Level::Full),
            (21, Pressure::Full, Level::Full),
            (22, Pressure::None, Level::Easy),
        ];
        for (second, pressure, level) in steps {
            assert_eq!(journal.on(begin + second * SECOND, pressure), Ok(()), "second {second}");
            assert_eq!(journal.level(), level, "second {second}");
        }
        assert_eq!(journal.delay(begin + 22 * SECOND, SLOWING), SLOWING.delay());
    }

    #[test]
    fn a_guest_whose_journal_has_no_room_on_the_disk_stays_at_once() {
        let begin = Instant::now();
        assert_eq!(JournalWatch::new(begin).on(begin, Pressure::NoSpace), Err(CalledOff::NoSpace));
    }

    #[test]
    fn reasons_are_for_people() {
        let down = Duration::from_millis(3_600_123);
        assert_eq!(
            CalledOff::NoLine { down }.to_string(),
            "there was no line to the target for 1h: the guest stays"
        );
        let waited = Duration::from_millis(10_100);
        assert!(CalledOff::Outrun { waited }.to_string().ends_with("its writes have waited for 10s"));
    }
}
