//! Moving a running VM: the one transition table, for every way to move.
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
//!
//! Through the mover the same words stand for: the source copy is frozen, and the end of its stream was let go after it
//! was recorded that it will not run. The target has yet to load that end, while the owner changes.
//!
//! A pre-seed is a move that ends before the guest's memory would go: its volumes were copied, and `Undoing` puts the copies
//! where the move itself will find them.

use serde::{Deserialize, Serialize};
use sterna_base::clock::Timestamp;
use sterna_base::units::{Bytes, Span};
use utoipa::ToSchema;

use crate::forecast::Forecast;
use crate::line::Line;
use crate::meta::Name;
use crate::volume::Location;

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
    /// A move that still copies then is called off: the VM stays where it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub finish_by: Option<Timestamp>,
    #[serde(default)]
    pub cancel: bool,
    /// Volumes only, ahead of the move: the VM stays where it runs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub seed: bool,
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
    #[serde(default)]
    pub via: Via,
    /// From one QEMU to the other: connections for memory beside the first; 0: one in clear carries everything.
    #[serde(default)]
    pub channels: u8,
    /// Those connections are not encrypted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_clear: bool,
    /// Volumes that go with it, because the target cannot open them where they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeMove>,
    /// How it moves and why this way.
    pub method: String,
    #[schema(value_type = String, format = DateTime)]
    pub started: Timestamp,
    /// When `phase` was entered.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// Why the source was told to stop sending, when nobody had asked for it. Its answer still decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub called_off: Option<String>,
    /// What was measured; set at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
}

/// Who carries the memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Via {
    /// One QEMU to the other.
    #[default]
    Direct,
    /// A page-aware pair of processes between them.
    Mover,
}

/// A volume that moves with its VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeMove {
    pub volume: Name,
    pub from: Location,
    pub to: Location,
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
        /// How the target's QEMU has to be called. Absent: in clear, or it is the mover that listens. Never shown.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(ignore)]
        line: Option<Line>,
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
        /// It was a pre-seed, and is done.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        seeded: bool,
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
        line: Option<Line>,
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
    /// A pre-seed: the target has the volumes as they were a moment ago.
    SourceSeeded,
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
    /// The store came back from a backup: what it says of this move is too old to go on from.
    Overtaken {
        why: String,
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
        let undo = |why: String, cancelled| P::Undoing { why, cancelled, seeded: false };
        match (self, event) {
            (P::Pending, E::Admitted) => Ok(P::Preparing),
            (P::Pending, E::Refused { why } | E::DeadlinePassed { what: why }) => Ok(P::Failed { why }),
            (P::Pending, E::CancelRequested) => Ok(P::Cancelled),

            (P::Preparing, E::TargetListens { at, line }) => Ok(P::Copying { listen: at, line }),
            (P::Preparing, E::TargetLost { why, .. }) => Ok(undo(why, false)),
            (P::Preparing, E::SourceKept { why, cancelled }) => Ok(undo(why, cancelled)),
            (P::Preparing, E::DeadlinePassed { what }) => Ok(undo(what, false)),
            (P::Preparing, E::CancelRequested) => Ok(undo("cancelled".to_owned(), true)),

            (P::Copying { .. }, E::SourceReleased { next_epoch }) => Ok(P::Resuming { epoch: next_epoch }),
            // The source resumed the guest by itself: it never stopped being the owner.
            (P::Copying { .. }, E::SourceKept { why, cancelled }) => Ok(undo(why, cancelled)),
            (P::Copying { .. }, E::SourceSeeded) => {
                Ok(P::Undoing { why: "the volumes are there".to_owned(), cancelled: false, seeded: true })
            }
            // Not enough: the source must say that it kept or released the guest. It learns of the cancel by its assignment.
            (phase @ P::Copying { .. }, E::CancelRequested | E::TargetLost { .. }) => Ok(phase),
            (phase @ P::Copying { .. }, E::DeadlinePassed { .. }) => Ok(phase),

            (P::Resuming { epoch }, E::TargetRuns) => Ok(P::Finishing { epoch }),
            (P::Resuming { .. }, E::TargetLost { why, next_epoch }) => {
                Ok(P::Returning { epoch: next_epoch, why })
            }

            (P::Returning { why, .. }, E::SourceRuns | E::SourceGone) => Ok(undo(why, false)),

            (P::Finishing { .. }, E::SourceGone) => Ok(P::Succeeded),

            (P::Undoing { seeded: true, .. }, E::TargetGone) => Ok(P::Succeeded),
            (P::Undoing { why, cancelled, .. }, E::TargetGone) => {
                Ok(if cancelled { P::Cancelled } else { P::Failed { why } })
            }
            (phase @ P::Undoing { .. }, E::CancelRequested) => Ok(phase),

            // The source already let go: cancelling could leave the VM with no owner.
            (P::Resuming { .. } | P::Returning { .. } | P::Finishing { .. }, E::CancelRequested) => {
                Err(Refused::PastSwitchover)
            }
            (P::Succeeded | P::Failed { .. } | P::Cancelled, _) => Err(Refused::Ended),
            // Who owns the VM was found out from the hosts: `plan::recovery`.
            (_, E::Overtaken { why }) => Ok(P::Failed { why }),
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
    Listening {
        at: String,
        /// How the source's QEMU has to call; see [`Phase::Copying`]. Never shown.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(ignore)]
        line: Option<Line>,
    },
    /// Target: everything arrived; paused.
    Loaded,
    /// Target: the guest was continued.
    Continued {
        /// From the arrival of the end of its stream until its CPUs ran; only through the mover.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(value_type = Option<String>)]
        loading: Option<Span>,
        /// From then until it first answered on its network.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(value_type = Option<String>)]
        answered: Option<Span>,
    },
    /// Source: sending.
    Sending,
    /// Source: completed, and durably recorded as "will not run under this epoch".
    Released { outcome: Outcome },
    /// Source: failed or cancelled; the guest runs here.
    Kept { why: String },
    /// Source: a pre-seed is done; the guest runs here.
    Seeded { outcome: Outcome },
}

/// What a migration took, as measured. Bytes and times of the memory transfer come from the source's QEMU.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Outcome {
    /// From the decision to move until the target ran and the source was gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub total: Option<Span>,
    /// Guest CPUs stopped: by the source's QEMU; through the mover, what both sides measured and half a round trip.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub downtime: Option<Span>,
    /// From the stop of its CPUs at the source until it answered on its network at the target, where it has an address there
    /// and answers at all. Known a moment after the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub gap: Option<Span>,
    /// Of the line, as it was with nothing waiting on it; only through the mover.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub round_trip: Option<Span>,
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
    /// What each write of the guest to its disks waits for now, because the line is behind; none if it waits for nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub slowed: Option<Span>,
}

#[cfg(test)]
#[path = "migration_tests.rs"]
mod tests;
