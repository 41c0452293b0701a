//! How a running VM gets to a host: which volumes go with it, and who carries its memory and them.
//!
//! Reads: where volumes lie, who reaches them, datacentres, what hosts are. Decides nothing by itself: `migration` asks
//! when it admits a move, `check` when it tells whether there is a way at all.

use sterna_model::host::HostReport;
use sterna_model::meta::Name;
use sterna_model::migration::{Via, VolumeMove};
use sterna_model::pool::PoolKind;
use sterna_model::volume::VolumeDecision;

use crate::check;
use crate::view::{Host, View, Vm};
use crate::volume;

/// The first QEMU whose several connections may be relied on.
const CHANNELS_SINCE: u32 = 10;
/// Guests need the others: half of a host's CPUs may work for one move.
const CPUS_A_CHANNEL: u32 = 2;
/// In clear a processor copies as fast as a line takes it, but QEMU's own thread does not: it is helped by this many.
const CHANNELS_IN_CLEAR: u8 = 2;
/// More than this many gain nothing on the lines that hosts have.
const CHANNELS_MAX: u8 = 8;

/// A way from the VM's host to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub via: Via,
    /// From one QEMU to the other: connections for memory beside the first; 0: one in clear carries everything.
    pub channels: u8,
    /// Those connections are not encrypted.
    pub in_clear: bool,
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
    let source = view.host(&decision.owner.host);
    let is_far = source.is_some_and(|source| source.spec.datacentre != host.spec.datacentre);
    let held = volumes.iter().find(|moving| volume::has_copy(view, moving));
    if !is_far && held.is_none() {
        let (channels, in_clear, how) = channels(source.as_ref(), host);
        let why = match &volumes[..] {
            [] => format!("memory only, straight from host to host: every volume is in a shared pool; {how}"),
            // What a compression or a comparison would save costs more than the line inside a datacentre.
            _ => format!("memory and disks straight from host to host: {}; {how}", list(&volumes)),
        };
        return Ok(Route { via: Via::Direct, channels, in_clear, volumes, why });
    }
    let far = is_far.then(|| format!("the target is in datacentre {}", host.spec.datacentre));
    let held = held.map(|moving| {
        format!(
            "host {} has a former copy of volume {}, and only what differs crosses",
            host.name, moving.volume
        )
    });
    let why = Vec::from_iter(far.into_iter().chain(held));
    Ok(by_mover(volumes, why))
}

impl Route {
    /// The same for volumes that go ahead of their VM: what is there already is compared, however often that is repeated.
    #[must_use]
    pub fn ahead(self) -> Self {
        if self.via == Via::Mover {
            return self;
        }
        by_mover(self.volumes, vec!["the volumes go ahead of the VM".to_owned()])
    }
}

fn by_mover(volumes: Vec<VolumeMove>, mut why: Vec<String>) -> Route {
    if !volumes.is_empty() {
        why.push(list(&volumes));
    }
    let why = format!("through the mover: {}", why.join(", "));
    Route { via: Via::Mover, channels: 0, in_clear: false, volumes, why }
}

fn list(volumes: &[VolumeMove]) -> String {
    let words = volumes
        .iter()
        .map(|it| format!("volume {} goes from pool {} to pool {}", it.volume, it.from.pool, it.to.pool));
    words.collect::<Vec<_>>().join(", ")
}

/// To encrypt 400 MB keeps a processor of each host busy for 2 s in QEMU, and to copy them for a third of one: a line is
/// filled by encrypted connections only where several processors are free for them.
fn channels(source: Option<&Host<'_>>, target: &Host<'_>) -> (u8, bool, String) {
    let one = |why: String| (0, true, format!("in clear over one connection: {why}"));
    let hosts = source.into_iter().chain([target]);
    let known = Vec::from_iter(hosts.filter_map(|host| Some((host.name, host.report?))));
    if known.len() < 2 {
        return one("one of the hosts has not said what it is".to_owned());
    }
    if let Some((host, report)) = known.iter().find(|(_, report)| !has_sound_channels(report)) {
        return one(format!("QEMU {} on host {host} is older than {CHANNELS_SINCE}.0", report.qemu_version));
    }
    let cpus = known.iter().map(|(_, report)| report.cpus).min().unwrap_or(0);
    match u8::try_from(cpus / CPUS_A_CHANNEL).unwrap_or(CHANNELS_MAX).min(CHANNELS_MAX) {
        0 | 1 => {
            let how = format!(
                "in clear over {CHANNELS_IN_CLEAR} connections: the smaller host has {cpus} CPUs, too few to encrypt \
                 as fast as it can send"
            );
            (CHANNELS_IN_CLEAR, true, how)
        }
        channels => {
            let how =
                format!("encrypted by QEMU over {channels} connections: each host has {cpus} CPUs or more");
            (channels, false, how)
        }
    }
}

/// QEMU 7.1 to 9.2 do not understand each other with several connections, and 9.0 and 9.1 write to freed memory.
fn has_sound_channels(report: &HostReport) -> bool {
    let major = report.qemu_version.split('.').next().and_then(|major| major.parse().ok());
    major.is_some_and(|major: u32| major >= CHANNELS_SINCE)
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
