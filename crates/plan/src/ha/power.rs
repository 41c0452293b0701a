//! What a host's fence device is asked for, and what follows from what it says.
//!
//! Reads: fence devices, where leases stand, what `control/power` heard of devices. Decides: whether a device is to switch its
//! host off, that the host is proven off, and whether a device can be built on.
//! Never calls a host lost (`fence` does), never takes a device's "done" for "off": only a status that says so counts.

use std::collections::BTreeMap;

use sterna_base::clock::Timestamp;
use sterna_model::fence::{DeviceSeen, FenceDevice, PowerState};
use sterna_model::ha::{Fenced, HaState, HostDecision, Proof};
use sterna_model::key::{Key, Kind};
use sterna_model::meta::Name;
use uuid::Uuid;

use crate::action::Action;
use crate::ha::{fence, lease};
use crate::recovery;
use crate::view::{Host, OwnerCopy, View, Vm};

/// What a device is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// Only what it says of the host, now and once in a while.
    Look {
        /// What the host's agent calls its boot; absent: nothing is heard of it. Another one is reason to look anew.
        boot: Option<String>,
    },
    /// Off, again and again until it says so.
    SwitchOff { epoch: u64, boot: String },
}

/// What is to be done about one host's device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    pub host: Uuid,
    pub device: FenceDevice,
    pub task: Task,
}

/// What came of it last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// When it was carrying out this.
    pub order: Order,
    /// What the last status said, or why there is none.
    pub outcome: Result<PowerState, String>,
}

pub type Orders = BTreeMap<Name, Order>;
pub type Heard = BTreeMap<Name, Said>;

/// One for each host with a device. None while a restored store does not know who has what.
#[must_use]
pub fn orders(view: &View) -> Orders {
    if recovery::is_on(view) {
        return Orders::new();
    }
    view.hosts().filter_map(|host| Some((host.name.clone(), order(view, &host)?))).collect()
}

fn order(view: &View, host: &Host<'_>) -> Option<Order> {
    let device = host.spec.fence.clone()?;
    let boot = || host.report.filter(|_| host.is_connected()).map(|report| report.boot_id.clone());
    let task = switch_off(view, host).unwrap_or_else(|| Task::Look { boot: boot() });
    Some(Order { host: host.meta.uid, device, task })
}

/// Only a host that is lost for good for its epoch, with a VM that this lets start elsewhere, and not while so many are silent that
/// the network is likelier.
fn switch_off(view: &View, host: &Host<'_>) -> Option<Task> {
    let (decision, report) = (host.decision?, host.report?);
    // Its agent says what runs there: the guard's way alone is cut, or its next lease is on its way.
    if host.is_connected() || fence::brake(view, host).is_some() {
        return None;
    }
    let lacks_proof = |vm: &Vm<'_>| match decision.state {
        HaState::Fencing => true,
        HaState::Fenced => !is_proven(host, vm),
        HaState::Left | HaState::Up | HaState::Suspect => false,
    };
    let mut vms = view.vms_on(host.name).filter(|vm| is_stranded(view, vm, host));
    let task = Task::SwitchOff { epoch: decision.epoch, boot: report.boot_id.clone() };
    vms.any(|vm| lacks_proof(&vm)).then_some(task)
}

/// It would be started elsewhere, were it known that the host is off.
fn is_stranded(view: &View, vm: &Vm<'_>, host: &Host<'_>) -> bool {
    let is_owner = vm.decision().is_some_and(|decision| decision.owner.host == *host.name);
    let is_there = matches!(vm.owner_copy(), OwnerCopy::Alive | OwnerCopy::Unheard);
    is_owner && is_there && vm.is_wanted() && lease::bound(view, vm.spec).is_none()
}

fn is_proven(host: &Host<'_>, vm: &Vm<'_>) -> bool {
    let (Some(lost), Some(decision)) = (host.decision, vm.decision()) else { return false };
    match decision.host_epoch {
        Some(epoch) => lost.proof_for(epoch).is_some(),
        None => lost.fenced.as_ref().is_some_and(|fenced| {
            fenced.epoch == lost.epoch && matches!(fenced.proof, Proof::F2 { .. } | Proof::F5 { .. })
        }),
    }
}

/// Whether the device would prove that the host is off, as far as is known.
#[must_use]
pub fn works(host: &Host<'_>) -> bool {
    let (Some(device), Some(seen)) = (&host.spec.fence, seen(host)) else { return false };
    seen.device == device.id && seen.failed.is_none()
}

/// The same also when the host has no power.
#[must_use]
pub fn works_without_power(host: &Host<'_>) -> bool {
    works(host) && host.spec.fence.as_ref().is_some_and(FenceDevice::has_own_power)
}

fn seen<'a>(host: &Host<'a>) -> Option<&'a DeviceSeen> {
    host.decision?.device.as_ref()
}

