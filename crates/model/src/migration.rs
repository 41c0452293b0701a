//! Moving a running VM: the one transition table, shared storage, direct path.
//!
//! ```text
//!  Pending ─► Preparing ─► Copying ─► Resuming ─► Finishing ─► Succeeded
//!     │           │           │  ▲        │
//!     │           └─► Undoing ◄┘  │        └─► Returning ─► Undoing ─► Failed
//!     └─► Failed / Cancelled      (source resumed by itself: Undoing)
//! ```
//!
//! The source owns the VM up to and including `Copying`: QEMU may resume it by itself after any failure, so ownership
//! must not move earlier. "Released" is the source agent's durable word that its copy completed and will not run; only
//! then may a transaction make the target the owner. Nobody continues a guest without owning the VM.

use serde::{Deserialize, Serialize};
use sterna_base::clock::Timestamp;
use sterna_base::units::{Bytes, Span};
use utoipa::ToSchema;

use crate::forecast::Forecast;
use crate::meta::Name;

/// What was asked for. Written by the API (or by a drain).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MigrationSpec {
    pub vm: Name,
    /// Absent: control chooses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Name>,
    /// The longest pause of the guest that is accepted.
    #[serde(default = "default_downtime")]
    #[schema(value_type = String, example = "300ms")]
    pub max_downtime: Span,
    #[serde(default)]
    pub cancel: bool,
    /// What was expected when it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forecast: Option<Forecast>,
    /// Who or what asked, such as `person` or `drain of host a1`.
    #[serde(default)]
    pub asked_by: String,
}

fn default_downtime() -> Span {
    Span::from_millis(300)
}

/// What control chose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MigrationDecision {
    pub phase: Phase,
    /// The VM epoch that the move started under.
    pub epoch: u64,
    /// The VM epoch that the target will own.
    pub next_epoch: u64,
    /// The epoch under which the source's copy opened its disks, when that is not `epoch`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opened: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Name>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Name>,
    /// How it moves and why this way.
    pub method: String,
    #[schema(value_type = String, format = DateTime)]
    pub started: Timestamp,
    /// When `phase` was entered.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// What was measured; set at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
}

/// Where a migration stands. The variants carry what a new leader needs to go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "phase", rename_all = "kebab-case")]
pub enum Phase {
    /// Waits for a free slot on both hosts.
    Pending,
    /// The target starts a paused QEMU that listens.
    Preparing,
    /// The source sends memory to `listen` while the guest runs.
    Copying {
        listen: String,
    },
    /// The target owns the VM under `epoch` and continues the guest.
    Resuming {
        epoch: u64,
    },
    /// The target was lost before the guest ran there: the source owns the VM again under `epoch` and continues it.
    Returning {
        epoch: u64,
        why: String,
    },
    /// The guest runs on the target; the source copy is being killed and reaped.
    Finishing {
        epoch: u64,
    },
    /// The guest runs on (or ended at) the source; what was prepared on the target is being removed.
    Undoing {
        why: String,
        cancelled: bool,
    },
    Succeeded,
    Failed {
        why: String,
    },
    Cancelled,
}

/// What happened to a migration, read from reports by `plan::migration`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Both hosts have a slot.
    Admitted,
    /// No host fits, or the VM cannot move.
    Refused {
        why: String,
    },
    TargetListens {
        at: String,
    },
    /// Both sides completed and the source's agent durably recorded that its copy will not run.
    SourceReleased {
        next_epoch: u64,
    },
    /// The source sees the transfer as failed or cancelled and runs on, or its copy ended.
    SourceKept {
        why: String,
        cancelled: bool,
    },
    /// The target copy ended before the guest ran in it.
    TargetLost {
        why: String,
        next_epoch: u64,
    },
    TargetRuns,
    SourceRuns,
    SourceGone,
    TargetGone,
    CancelRequested,
    DeadlinePassed {
        what: String,
    },
}

/// Why an event does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the guest has been handed over; it can be moved back with another migration")]
    PastSwitchover,
    #[error("the migration has ended")]
    Ended,
    #[error("{event:?} cannot happen in {phase:?}")]
    OutOfOrder { phase: Box<Phase>, event: Box<Event> },
}

