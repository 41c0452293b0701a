//! What may be asked of a VM, and what a change changes.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use sterna_base::units::Span;
use sterna_model::error::Code;
use sterna_model::ha::{Ha, Isolation, VOTERS_MIN};
use sterna_model::meta::{Name, Object};
use sterna_model::network::NetworkKind;
use sterna_model::vm::{
    CPUS_MAX, CloudInit, MEMORY_MAX, MEMORY_MIN, NICS_MAX, NicSpec, USER_DATA_MAX, VOLUMES_MAX, VmSpec,
};
use sterna_plan::View;
use sterna_plan::ha::{lease, power, voters};
use sterna_plan::view::Host;
use sterna_store::Txn;

use crate::error::{Answer, refuse};
use crate::routes::vm::health;
use crate::shown::{Clusters, Datacentres, Hosts, Networks, Volumes};
use crate::write::refer;

/// A guest that does not shut down within this does not shut down.
const SHUTDOWN_MAX: Span = Span::from_secs(3600);

/// Every limit and every reference of a spec; adds to the transaction that the references still exist.
pub fn spec(view: &View, name: Option<&Name>, spec: &VmSpec, mut txn: Txn) -> Answer<Txn> {
    numbers(spec)?;
    health::checks(view, spec)?;
    spec.cloud_init.as_ref().map_or(Ok(()), cloud_init)?;
    if let Some(host) = &spec.place.host {
        txn = refer::<Hosts>(view, txn, host)?;
    }
    if let Some(cluster) = &spec.place.cluster {
        txn = refer::<Clusters>(view, txn, cluster)?;
    }
    if let Some(datacentre) = &spec.place.datacentre {
        txn = refer::<Datacentres>(view, txn, datacentre)?;
    }
    txn = volumes(view, name, spec, txn)?;
    protection(view, spec)?;
    nics(view, name, spec, txn)
}

/// Asked for in words, it is promised: then it must be possible.
fn protection(view: &View, spec: &VmSpec) -> Answer<()> {
    if spec.ha != Some(Ha::On) {
        return Ok(());
    }
    // A volume that is made with the VM is not there yet; where it goes is seen at the start.
    let known = spec.volumes.iter().filter(|volume| view.volumes.contains_key(*volume)).cloned().collect();
    let kept = || {
        let asked = spec.place.datacentre.as_ref();
        let inside = |host: &Host<'_>| asked.is_none_or(|asked| *asked == host.spec.datacentre);
        let is_kept = spec.isolation == Some(Isolation::Keep);
        let has_device = view.hosts().filter(inside).any(|host| power::works(&host));
        (is_kept && !has_device)
            .then(|| "`isolation` is keep, and no host has a fence device that answers".to_owned())
    };
    if let Some(why) = lease::bound(view, &VmSpec { volumes: known, ..spec.clone() }).or_else(kept) {
        return Err(refuse(Code::Unmet, format!("the VM could not be started elsewhere: {why}"))
            .hint("leave `ha` away, and it is protected as far as it can be"));
    }
    let asked = spec.place.datacentre.as_ref();
    let sites = view.datacentres.keys().filter(|site| asked.is_none_or(|asked| asked == *site));
    let most = sites.map(|site| (voters::count(view, site), site)).max();
    match most {
        Some((count, site)) if count < VOTERS_MIN => Err(refuse(
            Code::Unmet,
            format!(
                "datacentre {site} has {count} of the {VOTERS_MIN} voters that a lease takes: when a host there is lost, \
                 nothing that was on it is started elsewhere"
            ),
        )
        .hint("every host with a guard votes, and the guard beside the server")),
        _ => Ok(()),
    }
}

