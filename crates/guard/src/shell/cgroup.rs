//! A VM's own cgroup, where it has one: all its processes are frozen and killed at once, also those nobody has listed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::core::id::VmId;

/// Where the kernel's hierarchies are; a test has its own.
const ROOT: &str = "/sys/fs/cgroup";

#[derive(Debug, PartialEq, Eq)]
pub enum Cgroup {
    V2(PathBuf),
    /// The freezer of version 1. What is frozen in it does not die before it is thawed.
    V1(PathBuf),
}

impl Cgroup {
    /// The cgroup that a process is in, if its name has the VM's uid: one that it shares with other VMs is none.
    #[must_use]
    pub fn of(pid: u32, vm: VmId) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        Self::named_in(&text, vm, Path::new(ROOT))
    }

    fn named_in(text: &str, vm: VmId, root: &Path) -> Option<Self> {
        let uid = vm.to_string();
        text.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            let inside = Path::new(path.strip_prefix('/')?);
            // A path out of a cgroup namespace would lead elsewhere.
            if !inside.file_name()?.to_str()?.contains(&uid) || path.contains("..") {
                return None;
            }
            match controllers {
                "" => {
                    let unified = root.join("unified");
                    let root = if unified.is_dir() { unified } else { root.to_owned() };
                    Some(Cgroup::V2(root.join(inside)))
                }
                _ if controllers.split(',').any(|name| name == "freezer") => {
                    Some(Cgroup::V1(root.join("freezer").join(inside)))
                }
                _ => None,
            }
        })
    }

    pub fn freeze(&self) -> io::Result<()> {
        match self {
            Cgroup::V2(dir) => fs::write(dir.join("cgroup.freeze"), "1"),
            Cgroup::V1(dir) => fs::write(dir.join("freezer.state"), "FROZEN"),
        }
    }

    pub fn thaw(&self) -> io::Result<()> {
        match self {
            Cgroup::V2(dir) => fs::write(dir.join("cgroup.freeze"), "0"),
            Cgroup::V1(dir) => fs::write(dir.join("freezer.state"), "THAWED"),
        }
    }

    /// Kills all in it. False where this version cannot: then they are killed one by one.
    pub fn kill(&self) -> io::Result<bool> {
        match self {
            Cgroup::V2(dir) => fs::write(dir.join("cgroup.kill"), "1").map(|()| true),
            Cgroup::V1(_) => Ok(false),
        }
    }

    /// Whether somebody is left in it. A cgroup that is not there is empty.
    pub fn has_processes(&self) -> io::Result<bool> {
        let (Cgroup::V2(dir) | Cgroup::V1(dir)) = self;
        match fs::read_to_string(dir.join("cgroup.procs")) {
            Ok(text) => Ok(!text.trim().is_empty()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_cgroup_with_the_vms_uid_in_its_name_is_its_own() {
        let vm = VmId::from_u128(7);
        let root = tempfile::tempdir().unwrap();
        let own = |text: &str| Cgroup::named_in(text, vm, root.path());
        assert_eq!(own("0::/sterna.slice\n"), None);
        assert_eq!(own(&format!("0::/vm-{}.scope\n", VmId::from_u128(8))), None);
        assert_eq!(own(&format!("0::/../vm-{vm}.scope\n")), None);
        assert_eq!(
            own(&format!("0::/sterna.slice/vm-{vm}.scope\n")),
            Some(Cgroup::V2(root.path().join(format!("sterna.slice/vm-{vm}.scope"))))
        );
        assert_eq!(
            own(&format!("5:cpu:/\n4:freezer:/vm-{vm}\n0::/\n")),
            Some(Cgroup::V1(root.path().join(format!("freezer/vm-{vm}"))))
        );
    }

    #[test]
    fn a_cgroup_that_is_gone_is_empty_and_one_that_has_a_process_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let cgroup = Cgroup::V2(dir.path().to_owned());
        assert!(!cgroup.has_processes().unwrap());
        fs::write(dir.path().join("cgroup.procs"), "12\n").unwrap();
        assert!(cgroup.has_processes().unwrap());
    }
}
