//! What the hosts have of a VM, and whether a move of it goes on.

use sterna_model::meta::Name;
use sterna_model::migration::{MigrationDecision, Phase, SideState};
use sterna_model::vm::{CopyState, Exit, Owner};

use super::{Recovery, VmRow};
use crate::view::Vm;

/// Who has a VM, by the rows of the hosts that have told.
#[derive(Debug, Clone, Copy)]
pub(super) enum Found<'a> {
    /// A process that is its VM.
    Runs {
        host: &'a Name,
        row: &'a VmRow,
    },
    /// Everything of a move is here, and its source let go.
    Arrived {
        host: &'a Name,
        row: &'a VmRow,
        migration: &'a Name,
    },
    /// The source let go, and nobody has what it sent.
    LetGo {
        host: &'a Name,
        row: &'a VmRow,
        migration: &'a Name,
    },
    /// No process, and the last word on how it ended.
    Ended {
        host: &'a Name,
        row: &'a VmRow,
        exit: &'a Exit,
    },
    /// Only copies that were given up.
    GivenUp,
    Nothing,
}

impl Found<'_> {
    /// As an owner, if it can be one as it is.
    pub(super) fn owner(&self) -> Option<Owner> {
        match self {
            Found::Runs { host, row }
            | Found::Arrived { host, row, .. }
            | Found::LetGo { host, row, .. }
            | Found::Ended { host, row, .. } => Some(Owner { host: (*host).clone(), epoch: row.epoch }),
            Found::GivenUp | Found::Nothing => None,
        }
    }
}

impl<'a> Recovery<'a> {
    pub(super) fn found(&self, vm: &Vm<'a>) -> Found<'a> {
        let told: Vec<_> = vm.entry.reports.iter().filter(|(host, _)| self.has_told(host)).collect();
        // A start that is being prepared may be a target's; a process tells more.
        let runner = told.iter().filter(|(_, row)| is_runner(row));
        if let Some((host, row)) = runner.max_by_key(|(_, row)| (is_process(row), row.epoch)) {
            return Found::Runs { host, row };
        }
        let released = told.iter().find_map(|(host, row)| Some((*host, *row, released(row)?)));
        if let Some((from, source, migration)) = released {
            let arrived = told.iter().find(|(_, row)| has_arrived(row, migration));
            if let Some((host, row)) = arrived {
                return Found::Arrived { host, row, migration };
            }
            let has_run = told.iter().any(|(_, row)| row.epoch > source.epoch && !never_ran(row));
            if source.state.has_process() && !has_run && self.is_whole() {
                return Found::LetGo { host: from, row: source, migration };
            }
        }
        let ended = told.iter().filter_map(|(host, row)| match &row.state {
            CopyState::Stopped { exit } if *exit != Exit::Released && !never_ran(row) => {
                Some((*host, *row, exit))
            }
            _ => None,
        });
        match ended.max_by_key(|(_, row, _)| row.epoch) {
            Some((host, row, exit)) => Found::Ended { host, row, exit },
            None if told.is_empty() => Found::Nothing,
            None => Found::GivenUp,
        }
    }

    /// A source sends, in a move that the store does not know: how that ends decides who has the VM.
    pub(super) fn transfer_under_way(&self, vm: &Vm<'_>) -> Option<String> {
        let told = vm.entry.reports.iter().filter(|(host, _)| self.has_told(host));
        told.filter(|(_, row)| row.state.has_process()).find_map(|(host, row)| {
            let report = row.migration.as_ref()?;
            let sends = report.side == SideState::Sending && !self.is_known(vm, &report.migration);
            sends.then(|| {
                format!("host {host} is moving it ({}), which began after the backup", report.migration)
            })
        })
    }

    /// The store speaks of this move, and of its VM as the move does: it can go on.
    pub(super) fn is_known(&self, vm: &Vm<'_>, migration: &Name) -> bool {
        let open = self.view.migration_of(vm.name).filter(|(name, ..)| *name == migration);
        let (Some((.., moving)), Some(decision)) = (open, vm.decision()) else { return false };
        owner_in(moving).is_some_and(|owner| owner == decision.owner)
    }

    /// As [`Self::is_known`], and what its source let go is waited for: a store that is still preparing waits for a target to
    /// listen, which it never will again.
    pub(super) fn awaits(&self, vm: &Vm<'_>, migration: &Name) -> bool {
        let phase = self.view.migration_of(vm.name).map(|(.., moving)| &moving.phase);
        self.is_known(vm, migration) && !matches!(phase, Some(Phase::Pending | Phase::Preparing))
    }

    /// A target's process of which nobody can say what its memory is worth, and that no order yet ends.
    pub(super) fn leftover(&self, vm: &Vm<'a>) -> Option<&'a Name> {
        let told = vm.entry.reports.iter().filter(|(host, _)| self.has_told(host));
        let left = told.filter(|(_, row)| row.state.has_process()).max_by_key(|(_, row)| row.epoch);
        let (host, row) = left?;
        let is_ended = vm
            .decision()
            .is_some_and(|decision| decision.owner.host == *host && decision.owner.epoch > row.epoch);
        (!is_ended).then_some(host)
    }
}

/// Who owns the VM in this phase of a move.
fn owner_in(moving: &MigrationDecision) -> Option<Owner> {
    let source = |epoch| Some(Owner { host: moving.source.clone()?, epoch });
    let target = |epoch| Some(Owner { host: moving.target.clone()?, epoch });
    match &moving.phase {
        Phase::Pending | Phase::Preparing | Phase::Copying { .. } => source(moving.epoch),
        Phase::Resuming { epoch } | Phase::Finishing { epoch } => target(*epoch),
        Phase::Returning { epoch, .. } => source(*epoch),
        Phase::Undoing { .. } | Phase::Succeeded | Phase::Failed { .. } | Phase::Cancelled => None,
    }
}

/// Its guest runs, or may at any time without anybody's word.
fn is_runner(row: &VmRow) -> bool {
    row.state.has_process() && row.state != CopyState::Incoming && released(row).is_none()
}

fn is_process(row: &VmRow) -> bool {
    !matches!(row.state, CopyState::Starting { .. })
}

/// The move that the copy was given away in.
fn released(row: &VmRow) -> Option<&Name> {
    let report = row.migration.as_ref()?;
    matches!(report.side, SideState::Released { .. }).then_some(&report.migration)
}

fn has_arrived(row: &VmRow, migration: &Name) -> bool {
    let report = row.migration.as_ref().filter(|report| report.migration == *migration);
    let is_target =
        report.is_some_and(|report| matches!(report.side, SideState::Loaded | SideState::Listening { .. }));
    is_target && row.state == CopyState::Incoming
}

/// A target that ended before the guest ran in it.
fn never_ran(row: &VmRow) -> bool {
    let side = row.migration.as_ref().map(|report| &report.side);
    matches!(side, Some(SideState::Loaded | SideState::Listening { .. }))
}
