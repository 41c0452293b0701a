//! `agent.toml`: what this host's agent is told by the one who installed it.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use sterna_base::units::{Bytes, Span};
use sterna_model::meta::Name;

/// The user that QEMU runs as; need not exist in passwd, so that nothing else on the host has it.
const RUN_AS: u32 = 64_711;

/// A VM sent away for a repair or an outage is back within days.
const FORMER_KEPT: Span = Span::from_secs(7 * 24 * 3600);

/// Images and growing disks need it.
const FORMER_FREE_PERCENT: u8 = 10;

/// Beside WireGuard's usual one, which the machine may use for itself.
pub const TUNNEL_PORT: u16 = 51_830;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `HOST:PORT` of the server.
    pub server: String,
    /// This host's name in the cluster; must be the one in its certificate.
    pub host: Name,
    /// Certificate and key, what was seen of each VM, the default pool.
    #[serde(default = "default_data_dir")]
    pub data_dir: PathBuf,
    /// Sockets and records of what runs; on tmpfs, gone with the boot.
    #[serde(default = "default_run_dir")]
    pub run_dir: PathBuf,
    /// The QEMU binary, a path or a name to be found in PATH.
    #[serde(default = "default_qemu")]
    pub qemu: PathBuf,
    #[serde(default)]
    pub accel: Accel,
    #[serde(default = "default_run_as")]
    pub run_as_uid: u32,
    #[serde(default = "default_run_as")]
    pub run_as_gid: u32,
    /// Where the other hosts reach this one: end of overlay tunnels, and of block exports unless `storage_address`
    /// says otherwise. Absent: the address from which the server is reached.
    #[serde(default)]
    pub address: Option<IpAddr>,
    #[serde(default)]
    pub storage_address: Option<IpAddr>,
    /// Where hosts of other datacentres send to, encrypted; UDP. Absent: `address`.
    #[serde(default)]
    pub tunnel_address: Option<IpAddr>,
    #[serde(default = "default_tunnel_port")]
    pub tunnel_port: u16,
    /// Instead of the machine's own number; for several hosts on one machine.
    #[serde(default)]
    pub cpus: Option<u32>,
    #[serde(default)]
    pub memory: Option<Bytes>,
    /// How long the files of a volume that moved away stay in their pool, so that the way back is short. They go
    /// earlier where a pool is nearly full.
    #[serde(default = "default_former_kept")]
    pub former_kept: Span,
    /// Less than this share of a pool free is nearly full; 0: only their time ends them.
    #[serde(default = "default_former_free", deserialize_with = "percent")]
    pub former_free_percent: u8,
    /// `guard.toml` of this host's guard. Absent: it has none, and its VMs are not started elsewhere when it is lost.
    #[serde(default)]
    pub guard: Option<PathBuf>,
}

/// What runs guest code.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// Tries a small guest and takes KVM only if it runs.
    #[default]
    Auto,
    Tcg,
    Kvm,
}

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {path:?}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path:?} is not a valid agent configuration")]
    Parse { path: PathBuf, source: toml::de::Error },
}

fn default_data_dir() -> PathBuf {
    "/var/lib/sterna/agent".into()
}

fn default_run_dir() -> PathBuf {
    "/run/sterna".into()
}

fn default_qemu() -> PathBuf {
    "qemu-system-x86_64".into()
}

fn default_run_as() -> u32 {
    RUN_AS
}

fn default_tunnel_port() -> u16 {
    TUNNEL_PORT
}

fn default_former_kept() -> Span {
    FORMER_KEPT
}

fn default_former_free() -> u8 {
    FORMER_FREE_PERCENT
}

fn percent<'de, D: Deserializer<'de>>(from: D) -> Result<u8, D::Error> {
    let number = u8::deserialize(from)?;
    if number <= 100 { Ok(number) } else { Err(D::Error::custom("must be 0 to 100")) }
}

impl Config {
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text =
            std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        toml::from_str(&text).map_err(|source| Error::Parse { path: path.to_owned(), source })
    }

    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.data_dir.join("host.pem")
    }

    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.data_dir.join("host.key")
    }

    /// The private key of this host's end of the tunnel.
    #[must_use]
    pub fn tunnel_key(&self) -> PathBuf {
        self.data_dir.join("tunnel.key")
    }

    /// Certificate of the CA that signed the server's.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.data_dir.join("ca.pem")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_lines_are_enough_and_the_rest_has_defaults() {
        let config: Config = toml::from_str("server = \"10.0.0.1:7443\"\nhost = \"a1\"").unwrap();
        assert_eq!(config.run_dir, Path::new("/run/sterna"));
        assert_eq!((config.run_as_uid, config.accel), (RUN_AS, Accel::Auto));
        assert_eq!((config.former_kept.to_string().as_str(), config.former_free_percent), ("7d", 10));
        assert_eq!(config.certificate(), Path::new("/var/lib/sterna/agent/host.pem"));
    }

    #[test]
    fn a_share_above_the_whole_is_refused() {
        let text =
            |percent| format!("server = \"10.0.0.1:7443\"\nhost = \"a1\"\nformer_free_percent = {percent}");
        assert_eq!(toml::from_str::<Config>(&text(100)).unwrap().former_free_percent, 100);
        assert!(toml::from_str::<Config>(&text(101)).unwrap_err().to_string().contains("0 to 100"));
    }

    #[test]
    fn a_key_that_nobody_reads_is_refused() {
        let text = "server = \"10.0.0.1:7443\"\nhost = \"a1\"\nmemroy = \"4GiB\"";
        assert!(toml::from_str::<Config>(text).unwrap_err().to_string().contains("memroy"));
    }
}
