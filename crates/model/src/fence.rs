//! A host's fence device: what switches the machine off from outside, and tells whether it is off.
//!
//! It is spoken to through a fence agent, a program of the distribution such as `fence_ipmilan`. `docs/flows/host-power.md`
//! has the flow.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use sterna_base::clock::Timestamp;
use utoipa::ToSchema;
use uuid::Uuid;

/// Options of one device, secrets among them.
pub const OPTIONS_MAX: usize = 32;
/// Of an option's name.
pub const KEY_MAX: usize = 64;
/// Of an option's value.
pub const VALUE_MAX: usize = 1024;
/// What is shown instead of a secret.
const HIDDEN: &str = "(hidden)";

/// What begins with this is run as the server's user, and nothing else.
const PREFIX: &str = "fence_";
/// Given by Sterna itself, or of a kind that would make "off" mean something else: `missing_as_off` calls a machine off that the
/// device has never heard of.
const RESERVED: [&str; 8] =
    ["action", "option", "method", "missing_as_off", "quiet", "version", "help", "ssh_options"];
/// These name files and programs of the server's machine, which an agent would write, read or run as the server's user.
const RESERVED_STARTS: [&str; 2] = ["debug", "verbose"];
const RESERVED_ENDS: [&str; 3] = ["_script", "_path", "_file"];

/// Agents whose "off" is not that the machine has no power: those that cut a port of a network or of storage, that guess, that believe a
/// person, or that only play.
const NO_POWER: [&str; 13] = [
    "fence_ack_manual",
    "fence_brocade",
    "fence_cisco_mds",
    "fence_compute",
    "fence_crosslink",
    "fence_dummy",
    "fence_evacuate",
    "fence_heuristics_ping",
    "fence_ifmib",
    "fence_kdump",
    "fence_mpath",
    "fence_sanbox2",
    "fence_scsi",
];

/// Beginnings of agents that speak to a controller on the host's own board: it has no power when the host has none.
const ON_BOARD: [&str; 10] = [
    "fence_alom",
    "fence_amt",
    "fence_drac",
    "fence_idrac",
    "fence_ilo",
    "fence_imm",
    "fence_ipmilan",
    "fence_redfish",
    "fence_rsa",
    "fence_rsb",
];
/// Begins like one of them, and is of the chassis.
const OF_CHASSIS: &str = "fence_ilo_moonshot";

/// A value that is written down and never shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = String)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

/// How the machine is switched off from outside. Written by the API, once the device has answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FenceDevice {
    /// Another with every change: what an earlier device said is worth nothing.
    pub id: Uuid,
    /// The agent's program, such as `fence_ipmilan`.
    pub agent: String,
    /// As the agent's manual names them, such as `ip`.
    pub options: BTreeMap<String, String>,
    /// Options that are never shown, such as `password`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, Secret>,
    /// When it was set, and had said that the host is on.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
}

/// Why a device cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotADevice {
    #[error(
        "{0:.80?} is not the name of a fence agent: one begins with `fence_` and has lower-case letters, digits and _"
    )]
    Agent(String),
    #[error("agent {0} does not switch a machine off: what it proves is something else")]
    NoPower(String),
    #[error("{0:.80?} is not the name of an option: lower-case letters, digits, _ and -, at most {KEY_MAX}")]
    Key(String),
    #[error(
        "option {0} is given by Sterna, or would let the agent use this server's files or call a stranger off"
    )]
    Reserved(String),
    #[error("the value of option {0} has a line break or more than {VALUE_MAX} bytes")]
    Value(String),
    #[error("option {0} is given twice")]
    Twice(String),
    #[error("there are more than {OPTIONS_MAX} options")]
    Many,
}

impl FenceDevice {
    /// Holds it to what may be run.
    pub fn check(&self) -> Result<(), NotADevice> {
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        let rest = self.agent.strip_prefix(PREFIX).unwrap_or_default();
        if rest.is_empty() || rest.len() > KEY_MAX || !rest.bytes().all(is_plain) {
            return Err(NotADevice::Agent(self.agent.clone()));
        }
        if NO_POWER.contains(&self.agent.as_str()) {
            return Err(NotADevice::NoPower(self.agent.clone()));
        }
        if self.options.len() + self.secrets.len() > OPTIONS_MAX {
            return Err(NotADevice::Many);
        }
        if let Some(key) = self.secrets.keys().find(|key| self.options.contains_key(*key)) {
            return Err(NotADevice::Twice(key.clone()));
        }
        for (key, value) in self.lines() {
            let is_name = |byte: u8| is_plain(byte) || byte == b'-';
            if key.is_empty() || key.len() > KEY_MAX || !key.bytes().all(is_name) || key.starts_with('-') {
                return Err(NotADevice::Key(key.to_owned()));
            }
            if is_reserved(key) {
                return Err(NotADevice::Reserved(key.to_owned()));
            }
            if value.len() > VALUE_MAX || value.contains(['\n', '\r', '\0']) {
                return Err(NotADevice::Value(key.to_owned()));
            }
        }
        Ok(())
    }