impl Phase {
    /// The whole transition table. Nothing else changes a `Phase`.
    pub fn on(self, event: Event) -> Result<Phase, Refused> {
        use Event as E;
        use Phase as P;
        let undo = |why: String, cancelled| P::Undoing { why, cancelled };
        match (self, event) {
            (P::Pending, E::Admitted) => Ok(P::Preparing),
            (P::Pending, E::Refused { why } | E::DeadlinePassed { what: why }) => Ok(P::Failed { why }),
            (P::Pending, E::CancelRequested) => Ok(P::Cancelled),

            (P::Preparing, E::TargetListens { at }) => Ok(P::Copying { listen: at }),
            (P::Preparing, E::TargetLost { why, .. }) => Ok(undo(why, false)),
            (P::Preparing, E::SourceKept { why, cancelled }) => Ok(undo(why, cancelled)),
            (P::Preparing, E::DeadlinePassed { what }) => Ok(undo(what, false)),
            (P::Preparing, E::CancelRequested) => Ok(undo("cancelled".to_owned(), true)),

            (P::Copying { .. }, E::SourceReleased { next_epoch }) => Ok(P::Resuming { epoch: next_epoch }),
            // The source resumed the guest by itself: it never stopped being the owner.
            (P::Copying { .. }, E::SourceKept { why, cancelled }) => Ok(undo(why, cancelled)),
            // Not enough: the source must say that it kept or released the guest. It learns of the cancel by its assignment.
            (phase @ P::Copying { .. }, E::CancelRequested | E::TargetLost { .. }) => Ok(phase),
            (phase @ P::Copying { .. }, E::DeadlinePassed { .. }) => Ok(phase),

            (P::Resuming { epoch }, E::TargetRuns) => Ok(P::Finishing { epoch }),
            (P::Resuming { .. }, E::TargetLost { why, next_epoch }) => {
                Ok(P::Returning { epoch: next_epoch, why })
            }

            (P::Returning { why, .. }, E::SourceRuns | E::SourceGone) => Ok(undo(why, false)),

            (P::Finishing { .. }, E::SourceGone) => Ok(P::Succeeded),

            (P::Undoing { why, cancelled }, E::TargetGone) => {
                Ok(if cancelled { P::Cancelled } else { P::Failed { why } })
            }
            (phase @ P::Undoing { .. }, E::CancelRequested) => Ok(phase),

            // The source already let go: cancelling could leave the VM with no owner.
            (P::Resuming { .. } | P::Returning { .. } | P::Finishing { .. }, E::CancelRequested) => {
                Err(Refused::PastSwitchover)
            }
            (P::Succeeded | P::Failed { .. } | P::Cancelled, _) => Err(Refused::Ended),
            (phase, event) => Err(Refused::OutOfOrder { phase: Box::new(phase), event: Box::new(event) }),
        }
    }

    #[must_use]
    pub fn has_ended(&self) -> bool {
        matches!(self, Phase::Succeeded | Phase::Failed { .. } | Phase::Cancelled)
    }

    /// One word for tables and logs.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Phase::Pending => "pending",
            Phase::Preparing => "preparing",
            Phase::Copying { .. } => "copying",
            Phase::Resuming { .. } => "resuming",
            Phase::Returning { .. } => "returning",
            Phase::Finishing { .. } => "finishing",
            Phase::Undoing { .. } => "undoing",
            Phase::Succeeded => "succeeded",
            Phase::Failed { .. } => "failed",
            Phase::Cancelled => "cancelled",
        }
    }

    /// May a person still cancel?
    #[must_use]
    pub fn may_cancel(&self) -> bool {
        self.clone().on(Event::CancelRequested).is_ok()
    }
}

/// What one side's agent saw of a migration; part of that host's report of the VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MigrationReport {
    pub migration: Name,
    pub side: SideState,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "side", rename_all = "kebab-case")]
pub enum SideState {
    /// Target: QEMU listens at `at` (`host:port`).
    Listening { at: String },
    /// Target: everything arrived; paused.
    Loaded,
    /// Target: the guest was continued; when its CPUs ran again is in `outcome`.
    Continued,
    /// Source: sending.
    Sending,
    /// Source: completed, and durably recorded as "will not run under this epoch".
    Released { outcome: Outcome },
    /// Source: failed or cancelled; the guest runs here.
    Kept { why: String },
}

