//! When operations are done: a pure function of the objects they are about.

use std::time::Duration;

use sterna_base::clock::Timestamp;
use sterna_model::image::ImageReport;
use sterna_model::key::{Key, Kind};
use sterna_model::meta::Name;
use sterna_model::migration::Phase;
use sterna_model::operation::{Goal, OperationDecision, OperationSpec, OperationState};
use sterna_model::status::VmState;
use sterna_model::vm::{CopyState, Exit, Power};
use sterna_model::volume::VolumeReport;

use crate::action::Action;
use crate::drain;
use crate::status;
use crate::view::{OwnerCopy, View, Vm};

/// A finished operation stays readable this long; its event stays.
const KEPT: Duration = Duration::from_secs(3600);

/// Records ends, and removes old records.
#[must_use]
pub fn plan(view: &View, now: Timestamp) -> Vec<Action> {
    view.operations
        .iter()
        .filter(|(name, _)| !view.is_broken(Kind::Operation, name))
        .filter_map(|(name, entry)| {
            let spec = &entry.spec.as_ref()?.value.spec;
            let key = Key::decision(Kind::Operation, name);
            match &entry.decision {
                None => {
                    let state = state(view, spec, now);
                    let (what, why) = ended(&state)?;
                    let decision = OperationDecision { state: state.clone(), ended: now };
                    Some(Action::new(now, &key, what, why).put(view, key, &decision))
                }
                Some(decision) if now.since(decision.ended) > KEPT => {
                    let action = Action::new(now, &key, "forgotten", "it ended over an hour ago");
                    Some(action.delete(view, Key::spec(Kind::Operation, name)).delete(view, key))
                }
                Some(_) => None,
            }
        })
        .collect()
}

fn ended(state: &OperationState) -> Option<(&'static str, String)> {
    match state {
        OperationState::Running { .. } => None,
        OperationState::Succeeded { message } => Some(("succeeded", message.clone())),
        OperationState::Failed { message } => Some(("failed", message.clone())),
    }
}

/// Where an operation stands.
#[must_use]
pub fn state(view: &View, spec: &OperationSpec, now: Timestamp) -> OperationState {
    match &spec.goal {
        Goal::VmPower { vm, request } => vm_power(view, vm, *request, now),
        Goal::VmPaused { vm } => vm_cpus(view, vm, Power::Paused, now),
        Goal::VmResumed { vm } => vm_cpus(view, vm, Power::Running, now),
        Goal::VmReset { vm, request } => vm_reset(view, vm, *request),
        Goal::VmGone { vm } => gone(view.vms.contains_key(vm), || status_message(view, vm, now)),
        Goal::MigrationEnds { migration } => migration_ends(view, migration),
        Goal::ImageReady { image } => image_ready(view, image),
        Goal::VolumeReady { volume } => volume_has(view, volume, 0),
        Goal::VolumeSize { volume, bytes } => volume_has(view, volume, *bytes),
        Goal::VolumeGone { volume } => gone(view.volumes.contains_key(volume), || "being removed".to_owned()),
        Goal::HostEmpty { host } => host_empty(view, host),
    }
}

fn running(message: impl Into<String>) -> OperationState {
    OperationState::Running { message: message.into() }
}

fn succeeded(message: impl Into<String>) -> OperationState {
    OperationState::Succeeded { message: message.into() }
}

fn failed(message: impl Into<String>) -> OperationState {
    OperationState::Failed { message: message.into() }
}

fn gone(there: bool, message: impl Fn() -> String) -> OperationState {
    if there { running(message()) } else { succeeded("gone") }
}

fn status_message(view: &View, vm: &Name, now: Timestamp) -> String {
    status::vm(view, vm, now).map_or_else(|| "gone".to_owned(), |status| status.message)
}

fn vm_power(view: &View, name: &Name, request: u64, now: Timestamp) -> OperationState {
    let Some(vm) = view.vm(name) else { return failed("the VM was removed") };
    if vm.spec.power_request > request {
        return failed("replaced by a later request");
    }
    let Some(status) = status::vm(view, name, now) else { return failed("the VM was removed") };
    let served = vm.decision().is_some_and(|decision| decision.power_request >= request);
    let start_failed = vm
        .owner_report()
        .is_some_and(|report| matches!(report.state, CopyState::Stopped { exit: Exit::StartFailed { .. } }));
    let wants = vm.spec.power.wants_process();
    match status.state {
        VmState::Running | VmState::Paused | VmState::Migrating if wants => succeeded(status.message),
        VmState::Stopped if !wants => succeeded(status.message),
        // Sterna goes on trying; the user who waits learns at once.
        VmState::Failed if wants && served && start_failed => failed(status.message),
        _ => running(status.message),
    }
}

