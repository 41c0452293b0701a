//! How hard QEMU is held back as the journal fills.

use std::time::Duration;

/// Below this the journal takes everything at once.
const EASY: f64 = 0.5;
/// For one request of a journal that is all but full: a guest that writes 4 KiB at a time is down to 0.2 MB/s then,
/// slower than most lines, and a mirror's 1 MiB requests to 50 MB/s.
const DELAY_MAX: Duration = Duration::from_millis(20);

/// What happens to a write before it is answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Pressure {
    /// It is answered at once.
    #[default]
    None,
    /// It is answered after a while, the longer the fuller the journal is.
    Slowing(Duration),
    /// It is answered when something else has left.
    Full,
    /// The same, for another reason: the journal's file may grow, and the disk below it has no room.
    NoSpace,
}

impl Pressure {
    /// At so many bytes of so many. The delay grows with the square of what is beyond half.
    #[must_use]
    pub fn at(used: u64, most: u64) -> Self {
        if used >= most {
            return Self::Full;
        }
        let beyond = (used as f64 / most as f64 - EASY) / (1.0 - EASY);
        let delay = DELAY_MAX.mul_f64(beyond.max(0.0).powi(2));
        // Less than a timer can tell.
        if delay < Duration::from_millis(1) { Self::None } else { Self::Slowing(delay) }
    }

    /// How long one request is held back at least.
    #[must_use]
    pub fn delay(self) -> Duration {
        match self {
            Self::None => Duration::ZERO,
            Self::Slowing(delay) => delay,
            Self::Full | Self::NoSpace => DELAY_MAX,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_begins_at_half_and_grows_until_the_journal_is_full() {
        assert_eq!([0, 30, 50, 60].map(|used| Pressure::at(used, 100)), [Pressure::None; 4]);
        let delays: Vec<Duration> = (70..100).map(|used| Pressure::at(used, 100).delay()).collect();
        assert!(delays.windows(2).all(|pair| pair[0] < pair[1]), "{delays:?}");
        assert!(delays[0] < DELAY_MAX / 5 && delays[29] > DELAY_MAX * 9 / 10, "{delays:?}");
        assert_eq!(Pressure::at(100, 100), Pressure::Full);
        assert_eq!(Pressure::at(0, 0), Pressure::Full);
    }
}
