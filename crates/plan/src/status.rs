//! What users see, from a view.

use std::collections::BTreeMap;

use sterna_base::clock::Timestamp;
use sterna_model::meta::Name;
use sterna_model::status::{Columns, VmState, VmStatus, status};
use sterna_model::vm::VmReport;

use crate::view::{Host, OwnerCopy, View, Vm};
use crate::{cleanup, ha, placement, recovery};

/// The status of a VM; `None` when there is no such VM or a part of it cannot be read.
#[must_use]
pub fn vm(view: &View, name: &Name, now: Timestamp) -> Option<VmStatus> {
    let vm = view.vm(name)?;
    let decision = vm.decision();
    // Only the owner's row matters.
    let owner_row = decision.and_then(|decision| vm.entry.reports.get_key_value(&decision.owner.host));
    let reports: BTreeMap<Name, VmReport> =
        owner_row.into_iter().map(|(host, row)| (host.clone(), (*row.value).clone())).collect();
    let owner = decision.and_then(|decision| view.host(&decision.owner.host));
    // Asked only of VMs that wait: looking for a host costs a walk over all of them.
    let waits = placement::waits_for_start(view, &vm);
    let unplaced = if waits { placement::obstacle(view, &vm, now) } else { None };
    let mut status = status(Columns {
        meta: vm.meta,
        spec: vm.spec,
        decision,
        reports: &reports,
        owner_connected: owner.as_ref().is_some_and(Host::is_connected),
        migrating: view.migration_of(name).is_some(),
        unplaced_why: unplaced.as_deref(),
    });
    let owner_removed = vm.owner_copy() == OwnerCopy::Removed;
    if status.state == VmState::Unknown && owner_removed && !vm.spec.power.wants_process() {
        status.state = VmState::Stopped;
        status.message = "the host that had it was removed".to_owned();
    }
    if let Some(why) = hindrance(view, &vm, &status, unplaced, now) {
        status.message = why;
    }
    Some(status)
}

/// What a VM waits for that its own columns do not tell.
fn hindrance(
    view: &View,
    vm: &Vm<'_>,
    status: &VmStatus,
    unplaced: Option<String>,
    now: Timestamp,
) -> Option<String> {
    let waits =
        matches!(status.state, VmState::Placing | VmState::Failed | VmState::Starting | VmState::Deleting);
    if waits && recovery::is_on(view) {
        return Some("waits: the store came back from a backup; see `sterna server recover`".to_owned());
    }
    match status.state {
        VmState::Placing => unplaced,
        VmState::Failed => {
            let why = ha::obstacle(view, vm, now)?;
            Some(format!("{}; not started again: {why}", status.message))
        }
        VmState::Unknown => {
            let host = &vm.decision()?.owner.host;
            if view.is_removed(host) {
                return Some(format!("host {host} was removed"));
            }
            ha::recover::obstacle(view, vm, now)
        }
        VmState::Deleting => {
            let unheard =
                vm.decision().filter(|_| vm.owner_copy() == OwnerCopy::Unheard).map(|has| &has.owner.host);
            let mut hosts: Vec<_> = cleanup::holders(view, vm).chain(unheard).collect();
            hosts.dedup();
            let silent = |host: &Name| !view.host(host).is_some_and(|host| host.is_connected());
            let list: Vec<_> = hosts
                .iter()
                .map(|host| if silent(host) { format!("{host}, which is silent") } else { host.to_string() })
                .collect();
            (!list.is_empty()).then(|| format!("being deleted; waits for host {}", list.join(" and ")))
        }
        _ => None,
    }
}
