//! What the agent and people are told of a guard.

use std::time::Duration;

use serde::Serialize;

use crate::core::event::State;
use crate::core::guard::Guard;
use crate::core::membership::Membership;
use crate::core::time::BootInstant;

/// A guard at one instant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    pub lease: State,
    /// How long the lease, or the hope for one, lasts unless renewed.
    pub left: Option<Duration>,
    /// What `Join` names as the instant before the store was asked.
    pub now: BootInstant,
    /// As a voter it says nothing for so long.
    pub silent_for: Duration,
    pub configuration: Option<u64>,
    /// The one that the lease rests on.
    pub confirmed_configuration: Option<u64>,
    /// Some VMs are being killed and are not gone.
    pub is_killing: bool,
    /// How many could be restarted elsewhere, with those that are being killed.
    pub vms: usize,
    pub feeds_watchdog: bool,
}

impl Guard {
    #[must_use]
    pub fn status(&self, now: BootInstant) -> Status {
        Status {
            lease: self.lease.state(),
            left: self.lease.deadline().map(|at| at.since(now)),
            now,
            silent_for: self.voter.silent_until().since(now),
            configuration: self.membership.as_ref().map(Membership::version),
            confirmed_configuration: self.membership.as_ref().and_then(Membership::confirmed_version),
            is_killing: self.vms.any_doomed(),
            vms: self.vms.len(),
            feeds_watchdog: self.watchdog.programmed.is_some() && self.may_feed(now),
        }
    }
}
