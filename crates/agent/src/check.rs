//! `sterna host check`: looks whether a machine can be a host, before it joins. Changes nothing that stays.
//!
//! Each part observes first and judges then; judging is pure, so that every verdict can be tested without the machine
//! that deserves it. How findings look on a terminal is the command line's business.

/// Wall clock and time since boot.
mod clock;
/// The processor and what it is.
mod cpu;
/// What the kernel lets us make: devices, namespaces, cgroups.
mod kernel;
/// Ports, firewall, the server.
mod network;
/// Other programs that manage VMs or the network.
mod others;
/// Round trip and packet size to the other hosts.
mod peers;
/// Programs and disk space.
mod programs;
/// Whether QEMU runs guests here.
mod qemu;
/// The encrypted way to other datacentres.
mod tunnel;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    Ok,
    /// It will work, but not as well, or not for long.
    Warn,
    /// It will not work.
    Refuse,
}

impl Level {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Refuse => "refuse",
        }
    }
}

/// One line of the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub level: Level,
    /// What was looked at, such as `clock`.
    pub what: String,
    /// What was seen.
    pub found: String,
    /// One sentence; absent when nothing needs to be done.
    pub fix: Option<String>,
}

impl Finding {
    fn ok(what: impl Into<String>, found: impl Into<String>) -> Self {
        Self { level: Level::Ok, what: what.into(), found: found.into(), fix: None }
    }

    fn warn(what: impl Into<String>, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { level: Level::Warn, what: what.into(), found: found.into(), fix: Some(fix.into()) }
    }

    fn refuse(what: impl Into<String>, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { level: Level::Refuse, what: what.into(), found: found.into(), fix: Some(fix.into()) }
    }
}

/// What is known of the cluster that the machine is to join.
#[derive(Debug, Clone)]
pub struct Options {
    /// The QEMU binary, a path or a name to be found in PATH.
    pub qemu: PathBuf,
    pub data_dir: PathBuf,
    /// Addresses of the other hosts.
    pub peers: Vec<IpAddr>,
    /// `HOST:PORT` of the server.
    pub server: Option<String>,
    /// How far this machine's clock is ahead of the server's, if both were compared (negative: behind), in ms.
    pub clock_ahead_ms: Option<i64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            qemu: "qemu-system-x86_64".into(),
            data_dir: "/var/lib/sterna/agent".into(),
            peers: Vec::new(),
            server: None,
            clock_ahead_ms: None,
        }
    }
}

/// The worst of all findings: may this machine join?
#[must_use]
pub fn verdict(findings: &[Finding]) -> Level {
    findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok)
}

/// Everything that is worth knowing, in a fixed order. Takes 1 to 6 s, most of it for running small guests.
pub async fn run(options: &Options) -> Vec<Finding> {
    let (guests, peers, server, kernel, firewall, tunnel) = tokio::join!(
        qemu::check(&options.qemu),
        peers::check(&options.peers),
        network::check_server(options.server.as_deref()),
        kernel::check(),
        network::check_firewall(),
        tunnel::check(),
    );
    let mut findings = guests;
    findings.extend(cpu::check());
    findings.extend(programs::check(&options.data_dir));
    findings.extend(kernel);
    findings.push(tunnel);
    findings.extend(clock::check(options.clock_ahead_ms));
    findings.extend(network::check_ports());
    findings.extend(firewall);
    findings.extend(server);
    findings.extend(peers);
    findings.extend(others::check());
    findings
}

/// Waits for a thread that a kernel call or a lost name server may hold.
async fn within<T: Send + 'static>(limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::time::timeout(limit, tokio::task::spawn_blocking(work)).await.ok()?.ok()
}
