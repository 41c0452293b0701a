//! Guests that fail while their QEMU is well: when one is reset by its host, and when no more.
//!
//! The state table is in docs/flows/vm-health.md. Pure, but for [`monitor`], which asks; what is done about it is one
//! of the task's steps.

/// Whether an application's check passes.
pub mod check;
/// Asks the guest, beside everything else.
pub mod monitor;
/// Whether a guest still does anything.
pub mod pulse;

use std::fmt;

use serde::{Deserialize, Serialize};
use sterna_base::clock::Timestamp;
use sterna_model::health::{OnFault, RESETS_MAX, RESETS_WITHIN};
use sterna_wire::assignment::{HealthOrder, Owner};

use crate::hypervisor::{Pause, Run};

/// What is wrong with a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It said so.
    Panicked,
    /// It did not feed its watchdog.
    Watchdog,
    /// It answered before, and does nothing any more.
    Hung { why: String },
    /// A check that was healthy fails.
    Check { check: String, why: String },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panicked => f.write_str("the guest crashed"),
            Self::Watchdog => f.write_str("the guest did not feed its watchdog"),
            Self::Hung { why } => write!(f, "the guest hangs: {why}"),
            Self::Check { check, why } => write!(f, "check {check} fails: {why}"),
        }
    }
}

/// Resets that the host made by itself; kept in the notes of the copy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resets {
    pub count: u32,
    /// When the last ones were made, the oldest first.
    pub made: Vec<Timestamp>,
    /// What the last one was for.
    pub why: String,
    /// It was reset often enough.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quarantine: Option<Quarantine>,
}

/// Until a person asks for a start or a reset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantine {
    pub why: String,
    /// Requests of people that it has seen.
    pub power_request: u64,
    pub reset_request: u64,
}

impl Resets {
    pub fn add(&mut self, why: String, now: Timestamp) {
        self.made.retain(|at| now.since(*at) < RESETS_WITHIN);
        self.count = self.count.saturating_add(1);
        self.made.push(now);
        self.why = why;
    }

    #[must_use]
    pub fn may_reset(&self, now: Timestamp) -> bool {
        let recent = self.made.iter().filter(|at| now.since(**at) < RESETS_WITHIN).count();
        recent < usize::try_from(RESETS_MAX).unwrap_or(usize::MAX)
    }

    /// A person wants it back: as many tries as at first.
    pub fn forgive(&mut self) {
        self.made.clear();
        self.quarantine = None;
    }
}

/// What is to be done about a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cure {
    Reset {
        why: String,
    },
    Quarantine {
        why: String,
    },
    /// A person asked for it since.
    Forgive,
}

/// `fault`: what was noticed of a guest that runs. `may_reset` is [`Resets::may_reset`] now.
#[must_use]
pub fn cure(
    owner: &Owner,
    run: &Run,
    fault: Option<&Fault>,
    resets: &Resets,
    may_reset: bool,
) -> Option<Cure> {
    let order = owner.health.as_ref()?;
    if let Some(quarantine) = &resets.quarantine {
        let is_asked =
            order.power_request > quarantine.power_request || owner.reset_request > quarantine.reset_request;
        return is_asked.then_some(Cure::Forgive);
    }
    let fault = match (run, fault) {
        (Run::Paused(Pause::Panicked), _) => &Fault::Panicked,
        (Run::Running, Some(fault)) => fault,
        _ => return None,
    };
    if !is_cured(order, fault) {
        return None;
    }
    let why = fault.to_string();
    Some(if may_reset { Cure::Reset { why } } else { Cure::Quarantine { why } })
}

/// Whether the order has such a guest reset. Of checks, only those that ask for it are told as faults.
fn is_cured(order: &HealthOrder, fault: &Fault) -> bool {
    match fault {
        Fault::Panicked => order.on_panic == OnFault::Restart,
        Fault::Watchdog | Fault::Hung { .. } => order.on_hang == OnFault::Restart,
        Fault::Check { .. } => true,
    }
}

#[cfg(test)]
#[path = "health_tests.rs"]
mod tests;
