//! What the reports say has happened to a migration since its phase began.
//!
//! Reads rows only. What follows from an event is in the transition table; what is written, in `migration`.

use std::cmp::Ordering;
use std::net::SocketAddr;

use sterna_model::meta::Name;
use sterna_model::migration::{Event, MigrationDecision, Phase, SideState};
use sterna_model::vm::{CopyState, Exit, VmReport};

use super::{Move, lost_target};

impl Move<'_> {
    /// What the reports say has happened since the phase began; the most final first.
    pub(super) fn observe(&self, decision: &MigrationDecision) -> Option<Event> {
        match &decision.phase {
            Phase::Preparing => self.observe_preparing(decision),
            Phase::Copying { .. } => self.observe_copying(decision),
            Phase::Resuming { epoch } => self.observe_resuming(decision, *epoch),
            Phase::Returning { epoch, .. } => self.observe_returning(decision, *epoch),
            Phase::Finishing { .. } => self.source_is_gone(decision).then_some(Event::SourceGone),
            Phase::Undoing { .. } => self.target_is_gone(decision).then_some(Event::TargetGone),
            Phase::Pending | Phase::Succeeded | Phase::Failed { .. } | Phase::Cancelled => None,
        }
    }

    fn observe_preparing(&self, decision: &MigrationDecision) -> Option<Event> {
        if let Some(why) = self.source_ended(decision) {
            return Some(Event::SourceKept { why, cancelled: false });
        }
        if self.wants_cancel() {
            return Some(Event::CancelRequested);
        }
        let target = self.target_row(decision).filter(|row| row.epoch == decision.next_epoch);
        if let Some(why) = target.and_then(|row| ended(row)) {
            return Some(Event::TargetLost {
                why: format!("the target could not start: {why}"),
                next_epoch: 0,
            });
        }
        if let Some(SideState::Listening { at, line }) = target.and_then(|row| self.side(row)) {
            // The source could never send to what is no address, and would be waited for in vain.
            return Some(match at.parse::<SocketAddr>() {
                Ok(_) => Event::TargetListens { at: at.clone(), line: line.clone() },
                Err(_) => Event::TargetLost { why: format!("the target listens at {at:?}"), next_epoch: 0 },
            });
        }
        self.waited_in_vain(decision).map(|what| Event::DeadlinePassed { what })
    }

    fn observe_copying(&self, decision: &MigrationDecision) -> Option<Event> {
        // Only the copy that was sent can have been released, and only while it is the owner's.
        let row = self
            .source_row(decision)
            .filter(|row| row.epoch == decision.epoch && self.is_at_source(decision));
        match row.and_then(|row| self.side(row)) {
            Some(SideState::Released { .. }) => {
                return Some(Event::SourceReleased { next_epoch: decision.next_epoch });
            }
            Some(SideState::Kept { why }) => {
                // What it says of an order to stop is that it was one.
                let lost = self.vm().and_then(|vm| lost_target(&vm, decision));
                let lost = lost.map(|lost| format!("the target was lost: {lost}"));
                let why = lost.or_else(|| decision.called_off.clone()).unwrap_or_else(|| why.clone());
                return Some(Event::SourceKept { why, cancelled: self.wants_cancel() });
            }
            Some(SideState::Seeded { .. }) => return Some(Event::SourceSeeded),
            _ => {}
        }
        self.source_ended(decision).map(|why| Event::SourceKept { why, cancelled: false })
    }

    /// The source owns the VM under the epoch that the move began with.
    fn is_at_source(&self, decision: &MigrationDecision) -> bool {
        let owner = self.vm().and_then(|vm| vm.decision()).map(|has| &has.owner);
        owner.is_some_and(|owner| {
            owner.epoch == decision.epoch && Some(&owner.host) == decision.source.as_ref()
        })
    }

    /// Another start has come in between: the owner was lost, and the VM was taken over.
    fn is_taken_over(&self, epoch: u64) -> bool {
        self.vm().and_then(|vm| vm.decision()).is_some_and(|has| has.owner.epoch > epoch)
    }

    fn observe_resuming(&self, decision: &MigrationDecision, epoch: u64) -> Option<Event> {
        if self.is_taken_over(epoch) {
            // Neither copy is continued any more: what is left at the source is released, as after a move.
            return Some(Event::TargetRuns);
        }
        let target = decision.target.as_ref()?;
        // Nobody starts a VM anew that is being handed over, but for one that has run at the target and ended there.
        if self.vm()?.decision()?.owner.epoch > epoch {
            return Some(Event::TargetRuns);
        }
        let row = self.row(target).filter(|row| row.epoch == epoch);
        // Once continued there, memory on the source is older than the disks, whatever became of the target since.
        if row.is_some_and(|row| matches!(self.side(row), Some(SideState::Continued { .. }))) {
            return Some(Event::TargetRuns);
        }
        let lost = |why: String| {
            let next_epoch = self.vm()?.next_epoch();
            Some(Event::TargetLost { why: format!("the target was lost: {why}"), next_epoch })
        };
        match row.map(|row| &row.state) {
            // With its notes the host lost the memory of whether the guest had run: it must be taken to have.
            Some(CopyState::Stopped { exit: Exit::Lost }) => Some(Event::TargetRuns),
            Some(CopyState::Stopped { exit }) => lost(format!("{exit:?}")),
            _ if self.view.is_removed(target) => Some(Event::TargetRuns),
            _ => None,
        }
    }

    fn observe_returning(&self, decision: &MigrationDecision, epoch: u64) -> Option<Event> {
        if self.source_is_removed(decision) || self.is_taken_over(epoch) {
            return Some(Event::SourceGone);
        }
        let Some(row) = self.source_row(decision) else { return Some(Event::SourceGone) };
        let runs = matches!(row.state, CopyState::Running | CopyState::Paused { .. });
        match row.epoch.cmp(&epoch) {
            Ordering::Equal if runs => Some(Event::SourceRuns),
            // Also when it ended under its old epoch before it heard of the new one.
            Ordering::Equal | Ordering::Less => ended(row).map(|_| Event::SourceGone),
            Ordering::Greater => Some(Event::SourceGone),
        }
    }

    /// Why the source copy can no longer be sent: it ended, or the VM has another owner or epoch.
    fn source_ended(&self, decision: &MigrationDecision) -> Option<String> {
        let Some(vm) = self.vm() else { return Some("the VM was removed".to_owned()) };
        let owner = &vm.decision()?.owner;
        if !self.is_at_source(decision) {
            return Some("the VM was started anew".to_owned());
        }
        if self.source_is_removed(decision) {
            return Some(format!("host {} was removed", owner.host));
        }
        ended(vm.owner_report()?).map(|why| format!("the source copy ended: {why}"))
    }

    fn source_is_removed(&self, decision: &MigrationDecision) -> bool {
        decision.source.as_ref().is_none_or(|source| self.view.is_removed(source))
    }

    /// It said that it will not run: a silent source is no reason to keep the migration open.
    fn source_is_gone(&self, decision: &MigrationDecision) -> bool {
        self.is_left_behind(decision.source.as_ref(), decision.epoch)
    }

    /// A copy that never owned the VM cannot run it: neither is a silent target.
    fn target_is_gone(&self, decision: &MigrationDecision) -> bool {
        self.is_left_behind(decision.target.as_ref(), decision.next_epoch)
    }

    /// Nothing is to be waited for of a copy that may not run: it ended, there is a newer one in its place, or its host
    /// is silent, which is told to release it when it is back.
    fn is_left_behind(&self, host: Option<&Name>, epoch: u64) -> bool {
        let Some(host) = host else { return true };
        let silent = self.view.host(host).is_none_or(|host| !host.is_connected());
        silent || self.row(host).is_none_or(|row| row.epoch > epoch || ended(row).is_some())
    }
}

/// Why a copy has ended; `None` while it has a process.
pub(super) fn ended(row: &VmReport) -> Option<String> {
    match &row.state {
        CopyState::Stopped { exit } => Some(format!("{exit:?}")),
        _ => None,
    }
}
