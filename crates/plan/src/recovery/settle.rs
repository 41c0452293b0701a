//! Makes the store say of one VM what the hosts have.

use sterna_base::clock::Timestamp;
use sterna_model::key::{Column, Key, Kind};
use sterna_model::meta::{Name, Object};
use sterna_model::migration::{Event, MigrationDecision, Phase};
use sterna_model::store::Finding;
use sterna_model::vm::{CopyState, Exit, Owner, Power, VmDecision};
use sterna_model::volume::{Location, VolumeDecision};

use super::found::Found;
use super::{Recovery, VmRow, unique};
use crate::action::Action;
use crate::start;
use crate::view::Vm;
use crate::volume;

/// What is done about one VM.
#[derive(Debug, Clone)]
pub struct Step {
    pub finding: Finding,
    pub(super) action: Action,
}

/// What becomes of it.
struct Change<'a> {
    owner: Option<NewOwner<'a>>,
    power: Option<Power>,
    found: String,
    done: String,
}

struct NewOwner<'a> {
    host: &'a Name,
    epoch: u64,
    continues: Option<&'a Name>,
    opened: Option<u64>,
    adopts: Option<u64>,
}

impl<'a> Recovery<'a> {
    /// `None`: the store says what is there, or that is not known yet. An error: it cannot be written down.
    pub(super) fn settle(&self, vm: &Vm<'a>, now: Timestamp) -> Option<Result<Step, String>> {
        if self.transfer_under_way(vm).is_some() {
            return None;
        }
        let change = self.change(vm);
        let ended = self.ended_moves(vm, change.as_ref());
        let change = change.or_else(|| called_off(&ended))?;
        let finding = Finding {
            vm: vm.name.clone(),
            stored: stored(vm),
            found: change.found.clone(),
            done: change.done.clone(),
        };
        Some(self.action(vm, &change, &ended, now).map(|action| Step { finding, action }))
    }

    fn change(&self, vm: &Vm<'a>) -> Option<Change<'a>> {
        let found = self.found(vm);
        let stored = vm.decision().map(|decision| &decision.owner);
        let is_same = stored.is_some() && found.owner().as_ref() == stored;
        match found {
            Found::Runs { host, row } => self.runs(vm, host, row, is_same),
            Found::Arrived { host, row, migration } | Found::LetGo { host, row, migration }
                if self.awaits(vm, migration) || goes_on(vm, host, row.epoch, migration) =>
            {
                None
            }
            Found::Arrived { host, row, migration } => Some(Change {
                owner: Some(NewOwner { continues: Some(migration), ..NewOwner::as_found(host, row.epoch) }),
                power: None,
                found: format!("move {migration} brought it to host {host}, and it runs nowhere"),
                done: format!("host {host} continues it"),
            }),
            Found::LetGo { host, row, migration } => Some(Change {
                owner: Some(NewOwner {
                    host,
                    epoch: vm.next_epoch(),
                    continues: Some(migration),
                    opened: Some(self.opened(vm, host, row.epoch)),
                    adopts: None,
                }),
                power: None,
                found: format!("host {host} gave it away in move {migration}, and nobody has it"),
                done: format!("host {host} continues it"),
            }),
            // A start that was ordered before the backup, and that its host has yet to hear of.
            Found::Ended { row, .. } if stored.is_some_and(|owner| owner.epoch > row.epoch) => None,
            Found::Ended { host, row, exit } => self.ended(vm, (host, row.epoch), exit, is_same),
            Found::GivenUp => self.gone(vm, "only copies that were given up"),
            Found::Nothing => self.gone(vm, "no host has anything of it"),
        }
    }

    fn runs(&self, vm: &Vm<'a>, host: &'a Name, row: &VmRow, is_same: bool) -> Option<Change<'a>> {
        let is_ending = row.state == CopyState::ShuttingDown;
        let wants_process = vm.spec.power.wants_process();
        let power = match (is_ending, wants_process) {
            // Asked for since: nobody wants it back.
            (true, true) => Some(Power::Stopped),
            (false, false) => Some(Power::Running),
            _ => None,
        };
        let power = power.filter(|_| vm.meta.deleting.is_none());
        let is_same = is_same || is_adopted(vm, host, row.epoch);
        let owner = (!is_same).then(|| NewOwner {
            epoch: vm.next_epoch(),
            opened: Some(self.opened(vm, host, row.epoch)),
            adopts: Some(row.epoch),
            ..NewOwner::as_found(host, row.epoch)
        });
        let goes_on = match power {
            Some(Power::Stopped) => ", and goes on shutting down",
            Some(_) => ", and goes on running",
            None => "",
        };
        let done = match &owner {
            Some(owner) => format!("host {host} owns it under epoch {}{goes_on}", owner.epoch),
            None => format!("it stays where it is{goes_on}"),
        };
        let found = format!("a process on host {host} under epoch {}", row.epoch);
        (owner.is_some() || power.is_some()).then_some(Change { owner, power, found, done })
    }

