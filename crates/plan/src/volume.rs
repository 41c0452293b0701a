//! Pools and hosts for volumes.
//!
//! Reads: specs of volumes, what hosts say of pools. Decides: a volume's pool, host, format and size.
//! Never copies anything: the host that is named does (`agent/src/storage`).

use sterna_base::clock::Timestamp;
use sterna_base::units::Bytes;
use sterna_model::ha::HaState;
use sterna_model::image::{Format, ImageReport};
use sterna_model::key::{Key, Kind};
use sterna_model::meta::Name;
use sterna_model::migration::VolumeMove;
use sterna_model::pool::PoolKind;
use sterna_model::volume::{ImageRef, Location, VolumeDecision, VolumeReport, VolumeSpec};

use crate::action::Action;
use crate::check;
use crate::view::{Host, View};

/// A blank volume of a VM without a size of its own.
const DEFAULT_SIZE: Bytes = Bytes::gib(1);

/// Places volumes that belong to no VM, and passes on wishes to grow.
#[must_use]
pub fn plan(view: &View, now: Timestamp) -> Vec<Action> {
    view.volumes
        .iter()
        .filter(|(name, _)| !view.is_broken(Kind::Volume, name))
        .filter_map(|(name, entry)| {
            let object = &entry.spec.as_ref()?.value;
            if let Some(decision) = entry.decision.as_ref()
                && let Some(why) = is_gone(view, &decision.host)
            {
                return pass_on(view, name, decision, why, now);
            }
            if object.meta.deleting.is_some() {
                return None;
            }
            match &entry.decision {
                Some(decision) => grow(view, name, &object.spec, decision, now),
                None if object.spec.vm.is_none() => place_alone(view, name, &object.spec, now),
                None => None,
            }
        })
        .collect()
}

fn grow(view: &View, name: &Name, spec: &VolumeSpec, has: &VolumeDecision, now: Timestamp) -> Option<Action> {
    let wanted = spec.size.filter(|size| *size > has.size && !has.is_moving())?;
    let key = Key::decision(Kind::Volume, name);
    let why = format!("asked to grow from {} to {wanted}", has.size);
    let decision = VolumeDecision { size: wanted, ..has.clone() };
    Some(Action::new(now, &key, "grows", why).put(view, key, &decision))
}

/// The host cares for nothing any more, in words.
fn is_gone(view: &View, host: &Name) -> Option<&'static str> {
    let is_lost = |host: &Host<'_>| host.ha() == HaState::Fenced && !host.is_connected();
    match view.host(host) {
        _ if view.is_removed(host) => Some("was removed"),
        Some(host) if is_lost(&host) => Some("was lost"),
        _ => None,
    }
}

/// The host that cared for it is gone: in a shared folder any other can, also to remove it.
fn pass_on(view: &View, name: &Name, has: &VolumeDecision, gone: &str, now: Timestamp) -> Option<Action> {
    // Of a move that is under way both ends are for `migration` to settle.
    let moves = has.is_moving() && !view.is_removed(&has.host);
    if !is_shared_dir(view, &has.pool) || moves {
        return None;
    }
    let may = |host: &Host<'_>| host.is_connected() && check::pool_for(view, host, Some(&has.pool)).is_ok();
    let host = view.hosts().find(may)?.name;
    let key = Key::decision(Kind::Volume, name);
    let why = format!("host {} {gone}; host {host} reaches pool {} too", has.host, has.pool);
    let decision = VolumeDecision { host: host.clone(), why: why.clone(), ..has.clone() };
    let action = Action::new(now, &key, "passed on", why).put(view, key, &decision);
    let action =
        action.compare(view, Key::spec(Kind::Host, host)).compare(view, Key::spec(Kind::Host, &has.host));
    Some(action.compare(view, Key::report(Kind::Host, &has.host)))
}

/// Each host reaches the files by itself.
pub(crate) fn is_shared_dir(view: &View, pool: &Name) -> bool {
    let spec = view.pools.get(pool).and_then(|entry| entry.spec.as_ref());
    spec.is_some_and(|object| matches!(object.spec.kind, PoolKind::SharedDir { .. }))
}

fn place_alone(view: &View, name: &Name, spec: &VolumeSpec, now: Timestamp) -> Option<Action> {
    let fits = |host: Host<'_>| host.takes_vms().then(|| decide(view, spec, &host).ok())?;
    let decision = view.hosts().find_map(fits)?;
    let key = Key::decision(Kind::Volume, name);
    let action = Action::new(now, &key, "placed", decision.why.clone()).put(view, key, &decision);
    Some(rest_on(view, action, &decision).compare(view, Key::spec(Kind::Volume, name)))
}

