//! Empties hosts that are to be serviced.
//!
//! Reads: which hosts are draining, what runs there. Decides: migrations away from them, a few at a time,
//! and their end when a drain is taken back.
//! Never chooses the target (`migration`) and never stops a VM that cannot move: that is shown and left to a person.

use std::time::Duration;

use sterna_base::clock::Timestamp;
use sterna_base::units::Span;
use sterna_model::key::{Column, Key, Kind};
use sterna_model::meta::{Labels, Meta, Name, Object};
use sterna_model::migration::{MigrationSpec, Phase};

use crate::action::Action;
use crate::check;
use crate::migration::OUTGOING_MAX;
use crate::placement;
use crate::view::{Host, View, Vm};

/// Waits after the first, second, ... move that did not succeed, so that a cause that stays is not met in a loop.
const WAITS: [Duration; 4] =
    [Duration::from_secs(5), Duration::from_secs(30), Duration::from_secs(120), Duration::from_secs(600)];

/// How a migration says that a drain asked for it; the host's name follows. No person's name has a space.
const ASKED_BY: &str = "drain of host ";

#[must_use]
pub fn plan(view: &View, now: Timestamp) -> Vec<Action> {
    let mut actions = take_back(view, now);
    for host in view.hosts().filter(|host| host.spec.draining) {
        actions.extend(empty(view, &host, now));
    }
    actions
}

/// Moves that a drain asked for and that have not begun to copy are cancelled once it was taken back. One that copies
/// goes on: most of the cost is paid, and the guest is as well off there.
fn take_back(view: &View, now: Timestamp) -> Vec<Action> {
    let open = view.index.open_migrations.iter().filter(|name| !view.is_broken(Kind::Migration, name));
    open.filter_map(|name| {
        let entry = view.migrations.get(name)?;
        let row = entry.spec.as_ref()?;
        let host = Name::new(row.value.spec.asked_by.strip_prefix(ASKED_BY)?).ok()?;
        let is_draining = view.host(&host)?.spec.draining;
        let phase = entry.decision.as_ref().map(|decision| &decision.phase);
        let has_begun = !matches!(phase, None | Some(Phase::Pending | Phase::Preparing));
        if is_draining || has_begun || row.value.spec.cancel {
            return None;
        }
        let spec = MigrationSpec { cancel: true, ..row.value.spec.clone() };
        let object = Object { meta: row.value.meta.clone(), spec };
        let why = format!("the drain of host {host} was taken back");
        Some(
            Action::new(now, &Key::spec(Kind::Vm, &object.spec.vm), "not to be moved", why)
                .put(view, Key::spec(Kind::Migration, name), &object)
                .compare(view, Key::decision(Kind::Migration, name))
                .compare(view, Key::spec(Kind::Host, &host)),
        )
    })
    .collect()
}

fn empty(view: &View, host: &Host<'_>, now: Timestamp) -> Vec<Action> {
    let owned = || view.vms_on(host.name).filter(|vm| is_owner(host, vm));
    let under_way = owned().filter(|vm| view.is_migrating(vm.name)).count();
    owned()
        .filter(|vm| vm.is_wanted() && !view.is_migrating(vm.name) && check::can_leave(view, vm).is_ok())
        .filter(|vm| !rests(view, vm, now))
        .filter(|vm| view.hosts().any(|other| check::arrive(view, vm, &other).is_none()))
        .take(OUTGOING_MAX.saturating_sub(under_way))
        .filter_map(|vm| order(view, host, &vm, now))
        .collect()
}

fn is_owner(host: &Host<'_>, vm: &Vm<'_>) -> bool {
    vm.decision().is_some_and(|decision| decision.owner.host == *host.name)
}

/// Its last moves under this epoch did not succeed, and the wait after the last one is not over.
fn rests(view: &View, vm: &Vm<'_>, now: Timestamp) -> bool {
    let epoch = vm.decision().map_or(0, |decision| decision.owner.epoch);
    let failed: Vec<Timestamp> = view
        .index
        .migrations_by_vm
        .of(vm.name)
        .filter_map(|name| view.migrations.get(name)?.decision.as_ref())
        .filter(|decision| decision.epoch == epoch && decision.phase.has_ended())
        .map(|decision| decision.since)
        .collect();
    let Some(last) = failed.iter().max() else { return false };
    now >= *last && now.since(*last) < WAITS[(failed.len() - 1).min(WAITS.len() - 1)]
}

fn order(view: &View, host: &Host<'_>, vm: &Vm<'_>, now: Timestamp) -> Option<Action> {
    let name = free_name(view, vm)?;
    let number: u32 = name.as_str().rsplit('-').next()?.parse().ok()?;
    let salt = (u128::from(number) << 64) | u128::from(vm.next_epoch());
    let object = Object {
        meta: Meta {
            // Derived, not drawn: the same round after a crash makes the same object.
            uid: uuid::Uuid::from_u128(vm.meta.uid.as_u128() ^ salt),
            name: name.clone(),
            created: now,
            labels: Labels::new(),
            notes: String::new(),
            deleting: None,
        },
        spec: MigrationSpec {
            vm: vm.name.clone(),
            to: None,
            max_downtime: Span::from_millis(300),
            finish_by: None,
            cancel: false,
            seed: false,
            forecast: None,
            asked_by: format!("{ASKED_BY}{}", host.name),
        },
    };
    let key = Key::spec(Kind::Migration, &name);
    let why = format!("host {} is being drained", host.name);
    Some(
        Action::new(now, &vm.key(Column::Spec), "to be moved", why)
            .put(view, key, &object)
            // The drain may be taken back, and the VM may have got another owner.
            .compare(view, Key::spec(Kind::Host, host.name))
            .compare(view, vm.key(Column::Decision)),
    )
}

/// `VM-N` with the lowest free N; the API names migrations the same way. A name that hosts still speak of is not free: an
/// old word about it must not be taken for one about the new migration.
#[must_use]
pub fn free_name(view: &View, vm: &Vm<'_>) -> Option<Name> {
    let stem: String = vm.name.as_str().chars().take(55).collect();
    (1..10_000u32)
        .filter_map(|n| Name::new(&format!("{}-{n}", stem.trim_end_matches('-'))).ok())
        .find(|name| !view.migrations.contains_key(name) && !is_spoken_of(vm, name))
}

pub(crate) fn is_spoken_of(vm: &Vm<'_>, name: &Name) -> bool {
    let mut reports = vm.entry.reports.values().filter_map(|row| row.migration.as_ref());
    let continues = vm.decision().and_then(|decision| decision.continues.as_ref());
    continues == Some(name) || reports.any(|report| report.migration == *name)
}

/// VMs of a draining host that cannot move, with the reason: what a person has to look at.
#[must_use]
pub fn blockers(view: &View, host: &Host<'_>) -> Vec<(Name, String)> {
    view.vms_on(host.name)
        .filter(|vm| is_owner(host, vm))
        .filter(|vm| vm.owner_report().is_some_and(|report| report.state.has_process()))
        .filter_map(|vm| {
            let why = match check::can_leave(view, &vm) {
                Err(why) => why,
                Ok(()) => placement::choose_move(view, &vm, None).err()?,
            };
            Some((vm.name.clone(), why))
        })
        .collect()
}
