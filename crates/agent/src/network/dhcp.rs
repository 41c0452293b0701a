//! Addresses for the guests on this host: one dnsmasq for each overlay, which answers known MACs only.
//!
//! The process outlives the agent and is found again by its arguments, which name this host's directory.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use sterna_base::scope::Scope;
use sterna_model::network::Cidr;
use sterna_wire::assignment::Lease;

use super::daemon::{self, Daemon, Process};
use super::{Error, name, tool};

const TOOL: &str = "dnsmasq";

/// Where the files of one segment are.
pub(super) fn dir(base: &Path, vni: u32) -> PathBuf {
    base.join(format!("{vni:x}"))
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Config {
    dir: PathBuf,
    bridge: String,
    args: Vec<String>,
}

impl Config {
    pub(super) fn new(dir: PathBuf, vni: u32, cidr: Cidr, mtu: u32) -> Self {
        let bridge = name::bridge(vni);
        let base = cidr.to_string();
        let (base, _) = base.split_once('/').unwrap_or((&base, ""));
        let mask = std::net::Ipv4Addr::from_bits(u32::MAX << (32 - u32::from(cidr.prefix())));
        let args = [
            "--keep-in-foreground".to_owned(),
            "--conf-file=/dev/null".to_owned(),
            "--log-facility=-".to_owned(),
            "--pid-file=".to_owned(),
            // No name service: guests use what they are configured with.
            "--port=0".to_owned(),
            format!("--interface={bridge}"),
            "--except-interface=lo".to_owned(),
            "--bind-interfaces".to_owned(),
            // Addresses come from the store only, for ever: a lease that is known nowhere else is still right.
            format!("--dhcp-range={base},static,{mask},infinite"),
            "--dhcp-ignore=tag:!known".to_owned(),
            "--dhcp-authoritative".to_owned(),
            "--leasefile-ro".to_owned(),
            "--no-ping".to_owned(),
            format!("--dhcp-option=option:router,{}", cidr.gateway()),
            // Also to clients that do not ask: a wrong MTU looks like a network that loses large packets.
            format!("--dhcp-option-force=option:mtu,{mtu}"),
            format!("--dhcp-hostsdir={}", hosts(&dir).display()),
        ];
        Self { dir, bridge, args: args.into() }
    }

    /// Writes one file for each lease. dnsmasq sees new files by itself; for all else it is told to read again.
    pub(super) fn ensure_leases(&self, leases: &[Lease]) -> Result<(), Error> {
        let hosts = hosts(&self.dir);
        let failed = |source| Error::Io { action: format!("write leases in {}", hosts.display()), source };
        std::fs::create_dir_all(&hosts).map_err(failed)?;
        let want: BTreeMap<String, String> = leases.iter().map(file_of).collect();
        let have = read_all(&hosts).map_err(failed)?;
        let gone: BTreeSet<_> = have.keys().filter(|file| !want.contains_key(*file)).collect();
        for file in &gone {
            self.retire(file).map_err(failed)?;
        }
        let new: Vec<_> = want.iter().filter(|(file, text)| have.get(*file) != Some(*text)).collect();
        for (file, text) in &new {
            self.write(file, text).map_err(failed)?;
        }
        if self.is_leased_to_another(&new).map_err(failed)? {
            // Its leases are in its memory alone, and it is started again at once.
            find(&self.dir).iter().for_each(|process| process.signal(Signal::TERM));
            std::fs::remove_dir_all(left(&self.dir)).map_err(failed)?;
        } else if !gone.is_empty() || new.iter().any(|(file, _)| have.contains_key(*file)) {
            find(&self.dir).iter().for_each(|process| process.signal(Signal::HUP));
        }
        Ok(())
    }

    /// Remembers who had an address: dnsmasq remembers it, too, and would keep it for a guest that is gone.
    fn retire(&self, file: &str) -> std::io::Result<()> {
        std::fs::create_dir_all(left(&self.dir))?;
        std::fs::rename(hosts(&self.dir).join(file), left(&self.dir).join(file))
    }

    /// Whether one of these has an address that another had since dnsmasq was started.
    fn is_leased_to_another(&self, new: &[(&String, &String)]) -> std::io::Result<bool> {
        let left = match read_all(&left(&self.dir)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            left => left?,
        };
        let is_taken = |(file, text): &(&String, &String)| {
            left.iter().any(|(other, had)| other != *file && address_in(had) == address_in(text))
        };
        Ok(new.iter().any(is_taken))
    }

    /// The temporary file is outside the watched directory: dnsmasq would read it too.
    fn write(&self, file: &str, text: &str) -> std::io::Result<()> {
        let new = self.dir.join(format!("{file}.new"));
        std::fs::write(&new, text)?;
        std::fs::rename(new, hosts(&self.dir).join(file))
    }
}

fn hosts(dir: &Path) -> PathBuf {
    dir.join("hosts")
}

/// Leases of guests that are gone, since dnsmasq was started.
fn left(dir: &Path) -> PathBuf {
    dir.join("left")
}

/// The address in a file that [`file_of`] made.
fn address_in(text: &str) -> Option<&str> {
    text.split(',').nth(1)
}

fn file_of(lease: &Lease) -> (String, String) {
    let Lease { mac, address, hostname } = lease;
    (mac.to_string().replace(':', ""), format!("{mac},{address},{hostname},infinite\n"))
}

fn read_all(dir: &Path) -> std::io::Result<BTreeMap<String, String>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let text = std::fs::read_to_string(entry.path())?;
        files.insert(entry.file_name().to_string_lossy().into_owned(), text);
    }
    Ok(files)
}