/// Adds to a VM's start what its volume still needs: a place when it has none.
pub fn place_with_vm(view: &View, name: &Name, host: &Host<'_>, action: Action) -> Result<Action, String> {
    let entry = view.volumes.get(name).ok_or_else(|| format!("volume {name} does not exist"))?;
    let spec = entry.spec.as_ref().ok_or_else(|| format!("volume {name} does not exist"))?;
    if spec.value.meta.deleting.is_some() {
        return Err(format!("volume {name} is being deleted"));
    }
    let key = Key::decision(Kind::Volume, name);
    match (&entry.decision, &entry.report) {
        (None, _) => {
            let decision = decide(view, &spec.value.spec, host)?;
            Ok(rest_on(view, action.put(view, key, &decision), &decision))
        }
        // A thin clone is made while the VM waits; a volume that failed keeps the VM from being started for nothing.
        (Some(_), Some(report)) => match &*report.value {
            VolumeReport::Failed { why } => Err(format!("volume {name} could not be made: {why}")),
            _ => Ok(action.compare(view, key)),
        },
        (Some(_), None) => Ok(action.compare(view, key)),
    }
}

/// The host may be removed, and the image deleted, while this is decided.
fn rest_on(view: &View, action: Action, decision: &VolumeDecision) -> Action {
    let action = action.compare(view, Key::spec(Kind::Host, &decision.host));
    match &decision.image {
        Some(image) => action.compare(view, Key::spec(Kind::Image, &image.name)),
        None => action,
    }
}

fn decide(view: &View, spec: &VolumeSpec, host: &Host<'_>) -> Result<VolumeDecision, String> {
    let pool = check::pool_for(view, host, spec.pool.as_ref())?;
    let (image, image_size) = match &spec.image {
        None => (None, None),
        Some(name) => image(view, name).map(|(image, size)| (Some(image), Some(size)))?,
    };
    let size = spec.size.into_iter().chain(image_size).max().unwrap_or(DEFAULT_SIZE);
    let maker = maker(view, &pool, host)?;
    let why = format!("pool {pool}, made by host {maker}");
    // Thin clones need a format with a backing file; blank volumes are sparse in either, and qcow2 keeps them so when
    // they are copied.
    Ok(VolumeDecision {
        pool,
        host: maker,
        format: Format::Qcow2,
        size,
        image,
        arriving: None,
        leaving: None,
        former: Vec::new(),
        why,
    })
}

/// Where a copy of a volume would lie for this host: in the pool asked for when the host reaches that, else in a default
/// one.
pub(crate) fn location_for(view: &View, host: &Host<'_>, asked: Option<&Name>) -> Result<Location, String> {
    let asked = asked.and_then(|asked| check::pool_for(view, host, Some(asked)).ok());
    let pool = asked.map_or_else(|| check::pool_for(view, host, None), Ok)?;
    let host = maker(view, &pool, host)?;
    Ok(Location { pool, host })
}

/// An older copy of it lies where it goes: only what differs has to cross.
pub(crate) fn has_copy(view: &View, moving: &VolumeMove) -> bool {
    let decision = view.volumes.get(&moving.volume).and_then(|entry| entry.decision.as_ref());
    decision.is_some_and(|decision| decision.former.contains(&moving.to))
}

/// An `nbd` pool's files are only on its own host.
fn maker(view: &View, pool: &Name, host: &Host<'_>) -> Result<Name, String> {
    let spec = view.pools.get(pool).and_then(|entry| entry.spec.as_ref());
    match spec.map(|spec| &spec.value.spec.kind) {
        Some(PoolKind::Nbd { host: server, .. }) => match view.host(server) {
            Some(server) if server.is_connected() => Ok(server.name.clone()),
            _ => Err(format!("host {server}, which serves pool {pool}, is silent")),
        },
        _ => Ok(host.name.clone()),
    }
}

fn image(view: &View, name: &Name) -> Result<(ImageRef, Bytes), String> {
    let entry = view.images.get(name).ok_or_else(|| format!("image {name} does not exist"))?;
    if entry.meta().is_none_or(|meta| meta.deleting.is_some()) {
        return Err(format!("image {name} is being deleted"));
    }
    match entry.report.as_ref().map(|row| &*row.value) {
        Some(ImageReport::Ready { sha256, format, virtual_size, .. }) => {
            Ok((ImageRef { name: name.clone(), sha256: sha256.clone(), format: *format }, *virtual_size))
        }
        Some(ImageReport::Failed { why }) => Err(format!("image {name} is not usable: {why}")),
        _ => Err(format!("image {name} has not arrived yet")),
    }
}
