//! How hard to squeeze: as hard as the line is slow.

use std::time::{Duration, Instant};

pub const LEVEL_MIN: i32 = -1;
pub const LEVEL_MAX: i32 = 6;
/// Where a stream begins: on memory, level 3 saves 1.5 % more for twice the work.
pub const LEVEL_START: i32 = 1;

/// How often another level may be chosen.
const EVERY: Duration = Duration::from_millis(500);

/// What the last batches saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Spent on encoding.
    pub busy: Duration,
    /// Spent waiting because the line's queue was full.
    pub blocked: Duration,
    /// Spent waiting for QEMU.
    pub idle: Duration,
}

impl Load {
    fn total(self) -> Duration {
        self.busy + self.blocked + self.idle
    }
}

/// The level for the next batches.
///
/// Mostly blocked: the line is the limit, and time is left to squeeze harder. Never blocked and hardly ever idle: the
/// encoder itself is the limit. Between the two nothing changes, so that the level does not swing.
#[must_use]
pub fn choose(level: i32, load: Load) -> i32 {
    let total = load.total();
    if total.is_zero() {
        return level;
    }
    let step = if load.blocked * 2 > total {
        1
    } else if load.busy * 10 > total * 8 {
        -1
    } else {
        0
    };
    (level + step).clamp(LEVEL_MIN, LEVEL_MAX)
}

/// What a pump spends its time on, and the level that follows from it.
pub(crate) struct Meter {
    since: Instant,
    pub(crate) load: Load,
    level: i32,
}

impl Meter {
    pub(crate) fn new() -> Self {
        let load = Load { busy: Duration::ZERO, blocked: Duration::ZERO, idle: Duration::ZERO };
        Self { since: Instant::now(), load, level: LEVEL_START }
    }

    pub(crate) fn level(&self) -> i32 {
        self.level
    }

    /// A level that differs from the one before.
    pub(crate) fn next_level(&mut self) -> Option<i32> {
        if self.since.elapsed() < EVERY {
            return None;
        }
        let chosen = choose(self.level, self.load);
        let changed = (chosen != self.level).then_some(chosen);
        *self = Self { level: chosen, ..Self::new() };
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_follows_what_holds_the_stream_up() {
        let table = [
            // level, busy, blocked, idle -> level
            (1, 10, 80, 10, 2),
            (6, 10, 90, 0, 6),
            (1, 95, 0, 5, 0),
            (-1, 100, 0, 0, -1),
            (3, 60, 40, 0, 3),
            (3, 10, 0, 90, 3),
            (2, 0, 0, 0, 2),
        ];
        for (level, busy, blocked, idle, expected) in table {
            let ms = Duration::from_millis;
            let load = Load { busy: ms(busy), blocked: ms(blocked), idle: ms(idle) };
            assert_eq!(choose(level, load), expected, "{level} under {load:?}");
        }
    }
}
