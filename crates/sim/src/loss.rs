//! What must hold of leases, proofs and takeovers, beside what holds of every VM.
//!
//! The store is held against what is true: a host that it says is fenced runs nothing under that lease, whatever the proof
//! says, and a VM that it takes from a host has no process there.

use std::collections::BTreeMap;

use sterna_guard::core::event::KillReason;
use sterna_model::ha::{Fenced, HaState};
use sterna_model::meta::Name;
use sterna_model::vm::{Power, VmDecision};
use sterna_plan::ha::{fence, lease};
use uuid::Uuid;

use crate::world::{State, World};

/// What is remembered of losses.
#[derive(Default)]
pub struct Losses {
    /// Millisecond, host, VM and why: every living VM that a guard ended.
    pub kills: Vec<(u64, usize, Uuid, KillReason)>,
    pub takeovers: u32,
    pub fences: u32,
    hosts: BTreeMap<Name, (u64, HaState)>,
    versions: BTreeMap<Name, u64>,
    /// The epoch under which each VM was taken over last.
    taken: BTreeMap<Uuid, u64>,
    /// When each VM ran no longer, and for how long it did not, in nanoseconds.
    stopped: BTreeMap<Uuid, u64>,
    ran: BTreeMap<Uuid, bool>,
    pub gaps: BTreeMap<Uuid, u64>,
}

/// What a commit showed of losses.
#[derive(Default)]
pub struct Shown {
    pub wrong: Vec<String>,
    pub moments: Vec<String>,
}

impl State {
    /// After each commit of a world with guards.
    pub fn look_at_losses(&mut self) -> Shown {
        let mut shown = Shown::default();
        if !self.config.guards || self.checker.is_recovering() {
            return shown;
        }
        self.look_at_hosts(&mut shown);
        self.look_at_takeovers(&mut shown);
        for (name, entry) in &self.checker.view.datacentres {
            let Some(row) = &entry.decision else { continue };
            let before = self.losses.versions.insert(name.clone(), row.version).unwrap_or(0);
            if before > row.version || row.version > before + 1 {
                let now = row.version;
                shown.wrong.push(format!("voters: {name} went from version {before} to {now}"));
            }
            if before != row.version {
                shown.moments.push(format!("voters of {name} change to {}", row.version));
            }
        }
        shown
    }

    /// The state table of `docs/flows/host-loss.md`.
    fn look_at_hosts(&mut self, shown: &mut Shown) {
        let seen: Vec<_> = self
            .checker
            .view
            .hosts()
            .filter_map(|host| {
                let decision = host.decision?;
                Some((host.name.clone(), decision.epoch, decision.state, decision.fenced.clone()))
            })
            .collect();
        for (name, epoch, state, fenced) in seen {
            let now = (epoch, state);
            let before = self.losses.hosts.insert(name.clone(), now).unwrap_or((0, HaState::Left));
            if before == now {
                continue;
            }
            if !may_follow(before, now) {
                shown.wrong.push(format!("lease: {name} went from {before:?} to {now:?}"));
            }
            shown.moments.push(format!("{name} is {} in epoch {epoch}", word(state)));
            if state == HaState::Fenced {
                self.losses.fences += 1;
                shown.wrong.extend(self.left_on_fenced(&name, fenced.as_ref()));
            }
        }
    }

    /// A host that is proven lost runs nothing that it ran under that lease.
    fn left_on_fenced(&self, name: &Name, fenced: Option<&Fenced>) -> Vec<String> {
        let Some(fenced) = fenced else { return vec![format!("S6: {name} is fenced without a proof")] };
        let Some(index) = self.host_index(name) else { return Vec::new() };
        let here = self.machines.qemus.values().filter(|qemu| qemu.host == index);
        let under = here.filter(|qemu| {
            let decision = self.decision_of(qemu.uid);
            let is_owner = decision.is_some_and(|decision| decision.owner.host == *name);
            let lives_by = decision.and_then(|decision| decision.host_epoch);
            is_owner && lives_by.is_some_and(|epoch| epoch <= fenced.epoch)
        });
        let epoch = fenced.epoch;
        under.map(|qemu| format!("S9: {name} is fenced in epoch {epoch}, and has {}", qemu.vm)).collect()
    }

    fn decision_of(&self, uid: Uuid) -> Option<&VmDecision> {
        self.checker.view.vms().find(|vm| vm.meta.uid == uid)?.decision()
    }

    /// S6: ownership leaves a lost host with a proof, and with nothing of the VM left there.
    fn look_at_takeovers(&mut self, shown: &mut Shown) {
        let taken: Vec<_> = self
            .checker
            .view
            .vms()
            .filter_map(|vm| {
                let decision = vm.decision()?;
                let takeover = decision.takeover.clone()?;
                Some((vm.name.clone(), vm.meta.uid, decision.owner.epoch, takeover))
            })
            .collect();
        for (name, uid, epoch, takeover) in taken {
            let known = self.losses.taken.insert(uid, takeover.from_epoch);
            if known == Some(takeover.from_epoch) || epoch <= takeover.from_epoch {
                continue;
            }
            self.losses.takeovers += 1;
            shown.moments.push(format!("{name} is taken over from {}", takeover.from));
            let host = self.checker.view.host(&takeover.from);
            let is_fenced = host.is_some_and(|host| host.decision.is_some_and(|it| it.fenced.is_some()));
            if !is_fenced {
                shown.wrong.push(format!("S6: {name} is taken from {} without a proof", takeover.from));
            }
            let lost = self.host_index(&takeover.from);
            if let Some(id) = lost.and_then(|lost| self.machines.here(lost, uid)) {
                let from = &takeover.from;
                shown.wrong.push(format!("S6: {name} is taken from {from}, where process {id} is"));
            }
        }
    }