/// Done only on the owner's word about its CPUs: the spec alone says what is about to be.
fn vm_cpus(view: &View, name: &Name, asked: Power, now: Timestamp) -> OperationState {
    let Some(vm) = view.vm(name) else { return failed("the VM was removed") };
    if vm.spec.power != asked || vm.meta.deleting.is_some() {
        return failed("replaced by a later request");
    }
    let Some(status) = status::vm(view, name, now) else { return failed("the VM was removed") };
    match vm.owner_report().map(|report| &report.state) {
        _ if status.state == VmState::Unknown => running(status.message),
        Some(CopyState::Paused { why }) if asked == Power::Paused => succeeded(why.clone()),
        Some(CopyState::Running) if asked == Power::Running => succeeded("the guest runs"),
        Some(CopyState::Stopped { .. }) => failed("the VM is not running"),
        _ => running(format!("asked for; {}", status.message)),
    }
}

fn vm_reset(view: &View, name: &Name, request: u64) -> OperationState {
    let Some(vm) = view.vm(name) else { return failed("the VM was removed") };
    match vm.owner_report() {
        None if !vm.is_wanted() => failed("the VM is not running"),
        Some(report) if !report.state.has_process() => failed("the VM is not running"),
        Some(report) if report.reset_request >= request => succeeded("the guest was reset"),
        _ => running("waits for the host"),
    }
}

fn migration_ends(view: &View, name: &Name) -> OperationState {
    let Some(entry) = view.migrations.get(name) else { return failed("the migration's record was removed") };
    let Some(decision) = &entry.decision else { return running("asked for") };
    match &decision.phase {
        Phase::Succeeded => {
            let target = decision.target.as_ref().map(Name::to_string).unwrap_or_default();
            let is_seed = entry.spec.as_ref().is_some_and(|spec| spec.value.spec.seed);
            succeeded(if is_seed {
                format!("the volumes are on host {target}, as they were a moment ago")
            } else {
                format!("the guest runs on host {target}")
            })
        }
        Phase::Failed { why } => failed(why.clone()),
        Phase::Cancelled => failed("cancelled"),
        phase => running(phase.word()),
    }
}

fn image_ready(view: &View, name: &Name) -> OperationState {
    match view.images.get(name).map(|entry| entry.report.as_ref().map(|row| &*row.value)) {
        None => failed("the image was removed"),
        Some(Some(ImageReport::Ready { .. })) => succeeded("ready"),
        Some(Some(ImageReport::Failed { why })) => failed(why.clone()),
        Some(_) => running("waits for its content"),
    }
}

fn volume_has(view: &View, name: &Name, bytes: u64) -> OperationState {
    match view.volumes.get(name).map(|entry| entry.report.as_ref().map(|row| &*row.value)) {
        None => failed("the volume was removed"),
        Some(Some(VolumeReport::Ready { size })) if size.as_u64() >= bytes => {
            succeeded(format!("ready, {size}"))
        }
        Some(Some(VolumeReport::Failed { why })) => failed(why.clone()),
        Some(Some(VolumeReport::Making { percent })) => running(format!("being made, {percent} %")),
        Some(Some(VolumeReport::Ready { size })) => running(format!("has {size}, to be grown")),
        Some(Some(VolumeReport::Gone)) => failed("the volume was removed"),
        Some(None) => running("waits for a host"),
    }
}

fn host_empty(view: &View, name: &Name) -> OperationState {
    let Some(host) = view.host(name) else { return failed("the host was removed") };
    if !host.spec.draining {
        return failed("the drain was taken back");
    }
    // A VM whose start was ordered counts before its host has said anything of it, and so does one on the move.
    let ordered = |vm: &Vm<'_>| {
        let is_owner = vm.decision().is_some_and(|decision| decision.owner.host == *name);
        is_owner && vm.is_wanted() && vm.owner_copy() == OwnerCopy::Unheard
    };
    let has_process = |vm: &Vm<'_>| vm.entry.reports.get(name).is_some_and(|row| row.state.has_process());
    let here = view.vms_on(name).filter(|vm| has_process(vm) || ordered(vm)).count();
    let moving = view.migrations_on(name).count();
    if here == 0 && moving == 0 {
        return succeeded("no VM runs on it");
    }
    let blockers: Vec<_> =
        drain::blockers(view, &host).iter().map(|(vm, why)| format!("{vm}: {why}")).collect();
    let blocked =
        if blockers.is_empty() { String::new() } else { format!("; cannot move: {}", blockers.join("; ")) };
    running(format!("{here} VMs left, {moving} on the move{blocked}"))
}
