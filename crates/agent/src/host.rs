//! What this machine is: its report, and what is used of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use sterna_base::clock::Timestamp;
use sterna_base::file::{read_if_there, write_durably};
use sterna_base::units::Bytes;
use sterna_model::cpu::{Accel, CpuReport};
use sterna_model::ha::GuardSeen;
use sterna_model::host::{HostReport, LinkState, PoolSeen};
use sterna_model::meta::Name;
use sterna_model::tunnel::TunnelSeen;
use sterna_qemu::config;
use sterna_qemu::probe::{self, Inspection};

use crate::carrier::Lines;
use crate::config::{Accel as Wanted, Config};
use crate::process;

/// What was found out about QEMU on this host. Takes seconds, so it is kept until the binary or the boot changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Probed {
    key: ProbeKey,
    pub accel: config::Accel,
    pub why: String,
    pub inspection: Inspection,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct ProbeKey {
    binary: PathBuf,
    modified: Option<SystemTime>,
    size: u64,
    boot_id: String,
    wanted: String,
}

/// What the last probe found, in the data folder.
pub const CACHE: &str = "probe.json";

impl ProbeKey {
    fn of(binary: &Path, wanted: Wanted) -> anyhow::Result<Self> {
        let meta = std::fs::metadata(binary).with_context(|| format!("find {}", binary.display()))?;
        Ok(Self {
            binary: binary.to_owned(),
            modified: meta.modified().ok(),
            size: meta.len(),
            boot_id: process::boot_id().context("read the boot id")?,
            wanted: format!("{wanted:?}"),
        })
    }
}

/// Asks and tries QEMU, or remembers what came of it in this boot.
pub async fn probe(config: &Config, binary: &Path) -> anyhow::Result<Probed> {
    let key = ProbeKey::of(binary, config.accel)?;
    let cache = config.data_dir.join(CACHE);
    let cached = read_if_there(&cache).ok().flatten();
    let cached = cached.and_then(|bytes| serde_json::from_slice::<Probed>(&bytes).ok());
    if let Some(probed) = cached.filter(|probed| probed.key == key) {
        return Ok(probed);
    }
    let (accel, why) = match config.accel {
        Wanted::Tcg => (config::Accel::Tcg, "the configuration says so".to_owned()),
        Wanted::Kvm => (config::Accel::Kvm, "the configuration says so".to_owned()),
        Wanted::Auto => {
            let choice = probe::choose_accel(binary).await.context("try QEMU")?;
            (choice.accel, choice.reason)
        }
    };
    let inspection = probe::inspect(binary, accel).await.context("ask QEMU what it can do")?;
    let probed = Probed { key, accel, why, inspection };
    if let Err(error) = write_durably(&cache, &serde_json::to_vec(&probed)?, 0o600) {
        tracing::warn!(%error, "the probe's result is not kept");
    }
    Ok(probed)
}

/// Models that mean something else on each host.
const NOT_PORTABLE: [&str; 3] = ["host", "max", "base"];

fn cpu_report(inspection: &Inspection) -> CpuReport {
    let models = inspection.cpus.iter().filter(|cpu| !NOT_PORTABLE.contains(&cpu.name.as_str()));
    let known = models.filter_map(|cpu| {
        let missing = cpu.unavailable_features.clone()?.into_iter().collect::<BTreeSet<_>>();
        Some((cpu.name.clone(), missing))
    });
    CpuReport {
        models: known.collect(),
        machines: inspection.machines.iter().map(ToString::to_string).collect(),
    }
}

pub fn report(
    config: &Config,
    probed: &Probed,
    (pools, tunnel, lines, guard): (BTreeMap<Name, PoolSeen>, Option<TunnelSeen>, Lines, Option<GuardSeen>),
) -> anyhow::Result<HostReport> {
    let cpus = match config.cpus {
        Some(cpus) => cpus,
        None => u32::try_from(std::thread::available_parallelism().context("count the CPUs")?.get())?,
    };
    let memory = match config.memory {
        Some(memory) => memory,
        None => Memory::read().context("read /proc/meminfo")?.total,
    };
    Ok(HostReport {
        boot_id: probed.key.boot_id.clone(),
        sterna_version: env!("CARGO_PKG_VERSION").to_owned(),
        qemu_version: probed.inspection.version.to_string(),
        accel: match probed.accel {
            config::Accel::Kvm => Accel::Kvm,
            config::Accel::Tcg => Accel::Tcg,
        },
        accel_why: probed.why.clone(),
        cpus,
        memory,
        cpu: cpu_report(&probed.inspection),
        pools,
        tunnel,
        mover: lines.mover,
        lines: lines.seen,
        guard,
        // Both are the server's to say.
        link: LinkState::default(),
        since: Timestamp::default(),
        told: None,
    })
}

