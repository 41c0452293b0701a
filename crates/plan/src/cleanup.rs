//! Removes what was deleted, when its parts are gone.
//!
//! A VM goes when no host has a copy of it; its boot volume goes with it. A volume goes when its host removed the file.
//! What a removed host said of VMs goes when nothing rests on it.

use std::time::Duration;

use sterna_base::clock::Timestamp;
use sterna_model::key::{Column, Key, Kind};
use sterna_model::meta::{Name, Object};
use sterna_model::volume::VolumeReport;

use crate::action::Action;
use crate::view::{Entry, OwnerCopy, View, Vm, VolumeEntry};
use crate::volume;

/// Ended migrations stay in the store this long, as the VM's ledger; after that they are history only.
const MIGRATIONS_KEPT: Duration = Duration::from_secs(30 * 86_400);

#[must_use]
pub fn plan(view: &View, now: Timestamp) -> Vec<Action> {
    let vms = view.vms().filter(|vm| vm.meta.deleting.is_some()).filter_map(|vm| remove_vm(view, &vm, now));
    let volumes = view.volumes.iter().filter_map(|(name, entry)| remove_volume(view, name, entry, now));
    let migrations = view.migrations.iter().filter(|(name, _)| !view.is_broken(Kind::Migration, name));
    let migrations = migrations.filter_map(|(name, entry)| {
        let decision = entry.decision.as_ref()?;
        let old = decision.phase.has_ended() && now.since(decision.since) > MIGRATIONS_KEPT;
        old.then(|| remove(view, Key::spec(Kind::Migration, name), entry, now, "its record is old"))
    });
    let join_tokens = view.join_tokens.iter().filter_map(|(name, entry)| {
        let expired = entry.spec.as_ref()?.value.spec.expires < now;
        expired.then(|| remove(view, Key::spec(Kind::JoinToken, name), entry, now, "it expired"))
    });
    let rows = view.vms().filter_map(|vm| forget_removed_hosts(view, &vm, now));
    vms.chain(volumes).chain(migrations).chain(join_tokens).chain(rows).collect()
}

/// What a removed host said is forgotten once nothing rests on it: a later host of its name must not be taken to have
/// said it.
fn forget_removed_hosts(view: &View, vm: &Vm<'_>, now: Timestamp) -> Option<Action> {
    if vm.meta.deleting.is_some() || view.is_migrating(vm.name) {
        return None;
    }
    let rests_on = |host: &Name| {
        // How the owner's copy ended says whether it is started again by itself.
        let decision = vm.decision().filter(|decision| decision.owner.host == *host);
        decision.is_some_and(|decision| vm.is_wanted() && vm.spec.power_request <= decision.power_request)
    };
    let removed: Vec<_> =
        vm.entry.reports.keys().filter(|host| view.is_removed(host) && !rests_on(host)).collect();
    let why = removed.iter().map(|host| host.to_string()).collect::<Vec<_>>().join(", ");
    let first = Action::new(now, &vm.key(Column::Spec), "forgot", format!("removed: host {why}"))
        .compare(view, vm.key(Column::Spec))
        .compare(view, vm.key(Column::Decision));
    let action = removed.iter().fold(first, |action, host| {
        // Should it be back, it speaks for itself.
        action
            .compare(view, Key::spec(Kind::Host, host))
            .delete(view, vm.key(Column::ReportOf((*host).clone())))
    });
    (!removed.is_empty()).then_some(action)
}

fn remove_vm(view: &View, vm: &Vm<'_>, now: Timestamp) -> Option<Action> {
    // Until the owner has answered for its epoch, a start may be on its way to it.
    if view.is_migrating(vm.name)
        || holders(view, vm).next().is_some()
        || vm.owner_copy() == OwnerCopy::Unheard
    {
        return None;
    }
    let mut action =
        remove(view, vm.key(Column::Spec), vm.entry, now, "deleted as asked; no host has a copy of it");
    for name in view.index.volumes_by_vm.of(vm.name) {
        let Some(spec) = view.volumes.get(name).and_then(|entry| entry.spec.as_ref()) else { continue };
        if spec.value.meta.deleting.is_none() {
            let mut meta = spec.value.meta.clone();
            meta.deleting = Some(now);
            let object = Object { meta, spec: spec.value.spec.clone() };
            action = action.put(view, Key::spec(Kind::Volume, name), &object);
        }
    }
    for host in vm.entry.reports.keys().filter(|host| view.is_removed(host)) {
        action = action.compare(view, Key::spec(Kind::Host, host));
    }
    Some(action)
}

/// Hosts that have a process of the VM, as far as they said. A removed host has nothing.
pub(crate) fn holders<'a>(view: &'a View, vm: &Vm<'a>) -> impl Iterator<Item = &'a Name> + use<'a> {
    let alive = vm.entry.reports.iter().filter(|(_, row)| row.state.has_process());
    alive.map(|(host, _)| host).filter(|host| !view.is_removed(host))
}

fn remove_volume(view: &View, name: &Name, entry: &VolumeEntry, now: Timestamp) -> Option<Action> {
    entry.meta()?.deleting?;
    if view.is_broken(Kind::Volume, name) {
        return None;
    }
    let gone = entry.report.as_ref().is_some_and(|row| *row.value == VolumeReport::Gone);
    let why = match &entry.decision {
        None => "deleted as asked; it was never made",
        Some(_) if gone => "deleted as asked; its file is gone",
        Some(decision) if view.is_removed(&decision.host) && !volume::is_shared_dir(view, &decision.pool) => {
            "deleted as asked; its file went with its host"
        }
        Some(_) => return None,
    };
    Some(remove(view, Key::spec(Kind::Volume, name), entry, now, why))
}

/// Deletes every column of the object that `spec` names.
fn remove<S, D, R>(view: &View, spec: Key, entry: &Entry<S, D, R>, now: Timestamp, why: &str) -> Action {
    let columns = [Column::Spec, Column::Decision, Column::Report];
    let rows = entry.reports.keys().map(|host| Column::ReportOf(host.clone()));
    let present = columns.into_iter().chain(rows).filter(|column| entry.revision(column) != 0);
    let action = Action::new(now, &spec, "removed", why);
    present.fold(action, |action, column| action.delete(view, Key::new(spec.kind, &spec.name, column)))
}
