//! Turns a host and a VM into a start: a new epoch, the hardware, addresses, and places for volumes that have none.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use sterna_base::clock::Timestamp;
use sterna_base::units::Bytes;
use sterna_model::cpu::Accel;
use sterna_model::ha::Takeover;
use sterna_model::key::{Column, Key, Kind};
use sterna_model::meta::Name;
use sterna_model::network::{Cidr, Mac, NetworkKind};
use sterna_model::vm::{Hardware, Nic, NicSpec, Owner, VmDecision};

use crate::action::Action;
use crate::check;
use crate::ha::lease;
use crate::view::{Host, View, Vm};
use crate::volume;

/// Why a VM starts.
#[derive(Debug, Clone)]
pub struct Reason {
    /// The event's word: `placed`, `restarted`.
    pub what: &'static str,
    pub why: String,
    /// Starts after crashes in a row.
    pub restarts: u32,
}

/// The transaction that starts `vm` on `host` under a new epoch.
pub fn start(
    view: &View,
    vm: &Vm<'_>,
    host: &Host<'_>,
    reason: Reason,
    now: Timestamp,
) -> Result<Action, String> {
    started(view, vm, host, (reason, None), now)
}

/// The same for one whose host was lost. What proves that is for the caller to compare.
pub fn take_over(
    view: &View,
    vm: &Vm<'_>,
    host: &Host<'_>,
    (reason, takeover): (Reason, Takeover),
    now: Timestamp,
) -> Result<Action, String> {
    started(view, vm, host, (reason, Some(takeover)), now)
}

fn started(
    view: &View,
    vm: &Vm<'_>,
    host: &Host<'_>,
    (reason, takeover): (Reason, Option<Takeover>),
    now: Timestamp,
) -> Result<Action, String> {
    let hardware = hardware(view, vm, host)?;
    let host_epoch = lease::for_start(view, vm, host);
    let decision = VmDecision {
        owner: Owner { host: host.name.clone(), epoch: vm.next_epoch() },
        continues: None,
        opened: None,
        adopts: None,
        host_epoch,
        takeover,
        hardware,
        power_request: vm.spec.power_request,
        restarts: reason.restarts,
        since: now,
        why: reason.why.clone(),
    };
    let key = vm.key(Column::Decision);
    let mut action = Action::new(now, &key, reason.what, reason.why)
        .put(view, key, &decision)
        .compare(view, vm.key(Column::Spec))
        .compare(view, Key::spec(Kind::Host, host.name));
    if host_epoch.is_some() {
        // Should it have lost the lease since, nothing is started under it.
        action = action.compare(view, Key::decision(Kind::Host, host.name));
    }
    if let Some(before) =
        vm.decision().map(|decision| &decision.owner.host).filter(|host| view.is_removed(host))
    {
        // Its removal stands for its word; should it be back, it speaks for itself.
        action = action.compare(view, Key::spec(Kind::Host, before));
    }
    for holder in vm.entry.reports.keys() {
        // "Not running" is an answer, never a silence: the row that says so must still be the one that was read.
        action = action.compare(view, vm.key(Column::ReportOf(holder.clone())));
    }
    for name in &vm.spec.volumes {
        action = volume::place_with_vm(view, name, host, action)?;
    }
    Ok(action)
}

pub(crate) fn hardware(view: &View, vm: &Vm<'_>, host: &Host<'_>) -> Result<Hardware, String> {
    let baseline = check::baseline(view, host)?;
    let mut nics = Vec::new();
    for (index, asked) in vm.spec.nics.iter().enumerate() {
        nics.push(nic(view, vm, asked, index, &nics)?);
    }
    Ok(Hardware {
        machine: baseline.machine.clone(),
        cpu_model: baseline.cpu_model.clone(),
        accel: baseline.accel,
        cpus: vm.spec.cpus,
        memory: safe_memory(view, host, vm.spec.memory, baseline.accel),
        volumes: vm.spec.volumes.clone(),
        nics,
        watchdog: vm.spec.watchdog,
    })
}

/// QEMU before 9.0 under TCG loses dirty pages in a migration unless the RAM size is no multiple of 256 KiB: where any
/// host of the cluster has one, the guest gets 4 KiB less.
fn safe_memory(view: &View, host: &Host<'_>, asked: Bytes, accel: Accel) -> Bytes {
    let old = view
        .hosts()
        .filter(|other| other.spec.cluster == host.spec.cluster)
        .filter_map(|other| other.report)
        .any(|report| major(&report.qemu_version) < 9);
    let unsafe_size = asked.as_u64().is_multiple_of(256 << 10);
    if accel == Accel::Tcg && old && unsafe_size { Bytes(asked.as_u64() - 4096) } else { asked }
}

