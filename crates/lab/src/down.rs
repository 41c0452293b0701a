//! Removes a lab, whatever state it is in: half built, killed, or running with VMs.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::place::{Host, Lab};
use crate::say::{Did, Say};
use crate::{cgroup, member, topology};

/// Ends all processes (VMs at once, without a shutdown), then removes devices, cgroups, mounts and files.
pub fn down(lab: &Lab, say: Say) -> Result<()> {
    say.step("end all processes, VMs included", || {
        let tunnels = tunnels(lab);
        let killed = member::kill_all(lab)?;
        // Killed, they leave theirs behind.
        tunnels.iter().try_for_each(|socket| sterna_base::file::remove_if_there(socket))?;
        Ok(did(killed))
    })?;
    say.step("remove namespaces and devices", || topology::remove(lab).map(|()| Did::It))?;
    say.step("remove CPU quotas", || cgroup::remove(lab, lab.hosts().map(Host::name)).map(|()| Did::It))?;
    say.step("unmount what is mounted in its folders", || {
        let dirs = [lab.dir.clone(), lab.run_root()];
        unmount_below(&dirs.each_ref().map(|dir| dir.as_path())).map(did)
    })?;
    say.step(&format!("remove {}, disks of VMs included", lab.dir.display()), || {
        let removed = [remove_dir(&lab.run_root())?, remove_dir(&lab.dir)?];
        Ok(did(usize::from(removed.contains(&true))))
    })
}

/// Sockets of the lab's user-space tunnels, which lie outside of its folders: each is called as its device, the last
/// argument of the process.
fn tunnels(lab: &Lab) -> Vec<PathBuf> {
    let members = member::all(&lab.dir);
    let lines = members.iter().map(|member| member.line.split(' ').collect::<Vec<_>>());
    let devices = lines.filter_map(|line| match line.as_slice() {
        [program, .., device] if program.ends_with("wireguard-go") => Some((*device).to_owned()),
        _ => None,
    });
    devices.map(|device| Path::new("/run/wireguard").join(format!("{device}.sock"))).collect()
}

fn did(count: usize) -> Did {
    if count > 0 { Did::It } else { Did::Nothing }
}

/// A file system mounted there is not the lab's to empty.
fn unmount_below(dirs: &[&Path]) -> Result<usize> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("read the mounts")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(unescape);
    let mut below: Vec<_> =
        points.filter(|point| dirs.iter().any(|dir| Path::new(point).starts_with(dir))).collect();
    // The innermost and the latest first.
    below.reverse();
    for point in &below {
        rustix::mount::unmount(point.as_str(), rustix::mount::UnmountFlags::DETACH)
            .with_context(|| format!("unmount {point}"))?;
    }
    Ok(below.len())
}

/// Blanks and the like stand as octal numbers there.
fn unescape(point: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(point.to_owned(), |text, (from, to)| text.replace(from, to))
}

fn remove_dir(dir: &Path) -> Result<bool> {
    match std::fs::remove_dir_all(dir) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("remove {}", dir.display())),
    }
}