fn numbers(spec: &VmSpec) -> Answer<()> {
    let invalid = |message: String, hint: String| Err(refuse(Code::Invalid, message).hint(hint));
    if !(1..=CPUS_MAX).contains(&spec.cpus) {
        return invalid(format!("cpus {} is not allowed", spec.cpus), format!("use 1 to {CPUS_MAX}"));
    }
    if !(MEMORY_MIN..=MEMORY_MAX).contains(&spec.memory) {
        let message = format!("memory {} is not allowed", spec.memory);
        return invalid(message, format!("use {MEMORY_MIN} to {MEMORY_MAX}"));
    }
    if !spec.memory.as_u64().is_multiple_of(4096) {
        return invalid(
            format!("memory {} is no whole number of pages", spec.memory),
            "use MiB or GiB".to_owned(),
        );
    }
    if spec.volumes.len() + usize::from(spec.image.is_some() && spec.power_request == 1) > VOLUMES_MAX {
        return invalid(
            format!("{} volumes are too many", spec.volumes.len()),
            format!("at most {VOLUMES_MAX}"),
        );
    }
    if spec.nics.len() > NICS_MAX {
        return invalid(format!("{} NICs are too many", spec.nics.len()), format!("at most {NICS_MAX}"));
    }
    if spec.shutdown_timeout > SHUTDOWN_MAX {
        let message = format!("shutdown_timeout {} is too long", spec.shutdown_timeout);
        return invalid(message, format!("at most {SHUTDOWN_MAX}"));
    }
    Ok(())
}

fn cloud_init(data: &CloudInit) -> Answer<()> {
    let texts = [("user_data", &data.user_data), ("network_config", &data.network_config)];
    for (field, text) in texts {
        let length = text.as_ref().map_or(0, String::len);
        if length > USER_DATA_MAX {
            let message = format!("cloud_init.{field} has {length} bytes; {USER_DATA_MAX} are allowed");
            return Err(refuse(Code::Invalid, message));
        }
        if text.as_ref().is_some_and(|text| text.contains('\0')) {
            return Err(refuse(Code::Invalid, format!("cloud_init.{field} contains a NUL byte")));
        }
    }
    Ok(())
}

fn volumes(view: &View, name: Option<&Name>, spec: &VmSpec, mut txn: Txn) -> Answer<Txn> {
    let mut seen = BTreeSet::new();
    for volume in &spec.volumes {
        if !seen.insert(volume) {
            return Err(refuse(Code::Invalid, format!("volume {volume} is named twice")));
        }
        txn = refer::<Volumes>(view, txn, volume)?;
        let other = view.vms.iter().find(|(vm, entry)| {
            Some(*vm) != name
                && entry.spec.as_ref().is_some_and(|row| row.value.spec.volumes.contains(volume))
        });
        if let Some((vm, _)) = other {
            return Err(refuse(Code::InUse, format!("volume {volume} belongs to vm {vm}"))
                .hint("one volume, one VM: two writers would destroy it"));
        }
    }
    Ok(txn)
}

