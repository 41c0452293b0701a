//! What fits where: memory of hosts, taken and free.

use sterna_base::units::Bytes;
use sterna_model::meta::Name;
use sterna_model::migration::Phase;
use sterna_model::vm::CopyState;

use crate::ha;
use crate::view::{Host, View, VmEntry};

/// QEMU's own memory beside the guest's: device models, buffers, translation caches. Measured at 60-90 MiB for small
/// guests without graphics.
const PER_VM: Bytes = Bytes::mib(96);
/// Kept for the host itself.
const PER_HOST: Bytes = Bytes::mib(512);

/// Memory of a host that may be given to VMs and is not.
#[must_use]
pub fn free_memory(view: &View, host: &Host<'_>) -> Bytes {
    Bytes(limit(host).saturating_sub(taken_memory(view, host.name).as_u64()))
}

/// The same for this VM: the place that is held for it counts as free, unless a process is in it.
#[must_use]
pub(crate) fn free_for(view: &View, host: &Host<'_>, vm: Option<&VmEntry>) -> Bytes {
    let held = vm.filter(|vm| !has_process(vm, host.name)).map_or(0, |vm| share(vm, host.name).as_u64());
    Bytes(limit(host).saturating_sub(taken_memory(view, host.name).as_u64().saturating_sub(held)))
}

fn limit(host: &Host<'_>) -> u64 {
    host.report.map_or(0, |report| report.memory.as_u64()).saturating_sub(PER_HOST.as_u64())
}

/// Memory of the VMs that run here, may start here, or are on their way here.
#[must_use]
pub fn taken_memory(view: &View, host: &Name) -> Bytes {
    let arriving = view.migrations_on(host).filter_map(|(_, spec, decision)| {
        let coming = decision.target.as_ref() == Some(host)
            && matches!(decision.phase, Phase::Preparing | Phase::Copying { .. });
        let vm = view.vms.get(&spec.vm)?;
        (coming && share(vm, host) == Bytes(0)).then(|| size(vm))
    });
    Bytes(view.index.load(host).memory + arriving.sum::<u64>())
}

/// What one VM takes of this host's memory, whether it runs there or its place is held.
pub(crate) fn share(vm: &VmEntry, host: &Name) -> Bytes {
    // A copy that is being released still has its memory, whoever owns the VM now.
    if has_process(vm, host) || is_expected(vm, host) { Bytes(size(vm)) } else { Bytes(0) }
}

fn has_process(vm: &VmEntry, host: &Name) -> bool {
    vm.reports.get(host).is_some_and(|row| row.state.has_process())
}

/// The host owns it and will have a process of it: one that has been ordered, or one that `ha` starts again.
fn is_expected(vm: &VmEntry, host: &Name) -> bool {
    let Some(decision) = vm.decision.as_ref().filter(|decision| decision.owner.host == *host) else {
        return false;
    };
    // What was asked for cannot be read: it may run.
    let Some(object) = &vm.spec else { return true };
    let is_wanted = object.meta.deleting.is_none() && object.spec.power.wants_process();
    let report = vm.reports.get(host).filter(|row| row.epoch == decision.owner.epoch);
    is_wanted
        && match report.map(|row| &row.state) {
            Some(CopyState::Stopped { exit }) => ha::comes_back(&object.spec, decision, exit),
            _ => true,
        }
}

fn size(vm: &VmEntry) -> u64 {
    let decided = vm.decision.as_ref().map(|decision| decision.hardware.memory);
    let memory = decided.or_else(|| vm.spec.as_ref().map(|object| object.spec.memory));
    memory.map_or(0, |memory| needed(memory).as_u64())
}

/// What a VM of this memory takes on a host.
#[must_use]
pub fn needed(memory: Bytes) -> Bytes {
    Bytes(memory.as_u64() + PER_VM.as_u64())
}
