//! What must hold after every event, and what must hold once everything is calm.
//!
//! Guests watch over S1 and S2 themselves ([`crate::qemu::Machines::breathe`]); this looks at the store after every
//! commit and at the agents' orders to processes.

use std::collections::{BTreeMap, BTreeSet};

use sterna_agent::hypervisor::Blueprint;
use sterna_base::clock::{Clock, Timestamp};
use sterna_model::host::LinkState;
use sterna_model::key::{Key, Kind};
use sterna_model::meta::Name;
use sterna_model::migration::Phase;
use sterna_model::status::VmState;
use sterna_model::vm::{CopyState, Exit, Owner};
use sterna_plan::{View, recovery, status};
use sterna_store::{Snapshot, Store};
use uuid::Uuid;

use crate::store::at_once;
use crate::world::{State, World};

/// A decision may rest on what was true this long ago: nothing compares whether a host is silent.
const DECIDED_WITHIN_MS: u64 = 200;

/// A host that has been connected for this long has told everything, also what began this long ago.
const TOLD_WITHIN_MS: u64 = 4000;

/// What the checker remembers of the store.
#[derive(Default)]
pub struct Checker {
    pub view: View,
    revisions: BTreeMap<String, u64>,
    owners: BTreeMap<Uuid, Owner>,
    /// VMs that were removed for good.
    gone: BTreeSet<Uuid>,
    phases: BTreeMap<Name, &'static str>,
    /// When each host last counted as silent, in milliseconds of the world.
    silent: BTreeMap<Name, u64>,
    /// Epochs under which a guest was booted, and the restart within it.
    booted: BTreeSet<(Uuid, u64, u32)>,
}

/// What one commit showed.
#[derive(Default)]
struct Noticed {
    wrong: Vec<String>,
    moments: Vec<String>,
}

impl Checker {
    fn take(&mut self, snapshot: &Snapshot, now: Timestamp) -> Noticed {
        let before: BTreeSet<Uuid> = self.view.vms().map(|vm| vm.meta.uid).collect();
        self.follow(snapshot);
        let mut noticed = Noticed::default();
        let present: BTreeSet<Uuid> = self.view.vms().map(|vm| vm.meta.uid).collect();
        for uid in before.difference(&present) {
            self.gone.insert(*uid);
            noticed.moments.push("a VM is removed".to_owned());
        }
        for uid in present.intersection(&self.gone) {
            noticed.wrong.push(format!("S11: VM {uid} came back"));
        }
        for (name, entry) in &self.view.vms {
            if entry.spec.is_none() {
                noticed.wrong.push(format!("S11: something of VM {name} is left or came back without it"));
            }
        }
        self.check_owners(&mut noticed);
        self.check_statuses(now, &mut noticed);
        self.check_places(&mut noticed.wrong);
        self.note_phases(&mut noticed);
        for (key, why) in &self.view.broken {
            noticed.wrong.push(format!("{key} cannot be read: {why}"));
        }
        noticed
    }

    fn follow(&mut self, snapshot: &Snapshot) {
        let mut left = std::mem::take(&mut self.revisions);
        for entry in &snapshot.entries {
            if left.remove(&entry.key) != Some(entry.modified) {
                self.view.apply(&entry.key, Some(&entry.value), entry.modified);
            }
            self.revisions.insert(entry.key.clone(), entry.modified);
        }
        for key in left.keys() {
            self.view.apply(key, None, snapshot.revision);
        }
        self.view.revision = snapshot.revision;
    }

    fn check_owners(&mut self, noticed: &mut Noticed) {
        for vm in self.view.vms() {
            let Some(decision) = vm.decision() else { continue };
            let owner = &decision.owner;
            match self.owners.insert(vm.meta.uid, owner.clone()) {
                Some(before) if before != *owner && before.epoch >= owner.epoch => {
                    noticed.wrong.push(format!("epochs: {} went from {before:?} to {owner:?}", vm.name));
                }
                Some(before) if before == *owner => {}
                _ => noticed
                    .moments
                    .push(format!("{} is owned by {} under {}", vm.name, owner.host, owner.epoch)),
            }
        }
    }

