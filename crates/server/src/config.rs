//! `server.toml`: the server's settings. Unknown keys are refused.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sterna_base::units::{Bytes, Span};
use sterna_model::meta::Name;

/// The content of `server.toml`. Every key has a default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where the one TLS port listens: API, page, joining hosts and agents.
    pub listen: Vec<SocketAddr>,
    /// Holds the store, the history, the CA, the certificates and the images.
    pub data_dir: PathBuf,
    /// The datacentre of hosts that name none when they join.
    pub datacentre: Name,
    /// `HOST:PORT` under which others reach this server; absent: the first address of `listen` that says where.
    pub advertise: Option<String>,
    /// More names and addresses that the server's certificate shall be valid for.
    pub names: Vec<String>,
    /// Lets images be fetched from loopback, private and link-local addresses.
    pub allow_private_urls: bool,
    /// The largest image that is taken in.
    pub image_size_max: Bytes,
    /// Events older than this are forgotten; the audit record is kept for ever.
    pub events_kept: Span,
    /// How hosts' guards are spoken to. Absent: no host gets a lease, and no VM is started elsewhere when one is lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fencing: Option<Fencing>,
}

/// The server's part in the leases of hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fencing {
    /// Where voters answer to; UDP. The address by which the hosts reach it.
    pub listen: SocketAddr,
    /// `guard.toml` of the guard beside this server: a voter where the hosts are fewer than three, or even in number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub witness: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 7443))],
            data_dir: PathBuf::from("/var/lib/sterna/server"),
            datacentre: default_datacentre(),
            advertise: None,
            names: Vec::new(),
            allow_private_urls: false,
            image_size_max: Bytes::gib(64),
            events_kept: Span::from_secs(90 * 86_400),
            fencing: None,
        }
    }
}

fn default_datacentre() -> Name {
    Name::new("default").expect("the literal is a DNS label")
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} is not a server configuration", path.display())]
    Parse { path: PathBuf, source: Box<toml::de::Error> },
    #[error("`listen` in {} names no address", path.display())]
    NoAddress { path: PathBuf },
}

impl Config {
    /// Reads `path`.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text =
            std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let config: Self = toml::from_str(&text)
            .map_err(|source| Error::Parse { path: path.to_owned(), source: Box::new(source) })?;
        if config.listen.is_empty() {
            return Err(Error::NoAddress { path: path.to_owned() });
        }
        Ok(config)
    }

    #[must_use]
    pub fn images_dir(&self) -> PathBuf {
        self.data_dir.join("images")
    }

    #[must_use]
    pub fn store_path(&self) -> PathBuf {
        self.data_dir.join("store.db")
    }

    #[must_use]
    pub fn history_path(&self) -> PathBuf {
        self.data_dir.join("history.db")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_are_refused_and_defaults_fill_the_rest() {
        let config: Config = toml::from_str("listen = [\"127.0.0.1:0\"]\nimage_size_max = \"1GiB\"").unwrap();
        assert_eq!(config.image_size_max, Bytes::gib(1));
        assert_eq!(config.datacentre.as_str(), "default");
        assert_eq!(config.events_kept.to_string(), "90d");
        assert!(toml::from_str::<Config>("lisen = []").unwrap_err().to_string().contains("listen"));
    }
}
