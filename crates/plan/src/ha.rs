//! Restarts what stopped without being asked, and what its host did not bring back by itself.
//!
//! Reads: the owner's report of each VM. Decides: a new epoch, on the same host when that takes VMs and has not tried
//! often enough.
//! Never restarts what an agent restarts in place (`agent/vm/restart`): such a copy has not ended for its host.
//! Never touches a VM whose owner is silent: silence is no proof that it stopped. Never touches one that a migration is
//! handing over (`migration`).

/// What a host's silence leads to, and what ends it.
pub mod fence;
/// Which VMs live under their host's lease, and which hosts have one.
pub mod lease;
/// What hosts' fence devices are asked for, and what follows from what they say.
pub mod power;
/// Starts what was on a host that is proven lost.
pub mod recover;
/// Who grants the leases of a datacentre.
pub mod voters;

use sterna_base::clock::Timestamp;
use sterna_model::health::{HEALTHY_AFTER, IN_PLACE_MAX, restart_wait};
use sterna_model::migration::Phase;
use sterna_model::vm::{Exit, RestartPolicy, VmDecision, VmSpec};

use crate::action::Action;
use crate::check::{self, Needs};
use crate::placement;
use crate::start::{self, Reason};
use crate::view::{OwnerCopy, View, Vm};

#[must_use]
pub fn plan(view: &View, now: Timestamp) -> Vec<Action> {
    let mut seen = view.clone();
    let mut actions = Vec::new();
    for name in view.vms().filter(|vm| restart(view, vm, now).is_some()).map(|vm| vm.name) {
        // The next VM sees the memory that this one took.
        if let Some(Ok(action)) = seen.vm(name).and_then(|vm| restart(&seen, &vm, now)) {
            action.apply(&mut seen);
            actions.push(action);
        }
    }
    actions
}

/// Why a VM that ended without being asked is not started again; `None` when it needs no restart or only waits its turn.
#[must_use]
pub fn obstacle(view: &View, vm: &Vm<'_>, now: Timestamp) -> Option<String> {
    restart(view, vm, now)?.err()
}

/// `None`: there is nothing to restart, or not yet.
fn restart(view: &View, vm: &Vm<'_>, now: Timestamp) -> Option<Result<Action, String>> {
    let decision = vm.decision()?;
    if !vm.is_wanted() || vm.spec.power_request > decision.power_request || is_handed_over(view, vm) {
        return None;
    }
    let (cause, may_be_the_host) = match vm.owner_copy() {
        OwnerCopy::Ended(exit) if comes_back(vm.spec, decision, exit) => {
            (cause(exit)?, matches!(exit, Exit::StartFailed { .. }))
        }
        OwnerCopy::Removed if vm.spec.restart != RestartPolicy::Never => {
            (format!("host {}, which had it, was removed", decision.owner.host), false)
        }
        _ => return None,
    };
    // Only this clock is read: a host whose clock is ahead must not keep its VMs waiting.
    let passed = now.since(decision.since);
    let restarts = if passed >= HEALTHY_AFTER { 0 } else { decision.restarts };
    if now >= decision.since && passed < restart_wait(restarts) {
        return None;
    }
    // The host has waited between its own tries; they count for whoever tries next.
    let in_place = vm.owner_report().map_or(0, |row| row.health.recent);
    let elsewhere = (may_be_the_host && restarts > 0) || in_place >= IN_PLACE_MAX;
    Some(choose(view, vm, elsewhere).and_then(|(host, place)| {
        let host = view.host(&host).ok_or("the host is gone")?;
        let restarts = restarts.saturating_add(in_place).saturating_add(1);
        let reason = Reason { what: "restarted", why: format!("{cause}; {place}"), restarts };
        start::start(view, vm, &host, reason, now)
    }))
}

/// The same host, whose caches are warm; but not the one where it failed to start again and again, if another fits.
fn choose(view: &View, vm: &Vm<'_>, elsewhere: bool) -> Result<(sterna_model::meta::Name, String), String> {
    let needs = Needs::of(vm);
    let owner = vm.decision().map(|decision| &decision.owner.host);
    let here = owner.and_then(|owner| view.host(owner));
    let here = here
        .filter(|host| check::may_run(view, host, &needs).is_none())
        .map(|host| (host.name.clone(), format!("again on host {}", host.name)));
    let others = |not| placement::choose_start(view, &needs, not);
    match here {
        Some(here) if elsewhere => others(owner).or(Ok(here)),
        Some(here) => Ok(here),
        None => others(None),
    }
}

/// Whether a copy that ended like this is started again by itself.
pub(crate) fn comes_back(spec: &VmSpec, decision: &VmDecision, exit: &Exit) -> bool {
    // A start that failed is no restart: the guest has not run yet.
    let is_start = matches!(exit, Exit::StartFailed { .. });
    let asked_again = spec.power_request > decision.power_request;
    cause(exit).is_some() && !asked_again && (is_start || spec.restart != RestartPolicy::Never)
}

/// Ends that nobody asked for, in words.
fn cause(exit: &Exit) -> Option<String> {
    match exit {
        Exit::Crashed { why } => Some(format!("qemu ended: {why}")),
        Exit::StartFailed { why } => Some(format!("the start failed: {why}")),
        Exit::Lost => Some("its host restarted".to_owned()),
        Exit::Released => Some("its copy had been given up".to_owned()),
        // Stopped as asked, and asked to run again only through `power_request`: that is placement's.
        Exit::Requested { .. } | Exit::GuestShutdown => None,
    }
}

/// Between two hosts: which copy goes on is for `migration` to say.
pub(crate) fn is_handed_over(view: &View, vm: &Vm<'_>) -> bool {
    view.migration_of(vm.name).is_some_and(|(_, _, decision)| {
        matches!(decision.phase, Phase::Resuming { .. } | Phase::Returning { .. })
    })
}