/// The group that may open the KVM device, when guests need it.
#[must_use]
pub fn groups(probed: &Probed) -> Vec<u32> {
    use std::os::unix::fs::MetadataExt;
    let needs = probed.accel == config::Accel::Kvm;
    std::fs::metadata("/dev/kvm").ok().filter(|_| needs).map(|meta| meta.gid()).into_iter().collect()
}

struct Memory {
    total: Bytes,
    available: Bytes,
}

impl Memory {
    fn read() -> std::io::Result<Self> {
        let text = std::fs::read_to_string("/proc/meminfo")?;
        let kib = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        let bytes = |key| Bytes(kib(key).unwrap_or(0) * 1024);
        Ok(Self { total: bytes("MemTotal:"), available: bytes("MemAvailable:") })
    }
}

/// Measures what is in use. A host that is only a part of its machine counts its own guests instead.
pub struct Meter {
    vms: Option<PathBuf>,
    last: Option<(Instant, Duration)>,
}

impl Meter {
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let is_part = config.cpus.is_some() || config.memory.is_some();
        Self { vms: is_part.then(|| config.run_dir.join("vm")), last: None }
    }

    /// Thousandths of one CPU since the last call, and bytes of memory.
    pub fn measure(&mut self) -> std::io::Result<(u32, Bytes)> {
        let (cpu, memory) = match &self.vms {
            Some(vms) => of_guests(vms)?,
            None => of_machine()?,
        };
        let now = Instant::now();
        let last = self.last.replace((now, cpu));
        let milli = last.map_or(0, |(at, before)| {
            let passed = now.duration_since(at).as_millis().max(1);
            cpu.saturating_sub(before).as_millis() * 1000 / passed
        });
        Ok((u32::try_from(milli).unwrap_or(u32::MAX), memory))
    }
}

fn of_guests(vms: &Path) -> std::io::Result<(Duration, Bytes)> {
    // One that ended while we counted uses nothing.
    let usage = process::of_vms(vms)?.into_iter().filter_map(|(_, pid)| process::usage(pid).ok());
    let (cpu, memory) = usage.fold((Duration::ZERO, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    Ok((cpu, Bytes(memory)))
}

fn of_machine() -> std::io::Result<(Duration, Bytes)> {
    let memory = Memory::read()?;
    let stat = std::fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal; guest time is in user already.
    let busy: u64 =
        ticks.iter().take(8).enumerate().filter(|(at, _)| !matches!(at, 3 | 4)).map(|(_, t)| t).sum();
    let used = memory.total.as_u64().saturating_sub(memory.available.as_u64());
    Ok((process::ticks(busy), Bytes(used)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sterna_qemu::qmp::machine::CpuDefinition;
    use sterna_qemu::version::{MachineType, Version};

    #[test]
    fn models_that_differ_between_hosts_are_not_reported() {
        let cpu = |name: &str, missing: Option<&[&str]>| CpuDefinition {
            name: name.into(),
            unavailable_features: missing.map(|all| all.iter().map(|it| (*it).to_owned()).collect()),
            is_migration_safe: None,
            is_static: false,
            alias_of: None,
            is_deprecated: false,
        };
        let cpus = vec![
            cpu("host", Some(&[])),
            cpu("max", Some(&[])),
            cpu("qemu64", Some(&[])),
            cpu("Haswell", Some(&["hle", "rtm"])),
            cpu("unknown", None),
        ];
        let machines = vec![MachineType::parse("pc-q35-10.0").unwrap()];
        let report = cpu_report(&Inspection { version: Version::new(10, 0, 2), machines, cpus });
        assert_eq!(report.models.keys().collect::<Vec<_>>(), ["Haswell", "qemu64"]);
        assert_eq!(report.models["Haswell"].len(), 2);
        assert!(report.machines.contains("pc-q35-10.0"));
    }

    #[test]
    fn the_machine_has_memory_and_uses_time() {
        let (cpu, memory) = of_machine().unwrap();
        assert!(cpu > Duration::ZERO && memory.as_u64() > 0);
        assert!(Memory::read().unwrap().total > memory);
    }
}
