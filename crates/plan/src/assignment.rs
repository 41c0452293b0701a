//! All that is decided about one host, as its agent gets it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use sterna_model::ha::HaState;
use sterna_model::host::PoolSeen;
use sterna_model::meta::Name;
use sterna_model::migration::{MigrationDecision, MigrationSpec, Phase, SideState, Via, VolumeMove};
use sterna_model::network::NetworkKind as Kind;
use sterna_model::pool::PoolKind;
use sterna_model::vm::{CopyState, Power, RestartPolicy, VmDecision, VmReport};
use sterna_model::volume::{Location, VolumeDecision};
use sterna_wire::assignment::{
    Assignment, Carry, Disk, Export, HealthOrder, Lease, Machine, NetworkAssignment, NetworkKind, Outgoing,
    Owner, PoolAssignment, Purpose, Role, VmAssignment, VolumeAssignment,
};

use crate::ha::lease;
use crate::migration;
use crate::pace;
use crate::probe;
use crate::sibling;
use crate::tunnel;
use crate::view::{Host, OwnerCopy, View, Vm};

/// The whole assignment of a host; empty for a host that has not joined.
#[must_use]
pub fn assignment(view: &View, host: &Name) -> Assignment {
    let mut assignment = Assignment {
        revision: view.revision,
        host: host.clone(),
        vms: Vec::new(),
        networks: Vec::new(),
        pools: Vec::new(),
        volumes: Vec::new(),
        tunnel: None,
        paces: Vec::new(),
        probes: Vec::new(),
        probed: None,
        guard: None,
    };
    if let Some(host) = view.host(host) {
        let arriving = view.migrations_on(host.name).filter_map(|(_, spec, _)| view.vm(&spec.vm));
        let vms: BTreeMap<_, _> = view.vms_on(host.name).chain(arriving).map(|vm| (vm.name, vm)).collect();
        assignment.vms = vms.values().filter_map(|vm| of_vm(view, vm, &host)).collect();
        assignment.tunnel = tunnel::of(view, &host);
        assignment.networks = networks(view, &host, &assignment);
        assignment.pools = pools(view, &host);
        assignment.volumes = volumes(view, &host);
        assignment.paces = pace::of(view, &host);
        assignment.probes = probe::of(view, &host);
        assignment.probed = probe::answers(view, &host);
        assignment.guard = lease::order(view, &host).map(Box::new);
    }
    assignment
}

/// What a host has of a VM that the store does not know may be ended without asking anybody: no guest has run in it. A VM
/// leaves the store only when no host has a copy of it, so a copy that has run is no leftover: the store is older than
/// what the host has seen.
#[must_use]
pub fn may_end_stray(report: &VmReport) -> bool {
    let side = report.migration.as_ref().map(|migration| &migration.side);
    report.state == CopyState::Incoming && matches!(side, None | Some(SideState::Listening { .. }))
}

fn of_vm(view: &View, vm: &Vm<'_>, host: &Host<'_>) -> Option<VmAssignment> {
    let decision = vm.decision()?;
    let migration = view.migration_of(vm.name);
    let role = |epoch, role| Some(VmAssignment { name: vm.name.clone(), uid: vm.meta.uid, epoch, role });
    if decision.owner.host == *host.name {
        // Of a host that is lost it may be known that it was off, and another may have the VM by the time that this is read: a copy
        // that no guard knows must not begin there late.
        let is_lost = matches!(host.ha(), HaState::Fencing | HaState::Fenced);
        let has_begun = vm.owner_copy() != OwnerCopy::Unheard || decision.host_epoch.is_some();
        if is_lost && !has_begun && vm.is_wanted() {
            return None;
        }
        return role(decision.owner.epoch, Role::Owner(Box::new(owner(view, vm, decision, migration, host))));
    }
    let row = vm.entry.reports.get(host.name);
    match migration {
        Some((name, _, moving)) if moving.target.as_ref() == Some(host.name) => {
            // What an earlier move left here goes first: a host has one copy of a VM at a time.
            let leftover = row.is_some_and(|row| row.state.has_process() && row.epoch != moving.next_epoch);
            if !leftover && matches!(moving.phase, Phase::Preparing | Phase::Copying { .. }) {
                let mut machine = machine(view, vm, decision);
                arriving(&mut machine, &moving.volumes);
                let carry = carry(view, name, moving, &machine);
                let incoming = Role::Incoming {
                    migration: name.clone(),
                    carry: carry.map(|carry| with_siblings(view, vm, host.name, carry)),
                    machine: Box::new(machine),
                    listen: host.spec.addresses.for_migration(),
                    channels: (moving.channels > 0).then_some(moving.channels),
                    in_clear: moving.in_clear,
                    host_epoch: lease::for_start(view, vm, host),
                };
                return role(moving.next_epoch, incoming);
            }
        }
        // The source keeps its paused copy until the target runs: it may get the VM back.
        Some((_, _, moving))
            if moving.source.as_ref() == Some(host.name)
                && matches!(moving.phase, Phase::Resuming { .. }) =>
        {
            return None;
        }
        _ => {}
    }
    let row = row.filter(|row| row.state.has_process())?;
    role(row.epoch, Role::Release)
}

