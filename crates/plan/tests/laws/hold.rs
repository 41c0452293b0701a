//! The laws. Each is written as plainly as it can be, over the tables and not over the indexes.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};

use sterna_base::units::Bytes;
use sterna_model::key::{Column, Key, Kind};
use sterna_model::meta::Name;
use sterna_model::migration::{MigrationDecision, Phase};
use sterna_model::vm::{CopyState, Power, VmDecision};
use sterna_plan::assignment::assignment;
use sterna_plan::view::VmEntry;
use sterna_plan::{Action, View, capacity, round, start, status};
use sterna_wire::assignment::{NetworkKind, Role};

use crate::world::World;

/// What was given out so far.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Which host each epoch of a VM belongs to.
    epochs: BTreeMap<(uuid::Uuid, u64), Name>,
}

pub fn actions(world: &World, ledger: &mut Ledger, actions: &[Action]) {
    let view = &world.view;
    assert_eq!(round(view, world.now), actions, "the same round twice");
    if actions.is_empty() {
        return;
    }
    let mut again = View::default();
    for (at, (key, value)) in world.changes.iter().enumerate() {
        again.apply(key, value.as_ref().map(String::as_bytes), at as u64 + 1);
    }
    assert_eq!(round(&again, world.now), actions, "the same round after reading anew");

    let mut written = BTreeSet::new();
    for action in actions {
        let rows = action.puts.iter().map(|(key, _)| key).chain(&action.deletes);
        rows.for_each(|key| assert!(written.insert(key), "{key} is written by two actions of one round"));
        for (key, revision) in &action.compares {
            assert_eq!(
                *revision,
                view.revision_of(key),
                "{key} is compared with a revision that the store has"
            );
        }
        let decisions: Vec<_> =
            action.puts.iter().filter(|(key, _)| key.column == Column::Decision).collect();
        for (key, value) in decisions {
            match key.kind {
                Kind::Vm => {
                    owner_change(view, ledger, action, key, &serde_json::from_value(value.clone()).unwrap())
                }
                Kind::Migration => {
                    promise(view, ledger, key, &serde_json::from_value(value.clone()).unwrap());
                }
                _ => {}
            }
        }
    }
    memory(view, actions);
}

fn owner_change(view: &View, ledger: &mut Ledger, action: &Action, key: &Key, next: &VmDecision) {
    let vm = view.vm(&key.name).expect("only VMs that can be read are decided about");
    let highest = ledger.epochs.keys().filter(|(uid, _)| *uid == vm.meta.uid).map(|(_, epoch)| *epoch).max();
    let before = vm.decision();
    assert!(before.is_none_or(|before| next.owner.epoch > before.owner.epoch), "epochs grow");
    let hands_over =
        next.continues.is_some() && action.puts.iter().any(|(key, _)| key.kind == Kind::Migration);
    if !hands_over {
        assert!(highest.is_none_or(|highest| next.owner.epoch > highest), "a fresh start has a fresh epoch");
    }
    let known = ledger.epochs.insert((vm.meta.uid, next.owner.epoch), next.owner.host.clone());
    assert!(known.is_none_or(|known| known == next.owner.host), "an epoch belongs to one host");
    let Some(before) = before else { return };
    let alive = vm.owner_report().is_some_and(|row| row.state.has_process());
    let unheard = vm.owner_report().is_none();
    let removed = !view.hosts.contains_key(&before.owner.host);
    assert!(
        hands_over || removed || !(alive || unheard),
        "an owner that did not say it stopped lost its VM: {action:?}"
    );
    let row = vm.key(Column::ReportOf(before.owner.host.clone()));
    assert!(removed || action.compares.iter().any(|(key, _)| *key == row), "the owner's word is compared");
    assert!(action.compares.iter().any(|(compared, _)| compared == key), "the decision is compared");
}

fn promise(view: &View, ledger: &mut Ledger, key: &Key, next: &MigrationDecision) {
    let object = view.migrations[&key.name].spec.as_ref().unwrap();
    let before = view.migrations[&key.name].decision.as_ref();
    let begins = next.phase == Phase::Preparing && before.is_none_or(|before| before.phase == Phase::Pending);
    if !begins {
        return;
    }
    let vm = view.vm(&object.spec.vm).expect("only VMs that are there are moved");
    let highest = ledger.epochs.keys().filter(|(uid, _)| *uid == vm.meta.uid).map(|(_, epoch)| *epoch).max();
    assert!(highest.is_none_or(|highest| next.next_epoch > highest), "a move has a fresh epoch");
    ledger.epochs.insert((vm.meta.uid, next.next_epoch), next.target.clone().unwrap());
}