fn major(version: &str) -> u32 {
    version.split('.').next().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// MAC and address stay what they were; only what is new is chosen.
fn nic(view: &View, vm: &Vm<'_>, asked: &NicSpec, index: usize, chosen: &[Nic]) -> Result<Nic, String> {
    let before = vm.decision().and_then(|decision| decision.hardware.nics.get(index));
    let before = before.filter(|nic| nic.network == asked.network);
    let mac = asked.mac.or(before.map(|nic| nic.mac)).unwrap_or_else(|| Mac::of(vm.meta.uid, index));
    let network = view
        .networks
        .get(&asked.network)
        .and_then(|entry| entry.spec.as_ref())
        .ok_or_else(|| format!("network {} does not exist", asked.network))?;
    let address = match &network.value.spec.kind {
        NetworkKind::Bridge { .. } => None,
        NetworkKind::Overlay { cidr } => {
            let others = Others { view, vm: vm.name, network: &asked.network, cidr: *cidr, chosen };
            Some(others.address(asked.address, before.and_then(|nic| nic.address))?)
        }
    };
    Ok(Nic { network: asked.network.clone(), mac, address })
}

/// Who else has addresses on an overlay.
struct Others<'a> {
    view: &'a View,
    vm: &'a Name,
    network: &'a Name,
    cidr: Cidr,
    /// Of this VM's NICs before this one.
    chosen: &'a [Nic],
}

impl Others<'_> {
    fn address(&self, asked: Option<Ipv4Addr>, kept: Option<Ipv4Addr>) -> Result<Ipv4Addr, String> {
        let network = self.network;
        if let Some(asked) = asked {
            if !self.cidr.contains(asked) {
                return Err(format!("address {asked} is not in network {network}"));
            }
            return match self.holder(asked) {
                Some(holder) => Err(format!("address {asked} of network {network} belongs to {holder}")),
                None => Ok(asked),
            };
        }
        match kept.filter(|kept| self.cidr.contains(*kept) && self.holder(*kept).is_none()) {
            Some(kept) => Ok(kept),
            None => self.free().ok_or_else(|| format!("network {network} has no free address")),
        }
    }

    /// Who already has it, in words. What is only asked for belongs to nobody yet: the first to start gets it.
    fn holder(&self, address: Ipv4Addr) -> Option<String> {
        let given = self.view.index.given.of(self.network).and_then(|holders| holders.get(&address));
        if let Some(other) = given.into_iter().flatten().find(|other| *other != self.vm) {
            return Some(format!("VM {other}"));
        }
        let laid_out = self.view.networks.get(self.network).and_then(|entry| entry.decision.as_ref());
        let host = laid_out.and_then(|decision| decision.hosts.iter().find(|(_, has)| **has == address));
        if let Some((host, _)) = host {
            return Some(format!("host {host}"));
        }
        let own = self.chosen.iter().any(|nic| nic.network == *self.network && nic.address == Some(address));
        own.then(|| "another NIC of this VM".to_owned())
    }

    fn free(&self) -> Option<Ipv4Addr> {
        let index = &self.view.index;
        let vms = [index.given.of(self.network), index.asked.of(self.network)];
        let own = self.chosen.iter().filter(|nic| nic.network == *self.network).filter_map(|nic| nic.address);
        let hosts = self.view.networks.get(self.network).and_then(|entry| entry.decision.as_ref());
        let hosts = hosts.into_iter().flat_map(|decision| decision.hosts.values().copied());
        let rest: BTreeSet<_> = hosts.chain(own).collect();
        let is_held = |address: &Ipv4Addr| {
            vms.iter().flatten().any(|holders| holders.contains_key(address)) || rest.contains(address)
        };
        self.cidr.usable().find(|address| !is_held(address))
    }
}

/// Every address of an overlay that a host or a VM (also a stopped one) has or asks for.
#[must_use]
pub fn taken_addresses(view: &View, network: &Name) -> BTreeSet<Ipv4Addr> {
    let hosts = view.networks.get(network).and_then(|entry| entry.decision.as_ref());
    let hosts = hosts.into_iter().flat_map(|decision| decision.hosts.values());
    let vms = [view.index.given.of(network), view.index.asked.of(network)];
    hosts.chain(vms.into_iter().flatten().flat_map(BTreeMap::keys)).copied().collect()
}
