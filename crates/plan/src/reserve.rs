//! Room for the VMs of hosts that may be lost.
//!
//! Reads: what clusters keep room for, what runs where, and through `placement`, `check` and `start` every rule that a start
//! obeys: the answer to "where would it go?" is the placement itself, on a view without the lost hosts. Decides nothing:
//! `placement` asks before it starts what was asked for, and people ask what a loss would do.
//! Never asked before a restart (`ha`): the room is kept for those. Never asked before a move (`migration`, `drain`): to
//! refuse one would keep a host that is to be serviced from being emptied.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use sterna_base::clock::Timestamp;
use sterna_base::units::Bytes;
use sterna_model::host::{HostReport, LinkState, PoolSeen};
use sterna_model::key::{Key, Kind};
use sterna_model::loss::{Fate, Loss, Reserve, VmLoss};
use sterna_model::meta::Name;
use sterna_model::pool::PoolKind;
use sterna_model::vm::RestartPolicy;

use crate::action::Action;
use crate::check::{self, Needs};
use crate::placement;
use crate::start::{self, Reason};
use crate::view::{Host, PROVISIONAL, View, Vm};

/// In a cluster of so many hosts the loss of each is looked at.
const EACH_MAX: usize = 64;
/// In a larger one, and for several at once, that of the hosts with most to restart: these are the first to find no room.
const HEAVIEST: usize = 12;

/// How many hosts of a cluster may be lost with room for what ran on them: what was asked for, else one where two hosts
/// reach the same shared pool and could so take each other's VMs, else none.
#[must_use]
pub fn losses(view: &View, cluster: &Name) -> u32 {
    let spec = view.clusters.get(cluster).and_then(|entry| entry.spec.as_ref());
    let Some(spec) = spec else { return 0 };
    spec.value.spec.reserve.unwrap_or_else(|| u32::from(is_mutual(view, cluster)))
}

fn is_mutual(view: &View, cluster: &Name) -> bool {
    let mut shared = view
        .pools
        .iter()
        .filter(|(_, entry)| entry.spec.as_ref().is_some_and(|object| object.value.spec.kind.is_shared()));
    let reaches = |host: &Host<'_>, pool: &Name| {
        host.report.is_some_and(|report| matches!(report.pools.get(pool), Some(PoolSeen::Ready { .. })))
    };
    shared.any(|(pool, _)| {
        view.hosts().filter(|host| host.spec.cluster == *cluster && reaches(host, pool)).nth(1).is_some()
    })
}

/// What would become of everything that runs on these hosts if they were lost together.
#[must_use]
pub fn after_loss(view: &View, lost: &BTreeSet<Name>, now: Timestamp) -> Loss {
    let mut seen = without(view, lost);
    let vms = queue(view, lost).into_iter().filter_map(|name| {
        let (loss, start) = restart(&seen, view.vm(&name)?, lost, now)?;
        if let Some(start) = start {
            start.apply(&mut seen);
        }
        Some(loss)
    });
    let vms = vms.collect();
    let clusters: BTreeSet<_> =
        lost.iter().filter_map(|host| view.host(host)).map(|host| host.spec.cluster.clone()).collect();
    let reserve = |cluster| Reserve { losses: losses(view, &cluster), cluster };
    Loss { hosts: lost.iter().cloned().collect(), reserves: clusters.into_iter().map(reserve).collect(), vms }
}

/// What runs, or is ordered to run, on the lost hosts: the most important first, of those the largest, which are hardest to
/// place.
fn queue(view: &View, lost: &BTreeSet<Name>) -> Vec<Name> {
    let mut vms: Vec<_> = lost
        .iter()
        .flat_map(|host| view.vms_on(host).filter(move |vm| is_owner(vm, host) && vm.is_wanted()))
        .map(|vm| (Reverse(vm.spec.priority), Reverse(memory(&vm)), vm.name.clone()))
        .collect();
    vms.sort();
    vms.into_iter().map(|(_, _, name)| name).collect()
}

fn is_owner(vm: &Vm<'_>, host: &Name) -> bool {
    vm.decision().is_some_and(|decision| decision.owner.host == *host)
}

fn memory(vm: &Vm<'_>) -> Bytes {
    vm.decision().map_or(vm.spec.memory, |decision| decision.hardware.memory)
}

/// What becomes of one VM, and the start that shows it.
fn restart(
    seen: &View,
    vm: Vm<'_>,
    lost: &BTreeSet<Name>,
    now: Timestamp,
) -> Option<(VmLoss, Option<Action>)> {
    let from = vm.decision()?.owner.host.clone();
    let (fate, start) = if vm.spec.restart == RestartPolicy::Never {
        (Fate::Stays { why: "it is not to be started again by itself (restart: never)".to_owned() }, None)
    } else {
        match begin(seen, vm.name, lost, now) {
            Ok((host, why, start)) => (Fate::Restarts { host, why }, Some(start)),
            Err(why) if could_but_for_room(seen, vm.name) => (Fate::LacksRoom { why }, None),
            Err(why) => (Fate::Stays { why }, None),
        }
    };
    let (priority, memory) = (vm.spec.priority, memory(&vm));
    Some((VmLoss { vm: vm.name.clone(), from, priority, memory, fate }, start))
}

