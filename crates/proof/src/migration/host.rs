//! One host: an agent that decides as the real one and does as `agent/vm/{steps,migrate}.rs` do, and a QEMU.
//!
//! A step is a list of writes and deeds in their order; an agent that is killed in its midst has done the first of them.

use sterna_agent::hypervisor::{Pause, Run, Transfer, View};
use sterna_agent::vm::decide::{self, Body, Due, Known, Order, Step};
use sterna_agent::vm::health::Resets;
use sterna_agent::vm::power;
use sterna_agent::vm::record::{Notes, Seen, Title};
use sterna_agent::vm::restart::{Crash, Restarts};
use sterna_model::health::HealthReport;
use sterna_model::migration::{MigrationReport, Outcome, SideState};
use sterna_model::vm::{CopyState, Exit, VmReport};
use sterna_wire::assignment::Role;
use sterna_wire::shim::ExitRecord;

use super::store::{MOVE, NOW, VM, name};
use super::world::Defect;

#[derive(Debug, Clone, PartialEq)]
pub struct Qemu {
    pub run: Run,
    pub transfer: Transfer,
    /// Its memory is older than what ran since.
    pub is_stale: bool,
    /// Stopped by its agent: it does nothing by itself.
    pub is_frozen: bool,
}

#[derive(Debug, Clone)]
pub struct Host {
    pub qemu: Option<Qemu>,
    /// The shim's record of the last end.
    pub exit: Option<ExitRecord>,
    pub seen: Option<Seen>,
    pub notes: Option<Notes>,
    pub order: Order,
    /// Of the order: a host never goes back to an older assignment.
    pub revision: u64,
    pub is_cancelling: bool,
    /// It has waited too long for the end of what arrives.
    pub is_overdue: bool,
}

/// One thing that a step does.
#[allow(clippy::large_enum_variant, reason = "a step has a handful of them")]
#[derive(Debug, Clone)]
pub enum Deed {
    Remember(Seen),
    Note(Option<Notes>),
    /// A process comes up.
    Spawn {
        is_target: bool,
    },
    Kill,
    Run,
    Send,
    Cancel,
    Freeze,
    /// The end of the stream is let go.
    Grant,
    TakeBack,
    Clear,
}

impl Host {
    pub fn new() -> Self {
        Self {
            qemu: None,
            exit: None,
            seen: None,
            notes: None,
            order: Order::Unknown,
            revision: 0,
            is_cancelling: false,
            is_overdue: false,
        }
    }

    pub fn body(&self) -> Body {
        match &self.qemu {
            Some(qemu) => Body::Alive(View { run: qemu.run.clone(), transfer: qemu.transfer.clone() }),
            None => self.seen.as_ref().and_then(|seen| seen.exit.clone()).map_or(Body::Absent, Body::Ended),
        }
    }

    /// The agent finds an exit record that it has not taken note of.
    pub fn look(&mut self) {
        let (None, Some(record)) = (&self.qemu, &self.exit) else { return };
        let noted = self.notes.as_ref().map_or(record.epoch, |notes| notes.epoch.max(record.epoch));
        let seen = self.seen.as_ref();
        let is_older = seen.is_some_and(|seen| seen.epoch > noted);
        let is_known = seen.is_some_and(|seen| seen.epoch == noted && seen.exit.is_some());
        if is_older || is_known {
            return;
        }
        let exit = power::exit_of(record, self.notes.as_ref().and_then(|notes| notes.ending));
        let title = self.notes.as_ref().map_or(Title::Owner, |notes| notes.title.clone());
        self.seen = Some(Seen { name: name(VM), epoch: noted, title, exit: Some(exit), lease: None });
    }

    pub fn next(&self) -> Step {
        let body = self.body();
        let due = Due { is_cancelling: self.is_cancelling, is_overdue: self.is_overdue, ..Due::default() };
        let (notes, seen) = (self.notes.as_ref(), self.seen.as_ref());
        decide::next(Known { order: &self.order, body: &body, notes, seen, kept: None, fault: None, due })
    }

    /// What a step does, in its order.
    pub fn deeds(&self, step: &Step, is_line_up: bool, defect: Option<Defect>) -> Vec<Deed> {
        match step {
            Step::Wait | Step::Refuse => Vec::new(),
            Step::Conclude(exit) => self.conclude(exit),
            Step::Start => self.start(Title::Owner),
            Step::Receive => self.start(Title::Incoming(name(MOVE))),
            Step::Listen => {
                vec![self.side(SideState::Listening { at: "10.0.0.2:4000".to_owned(), line: None })]
            }
            Step::MarkLoaded => vec![self.side(SideState::Loaded)],
            Step::Continue => self.go_on(defect),
            Step::Send => vec![self.side(SideState::Sending), Deed::Send],
            Step::CancelSend => vec![Deed::Cancel],
            Step::HandOver => self.hand_over(is_line_up),
            Step::Thaw => vec![Deed::TakeBack],
            Step::Keep { why } => vec![self.side(SideState::Kept { why: why.clone() })],
            Step::Run => vec![Deed::Run],
            Step::Kill(cause) => {
                let ending = self.noted(|notes| notes.ending = Some(*cause));
                [self.notes.as_ref().map(|_| ending), Some(Deed::Kill)].into_iter().flatten().collect()
            }
            Step::Forget => vec![Deed::Clear, Deed::Note(None)],
            step => panic!("nothing here asks for {step:?}"),
        }
    }

    fn noted(&self, change: impl FnOnce(&mut Notes)) -> Deed {
        let mut notes = self.notes.clone();
        if let Some(notes) = &mut notes {
            change(notes);
        }
        Deed::Note(notes)
    }