/// Why the device is of no use, in its own words.
#[must_use]
pub fn failure<'a>(host: &Host<'a>) -> Option<&'a str> {
    let device = host.spec.fence.as_ref()?;
    seen(host).filter(|seen| seen.device == device.id)?.failed.as_deref()
}

/// Whether the device is to switch the host off now.
#[must_use]
pub fn is_to_switch_off(view: &View, host: &Host<'_>) -> bool {
    host.spec.fence.is_some() && switch_off(view, host).is_some()
}

/// It was said to be off, and the boot that this is about is connected.
#[must_use]
pub fn is_contradicted(host: &Host<'_>) -> bool {
    let fenced = host.decision.filter(|decision| decision.state == HaState::Fenced);
    let proof = fenced.and_then(|decision| decision.fenced.as_ref()).map(|fenced| &fenced.proof);
    let Some(Proof::F2 { boot, .. }) = proof else { return false };
    host.is_connected() && host.report.is_some_and(|report| report.boot_id == *boot)
}

#[must_use]
pub fn plan(view: &View, heard: &Heard, now: Timestamp) -> Vec<Action> {
    let known = heard.iter().filter_map(|(name, said)| Some((view.host(name)?, said)));
    known
        // What was heard of another device, of an earlier boot or epoch is worth nothing.
        .filter(|(host, said)| order(view, host).is_some_and(|order| order == said.order))
        .filter_map(|(host, said)| off(view, &host, said, now).or_else(|| note(view, &host, said, now)))
        .collect()
}

/// The proof. That the device was asked only after the store had called the host lost is what the order's epoch says.
fn off(view: &View, host: &Host<'_>, said: &Said, now: Timestamp) -> Option<Action> {
    let Task::SwitchOff { epoch, boot } = &said.order.task else { return None };
    let before = host.decision.filter(|before| before.epoch == *epoch)?;
    if said.outcome != Ok(PowerState::Off) {
        return None;
    }
    let device = &said.order.device;
    let proof = Proof::F2 { device: device.id, agent: device.agent.clone(), boot: boot.clone() };
    let after = match before.state {
        HaState::Fencing => fence::end(view, host, before, proof, now),
        // Its lease was proven to be over before: that loss has been counted.
        HaState::Fenced => {
            HostDecision { fenced: Some(Fenced { epoch: *epoch, proof, at: now }), ..before.clone() }
        }
        HaState::Left | HaState::Up | HaState::Suspect => return None,
    };
    let after = HostDecision { device: Some(seen_now(host, said, now)), ..after };
    let why = format!("{} has switched it off and says that it is off", device.agent);
    let action = fence::change(view, host, &after, ("switched-off", why), now);
    Some(
        action
            // Another device may be another machine's.
            .compare(view, Key::spec(Kind::Host, host.name))
            // Should it be back meanwhile, that boot is not over.
            .compare(view, Key::report(Kind::Host, host.name)),
    )
}

/// Written only when it says something new.
fn note(view: &View, host: &Host<'_>, said: &Said, now: Timestamp) -> Option<Action> {
    let after = seen_now(host, said, now);
    if seen(host).is_some_and(|before| *before == after) {
        return None;
    }
    let (what, why) = match (&after.failed, after.power) {
        (Some(why), _) => ("device-fails", format!("{}: {why}", said.order.device.agent)),
        (None, power) => {
            let word = power.map_or("nothing", PowerState::word);
            ("device-answers", format!("{} says that it is {word}", said.order.device.agent))
        }
    };
    let after = HostDecision { device: Some(after), ..host.decision.cloned().unwrap_or_default() };
    let action = fence::change(view, host, &after, (what, why), now);
    Some(action.compare(view, Key::spec(Kind::Host, host.name)))
}

fn seen_now(host: &Host<'_>, said: &Said, now: Timestamp) -> DeviceSeen {
    let power = said.outcome.as_ref().ok().copied();
    let failed = match (&said.outcome, &said.order.task) {
        (Err(why), _) => Some(why.clone()),
        // The one mistake that would make two of every VM there.
        (Ok(PowerState::Off), Task::Look { boot: Some(_) }) => Some(format!(
            "it says that the host is off, while its agent is connected: is it another machine's than {}'s?",
            host.name
        )),
        (Ok(PowerState::On), Task::SwitchOff { .. }) => {
            Some("it says that the host is on after it was told to switch it off".to_owned())
        }
        (Ok(_), _) => None,
    };
    let device = said.order.device.id;
    let is_as_before =
        |before: &&DeviceSeen| before.device == device && before.power == power && before.failed == failed;
    let since = seen(host).filter(is_as_before).map_or(now, |before| before.since);
    DeviceSeen { device, power, failed, since }
}