fn begin(
    seen: &View,
    name: &Name,
    lost: &BTreeSet<Name>,
    now: Timestamp,
) -> Result<(Name, String, Action), String> {
    let vm = seen.vm(name).ok_or("a part of it cannot be read")?;
    let not = lost.first().filter(|_| lost.len() == 1);
    let (host, why) = placement::choose_start(seen, &Needs::of(&vm), not)?;
    let to = seen.host(&host).ok_or("the host is gone")?;
    let reason = Reason { what: "restarted", why: why.clone(), restarts: 0 };
    let start = start::start(seen, &vm, &to, reason, now)?;
    Ok((host, why, start))
}

/// Some host could take it if it were larger.
fn could_but_for_room(seen: &View, name: &Name) -> bool {
    let Some(vm) = seen.vm(name) else { return false };
    let needs = Needs::of(&vm);
    seen.hosts().any(|host| check::unfit(seen, &host, &needs).is_none())
}

/// The view as it is once these hosts are gone, with the pools that they serve.
fn without(view: &View, lost: &BTreeSet<Name>) -> View {
    let mut seen = view.clone();
    let served: Vec<(&Name, &Name)> = view
        .pools
        .iter()
        .filter_map(|(pool, entry)| match &entry.spec.as_ref()?.value.spec.kind {
            PoolKind::Nbd { host, .. } if lost.contains(host) => Some((pool, host)),
            _ => None,
        })
        .collect();
    for host in view.hosts() {
        let Some(report) = host.report else { continue };
        let after = if lost.contains(host.name) {
            HostReport { link: LinkState::Silent, ..report.clone() }
        } else if served.is_empty() {
            continue;
        } else {
            let mut after = report.clone();
            for (pool, server) in &served {
                let why = format!("host {server}, which serves it, is lost");
                after.pools.insert((*pool).clone(), PoolSeen::Failed { why });
            }
            after
        };
        let row = serde_json::to_vec(&after).expect("model types are plain data");
        seen.apply(&Key::report(Kind::Host, host.name).to_string(), Some(&row), PROVISIONAL);
    }
    seen
}

/// Why a VM that is asked to start here would leave too little room for what a loss leaves behind; `None`: it would not.
pub(crate) fn refusal(view: &View, vm: &Vm<'_>, host: &Host<'_>, now: Timestamp) -> Option<String> {
    let cluster = &host.spec.cluster;
    let losses = losses(view, cluster) as usize;
    if losses == 0 {
        return None;
    }
    let reason = Reason { what: "placed", why: String::new(), restarts: 0 };
    let mut after = view.clone();
    start::start(view, vm, host, reason, now).ok()?.apply(&mut after);
    let (lost, first, why) = sets(&after, host, losses).into_iter().find_map(|lost| {
        let without_room = homeless(&after, &lost, now);
        let (first, why) = without_room.first()?.clone();
        // What had no room before is not this start's fault.
        (without_room.len() > homeless(view, &lost, now).len()).then_some((lost, first, why))
    })?;
    let lost: Vec<_> = lost.iter().map(Name::as_str).collect();
    let plural = if losses == 1 { "" } else { "s" };
    Some(format!(
        "after a loss of {} VM {first} would have no room ({why}); cluster {cluster} keeps room for {losses} lost \
         host{plural}",
        lost.join(" and "),
    ))
}

fn homeless(view: &View, lost: &BTreeSet<Name>, now: Timestamp) -> Vec<(Name, String)> {
    let vms = after_loss(view, lost, now).vms.into_iter();
    vms.filter_map(|loss| match loss.fate {
        Fate::LacksRoom { why } => Some((loss.vm, why)),
        _ => None,
    })
    .collect()
}

/// The losses to look at when this host gets one more VM.
fn sets(view: &View, host: &Host<'_>, losses: usize) -> Vec<BTreeSet<Name>> {
    let mut hosts: Vec<_> = view
        .hosts()
        .filter(|other| other.spec.cluster == host.spec.cluster)
        .map(|other| {
            (other.name != host.name, Reverse(view.index.load(other.name).memory), other.name.clone())
        })
        .collect();
    hosts.sort();
    let mut names: Vec<Name> = hosts.into_iter().map(|(_, _, name)| name).collect();
    let most = if losses == 1 && names.len() <= EACH_MAX { EACH_MAX } else { HEAVIEST.max(losses) };
    names.truncate(most);
    match losses.min(names.len()) {
        0 => Vec::new(),
        1 => names.into_iter().map(|name| BTreeSet::from([name])).collect(),
        2 => pairs(&names),
        many => vec![names.into_iter().take(many).collect()],
    }
}

fn pairs(names: &[Name]) -> Vec<BTreeSet<Name>> {
    let with_later = |(index, name): (usize, &Name)| {
        let name = name.clone();
        names[index + 1..]
            .iter()
            .map(move |later| BTreeSet::from([name.clone(), later.clone()]))
            .collect::<Vec<_>>()
    };
    names.iter().enumerate().flat_map(with_later).collect()
}
