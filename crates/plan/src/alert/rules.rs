//! What fires. One function a rule, each from the view to what it finds; [`ALL`] is the list.

use std::time::Duration;

use sterna_base::clock::Timestamp;
use sterna_model::alert::Severity::{self, Critical, Warning};
use sterna_model::host::{LinkState, PoolSeen};
use sterna_model::store::MAIN;

use super::Firing;
use crate::view::{OwnerCopy, View};
use crate::{ha, placement, recovery};

type Rule = fn(&View, Timestamp) -> Vec<Firing>;

const ALL: [Rule; 8] = [
    host_unreachable,
    vm_restarted,
    vm_unplaced,
    pool_full,
    backup_old,
    recovery_waits,
    unreadable,
    fence_device,
];

/// An agent that is upgraded, or a host that reboots at once, is back within this.
const SILENT_FOR: Duration = Duration::from_secs(60);
/// A host that has joined and whose agent nobody has started yet.
const NEVER_HEARD_FOR: Duration = Duration::from_secs(600);
/// A restart is news for this long, unless there is another.
const RESTART_FOR: Duration = Duration::from_secs(3600);
/// In a row: it will not get better by itself.
const RESTARTS_MANY: u32 = 3;
/// Images arrive and hosts connect within this.
const UNPLACED_FOR: Duration = Duration::from_secs(60);
/// Hosts dial a server that is back within seconds.
const RECOVERY_FOR: Duration = Duration::from_secs(60);
/// From here on a pool needs a person, and from there at once.
const POOL_WARN_PERCENT: u8 = 85;
const POOL_CRITICAL_PERCENT: u8 = 95;

pub(super) fn all(view: &View, now: Timestamp) -> Vec<Firing> {
    ALL.iter().flat_map(|rule| rule(view, now)).collect()
}

fn firing(rule: &'static str, severity: Severity, object: String, text: String) -> Firing {
    Firing { rule, severity, object, text }
}

fn host_unreachable(view: &View, now: Timestamp) -> Vec<Firing> {
    let silent = view.hosts().filter_map(|host| {
        let (since, patience) = match host.report {
            Some(report) if report.link == LinkState::Silent => (report.since, SILENT_FOR),
            Some(_) => return None,
            None => (host.meta.created, NEVER_HEARD_FOR),
        };
        if now.since(since) < patience {
            return None;
        }
        let vms = view.index.load(host.name).owned;
        let (severity, what) = match vms {
            0 => (Warning, "it has no VMs".to_owned()),
            1 => (Critical, "nothing is known of the VM that it has".to_owned()),
            vms => (Critical, format!("nothing is known of the {vms} VMs that it has")),
        };
        let text = format!("no word from its agent since {since}; {what}");
        Some(firing("host-unreachable", severity, format!("host/{}", host.name), text))
    });
    silent.collect()
}

fn vm_restarted(view: &View, now: Timestamp) -> Vec<Firing> {
    let restarted = view.vms().filter_map(|vm| {
        let decision = vm.decision().filter(|decision| decision.restarts > 0)?;
        let severity = if decision.restarts >= RESTARTS_MANY { Critical } else { Warning };
        let times = match decision.restarts {
            1 => "started again".to_owned(),
            times => format!("started again {times} times in a row"),
        };
        (now.since(decision.since) < RESTART_FOR).then(|| {
            let text = format!("{times}: {}", decision.why);
            firing("vm-restarted", severity, format!("vm/{}", vm.name), text)
        })
    });
    restarted.collect()
}

fn vm_unplaced(view: &View, now: Timestamp) -> Vec<Firing> {
    if recovery::is_on(view) {
        return Vec::new();
    }
    let waiting = view.vms().filter(|vm| vm.is_wanted() && now.since(vm.meta.created) >= UNPLACED_FOR);
    let stuck = waiting.filter_map(|vm| {
        // Asked only of VMs that wait: looking for a host costs a walk over all of them.
        let why = if placement::waits_for_start(view, &vm) {
            placement::obstacle(view, &vm, now)?
        } else if matches!(vm.owner_copy(), OwnerCopy::Ended(_) | OwnerCopy::Removed) {
            ha::obstacle(view, &vm, now)?
        } else {
            return None;
        };
        Some(firing("vm-unplaced", Critical, format!("vm/{}", vm.name), format!("it does not run: {why}")))
    });
    stuck.collect()
}

