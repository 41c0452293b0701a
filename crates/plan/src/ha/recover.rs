//! Starts what was on a host that is proven lost.
//!
//! Reads: proofs in hosts' decisions, owners of VMs. Decides: a new owner elsewhere and a new epoch, in one transaction that
//! compares the proof, the owner that it is about, and the host that is next.
//! Never rests on a host's silence (`fence` collects what is proven), and never restarts in place (`ha`).

use sterna_base::clock::Timestamp;
use sterna_model::ha::{Fenced, HaState, Proof, Takeover};
use sterna_model::key::{Column, Key, Kind};
use sterna_model::meta::Name;
use sterna_model::vm::CopyState;

use crate::action::Action;
use crate::check::Needs;
use crate::ha::{fence, lease, power};
use crate::placement;
use crate::start::{self, Reason};
use crate::view::{Host, OwnerCopy, View, Vm};

/// Starts that a host is given at once: more would each take longer.
const STARTS_MAX: usize = 8;

#[must_use]
pub fn plan(view: &View, now: Timestamp) -> Vec<Action> {
    let mut seen = view.clone();
    let mut actions = Vec::new();
    let lost: Vec<Name> = view
        .hosts()
        .filter(|host| host.decision.is_some_and(|decision| decision.fenced.is_some()))
        .flat_map(|host| view.vms_on(host.name).map(|vm| vm.name.clone()).collect::<Vec<_>>())
        .collect();
    for name in lost {
        // The next VM sees what this one took.
        if let Some(Ok(action)) = seen.vm(&name).and_then(|vm| takeover(&seen, &vm, now)) {
            action.apply(&mut seen);
            actions.push(action);
        }
    }
    actions
}

/// Why a VM of a lost host is not started elsewhere, yet or at all; `None` when its host is not known to be lost.
#[must_use]
pub fn obstacle(view: &View, vm: &Vm<'_>, now: Timestamp) -> Option<String> {
    if let Some(outcome) = takeover(view, vm, now) {
        return outcome.err();
    }
    let decision = vm.decision()?;
    let host = view.host(&decision.owner.host)?;
    let by_device = host.spec.fence.is_some() && lease::bound(view, vm.spec).is_none();
    let protected = decision.host_epoch.is_some() || by_device;
    match host.ha() {
        HaState::Suspect if protected => Some(
            fence::brake(view, &host).unwrap_or_else(|| format!("its voters do not hear host {}", host.name)),
        ),
        HaState::Fencing if protected => Some(format!(
            "waits for proof that nothing runs on host {} any more{}",
            host.name,
            failing(&host)
        )),
        HaState::Fenced if by_device => Some(waits_for_device(&host)),
        HaState::Fenced if !protected => Some(not_covered(view, vm, &host)),
        HaState::Left | HaState::Up if !host.is_connected() && !protected => {
            // Where nobody grants leases there is nothing to say of them.
            lease::voters_of(view, &host).map(|_| not_covered(view, vm, &host))
        }
        _ => None,
    }
}

/// The lease is over, and says nothing of a copy that outlives it.
fn waits_for_device(host: &Host<'_>) -> String {
    let name = host.name;
    if power::is_contradicted(host) {
        return format!("the fence device says that host {name} is off, and its agent is connected");
    }
    let failing = failing(host);
    let hint = format!("`sterna host confirm-dead {name}` once somebody has looked");
    format!("waits until the fence device of host {name} says that it is off{failing}; {hint}")
}

fn failing(host: &Host<'_>) -> String {
    power::failure(host).map(|why| format!("; its fence device fails: {why}")).unwrap_or_default()
}

fn not_covered(view: &View, vm: &Vm<'_>, host: &Host<'_>) -> String {
    let why = lease::obstacle(view, vm.spec, host).unwrap_or_else(|| "its host had no lease".to_owned());
    let name = host.name;
    format!(
        "host {name} is silent, and nothing proves that the VM has ended there ({why}); `sterna host confirm-dead {name}` once somebody has looked"
    )
}

