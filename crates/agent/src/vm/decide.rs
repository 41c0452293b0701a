//! The next step for one VM on this host: a pure function of the order, of what is here, and of the records.
//!
//! Keeps true, whatever was lost or killed before:
//!
//! - a guest runs only under an epoch that this host owns, and never after its memory was handed over under it;
//! - an epoch is started at most once for each start that was noted, and only one process of a VM is here at a time;
//! - nothing is concluded from what could not be read.
//!
//! Never acts (`steps`) and never looks (`hypervisor`).

use sterna_model::meta::Name;
use sterna_model::migration::SideState;
use sterna_model::vm::{Exit, Power};
use sterna_wire::assignment::{Outgoing, Owner, Role, VmAssignment};

use super::health::{self, Cure, Fault};
use super::migrate::Hopeless;
use super::power;
use super::record::{Cause, Notes, Seen, Title};
use super::restart::{self, Crash, Turn};
use crate::hypervisor::{Pause, Run, Transfer, View};

/// What the server wants with the VM here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Not heard since this agent started.
    Unknown,
    /// The VM is not in the assignment.
    Absent,
    Given(Box<VmAssignment>),
}

impl Order {
    /// What the VM's owner is told, if this host is it.
    #[must_use]
    pub fn owner(&self) -> Option<&Owner> {
        match self {
            Self::Given(order) => match &order.role {
                Role::Owner(owner) => Some(owner),
                _ => None,
            },
            _ => None,
        }
    }
}

/// What is here of the VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// It could not be read.
    Unknown,
    Absent,
    Alive(View),
    /// The copy of the epoch in [`Seen`] is gone and reaped.
    Ended(Exit),
    /// The same, unasked, and nobody was told of it: it may be started again here.
    Crashed(Crash),
}

/// What has become due, by clocks that are not read here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Due {
    /// The guest had its time to shut down.
    pub switch_off: bool,
    /// It is time to press the power button once more.
    pub press: bool,
    /// It is time to try a failed disk again.
    pub retry_io: bool,
    /// The transfer has made no progress for too long.
    pub is_stalled: bool,
    /// The transfer gets no nearer to its end; also why it was given up, until the next one begins.
    pub hopeless: Option<Hopeless>,
    /// The transfer was already asked to give up.
    pub is_cancelling: bool,
    /// This host owns a guest whose memory should have been here long ago.
    pub is_overdue: bool,
    /// Whether a crashed copy's wait is over.
    pub restart: Turn,
    /// The host has not reset the guest too often yet.
    pub may_reset: bool,
}

#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    pub order: &'a Order,
    pub body: &'a Body,
    pub notes: Option<&'a Notes>,
    pub seen: Option<&'a Seen>,
    /// The order of the assignment that was applied before this agent started.
    pub kept: Option<&'a VmAssignment>,
    /// What was noticed of the guest since it last started.
    pub fault: Option<&'a Fault>,
    pub due: Due,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Wait,
    /// The order is older than what this host has acted upon.
    Refuse,
    /// There is no process and there will be none under this epoch: remember that, with the reason.
    Conclude(Exit),
    /// Remember the epoch, prepare, start, let run.
    Start,
    /// Note the restart, prepare, start under the epoch that it had, let run.
    StartAgain {
        why: String,
    },
    /// Remember the epoch, prepare, start as a target.
    Receive,
    Listen,
    /// Everything arrived.
    MarkLoaded,
    /// The copy is this host's under the order's epoch, and goes on as it is.
    Adopt,
    /// Run the copy that a migration left here, under the order's epoch.
    Continue,
    Send,
    CancelSend,
    /// Completed: record that this copy will not run, then say so.
    HandOver,
    /// Noted as kept, and frozen all the same.
    Thaw,
    /// The disks were copied ahead of a move: say so.
    EndSeed,
    /// Failed or cancelled: the guest runs on here.
    Keep {
        why: String,
    },
    Run,
    /// Let it try again what its storage failed at.
    RetryIo,
    Pause,
    PressPowerButton,
    /// It need not shut down any more.
    Relent,
    Reset(u64),
    /// What the host does by itself for a guest that fails.
    Cure(Cure),
    /// It runs under no lease and is to live under this one of the host's.
    Enlist(u64),
    Kill(Cause),
    /// Remove every trace.
    Forget,
}

