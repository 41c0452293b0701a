//! `guard.toml`: what this host's guard is told by the one who installed it. Voters, peers and profile come from the agent.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use uuid::Uuid;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// This host's uid in the cluster.
    pub host: Uuid,
    /// The private key of its datagrams; made by `HostKey::generate` when the host joined.
    pub key: PathBuf,
    /// Where it hears its peers: one address, or one on each of two networks. Path 1 of a peer is reached from the first.
    pub listen: Vec<SocketAddr>,
    /// As in `agent.toml`: run records of VMs, and below `guard/` what this process keeps. On tmpfs, gone with the boot.
    #[serde(default = "default_run_dir")]
    pub run_dir: PathBuf,
    #[serde(default)]
    pub watchdog: WatchdogKind,
}

/// What resets the host when its guard cannot.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum WatchdogKind {
    /// Only the guard itself: best effort (F4), said so.
    #[default]
    None,
    /// A watchdog of the kernel, such as `/dev/watchdog`.
    Device(PathBuf),
    /// The socket of a supervisor that plays one, for labs.
    Fake(PathBuf),
}

/// Paths on which a guard is reached.
const PATHS_MAX: usize = 2;

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {path:?}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path:?} is not a valid guard configuration")]
    Parse { path: PathBuf, source: toml::de::Error },
    #[error("`listen` has {0} addresses; a guard has one or two")]
    Paths(usize),
}

fn default_run_dir() -> PathBuf {
    "/run/sterna".into()
}

impl Config {
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text =
            std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let config: Self =
            toml::from_str(&text).map_err(|source| Error::Parse { path: path.to_owned(), source })?;
        config.check()?;
        Ok(config)
    }

    pub fn check(&self) -> Result<(), Error> {
        match self.listen.len() {
            1..=PATHS_MAX => Ok(()),
            count => Err(Error::Paths(count)),
        }
    }

    /// What this process keeps for its successor.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        self.run_dir.join("guard")
    }

    /// Where the agent finds it.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.directory().join("guard.sock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = "host = \"00000000-0000-0000-0000-00000000000a\"\nkey = \"/k\"\n";

    #[test]
    fn three_lines_are_enough() {
        let config: Config = toml::from_str(&format!("{LEAST}listen = [\"10.0.0.1:7450\"]")).unwrap();
        config.check().unwrap();
        assert_eq!(config.socket(), Path::new("/run/sterna/guard/guard.sock"));
        assert_eq!(config.watchdog, WatchdogKind::None);
    }

    #[test]
    fn a_watchdog_is_named_with_its_kind() {
        let text = format!("{LEAST}listen = []\nwatchdog = {{ device = \"/dev/watchdog\" }}");
        let config: Config = toml::from_str(&text).unwrap();
        assert_eq!(config.watchdog, WatchdogKind::Device("/dev/watchdog".into()));
        assert!(matches!(config.check(), Err(Error::Paths(0))));
    }

    #[test]
    fn a_key_that_nobody_reads_is_refused() {
        let text = format!("{LEAST}listen = [\"10.0.0.1:7450\"]\nwatchdgo = 1");
        assert!(toml::from_str::<Config>(&text).unwrap_err().to_string().contains("watchdgo"));
    }
}