    /// Everything that the agent is told of the device.
    pub fn lines(&self) -> impl Iterator<Item = (&str, &str)> {
        let options = self.options.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        options.chain(self.secrets.iter().map(|(key, value)| (key.as_str(), value.0.as_str())))
    }

    /// Whether it answers when the host has no power. Where it does not, only the lease tells that such a host is gone.
    #[must_use]
    pub fn has_own_power(&self) -> bool {
        let is_on_board = ON_BOARD.iter().any(|start| self.agent.starts_with(start));
        !is_on_board || self.agent == OF_CHASSIS
    }

    /// As it may be shown to anybody.
    #[must_use]
    pub fn without_secrets(&self) -> Self {
        let hidden = |key: &String| (key.clone(), Secret(HIDDEN.to_owned()));
        Self { secrets: self.secrets.keys().map(hidden).collect(), ..self.clone() }
    }
}

/// An agent takes `-` for `_`.
fn is_reserved(key: &str) -> bool {
    let key = key.replace('-', "_");
    RESERVED.contains(&key.as_str())
        || RESERVED_STARTS.iter().any(|start| key.starts_with(start))
        || RESERVED_ENDS.iter().any(|end| key.ends_with(end))
}

/// What a device says of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PowerState {
    On,
    Off,
}

impl PowerState {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            PowerState::On => "on",
            PowerState::Off => "off",
        }
    }
}

/// What control heard of a host's device. Written when it changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeviceSeen {
    /// [`FenceDevice::id`].
    pub device: Uuid,
    /// What the last status said; absent: there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power: Option<PowerState>,
    /// Why nothing can be built on it, in its own words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    /// Since when it says so.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(agent: &str, options: &[(&str, &str)]) -> FenceDevice {
        let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        FenceDevice {
            id: Uuid::nil(),
            agent: agent.to_owned(),
            options,
            secrets: BTreeMap::from([("password".to_owned(), Secret("geheim".to_owned()))]),
            since: Timestamp::default(),
        }
    }

    #[test]
    fn what_is_usual_is_allowed() {
        let usual = [("ip", "10.0.0.9"), ("username", "admin"), ("lanplus", "1"), ("power-timeout", "20")];
        assert_eq!(device("fence_ipmilan", &usual).check(), Ok(()));
    }

    #[test]
    fn only_fence_agents_are_run() {
        for agent in ["", "fence_", "sh", "fence_../x", "fence_a/b", "Fence_x", "fence_x y"] {
            assert_eq!(device(agent, &[]).check(), Err(NotADevice::Agent(agent.to_owned())));
        }
    }

    #[test]
    fn cutting_a_network_or_storage_off_is_not_power() {
        for agent in ["fence_ifmib", "fence_scsi", "fence_dummy"] {
            assert_eq!(device(agent, &[]).check(), Err(NotADevice::NoPower(agent.to_owned())));
        }
    }

    #[test]
    fn a_controller_on_the_board_has_no_power_of_its_own() {
        let own = |agent| device(agent, &[]).has_own_power();
        assert!(!own("fence_ipmilan") && !own("fence_ilo5_ssh") && !own("fence_redfish"));
        assert!(own("fence_apc") && own("fence_virsh") && own("fence_ilo_moonshot"));
    }

    #[test]
    fn no_option_names_a_file_or_changes_what_off_means() {
        for key in [
            "action",
            "debug_file",
            "debug-file",
            "password_script",
            "ipmitool_path",
            "missing_as_off",
            "verbose",
        ] {
            let refused = device("fence_ipmilan", &[(key, "1")]).check();
            assert_eq!(refused, Err(NotADevice::Reserved(key.to_owned())));
        }
        let refused = device("fence_ipmilan", &[("ip", "1\naction=on")]).check();
        assert_eq!(refused, Err(NotADevice::Value("ip".to_owned())));
        let refused = device("fence_ipmilan", &[("a=b", "")]).check();
        assert_eq!(refused, Err(NotADevice::Key("a=b".to_owned())));
        let refused = device("fence_ipmilan", &[("password", "x")]).check();
        assert_eq!(refused, Err(NotADevice::Twice("password".to_owned())));
    }

    #[test]
    fn a_secret_is_kept_and_not_shown() {
        let device = device("fence_ipmilan", &[]);
        assert!(!format!("{device:?}").contains("geheim"));
        assert!(serde_json::to_string(&device).unwrap().contains("geheim"));
        let shown = serde_json::to_string(&device.without_secrets()).unwrap();
        assert!(!shown.contains("geheim") && shown.contains("\"password\""), "{shown}");
    }
}