type Moving<'a> = Option<(&'a Name, &'a MigrationSpec, &'a crate::view::Row<MigrationDecision>)>;

fn owner(view: &View, vm: &Vm<'_>, decision: &VmDecision, migration: Moving<'_>, host: &Host<'_>) -> Owner {
    let machine = machine(view, vm, decision);
    let outgoing = migration.and_then(|(name, spec, moving)| {
        let sends = moving.source.as_ref() == Some(host.name) && moving.epoch == decision.owner.epoch;
        let Phase::Copying { listen, line } = &moving.phase else { return None };
        let to: SocketAddr = listen.parse().ok()?;
        let is_lost = migration::lost_target(vm, moving).is_some();
        let cancel = is_lost || migration::is_cancelled(spec, moving, vm);
        sends.then(|| Outgoing {
            migration: name.clone(),
            to,
            carry: carry(view, name, moving, &machine),
            line: line.clone(),
            max_downtime: spec.max_downtime,
            cancel,
            seed: spec.seed,
        })
    });
    // Stopping waits until the transfer has been called off, so that exactly one side ends it.
    let power = match (&outgoing, vm.meta.deleting) {
        (Some(_), _) => Power::Running,
        (None, Some(_)) => Power::Off,
        (None, None) if needs_new_epoch(vm, decision) => Power::Off,
        (None, None) => vm.spec.power,
    };
    Owner {
        machine,
        power,
        reset_request: vm.spec.reset_request,
        shutdown_timeout: vm.spec.shutdown_timeout,
        continues: decision.continues.clone(),
        adopts: decision.adopts,
        outgoing,
        restart_here: may_restart_here(vm, decision, migration).then_some(decision.restarts),
        health: Some(HealthOrder {
            on_panic: vm.spec.on_panic,
            on_hang: vm.spec.on_hang,
            checks: vm.spec.checks.clone(),
            power_request: vm.spec.power_request,
        }),
        host_epoch: decision.host_epoch.or_else(|| lease::for_running(view, vm, host)),
    }
}

/// Whether the agent needs to ask nobody when a copy ends unasked. While a move is under way its two sides decide; disks
/// that are open under an earlier epoch can be opened only under a new one.
fn may_restart_here(vm: &Vm<'_>, decision: &VmDecision, migration: Moving<'_>) -> bool {
    let is_moving = migration.is_some_and(|(_, _, moving)| moving.phase != Phase::Pending);
    vm.is_wanted()
        && vm.spec.restart != RestartPolicy::Never
        && vm.spec.power_request <= decision.power_request
        && decision.opened.is_none()
        && !is_moving
}

/// A start was asked for that this decision does not serve, and there is no copy that could serve it: control starts the
/// VM under a new epoch once the host has said that it has none. A host that lost its memory, or joined under the name of
/// an earlier one, would otherwise start it under the old epoch.
fn needs_new_epoch(vm: &Vm<'_>, decision: &VmDecision) -> bool {
    let is_fresh = decision.continues.is_none();
    let has_copy = vm.owner_report().is_some_and(|row| row.state.has_process());
    is_fresh && !has_copy && vm.spec.power_request > decision.power_request
}

fn machine(view: &View, vm: &Vm<'_>, decision: &VmDecision) -> Machine {
    let disks = decision.hardware.volumes.iter().filter_map(|name| {
        let entry = view.volumes.get(name)?;
        let volume = entry.decision.as_ref()?;
        Some(Disk {
            volume: name.clone(),
            uid: entry.meta()?.uid,
            pool: volume.pool.clone(),
            format: volume.format,
            image: volume.image.clone(),
        })
    });
    Machine {
        hardware: decision.hardware.clone(),
        disks: disks.collect(),
        cloud_init: vm.spec.cloud_init.clone(),
    }
}

