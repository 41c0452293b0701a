//! What the kernel lets us make. Tried in a network namespace of its own, which vanishes with the thread that made it:
//! a module that is listed may still be forbidden, and one that is not listed may be built in.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::thread::UnshareFlags;

use super::{Finding, within};

const DEADLINE: Duration = Duration::from_secs(10);

/// What an overlay network is made of: name, `ip` arguments, kernel module.
const DEVICES: [(&str, &[&str], &str); 4] = [
    ("bridge", &["link", "add", "check0", "type", "bridge"], "bridge"),
    ("VXLAN", &["link", "add", "check1", "type", "vxlan", "id", "1", "dstport", "4789"], "vxlan"),
    ("veth", &["link", "add", "check2", "type", "veth", "peer", "name", "check3"], "veth"),
    ("tap", &["tuntap", "add", "dev", "check4", "mode", "tap"], "tun"),
];

pub async fn check() -> Vec<Finding> {
    let mut findings = match within(DEADLINE, try_devices).await {
        Some(tried) => judge_devices(tried),
        None => vec![Finding::warn(
            "networks",
            "making devices takes too long",
            "look at the kernel's log: dmesg",
        )],
    };
    findings
        .push(judge_tun(std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun").map(drop)));
    findings.push(judge_cgroups(
        Path::new("/sys/fs/cgroup/cgroup.controllers").exists(),
        Path::new("/sys/fs/cgroup/cpu").is_dir(),
    ));
    findings
}

/// For each device `None`, or why it could not be made.
type Tried = Result<Vec<(&'static str, &'static str, Option<String>)>, String>;

fn try_devices() -> Tried {
    let tried =
        || DEVICES.iter().map(|(name, arguments, module)| (*name, *module, try_ip(arguments))).collect();
    in_scratch_network(tried)
}

/// In a network namespace of its own, which goes with the end of `work`.
pub(super) fn in_scratch_network<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    // A thread of the pool must not be left in the new namespace.
    let thread = std::thread::spawn(|| {
        // SAFETY: only this thread's network changes; it shares no descriptor table, memory or files by this flag.
        let unshared = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) };
        unshared.map_err(|error| format!("a network namespace cannot be made: {error}"))?;
        Ok(work())
    });
    thread.join().unwrap_or_else(|_| Err("the trial ended early".to_owned()))
}

/// `None`: it was done.
pub(super) fn try_ip(arguments: &[&str]) -> Option<String> {
    let output = Command::new("ip").args(arguments).env("LC_ALL", "C").stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ")),
        Err(error) => Some(format!("ip: {error}")),
    }
}

fn judge_devices(tried: Tried) -> Vec<Finding> {
    let tried = match tried {
        Ok(tried) => tried,
        Err(why) => return vec![Finding::refuse("networks", why, "run it as root, outside of a container")],
    };
    let refuse = |(name, module, why): &(&str, &str, Option<String>)| {
        let why = why.as_ref()?;
        let fix = format!("load it with: modprobe {module}");
        Some(Finding::refuse("networks", format!("no {name} device can be made: {why}"), fix))
    };
    let refused: Vec<Finding> = tried.iter().filter_map(refuse).collect();
    if refused.is_empty() {
        let names: Vec<&str> = tried.iter().map(|(name, ..)| *name).collect();
        return vec![Finding::ok("networks", format!("{} devices were made and removed", names.join(", ")))];
    }
    refused
}

fn judge_tun(opened: std::io::Result<()>) -> Finding {
    match opened {
        Ok(()) => Finding::ok("taps", "/dev/net/tun opens"),
        Err(error) => Finding::refuse("taps", format!("/dev/net/tun: {error}"), "load it with: modprobe tun"),
    }
}

fn judge_cgroups(is_v2: bool, is_v1: bool) -> Finding {
    match (is_v2, is_v1) {
        (true, _) => Finding::ok("cgroups", "version 2"),
        (false, true) => Finding::ok("cgroups", "version 1"),
        (false, false) => Finding::warn("cgroups", "none", "mount them: guests' use is measured there"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn each_device_that_fails_names_its_module() {
        let tried =
            Ok(vec![("bridge", "bridge", None), ("VXLAN", "vxlan", Some("Unknown device type".into()))]);
        let [finding] = &judge_devices(tried)[..] else { panic!("one finding") };
        assert_eq!(finding.level, Level::Refuse);
        assert!(finding.fix.as_ref().unwrap().ends_with("modprobe vxlan"));
        assert_eq!(judge_devices(Ok(vec![("tap", "tun", None)]))[0].level, Level::Ok);
        assert_eq!(judge_devices(Err("no".into()))[0].level, Level::Refuse);
    }
}
