//! A VM that ends, crashes or hangs without being asked: how often it is brought back, and what a host tells of it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sterna_base::units::Span;
use utoipa::ToSchema;

/// Waits before the first, second, ... restart in a row. The first is at once: most crashes do not repeat.
const RESTART_WAITS: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(60),
];
/// A copy that ran this long counts as healthy: the next crash starts the waits anew. Also the window in which restarts
/// in place are counted.
pub const HEALTHY_AFTER: Duration = Duration::from_secs(600);
/// Restarts on the same host within [`HEALTHY_AFTER`]: what crashes once more may be the host's fault.
pub const IN_PLACE_MAX: u32 = 3;

/// The wait before a restart that has so many before it in a row.
#[must_use]
pub fn restart_wait(before: u32) -> Duration {
    let last = RESTART_WAITS.len() - 1;
    RESTART_WAITS[usize::try_from(before).map_or(last, |before| before.min(last))]
}

/// What is done when a guest fails in a way that only the host can see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnFault {
    /// It is reset, at most [`RESETS_MAX`] times an hour.
    #[default]
    Restart,
    /// It is left as it is, for its owner to look at.
    Leave,
}

/// Resets within [`RESETS_WITHIN`] that a host makes by itself; after them the VM is quarantined until a person asks for
/// a start or a reset.
pub const RESETS_MAX: u32 = 3;
pub const RESETS_WITHIN: Duration = Duration::from_secs(3600);

/// Whether what the VM is for works, asked again and again by the host that it runs on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HealthCheck {
    pub probe: Probe,
    /// From one question to the next, 1 s to 1 h.
    #[serde(default = "ten_seconds")]
    #[schema(value_type = String, example = "10s")]
    pub interval: Span,
    /// An answer that takes longer is none; at most the interval.
    #[serde(default = "three_seconds")]
    #[schema(value_type = String, example = "3s")]
    pub timeout: Span,
    /// Failures in a row that make it unhealthy, 1 to 100.
    #[serde(default = "three")]
    pub failures: u32,
    #[serde(default)]
    pub action: CheckAction,
}

fn ten_seconds() -> Span {
    Span::from_secs(10)
}

fn three_seconds() -> Span {
    Span::from_secs(3)
}

fn three() -> u32 {
    3
}

/// The limits the API holds checks to.
pub const CHECKS_MAX: usize = 8;
pub const INTERVAL_MIN: Span = Span::from_secs(1);
pub const INTERVAL_MAX: Span = Span::from_secs(3600);
pub const FAILURES_MAX: u32 = 100;
/// Characters of a path, or of a command with its arguments.
pub const PROBE_TEXT_MAX: usize = 1024;

/// How it is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum Probe {
    /// `GET` at the first address of the VM; healthy when the status is of the class.
    Http {
        port: u16,
        #[serde(default = "root")]
        path: String,
        #[serde(default)]
        expect: StatusClass,
    },
    /// A connection to the port opens.
    Tcp { port: u16 },
    /// A program of the guest ends with 0; through the guest agent.
    Exec {
        /// The program's full path, then its arguments.
        command: Vec<String>,
    },
}

fn root() -> String {
    "/".to_owned()
}

impl Probe {
    /// In words.
    #[must_use]
    pub fn words(&self) -> String {
        match self {
            Self::Http { port, path, .. } => format!("http :{port}{path}"),
            Self::Tcp { port } => format!("tcp :{port}"),
            Self::Exec { command } => format!("exec {}", command.first().map_or("", String::as_str)),
        }
    }

    /// It goes over the network, to an address of the VM.
    #[must_use]
    pub fn needs_address(&self) -> bool {
        !matches!(self, Self::Exec { .. })
    }
}

/// The first digit of a status, written `2xx`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ToSchema)]
pub enum StatusClass {
    #[serde(rename = "1xx")]
    Informational,
    #[default]
    #[serde(rename = "2xx")]
    Success,
    #[serde(rename = "3xx")]
    Redirection,
    #[serde(rename = "4xx")]
    ClientError,
    #[serde(rename = "5xx")]
    ServerError,
}

impl StatusClass {
    #[must_use]
    pub fn has(self, status: u16) -> bool {
        let class = match self {
            Self::Informational => 1,
            Self::Success => 2,
            Self::Redirection => 3,
            Self::ClientError => 4,
            Self::ServerError => 5,
        };
        status / 100 == class
    }
}

/// What follows when a check has become unhealthy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CheckAction {
    /// It is shown.
    #[default]
    None,
    /// The guest is reset, if the check was healthy before.
    Restart,
}

/// How a check stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckReport {
    /// Its probe in words.
    pub check: String,
    pub state: CheckState,
    /// Of the failure that made it unhealthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CheckState {
    /// Not healthy yet since the guest last started.
    Starting,
    Healthy,
    Unhealthy,
}

impl CheckState {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// What a host did by itself for the copy that it reports.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct HealthReport {
    /// Times that QEMU ended and was started again under the same epoch.
    #[serde(skip_serializing_if = "is_zero")]
    pub restarts: u32,
    /// Of those, the ones of the last ten minutes, when the last one happened.
    #[serde(skip_serializing_if = "is_zero")]
    pub recent: u32,
    /// Why it was last restarted in place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Times that the host reset the guest by itself.
    #[serde(skip_serializing_if = "is_zero")]
    pub resets: u32,
    /// Why it was last reset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reset_why: Option<String>,
    /// It was reset often enough, and is left as it is until a person asks for a start or a reset: why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quarantine: Option<String>,
    /// In the order of the VM's spec; empty while the guest does not run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckReport>,
}

impl HealthReport {
    /// Nothing has happened.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_says_what_it_asks_and_what_is_left_out_has_its_default() {
        let check: HealthCheck = serde_json::from_str(r#"{"probe":{"type":"http","port":80}}"#).unwrap();
        let Probe::Http { ref path, expect, .. } = check.probe else { panic!("{check:?}") };
        assert_eq!((path.as_str(), expect, check.failures), ("/", StatusClass::Success, 3));
        assert_eq!((check.interval, check.timeout), (Span::from_secs(10), Span::from_secs(3)));
        assert_eq!(check.action, CheckAction::None);
        for wrong in [
            r#"{"probe":{"type":"http","port":80,"expect":"2"}}"#,
            r#"{"probe":{"type":"http","port":70000}}"#,
            r#"{"probe":{"type":"icmp"}}"#,
            r#"{"probe":{"type":"tcp","port":80},"retries":3}"#,
        ] {
            assert!(serde_json::from_str::<HealthCheck>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_class_has_its_hundred() {
        for (class, first) in [(StatusClass::Success, 200), (StatusClass::ServerError, 500)] {
            assert!(class.has(first) && class.has(first + 99));
            assert!(!class.has(first - 1) && !class.has(first + 100));
        }
    }

    #[test]
    fn waits_grow_and_then_stay() {
        let waits: Vec<_> = [0, 1, 2, 3, 4, 5, u32::MAX].map(|n| restart_wait(n).as_secs()).into();
        assert_eq!(waits, [0, 1, 5, 30, 60, 60, 60]);
    }
}
