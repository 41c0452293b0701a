//! Each machine's `CLOCK_BOOTTIME`: an origin and a rate that nobody else knows.

use std::time::Duration;

use sterna_guard::core::time::BootInstant;

use crate::random::Random;

const MILLION: u128 = 1_000_000;

/// From the world's nanoseconds to one boot's, and back.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    booted: u64,
    origin: u64,
    /// Too fast by so many millionths.
    ppm: i64,
}

impl Clock {
    /// Half of all clocks are as wrong as any may be: defects of arithmetic show there.
    #[must_use]
    pub fn drawn(random: &mut Random, now: u64, ppm_max: i64) -> Self {
        let max = ppm_max.unsigned_abs();
        let any = i64::try_from(random.between(0, 2 * max)).unwrap_or(0) - ppm_max;
        let ppm = *random.pick(&[-ppm_max, ppm_max, any, any]);
        Self { booted: now, origin: random.between(1, 1_000_000) * 1_000_000_000, ppm }
    }

    /// The same clock, faster or slower from now on.
    #[must_use]
    pub fn at_rate(self, now: u64, ppm: i64) -> Self {
        Self { booted: now, origin: self.at(now).as_nanos(), ppm }
    }

    fn rate(self) -> u128 {
        MILLION.saturating_add_signed(i128::from(self.ppm))
    }

    #[must_use]
    pub fn at(self, now: u64) -> BootInstant {
        let passed = u128::from(now.saturating_sub(self.booted)) * self.rate() / MILLION;
        BootInstant(self.origin + u64::try_from(passed).unwrap_or(u64::MAX / 2))
    }

    /// The first instant of the world at which this clock shows at least that.
    #[must_use]
    pub fn when(self, at: BootInstant) -> u64 {
        if at == BootInstant::NEVER {
            return u64::MAX;
        }
        self.booted + self.real(u128::from(at.as_nanos().saturating_sub(self.origin)))
    }

    /// How long the world takes for what lasts so long here.
    #[must_use]
    pub fn lasts(self, here: Duration) -> u64 {
        self.real(here.as_nanos())
    }

    fn real(self, here: u128) -> u64 {
        u64::try_from((here * MILLION).div_ceil(self.rate())).unwrap_or(u64::MAX / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_shows_an_instant_when_it_says_so_and_not_before() {
        let mut random = Random::new(1);
        for _ in 0..1000 {
            let clock = Clock::drawn(&mut random, 77, 300_000);
            let at = clock.at(77) + Duration::from_nanos(random.below(1 << 40));
            let when = clock.when(at);
            assert!(clock.at(when) >= at);
            assert!(when == 77 || clock.at(when - 1) < at);
        }
    }
}