/// The target opens the copies that are being filled.
fn arriving(machine: &mut Machine, moves: &[VolumeMove]) {
    for disk in &mut machine.disks {
        if let Some(moving) = moves.iter().find(|moving| moving.volume == disk.volume) {
            disk.pool = moving.to.pool.clone();
        }
    }
}

/// Only the mover looks into memory.
fn with_siblings(view: &View, vm: &Vm<'_>, host: &Name, carry: Carry) -> Carry {
    let siblings = if carry.straight { Vec::new() } else { sibling::of(view, vm, host) };
    Carry { siblings, ..carry }
}

/// What goes through the mover, or the disks that go straight; `None`: memory alone goes, straight.
fn carry(view: &View, name: &Name, moving: &MigrationDecision, machine: &Machine) -> Option<Carry> {
    let goes = |disk: &Disk| moving.volumes.iter().any(|moving| moving.volume == disk.volume);
    let disks = machine.disks.iter().enumerate().filter(|(_, disk)| goes(disk)).map(|(index, _)| index);
    let (meta, peer) = (view.migrations.get(name)?.meta()?, moving.target.as_ref()?);
    let straight = moving.via == Via::Direct;
    (!straight || !moving.volumes.is_empty()).then(|| Carry {
        session: meta.uid,
        peer: peer.clone(),
        disks: disks.collect(),
        straight,
        siblings: Vec::new(),
    })
}

fn networks(view: &View, host: &Host<'_>, told: &Assignment) -> Vec<NetworkAssignment> {
    view.networks
        .iter()
        .filter_map(|(name, entry)| {
            let spec = &entry.spec.as_ref()?.value.spec;
            let kind = match &spec.kind {
                Kind::Bridge { bridge, vlan } => NetworkKind::Bridge { bridge: bridge.clone(), vlan: *vlan },
                Kind::Overlay { cidr } => {
                    let decision = entry.decision.as_ref()?;
                    let (peers, far) = tunnel::peers(view, host, decision, told.tunnel.as_ref());
                    NetworkKind::Overlay {
                        vni: decision.vni,
                        cidr: *cidr,
                        host_address: *decision.hosts.get(host.name)?,
                        peers,
                        far,
                        leases: leases(name, &told.vms),
                    }
                }
            };
            Some(NetworkAssignment { name: name.clone(), kind })
        })
        .collect()
}

fn leases(network: &Name, vms: &[VmAssignment]) -> Vec<Lease> {
    vms.iter()
        .filter_map(|vm| match &vm.role {
            Role::Owner(owner) => Some((vm, &owner.machine)),
            Role::Incoming { machine, .. } => Some((vm, &**machine)),
            Role::Release => None,
        })
        .flat_map(|(vm, machine)| machine.hardware.nics.iter().map(move |nic| (vm, nic)))
        .filter(|(_, nic)| nic.network == *network)
        .filter_map(|(vm, nic)| {
            Some(Lease { mac: nic.mac, address: nic.address?, hostname: vm.name.clone() })
        })
        .collect()
}

fn pools(view: &View, host: &Host<'_>) -> Vec<PoolAssignment> {
    view.pools
        .iter()
        .filter_map(|(name, entry)| {
            let spec = &entry.spec.as_ref()?.value.spec;
            let elsewhere = spec.datacentre.as_ref().is_some_and(|pool| *pool != host.spec.datacentre);
            (!elsewhere).then(|| PoolAssignment {
                name: name.clone(),
                kind: spec.kind.clone(),
                server: server(view, name, &spec.kind),
                exports: exports(view, name, &spec.kind, host),
            })
        })
        .collect()
}

/// Where an `nbd` pool is served.
fn server(view: &View, pool: &Name, kind: &PoolKind) -> Option<SocketAddr> {
    let PoolKind::Nbd { host, .. } = kind else { return None };
    let host = view.host(host)?;
    match host.report?.pools.get(pool)? {
        PoolSeen::Ready { port: Some(port), .. } => {
            Some(SocketAddr::new(host.spec.addresses.for_storage(), *port))
        }
        _ => None,
    }
}