/// What a migration took, as measured. Bytes and times of the memory transfer come from the source's QEMU.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Outcome {
    /// From the decision to move until the target ran and the source was gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub total: Option<Span>,
    /// Guest CPUs stopped, by the source's QEMU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub downtime: Option<Span>,
    /// Longest silence that a probe on the network saw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub gap: Option<Span>,
    #[schema(value_type = String)]
    pub bytes: Bytes,
    /// Passes over memory.
    pub rounds: u64,
}

/// Numbers of a running transfer. Kept in memory by the server; never stored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    #[schema(value_type = String)]
    pub sent: Bytes,
    #[schema(value_type = String)]
    pub remaining: Bytes,
    #[schema(value_type = String)]
    pub total: Bytes,
    /// Bytes a second written by the guest.
    #[schema(value_type = String)]
    pub dirty_rate: Bytes,
    /// Bytes a second sent.
    #[schema(value_type = String)]
    pub send_rate: Bytes,
    pub rounds: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub eta: Option<Span>,
    /// Guest CPU time taken away to let the copy catch up, percent.
    #[serde(default)]
    pub throttle: u8,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_phase() -> Vec<Phase> {
        vec![
            Phase::Pending,
            Phase::Preparing,
            Phase::Copying { listen: "h:1".into() },
            Phase::Resuming { epoch: 2 },
            Phase::Returning { epoch: 3, why: "x".into() },
            Phase::Finishing { epoch: 2 },
            Phase::Undoing { why: "x".into(), cancelled: false },
            Phase::Succeeded,
            Phase::Failed { why: "x".into() },
            Phase::Cancelled,
        ]
    }

    #[test]
    fn a_move_that_meets_no_trouble_goes_straight_through() {
        let events = [
            Event::Admitted,
            Event::TargetListens { at: "h:1".into() },
            Event::SourceReleased { next_epoch: 2 },
            Event::TargetRuns,
            Event::SourceGone,
        ];
        let end = events.into_iter().try_fold(Phase::Pending, Phase::on);
        assert_eq!(end, Ok(Phase::Succeeded));
    }

    #[test]
    fn cancel_is_refused_once_the_source_let_go() {
        for phase in every_phase() {
            let may = matches!(
                phase,
                Phase::Pending | Phase::Preparing | Phase::Copying { .. } | Phase::Undoing { .. }
            );
            assert_eq!(phase.may_cancel(), may, "{phase:?}");
        }
    }

    #[test]
    fn ownership_moves_only_on_the_sources_word() {
        for phase in every_phase() {
            let moved = phase.clone().on(Event::SourceReleased { next_epoch: 9 });
            let legal = matches!(phase, Phase::Copying { .. });
            assert_eq!(matches!(moved, Ok(Phase::Resuming { epoch: 9 })), legal, "{phase:?}");
        }
    }

    #[test]
    fn what_has_ended_stays_ended() {
        let events = [Event::Admitted, Event::TargetRuns, Event::SourceGone, Event::CancelRequested];
        for phase in every_phase().into_iter().filter(Phase::has_ended) {
            for event in &events {
                assert_eq!(phase.clone().on(event.clone()), Err(Refused::Ended));
            }
        }
    }

    #[test]
    fn every_phase_has_a_way_to_an_end() {
        // From any phase, some sequence of at most five events ends the migration.
        let events = [
            Event::Admitted,
            Event::TargetListens { at: "h:1".into() },
            Event::SourceReleased { next_epoch: 2 },
            Event::SourceKept { why: "x".into(), cancelled: false },
            Event::TargetLost { why: "x".into(), next_epoch: 3 },
            Event::TargetRuns,
            Event::SourceRuns,
            Event::SourceGone,
            Event::TargetGone,
        ];
        for start in every_phase() {
            let mut reached = vec![start.clone()];
            for _ in 0..5 {
                let next: Vec<_> = reached
                    .iter()
                    .flat_map(|phase| events.iter().filter_map(|event| phase.clone().on(event.clone()).ok()))
                    .collect();
                reached.extend(next);
                reached.dedup();
            }
            assert!(reached.iter().any(Phase::has_ended), "{start:?}");
        }
    }
}
