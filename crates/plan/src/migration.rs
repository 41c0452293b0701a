//! Moves running VMs: reads what both hosts report and steps `model::migration`'s transition table.
//!
//! Reads: specs of migrations, the VM's rows of both hosts. Decides: phase, and at the handover the VM's owner, in one
//! transaction that compares everything it rests on.
//! Never talks to a host: orders travel in assignments (`assignment`). Never reads measurements.

use std::time::Duration;

use sterna_base::clock::Timestamp;
use sterna_base::units::Span;
use sterna_model::key::{Column, Key, Kind};
use sterna_model::meta::Name;
use sterna_model::migration::{
    Event, MigrationDecision, MigrationSpec, Outcome, Phase, SideState, Via, VolumeMove,
};
use sterna_model::vm::{Owner, VmDecision, VmReport};
use sterna_model::volume::VolumeDecision;

use crate::action::Action;
use crate::check;
use crate::drain;
use crate::placement;
use crate::route::route;
use crate::view::{MigrationEntry, Row, View, Vm};
use observe::ended;

mod gap;
mod observe;
mod patience;

/// Migrations that may leave a host at the same time: two saturate a line and a core without starving each other.
pub const OUTGOING_MAX: usize = 2;
/// And arrive.
pub const INCOMING_MAX: usize = 2;

#[must_use]
pub fn plan(view: &View, now: Timestamp) -> Vec<Action> {
    let mut seen = view.clone();
    let mut actions = Vec::new();
    for name in view.index.open_migrations.iter() {
        let Some(entry) = view.migrations.get(name) else { continue };
        // Slots are counted in what was admitted so far.
        if let Some(action) = step(&seen, name, entry, now) {
            action.apply(&mut seen);
            actions.push(action);
        }
    }
    actions.extend(gap::plan(view, now));
    actions
}

fn step(view: &View, name: &Name, entry: &MigrationEntry, now: Timestamp) -> Option<Action> {
    let spec = &entry.spec.as_ref()?.value.spec;
    // Of a VM that cannot be read nothing is known, least of all that it is gone.
    if view.is_broken(Kind::Migration, name) || view.is_broken(Kind::Vm, &spec.vm) {
        return None;
    }
    let it = Move { view, name, spec, now };
    match &entry.decision {
        None => Some(it.begin()),
        Some(decision) if decision.phase.has_ended() => None,
        Some(decision) if decision.phase == Phase::Pending => it.admission(decision, true),
        Some(decision) => it.go_on(decision),
    }
}

/// One migration in one round.
struct Move<'a> {
    view: &'a View,
    name: &'a Name,
    spec: &'a MigrationSpec,
    now: Timestamp,
}

