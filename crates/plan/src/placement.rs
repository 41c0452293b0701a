//! Picks a host for a VM that is to start, and says why.
//!
//! Reads: specs of VMs and hosts, what hosts report. Decides: owner and hardware of VMs that were asked to start.
//! Never restarts what crashed (`ha`) and never moves what runs (`migration`, `drain`).

use std::cmp::Reverse;

use sterna_base::clock::Timestamp;
use sterna_model::meta::Name;
use sterna_model::migration::{Phase, Via};

use crate::action::Action;
use crate::capacity;
use crate::check::{self, Needs};
use crate::ha;
use crate::reserve;
use crate::route;
use crate::start::{self, Reason};
use crate::view::{Host, OwnerCopy, View, Vm};
use crate::volume;

/// Hosts, the best first, that are asked whether a start leaves the reserve whole: with less free memory it is no likelier.
const ASKED_MAX: usize = 4;

/// Field order is the priority; the name is last, so that a tie has one answer.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Score {
    /// The least to carry first.
    way: Way,
    /// Most free memory first, in steps of 64 MiB so that noise does not decide.
    free: Reverse<u64>,
    /// Fewest VMs first.
    vms: usize,
    name: Name,
}

/// What a running VM takes with it to a host; field order is the priority. Nothing for one that only starts.
#[derive(Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Way {
    /// Volumes of which the host has no copy.
    whole: usize,
    /// All of those that go along: of the others only what differs crosses.
    carried: usize,
    /// When the VM was last moved away from there: a checkpoint of its memory may still lie there.
    left: Reverse<Option<Timestamp>>,
}

#[must_use]
pub fn plan(view: &View, now: Timestamp) -> Vec<Action> {
    let mut seen = view.clone();
    let mut waiting: Vec<_> = view.vms().filter(|vm| waits_for_start(view, vm)).collect();
    waiting.sort_by_key(|vm| Reverse(vm.spec.priority));
    let waiting: Vec<_> = waiting.into_iter().map(|vm| vm.name.clone()).collect();
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
    let needs = Needs::of(vm);
    // Only what would be chosen is asked: to look at every loss for every host costs too much.
    let reserve = |host: &Host<'_>| reserve::refusal(view, vm, host, now);
    let may_run = |host: &Host<'_>| check::may_run(view, host, &needs);
    let (host, why) = pick(view, None, may_run, |_| Way::default(), reserve)?;
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
    pick(view, Some(from), refusal, |host| way(view, vm, host), |_| None)
}

fn way(view: &View, vm: &Vm<'_>, host: &Host<'_>) -> Way {
    let Ok(route) = route::route(view, vm, host) else { return Way::default() };
    let carried = route.volumes.len();
    let there = route.volumes.iter().filter(|moving| volume::has_copy(view, moving)).count();
    // From one QEMU to the other nothing is remembered.
    let left = if route.via == Via::Mover { last_left(view, vm, host.name) } else { None };
    Way { whole: carried - there, carried, left: Reverse(left) }
}

/// When the VM last left the host through the mover.
fn last_left(view: &View, vm: &Vm<'_>, host: &Name) -> Option<Timestamp> {
    let moves = view.index.migrations_by_vm.of(vm.name).filter_map(|name| view.migrations.get(name));
    let moves = moves.filter(|entry| entry.spec.as_ref().is_some_and(|spec| !spec.value.spec.seed));
    moves
        .filter_map(|entry| entry.decision.as_ref())
        .filter(|decision| decision.phase == Phase::Succeeded && decision.via == Via::Mover)
        .filter(|decision| decision.source.as_ref() == Some(host))
        .map(|decision| decision.since)
        .max()
}

/// The host to start a VM on, whatever room is kept for others.
pub(crate) fn choose_start(
    view: &View,
    needs: &Needs<'_>,
    not: Option<&Name>,
) -> Result<(Name, String), String> {
    pick(view, not, |host| check::may_run(view, host, needs), |_| Way::default(), |_| None)
}

/// The host to start a VM on that was on a lost one.
pub(crate) fn choose_takeover(
    view: &View,
    needs: &Needs<'_>,
    lost: &Name,
    is_busy: impl Fn(&Host<'_>) -> Option<String>,
) -> Result<(Name, String), String> {
    let refusal = |host: &Host<'_>| check::may_run(view, host, needs).or_else(|| is_busy(host));
    pick(view, Some(lost), refusal, |_| Way::default(), |_| None)
}

fn pick(
    view: &View,
    not: Option<&Name>,
    refusal: impl Fn(&Host<'_>) -> Option<String>,
    way: impl Fn(&Host<'_>) -> Way,
    last_refusal: impl Fn(&Host<'_>) -> Option<String>,
) -> Result<(Name, String), String> {
    let mut fit: Vec<(Score, Name)> = Vec::new();
    let mut refusals = Vec::new();
    let mut kept_free = 0;
    for host in view.hosts().filter(|host| Some(host.name) != not) {
        match refusal(&host) {
            None => fit.push((score(view, &host, way(&host)), host.name.clone())),
            Some(why) => refusals.push(format!("{}: {why}", host.name)),
        }
    }
    fit.sort();
    while let Some(host) = fit.first().and_then(|(_, name)| view.host(name))
        && let Some(why) = last_refusal(&host)
    {
        refusals.push(format!("{}: {why}", host.name));
        fit.remove(0);
        kept_free += 1;
        if kept_free == ASKED_MAX {
            fit.clear();
        }
    }
    let Some((score, best)) = fit.first() else {
        let reasons = if refusals.is_empty() { "no host has joined".to_owned() } else { refusals.join("; ") };
        return Err(format!("no host fits ({reasons})"));
    };
    let mut why = match fit.len() {
        1 => format!("host {best} is the only one that fits"),
        n if score.way.carried > score.way.whole => {
            format!("host {best} of {n} that fit: copies of its volumes are there")
        }
        n if score.way.left.0.is_some() => {
            format!(
                "host {best} of {n} that fit: of those it was there last, and its memory may be known there"
            )
        }
        n => format!("host {best} has the most free memory of {n} that fit"),
    };
    if !refusals.is_empty() {
        why.push_str(&format!(" ({})", refusals.join("; ")));
    }
    Ok((best.clone(), why))
}

fn score(view: &View, host: &Host<'_>, way: Way) -> Score {
    Score {
        way,
        free: Reverse(capacity::free_memory(view, host).as_u64() >> 26),
        vms: view.index.load(host.name).owned,
        name: host.name.clone(),
    }
}