    fn side(&self, side: SideState) -> Deed {
        self.noted(|notes| notes.migration = Some(MigrationReport { migration: name(MOVE), side }))
    }

    fn conclude(&self, exit: &Exit) -> Vec<Deed> {
        let Order::Given(order) = &self.order else { return Vec::new() };
        let title = match &order.role {
            Role::Incoming { migration, .. } => Title::Incoming(migration.clone()),
            Role::Owner(_) | Role::Release => Title::Owner,
        };
        let epoch = self.seen.as_ref().map_or(order.epoch, |seen| seen.epoch.max(order.epoch));
        vec![Deed::Remember(Seen { name: name(VM), epoch, title, exit: Some(exit.clone()), lease: None })]
    }

    fn start(&self, title: Title) -> Vec<Deed> {
        let Order::Given(order) = &self.order else { return Vec::new() };
        let notes = Notes {
            name: name(VM),
            epoch: order.epoch,
            title: title.clone(),
            migration: None,
            reset_request: 0,
            ending: None,
            lease: None,
            taps: Vec::new(),
            restarts: Restarts::default(),
            resets: Resets::default(),
            began: NOW,
        };
        let is_target = title != Title::Owner;
        vec![
            Deed::Remember(Seen { name: name(VM), epoch: order.epoch, title, exit: None, lease: None }),
            Deed::Clear,
            Deed::Note(Some(notes)),
            Deed::Spawn { is_target },
        ]
    }

    fn go_on(&self, defect: Option<Defect>) -> Vec<Deed> {
        let (Order::Given(order), Some(notes)) = (&self.order, &self.notes) else { return Vec::new() };
        let was_target = notes.title != Title::Owner;
        let mut deeds = Vec::new();
        if self.seen.as_ref().is_none_or(|seen| seen.epoch != order.epoch) {
            let title = Title::Owner;
            deeds.push(Deed::Remember(Seen {
                name: name(VM),
                epoch: order.epoch,
                title,
                exit: None,
                lease: None,
            }));
        }
        let note = self.noted(|notes| {
            notes.epoch = order.epoch;
            notes.title = Title::Owner;
            let side = SideState::Continued { loading: None, answered: None };
            notes.migration = was_target.then(|| MigrationReport { migration: name(MOVE), side });
        });
        let run = if was_target { Deed::Run } else { Deed::TakeBack };
        if defect == Some(Defect::RunsBeforeItIsNoted) {
            deeds.extend([run, note]);
        } else {
            deeds.extend([note, run]);
        }
        deeds
    }

    fn hand_over(&self, is_line_up: bool) -> Vec<Deed> {
        let Some(qemu) = &self.qemu else { return Vec::new() };
        let kept = || self.side(SideState::Kept { why: "no line".to_owned() });
        let released = self.side(SideState::Released { outcome: Outcome::default() });
        match (&qemu.run, &qemu.transfer) {
            (Run::Running, _) => vec![kept()],
            (_, Transfer::Held) if !is_line_up => vec![kept(), Deed::TakeBack],
            (_, Transfer::Held) => vec![Deed::Freeze, released, Deed::Grant],
            (_, _) if is_line_up => vec![released],
            (_, _) => vec![kept(), Deed::Run],
        }
    }

    /// As it would be told to the server.
    pub fn report(&self) -> Option<VmReport> {
        let base = |epoch, state, migration| VmReport {
            epoch,
            state,
            migration,
            reset_request: 0,
            lease: None,
            since: NOW,
            health: HealthReport::default(),
        };
        match self.body() {
            Body::Unknown | Body::Absent => None,
            Body::Alive(view) => {
                let notes = self.notes.as_ref()?;
                let state = match (&notes.title, &view.run) {
                    (Title::Incoming(_), _) | (_, Run::Incoming) => CopyState::Incoming,
                    (_, Run::Running) => CopyState::Running,
                    (_, Run::Paused(Pause::NotStarted)) => CopyState::Starting { step: String::new() },
                    (_, Run::Paused(pause)) => CopyState::Paused { why: pause.why() },
                };
                Some(base(notes.epoch, state, notes.migration.clone()))
            }
            Body::Ended(exit) | Body::Crashed(Crash { exit, .. }) => {
                let seen = self.seen.as_ref()?;
                let notes = self.notes.as_ref().filter(|notes| notes.epoch == seen.epoch);
                let migration = notes.and_then(|notes| notes.migration.clone());
                Some(base(seen.epoch, CopyState::Stopped { exit }, migration))
            }
        }
    }

    /// QEMU is gone, and its shim says so.
    pub fn end_qemu(&mut self) {
        if self.qemu.take().is_some() {
            let epoch = self.notes.as_ref().map_or(0, |notes| notes.epoch);
            self.exit = Some(ExitRecord {
                epoch,
                code: None,
                signal: Some(9),
                shutdown_reason: None,
                last_words: String::new(),
            });
        }
    }

    /// All of this boot is gone; what was written durably is not.
    pub fn reboot(&mut self) {
        let (seen, revision) = (self.seen.take(), self.revision);
        *self = Self { seen, revision, ..Self::new() };
    }

    /// The agent alone is gone. Its records and processes stay.
    pub fn restart_agent(&mut self, defect: Option<Defect>) {
        let has_released = self.notes.as_ref().is_some_and(Notes::is_handed_over);
        if defect == Some(Defect::ForgetsThatItReleased)
            && has_released
            && let Deed::Note(notes) = self.side(SideState::Sending)
        {
            self.notes = notes;
        }
        self.order = Order::Unknown;
        self.is_cancelling = false;
        self.is_overdue = false;
    }
}
