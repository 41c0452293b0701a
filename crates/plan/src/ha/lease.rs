//! Which VMs live under their host's lease, and which hosts have one.
//!
//! Reads: what guards say through their agents, specs of VMs, reports of copies. Decides: a host's epoch when its guard asks for
//! one, and under which epoch a copy is known to live.
//! A VM may be taken from a host by proof only under an epoch that was written down after that host's guard had the copy.

use sterna_base::clock::Timestamp;
use sterna_model::ha::{GuardSeen, Ha, HaState, HostDecision, Isolation, VOTERS_MIN, VoterDecision};
use sterna_model::key::{Column, Key, Kind};
use sterna_model::meta::Name;
use sterna_model::pool::PoolKind;
use sterna_model::vm::{RestartPolicy, VmDecision, VmSpec};
use sterna_wire::assignment::{GuardOrder, Joined};

use crate::action::Action;
use crate::check;
use crate::ha::power;
use crate::view::{Host, Row, View, Vm};

#[must_use]
pub fn plan(view: &View, now: Timestamp) -> Vec<Action> {
    let hosts = view.hosts().filter_map(|host| {
        join(view, &host, now)
            .or_else(|| returned(view, &host, now))
            .or_else(|| confirmed(view, &host, now))
            .or_else(|| out_of_quarantine(view, &host, now))
    });
    let vms = view.vms().filter_map(|vm| cover(view, &vm, now));
    hosts.chain(vms).collect()
}

/// Who grants leases where this host is.
#[must_use]
pub fn voters_of<'a>(view: &'a View, host: &Host<'_>) -> Option<&'a Row<VoterDecision>> {
    view.datacentres.get(&host.spec.datacentre)?.decision.as_ref()
}

/// The epoch of the lease that the host holds, with something that resets it should its guard fail.
#[must_use]
pub fn held(host: &Host<'_>) -> Option<u64> {
    let decision = host.decision.filter(|decision| decision.state == HaState::Up)?;
    let guard = host.report?.guard.as_ref()?;
    (is_reset(guard) && guard.lease.held() == Some(decision.epoch)).then_some(decision.epoch)
}

/// Whether something resets the host should its guard fail.
fn is_reset(guard: &GuardSeen) -> bool {
    guard.watchdog != "none" && guard.trouble.is_none()
}