    /// S3: a VM that should run runs, or waits in a named state with a reason.
    fn check_statuses(&self, now: Timestamp, noticed: &mut Noticed) {
        if self.is_recovering() {
            return;
        }
        for vm in self.view.vms().filter(|vm| vm.is_wanted()) {
            let Some(status) = status::vm(&self.view, vm.name, now) else { continue };
            let ended_itself = vm
                .owner_report()
                .is_some_and(|row| matches!(row.state, CopyState::Stopped { exit: Exit::GuestShutdown }));
            if status.message.is_empty() {
                noticed.wrong.push(format!("S3: {} is {:?} without a reason", vm.name, status.state));
            }
            if status.state == VmState::Stopped && !ended_itself {
                noticed.wrong.push(format!("S3: {} is forgotten: {}", vm.name, status.message));
            }
        }
    }

    /// The store is another one: what it says next is compared with nothing that it said before. What was booted is
    /// remembered.
    pub fn forget(&mut self) {
        self.owners.clear();
        self.gone.clear();
        self.phases.clear();
    }

    /// The store does not know yet who has what: nobody is held to what it says.
    #[must_use]
    pub fn is_recovering(&self) -> bool {
        recovery::is_on(&self.view)
    }

    fn note_phases(&mut self, noticed: &mut Noticed) {
        for (name, entry) in &self.view.migrations {
            let Some(decision) = &entry.decision else { continue };
            let word = decision.phase.word();
            if self.phases.insert(name.clone(), word) != Some(word) {
                noticed.moments.push(format!("{name} is {word}"));
            }
        }
    }

    #[must_use]
    pub fn owner(&self, uid: Uuid) -> Option<&Owner> {
        self.owners.get(&uid).filter(|_| !self.gone.contains(&uid))
    }

    /// The epoch of the copy that its owner goes on with.
    fn adopted(&self, uid: Uuid) -> Option<u64> {
        self.view.vms().find(|vm| vm.meta.uid == uid)?.decision()?.adopts
    }
}

impl World {
    /// Looks at what a commit did.
    pub fn on_commit(&self) {
        let snapshot = at_once(self.store.range("", None));
        let Ok(snapshot) = snapshot else { return };
        let now = self.now();
        let now_ms = self.now_ms();
        let noticed = {
            let checker = &mut self.lock().checker;
            let noticed = checker.take(&snapshot, now);
            let silent: Vec<_> = checker
                .view
                .hosts()
                .filter(|host| !host.is_connected())
                .map(|host| host.name.clone())
                .collect();
            checker.silent.extend(silent.into_iter().map(|host| (host, now_ms)));
            noticed
        };
        let shown = self.lock().look_at_losses();
        for what in noticed.wrong.into_iter().chain(shown.wrong) {
            self.violate(what);
        }
        self.check_rows();
        for what in self.strangers() {
            self.violate(what);
        }
        for moment in noticed.moments.into_iter().chain(shown.moments) {
            self.check_end(&moment);
            self.moment(&moment);
        }
    }

    /// A move has succeeded only when the source's process is gone, unless its host is silent: it said that it will not
    /// run. A target never owned the VM: one that nobody heard of may be left for later.
    fn check_end(&self, moment: &str) {
        let now = self.now_ms();
        let wrong = {
            let state = self.lock();
            // What the backup says of moves that ended is told anew.
            if state.checker.is_recovering() {
                return;
            }
            let view = &state.checker.view;
            let ended = view.migrations.iter().find_map(|(name, entry)| {
                let decision = entry.decision.as_ref()?;
                let spec = &entry.spec.as_ref()?.value.spec;
                // A pre-seed leaves the guest where it is.
                let is_move = decision.phase == Phase::Succeeded && !spec.seed;
                let is_it = is_move && moment == format!("{name} is succeeded");
                is_it.then_some((name, &spec.vm, decision))
            });
            ended.and_then(|(name, vm, decision)| {
                let host = decision.source.as_ref()?;
                let silent = state.checker.silent.get(host);
                let is_silent = silent.is_some_and(|at| at + DECIDED_WITHIN_MS >= now);
                let id = state.machines.here(state.host_index(host)?, view.vm(vm)?.meta.uid)?;
                (!is_silent).then(|| format!("S10: {name} has ended, process {id} of {vm} is left on {host}"))
            })
        };
        if let Some(what) = wrong {
            self.violate(what);
        }
    }