#[must_use]
pub fn next(known: Known<'_>) -> Step {
    match known.order {
        Order::Unknown => in_flight(known).or_else(|| as_recalled(known)).unwrap_or(Step::Wait),
        Order::Absent => match known.body {
            Body::Unknown => Step::Wait,
            Body::Absent | Body::Ended(_) | Body::Crashed(_) => Step::Forget,
            // Whose it is, is the server's to find out.
            Body::Alive(_) => in_flight(known).unwrap_or(Step::Wait),
        },
        Order::Given(order) => match &order.role {
            Role::Release => release(known, order.epoch),
            Role::Owner(owner) => own(known, order.epoch, owner),
            Role::Incoming { migration, .. } => take_in(known, order.epoch, migration),
        },
    }
}

/// What a migration under way needs at once, whoever orders what.
fn in_flight(known: Known<'_>) -> Option<Step> {
    let (Body::Alive(view), Some(notes)) = (known.body, known.notes) else { return None };
    let side = &notes.migration.as_ref()?.side;
    match (side, &view.transfer) {
        (SideState::Sending, Transfer::Completed | Transfer::Held) => Some(Step::HandOver),
        (SideState::Kept { .. }, Transfer::Held) => Some(Step::Thaw),
        (SideState::Sending, Transfer::Seeded) => Some(Step::EndSeed),
        (SideState::Sending, Transfer::Failed { why }) => Some(Step::Keep { why: reason(known.due, why) }),
        (SideState::Sending, Transfer::Cancelled) => Some(Step::Keep { why: reason(known.due, "cancelled") }),
        // This agent's predecessor died between writing it down and doing it.
        (SideState::Sending, Transfer::None) => Some(Step::Keep { why: "never began".to_owned() }),
        (SideState::Sending, Transfer::Going) if is_to_give_up(known.due) => Some(Step::CancelSend),
        (SideState::Listening { .. }, Transfer::Completed) => Some(Step::MarkLoaded),
        _ => None,
    }
}

fn is_to_give_up(due: Due) -> bool {
    (due.is_stalled || due.hopeless.is_some()) && !due.is_cancelling
}

/// What was said of a transfer that ended by order tells less than what the order was for.
fn reason(due: Due, said: &str) -> String {
    let hopeless = due.hopeless.filter(|_| due.is_cancelling);
    hopeless.map_or_else(|| said.to_owned(), |hopeless| hopeless.to_string())
}

/// Before the server was heard: nothing newer is known than what its last assignment said, and a copy that crashed, or
/// was started again and does not run yet, is brought back. Nobody is told anything, and nothing else is done.
fn as_recalled(known: Known<'_>) -> Option<Step> {
    let (epoch, owner) = restart::recalled(known.kept, known.seen, known.notes)?;
    match (known.body, known.notes?) {
        (Body::Crashed(crash), _) => Some(after_crash(known, epoch, owner, crash))
            .filter(|step| matches!(step, Step::StartAgain { .. })),
        (Body::Alive(view), notes)
            if notes.restarts.count > 0 && view.run == Run::Paused(Pause::NotStarted) =>
        {
            Some(power::next(owner.power, &view.run, notes.ending, known.due))
                .filter(|step| *step == Step::Run)
        }
        _ => None,
    }
}

/// A copy of the order's epoch ended unasked, and nobody was told.
fn after_crash(known: Known<'_>, epoch: u64, owner: &Owner, crash: &Crash) -> Step {
    match (restart::allowed(epoch, owner, known.notes), known.due.restart) {
        (None, _) | (_, Turn::GiveUp) => Step::Conclude(crash.exit.clone()),
        (Some(_), Turn::After(_)) => Step::Wait,
        (Some(_), Turn::Now) => Step::StartAgain { why: crash.why() },
    }
}

