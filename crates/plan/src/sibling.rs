//! VMs whose memory resembles another's, so that it need not be sent: those that booted from the same image.
//!
//! Reads: images of boot volumes, owners, what the host reports of them. Decides nothing: `assignment` tells the target.
//!
//! That two pages are alike is told to the source by the target, so siblings must be VMs that may know of each other: the
//! scope is the project, and today all VMs are of one.

use sterna_model::meta::Name;
use sterna_model::vm::CopyState;
use uuid::Uuid;

use crate::view::{View, Vm};

/// A third one has little that two have not, and each costs its host the reading of its memory.
const MOST: usize = 2;

/// The siblings that run on a host, those of about the same size first.
#[must_use]
pub fn of(view: &View, vm: &Vm<'_>, host: &Name) -> Vec<Uuid> {
    let Some(image) = image(view, vm) else { return Vec::new() };
    let memory = |vm: &Vm<'_>| vm.decision().map_or(0, |decision| decision.hardware.memory.as_u64());
    let siblings = view.vms_on(host).filter(|other| {
        other.name != vm.name && runs_on(other, host) && self::image(view, other) == Some(image)
    });
    let mut siblings: Vec<_> =
        siblings.map(|other| (memory(&other).abs_diff(memory(vm)), other.name, other.meta.uid)).collect();
    siblings.sort();
    siblings.into_iter().take(MOST).map(|(.., uid)| uid).collect()
}

fn runs_on(vm: &Vm<'_>, host: &Name) -> bool {
    let is_owner = vm.decision().is_some_and(|decision| decision.owner.host == *host);
    is_owner && vm.owner_report().is_some_and(|row| row.state == CopyState::Running)
}

/// The checksum of what its first volume was made of.
fn image<'a>(view: &'a View, vm: &Vm<'_>) -> Option<&'a str> {
    let boot = vm.decision()?.hardware.volumes.first()?;
    let volume = view.volumes.get(boot)?.decision.as_ref()?;
    volume.value.image.as_ref().map(|image| image.sha256.as_str())
}