/// A host to which a round gave something has room for all of it.
fn memory(view: &View, actions: &[Action]) {
    let mut after = view.clone();
    let mut gained = BTreeSet::new();
    for action in actions {
        action.apply(&mut after);
        for (key, value) in &action.puts {
            match (key.kind, &key.column) {
                (Kind::Vm, Column::Decision) => {
                    let decision: VmDecision = serde_json::from_value(value.clone()).unwrap();
                    if decision.continues.is_none() {
                        gained.insert(decision.owner.host);
                    }
                }
                (Kind::Migration, Column::Decision) => {
                    let decision: MigrationDecision = serde_json::from_value(value.clone()).unwrap();
                    if decision.phase == Phase::Preparing {
                        gained.extend(decision.target);
                    }
                }
                _ => {}
            }
        }
    }
    for host in gained {
        let limit = after.host(&host).unwrap().report.unwrap().memory.as_u64() - Bytes::mib(512).as_u64();
        let taken = capacity::taken_memory(&after, &host);
        assert!(
            taken.as_u64() <= limit,
            "host {host} was given more than it has: {taken} of {}",
            Bytes(limit)
        );
    }
}

/// What holds between rounds.
pub fn view(view: &View) {
    one_migration_each(view);
    indexes(view);
    addresses(view);
    assignments(view);
}

fn one_migration_each(view: &View) {
    let mut begun = BTreeSet::new();
    for (_, spec, decision) in view.active_migrations() {
        if decision.phase != Phase::Pending {
            assert!(begun.insert(&spec.vm), "VM {} has two migrations at once", spec.vm);
        }
    }
}

fn indexes(view: &View) {
    for host in ["a1", "a2", "a3"].map(crate::world::name) {
        let on: Vec<_> = view.vms_on(&host).map(|vm| vm.name).collect();
        let here = |entry: &VmEntry| {
            let owned = entry.decision.as_ref().is_some_and(|decision| decision.owner.host == host);
            owned || entry.reports.contains_key(&host)
        };
        let naive: Vec<_> = view.vms.iter().filter(|(_, entry)| here(entry)).map(|(name, _)| name).collect();
        assert_eq!(on, naive);
        assert_eq!(capacity::taken_memory(view, &host), taken(view, &host), "memory of {host}");
    }
    for name in view.vms.keys() {
        let open = |phase: Option<&Phase>| !phase.is_some_and(Phase::has_ended);
        let of_vm = || {
            view.migrations
                .iter()
                .filter(|(_, entry)| entry.spec.as_ref().is_some_and(|row| row.spec.vm == *name))
        };
        let phase = |name: &Name| view.migrations[name].decision.as_ref().map(|decision| &decision.phase);
        assert_eq!(view.is_migrating(name), of_vm().any(|(name, _)| open(phase(name))));
        let active: Vec<_> =
            of_vm().map(|(name, _)| name).filter(|name| phase(name).is_some() && open(phase(name))).collect();
        match view.migration_of(name) {
            None => assert!(active.is_empty()),
            Some((one, ..)) => assert!(active.contains(&one)),
        }
    }
    let networks = view.networks.keys();
    for network in networks {
        let decision = view.networks[network].decision.as_ref();
        let mut naive: BTreeSet<_> =
            decision.iter().flat_map(|decision| decision.hosts.values().copied()).collect();
        for entry in view.vms.values() {
            let given = entry.decision.iter().flat_map(|decision| &decision.hardware.nics);
            naive.extend(given.filter(|nic| nic.network == *network).filter_map(|nic| nic.address));
        }
        assert_eq!(start::taken_addresses(view, network), naive);
    }
}

