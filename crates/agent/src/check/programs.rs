//! Programs that the agent calls, and room for what it keeps.

use std::path::{Path, PathBuf};

use super::Finding;

/// Program, Debian package, what for.
const NEEDED: [(&str, &str, &str); 8] = [
    ("qemu-img", "qemu-utils", "volumes"),
    ("qemu-storage-daemon", "qemu-utils", "pools of kind nbd"),
    ("ip", "iproute2", "networks"),
    ("bridge", "iproute2", "networks"),
    ("nft", "nftables", "networks"),
    ("dnsmasq", "dnsmasq-base", "addresses of guests"),
    ("xorriso", "xorriso", "cloud-init"),
    ("sysctl", "procps", "networks"),
];

/// One small image and its clones.
const ROOM_MIN: u64 = 1 << 30;
/// A few guests with an operating system each.
const ROOM_GOOD: u64 = 20 << 30;

pub fn check(data_dir: &Path) -> Vec<Finding> {
    let mut findings = judge_programs(is_there);
    findings.push(judge_user(rustix::process::geteuid().is_root()));
    findings.push(check_room(data_dir));
    findings
}

pub(super) fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more: [PathBuf; 2] = ["/usr/sbin".into(), "/sbin".into()];
    std::env::split_paths(&path).chain(more).any(|folder| folder.join(program).is_file())
}

fn judge_programs(is_there: impl Fn(&str) -> bool) -> Vec<Finding> {
    let missing: Vec<_> = NEEDED.iter().filter(|(program, ..)| !is_there(program)).collect();
    if missing.is_empty() {
        let names: Vec<&str> = NEEDED.iter().map(|(program, ..)| *program).collect();
        return vec![Finding::ok("programs", names.join(", "))];
    }
    let finding = |&&(program, package, purpose): &&(&str, &str, &str)| {
        Finding::refuse(
            "programs",
            format!("{program} is missing ({purpose})"),
            format!("apt install {package}"),
        )
    };
    missing.iter().map(finding).collect()
}

fn judge_user(is_root: bool) -> Finding {
    if is_root {
        Finding::ok("user", "root")
    } else {
        Finding::refuse("user", "not root: some of this could not be looked at", "run it with sudo")
    }
}

fn check_room(data_dir: &Path) -> Finding {
    // The folder itself may not be there yet.
    let there = data_dir.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/"));
    match rustix::fs::statvfs(there) {
        Ok(space) => judge_room(there, space.f_bavail * space.f_frsize),
        Err(error) => Finding::warn("disk", format!("{there:?}: {error}"), "look at the disk"),
    }
}

fn judge_room(folder: &Path, free: u64) -> Finding {
    let found = format!("{:.1} GiB free at {}", free as f64 / f64::from(1 << 30), folder.display());
    let fix = "free some, or put the data folder and the pools on a larger disk";
    if free < ROOM_MIN {
        Finding::refuse("disk", found, fix)
    } else if free < ROOM_GOOD {
        Finding::warn("disk", found, fix)
    } else {
        Finding::ok("disk", found)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn each_missing_program_names_its_package() {
        let findings = judge_programs(|program| program != "xorriso" && program != "ip");
        let fixes: Vec<_> = findings.iter().filter_map(|finding| finding.fix.as_deref()).collect();
        assert_eq!(fixes, ["apt install iproute2", "apt install xorriso"]);
        assert_eq!(judge_programs(|_| true)[0].level, Level::Ok);
    }

    #[test]
    fn room_is_judged_in_three_steps() {
        let level = |gib: u64| judge_room(Path::new("/"), gib << 30).level;
        assert_eq!([level(0), level(5), level(100)], [Level::Refuse, Level::Warn, Level::Ok]);
    }
}
