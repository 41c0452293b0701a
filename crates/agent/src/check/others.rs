//! Other programs that manage VMs, storage or the network of this machine.

use std::collections::BTreeSet;
use std::path::Path;

use super::Finding;

/// What tells that it is there.
enum Trace {
    /// A process of this name (the kernel keeps 15 characters).
    Process(&'static str),
    Path(&'static str),
}

struct Other {
    name: &'static str,
    traces: &'static [Trace],
    /// Both cannot own one machine: it starts, moves or fences VMs by itself, or brings its own kernel set-up.
    excludes: bool,
    fix: &'static str,
}

use Trace::{Path as File, Process};

const OTHERS: [Other; 9] = [
    Other {
        name: "Proxmox VE",
        traces: &[File("/etc/pve/local"), Process("pvedaemon"), Process("pmxcfs")],
        excludes: true,
        fix: "use a machine of its own",
    },
    Other {
        name: "Xen",
        traces: &[File("/proc/xen/capabilities"), Process("xenstored")],
        excludes: true,
        fix: "boot a kernel without Xen",
    },
    Other {
        name: "oVirt (vdsm)",
        traces: &[Process("vdsmd"), Process("vdsm"), File("/etc/vdsm/vdsm.id")],
        excludes: true,
        fix: "remove the host from oVirt first, or use another machine",
    },
    Other {
        name: "Ganeti",
        traces: &[Process("ganeti-noded"), File("/var/lib/ganeti/server.pem")],
        excludes: true,
        fix: "remove the node from Ganeti first, or use another machine",
    },
    Other {
        name: "Pacemaker",
        traces: &[Process("pacemakerd")],
        excludes: false,
        fix: "see to it that it never resets this machine, or stop it: systemctl disable --now pacemaker corosync",
    },
    Other {
        name: "libvirt",
        traces: &[Process("libvirtd"), Process("virtqemud")],
        excludes: false,
        fix: "its VMs take memory that Sterna counts as free; stop it if unused: systemctl disable --now libvirtd",
    },
    Other {
        name: "Incus",
        traces: &[Process("incusd")],
        excludes: false,
        fix: "its VMs take memory that Sterna counts as free; stop it if unused: systemctl disable --now incus",
    },
    Other {
        name: "LXD",
        traces: &[Process("lxd")],
        excludes: false,
        fix: "its VMs take memory that Sterna counts as free; stop it if unused: snap stop --disable lxd",
    },
    Other {
        name: "Docker",
        traces: &[Process("dockerd")],
        excludes: false,
        fix: "it sets the firewall to drop what is forwarded; allow it for Sterna's bridges: \
              iptables -I DOCKER-USER -i sterna+ -j ACCEPT",
    },
];

pub fn check() -> Vec<Finding> {
    let processes = processes();
    judge(&|trace| match trace {
        Process(name) => processes.contains(&name.chars().take(15).collect::<String>()),
        File(path) => Path::new(path).exists(),
    })
}

fn processes() -> BTreeSet<String> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return BTreeSet::new() };
    let names = entries.flatten().filter_map(|entry| std::fs::read_to_string(entry.path().join("comm")).ok());
    names.map(|name| name.trim_end().to_owned()).collect()
}

fn judge(is_there: &dyn Fn(&Trace) -> bool) -> Vec<Finding> {
    let found = OTHERS.iter().filter(|other| other.traces.iter().any(is_there));
    let findings: Vec<Finding> = found
        .map(|other| {
            let what = "other managers";
            if other.excludes {
                Finding::refuse(what, other.name, other.fix)
            } else {
                Finding::warn(what, other.name, other.fix)
            }
        })
        .collect();
    if findings.is_empty() { vec![Finding::ok("other managers", "none")] } else { findings }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn managers_that_own_the_machine_are_refused_and_guests_of_it_told() {
        let with = |name: &'static str| judge(&|trace| matches!(trace, Process(there) if *there == name));
        assert_eq!(with("pvedaemon")[0].level, Level::Refuse);
        assert_eq!(with("libvirtd")[0].level, Level::Warn);
        assert_eq!(with("bash"), [Finding::ok("other managers", "none")]);
    }
}
