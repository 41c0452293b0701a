//! Live migration and what forecasts it.
//!
//! Which side owns the guest is not decided here. Facts a caller needs: until the source reports
//! `completed` QEMU may resume the guest on the source by itself, after any failure; a target started with
//! `-S` never runs by itself; the target may not run before its own status is `completed` too.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Client, Error, Schema};

/// A migration's state as QEMU words it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Status {
    /// No migration was ever started in this process.
    #[default]
    None,
    Setup,
    Active,
    /// Stopped, disks still active on the source; waits for `migrate-continue`.
    PreSwitchover,
    /// The last, short part: device state is on its way.
    Device,
    PostcopyActive,
    PostcopyPaused,
    PostcopyRecover,
    Cancelling,
    Cancelled,
    Completed,
    Failed,
    /// A word newer than this crate. Treated as still going: newer QEMU split old states more than once.
    Other(String),
}

impl Status {
    const WORDS: [(&str, Status); 12] = [
        ("none", Status::None),
        ("setup", Status::Setup),
        ("active", Status::Active),
        ("pre-switchover", Status::PreSwitchover),
        ("device", Status::Device),
        ("postcopy-active", Status::PostcopyActive),
        ("postcopy-paused", Status::PostcopyPaused),
        ("postcopy-recover", Status::PostcopyRecover),
        ("cancelling", Status::Cancelling),
        ("cancelled", Status::Cancelled),
        ("completed", Status::Completed),
        ("failed", Status::Failed),
    ];

    /// Nothing more will happen by itself. `none` is not an end: a target that waits says so as well.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }

    pub fn as_str(&self) -> &str {
        if let Self::Other(word) = self {
            return word;
        }
        Self::WORDS.iter().find(|(_, status)| status == self).map_or("none", |(word, _)| word)
    }
}

impl From<String> for Status {
    fn from(word: String) -> Self {
        let known = Self::WORDS.into_iter().find(|(known, _)| *known == word);
        known.map_or(Self::Other(word), |(_, status)| status)
    }
}

impl From<Status> for String {
    fn from(status: Status) -> Self {
        status.as_str().to_owned()
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `query-migrate`: times in milliseconds, absent until QEMU knows them.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Progress {
    pub status: Status,
    pub ram: Option<Ram>,
    /// Since the start; final once completed.
    pub total_time: Option<u64>,
    /// How long the guest stood still; after completion, on the source.
    pub downtime: Option<u64>,
    /// QEMU's guess; ignores what the network still holds, and is off by two to five times.
    pub expected_downtime: Option<u64>,
    pub setup_time: Option<u64>,
    pub error_desc: Option<String>,
    /// Why this guest cannot be migrated at all.
    pub blocked_reasons: Vec<String>,
    pub cpu_throttle_percentage: Option<u64>,
}

/// Guest memory on its way, in bytes unless said.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Ram {
    pub transferred: u64,
    pub remaining: u64,
    pub total: u64,
    /// Zero pages, sent as a marker.
    pub duplicate: u64,
    pub normal_bytes: u64,
    pub page_size: u64,
    /// Pages a second the guest writes to, known after the second pass.
    pub dirty_pages_rate: u64,
    /// Passes over the memory so far.
    pub dirty_sync_count: u64,
    /// Megabit a second.
    pub mbps: f64,
    pub pages_per_second: u64,
}

/// Where a migration goes to, or comes in.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Address {
    Tcp { ip: IpAddr, port: u16 },
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { ip: IpAddr::V4(ip), port } => write!(f, "tcp:{ip}:{port}"),
            Self::Tcp { ip: IpAddr::V6(ip), port } => write!(f, "tcp:[{ip}]:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Switches of a migration; most must be the same on both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Capability {
    Events,
    /// Without it the source says `completed` once its last byte is written, loaded or not.
    ReturnPath,
    PauseBeforeSwitchover,
    /// Target, before 10.0: take image locks at `cont` and not at completion. Newer ones always do.
    LateBlockActivate,
    AutoConverge,
    Multifd,
    PostcopyRam,
    Xbzrle,
}

impl Capability {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::ReturnPath => "return-path",
            Self::PauseBeforeSwitchover => "pause-before-switchover",
            Self::LateBlockActivate => "late-block-activate",
            Self::AutoConverge => "auto-converge",
            Self::Multifd => "multifd",
            Self::PostcopyRam => "postcopy-ram",
            Self::Xbzrle => "xbzrle",
        }
    }
}

/// Numbers of a migration; those left out keep their value.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Parameters {
    /// Bytes a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bandwidth: Option<u64>,
    /// Milliseconds; 0 would skip QEMU's last exact look at what is dirty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downtime_limit: Option<u64>,
    /// Announcements that QEMU makes at completion, before the guest runs; 0 = none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub announce_rounds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multifd_channels: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_throttle_initial: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_throttle_increment: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_cpu_throttle: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_postcopy_bandwidth: Option<u64>,
    /// Credentials that encrypt it; empty: none do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_creds: Option<String>,
}

/// Announcements after the guest runs: `rounds` of them, `initial_ms` apart at first, each gap `step_ms`
/// longer, up to `max_ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Announcement {
    #[serde(rename = "initial")]
    pub initial_ms: u32,
    #[serde(rename = "max")]
    pub max_ms: u32,
    pub rounds: u32,
    #[serde(rename = "step")]
    pub step_ms: u32,
}