/// Memory by the rule, not by the sum that is kept.
fn taken(view: &View, host: &Name) -> Bytes {
    let arrives = |vm: &Name| {
        view.active_migrations().any(|(_, spec, decision)| {
            let on_its_way = matches!(decision.phase, Phase::Preparing | Phase::Copying { .. });
            spec.vm == *vm && decision.target.as_ref() == Some(host) && on_its_way
        })
    };
    let one = |vm: &sterna_plan::view::Vm<'_>| {
        let process = vm.entry.reports.get(host).is_some_and(|row| row.state.has_process());
        let owned = vm.decision().filter(|decision| decision.owner.host == *host);
        let will_run = owned.is_some_and(|decision| {
            let report = vm.entry.reports.get(host).filter(|row| row.epoch == decision.owner.epoch);
            vm.is_wanted()
                && match report.map(|row| &row.state) {
                    Some(CopyState::Stopped { exit }) => {
                        use sterna_model::vm::{Exit, RestartPolicy};
                        let asked = matches!(exit, Exit::GuestShutdown | Exit::Requested { .. });
                        let never = vm.spec.restart == RestartPolicy::Never
                            && !matches!(exit, Exit::StartFailed { .. });
                        !asked && !never && vm.spec.power_request <= decision.power_request
                    }
                    _ => true,
                }
        });
        let counts = process || will_run || arrives(vm.name);
        let memory = vm.decision().map_or(vm.spec.memory, |decision| decision.hardware.memory);
        if counts { capacity::needed(memory).as_u64() } else { 0 }
    };
    Bytes(view.vms().map(|vm| one(&vm)).sum())
}

fn addresses(view: &View) {
    for (network, entry) in &view.networks {
        let mut held = BTreeSet::new();
        let hosts = entry.decision.iter().flat_map(|decision| decision.hosts.values().copied());
        hosts.for_each(|address| assert!(held.insert(address), "{address} of {network} is a host's twice"));
        for (name, vm) in &view.vms {
            let nics = vm.decision.iter().flat_map(|decision| &decision.hardware.nics);
            for address in nics.filter(|nic| nic.network == *network).filter_map(|nic| nic.address) {
                assert!(
                    held.insert(address),
                    "{address} of {network}: VM {name} is not the first to have it"
                );
            }
        }
    }
}

fn assignments(view: &View) {
    let mut owners = BTreeSet::new();
    for host in view.hosts() {
        let told = assignment(view, host.name);
        for vm in &told.vms {
            let decision = view.vms[&vm.name].decision.as_ref().unwrap();
            if let Role::Owner(_) = vm.role {
                assert!(owners.insert(vm.uid), "VM {} has two owners", vm.name);
                assert_eq!((host.name, vm.epoch), (&decision.owner.host, decision.owner.epoch));
            } else {
                assert_ne!(*host.name, decision.owner.host, "an owner is told that it is one");
            }
        }
        for pool in &told.pools {
            for export in &pool.exports {
                let vm = view
                    .vms()
                    .find(|vm| vm.meta.uid == export.vm)
                    .expect("exports are for VMs that are there");
                let decision = vm.decision().unwrap();
                let owned = [Some(decision.owner.epoch), decision.opened];
                let moving =
                    view.migration_of(vm.name).map(|(_, _, moving)| [moving.epoch, moving.next_epoch]);
                let may = owned.into_iter().flatten().chain(moving.into_iter().flatten());
                assert!(may.into_iter().any(|epoch| epoch == export.epoch), "{export:?} outlived its epoch");
            }
        }
        for network in &told.networks {
            if let NetworkKind::Overlay { peers, .. } = &network.kind {
                assert!(!peers.contains(&host.spec.addresses.management), "a host is not its own peer");
            }
        }
    }
}

/// Nothing is under way, and what was asked for is so or says why not.
pub fn good_end(world: &World) {
    let view = &world.view;
    let open: Vec<_> = view.active_migrations().map(|(name, _, decision)| (name, &decision.phase)).collect();
    assert!(open.is_empty(), "migrations that never end: {open:#?}");
    for vm in view.vms() {
        let shown = status::vm(view, vm.name, world.now).unwrap();
        assert!(vm.meta.deleting.is_none(), "VM {} is never removed: {shown:?}", vm.name);
        let there = vm.entry.reports.iter().filter(|(host, _)| view.hosts.contains_key(*host));
        let alive = there.filter(|(_, row)| row.state.has_process()).count();
        assert!(alive <= 1, "VM {} has {alive} copies", vm.name);
        let runs = vm.owner_report().is_some_and(|row| row.state.has_process());
        match vm.spec.power {
            Power::Stopped | Power::Off => assert_eq!(alive, 0, "{shown:?}"),
            Power::Running | Power::Paused if runs => {}
            Power::Running | Power::Paused => {
                let why = [
                    "no host fits",
                    "qemu ended",
                    "the guest shut itself down",
                    "its host restarted",
                    "was removed",
                    "could not be",
                ];
                assert!(why.iter().any(|why| shown.message.contains(why)), "VM {}: {shown:?}", vm.name);
            }
        }
    }
}