    /// What is said of a connected host is true: each of its processes has a row.
    fn check_rows(&self) {
        let (now, now_ms) = (self.now(), self.now_ms());
        let wrong: Vec<String> = {
            let state = self.lock();
            if state.checker.is_recovering() {
                return;
            }
            let view = &state.checker.view;
            let old = state.machines.qemus.values().filter(|qemu| qemu.born + TOLD_WITHIN_MS < now_ms);
            let untold = old.filter(|qemu| {
                let at = &state.hosts[qemu.host];
                let report = view.host(&at.name).and_then(|host| host.report);
                let is_known = report.is_some_and(|report| {
                    let steady = now.since(report.since).as_millis() > u128::from(TOLD_WITHIN_MS);
                    report.link == LinkState::Connected
                        && steady
                        && !at.line_is_cut
                        && at.line_was_cut + TOLD_WITHIN_MS < now_ms
                });
                let vm = view.vm(&qemu.vm).filter(|vm| vm.meta.uid == qemu.uid);
                let has_row = vm.is_none_or(|vm| {
                    vm.entry.reports.get(&at.name).is_some_and(|row| row.state.has_process())
                });
                is_known && !has_row
            });
            untold
                .map(|qemu| format!("rows: nobody knows of {}'s process on {}", qemu.vm, qemu.host))
                .collect()
        };
        for what in wrong {
            self.violate(what);
        }
    }

    /// A process that boots a guest is started by the owner, under the owner's epoch, and by nobody else.
    pub fn check_spawn(&self, host: usize, blueprint: &Blueprint) {
        let (owner, adopted, here, other) = {
            let state = self.lock();
            let owner = state.checker.owner(blueprint.uid).cloned();
            let adopted = state.checker.adopted(blueprint.uid);
            let other = state.machines.qemus.values().find(|qemu| {
                let may_write = qemu.has_disk && (qemu.has_run || !qemu.is_target);
                qemu.uid == blueprint.uid && (qemu.host == host || (may_write && !blueprint.incoming))
            });
            (owner, adopted, state.hosts[host].name.clone(), other.map(|qemu| qemu.host))
        };
        if let Some(other) = other {
            self.violate(format!("two openers: {} starts on {here}, a copy is on {}", blueprint.name, other));
        }
        if blueprint.incoming {
            return;
        }
        let start = (blueprint.uid, blueprint.epoch, blueprint.restart);
        if !self.lock().checker.booted.insert(start) {
            self.violate(format!("epochs: {} starts twice under {}.{}", blueprint.name, start.1, start.2));
        }
        let is_recovering = self.lock().checker.is_recovering();
        let is_owners = owner.as_ref().is_some_and(|owner| {
            // A host may restart what it had before it hears under which epoch that is adopted.
            owner.host == here && (owner.epoch == blueprint.epoch || adopted == Some(blueprint.epoch))
        });
        if !is_owners && !is_recovering {
            let (name, epoch) = (&blueprint.name, blueprint.epoch);
            self.violate(format!("ownership: {name} starts on {here} under {epoch}, its owner is {owner:?}"));
        }
    }

    /// Nobody continues a guest without owning the VM.
    pub fn check_cont(&self, host: usize, id: u64) {
        let wrong = {
            let state = self.lock();
            state.machines.qemus.get(&id).and_then(|qemu| {
                let here = &state.hosts[host].name;
                let owner = state.checker.owner(qemu.uid);
                let owns = owner.is_some_and(|owner| owner.host == *here);
                (!owns && !state.checker.is_recovering())
                    .then(|| format!("ownership: {} continues on {here}, its owner is {owner:?}", qemu.vm))
            })
        };
        if let Some(what) = wrong {
            self.violate(what);
        }
    }

    /// What keeps the world from being as everyone asked for. Empty: all is well.
    #[must_use]
    pub fn unsettled(&self) -> Vec<String> {
        let state = self.lock();
        let mut open = Vec::new();
        state.look_at_processes(&mut open);
        state.look_at_vms(&mut open);
        state.look_at_lost(&mut open);
        state.look_at_leftovers(&mut open);
        state.checker.look_at_places(&mut open);
        state.look_at_leases(&mut open);
        if state.checker.is_recovering() {
            open.push("the store is recovering".to_owned());
        }
        let view = &state.checker.view;
        open.extend(view.migrations.iter().filter_map(|(name, entry)| {
            let phase = entry.decision.as_ref().map(|decision| &decision.phase);
            (!phase.is_some_and(Phase::has_ended)).then(|| format!("S4: migration {name} is open: {phase:?}"))
        }));
        open.extend(view.volumes.iter().filter_map(|(name, entry)| {
            entry.meta().and_then(|meta| meta.deleting).map(|_| format!("volume {name} is not gone"))
        }));
        let silent = state.hosts.iter().filter(|host| !host.agent_is_up || host.connection.is_none());
        open.extend(silent.map(|host| format!("agent of {} is not there", host.name)));
        let silent = view.hosts().filter(|host| !host.is_connected());
        open.extend(silent.map(|host| format!("host {} counts as silent", host.name)));
        open
    }
}

