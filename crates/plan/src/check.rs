//! Pre-checks of a migration, each with a reason.
//!
//! The hard filters are the same for people's orders, for drains and for placement: see [`may_run`].

use sterna_base::units::Bytes;
use sterna_model::cpu::Baseline;
use sterna_model::host::PoolSeen;
use sterna_model::meta::Name;
use sterna_model::network::NetworkKind;
use sterna_model::vm::{CopyState, Hardware, Nic, NicSpec, Place};

use crate::capacity;
use crate::ha::lease;
use crate::route;
use crate::view::{Host, View, Vm, VmEntry};

/// The baseline of a host's cluster, or why there is none.
pub fn baseline<'a>(view: &'a View, host: &Host<'_>) -> Result<&'a Baseline, String> {
    view.clusters
        .get(&host.spec.cluster)
        .and_then(|entry| entry.decision.as_ref())
        .map(|row| &row.value.baseline)
        .ok_or_else(|| format!("cluster {} has no common CPU model yet", host.spec.cluster))
}

/// Why this host may not take a VM with these needs; `None`: it may.
#[must_use]
pub fn may_run(view: &View, host: &Host<'_>, needs: &Needs<'_>) -> Option<String> {
    unfit(view, host, needs).or_else(|| too_small(view, host, needs))
}

/// The same, however much memory is free.
pub(crate) fn unfit(view: &View, host: &Host<'_>, needs: &Needs<'_>) -> Option<String> {
    if !host.is_connected() {
        return Some("its agent is silent".to_owned());
    }
    if host.meta.deleting.is_some() {
        return Some("it is being removed".to_owned());
    }
    if let Some(why) = lease::refuses_vms(host) {
        return Some(why);
    }
    if host.spec.draining {
        return Some("it is being drained".to_owned());
    }
    if host.spec.cordoned {
        return Some("it is cordoned".to_owned());
    }
    outside(host, needs.place)
        .or_else(|| needs.volumes.iter().find_map(|volume| unreachable_volume(view, host, volume)))
        .or_else(|| needs.networks().find_map(|network| unreachable_network(view, host, network)))
}

/// What a VM asks of any host.
#[derive(Debug, Clone, Copy)]
pub struct Needs<'a> {
    pub place: &'a Place,
    pub memory: Bytes,
    pub volumes: &'a [Name],
    pub nics: Nics<'a>,
    /// Whose needs they are: what is held for it is free for it.
    pub vm: Option<&'a VmEntry>,
}

