//! What planners look up by something else than a name, kept up with every change of the view.
//!
//! Each object's columns are turned into facts before and after a change; only facts that differ are moved. So the index
//! is a pure function of the tables, however they came about. Objects that cannot be read count as far as they can be:
//! a VM with a torn row still has its memory and its addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use sterna_model::meta::Name;
use sterna_model::migration::Phase;

use super::{MigrationEntry, VmEntry, VolumeEntry};
use crate::capacity;

/// Names by something that they have in common. A clone costs one pointer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Groups(Arc<BTreeMap<Name, Arc<BTreeSet<Name>>>>);

impl Groups {
    pub fn of(&self, group: &Name) -> impl Iterator<Item = &Name> + use<'_> {
        self.0.get(group).into_iter().flat_map(|members| members.iter())
    }

    fn add(&mut self, group: &Name, member: &Name) {
        let groups = Arc::make_mut(&mut self.0);
        Arc::make_mut(groups.entry(group.clone()).or_default()).insert(member.clone());
    }

    fn take(&mut self, group: &Name, member: &Name) {
        let groups = Arc::make_mut(&mut self.0);
        let Some(members) = groups.get_mut(group) else { return };
        let members = Arc::make_mut(members);
        members.remove(member);
        if members.is_empty() {
            groups.remove(group);
        }
    }
}

type Holders = BTreeMap<Ipv4Addr, BTreeSet<Name>>;

/// The VMs that have an address, by network. A clone costs one pointer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Addresses(Arc<BTreeMap<Name, Arc<Holders>>>);

impl Addresses {
    pub fn of(&self, network: &Name) -> Option<&Holders> {
        self.0.get(network).map(|holders| &**holders)
    }

    fn add(&mut self, (network, address): &(Name, Ipv4Addr), vm: &Name) {
        let networks = Arc::make_mut(&mut self.0);
        let holders = Arc::make_mut(networks.entry(network.clone()).or_default());
        holders.entry(*address).or_default().insert(vm.clone());
    }

    fn take(&mut self, (network, address): &(Name, Ipv4Addr), vm: &Name) {
        let networks = Arc::make_mut(&mut self.0);
        let Some(holders) = networks.get_mut(network).map(Arc::make_mut) else { return };
        if let Some(vms) = holders.get_mut(address) {
            vms.remove(vm);
            if vms.is_empty() {
                holders.remove(address);
            }
        }
        if holders.is_empty() {
            networks.remove(network);
        }
    }
}

/// What the VMs on a host amount to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Load {
    /// Bytes.
    pub memory: u64,
    /// VMs that it owns.
    pub owned: usize,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Index {
    /// By host: VMs that it owns or has reported a copy of.
    pub vms_by_host: Groups,
    /// By volume: VMs whose hardware has it.
    pub vms_by_volume: Groups,
    /// By host: volumes that are there, arrive, leave, or have been there.
    pub volumes_by_host: Groups,
    /// By pool, likewise.
    pub volumes_by_pool: Groups,
    /// By VM: volumes that came with it.
    pub volumes_by_vm: Groups,
    /// By VM: all its migrations, with those that have ended.
    pub migrations_by_vm: Groups,
    /// By host: migrations from or to it that have begun and not ended.
    pub migrations_by_host: Groups,
    /// Asked for and not ended.
    pub open_migrations: Arc<BTreeSet<Name>>,
    /// Addresses that VMs were given.
    pub given: Addresses,
    /// Addresses that VMs ask for.
    pub asked: Addresses,
    load: Arc<BTreeMap<Name, Load>>,
}

impl Index {
    pub fn load(&self, host: &Name) -> Load {
        self.load.get(host).copied().unwrap_or_default()
    }

    pub fn move_vm(&mut self, name: &Name, before: &VmFacts, after: &VmFacts) {
        if before == after {
            return;
        }
        differ(&before.hosts, &after.hosts, &mut self.vms_by_host, |groups, host, is| {
            groups.set(host, name, is)
        });
        differ(&before.volumes, &after.volumes, &mut self.vms_by_volume, |groups, volume, is| {
            groups.set(volume, name, is);
        });
        differ(&before.given, &after.given, &mut self.given, |given, at, is| given.set(at, name, is));
        differ(&before.asked, &after.asked, &mut self.asked, |asked, at, is| asked.set(at, name, is));
        if before.load != after.load {
            let load = Arc::make_mut(&mut self.load);
            for (host, part) in &before.load {
                let sum = load.entry(host.clone()).or_default();
                *sum = Load { memory: sum.memory - part.memory, owned: sum.owned - part.owned };
            }
            for (host, part) in &after.load {
                let sum = load.entry(host.clone()).or_default();
                *sum = Load { memory: sum.memory + part.memory, owned: sum.owned + part.owned };
            }
            load.retain(|_, sum| *sum != Load::default());
        }
    }

