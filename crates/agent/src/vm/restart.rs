//! Whether a copy that ended without being asked is started again here, and when.
//!
//! The state table is in docs/flows/vm-health.md. Pure: never reads a clock and never acts (`start`).

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sterna_base::clock::Timestamp;
use sterna_model::health::{HEALTHY_AFTER, HealthReport, IN_PLACE_MAX, restart_wait};
use sterna_model::migration::SideState;
use sterna_model::vm::Exit;
use sterna_wire::assignment::{Owner, Role, VmAssignment};

use super::record::{Notes, Seen, Title};

/// A copy that ended, of which nobody was told yet: until somebody is, this host owns the VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crash {
    pub exit: Exit,
    pub at: Timestamp,
}

impl Crash {
    #[must_use]
    pub fn why(&self) -> String {
        match &self.exit {
            Exit::Crashed { why } => format!("qemu ended: {why}"),
            Exit::StartFailed { why } => format!("it could not be started again: {why}"),
            other => format!("{other:?}"),
        }
    }
}

/// Restarts in place under the epoch of the notes that they are kept in. Each is noted before it is tried.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Restarts {
    pub count: u32,
    /// When the last ones were tried, the oldest first; as many as the waits can tell apart.
    pub tried: Vec<Timestamp>,
    /// What the last one was for.
    pub why: String,
}

/// More than this never matters: the longest wait is reached before.
const TRIED_KEPT: usize = 8;

impl Restarts {
    pub fn add(&mut self, why: String, now: Timestamp) {
        self.count = self.count.saturating_add(1);
        self.why = why;
        self.tried.push(now);
        let surplus = self.tried.len().saturating_sub(TRIED_KEPT);
        self.tried.drain(..surplus);
    }

    /// Those that were tried a short time before.
    #[must_use]
    pub fn recent(&self, now: Timestamp) -> u32 {
        let recent = self.tried.iter().filter(|at| now.since(**at) < HEALTHY_AFTER).count();
        u32::try_from(recent).unwrap_or(u32::MAX)
    }

    #[must_use]
    pub fn report(&self) -> HealthReport {
        let last = self.tried.last().copied().unwrap_or_default();
        HealthReport {
            restarts: self.count,
            recent: self.recent(last),
            why: (self.count > 0).then(|| self.why.clone()),
            ..HealthReport::default()
        }
    }
}

/// Whether an end is still this host's own affair: nobody asked for it, nothing of the copy was given away, and nobody
/// was told.
#[must_use]
pub fn is_open(exit: &Exit, notes: Option<&Notes>, seen: Option<&Seen>) -> bool {
    let (Some(notes), Some(seen)) = (notes, seen) else { return false };
    let side = notes.migration.as_ref().map(|report| &report.side);
    let is_whole = matches!(
        side,
        None | Some(SideState::Kept { .. } | SideState::Seeded { .. } | SideState::Continued { .. })
    );
    matches!(exit, Exit::Crashed { .. })
        && notes.title == Title::Owner
        && notes.ending.is_none()
        && is_whole
        && seen.epoch == notes.epoch
        && seen.exit.is_none()
}

/// Whether the order lets the host start it again by itself. Answers how many restarts it has to count on from.
#[must_use]
pub fn allowed(epoch: u64, owner: &Owner, notes: Option<&Notes>) -> Option<u32> {
    let is_ours = notes.is_some_and(|notes| notes.title == Title::Owner && notes.epoch == epoch);
    owner.restart_here.filter(|_| is_ours && owner.power.wants_process() && owner.outgoing.is_none())
}

/// What is known of restarts before this one, for [`turn`].
#[derive(Debug, Clone, Copy)]
pub struct Past<'a> {
    /// Restarts in a row before this epoch.
    pub carried: u32,
    pub restarts: &'a Restarts,
    /// When the copy of this epoch was first started or continued here.
    pub began: Timestamp,
}

/// What a crash that may be healed here waits for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Turn {
    Now,
    After(Duration),
    /// Enough was tried here, and control hears it.
    #[default]
    GiveUp,
}

#[must_use]
pub fn turn(past: Past<'_>, crash: &Crash, now: Timestamp, is_heard: bool) -> Turn {
    let recent = past.restarts.recent(now);
    if recent >= IN_PLACE_MAX && is_heard {
        return Turn::GiveUp;
    }
    // What ran long is healthy: what was before it counts no more.
    let is_fresh = recent == 0 && crash.at.since(past.began) >= HEALTHY_AFTER;
    let carried = if is_fresh { 0 } else { past.carried };
    let wait = restart_wait(carried.saturating_add(recent));
    // A clock that went back must not make anything wait longer.
    let passed = if now < crash.at { wait } else { now.since(crash.at) };
    match wait.saturating_sub(passed) {
        Duration::ZERO => Turn::Now,
        left => Turn::After(left),
    }
}

/// The owner that an assignment of before this agent's start names, if it is about the copy that is noted.
#[must_use]
pub fn recalled<'a>(
    kept: Option<&'a VmAssignment>,
    seen: Option<&Seen>,
    notes: Option<&Notes>,
) -> Option<(u64, &'a Owner)> {
    let kept =
        kept.filter(|kept| seen.is_some_and(|seen| seen.epoch == kept.epoch && seen.exit.is_none()))?;
    let Role::Owner(owner) = &kept.role else { return None };
    allowed(kept.epoch, owner, notes).map(|_| (kept.epoch, &**owner))
}

#[cfg(test)]
#[path = "restart_tests.rs"]
pub(super) mod tests;