    /// S9: nothing runs under a lease that has run out, with its watchdog.
    #[must_use]
    pub fn running_without_lease(&self, now: u64) -> Vec<String> {
        if !self.config.guards || self.checker.is_recovering() {
            return Vec::new();
        }
        let running = self.machines.qemus.values().filter(|qemu| qemu.runs());
        let wrong = running.filter_map(|qemu| {
            let host = &self.hosts[qemu.host].name;
            let decision = self.decision_of(qemu.uid).filter(|it| it.owner.host == *host)?;
            let epoch = decision.host_epoch?;
            let held = self.nodes[qemu.host].lease.filter(|(held, _)| held.0 == epoch);
            match held {
                Some((_, until)) if now <= until => None,
                _ => Some(format!("S9: {} runs on {host}, whose lease {epoch} is over: {held:?}", qemu.vm)),
            }
        });
        wrong.collect()
    }

    /// How long each VM does not run.
    pub fn note_gaps(&mut self, now: u64) {
        if !self.config.guards {
            return;
        }
        let wanted = self.checker.view.vms().filter(|vm| vm.spec.power == Power::Running);
        let uids: Vec<_> = wanted.map(|vm| vm.meta.uid).collect();
        for uid in uids {
            let runs = self.machines.qemus.values().any(|qemu| qemu.uid == uid && qemu.runs());
            let ran = self.losses.ran.insert(uid, runs).unwrap_or(false);
            if ran && !runs {
                self.losses.stopped.insert(uid, now);
            } else if runs && let Some(at) = self.losses.stopped.remove(&uid) {
                let longest = self.losses.gaps.entry(uid).or_default();
                *longest = (*longest).max(now - at);
            }
        }
    }

    /// At rest every host has its lease, and every VM lives under one if it is to.
    pub fn look_at_leases(&self, open: &mut Vec<String>) {
        if !self.config.guards {
            return;
        }
        let view = &self.checker.view;
        for host in view.hosts() {
            if lease::held(&host).is_none() {
                let (decision, guard) = (host.decision, host.report.and_then(|report| report.guard.as_ref()));
                let (state, seen) = (decision.map(|it| (it.epoch, it.state)), guard.map(|it| it.lease));
                open.push(format!("{} has no lease: {state:?}, its guard says {seen:?}", host.name));
            }
            open.extend(fence::brake(view, &host).map(|why| format!("{}: {why}", host.name)));
        }
        for vm in view.vms().filter(|vm| vm.spec.power.wants_process()) {
            let Some(decision) = vm.decision() else { continue };
            let host = view.host(&decision.owner.host);
            let wanted =
                host.as_ref().and_then(|host| lease::held(host).filter(|_| lease::wants(view, &vm, host)));
            if decision.host_epoch != wanted {
                let by = decision.host_epoch;
                open.push(format!("{} lives by lease {by:?}, and should by {wanted:?}", vm.name));
            }
        }
        for (name, entry) in &view.datacentres {
            match &entry.decision {
                None => open.push(format!("datacentre {name} has no voters")),
                Some(row) if row.former.is_some() => {
                    open.push(format!("voters of {name} change to {} and never end", row.version));
                }
                Some(_) => {}
            }
        }
    }
}

fn may_follow((epoch, state): (u64, HaState), (next, then): (u64, HaState)) -> bool {
    use HaState::{Fenced, Fencing, Left, Suspect, Up};
    if next != epoch {
        return next > epoch && matches!(then, Up | Left);
    }
    matches!(
        (state, then),
        (Up, Suspect) | (Suspect, Up) | (Suspect, Fencing) | (Fencing, Fenced) | (Up | Suspect, Left)
    ) || then == Fenced
}

fn word(state: HaState) -> &'static str {
    match state {
        HaState::Left => "without a lease",
        HaState::Up => "up",
        HaState::Suspect => "suspect",
        HaState::Fencing => "being fenced",
        HaState::Fenced => "fenced",
    }
}

impl World {
    /// Kills of living VMs since an instant, in words: none was to be expected.
    #[must_use]
    pub fn kills_since(&self, at: u64) -> Vec<String> {
        let state = self.lock();
        let kills = state.losses.kills.iter().filter(|(when, ..)| *when >= at);
        kills
            .map(|(when, host, vm, why)| {
                format!("lease: {} ended {vm} at {when} ms: {why:?}", state.hosts[*host].name)
            })
            .collect()
    }
}