    pub fn move_volume(&mut self, name: &Name, before: &VolumeFacts, after: &VolumeFacts) {
        let pairs = [
            (&before.host, &after.host, &mut self.volumes_by_host),
            (&before.pool, &after.pool, &mut self.volumes_by_pool),
            (&before.vm, &after.vm, &mut self.volumes_by_vm),
        ];
        for (before, after, groups) in pairs {
            differ(before, after, groups, |groups, group, is| groups.set(group, name, is));
        }
    }

    pub fn move_migration(&mut self, name: &Name, before: &MigrationFacts, after: &MigrationFacts) {
        differ(&before.vm, &after.vm, &mut self.migrations_by_vm, |groups, vm, is| groups.set(vm, name, is));
        differ(&before.hosts, &after.hosts, &mut self.migrations_by_host, |groups, host, is| {
            groups.set(host, name, is);
        });
        if before.is_open != after.is_open {
            let open = Arc::make_mut(&mut self.open_migrations);
            if after.is_open {
                open.insert(name.clone())
            } else {
                open.remove(name)
            };
        }
    }
}

impl Groups {
    fn set(&mut self, group: &Name, member: &Name, is: bool) {
        if is { self.add(group, member) } else { self.take(group, member) }
    }
}

impl Addresses {
    fn set(&mut self, at: &(Name, Ipv4Addr), vm: &Name, is: bool) {
        if is { self.add(at, vm) } else { self.take(at, vm) }
    }
}

/// Calls `set` for what is no more, then for what is new.
fn differ<T: Ord, I>(
    before: &BTreeSet<T>,
    after: &BTreeSet<T>,
    index: &mut I,
    set: impl Fn(&mut I, &T, bool),
) {
    before.difference(after).for_each(|fact| set(index, fact, false));
    after.difference(before).for_each(|fact| set(index, fact, true));
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct VmFacts {
    hosts: BTreeSet<Name>,
    volumes: BTreeSet<Name>,
    given: BTreeSet<(Name, Ipv4Addr)>,
    asked: BTreeSet<(Name, Ipv4Addr)>,
    load: BTreeMap<Name, Load>,
}

impl VmFacts {
    pub fn of(entry: Option<&VmEntry>) -> Self {
        let Some(entry) = entry else { return Self::default() };
        let decision = entry.decision.as_ref();
        let owner = decision.map(|decision| &decision.owner.host);
        let hosts: BTreeSet<Name> = entry.reports.keys().chain(owner).cloned().collect();
        let load = hosts.iter().map(|host| {
            let owned = usize::from(owner == Some(host));
            (host.clone(), Load { memory: capacity::share(entry, host).as_u64(), owned })
        });
        let given = decision.into_iter().flat_map(|decision| &decision.hardware.nics);
        let asked = entry.spec.iter().flat_map(|object| &object.spec.nics);
        Self {
            load: load.collect(),
            volumes: decision
                .map(|decision| decision.hardware.volumes.iter().cloned().collect())
                .unwrap_or_default(),
            given: given.filter_map(|nic| Some((nic.network.clone(), nic.address?))).collect(),
            asked: asked.filter_map(|nic| Some((nic.network.clone(), nic.address?))).collect(),
            hosts,
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct VolumeFacts {
    host: BTreeSet<Name>,
    pool: BTreeSet<Name>,
    vm: BTreeSet<Name>,
}

impl VolumeFacts {
    pub fn of(entry: Option<&VolumeEntry>) -> Self {
        let Some(entry) = entry else { return Self::default() };
        let locations = || entry.decision.iter().flat_map(|decision| decision.locations());
        Self {
            host: locations().map(|place| place.host).collect(),
            pool: locations().map(|place| place.pool).collect(),
            vm: entry.spec.as_ref().and_then(|object| object.spec.vm.clone()).into_iter().collect(),
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct MigrationFacts {
    vm: BTreeSet<Name>,
    hosts: BTreeSet<Name>,
    is_open: bool,
}

impl MigrationFacts {
    pub fn of(entry: Option<&MigrationEntry>) -> Self {
        let Some((entry, object)) = entry.and_then(|entry| Some((entry, entry.spec.as_ref()?))) else {
            return Self::default();
        };
        let decision = entry.decision.as_ref();
        let has_ended = decision.is_some_and(|decision| decision.phase.has_ended());
        let begun = decision.filter(|decision| !has_ended && decision.phase != Phase::Pending);
        let hosts = begun.into_iter().flat_map(|decision| [&decision.source, &decision.target]);
        Self {
            vm: BTreeSet::from([object.spec.vm.clone()]),
            hosts: hosts.flatten().cloned().collect(),
            is_open: !has_ended,
        }
    }
}
