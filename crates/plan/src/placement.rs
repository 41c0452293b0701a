//! Picks a host for a VM that is to start, and says why.
//!
//! Reads: specs of VMs and hosts, what hosts report. Decides: owner and hardware of VMs that were asked to start.
//! Never restarts what crashed (`ha`) and never moves what runs (`migration`, `drain`).

use std::cmp::Reverse;

use sterna_base::clock::Timestamp;
use sterna_model::meta::Name;

use crate::action::Action;
use crate::capacity;
use crate::check::{self, Needs};
use crate::ha;
use crate::route;
use crate::start::{self, Reason};
use crate::view::{Host, OwnerCopy, View, Vm};

/// Field order is the priority; the name is last, so that a tie has one answer.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Score {
    /// Fewest volumes to carry first.
    carried: usize,
    /// Most free memory first, in steps of 64 MiB so that noise does not decide.
    free: Reverse<u64>,
    /// Fewest VMs first.
    vms: usize,
    name: Name,
}

#[must_use]
pub fn plan(view: &View, now: Timestamp) -> Vec<Action> {
    let mut seen = view.clone();
    let waiting: Vec<_> =
        view.vms().filter(|vm| waits_for_start(view, vm)).map(|vm| vm.name.clone()).collect();
    let mut actions = Vec::new();
    for name in waiting {
        let Some(vm) = seen.vm(&name) else { continue };
        let Ok(action) = place(&seen, &vm, now) else { continue };
        // The next VM sees the memory and the addresses that this one took.
        action.apply(&mut seen);
        actions.push(action);
    }
    actions
}

/// Asked to run, and either never started or ended and asked again since.
pub(crate) fn waits_for_start(view: &View, vm: &Vm<'_>) -> bool {
    let Some(decision) = vm.decision() else { return vm.is_wanted() };
    vm.is_wanted()
        && vm.spec.power_request > decision.power_request
        && matches!(vm.owner_copy(), OwnerCopy::Ended(_) | OwnerCopy::Removed)
        && !ha::is_handed_over(view, vm)
}

fn place(view: &View, vm: &Vm<'_>, now: Timestamp) -> Result<Action, String> {
    let (host, why) = choose_start(view, &Needs::of(vm), None)?;
    let host = view.host(&host).ok_or("the host is gone")?;
    start::start(view, vm, &host, Reason { what: "placed", why, restarts: 0 }, now)
}

/// Why a VM that waits for a host has none; `None` when one fits.
#[must_use]
pub fn obstacle(view: &View, vm: &Vm<'_>, now: Timestamp) -> Option<String> {
    place(view, vm, now).err()
}

/// The host that a running VM is best moved to and the reason in words, or why none fits. Without a datacentre, in its
/// own.
pub fn choose_move(view: &View, vm: &Vm<'_>, datacentre: Option<&Name>) -> Result<(Name, String), String> {
    let from = &vm.decision().ok_or("the VM has never been started")?.owner.host;
    // Over the line only when somebody asks for it.
    let datacentre = datacentre.or(view.host(from).map(|home| &home.spec.datacentre));
    let refusal = |host: &Host<'_>| {
        if datacentre.is_some_and(|asked| *asked != host.spec.datacentre) {
            return Some(format!("it is in datacentre {}", host.spec.datacentre));
        }
        check::arrive(view, vm, host)
    };
    let carried = |host: &Host<'_>| route::route(view, vm, host).map_or(0, |route| route.volumes.len());
    pick(view, Some(from), refusal, carried)
}

/// The host to start a VM on.
pub(crate) fn choose_start(
    view: &View,
    needs: &Needs<'_>,
    not: Option<&Name>,
) -> Result<(Name, String), String> {
    pick(view, not, |host| check::may_run(view, host, needs), |_| 0)
}

fn pick(
    view: &View,
    not: Option<&Name>,
    refusal: impl Fn(&Host<'_>) -> Option<String>,
    carried: impl Fn(&Host<'_>) -> usize,
) -> Result<(Name, String), String> {
    let mut fit: Vec<(Score, Name)> = Vec::new();
    let mut refusals = Vec::new();
    for host in view.hosts().filter(|host| Some(host.name) != not) {
        match refusal(&host) {
            None => fit.push((score(view, &host, carried(&host)), host.name.clone())),
            Some(why) => refusals.push(format!("{}: {why}", host.name)),
        }
    }
    fit.sort();
    let Some((_, best)) = fit.first() else {
        let reasons = if refusals.is_empty() { "no host has joined".to_owned() } else { refusals.join("; ") };
        return Err(format!("no host fits ({reasons})"));
    };
    let mut why = match fit.len() {
        1 => format!("host {best} is the only one that fits"),
        n => format!("host {best} has the most free memory of {n} that fit"),
    };
    if !refusals.is_empty() {
        why.push_str(&format!(" ({})", refusals.join("; ")));
    }
    Ok((best.clone(), why))
}

fn score(view: &View, host: &Host<'_>, carried: usize) -> Score {
    Score {
        carried,
        free: Reverse(capacity::free_memory(view, host).as_u64() >> 26),
        vms: view.index.load(host.name).owned,
        name: host.name.clone(),
    }
}