/// `None`: its host is not known to be lost, or it needs no other.
fn takeover(view: &View, vm: &Vm<'_>, now: Timestamp) -> Option<Result<Action, String>> {
    let decision = vm.decision()?;
    if !vm.is_wanted() || !matches!(vm.owner_copy(), OwnerCopy::Alive | OwnerCopy::Unheard) {
        return None;
    }
    let lost = view.host(&decision.owner.host)?;
    let fenced = proof(view, vm, &lost)?;
    if let (Proof::F3 { .. }, Some(why)) = (&fenced.proof, fence::brake(view, &lost)) {
        return Some(Err(why));
    }
    Some(start_elsewhere(view, vm, &lost, fenced, now))
}

/// What proves that this ownership is over: for a copy under a lease, whatever ended that lease; for one under none, that the
/// host was off, or a person's word, as long as the host has not come back.
fn proof<'a>(view: &View, vm: &Vm<'_>, lost: &Host<'a>) -> Option<&'a Fenced> {
    let decision = lost.decision?;
    let is_away = decision.state == HaState::Fenced && !lost.is_connected();
    let is_of_now = |fenced: &Fenced| is_away && fenced.epoch == decision.epoch;
    if let Some(epoch) = vm.decision()?.host_epoch {
        // Voters and devices prove what stays true; a person's word ends when the host is back.
        let by_person = |fenced: &Fenced| matches!(fenced.proof, Proof::F5 { .. });
        return decision.proof_for(epoch).filter(|fenced| !by_person(fenced) || is_of_now(fenced));
    }
    decision.fenced.as_ref().filter(|fenced| {
        let is_of_now = is_of_now(fenced);
        is_of_now
            && match &fenced.proof {
                Proof::F5 { .. } => true,
                // Of a later boot it says nothing. A person means every VM; a device only those that are to be started elsewhere.
                Proof::F2 { boot, .. } => {
                    let is_that_boot = lost.report.is_some_and(|report| report.boot_id == *boot);
                    is_that_boot && lease::bound(view, vm.spec).is_none()
                }
                Proof::F3 { .. } => false,
            }
    })
}

fn start_elsewhere(
    view: &View,
    vm: &Vm<'_>,
    lost: &Host<'_>,
    fenced: &Fenced,
    now: Timestamp,
) -> Result<Action, String> {
    let is_busy = |host: &Host<'_>| {
        let starting = view.vms_on(host.name).filter(|other| is_starting(other, host.name)).count();
        (starting >= STARTS_MAX).then(|| format!("it has {starting} VMs to start"))
    };
    let (host, place) = placement::choose_takeover(view, &Needs::of(vm), lost.name, is_busy)?;
    let host = view.host(&host).ok_or("the host is gone")?;
    let from_epoch = vm.decision().map_or(0, |decision| decision.owner.epoch);
    let word = fenced.proof.word();
    let why = format!("host {} was lost ({word}, epoch {}); {place}", lost.name, fenced.epoch);
    let reason = Reason { what: "recovered", why, restarts: 0 };
    let takeover = Takeover { from: lost.name.clone(), from_epoch, proof: word.to_owned() };
    let action = start::take_over(view, vm, &host, (reason, takeover), now)?;
    let action = action.compare(view, Key::decision(Kind::Host, lost.name));
    // A person's word is worth nothing once the host is back.
    Ok(action.compare(view, Key::report(Kind::Host, lost.name)).compare(view, vm.key(Column::Spec)))
}

fn is_starting(vm: &Vm<'_>, host: &Name) -> bool {
    let is_owner = vm.decision().is_some_and(|decision| decision.owner.host == *host);
    let has_begun = vm.owner_report().is_some_and(|row| !matches!(row.state, CopyState::Starting { .. }));
    is_owner && vm.is_wanted() && !has_begun
}
