//! What is told to the server of one VM.

use sterna_model::vm::{CopyState, VmReport};
use sterna_wire::up::{Up, VmSeen};

use super::Vm;
use super::decide::Body;
use super::record::{Cause, Notes, Title};
use crate::hypervisor::{Hypervisor, Pause, Run, View};
use crate::resources::Resources;

impl<H: Hypervisor, R: Resources> Vm<H, R> {
    /// Tells the server what changed, once.
    pub(super) fn tell(&mut self) {
        let is_known = self.body != Body::Unknown;
        if self.is_forgotten {
            self.ports.board.remove(self.uid);
            if self.reported.take().is_some() {
                self.ports.reports.report(Up::Vm(self.seen_as(None)));
            }
            return;
        }
        let Some(mut report) = self.report() else {
            self.ports.board.set(self.seen_as(self.reported.clone()), is_known);
            return;
        };
        let is_new = self.reported.as_ref().is_none_or(|last| {
            report.since = last.since;
            *last != report
        });
        if is_new {
            report.since = self.ports.clock.now();
            self.reported = Some(report.clone());
        }
        self.ports.board.set(self.seen_as(self.reported.clone()), is_known);
        if is_new {
            self.ports.reports.report(Up::Vm(self.seen_as(Some(report))));
        }
    }

    fn seen_as(&self, report: Option<VmReport>) -> VmSeen {
        VmSeen { name: self.name.clone(), uid: self.uid, report }
    }

    /// `None`: nothing is known, or nothing is here.
    fn report(&self) -> Option<VmReport> {
        let since = self.ports.clock.now();
        if let Some((epoch, step)) = self.starting.borrow().clone() {
            let state = CopyState::Starting { step };
            return Some(VmReport { epoch, state, migration: None, reset_request: 0, lease: None, since });
        }
        let notes = self.notes.as_ref();
        match &self.body {
            Body::Unknown | Body::Absent => None,
            Body::Alive(view) => {
                let notes = notes?;
                Some(VmReport {
                    epoch: notes.epoch,
                    state: state_of(view, notes),
                    migration: notes.migration.clone(),
                    reset_request: notes.reset_request,
                    lease: notes.lease,
                    since,
                })
            }
            Body::Ended(exit) => {
                let seen = self.seen.as_ref()?;
                let notes = notes.filter(|notes| notes.epoch == seen.epoch);
                Some(VmReport {
                    epoch: seen.epoch,
                    state: CopyState::Stopped { exit: exit.clone() },
                    migration: notes.and_then(|notes| notes.migration.clone()),
                    reset_request: notes.map_or(0, |notes| notes.reset_request),
                    lease: None,
                    since,
                })
            }
        }
    }
}

fn state_of(view: &View, notes: &Notes) -> CopyState {
    if let Title::Incoming(_) = notes.title {
        return CopyState::Incoming;
    }
    match (&view.run, notes.ending) {
        (_, Some(Cause::Asked)) => CopyState::ShuttingDown,
        (Run::Running, _) => CopyState::Running,
        (Run::Paused(Pause::NotStarted), _) => CopyState::Starting { step: "about to run".to_owned() },
        (Run::Paused(pause), _) => CopyState::Paused { why: pause.why() },
        (Run::Incoming, _) => CopyState::Incoming,
    }
}