/// NICs as they are asked for, or as a running VM has them.
#[derive(Debug, Clone, Copy)]
pub enum Nics<'a> {
    Asked(&'a [NicSpec]),
    Given(&'a [Nic]),
}

impl<'a> Needs<'a> {
    #[must_use]
    pub fn of(vm: &Vm<'a>) -> Self {
        Self {
            place: &vm.spec.place,
            memory: vm.spec.memory,
            volumes: &vm.spec.volumes,
            nics: Nics::Asked(&vm.spec.nics),
            vm: Some(vm.entry),
        }
    }

    /// What moves is the machine that runs, not the one that is asked for at its next start.
    #[must_use]
    pub fn running(vm: &Vm<'a>, hardware: &'a Hardware) -> Self {
        let nics = Nics::Given(&hardware.nics);
        // Its volumes can come with it: that is `route`'s.
        Self { memory: hardware.memory, volumes: &[], nics, ..Self::of(vm) }
    }

    fn networks(&self) -> impl Iterator<Item = &'a Name> + use<'a> {
        let (asked, given) = match self.nics {
            Nics::Asked(nics) => (nics, &[][..]),
            Nics::Given(nics) => (&[][..], nics),
        };
        asked.iter().map(|nic| &nic.network).chain(given.iter().map(|nic| &nic.network))
    }
}

fn outside(host: &Host<'_>, place: &Place) -> Option<String> {
    let wrong = |asked: &Option<Name>, has: &Name| asked.as_ref().filter(|asked| *asked != has).cloned();
    if let Some(asked) = wrong(&place.host, host.name) {
        return Some(format!("the VM is pinned to host {asked}"));
    }
    if let Some(asked) = wrong(&place.cluster, &host.spec.cluster) {
        return Some(format!("the VM is pinned to cluster {asked}"));
    }
    wrong(&place.datacentre, &host.spec.datacentre)
        .map(|asked| format!("the VM is pinned to datacentre {asked}"))
}

fn too_small(view: &View, host: &Host<'_>, needs: &Needs<'_>) -> Option<String> {
    let (free, needed) = (capacity::free_for(view, host, needs.vm), capacity::needed(needs.memory));
    (needed > free).then(|| format!("{} of memory needed, {} free", round_mib(needed), round_mib(free)))
}

fn round_mib(bytes: Bytes) -> String {
    format!("{} MiB", bytes.as_u64() >> 20)
}

/// Why this host cannot carry the network.
fn unreachable_network(view: &View, host: &Host<'_>, name: &Name) -> Option<String> {
    let Some((entry, object)) = view.networks.get(name).and_then(|entry| Some((entry, entry.spec.as_ref()?)))
    else {
        return Some(format!("network {name} does not exist"));
    };
    if matches!(object.spec.kind, NetworkKind::Bridge { .. }) {
        return None;
    }
    match &entry.decision {
        None => Some(format!("network {name} is not laid out yet")),
        Some(decision) if !decision.hosts.contains_key(host.name) => {
            Some(format!("network {name} has no free address for it"))
        }
        Some(_) => None,
    }
}

/// Why this host cannot open the volume; a volume that has no place yet can still come here.
pub(crate) fn unreachable_volume(view: &View, host: &Host<'_>, name: &Name) -> Option<String> {
    let Some(volume) = view.volumes.get(name) else {
        return Some(format!("volume {name} does not exist"));
    };
    match &volume.decision {
        Some(decision) => {
            let pool = view.pools.get(&decision.pool).and_then(|entry| entry.spec.as_ref())?;
            if !pool.value.spec.kind.is_shared() && decision.host != *host.name {
                return Some(format!("volume {name} is on the local disk of host {}", decision.host));
            }
            pool_fails(host, &decision.pool)
        }
        None => {
            let asked = volume.spec.as_ref().and_then(|spec| spec.value.spec.pool.clone());
            pool_for(view, host, asked.as_ref()).err()
        }
    }
}

fn pool_fails(host: &Host<'_>, pool: &Name) -> Option<String> {
    match host.report.and_then(|report| report.pools.get(pool)) {
        Some(PoolSeen::Ready { .. }) => None,
        Some(PoolSeen::Failed { why }) => Some(format!("pool {pool} is not usable there: {why}")),
        None => Some(format!("pool {pool} is not reachable there")),
    }
}

/// The pool that a new volume gets on this host: the one asked for, else a default one, shared ones first.
pub fn pool_for(view: &View, host: &Host<'_>, asked: Option<&Name>) -> Result<Name, String> {
    if let Some(asked) = asked {
        return match pool_fails(host, asked) {
            None => Ok(asked.clone()),
            Some(why) => Err(why),
        };
    }
    let here = |pool: &&Name| pool_fails(host, pool).is_none();
    let defaults = |shared: bool| {
        view.pools.iter().filter_map(move |(name, entry)| {
            let spec = &entry.spec.as_ref()?.value.spec;
            (spec.default && spec.kind.is_shared() == shared).then_some(name)
        })
    };
    defaults(true).find(here).or_else(|| defaults(false).find(here)).cloned().ok_or_else(|| {
        let reasons: Vec<_> =
            defaults(true).chain(defaults(false)).filter_map(|pool| pool_fails(host, pool)).collect();
        if reasons.is_empty() { "there is no default pool".to_owned() } else { reasons.join(", ") }
    })
}

/// Whether a running VM can move to `to`: every reason why not.
pub fn migration(view: &View, vm: &Vm<'_>, to: &Name) -> Result<(), Vec<String>> {
    let mut reasons = Vec::new();
    if let Err(why) = can_leave(view, vm) {
        reasons.push(why);
    }
    match view.host(to) {
        None => reasons.push(format!("host {to} does not exist")),
        Some(host) => {
            if let Some(why) = arrive(view, vm, &host) {
                reasons.push(format!("host {to}: {why}"));
            }
        }
    }
    if reasons.is_empty() { Ok(()) } else { Err(reasons) }
}

/// Whether the VM can be moved live at all.
pub fn can_leave(view: &View, vm: &Vm<'_>) -> Result<(), String> {
    if vm.meta.deleting.is_some() {
        return Err("the VM is being deleted".to_owned());
    }
    let Some(decision) = vm.decision() else { return Err("the VM has never been started".to_owned()) };
    let source = &decision.owner.host;
    if !view.host(source).is_some_and(|host| host.is_connected()) {
        return Err(format!("the agent of host {source}, which has the VM, is silent"));
    }
    let running = vm
        .owner_report()
        .is_some_and(|report| matches!(report.state, CopyState::Running | CopyState::Paused { .. }));
    if !running {
        return Err("the VM is not running; a stopped VM starts where it fits".to_owned());
    }
    Ok(())
}

/// Why a running VM cannot arrive at this host.
#[must_use]
pub fn arrive(view: &View, vm: &Vm<'_>, host: &Host<'_>) -> Option<String> {
    let decision = vm.decision()?;
    if decision.owner.host == *host.name {
        return Some("the VM is already there".to_owned());
    }
    may_run(view, host, &Needs::running(vm, &decision.hardware))
        .or_else(|| lacks(host, &decision.hardware))
        .or_else(|| route::route(view, vm, host).err())
}

/// What the host's QEMU or CPU lacks for hardware that is fixed since the VM's start.
fn lacks(host: &Host<'_>, hardware: &Hardware) -> Option<String> {
    let report = host.report?;
    if report.accel != hardware.accel {
        let (has, needs) = (report.accel, hardware.accel);
        return Some(format!("it runs guests with {has:?}, the VM was started with {needs:?}"));
    }
    if !report.cpu.machines.contains(&hardware.machine) {
        return Some(format!("its QEMU {} does not know machine {}", report.qemu_version, hardware.machine));
    }
    match report.cpu.models.get(&hardware.cpu_model) {
        None => Some(format!("its QEMU does not know CPU model {}", hardware.cpu_model)),
        Some(missing) if missing.is_empty() => None,
        Some(missing) => {
            let list: Vec<_> = missing.iter().map(String::as_str).collect();
            Some(format!("its CPU lacks {} of model {}", list.join(", "), hardware.cpu_model))
        }
    }
}