/// What would prove that the host's VMs may be started elsewhere; empty: nothing would.
#[must_use]
pub fn protected_by(host: &Host<'_>) -> Vec<&'static str> {
    // Only the end of a lease makes anybody ask the device.
    if held(host).is_none() {
        return Vec::new();
    }
    let device = power::works(host).then_some("F2");
    device.into_iter().chain(["F3"]).collect()
}

/// Why a host gets no VMs because of its lease.
#[must_use]
pub fn refuses_vms(host: &Host<'_>) -> Option<String> {
    let decision = host.decision?;
    match decision.state {
        HaState::Suspect => Some("its voters do not hear it".to_owned()),
        HaState::Fencing => Some("its lease is being ended".to_owned()),
        HaState::Fenced => Some("it was lost".to_owned()),
        HaState::Left | HaState::Up => decision
            .quarantined_until
            .map(|until| format!("it was lost too often and gets no VMs until {until}")),
    }
}

/// Whether a VM is to live, and to die, under this host's lease, so that it can be started elsewhere.
#[must_use]
pub fn wants(view: &View, vm: &Vm<'_>, host: &Host<'_>) -> bool {
    bound(view, vm.spec).is_none() && isolation(vm.spec, host) == Isolation::Kill
}

/// What becomes of the VM when this host has lost its lease. Not asked for, it is kept only where something tells that the host is
/// off even when it has no power: nothing but the lease would otherwise.
#[must_use]
pub fn isolation(spec: &VmSpec, host: &Host<'_>) -> Isolation {
    let default = if power::works_without_power(host) { Isolation::Keep } else { Isolation::Kill };
    spec.isolation.unwrap_or(default)
}

/// Why a VM of this host is not started elsewhere when the host is lost.
#[must_use]
pub fn obstacle(view: &View, spec: &VmSpec, host: &Host<'_>) -> Option<String> {
    bound(view, spec).or_else(|| {
        let is_kept = isolation(spec, host) == Isolation::Keep && !power::works(host);
        is_kept.then(|| match power::failure(host) {
            Some(why) => {
                format!("`isolation` is keep, and the fence device of host {} fails: {why}", host.name)
            }
            None => format!(
                "`isolation` is keep: it outlives its host's lease, and host {} has no fence device",
                host.name
            ),
        })
    })
}

/// Why a VM is not started elsewhere, whichever host is lost.
#[must_use]
pub fn bound(view: &View, spec: &VmSpec) -> Option<String> {
    if spec.ha == Some(Ha::Off) {
        return Some("`ha` is off".to_owned());
    }
    if spec.restart == RestartPolicy::Never {
        return Some("its restart policy is never".to_owned());
    }
    if let Some(host) = &spec.place.host {
        return Some(format!("it is pinned to host {host}"));
    }
    let local = spec.volumes.iter().find(|volume| !may_be_elsewhere(view, volume))?;
    Some(format!("volume {local} is on the local disk of one host"))
}

/// In a pool that other hosts reach. One that has no place yet goes where its VM starts: asked is what tells.
fn may_be_elsewhere(view: &View, volume: &Name) -> bool {
    let Some(entry) = view.volumes.get(volume) else { return false };
    let asked = || entry.spec.as_ref().and_then(|row| row.value.spec.pool.clone());
    let pool = entry.decision.as_ref().map(|row| row.pool.clone()).or_else(asked);
    let kind = |name: &Name| Some(&view.pools.get(name)?.spec.as_ref()?.value.spec.kind);
    match pool {
        Some(pool) => kind(&pool).is_some_and(PoolKind::is_shared),
        None => false,
    }
}

/// The lease that a new copy on this host is started under.
#[must_use]
pub fn for_start(view: &View, vm: &Vm<'_>, host: &Host<'_>) -> Option<u64> {
    let epoch = held(host)?;
    let unplaced = |volume: &&Name| view.volumes.get(*volume).is_some_and(|entry| entry.decision.is_none());
    let goes_local = vm.spec.volumes.iter().filter(unplaced).any(|volume| {
        let asked = view.volumes.get(volume).and_then(|entry| entry.spec.as_ref()?.value.spec.pool.clone());
        let pool = check::pool_for(view, host, asked.as_ref()).ok();
        let spec = pool.and_then(|pool| view.pools.get(&pool)?.spec.as_ref());
        !spec.is_some_and(|row| row.value.spec.kind.is_shared())
    });
    let placed = VmSpec {
        volumes: vm.spec.volumes.iter().filter(|volume| !unplaced(volume)).cloned().collect(),
        ..vm.spec.clone()
    };
    let is_free = bound(view, &placed).is_none() && isolation(vm.spec, host) == Isolation::Kill;
    (!goes_local && is_free).then_some(epoch)
}

/// The lease that a copy which runs here under none comes under.
#[must_use]
pub fn for_running(view: &View, vm: &Vm<'_>, host: &Host<'_>) -> Option<u64> {
    held(host).filter(|_| wants(view, vm, host))
}

/// What the host's guard is told.
#[must_use]
pub fn order(view: &View, host: &Host<'_>) -> Option<GuardOrder> {
    host.report?.guard.as_ref()?;
    let row = voters_of(view, host)?;
    let mut voters = (*row.value).clone();
    let former = voters.former.iter().flat_map(|former| &former.voters);
    let all: Vec<_> = voters.voters.iter().chain(former).chain(&voters.fencers).copied().collect();
    // Only a voter hears the others.
    if !all.contains(&host.meta.uid) {
        voters.peers.retain(|uid, _| all.contains(uid) || *uid == host.meta.uid);
    }
    let joined = host.decision.and_then(|decision| {
        let question = decision.answers.filter(|_| decision.state == HaState::Up)?;
        Some(Joined { question, epoch: decision.epoch })
    });
    let is_empty = view.index.load(host.name).owned == 0;
    let release = host.meta.deleting.is_some() || host.spec.draining && is_empty;
    Some(GuardOrder { host: host.meta.uid, voters, joined, release })
}

fn change(
    view: &View,
    host: &Host<'_>,
    after: &HostDecision,
    (what, why): (&str, String),
    now: Timestamp,
) -> Action {
    let key = Key::decision(Kind::Host, host.name);
    Action::new(now, &key, what, why).put(view, key, after)
}

/// The answer to the guard's question for an epoch.
fn join(view: &View, host: &Host<'_>, now: Timestamp) -> Option<Action> {
    let guard = host.report?.guard.as_ref()?;
    let question = guard.asks?;
    let before = host.decision.cloned().unwrap_or_default();
    let voters = voters_of(view, host)?;
    let is_new = before.answers != Some(question);
    let may_have_one = voters.voters.len() >= VOTERS_MIN && guard.configuration == Some(voters.version);
    if !is_new || !may_have_one || !is_reset(guard) || !host.is_connected() {
        return None;
    }
    let after = HostDecision {
        epoch: before.epoch + 1,
        state: HaState::Up,
        since: now,
        answers: Some(question),
        confirmed: voters.version,
        silent_since: None,
        ..before
    };
    let why = format!("its guard asked for a lease, and has version {} of the voters", voters.version);
    let action = change(view, host, &after, ("joined", why), now)
        .compare(view, Key::report(Kind::Host, host.name))
        .compare(view, Key::spec(Kind::Host, host.name))
        .compare(view, Key::decision(Kind::Datacentre, &host.spec.datacentre));
    Some(action)
}

/// The guard returned the lease by itself, with nothing left under it.
fn returned(view: &View, host: &Host<'_>, now: Timestamp) -> Option<Action> {
    let before = host.decision?;
    let guard = host.report?.guard.as_ref()?;
    let is_it = guard.returned == Some(before.epoch) && guard.asks.is_none() && host.is_connected();
    if !is_it || !matches!(before.state, HaState::Up | HaState::Suspect) {
        return None;
    }
    let after = HostDecision { state: HaState::Left, since: now, silent_since: None, ..before.clone() };
    let action = change(view, host, &after, ("left", "its guard returned the lease".to_owned()), now);
    Some(action.compare(view, Key::report(Kind::Host, host.name)))
}

/// The host's lease rests on the newest voters.
fn confirmed(view: &View, host: &Host<'_>, now: Timestamp) -> Option<Action> {
    let before = host.decision.filter(|decision| decision.state == HaState::Up)?;
    let GuardSeen { lease, confirmed, .. } = host.report?.guard.as_ref()?;
    let version = (*confirmed)?;
    let is_newer = version > before.confirmed && version <= voters_of(view, host)?.version;
    if !is_newer || lease.held() != Some(before.epoch) {
        return None;
    }
    let after = HostDecision { confirmed: version, ..before.clone() };
    let why = format!("its lease rests on version {version} of the voters");
    let action = change(view, host, &after, ("confirmed", why), now);
    Some(action.compare(view, Key::report(Kind::Host, host.name)))
}

fn out_of_quarantine(view: &View, host: &Host<'_>, now: Timestamp) -> Option<Action> {
    let before = host.decision?;
    if before.quarantined_until.is_none_or(|until| now < until) {
        return None;
    }
    let after = HostDecision { quarantined_until: None, ..before.clone() };
    Some(change(view, host, &after, ("trusted", "its quarantine is over".to_owned()), now))
}

/// Writes down what the owner's row says: that its guard has the copy. Once a VM is not to be taken over any more, that is
/// written down first of all.
fn cover(view: &View, vm: &Vm<'_>, now: Timestamp) -> Option<Action> {
    let before = vm.decision()?;
    if before.host_epoch.is_none() && vm.owner_report().is_none_or(|row| row.lease.is_none()) {
        return None;
    }
    // One that is to be kept from now on dies with the lease all the same: its guard has it until its next start.
    let wanted = bound(view, vm.spec).is_none();
    let host_epoch = match (wanted, vm.owner_report()) {
        (false, _) => None,
        // A start that is under way says nothing yet.
        (true, Some(row)) if row.lease.is_some() && row.state.has_process() => row.lease,
        (true, _) => before.host_epoch,
    };
    if host_epoch == before.host_epoch {
        return None;
    }
    let (what, why) = match host_epoch {
        Some(epoch) => {
            ("protected", format!("the guard of host {} has it, under lease {epoch}", before.owner.host))
        }
        None => ("unprotected", bound(view, vm.spec).unwrap_or_default()),
    };
    let key = vm.key(Column::Decision);
    let after = VmDecision { host_epoch, ..before.clone() };
    let action = Action::new(now, &key, what, why).put(view, key, &after).compare(view, vm.key(Column::Spec));
    Some(action.compare(view, vm.key(Column::ReportOf(before.owner.host.clone()))))
}