/// One export for each VM that has, or is about to get, a right to the volume: none outlives its epoch.
fn exports(view: &View, pool: &Name, kind: &PoolKind, host: &Host<'_>) -> Vec<Export> {
    if !matches!(kind, PoolKind::Nbd { host: server, .. } if server == host.name) {
        return Vec::new();
    }
    let volumes = view.index.volumes_by_pool.of(pool).filter_map(|name| {
        let entry = view.volumes.get(name)?;
        Some((name, entry.meta()?.uid, entry.decision.as_ref()?))
    });
    let mut exports = Vec::new();
    for (name, uid, volume) in volumes {
        for vm in view.index.vms_by_volume.of(name).filter_map(|vm| view.vm(vm)) {
            exports.extend(epochs_at(view, &vm, volume, pool).into_iter().map(|epoch| Export {
                volume: name.clone(),
                uid,
                format: volume.format,
                image: volume.image.clone(),
                vm: vm.meta.uid,
                epoch,
            }));
        }
    }
    exports
}

/// The epochs under which a copy that may run has its disks open, or is about to: the owner's, and while a migration is
/// under way that of the other side that may become the owner.
fn epochs(view: &View, vm: &Vm<'_>) -> BTreeSet<u64> {
    let Some(decision) = vm.decision() else { return BTreeSet::new() };
    // A VM that is stopped and stays so has no right to its disks; only then can they be grown where they lie.
    if !vm.is_wanted() && !vm.entry.reports.values().any(|row| row.state.has_process()) {
        return BTreeSet::new();
    }
    let owner = decision.opened.unwrap_or(decision.owner.epoch);
    let other = view.migration_of(vm.name).and_then(|(_, _, moving)| match moving.phase {
        Phase::Preparing | Phase::Copying { .. } => Some(moving.next_epoch),
        // The source gets the VM back if the target is lost now.
        Phase::Resuming { .. } => Some(moving.opened.unwrap_or(moving.epoch)),
        _ => None,
    });
    BTreeSet::from_iter(other.into_iter().chain([owner]))
}

/// The same for one of the pools that a volume is in: a copy that arrives is the target's, one that is being left the
/// source's.
fn epochs_at(view: &View, vm: &Vm<'_>, volume: &VolumeDecision, pool: &Name) -> BTreeSet<u64> {
    let all = epochs(view, vm);
    let is = |place: &Option<Location>| place.as_ref().is_some_and(|place| place.pool == *pool);
    let owner = vm.decision().map(|decision| decision.opened.unwrap_or(decision.owner.epoch));
    let is_owners = |epoch: &u64| Some(*epoch) == owner;
    match (volume.is_moving(), volume.pool == *pool) {
        (false, true) => all,
        (true, true) => all.into_iter().filter(is_owners).collect(),
        (true, false) if is(&volume.arriving) || is(&volume.leaving) => {
            all.into_iter().filter(|epoch| !is_owners(epoch)).collect()
        }
        _ => BTreeSet::new(),
    }
}

fn volumes(view: &View, host: &Host<'_>) -> Vec<VolumeAssignment> {
    let here = view.index.volumes_by_host.of(host.name);
    here.filter_map(|name| {
        let entry = view.volumes.get(name)?;
        let object = &entry.spec.as_ref()?.value;
        let decision = entry.decision.as_ref()?;
        let places = purposes(decision).filter(move |(place, _)| place.host == *host.name);
        Some(places.map(move |(place, purpose)| VolumeAssignment {
            name: name.clone(),
            uid: object.meta.uid,
            pool: place.pool,
            format: decision.format,
            size: decision.size,
            image: decision.image.clone(),
            in_use_by: user_here(view, name, host),
            purpose: if object.meta.deleting.is_some() { Purpose::Remove } else { purpose },
        }))
    })
    .flatten()
    .collect()
}

/// What is to be at each place of a volume. Nothing is said of a place that it is leaving: the guest may have to go back.
fn purposes(decision: &VolumeDecision) -> impl Iterator<Item = (Location, Purpose)> + '_ {
    let arriving = decision.arriving.iter().map(|place| (place.clone(), Purpose::Arrive));
    let former = decision.former.iter().map(|place| (place.clone(), Purpose::Shelve));
    std::iter::once((decision.location(), Purpose::Keep)).chain(arriving).chain(former)
}

/// The VM that has this volume open on this host.
fn user_here(view: &View, volume: &Name, host: &Host<'_>) -> Option<uuid::Uuid> {
    let users = view.index.vms_by_volume.of(volume).filter_map(|name| view.vm(name));
    let mut open =
        users.filter(|vm| vm.entry.reports.get(host.name).is_some_and(|row| row.state.has_process()));
    open.next().map(|vm| vm.meta.uid)
}