fn release(known: Known<'_>, epoch: u64) -> Step {
    match (known.body, known.notes) {
        // It became the owner's again after this order was made.
        (Body::Alive(_) | Body::Unknown, Some(notes))
            if notes.title == Title::Owner && notes.epoch > epoch =>
        {
            Step::Refuse
        }
        // Ending it needs no answer from it: one that hangs goes as well.
        (Body::Alive(_), _) | (Body::Unknown, Some(_)) => Step::Kill(Cause::Released),
        (Body::Unknown, None) => Step::Wait,
        (Body::Absent, _) => Step::Conclude(Exit::Released),
        // A start under this epoch was announced and then called off: what is known is about an older one.
        (Body::Ended(_) | Body::Crashed(_), _) if known.seen.is_some_and(|seen| seen.epoch < epoch) => {
            Step::Conclude(Exit::Released)
        }
        (Body::Ended(_), _) => Step::Wait,
        (Body::Crashed(crash), _) => Step::Conclude(crash.exit.clone()),
    }
}

fn is_older(known: Known<'_>, epoch: u64) -> bool {
    known.seen.is_some_and(|seen| seen.epoch > epoch)
}

fn own(known: Known<'_>, epoch: u64, owner: &Owner) -> Step {
    if is_older(known, epoch) {
        return Step::Refuse;
    }
    match (known.body, known.notes) {
        (Body::Unknown, Some(notes)) if owner.power == Power::Off && notes.epoch == epoch => {
            Step::Kill(Cause::Forced)
        }
        (Body::Unknown, _) => Step::Wait,
        (Body::Alive(view), Some(notes)) => own_copy(known, epoch, owner, (view, notes)),
        // Nobody knows what this process is: it cannot be continued.
        (Body::Alive(_), None) => Step::Kill(Cause::Released),
        (Body::Absent | Body::Ended(_) | Body::Crashed(_), _) => own_nothing(known, epoch, owner),
    }
}

fn own_copy(known: Known<'_>, epoch: u64, owner: &Owner, (view, notes): (&View, &Notes)) -> Step {
    if let Some(cause @ (Cause::Forced | Cause::Released)) = notes.ending {
        // It was begun, and must not be left half done.
        return Step::Kill(cause);
    }
    if notes.title == Title::Owner && notes.epoch == epoch {
        return in_flight(known).unwrap_or_else(|| converge(known, owner, view, notes));
    }
    if notes.title == Title::Owner && owner.adopts == Some(notes.epoch) {
        return in_flight(known).unwrap_or(Step::Adopt);
    }
    let Some(migration) = &owner.continues else { return Step::Kill(Cause::Released) };
    if let Some(step) = in_flight(known) {
        return step;
    }
    match notes.side_of(migration) {
        Some(SideState::Loaded | SideState::Released { .. }) => Step::Continue,
        // The source let go; our own side will have it all any moment. A guest that stands still is better off where it was.
        Some(SideState::Listening { .. }) if view.transfer != Transfer::None && !known.due.is_overdue => {
            Step::Wait
        }
        // It is here, and cannot be what the order speaks of.
        _ => Step::Kill(Cause::Released),
    }
}

fn own_nothing(known: Known<'_>, epoch: u64, owner: &Owner) -> Step {
    let seen = known.seen.filter(|seen| seen.epoch == epoch);
    let had_it = seen.is_some_and(|seen| seen.title == Title::Owner || owner.continues.is_some());
    match (known.body, had_it) {
        // Already said.
        (Body::Ended(_), true) => Step::Wait,
        (Body::Crashed(crash), true) => after_crash(known, epoch, owner, crash),
        (Body::Absent, true) => Step::Conclude(Exit::Lost),
        (body, false) if owner.continues.is_some() => match body {
            Body::Ended(exit) | Body::Crashed(Crash { exit, .. }) => Step::Conclude(exit.clone()),
            _ => Step::Conclude(Exit::Lost),
        },
        _ if owner.power.wants_process() => Step::Start,
        _ => Step::Conclude(Exit::Requested { forced: false }),
    }
}

