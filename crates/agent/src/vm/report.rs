//! What is told to the server of one VM.

use sterna_model::health::HealthReport;
use sterna_model::vm::{CopyState, VmReport};
use sterna_wire::up::{Up, VmSeen};

use super::Vm;
use super::decide::{Body, Order, Step};
use super::health::monitor::Monitor;
use super::record::{Cause, Notes, Title};
use super::restart::Crash;
use crate::hypervisor::{Hypervisor, Pause, Run, View, why_disks};
use crate::resources::Resources;

impl<H: Hypervisor, R: Resources> Vm<H, R> {
    /// Tells the server what changed, once.
    pub(super) fn tell(&mut self) {
        let is_known = self.body != Body::Unknown && !self.is_about_to_change() && !self.is_letting_go();
        if self.is_forgotten {
            self.ports.board.remove(self.uid);
            if self.reported.take().is_some() {
                self.ports.reports.report(Up::Vm(self.seen_as(None)));
            }
            return;
        }
        let Some(mut report) = self.report() else {
            // A start that waited, and was let go of with its order: nothing of it is here.
            if self.body == Body::Absent && matches!(&*self.order.borrow(), Order::Unknown) {
                self.reported = None;
            }
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

    /// An order waits to be looked at, a start was begun that has no epoch to be told by yet, or the copy is being ended.
    fn is_about_to_change(&self) -> bool {
        let is_underway = match self.job.as_ref().map(|job| &job.step) {
            Some(Step::Start | Step::Receive) => self.starting.borrow().is_none(),
            Some(Step::Kill(_)) => true,
            _ => false,
        };
        is_underway || self.order.has_changed().unwrap_or(false)
    }

    /// Its order was let go of, and what was begun for it has not heard of that yet.
    fn is_letting_go(&self) -> bool {
        let is_superseded = self.job.as_ref().is_some_and(|job| job.superseded.is_cancelled());
        is_superseded && matches!(&*self.order.borrow(), Order::Unknown)
    }

    fn seen_as(&self, report: Option<VmReport>) -> VmSeen {
        VmSeen { name: self.name.clone(), uid: self.uid, report }
    }

    /// `None`: nothing is known, or nothing is here.
    fn report(&self) -> Option<VmReport> {
        let since = self.ports.clock.now();
        if let Some((epoch, step)) = self.starting.borrow().clone() {
            let state = CopyState::Starting { step };
            let notes = self.notes.as_ref().filter(|notes| notes.epoch == epoch);
            let health = notes.map(|notes| self.health(notes)).unwrap_or_default();
            let (migration, lease) = (None, None);
            return Some(VmReport { epoch, state, migration, reset_request: 0, lease, since, health });
        }
        let notes = self.notes.as_ref();
        let health = notes.map(|notes| self.health(notes)).unwrap_or_default();
        match &self.body {
            Body::Unknown | Body::Absent => None,
            Body::Alive(view) => {
                let notes = notes?;
                Some(VmReport {
                    epoch: notes.epoch,
                    state: self.state_of(view, notes),
                    migration: notes.migration.clone(),
                    reset_request: notes.reset_request,
                    lease: notes.lease,
                    since,
                    health,
                })
            }
            Body::Crashed(crash) => {
                let notes = notes?;
                Some(VmReport {
                    epoch: notes.epoch,
                    state: CopyState::Starting { step: self.what_a_crash_waits_for(crash) },
                    migration: notes.migration.clone(),
                    reset_request: notes.reset_request,
                    // There is nothing that the guard could end.
                    lease: None,
                    since,
                    health,
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
                    health: notes.map(|notes| self.health(notes)).unwrap_or_default(),
                })
            }
        }
    }

    fn health(&self, notes: &Notes) -> HealthReport {
        let resets = &notes.resets;
        HealthReport {
            resets: resets.count,
            reset_why: (resets.count > 0).then(|| resets.why.clone()),
            quarantine: resets.quarantine.as_ref().map(|quarantine| quarantine.why.clone()),
            checks: self.monitor.as_ref().map(Monitor::reports).unwrap_or_default(),
            ..notes.restarts.report()
        }
    }

    /// The same words for as long as the wait lasts: a report is sent for each change.
    fn what_a_crash_waits_for(&self, crash: &Crash) -> String {
        let tried = self.notes.as_ref().map_or(0, |notes| notes.restarts.recent(crash.at));
        match tried {
            0 => format!("to be started again: {}", crash.why()),
            tried => format!("to be started again, after {tried} times in 10 minutes: {}", crash.why()),
        }
    }

    fn state_of(&self, view: &View, notes: &Notes) -> CopyState {
        if let Title::Incoming(_) = notes.title {
            return CopyState::Incoming;
        }
        match (&view.run, notes.ending) {
            (_, Some(Cause::Asked)) => CopyState::ShuttingDown,
            (Run::Running, _) => CopyState::Running,
            (Run::Paused(Pause::NotStarted), _) => CopyState::Starting { step: "about to run".to_owned() },
            (Run::Paused(Pause::IoError(disks)), _) => {
                CopyState::Paused { why: why_disks(disks, |index| self.volume(index)) }
            }
            (Run::Paused(pause), _) => CopyState::Paused { why: pause.why() },
            (Run::Incoming, _) => CopyState::Incoming,
        }
    }

    /// What a disk is called by people.
    fn volume(&self, index: usize) -> String {
        let order = self.order.borrow();
        let disk = order.owner().and_then(|owner| owner.machine.disks.get(index));
        disk.map_or_else(
            || format!("disk {index}"),
            |disk| format!("volume {} in pool {}", disk.volume, disk.pool),
        )
    }
}
