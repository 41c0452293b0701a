//! The configuration in force, and the one before it for as long as both are asked.
//!
//! A change of voters is joint: renewals need a majority of the old *and* of the new ones until the deadline itself rests on
//! both, and at least for one promise. Whoever fences needs both as well from before the first host is told until every
//! host has confirmed the new version (`docs/flows/host-lease.md`).

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::core::id::HostId;
use crate::core::mutation::Mutations;
use crate::core::profile::Profile;
use crate::core::time::BootInstant;
use crate::core::voters::{self, Voters};

/// What the agent tells its guard; the same for all of a datacentre.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Configuration {
    /// Grows with every change.
    pub version: u64,
    pub voters: Voters,
    /// Whose word a fence or a question is: the machines of servers.
    pub fencers: BTreeSet<HostId>,
    pub profile: Profile,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error(transparent)]
    Voters(#[from] voters::Error),
    #[error(transparent)]
    Profile(#[from] crate::core::profile::Error),
    #[error("version {have} is in force")]
    Old { have: u64 },
    #[error("the change to version {to} is not over yet")]
    ChangeUnderWay { to: u64 },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Membership {
    current: Configuration,
    former: Option<Former>,
}

/// What was in force before, while it still counts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Former {
    voters: Voters,
    watchdog: Duration,
    /// Both are asked at least until here.
    until: BootInstant,
    /// The first renewal that both were asked for.
    first_seq: u64,
    /// The deadline rests on both.
    confirmed: bool,
}

impl Membership {
    /// For a host without a lease: nothing rests on what was before.
    pub fn new(configuration: Configuration) -> Result<Self, Refused> {
        configuration.check()?;
        Ok(Self { current: configuration, former: None })
    }

    #[must_use]
    pub fn version(&self) -> u64 {
        self.current.version
    }

    /// The version under which the deadline was granted; none while that is the one before.
    #[must_use]
    pub fn confirmed_version(&self) -> Option<u64> {
        let is_confirmed = self.former.as_ref().is_none_or(|former| former.confirmed);
        is_confirmed.then_some(self.current.version)
    }

    #[must_use]
    pub fn profile(&self) -> &Profile {
        &self.current.profile
    }

    #[must_use]
    pub fn may_fence(&self, host: HostId) -> bool {
        self.current.fencers.contains(&host)
    }

    /// All who are asked for a renewal.
    #[must_use]
    pub fn everybody(&self) -> BTreeSet<HostId> {
        let former = self.former.iter().flat_map(|former| &former.voters.0);
        self.current.voters.0.iter().chain(former).copied().collect()
    }

    /// Whether these are enough to renew: of every set that counts, more than half.
    #[must_use]
    pub fn is_granted_by(&self, agreed: &BTreeSet<HostId>, mutations: Mutations) -> bool {
        let former = self.former.as_ref().map(|former| &former.voters);
        let mut all = std::iter::once(&self.current.voters).chain(former);
        all.all(|voters| voters.has_majority(agreed, mutations))
    }

    /// What the watchdog is to be set to. A deadline granted under a short watchdog must not meet a long one, nor may a
    /// promise for a short one be asked while a long one runs: until the deadline rests on the new, the shorter.
    #[must_use]
    pub fn watchdog(&self) -> Duration {
        let wanted = self.current.profile.watchdog;
        match &self.former {
            Some(former) if !former.confirmed => wanted.min(former.watchdog),
            _ => wanted,
        }
    }

    /// Takes the next configuration while a lease rests on this one. `next_seq` is the first renewal to ask both.
    pub fn change(&mut self, to: Configuration, now: BootInstant, next_seq: u64) -> Result<(), Refused> {
        self.check_next(&to)?;
        if self.former.is_some() {
            return Err(Refused::ChangeUnderWay { to: self.current.version });
        }
        let longest = self.current.profile.promise().max(to.profile.promise());
        let former = std::mem::replace(&mut self.current, to);
        self.former = Some(Former {
            voters: former.voters,
            watchdog: former.profile.watchdog,
            until: now + longest,
            first_seq: next_seq,
            confirmed: false,
        });
        Ok(())
    }

    /// Takes the next configuration with no lease to rest on any.
    pub fn replace(&mut self, by: Configuration) -> Result<(), Refused> {
        self.check_next(&by)?;
        *self = Self { current: by, former: None };
        Ok(())
    }

    /// A renewal was granted. True when that confirms the version in force.
    pub fn on_granted(&mut self, seq: u64) -> bool {
        match &mut self.former {
            Some(former) if !former.confirmed && seq >= former.first_seq => {
                former.confirmed = true;
                true
            }
            _ => false,
        }
    }

    /// Lets go of the former voters once nothing rests on them alone.
    pub fn settle(&mut self, now: BootInstant) {
        if self.former.as_ref().is_some_and(|former| former.confirmed && now >= former.until) {
            self.former = None;
        }
    }

    /// No lease is left that could rest on the former voters.
    pub fn forget_former(&mut self) {
        self.former = None;
    }

    fn check_next(&self, next: &Configuration) -> Result<(), Refused> {
        if next.version <= self.current.version {
            return Err(Refused::Old { have: self.current.version });
        }
        next.check()
    }
}

impl Configuration {
    pub fn check(&self) -> Result<(), Refused> {
        self.voters.check()?;
        Ok(self.profile.check()?)
    }
}

#[cfg(test)]
mod tests;