/// `query-dirty-rate`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DirtyRate {
    /// `unstarted`, `measuring` or `measured`.
    pub status: String,
    /// MiB a second; absent until measured.
    #[serde(default)]
    pub dirty_rate: Option<u64>,
}

impl DirtyRate {
    pub fn is_measured(&self) -> bool {
        self.status == "measured"
    }
}

impl Client {
    /// Switches on the first list and off the second.
    pub async fn set_migration_capabilities(
        &self,
        on: &[Capability],
        off: &[Capability],
    ) -> Result<(), Error> {
        let one = |capability: &Capability, state: bool| json!({ "capability": capability.as_str(), "state": state });
        let on = on.iter().map(|capability| one(capability, true));
        let off = off.iter().map(|capability| one(capability, false));
        let all: Vec<Value> = on.chain(off).collect();
        self.done("migrate-set-capabilities", json!({ "capabilities": all })).await
    }

    /// Allowed before and during a migration.
    pub async fn set_migration_parameters(&self, parameters: &Parameters) -> Result<(), Error> {
        let arguments = serde_json::to_value(parameters)
            .map_err(|source| Error::Shape { command: "migrate-set-parameters".into(), source })?;
        self.done("migrate-set-parameters", arguments).await
    }

    /// Target: listens. Works once in the life of a process. The port chosen for port 0 is told by
    /// [`Client::incoming_port`].
    pub async fn migrate_incoming(&self, address: &Address) -> Result<(), Error> {
        self.done("migrate-incoming", json!({ "uri": address.to_string() })).await
    }

    /// Target: the port it listens on, once it does.
    pub async fn incoming_port(&self) -> Result<Option<u16>, Error> {
        let reply: Value = self.execute("query-migrate", Value::Null).await?;
        let port = &reply["socket-address"][0]["port"];
        Ok(port.as_str().and_then(|port| port.parse().ok()))
    }

    /// Source: starts; returns at once.
    pub async fn migrate(&self, address: &Address) -> Result<(), Error> {
        self.done("migrate", json!({ "uri": address.to_string() })).await
    }

    /// Source: goes on from `pre-switchover`.
    pub async fn migrate_continue(&self) -> Result<(), Error> {
        self.done("migrate-continue", json!({ "state": "pre-switchover" })).await
    }

    /// Source: asks to give up; the outcome is a status, and may be `completed` all the same.
    pub async fn migrate_cancel(&self) -> Result<(), Error> {
        self.done("migrate_cancel", Value::Null).await
    }

    /// Closes all connections of the migration at once, those of its several channels as well. Refused when there is none.
    pub async fn yank_migration(&self) -> Result<(), Error> {
        self.done("yank", json!({ "instances": [{ "type": "migration" }] })).await
    }

    pub async fn query_migrate(&self) -> Result<Progress, Error> {
        self.execute("query-migrate", Value::Null).await
    }

    /// Tells the network where the guest now is.
    pub async fn announce_self(&self, announcement: Announcement) -> Result<(), Error> {
        let arguments = serde_json::to_value(announcement)
            .map_err(|source| Error::Shape { command: "announce-self".into(), source })?;
        self.done("announce-self", arguments).await
    }

    /// Starts to measure how fast the guest writes to its memory, by hashing samples: the only way that
    /// works under TCG (the exact one kills QEMU 7.2 there). Old QEMU measures whole seconds, at least one.
    pub async fn calc_dirty_rate(&self, schema: &Schema, period: Duration) -> Result<(), Error> {
        let mut arguments = if schema.has_argument("calc-dirty-rate", "calc-time-unit") {
            json!({ "calc-time": period.as_millis().max(50) as u64, "calc-time-unit": "millisecond" })
        } else {
            json!({ "calc-time": period.as_secs().clamp(1, 60) })
        };
        arguments["mode"] = json!("page-sampling");
        self.done("calc-dirty-rate", arguments).await
    }

    pub async fn query_dirty_rate(&self) -> Result<DirtyRate, Error> {
        self.execute("query-dirty-rate", Value::Null).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_status_is_still_going() {
        let progress: Progress =
            serde_json::from_value(json!({ "status": "postcopy-recover-setup", "new": {} })).unwrap();
        assert_eq!(progress.status, Status::Other("postcopy-recover-setup".into()));
        assert!(!progress.status.is_final());
    }

    #[test]
    fn a_process_that_never_migrated_says_nothing() {
        let progress: Progress = serde_json::from_value(json!({})).unwrap();
        assert_eq!(progress.status, Status::None);
        assert!(!progress.status.is_final());
    }

    #[test]
    fn each_status_is_written_as_it_is_read() {
        for (word, status) in Status::WORDS {
            assert_eq!(Status::from(word.to_owned()), status);
            assert_eq!(status.as_str(), word);
        }
    }

    #[test]
    fn addresses_are_written_for_qemu() {
        let tcp = |ip: &str| Address::Tcp { ip: ip.parse().unwrap(), port: 49152 }.to_string();
        assert_eq!(tcp("10.0.0.1"), "tcp:10.0.0.1:49152");
        assert_eq!(tcp("fd00::1"), "tcp:[fd00::1]:49152");
        assert_eq!(Address::Unix("/run/a.sock".into()).to_string(), "unix:/run/a.sock");
    }
}
