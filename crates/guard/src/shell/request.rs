//! What the agent asks its guard and what it is told, one JSON object a line.
//!
//! | request | answer |
//! |---|---|
//! | `vms` | `done`; the whole list of VMs that could be restarted elsewhere |
//! | `may-start` | `done`, or `refused`; the VM was listed as `starting` before |
//! | `join` | `done`; `asked_at` is `now` of a `status` from before the store was asked |
//! | `configure` | `done`; voters, fencers, profile and peers |
//! | `release` | `done`; the lease is returned once the list is empty |
//! | `status` | `status` |
//!
//! `done` means heard and carried out; what came of it is in reports, which come unasked, each with a `report`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use sterna_base::units::Span;

use crate::core::event::VmUnderLease;
use crate::core::guard::Status;
use crate::core::id::{Epoch, HostId, VmId};
use crate::core::membership::Configuration;
use crate::core::profile::Profile;
use crate::core::time::BootInstant;
use crate::core::voters::Voters;
use crate::datagram::PublicKey;
use crate::shell::steadiness::Steadiness;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    Vms { vms: Vec<VmUnderLease> },
    MayStart { vm: VmId, vm_epoch: u64, host_epoch: Epoch },
    Join { epoch: Epoch, asked_at: BootInstant },
    Configure(Settings),
    Release {},
    Status {},
}

/// All that a guard needs to know of its datacentre. Kept in a file, so that a guard that restarts needs no agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub version: u64,
    pub voters: Voters,
    pub fencers: BTreeSet<HostId>,
    pub profile: ProfileName,
    pub peers: BTreeMap<HostId, PeerSettings>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerSettings {
    pub key: PublicKey,
    /// One for each path, in the order of the paths.
    pub addresses: Vec<SocketAddr>,
}

/// `"quick"`, or the three spans.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum ProfileName {
    Named(String),
    Custom { renew: Span, lease: Span, watchdog: Span },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no profile `{0}`; there are fast, quick, standard and patient")]
pub struct NoSuchProfile(String);

impl Settings {
    pub fn configuration(&self) -> Result<Configuration, NoSuchProfile> {
        let profile = match &self.profile {
            ProfileName::Named(name) => Profile::named(name).ok_or_else(|| NoSuchProfile(name.clone()))?,
            ProfileName::Custom { renew, lease, watchdog } => {
                Profile { renew: renew.0, lease: lease.0, watchdog: watchdog.0 }
            }
        };
        let (voters, fencers) = (self.voters.clone(), self.fencers.clone());
        Ok(Configuration { version: self.version, voters, fencers, profile })
    }
}

#[derive(Debug, Clone, Serialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    Done,
    Refused { why: String },
    Status(Box<Health>),
}

/// A guard with the process and the devices that it runs on.
#[derive(Debug, Clone, Serialize)]
pub struct Health {
    pub guard: Status,
    pub watchdog: &'static str,
    /// Why it is not fed, since when it last was.
    pub watchdog_error: Option<String>,
    pub steadiness: Steadiness,
    pub datagrams_refused: u64,
    pub datagrams_unsent: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_reads_as_documented() {
        let uid = "00000000-0000-0000-0000-00000000000a";
        let key = "ab".repeat(32);
        for line in [
            format!(
                r#"{{"request":"vms","vms":[{{"vm":"{uid}","epoch":3,"host_epoch":2,"isolation":"kill","starting":true}}]}}"#
            ),
            format!(r#"{{"request":"may-start","vm":"{uid}","vm_epoch":3,"host_epoch":2}}"#),
            r#"{"request":"join","epoch":2,"asked_at":12000000000}"#.to_owned(),
            format!(
                r#"{{"request":"configure","version":1,"voters":["{uid}"],"fencers":[],"profile":"quick","peers":{{"{uid}":{{"key":"{key}","addresses":["10.0.0.1:7450","10.1.0.1:7450"]}}}}}}"#
            ),
            r#"{"request":"release"}"#.to_owned(),
            r#"{"request":"status"}"#.to_owned(),
        ] {
            serde_json::from_str::<Request>(&line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
        let unknown = r#"{"request":"status","verbose":true}"#;
        assert!(serde_json::from_str::<Request>(unknown).is_err());
    }

    #[test]
    fn a_profile_is_a_name_or_three_spans() {
        let settings = |profile: &str| {
            let text =
                format!(r#"{{"version":1,"voters":[],"fencers":[],"profile":{profile},"peers":{{}}}}"#);
            serde_json::from_str::<Settings>(&text).unwrap().configuration().map(|known| known.profile)
        };
        assert_eq!(settings(r#""quick""#), Ok(Profile::QUICK));
        assert_eq!(settings(r#"{"renew":"1s","lease":"4s","watchdog":"3s"}"#), Ok(Profile::QUICK));
        assert!(settings(r#""mid""#).unwrap_err().to_string().contains("`mid`"));
    }
}