impl State {
    /// A guest runs where its VM is owned, and nowhere else.
    #[must_use]
    pub fn running_strangers(&self) -> Vec<String> {
        if self.checker.is_recovering() {
            return Vec::new();
        }
        let known = self.machines.qemus.values().filter(|qemu| !self.lost.contains(&qemu.uid));
        let running = known.filter(|qemu| qemu.runs());
        let strangers = running.filter_map(|qemu| {
            let here = &self.hosts[qemu.host].name;
            let owner = self.checker.owner(qemu.uid);
            let is_stranger = owner.is_none_or(|owner| owner.host != *here);
            is_stranger.then(|| format!("ownership: {} runs on {here}, its owner is {owner:?}", qemu.vm))
        });
        strangers.collect()
    }

    /// What the store forgot goes on as before.
    fn look_at_lost(&self, open: &mut Vec<String>) {
        for uid in &self.lost {
            let mine = self.machines.qemus.values().filter(|qemu| qemu.uid == *uid);
            let running = mine.filter(|qemu| qemu.runs()).count();
            let boots = self.machines.boots.get(uid).copied().unwrap_or(0);
            if (running, boots) != (1, 1) {
                open.push(format!("lost VM {uid}: {running} copies run, booted {boots} times"));
            }
        }
    }

    /// Every process is its VM's owner's; S10.
    fn look_at_processes(&self, open: &mut Vec<String>) {
        for (id, qemu) in self.machines.qemus.iter().filter(|(_, qemu)| !self.lost.contains(&qemu.uid)) {
            let here = &self.hosts[qemu.host].name;
            match self.checker.owner(qemu.uid) {
                Some(owner) if owner.host == *here => {}
                owner => open.push(format!("S10: process {id} of {} on {here}, owner {owner:?}", qemu.vm)),
            }
        }
    }

    fn look_at_vms(&self, open: &mut Vec<String>) {
        for vm in self.checker.view.vms() {
            if vm.meta.deleting.is_some() {
                open.push(format!("VM {} is not gone", vm.name));
                continue;
            }
            let mine = self.machines.qemus.values().filter(|qemu| qemu.uid == vm.meta.uid);
            let running = mine.clone().filter(|qemu| qemu.runs()).count();
            let expected = usize::from(vm.spec.power == sterna_model::vm::Power::Running);
            if running != expected {
                open.push(format!("S3: {running} copies of {} run, {expected} should", vm.name));
            }
            if !vm.spec.power.wants_process() && mine.count() > 0 {
                open.push(format!("VM {} has a process and should not", vm.name));
            }
            let reported = vm.owner_report().map(|row| &row.state);
            if expected == 1 && reported != Some(&CopyState::Running) {
                open.push(format!("VM {} is reported as {reported:?}", vm.name));
            }
        }
    }

    /// Rows and records of hosts that have nothing to do with a VM.
    fn look_at_leftovers(&self, open: &mut Vec<String>) {
        for vm in self.checker.view.vms() {
            let owner = vm.decision().map(|decision| &decision.owner.host);
            let others = vm.entry.reports.iter().filter(|(host, _)| Some(*host) != owner);
            open.extend(others.map(|(host, row)| {
                let key = Key::report_of(Kind::Vm, vm.name, host);
                format!("S10: {key} is left: {:?}", row.state)
            }));
        }
        for (index, host) in self.hosts.iter().enumerate() {
            let ended = self.machines.ended.keys().filter(|(at, _)| *at == index).map(|(_, uid)| *uid);
            let noted = host.notes.keys().copied();
            for uid in noted.chain(ended).filter(|uid| !self.lost.contains(uid)).collect::<BTreeSet<_>>() {
                let owns = self.checker.owner(uid).is_some_and(|owner| owner.host == host.name);
                if !owns {
                    open.push(format!("S10: records of {uid} are left on {}", host.name));
                }
            }
        }
    }
}