fn take_in(known: Known<'_>, epoch: u64, migration: &Name) -> Step {
    if is_older(known, epoch) {
        return Step::Refuse;
    }
    match (known.body, known.notes) {
        (Body::Unknown, _) => Step::Wait,
        (Body::Alive(_), Some(notes)) => match &notes.title {
            Title::Incoming(ours) if ours == migration => {
                let is_new = notes.migration.is_none();
                in_flight(known).unwrap_or(if is_new { Step::Listen } else { Step::Wait })
            }
            // Of a migration that has ended; it never ran.
            Title::Incoming(_) => Step::Kill(Cause::Released),
            // A guest that may be running is ended by an order to release it, and by nothing else.
            Title::Owner => Step::Wait,
        },
        (Body::Alive(_), None) => Step::Wait,
        (body, _) => {
            let title = Title::Incoming(migration.clone());
            let had_it = known.seen.is_some_and(|seen| seen.epoch == epoch && seen.title == title);
            match (had_it, body) {
                (false, _) => Step::Receive,
                (true, Body::Absent) => Step::Conclude(Exit::Lost),
                (true, _) => Step::Wait,
            }
        }
    }
}

/// A copy that this host owns under the order's epoch.
fn converge(known: Known<'_>, owner: &Owner, view: &View, notes: &Notes) -> Step {
    let due = known.due;
    if owner.power == Power::Off {
        return Step::Kill(Cause::Forced);
    }
    if notes.is_handed_over() {
        return Step::Wait;
    }
    if notes.is_sending() {
        return while_sending(due, owner, notes);
    }
    if let Some(outgoing) = &owner.outgoing
        && notes.side_of(&outgoing.migration).is_none()
        && let Some(step) = begin_sending(outgoing, view, notes)
    {
        return step;
    }
    // A guest that was moved while its owner had it paused stays paused until the move is over: the order says
    // `running` for as long.
    let is_kept = owner.outgoing.as_ref().is_some_and(|it| notes.side_of(&it.migration).is_some());
    if is_kept && view.run == Run::Paused(Pause::Asked) {
        return Step::Wait;
    }
    let may_be_reset = matches!(view.run, Run::Running | Run::Paused(Pause::Panicked));
    if owner.reset_request > notes.reset_request && may_be_reset {
        return Step::Reset(owner.reset_request);
    }
    let is_cared_for = owner.power == Power::Running && notes.ending.is_none();
    if let Some(cure) = health::cure(owner, &view.run, known.fault, &notes.resets, due.may_reset)
        && is_cared_for
    {
        return Step::Cure(cure);
    }
    match (power::next(owner.power, &view.run, notes.ending, due), owner.host_epoch) {
        (Step::Wait, Some(host_epoch)) if notes.lease.is_none() && notes.ending.is_none() => {
            Step::Enlist(host_epoch)
        }
        (step, _) => step,
    }
}

fn while_sending(due: Due, owner: &Owner, notes: &Notes) -> Step {
    let goes_on = owner.outgoing.as_ref().is_some_and(|outgoing| {
        !outgoing.cancel && notes.side_of(&outgoing.migration) == Some(&SideState::Sending)
    });
    if goes_on || due.is_cancelling { Step::Wait } else { Step::CancelSend }
}

/// `None`: not yet; first the guest must be running or paused as wanted.
fn begin_sending(outgoing: &Outgoing, view: &View, notes: &Notes) -> Option<Step> {
    if outgoing.cancel {
        return Some(Step::Keep { why: "cancelled".to_owned() });
    }
    if notes.ending.is_some() {
        return Some(Step::Keep { why: "the guest is shutting down".to_owned() });
    }
    (view.run != Run::Paused(Pause::NotStarted)).then_some(Step::Send)
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