/// Keeps one dnsmasq running.
pub(super) struct Server {
    config: Config,
    scope: Scope,
}

impl Server {
    pub(super) fn start(config: Config) -> Result<Self, Error> {
        if !daemon::is_installed(TOOL) {
            return Err(Error::Missing { tool: TOOL, package: tool::package(TOOL) });
        }
        let scope = Scope::new();
        let serving = Daemon {
            tool: TOOL,
            args: config.args.clone(),
            log: config.dir.join("dnsmasq.log"),
            device: config.bridge.clone(),
        };
        let dir = config.dir.clone();
        scope.spawn(serving.keep_running(move || find(&dir), || {}));
        Ok(Self { config, scope })
    }

    pub(super) fn serves(&self, config: &Config) -> bool {
        self.config == *config
    }

    pub(super) async fn stop(self) {
        self.scope.shut_down().await;
        end_strays(&self.config.dir).await;
    }
}

/// Ends every dnsmasq that has its files in `dir` or below, and waits for it.
pub(super) async fn end_strays(dir: &Path) {
    for process in find(dir) {
        process.end().await;
    }
}

fn find(dir: &Path) -> Vec<Process> {
    daemon::find(TOOL, |args| {
        let mut files = args.iter().filter_map(|arg| arg.strip_prefix("--dhcp-hostsdir="));
        files.any(|hosts| Path::new(hosts).starts_with(dir))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(mac: &str, last: u8) -> Lease {
        let address = std::net::Ipv4Addr::new(10, 64, 0, last);
        Lease { mac: mac.parse().unwrap(), address, hostname: "web".parse().unwrap() }
    }

    #[test]
    fn leases_are_files_that_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::new(dir.path().to_owned(), 100, "10.64.0.0/24".parse().unwrap(), 1350);
        let (a, b) = (lease("5a:00:00:00:00:01", 10), lease("5a:00:00:00:00:02", 11));
        config.ensure_leases(&[a.clone(), b]).unwrap();
        config.ensure_leases(&[Lease { address: std::net::Ipv4Addr::new(10, 64, 0, 12), ..a }]).unwrap();
        let files = read_all(&hosts(dir.path())).unwrap();
        let expected = ("5a0000000001".to_owned(), "5a:00:00:00:00:01,10.64.0.12,web,infinite\n".to_owned());
        assert_eq!(files.into_iter().collect::<Vec<_>>(), [expected]);
    }

    #[test]
    fn an_address_that_another_had_is_noticed_once() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::new(dir.path().to_owned(), 100, "10.64.0.0/24".parse().unwrap(), 1350);
        let is_remembered = || left(dir.path()).join("5a0000000001").exists();
        let (a, b) = (lease("5a:00:00:00:00:01", 10), lease("5a:00:00:00:00:02", 10));
        config.ensure_leases(std::slice::from_ref(&a)).unwrap();
        config.ensure_leases(&[]).unwrap();
        // It comes back, as after a move: nobody else was promised the address.
        config.ensure_leases(&[a]).unwrap();
        config.ensure_leases(&[]).unwrap();
        assert!(is_remembered());
        config.ensure_leases(&[b]).unwrap();
        assert!(!is_remembered(), "dnsmasq was started anew and knows nothing of it");
    }

    #[test]
    fn guests_get_the_gateway_the_mtu_and_no_names() {
        let config = Config::new(PathBuf::from("/run/x"), 100, "10.64.0.0/23".parse().unwrap(), 1350);
        for arg in [
            "--port=0",
            "--interface=sterna-b64",
            "--dhcp-range=10.64.0.0,static,255.255.254.0,infinite",
            "--dhcp-option=option:router,10.64.0.1",
            "--dhcp-option-force=option:mtu,1350",
            "--dhcp-hostsdir=/run/x/hosts",
        ] {
            assert!(config.args.iter().any(|own| own == arg), "{arg}");
        }
    }
}