fn pool_full(view: &View, _: Timestamp) -> Vec<Firing> {
    let mut full = Vec::new();
    for host in view.hosts() {
        for (pool, seen) in host.report.into_iter().flat_map(|report| &report.pools) {
            let PoolSeen::Ready { used_percent: Some(used), .. } = seen else { continue };
            let severity = match *used {
                used if used >= POOL_CRITICAL_PERCENT => Critical,
                used if used >= POOL_WARN_PERCENT => Warning,
                _ => continue,
            };
            // A shared pool is one, whoever looks at it.
            let spec = view.pools.get(pool).and_then(|entry| entry.spec.as_ref());
            let is_shared = spec.is_some_and(|spec| spec.value.spec.kind.is_shared());
            let object =
                if is_shared { format!("pool/{pool}") } else { format!("pool/{pool}-{}", host.name) };
            let place = if is_shared { String::new() } else { format!(" on host {}", host.name) };
            let text = format!("over {used} % of pool {pool}{place} are used; guests stop when it is full");
            let found = firing("pool-full", severity, object, text);
            // Hosts may see a shared one a step apart.
            match full.iter_mut().find(|other: &&mut Firing| other.object == found.object) {
                Some(other) if found.severity > other.severity => *other = found,
                Some(_) => {}
                None => full.push(found),
            }
        }
    }
    full
}

fn backup_old(view: &View, now: Timestamp) -> Vec<Firing> {
    let report = view.stores.get(MAIN).and_then(|entry| entry.report.as_ref());
    let Some(report) = report else { return Vec::new() };
    let Some(every) = report.every else { return Vec::new() };
    let last = report.backup.as_ref().map(|backup| backup.taken);
    // One may fail, and the next be on its way.
    if now.since(last.unwrap_or(report.since)) < 2 * every.0 + SILENT_FOR {
        return Vec::new();
    }
    let age = match last {
        Some(last) => format!("the newest backup is of {last}"),
        None => "there is no backup".to_owned(),
    };
    let why = report.failed.as_ref().map(|why| format!("; the last try failed: {why}")).unwrap_or_default();
    vec![firing("backup-old", Critical, "store/main".to_owned(), format!("{age}{why}"))]
}

fn recovery_waits(view: &View, now: Timestamp) -> Vec<Firing> {
    let spec = view.stores.get(MAIN).and_then(|entry| entry.spec.as_ref());
    let restored = spec.and_then(|row| row.value.spec.restored.as_ref());
    let since = restored.filter(|restored| now.since(restored.at) >= RECOVERY_FOR);
    if since.is_none() || !recovery::is_on(view) {
        return Vec::new();
    }
    let hosts: Vec<_> = recovery::waits_for(view).iter().map(ToString::to_string).collect();
    let what = if hosts.is_empty() { "VMs that are on the move".to_owned() } else { hosts.join(", ") };
    let text = format!(
        "the store came back from a backup and waits for {what}; nothing is started or moved until then; see `sterna \
         server recover`"
    );
    vec![firing("recovery-waits", Critical, "store/main".to_owned(), text)]
}

fn unreadable(view: &View, _: Timestamp) -> Vec<Firing> {
    let rows = view.broken.iter().map(|(key, why)| {
        let text = format!("{key} cannot be read, and nothing is done with it: {why}");
        // Of a row of alerts there would be one more with every look.
        firing("unreadable", Critical, format!("row/{}", key.replace('/', "-")), text)
    });
    rows.filter(|firing| !firing.text.starts_with("alert/")).collect()
}

fn fence_device(view: &View, now: Timestamp) -> Vec<Firing> {
    let found = view.hosts().filter_map(|host| {
        let firing = |severity, text| firing("fence-device", severity, format!("host/{}", host.name), text);
        if let Some(why) = ha::power::failure(&host) {
            return Some(if ha::power::is_to_switch_off(view, &host) {
                let text = format!(
                    "it is lost, and its fence device does not switch it off: {why}; VMs that outlive its lease wait for that, or \
                     for `sterna host confirm-dead {}`",
                    host.name
                );
                firing(Critical, text)
            } else {
                firing(Warning, format!("its fence device would not prove that it is off: {why}"))
            });
        }
        let lies = ha::power::is_contradicted(&host)
            && host.decision.is_some_and(|decision| now.since(decision.since) >= SILENT_FOR);
        lies.then(|| {
            let text = "its fence device said that it is off, and the same boot of it is connected: the device is most likely \
                        another machine's";
            firing(Critical, text.to_owned())
        })
    });
    found.collect()
}
