//! CPU quotas of hosts, where the machine has cgroups: version 1's cpu controller or version 2.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::place::Lab;

const V1: &str = "/sys/fs/cgroup/cpu";
const V2: &str = "/sys/fs/cgroup";
const PERIOD_US: u64 = 100_000;

/// Where this machine keeps CPU quotas, if it has them.
fn root() -> Option<(&'static Path, Version)> {
    let (v1, v2) = (Path::new(V1), Path::new(V2));
    if v1.join("cpu.cfs_quota_us").exists() || v1.join("cpu.shares").exists() {
        return Some((v1, Version::One));
    }
    let controllers = fs::read_to_string(v2.join("cgroup.controllers")).ok()?;
    controllers.split_whitespace().any(|name| name == "cpu").then_some((v2, Version::Two))
}

#[derive(Clone, Copy)]
enum Version {
    One,
    Two,
}

/// Makes the cgroup of `host` with a quota of `cpus`. `None`: this machine has no CPU quotas.
pub fn ensure(lab: &Lab, host: &str, cpus: f64) -> Result<Option<PathBuf>> {
    let Some((root, version)) = root() else { return Ok(None) };
    let dir = root.join(format!("{}-{host}", lab.name));
    fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    let quota = (cpus * PERIOD_US as f64) as u64;
    match version {
        Version::One => {
            write(&dir.join("cpu.cfs_period_us"), &PERIOD_US.to_string())?;
            write(&dir.join("cpu.cfs_quota_us"), &quota.to_string())?;
        }
        Version::Two => {
            write(&root.join("cgroup.subtree_control"), "+cpu")?;
            write(&dir.join("cpu.max"), &format!("{quota} {PERIOD_US}"))?;
        }
    }
    Ok(Some(dir))
}

/// Moves the calling process into `dir`; what it starts stays there.
pub fn enter(dir: &Path) -> Result<()> {
    write(&dir.join("cgroup.procs"), &std::process::id().to_string())
}

/// Removes the cgroups of a lab, which has no processes any more.
pub fn remove(lab: &Lab, hosts: impl Iterator<Item = String>) -> Result<()> {
    let Some((root, _)) = root() else { return Ok(()) };
    for host in hosts {
        remove_tree(&root.join(format!("{}-{host}", lab.name)))?;
    }
    Ok(())
}

/// Directories of a cgroup can only be removed one by one, the innermost first.
fn remove_tree(dir: &Path) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))?.flatten() {
        if entry.path().is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(dir).with_context(|| format!("remove {}", dir.display()))
}

fn write(path: &Path, value: &str) -> Result<()> {
    fs::write(path, value).with_context(|| format!("write {value} to {}", path.display()))
}