impl Move<'_> {
    /// First sight: admitted at once when there is a slot, which saves a transaction.
    fn begin(&self) -> Action {
        let epoch = self.vm().and_then(|vm| vm.decision()).map_or(0, |decision| decision.owner.epoch);
        let first = MigrationDecision {
            phase: Phase::Pending,
            epoch,
            next_epoch: 0,
            opened: None,
            source: self.vm().and_then(|vm| vm.decision()).map(|decision| decision.owner.host.clone()),
            target: None,
            via: Via::Direct,
            channels: 0,
            in_clear: false,
            volumes: Vec::new(),
            method: String::new(),
            started: self.now,
            since: self.now,
            called_off: None,
            outcome: None,
        };
        self.admission(&first, false)
            .unwrap_or_else(|| self.write(&first, "asked for", "waits for a free slot".to_owned()))
    }

    /// `None`: goes on waiting.
    fn admission(&self, decision: &MigrationDecision, is_decided: bool) -> Option<Action> {
        if self.wants_cancel() {
            return self.advance(decision, Event::CancelRequested);
        }
        if let Some(what) = self.is_overdue() {
            return self.advance(decision, Event::DeadlinePassed { what });
        }
        if let Some(rival) = self.rival(decision, is_decided) {
            let why = format!("migration {rival} of VM {} is under way", self.spec.vm);
            let key = Key::decision(Kind::Migration, rival);
            return Some(self.advance(decision, Event::Refused { why })?.compare(self.view, key));
        }
        let target = match self.target() {
            Ok(target) => target,
            Err(why) => return self.advance(decision, Event::Refused { why }),
        };
        let vm = self.vm()?;
        if drain::is_spoken_of(&vm, self.name) {
            // A store from a backup: what hosts say of the move that it has yet to begin is how that ended.
            let why = "hosts have carried out a move of this name already: order it anew".to_owned();
            return self.advance(decision, Event::Refused { why });
        }
        let source = &vm.decision()?.owner;
        let (out, _) = self.slots(&source.host);
        let (_, incoming) = self.slots(&target.0);
        if out >= OUTGOING_MAX || incoming >= INCOMING_MAX {
            return None;
        }
        let route = match route(self.view, &vm, &self.view.host(&target.0)?) {
            Ok(route) if self.spec.seed => route.ahead(),
            Ok(route) => route,
            Err(why) => return self.advance(decision, Event::Refused { why }),
        };
        if self.spec.seed && route.volumes.is_empty() {
            let why = format!("host {} opens every volume where it is", target.0);
            return self.advance(decision, Event::Refused { why });
        }
        let admitted = MigrationDecision {
            epoch: source.epoch,
            next_epoch: vm.next_epoch(),
            opened: vm.decision()?.opened,
            source: Some(source.host.clone()),
            target: Some(target.0.clone()),
            via: route.via,
            channels: route.channels,
            in_clear: route.in_clear,
            volumes: route.volumes,
            method: route.why,
            ..decision.clone()
        };
        let next = decision.phase.clone().on(Event::Admitted).ok()?;
        let admitted = MigrationDecision { phase: next, since: self.now, ..admitted };
        let action = self.write(&admitted, "preparing", target.1);
        let action = self.put_volumes(action, &admitted, |volume, to| volume.begin_move(to.to.clone()));
        Some(action.compare(self.view, Key::spec(Kind::Host, &target.0)))
    }

    /// Another migration of the same VM that comes first: one that has begun, else the one that was seen first.
    fn rival(&self, decision: &MigrationDecision, is_decided: bool) -> Option<&Name> {
        let others = self.view.index.migrations_by_vm.of(&self.spec.vm).filter(|name| *name != self.name);
        others
            .filter_map(|name| Some((name, self.view.migrations.get(name)?.decision.as_ref()?)))
            .filter(|(_, other)| !other.phase.has_ended())
            .find(|(name, other)| {
                let earlier = (other.started, *name) < (decision.started, self.name);
                other.phase != Phase::Pending || !is_decided || earlier
            })
            .map(|(name, _)| name)
    }

    /// The host to move to and why, or why there is none.
    fn target(&self) -> Result<(Name, String), String> {
        let vm = self.vm().ok_or_else(|| format!("VM {} does not exist", self.spec.vm))?;
        check::can_leave(self.view, &vm)?;
        match &self.spec.to {
            Some(to) => check::migration(self.view, &vm, to)
                .map(|()| (to.clone(), format!("to host {to} as asked")))
                .map_err(|reasons| reasons.join("; ")),
            None => placement::choose_move(self.view, &vm, None),
        }
    }

    /// Transfers under way from and to a host. What is only being tidied up takes nothing from the line.
    fn slots(&self, host: &Name) -> (usize, usize) {
        let busy = |phase: &Phase| {
            matches!(
                phase,
                Phase::Preparing | Phase::Copying { .. } | Phase::Resuming { .. } | Phase::Returning { .. }
            )
        };
        let here = || self.view.migrations_on(host).filter(|(_, _, decision)| busy(&decision.phase));
        let from = here().filter(|(_, _, decision)| decision.source.as_ref() == Some(host)).count();
        let to = here().filter(|(_, _, decision)| decision.target.as_ref() == Some(host)).count();
        (from, to)
    }

    fn go_on(&self, decision: &MigrationDecision) -> Option<Action> {
        match self.observe(decision) {
            Some(event) => self.advance(decision, event),
            None => self.call_off(decision),
        }
    }

    fn advance(&self, decision: &MigrationDecision, event: Event) -> Option<Action> {
        let next = decision.phase.clone().on(event).ok()?;
        if next == decision.phase {
            return None;
        }
        let mut after = MigrationDecision { phase: next, since: self.now, ..decision.clone() };
        let (what, why) = describe(&after.phase, self.spec.seed);
        match after.phase.clone() {
            Phase::Resuming { epoch } => {
                after.outcome = self.source_outcome(decision);
                let target = decision.target.clone()?;
                self.hand_over(&after, Owner { host: target, epoch }, what, why)
            }
            Phase::Undoing { seeded: true, .. } => {
                after.outcome = self.source_outcome(decision);
                Some(self.write(&after, what, why))
            }
            Phase::Returning { epoch, .. } => {
                let source = decision.source.clone()?;
                self.hand_over(&after, Owner { host: source, epoch }, what, why)
            }
            Phase::Succeeded => {
                let total = Span(self.now.since(decision.started));
                let known = after.outcome.unwrap_or_default();
                let downtime = known.downtime.map(|sent| Span(sent.0 + self.loading(decision)));
                after.outcome = Some(Outcome { total: Some(total), downtime, ..known });
                Some(self.end(&after, what, why))
            }
            _ if after.phase.has_ended() => Some(self.end(&after, what, why)),
            _ => Some(self.write(&after, what, why)),
        }
    }

    /// Volumes have one place again.
    fn end(&self, after: &MigrationDecision, what: &str, why: String) -> Action {
        self.put_volumes(self.write(after, what, why), after, |volume, _| volume.end_move())
    }

    /// Adds what becomes of the volumes that go with the VM. A deleted one has no place to be written down.
    fn put_volumes(
        &self,
        action: Action,
        migration: &MigrationDecision,
        change: impl Fn(VolumeDecision, &VolumeMove) -> VolumeDecision,
    ) -> Action {
        migration.volumes.iter().fold(action, |action, moving| {
            let decision = self.view.volumes.get(&moving.volume).and_then(|entry| entry.decision.as_ref());
            let Some(before) = decision else { return action };
            let key = Key::decision(Kind::Volume, &moving.volume);
            action.put(self.view, key, &change((*before.value).clone(), moving))
        })
    }

    /// The commit point: owner and phase change in one transaction that compares both hosts' rows.
    fn hand_over(&self, after: &MigrationDecision, owner: Owner, what: &str, why: String) -> Option<Action> {
        // A copy that comes back has its disks open under the epoch that it had before.
        let comes_back = Some(&owner.host) == after.source.as_ref();
        let opened = comes_back.then(|| after.opened.unwrap_or(after.epoch));
        let vm = self.vm()?;
        let before = vm.decision()?;
        // The lease that the copy itself is said to live by, in a row that is compared below.
        let host_epoch = self.row(&owner.host).and_then(|row| row.lease);
        let decision = VmDecision {
            owner,
            continues: Some(self.name.clone()),
            opened,
            adopts: None,
            host_epoch,
            takeover: None,
            since: self.now,
            why: format!("migration {}: {why}", self.name),
            ..before.clone()
        };
        let action = self.write(after, what, why).put(self.view, vm.key(Column::Decision), &decision);
        let mut action = self.put_volumes(action, after, |volume, moving| {
            volume.hand_over(if comes_back { &moving.from } else { &moving.to })
        });
        for host in [&after.source, &after.target].into_iter().flatten() {
            action = action.compare(self.view, vm.key(Column::ReportOf(host.clone())));
        }
        Some(action)
    }

    fn write(&self, decision: &MigrationDecision, what: &str, why: String) -> Action {
        let key = Key::decision(Kind::Migration, self.name);
        let about = Key::spec(Kind::Vm, &self.spec.vm);
        let mut action =
            Action::new(self.now, &about, &format!("migration {what}"), why).put(self.view, key, decision);
        if matches!(decision.phase, Phase::Preparing) {
            action = action.compare(self.view, Key::decision(Kind::Vm, &self.spec.vm));
        }
        action
    }

    fn source_outcome(&self, decision: &MigrationDecision) -> Option<Outcome> {
        match self.side(self.source_row(decision)?)? {
            SideState::Released { outcome } | SideState::Seeded { outcome } => Some(outcome.clone()),
            _ => None,
        }
    }

    /// What the target added to the guest's pause.
    fn loading(&self, decision: &MigrationDecision) -> Duration {
        match self.target_row(decision).and_then(|row| self.side(row)) {
            Some(SideState::Continued { loading: Some(loading), .. }) => loading.0,
            _ => Duration::ZERO,
        }
    }

    /// A person cancelled, or the VM is to be stopped or deleted: then there is nothing left to move.
    fn wants_cancel(&self) -> bool {
        self.spec.cancel || self.vm().is_some_and(|vm| !vm.is_wanted())
    }

    fn vm(&self) -> Option<Vm<'_>> {
        self.view.vm(&self.spec.vm)
    }

    fn source_row(&self, decision: &MigrationDecision) -> Option<&Row<VmReport>> {
        self.row(decision.source.as_ref()?)
    }

    fn target_row(&self, decision: &MigrationDecision) -> Option<&Row<VmReport>> {
        self.row(decision.target.as_ref()?)
    }

    fn row(&self, host: &Name) -> Option<&Row<VmReport>> {
        self.view.vms.get(&self.spec.vm)?.reports.get(host)
    }

    /// What the row says of this migration; rows may still speak of an older one.
    fn side<'r>(&self, row: &'r Row<VmReport>) -> Option<&'r SideState> {
        let report = row.value.migration.as_ref()?;
        (report.migration == *self.name).then_some(&report.side)
    }
}

