//! How long a lease lasts, how often it is renewed, how long everybody else waits.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::core::time::BootInstant;

/// Assumption A1: two hosts' clocks differ in rate by at most this, in thousandths.
const RATE_ERROR_PERMILLE: u128 = 1;

/// No start is begun this close to the deadline: it would be killed before it is of use.
pub const START_MARGIN: Duration = Duration::from_millis(500);

/// From this much on, lease and watchdog together, one network path is enough: it may be away for ten seconds.
const ONE_PATH_FROM: Duration = Duration::from_secs(15);

/// The least that a watchdog can be set to (softdog, and most hardware).
const WATCHDOG_MIN: Duration = Duration::from_secs(1);

/// The longest promise a voter ever gives, so that a voter that remembers nothing knows how long to be silent.
pub const PROMISE_MAX: Duration = Profile::PATIENT.promise();

/// Renewal interval R, lease L and watchdog W of the hosts of a datacentre.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    pub renew: Duration,
    pub lease: Duration,
    /// The host is reset at most this long after the watchdog was last fed.
    pub watchdog: Duration,
}

/// Settings under which two copies could run, or under which hosts would lose their leases for nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("renewal interval 0: a lease is renewed every so often, not always")]
    NoRenewal,
    #[error(
        "lease {lease:?} is too short for renewals every {renew:?}: two have to fit before its last quarter, in which \
         VMs are frozen"
    )]
    RenewalsTooRare { renew: Duration, lease: Duration },
    #[error("lease {lease:?} is too short: its last quarter has to be at least {START_MARGIN:?}")]
    LeaseTooShort { lease: Duration },
    #[error("watchdog {watchdog:?} is too short: none can be set to less than {WATCHDOG_MIN:?}")]
    WatchdogTooShort { watchdog: Duration },
    #[error(
        "lease and watchdog together need a promise of {promise:?}; voters promise at most {PROMISE_MAX:?}"
    )]
    PromiseTooLong { promise: Duration },
    #[error(
        "a wait of {wait:?} before a host's VMs are started elsewhere is unsafe: it has to be {promise:?} or more"
    )]
    WaitTooShort { wait: Duration, promise: Duration },
}

impl Profile {
    pub const FAST: Self = Self::of_millis(500, 2_000, 1_000);
    pub const QUICK: Self = Self::of_millis(1_000, 4_000, 3_000);
    /// What a host gets when it joins: its network has not been measured. It survives a cut of eight seconds that begins at the
    /// worst instant, just before a renewal; renewed every two seconds it would not.
    pub const STANDARD: Self = Self::of_millis(1_000, 10_000, 5_000);
    pub const PATIENT: Self = Self::of_millis(5_000, 20_000, 10_000);

    pub const NAMED: [(&'static str, Self); 4] = [
        ("fast", Self::FAST),
        ("quick", Self::QUICK),
        ("standard", Self::STANDARD),
        ("patient", Self::PATIENT),
    ];

    const fn of_millis(renew: u64, lease: u64, watchdog: u64) -> Self {
        let (renew, lease) = (Duration::from_millis(renew), Duration::from_millis(lease));
        Self { renew, lease, watchdog: Duration::from_millis(watchdog) }
    }

    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMED.iter().find(|(known, _)| *known == name).map(|(_, profile)| *profile)
    }

    /// Lv = (L+W)(1+rho)/(1-rho), rounded up: by a voter's clock this long after it promised, whatever the host's clock
    /// says of it, the host's VMs have ended or the host was reset.
    #[must_use]
    pub const fn promise(&self) -> Duration {
        let both = self.lease.as_nanos().saturating_add(self.watchdog.as_nanos());
        let (slow, fast) = (1000 - RATE_ERROR_PERMILLE, 1000 + RATE_ERROR_PERMILLE);
        let nanos = both.saturating_mul(fast).div_ceil(slow);
        // Three centuries; `check` refuses far less.
        let capped = if nanos > u64::MAX as u128 { u64::MAX } else { nanos as u64 };
        Duration::from_nanos(capped)
    }

    /// How long a voter is silent after it started: until all that it may have promised before is over.
    #[must_use]
    pub const fn quarantine(&self) -> Duration {
        self.promise()
    }

    /// From here on until the deadline nothing is written: a short cut costs a pause and no VM.
    #[must_use]
    pub fn freeze_at(&self, deadline: BootInstant) -> BootInstant {
        deadline.before(self.lease / 4)
    }

    /// Answers to a fence that are older than this do not count together (rule **).
    #[must_use]
    pub const fn fence_ack_age_max(promise: Duration) -> Duration {
        Duration::from_nanos(promise.as_nanos() as u64 / 2)
    }

    /// Silence from which a host is suspected: one renewal lost is not yet a reason.
    #[must_use]
    pub fn suspect_after(&self) -> Duration {
        self.renew * 3 / 2
    }

    #[must_use]
    pub fn wants_two_paths(&self) -> bool {
        self.lease.saturating_add(self.watchdog) < ONE_PATH_FROM
    }

    /// Refuses what is unsafe, and what loses leases for nothing.
    pub fn check(&self) -> Result<(), Error> {
        let Self { renew, lease, watchdog } = *self;
        if renew.is_zero() {
            return Err(Error::NoRenewal);
        }
        if lease / 4 < START_MARGIN {
            return Err(Error::LeaseTooShort { lease });
        }
        if watchdog < WATCHDOG_MIN {
            return Err(Error::WatchdogTooShort { watchdog });
        }
        let promise = self.promise();
        if promise > PROMISE_MAX {
            return Err(Error::PromiseTooLong { promise });
        }
        if renew.saturating_mul(2) > lease / 4 * 3 {
            return Err(Error::RenewalsTooRare { renew, lease });
        }
        Ok(())
    }

    /// For whoever waits out a host by time alone.
    pub fn check_wait(&self, wait: Duration) -> Result<(), Error> {
        let promise = self.promise();
        if wait < promise { Err(Error::WaitTooShort { wait, promise }) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;
