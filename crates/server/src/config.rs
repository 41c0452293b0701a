//! `server.toml`: the server's settings. Unknown keys are refused.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sterna_base::units::{Bytes, Span};
use sterna_model::alert::Severity;
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
    pub backup: Backup,
    pub alerts: Alerts,
}

/// `[backup]`: copies of the server's state, taken while it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Backup {
    /// Whether the running server takes them by itself.
    pub scheduled: bool,
    pub every: Span,
    /// How many of the newest stay.
    pub hourly: usize,
    /// For how many days the newest of the day stays.
    pub daily: usize,
    /// Where they are put; absent: `backups` in the data directory. Better on another machine's disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dir: Option<PathBuf>,
    /// Events and the audit record are in them.
    pub history: bool,
}

impl Default for Backup {
    fn default() -> Self {
        Self { scheduled: true, every: Span::from_secs(3600), hourly: 24, daily: 7, dir: None, history: true }
    }
}

/// `[alerts]`: who is told. Not objects of the store: alerts must get out when the store is what is wrong, what they need may
/// be secret, and who is told must not change with a restored store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Alerts {
    /// What fires together within this is told in one message.
    pub group_for: Span,
    /// What still fires is told again after this.
    pub repeat_every: Span,
    /// By name.
    pub mail: BTreeMap<Name, Mail>,
    pub webhook: BTreeMap<Name, Webhook>,
    pub syslog: BTreeMap<Name, Syslog>,
}

impl Default for Alerts {
    fn default() -> Self {
        Self {
            group_for: Span::from_secs(10),
            repeat_every: Span::from_secs(4 * 3600),
            mail: BTreeMap::new(),
            webhook: BTreeMap::new(),
            syslog: BTreeMap::new(),
        }
    }
}

/// Mail through a relay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mail {
    /// `HOST:PORT` of the relay.
    pub server: String,
    #[serde(default)]
    pub tls: MailTls,
    pub from: String,
    pub to: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// A file with the password in its first line, so that it is in no settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// PEM of the CA that signed the relay's certificate; absent: those that this machine trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    #[serde(default)]
    pub least: Least,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MailTls {
    /// STARTTLS, and nothing is sent without it.
    #[default]
    Required,
    /// TLS from the first byte.
    Wrapped,
    /// In clear: only to a relay on this machine.
    None,
}

/// HTTP POST with a JSON body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Webhook {
    pub url: String,
    /// A file whose first line is sent as `Authorization: Bearer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    #[serde(default)]
    pub least: Least,
}

/// RFC 5424.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Syslog {
    /// `HOST:PORT` for UDP, or the path of a local socket such as `/dev/log`.
    pub to: String,
    #[serde(default)]
    pub least: Least,
}

/// The least severe alerts that a receiver is told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Least(pub Severity);

impl Default for Least {
    fn default() -> Self {
        Self(Severity::Warning)
    }
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
    /// Where the fence agents of this machine lie.
    #[serde(default = "agents", skip_serializing_if = "are_usual")]
    pub agents: PathBuf,
}

fn agents() -> PathBuf {
    PathBuf::from(sterna_power::AGENTS)
}

fn are_usual(path: &Path) -> bool {
    path == Path::new(sterna_power::AGENTS)
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
            backup: Backup::default(),
            alerts: Alerts::default(),
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
    pub fn backups_dir(&self) -> PathBuf {
        self.backup.dir.clone().unwrap_or_else(|| self.data_dir.join("backups"))
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