/// The order to stop sending, for the source's assignment.
#[must_use]
pub fn is_cancelled(spec: &MigrationSpec, decision: &MigrationDecision, vm: &Vm<'_>) -> bool {
    spec.cancel || decision.called_off.is_some() || !vm.is_wanted()
}

/// Why the target's copy ended, where the source may not see that: one QEMU notices that the other is gone while it sends
/// memory, but the mover waits for a line to come back, and disks that go straight do for half a minute.
#[must_use]
pub fn lost_target(vm: &Vm<'_>, decision: &MigrationDecision) -> Option<String> {
    let row = vm.entry.reports.get(decision.target.as_ref()?)?;
    let may_wait = decision.via == Via::Mover || !decision.volumes.is_empty();
    let is_it = may_wait && row.epoch == decision.next_epoch;
    is_it.then(|| ended(row)).flatten()
}

/// The event's word and reason.
fn describe(phase: &Phase, is_seed: bool) -> (&'static str, String) {
    match phase {
        Phase::Succeeded if is_seed => ("succeeded", "the copies wait for the VM to move".to_owned()),
        Phase::Copying { listen, .. } => ("copying", format!("the target listens at {listen}")),
        Phase::Resuming { epoch } => {
            ("handed over", format!("the source completed and let go; the target owns epoch {epoch}"))
        }
        Phase::Returning { epoch, why } => ("handed back", format!("{why}; the source owns epoch {epoch}")),
        Phase::Finishing { .. } => ("finishing", "the guest is the target's for good".to_owned()),
        Phase::Undoing { why, seeded: true, .. } => ("seeded", why.clone()),
        Phase::Undoing { why, .. } => ("undone", why.clone()),
        Phase::Succeeded => ("succeeded", "the guest runs on the target and the source is gone".to_owned()),
        Phase::Failed { why } => ("failed", why.clone()),
        Phase::Cancelled => ("cancelled", "cancelled as asked; the guest runs on the source".to_owned()),
        Phase::Pending | Phase::Preparing => (phase.word(), String::new()),
    }
}
