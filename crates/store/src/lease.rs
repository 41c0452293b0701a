//! Leadership: a time-bound right with an epoch that grows with every new holder.
//!
//! Time only decides when another *may* take over. What a deposed leader may still write is decided by the
//! epoch, in [`crate::Compare::Leader`], so no clock has to be right for safety.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::store::Revision;

/// A steady clock: time since any fixed moment, never going back.
pub type Clock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// The machine's monotonic clock.
pub fn monotonic() -> Clock {
    let origin = Instant::now();
    Arc::new(move || origin.elapsed())
}

/// A right that was granted. It may have been lost since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub name: String,
    pub holder: String,
    /// The revision at which it was granted.
    pub epoch: Revision,
    pub ttl: Duration,
}

/// The leases of one store, as plain state: who holds what until when.
#[derive(Debug, Clone, Default)]
pub(crate) struct Leases {
    held: BTreeMap<String, (Lease, Duration)>,
}

impl Leases {
    pub(crate) fn current(&self, name: &str, now: Duration) -> Option<&Lease> {
        self.held.get(name).filter(|(_, until)| now < *until).map(|(lease, _)| lease)
    }

    /// Whether `holder` may take the lease now.
    pub(crate) fn may_take(&self, name: &str, holder: &str, now: Duration) -> Result<(), Error> {
        match self.current(name, now) {
            Some(lease) if lease.holder != holder => {
                Err(Error::Held { name: name.to_owned(), holder: lease.holder.clone(), epoch: lease.epoch })
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn grant(&mut self, lease: Lease, now: Duration) {
        self.held.insert(lease.name.clone(), (lease.clone(), now.saturating_add(lease.ttl)));
    }

    /// Whether the lease is held in this epoch.
    pub(crate) fn check(&self, name: &str, epoch: Revision, now: Duration) -> Result<(), Error> {
        match self.current(name, now) {
            Some(lease) if lease.epoch == epoch => Ok(()),
            _ => Err(Error::Deposed { name: name.to_owned(), epoch }),
        }
    }

    pub(crate) fn keep(&mut self, lease: &Lease, now: Duration) -> Result<(), Error> {
        self.check(&lease.name, lease.epoch, now)?;
        self.grant(lease.clone(), now);
        Ok(())
    }

    pub(crate) fn resign(&mut self, lease: &Lease, now: Duration) {
        if self.check(&lease.name, lease.epoch, now).is_ok() {
            self.held.remove(&lease.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str, epoch: Revision) -> Lease {
        Lease { name: "control".into(), holder: holder.into(), epoch, ttl: Duration::from_secs(10) }
    }

    #[test]
    fn a_lease_ends_exactly_at_its_time() {
        let mut leases = Leases::default();
        leases.grant(lease("a", 5), Duration::ZERO);
        let last = Duration::from_secs(10) - Duration::from_nanos(1);
        assert_eq!(leases.check("control", 5, last), Ok(()));
        assert!(matches!(leases.may_take("control", "b", last), Err(Error::Held { epoch: 5, .. })));
        assert!(leases.check("control", 5, Duration::from_secs(10)).is_err());
        assert_eq!(leases.may_take("control", "b", Duration::from_secs(10)), Ok(()));
    }

    #[test]
    fn a_lost_lease_cannot_be_kept_or_resigned() {
        let mut leases = Leases::default();
        leases.grant(lease("a", 5), Duration::ZERO);
        assert!(leases.keep(&lease("a", 5), Duration::from_secs(11)).is_err());
        leases.grant(lease("b", 9), Duration::from_secs(11));
        leases.resign(&lease("a", 5), Duration::from_secs(12));
        assert_eq!(leases.check("control", 9, Duration::from_secs(12)), Ok(()));
    }
}