fn nics(view: &View, name: Option<&Name>, spec: &VmSpec, mut txn: Txn) -> Answer<Txn> {
    let (mut macs, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    for nic in &spec.nics {
        txn = refer::<Networks>(view, txn, &nic.network)?;
        address_fits(view, nic)?;
        if nic.mac.is_some_and(|mac| !macs.insert(mac))
            || nic.address.is_some_and(|at| !addresses.insert((&nic.network, at)))
        {
            return Err(refuse(Code::Invalid, "two NICs have the same MAC or address"));
        }
    }
    for (vm, entry) in &view.vms {
        let Some(row) = entry.spec.as_ref().filter(|_| Some(vm) != name) else { continue };
        for nic in &row.value.spec.nics {
            if nic.mac.is_some_and(|mac| macs.contains(&mac)) {
                return Err(refuse(Code::InUse, format!("vm {vm} has the same MAC")));
            }
            if nic.address.is_some_and(|at| addresses.contains(&(&nic.network, at))) {
                return Err(refuse(Code::InUse, format!("vm {vm} has the same address")));
            }
        }
    }
    Ok(txn)
}

fn address_fits(view: &View, nic: &NicSpec) -> Answer<()> {
    let Some(address) = nic.address else { return Ok(()) };
    let network = view.networks.get(&nic.network);
    let kind = network.and_then(|entry| entry.spec.as_ref()).map(|row| &row.value.spec.kind);
    let Some(NetworkKind::Overlay { cidr }) = kind else {
        return Err(refuse(Code::Invalid, format!("network {} hands out no addresses", nic.network))
            .hint("leave `address` out; the guest gets one from outside"));
    };
    let last = cidr.usable().next_back().map_or(0, Ipv4Addr::to_bits);
    let usable = cidr.gateway().to_bits() + 1..=last;
    if !usable.contains(&address.to_bits()) {
        return Err(refuse(Code::Invalid, format!("address {address} cannot be handed out in {cidr}")));
    }
    let decision = network.and_then(|entry| entry.decision.as_ref());
    let host = decision.and_then(|row| row.hosts.iter().find(|(_, has)| **has == address));
    match host {
        Some((host, _)) => {
            Err(refuse(Code::InUse, format!("host {host} has address {address} on network {}", nic.network)))
        }
        None => Ok(()),
    }
}

/// Counters belong to the server.
pub fn begins_at_zero(spec: &VmSpec) -> Answer<()> {
    if spec.power_request != 0 || spec.reset_request != 0 {
        return Err(refuse(Code::Invalid, "power_request and reset_request are counted by the server")
            .hint("leave them out; use start, stop and reset"));
    }
    Ok(())
}

/// What a change of the spec must leave alone; a changed `power` counts as a request to start or stop.
pub fn keeps(old: &VmSpec, new: &mut VmSpec) -> Answer<()> {
    if new.image != old.image {
        return Err(refuse(
            Code::Invalid,
            "the image of a VM does not change: its boot volume was made from it",
        )
        .hint("create another VM, or add a volume"));
    }
    if new.power_request != old.power_request || new.reset_request != old.reset_request {
        return Err(refuse(Code::Invalid, "power_request and reset_request are counted by the server")
            .hint("use start, stop and reset"));
    }
    if new.power.wants_process() != old.power.wants_process() {
        new.power_request += 1;
    }
    Ok(())
}

/// What changed, in words; true: a running guest sees it after its next start.
pub fn differences(old: &Object<VmSpec>, new: &Object<VmSpec>) -> Vec<(bool, String)> {
    let (was, is) = (&old.spec, &new.spec);
    let changes = [
        (was.cpus != is.cpus, true, format!("cpus {} -> {}", was.cpus, is.cpus)),
        (was.memory != is.memory, true, format!("memory {} -> {}", was.memory, is.memory)),
        (was.volumes != is.volumes, true, "volumes changed".to_owned()),
        (was.nics != is.nics, true, "nics changed".to_owned()),
        (was.cloud_init != is.cloud_init, true, "cloud_init changed".to_owned()),
        (was.power != is.power, false, format!("power {:?} -> {:?}", was.power, is.power).to_lowercase()),
        (was.place != is.place, false, "place changed".to_owned()),
        (was.restart != is.restart, false, "restart changed".to_owned()),
        (was.on_panic != is.on_panic, false, "on_panic changed".to_owned()),
        (was.on_hang != is.on_hang, false, "on_hang changed".to_owned()),
        (was.watchdog != is.watchdog, true, format!("watchdog {} -> {}", was.watchdog, is.watchdog)),
        (was.checks != is.checks, false, "checks changed".to_owned()),
        (
            was.priority != is.priority,
            false,
            format!("priority {} -> {}", was.priority.word(), is.priority.word()),
        ),
        (was.ha != is.ha, false, "ha changed".to_owned()),
        (was.isolation != is.isolation, true, "isolation changed".to_owned()),
        (
            was.shutdown_timeout != is.shutdown_timeout,
            false,
            format!("shutdown_timeout {} -> {}", was.shutdown_timeout, is.shutdown_timeout),
        ),
        (old.meta.labels != new.meta.labels, false, "labels changed".to_owned()),
        (old.meta.notes != new.meta.notes, false, "notes changed".to_owned()),
    ];
    changes
        .into_iter()
        .filter(|(changed, ..)| *changed)
        .map(|(_, needs_start, words)| (needs_start, words))
        .collect()
}
