//! Builds a lab, or goes on where an interrupted start left it: every step looks first whether it was done.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::command::{self, Share};
use crate::member::{Start, ensure_running};
use crate::place::{Host, Lab, Pair};
use crate::say::{Did, Say};
use crate::{cgroup, topology, wan, watchdog};

/// The server opens its store and port in well under a second; a busy machine may take longer.
const SERVER_PATIENCE: Duration = Duration::from_secs(30);
/// An agent's first report includes trying a small guest to find out whether KVM works.
const HOSTS_PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);
/// Nothing works without these.
const TOOLS: [(&str, &str); 1] = [("ip", "iproute2")];

/// The role of the server.
pub const SERVER: &str = "server";

/// What [`up`] may be told.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wishes {
    pub share: Share,
}

/// Network, lines, server, hosts: in that order.
pub fn up(lab: &Lab, wishes: Wishes, say: Say) -> Result<()> {
    network(lab, say)?;
    server(lab, say)?;
    for host in lab.hosts() {
        start_host(lab, host, wishes, say)?;
    }
    say.step("wait until the server sees every host", || wait_for_hosts(lab))
}

/// Namespaces, devices, and the lines between the datacentres.
pub fn network(lab: &Lab, say: Say) -> Result<()> {
    check_machine()?;
    say.step("look whether the addresses are free", || topology::check_free(lab).map(|()| Did::It))?;
    say.step("make the folders", || folders(lab))?;
    for site in &lab.datacentres {
        say.step(&format!("make the switch of datacentre {}", site.letter()), || {
            topology::ensure_switch(lab, *site).map(|()| Did::It)
        })?;
    }
    say.step(&format!("join this machine to datacentre {}", lab.home().letter()), || {
        topology::ensure_root(lab).map(|()| Did::It)
    })?;
    for host in lab.hosts() {
        say.step(&format!("make the network of host {}", host.name()), || {
            topology::ensure_host(lab, host).map(|()| Did::It)
        })?;
    }
    for pair in lab.pairs() {
        say.step(&format!("start the line {pair}"), || start_line(lab, pair))?;
    }
    Ok(())
}

fn start_line(lab: &Lab, pair: Pair) -> Result<Did> {
    let (role, words) = (wan::role(pair), command::wan_relay(lab, pair));
    let started = ensure_running(lab, &Start { role: &role, space: None, cgroup: None, words: &words })?;
    wait_until(SERVER_PATIENCE, "the relay to answer", lab, &role, || {
        wan::ask(&lab.wan_socket(pair), &wan::Order::Show).is_ok()
    })?;
    Ok(did(started))
}

fn server(lab: &Lab, say: Say) -> Result<()> {
    say.step("set up the server", || {
        if command::server_settings(lab).exists() {
            return Ok(Did::Nothing);
        }
        command::init_server(lab).map(|()| Did::It)
    })?;
    say.step("start the server", || {
        let started = start_server(lab)?;
        wait_until(SERVER_PATIENCE, "the server to answer", lab, SERVER, || command::server_answers(lab))?;
        Ok(did(started))
    })?;
    if command::witness_settings(lab).exists() {
        say.step("start the guard beside the server", || {
            let words = command::guard_run(&command::witness_settings(lab));
            let start = Start { role: command::WITNESS, space: None, cgroup: None, words: &words };
            ensure_running(lab, &start).map(did)
        })?;
    }
    say.step("describe datacentres and pools", || command::apply_objects(lab).map(|()| Did::It))
}

/// The server and what keeps it running; whether it answers yet is for who asks. Returns whether there was anything to do.
pub fn start_server(lab: &Lab) -> Result<bool> {
    let words = command::server_run(lab);
    ensure_running(lab, &Start { role: SERVER, space: None, cgroup: None, words: &words })
}

/// Joins a host unless it has joined, and starts what runs on it unless it runs: as when its power comes back.
pub fn start_host(lab: &Lab, host: Host, wishes: Wishes, say: Say) -> Result<()> {
    let name = host.name();
    say.step(&format!("join host {name}"), || {
        if command::agent_settings(lab, host).exists() {
            return Ok(Did::Nothing);
        }
        std::fs::create_dir_all(lab.host_dir(host)).context("make the host's folder")?;
        command::join_host(lab, host, wishes.share).map(|()| Did::It)
    })?;
    // A lab of an earlier version has none.
    if command::guard_settings(lab, host).exists() {
        say.step(&format!("start the guard of host {name}"), || start_guard(lab, host))?;
    }
    say.step(&format!("start host {name}"), || {
        let cgroup = match wishes.share.cpus {
            Some(cpus) => cgroup::ensure(lab, &name, cpus)?,
            None => None,
        };
        let (space, words) = (lab.host_space(host), command::agent_run(lab, host));
        let start = Start { role: &name, space: Some(&space), cgroup: cgroup.as_deref(), words: &words };
        ensure_running(lab, &start).map(did)
    })
}

/// Outside the host's quota: what kills its guests in time may not wait for them.
fn start_guard(lab: &Lab, host: Host) -> Result<Did> {
    let (role, words) = (watchdog::role(host), command::watchdog_run(lab, host));
    let watched = ensure_running(lab, &Start { role: &role, space: None, cgroup: None, words: &words })?;
    wait_until(SERVER_PATIENCE, "the watchdog to listen", lab, &role, || {
        watchdog::socket(lab, host).exists()
    })?;
    let (role, space) = (command::guard_role(host), lab.host_space(host));
    let words = command::guard_run(&command::guard_settings(lab, host));
    let started =
        ensure_running(lab, &Start { role: &role, space: Some(&space), cgroup: None, words: &words })?;
    Ok(did(watched || started))
}

fn check_machine() -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "a lab needs root: run it with sudo");
    for (tool, package) in TOOLS {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&path).any(|dir| dir.join(tool).is_file());
        ensure!(found, "`{tool}` is missing: apt-get install {package}");
    }
    ensure!(Path::new("/dev/net/tun").exists(), "/dev/net/tun is missing: modprobe tun");
    Ok(())
}

fn folders(lab: &Lab) -> Result<Did> {
    let is_new = Lab::load(&lab.dir)?.is_none();
    lab.save()?;
    let shared = lab.datacentres.iter().map(|site| lab.shared(*site));
    for dir in shared.chain([lab.run_root()]) {
        std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    }
    Ok(did(is_new))
}

fn wait_for_hosts(lab: &Lab) -> Result<Did> {
    let began = Instant::now();
    loop {
        let connected = command::connected_hosts(lab).unwrap_or_default();
        let missing: Vec<_> = lab.hosts().map(Host::name).filter(|host| !connected.contains(host)).collect();
        if missing.is_empty() {
            return Ok(Did::It);
        }
        if began.elapsed() > HOSTS_PATIENCE {
            let logs = lab.log(&missing[0]);
            bail!("the server does not see {}; see {}", missing.join(", "), logs.display());
        }
        std::thread::sleep(POLL);
    }
}

fn wait_until(
    patience: Duration,
    what: &str,
    lab: &Lab,
    role: &str,
    mut holds: impl FnMut() -> bool,
) -> Result<()> {
    let deadline = Instant::now() + patience;
    while !holds() {
        ensure!(
            Instant::now() < deadline,
            "waited {} s in vain for {what}; see {}",
            patience.as_secs(),
            lab.log(role).display()
        );
        std::thread::sleep(POLL);
    }
    Ok(())
}

fn did(it: bool) -> Did {
    if it { Did::It } else { Did::Nothing }
}
