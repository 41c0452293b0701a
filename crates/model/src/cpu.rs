//! CPU models that every host of a cluster can run.
//!
//! A VM may move only where its CPU exists. The baseline is the best named model whose features no host lacks, and the
//! newest machine version that all hosts know.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What runs guest code on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// The processor, through the kernel.
    Kvm,
    /// Emulation: correct and slow; for tests, not for keeping tenants apart.
    Tcg,
}

/// What one host's QEMU says about CPU models and machine versions under its accelerator.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CpuReport {
    /// Model name -> features of the model that this host cannot give.
    pub models: BTreeMap<String, BTreeSet<String>>,
    /// Versioned q35 machine types, such as `pc-q35-10.0`.
    pub machines: BTreeSet<String>,
}

/// What all hosts of a cluster can run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Baseline {
    pub cpu_model: String,
    pub machine: String,
    pub accel: Accel,
}

/// Why there is no baseline.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoBaseline {
    #[error("no host has reported its CPU models yet")]
    NoHosts,
    #[error("no named CPU model runs on every host")]
    NoModel,
    #[error("no machine version is known to every host's QEMU")]
    NoMachine,
    #[error("some hosts run guests with KVM and others with TCG")]
    MixedAccel,
}

/// Best first. Server generations of both makers, then the microarchitecture levels, then what every x86-64 has.
const PREFERENCE: [&str; 17] = [
    "GraniteRapids",
    "SapphireRapids",
    "Icelake-Server",
    "EPYC-Genoa",
    "EPYC-Milan",
    "EPYC-Rome",
    "Cascadelake-Server",
    "Skylake-Server",
    "EPYC",
    "Broadwell",
    "Haswell",
    "IvyBridge",
    "SandyBridge",
    "Westmere",
    "Nehalem",
    "Penryn",
    "qemu64",
];

/// The baseline over all hosts given. Under TCG the generic `qemu64` is chosen: emulating a newer CPU only costs time.
pub fn baseline<'a>(hosts: impl IntoIterator<Item = (Accel, &'a CpuReport)>) -> Result<Baseline, NoBaseline> {
    let hosts: Vec<_> = hosts.into_iter().collect();
    let (accel, first) = *hosts.first().ok_or(NoBaseline::NoHosts)?;
    if hosts.iter().any(|(other, _)| *other != accel) {
        return Err(NoBaseline::MixedAccel);
    }
    let runs_everywhere =
        |model: &str| hosts.iter().all(|(_, host)| host.models.get(model).is_some_and(BTreeSet::is_empty));
    let candidates: &[&str] = if accel == Accel::Tcg { &["qemu64"] } else { &PREFERENCE };
    let cpu_model = candidates.iter().find(|model| runs_everywhere(model)).ok_or(NoBaseline::NoModel)?;
    let machine = first
        .machines
        .iter()
        .filter(|machine| hosts.iter().all(|(_, host)| host.machines.contains(*machine)))
        .max_by_key(|machine| version(machine))
        .ok_or(NoBaseline::NoMachine)?;
    Ok(Baseline { cpu_model: (*cpu_model).to_owned(), machine: machine.clone(), accel })
}

/// `pc-q35-10.0` -> (10, 0); names without a version sort first.
fn version(machine: &str) -> (u32, u32) {
    let tail = machine.rsplit('-').next().unwrap_or_default();
    let mut parts = tail.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(models: &[(&str, &[&str])], machines: &[&str]) -> CpuReport {
        CpuReport {
            models: models
                .iter()
                .map(|(name, missing)| {
                    ((*name).to_owned(), missing.iter().map(|f| (*f).to_owned()).collect())
                })
                .collect(),
            machines: machines.iter().map(|m| (*m).to_owned()).collect(),
        }
    }

    #[test]
    fn the_older_host_sets_the_baseline() {
        let old = host(&[("Haswell", &[]), ("Skylake-Server", &["avx512f"])], &["pc-q35-7.2"]);
        let new = host(&[("Haswell", &[]), ("Skylake-Server", &[])], &["pc-q35-7.2", "pc-q35-10.0"]);
        let both = baseline([(Accel::Kvm, &old), (Accel::Kvm, &new)]).unwrap();
        assert_eq!((both.cpu_model.as_str(), both.machine.as_str()), ("Haswell", "pc-q35-7.2"));
        let alone = baseline([(Accel::Kvm, &new)]).unwrap();
        assert_eq!((alone.cpu_model.as_str(), alone.machine.as_str()), ("Skylake-Server", "pc-q35-10.0"));
    }

    #[test]
    fn machine_versions_compare_as_numbers() {
        let host = host(&[("qemu64", &[])], &["pc-q35-9.2", "pc-q35-10.0", "pc-q35-7.2"]);
        assert_eq!(baseline([(Accel::Tcg, &host)]).unwrap().machine, "pc-q35-10.0");
    }

    #[test]
    fn makers_that_share_no_new_model_meet_at_an_old_one() {
        let intel = host(&[("Haswell", &[]), ("EPYC", &["sse4a"]), ("Penryn", &[])], &["pc-q35-8.2"]);
        let amd = host(&[("Haswell", &["hle"]), ("EPYC", &[]), ("Penryn", &[])], &["pc-q35-8.2"]);
        let both = baseline([(Accel::Kvm, &intel), (Accel::Kvm, &amd)]).unwrap();
        assert_eq!(both.cpu_model, "Penryn");
    }

    #[test]
    fn each_lack_has_its_own_reason() {
        let a = host(&[("qemu64", &[])], &["pc-q35-7.2"]);
        let b = host(&[("qemu64", &["nx"])], &["pc-q35-10.0"]);
        assert_eq!(baseline([]), Err(NoBaseline::NoHosts));
        assert_eq!(baseline([(Accel::Kvm, &a), (Accel::Tcg, &a)]), Err(NoBaseline::MixedAccel));
        assert_eq!(baseline([(Accel::Tcg, &a), (Accel::Tcg, &b)]), Err(NoBaseline::NoModel));
        let c = host(&[("qemu64", &[])], &["pc-q35-10.0"]);
        assert_eq!(baseline([(Accel::Tcg, &a), (Accel::Tcg, &c)]), Err(NoBaseline::NoMachine));
    }
}