    fn ended(
        &self,
        vm: &Vm<'a>,
        (host, epoch): (&'a Name, u64),
        exit: &Exit,
        is_same: bool,
    ) -> Option<Change<'a>> {
        let is_down = matches!(exit, Exit::Requested { .. } | Exit::GuestShutdown);
        let power = (is_down && vm.is_wanted()).then_some(Power::Stopped);
        let owner = (!is_same).then_some(NewOwner::as_found(host, epoch));
        let done = match (&power, vm.is_wanted()) {
            (Some(_), _) => "stays stopped".to_owned(),
            (None, true) => "is started again as after any crash".to_owned(),
            (None, false) => format!("host {host} had it last"),
        };
        let found = format!("it ended on host {host} under epoch {epoch}: {exit:?}");
        (owner.is_some() || power.is_some()).then_some(Change { owner, power, found, done })
    }

    /// Nothing starts on silence: not even what the store wants to run.
    fn gone(&self, vm: &Vm<'a>, found: &str) -> Option<Change<'a>> {
        let silent = vm.decision().filter(|decision| !self.has_told(&decision.owner.host));
        let is_elsewhere = silent.is_some_and(|decision| !self.view.is_removed(&decision.owner.host));
        if is_elsewhere {
            return None;
        }
        // Its host obeys no epoch that is older than the one it took the copy in under.
        let epoch = vm.next_epoch();
        let leftover = self.leftover(vm).map(|host| NewOwner { epoch, ..NewOwner::as_found(host, epoch) });
        (vm.is_wanted() || leftover.is_some()).then(|| Change {
            owner: leftover,
            power: vm.is_wanted().then_some(Power::Stopped),
            found: found.to_owned(),
            done: "is not started: delete it or start it by hand".to_owned(),
        })
    }

    fn action(
        &self,
        vm: &Vm<'a>,
        change: &Change<'a>,
        ended: &[(&Name, &MigrationDecision)],
        now: Timestamp,
    ) -> Result<Action, String> {
        let (spec, view) = (vm.key(Column::Spec), self.view);
        let why = format!("the store came back from a backup; {}: {}", change.found, change.done);
        let mut action = Action::new(now, &spec, "found", why.clone())
            .compare(view, spec.clone())
            .compare(view, vm.key(Column::Decision));
        for host in unique(vm.entry.reports.keys()) {
            action = action.compare(view, vm.key(Column::ReportOf(host.clone())));
        }
        if let Some(power) = change.power {
            let mut object = Object { meta: vm.meta.clone(), spec: vm.spec.clone() };
            object.spec.power = power;
            action = action.put(view, spec, &object);
        }
        if let Some(owner) = &change.owner {
            action = action.put(view, vm.key(Column::Decision), &self.decision(vm, owner, why, now)?);
        }
        for (name, moving) in ended {
            action = action.put(view, Key::decision(Kind::Migration, name), &overtaken(moving, now));
        }
        let stays = || vm.decision().map(|decision| &decision.owner.host);
        match change.owner.as_ref().map(|owner| owner.host).or_else(stays) {
            Some(host) if change.owner.is_some() || !ended.is_empty() => {
                Ok(self.place_volumes(vm, host, ended, action))
            }
            _ => Ok(action),
        }
    }

    fn decision(
        &self,
        vm: &Vm<'a>,
        owner: &NewOwner<'_>,
        why: String,
        now: Timestamp,
    ) -> Result<VmDecision, String> {
        let before = vm.decision();
        let hardware = match before {
            Some(decision) => decision.hardware.clone(),
            None => {
                let host = self.view.host(owner.host).ok_or("its host cannot be read")?;
                start::hardware(self.view, vm, &host)?
            }
        };
        Ok(VmDecision {
            owner: Owner { host: owner.host.clone(), epoch: owner.epoch },
            continues: owner.continues.cloned(),
            opened: owner.opened,
            adopts: owner.adopts,
            // It comes under its host's lease as any running copy does.
            host_epoch: None,
            takeover: None,
            hardware,
            power_request: vm.spec.power_request,
            restarts: 0,
            since: now,
            why,
        })
    }

    /// The epoch under which the copy that was found has its disks open, as far as the store can know.
    fn opened(&self, vm: &Vm<'a>, host: &Name, epoch: u64) -> u64 {
        let same = vm.decision().filter(|it| it.owner.host == *host && it.owner.epoch == epoch);
        same.and_then(|decision| decision.opened).unwrap_or(epoch)
    }

    /// Moves that do not go on: all of a VM that has another owner than the store says, else those of which no host speaks.
    fn ended_moves(
        &self,
        vm: &Vm<'a>,
        change: Option<&Change<'a>>,
    ) -> Vec<(&'a Name, &'a MigrationDecision)> {
        let has_another = change.is_some_and(|change| change.owner.is_some());
        // Nothing is known of what a host does that is not waited for.
        let is_untold = vm.decision().is_some_and(|decision| !self.has_told(&decision.owner.host));
        if is_untold && !has_another {
            return Vec::new();
        }
        let told = vm.entry.reports.iter().filter(|(host, _)| self.has_told(host));
        let spoken: Vec<&Name> =
            told.filter_map(|(_, row)| row.migration.as_ref()).map(|report| &report.migration).collect();
        let names = self.view.index.migrations_by_vm.of(vm.name);
        let planned = names.filter_map(|name| {
            let decision = self.view.migrations.get(name)?.decision.as_ref()?;
            let goes_on = !has_another && (spoken.contains(&name) || decision.phase == Phase::Pending);
            (!decision.phase.has_ended() && !goes_on).then_some((name, &*decision.value))
        });
        planned.collect()
    }

    /// What only its host can open is where its VM is.
    fn place_volumes(
        &self,
        vm: &Vm<'a>,
        host: &Name,
        ended: &[(&Name, &MigrationDecision)],
        mut action: Action,
    ) -> Action {
        let view = self.view;
        let running = vm.decision().map(|decision| decision.hardware.volumes.as_slice()).unwrap_or_default();
        for name in unique(vm.spec.volumes.iter().chain(running)) {
            let Some(entry) = view.volumes.get(name) else { continue };
            let Some(decision) = &entry.decision else {
                // It was made for this VM since: where the rules of placing put it.
                if let Some(at) = view.host(host)
                    && let Ok(placed) = volume::place_with_vm(view, name, &at, action.clone())
                {
                    action = placed;
                }
                continue;
            };
            let moves = ended.iter().flat_map(|(_, moving)| &moving.volumes);
            let mut to = moves.filter(|moving| moving.volume == *name).map(|moving| &moving.to);
            let to = to.rfind(|to| to.host == *host);
            let placed = self.place(decision, host, to);
            if placed != *decision.value {
                action = action.put(view, Key::decision(Kind::Volume, name), &placed);
            }
        }
        action
    }

    fn place(&self, decision: &VolumeDecision, host: &Name, to: Option<&Location>) -> VolumeDecision {
        let pool = self.view.pools.get(&decision.pool).and_then(|entry| entry.spec.as_ref());
        let is_shared = pool.is_some_and(|pool| pool.value.spec.kind.is_shared());
        let here = match to {
            Some(to) => to.clone(),
            None if is_shared || decision.host == *host => decision.location(),
            None => Location { pool: decision.pool.clone(), host: host.clone() },
        };
        let rested = decision.clone().end_move();
        if rested.location() == here {
            return rested;
        }
        // A former place becomes the present one.
        rested.begin_move(here.clone()).hand_over(&here).end_move()
    }
}

impl<'a> NewOwner<'a> {
    fn as_found(host: &'a Name, epoch: u64) -> Self {
        Self { host, epoch, continues: None, opened: None, adopts: None }
    }
}

/// Its owner is told that this copy goes on.
fn is_adopted(vm: &Vm<'_>, host: &Name, epoch: u64) -> bool {
    vm.decision().is_some_and(|decision| decision.owner.host == *host && decision.adopts == Some(epoch))
}

/// Its owner is told to continue what this move left there.
fn goes_on(vm: &Vm<'_>, host: &Name, epoch: u64, migration: &Name) -> bool {
    vm.decision().is_some_and(|decision| {
        let is_owner = decision.owner.host == *host && decision.owner.epoch >= epoch;
        is_owner && decision.continues.as_ref() == Some(migration)
    })
}

/// The owner is right, and a move is not.
fn called_off<'a>(ended: &[(&Name, &MigrationDecision)]) -> Option<Change<'a>> {
    let (name, moving) = ended.first()?;
    Some(Change {
        owner: None,
        power: None,
        found: format!("no host speaks of move {name}, which was {}", moving.phase.word()),
        done: "the move is called off".to_owned(),
    })
}

fn overtaken(moving: &MigrationDecision, now: Timestamp) -> MigrationDecision {
    let why = "the store came back from a backup that is older than the move".to_owned();
    let phase = moving.phase.clone().on(Event::Overtaken { why });
    MigrationDecision { phase: phase.unwrap_or_else(|_| moving.phase.clone()), since: now, ..moving.clone() }
}

fn stored(vm: &Vm<'_>) -> String {
    let wanted = match (vm.meta.deleting, vm.spec.power) {
        (Some(_), _) => "to be deleted",
        (None, Power::Running) => "to run",
        (None, Power::Paused) => "to be paused",
        (None, Power::Stopped | Power::Off) => "to be stopped",
    };
    match vm.decision() {
        Some(decision) => {
            format!("{wanted}, on host {} under epoch {}", decision.owner.host, decision.owner.epoch)
        }
        None => format!("{wanted}, never started"),
    }
}
