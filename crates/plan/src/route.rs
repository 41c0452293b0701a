//! How a running VM gets to a host: which volumes go with it, and who carries its memory.
//!
//! Reads: where volumes lie, who reaches them, datacentres. Decides nothing by itself: `migration` asks when it admits a
//! move, `check` when it tells whether there is a way at all.

use sterna_model::meta::Name;
use sterna_model::migration::{Via, VolumeMove};
use sterna_model::pool::PoolKind;
use sterna_model::volume::VolumeDecision;

use crate::check;
use crate::view::{Host, View, Vm};
use crate::volume;

/// A way from the VM's host to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub via: Via,
    pub volumes: Vec<VolumeMove>,
    /// Why it is this one, in words.
    pub why: String,
}

/// The way of a running VM to `host`, or why there is none.
pub fn route(view: &View, vm: &Vm<'_>, host: &Host<'_>) -> Result<Route, String> {
    let decision = vm.decision().ok_or("the VM has never been started")?;
    let mut volumes = Vec::new();
    for name in &decision.hardware.volumes {
        volumes.extend(move_of(view, vm, host, name)?);
    }
    let from = view.host(&decision.owner.host).map(|source| &source.spec.datacentre);
    let is_far = from.is_some_and(|from| *from != host.spec.datacentre);
    let via = if is_far || !volumes.is_empty() { Via::Mover } else { Via::Direct };
    let why = explain(via, is_far.then_some(&host.spec.datacentre), &volumes);
    Ok(Route { via, volumes, why })
}

fn explain(via: Via, far: Option<&Name>, volumes: &[VolumeMove]) -> String {
    if via == Via::Direct {
        return "memory only, straight from host to host: every volume is in a shared pool".to_owned();
    }
    let mut why = Vec::from_iter(far.map(|datacentre| format!("the target is in datacentre {datacentre}")));
    why.extend(
        volumes
            .iter()
            .map(|it| format!("volume {} goes from pool {} to pool {}", it.volume, it.from.pool, it.to.pool)),
    );
    format!("through the mover: {}", why.join(", "))
}

/// `None`: the host opens the volume where it is.
fn move_of(view: &View, vm: &Vm<'_>, host: &Host<'_>, name: &Name) -> Result<Option<VolumeMove>, String> {
    let Some(unreachable) = check::unreachable_volume(view, host, name) else { return Ok(None) };
    let entry = view.volumes.get(name).ok_or(&*unreachable)?;
    let (decision, spec) = match (&entry.decision, &entry.spec) {
        (Some(decision), Some(spec)) => (&*decision.value, &spec.value.spec),
        _ => return Err(unreachable),
    };
    if !is_out_of_reach(view, host, decision) {
        // Its pool is meant to be there. To copy the volume elsewhere is no answer to a pool that has failed.
        return Err(unreachable);
    }
    if decision.is_moving() {
        return Err(format!("volume {name} is still between two places"));
    }
    if let Some(other) = view.index.vms_by_volume.of(name).find(|other| *other != vm.name) {
        return Err(format!("volume {name} is also VM {other}'s"));
    }
    let to = volume::location_for(view, host, spec.pool.as_ref())
        .map_err(|why| format!("volume {name} has no place there: {why}"))?;
    Ok(Some(VolumeMove { volume: name.clone(), from: decision.location(), to }))
}

/// The volume's pool cannot be reached from this host, and is not meant to be.
fn is_out_of_reach(view: &View, host: &Host<'_>, decision: &VolumeDecision) -> bool {
    let pool = view.pools.get(&decision.pool).and_then(|entry| entry.spec.as_ref());
    pool.is_some_and(|pool| {
        let spec = &pool.value.spec;
        let is_elsewhere = spec.datacentre.as_ref().is_some_and(|of| *of != host.spec.datacentre);
        is_elsewhere || matches!(spec.kind, PoolKind::Dir { .. })
    })
}
