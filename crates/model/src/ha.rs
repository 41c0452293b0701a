//! What a host's lease is to the store: who grants it, where it stands, and how it is known to be over.
//!
//! `docs/flows/host-loss.md` has the states and the transactions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use sterna_base::clock::Timestamp;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::fence::DeviceSeen;
use crate::meta::Name;

/// Fewer voters survive no loss: no lease is given then.
pub const VOTERS_MIN: usize = 3;
/// More make a lease no safer and every renewal dearer.
pub const VOTERS_MAX: usize = 9;
/// Networks on which a guard is reached.
pub const PATHS_MAX: usize = 2;

/// How long leases of a datacentre last: shorter means sooner elsewhere, and asks more of the network.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Lease 2 s. Leaves a real watchdog no time: only where none is one.
    Fast,
    /// Lease 4 s: running again 8 to 9 s after a host's death.
    Quick,
    /// Lease 10 s.
    #[default]
    Standard,
    /// Lease 20 s.
    Patient,
}

impl Profile {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Profile::Fast => "fast",
            Profile::Quick => "quick",
            Profile::Standard => "standard",
            Profile::Patient => "patient",
        }
    }
}

/// What a datacentre's hosts are held to. Written by the API.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HaSettings {
    pub profile: Profile,
}

/// The public half of the key that makes a machine this guard to its peers: 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String")]
#[schema(value_type = String)]
pub struct GuardKey(String);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a guard's key has 64 lower-case hexadecimal digits")]
pub struct NotAKey;

impl TryFrom<String> for GuardKey {
    type Error = NotAKey;

    fn try_from(text: String) -> Result<Self, NotAKey> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f');
        if text.len() == 64 && text.bytes().all(is_digit) { Ok(Self(text)) } else { Err(NotAKey) }
    }
}

impl GuardKey {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A machine that speaks the lease protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Peer {
    /// For people: a host's name, or what a server calls itself.
    pub name: String,
    pub key: GuardKey,
    /// One for each path.
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<SocketAddr>,
}

/// Who grants the leases of a datacentre, by uid. What control chose; changed only by transactions that compare it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VoterDecision {
    /// Grows with every change of voters, fencers or profile.
    pub version: u64,
    pub voters: BTreeSet<Uuid>,
    /// Whose questions and fences count: servers.
    pub fencers: BTreeSet<Uuid>,
    pub profile: Profile,
    /// Set while a change is under way: these count as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub former: Option<FormerVoters>,
    /// Everybody who is spoken to, with those that have no vote. Changes without a new version.
    pub peers: BTreeMap<Uuid, Peer>,
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FormerVoters {
    pub voters: BTreeSet<Uuid>,
    pub profile: Profile,
}

/// Where a host's lease stands. Written by control.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostDecision {
    /// Grows with every joining; 0: never joined.
    pub epoch: u64,
    pub state: HaState,
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// The agent's question that this epoch is the answer to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<Uuid>,
    /// The version of the voters that its lease rests on.
    #[serde(default)]
    pub confirmed: u64,
    /// When it fell silent, as far as it has not been heard since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub silent_since: Option<Timestamp>,
    /// The last proof. It stays true: of its epoch and of those before nothing runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fenced: Option<Fenced>,
    /// When it was fenced while it had VMs, the latest last; at most three.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub fenced_at: Vec<Timestamp>,
    /// It gets no VMs until then: it was lost too often.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub quarantined_until: Option<Timestamp>,
    /// What its fence device said last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceSeen>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum HaState {
    /// Without a lease.
    Left,
    Up,
    /// Two voters have not heard it for a while.
    Suspect,
    /// No voter renews this epoch any more. There is no way back for it.
    Fencing,
    /// Proven: nothing of this epoch runs.
    Fenced,
}

/// How it is known that nothing of a host's epoch runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Fenced {
    pub epoch: u64,
    pub proof: Proof,
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Proof {
    /// A majority of the voters said that the lease and the watchdog have run out.
    F3 {
        /// Of the voters.
        configuration: u64,
        /// Who said so, and when it was asked, by the fencer's `CLOCK_BOOTTIME` in nanoseconds.
        acks: Vec<(Uuid, u64)>,
        decided_at: u64,
    },
    /// A person looked.
    F5 { by: String },
    /// The host's fence device switched it off, and said afterwards that it is off.
    F2 {
        /// [`crate::fence::FenceDevice::id`].
        device: Uuid,
        agent: String,
        /// What the host's report called its boot: what was there before is gone with that one.
        boot: String,
    },
}

impl Proof {
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Proof::F3 { .. } => "F3",
            Proof::F5 { .. } => "F5",
            Proof::F2 { .. } => "F2",
        }
    }
}

impl Default for HostDecision {
    fn default() -> Self {
        Self {
            epoch: 0,
            state: HaState::Left,
            since: Timestamp::default(),
            answers: None,
            confirmed: 0,
            silent_since: None,
            fenced: None,
            fenced_at: Vec::new(),
            quarantined_until: None,
            device: None,
        }
    }
}

impl HostDecision {
    /// The proof that nothing runs that was under this epoch of the host.
    #[must_use]
    pub fn proof_for(&self, epoch: u64) -> Option<&Fenced> {
        self.fenced.as_ref().filter(|fenced| fenced.epoch >= epoch)
    }

    #[must_use]
    pub fn is_quarantined(&self, now: Timestamp) -> bool {
        self.quarantined_until.is_some_and(|until| now < until)
    }

    /// One word for tables.
    #[must_use]
    pub fn word(&self, now: Timestamp) -> &'static str {
        match self.state {
            HaState::Suspect => "suspect",
            HaState::Fencing => "fencing",
            HaState::Fenced => "fenced",
            _ if self.is_quarantined(now) => "quarantined",
            HaState::Up => "up",
            HaState::Left => "-",
        }
    }
}

/// A person's word that a host is dead; for this epoch and those before. Written by the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConfirmedDead {
    pub epoch: u64,
    /// Since when the host's agent was silent: the word is about this silence and no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub silent_since: Option<Timestamp>,
    pub by: String,
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
}

/// A host's guard as its agent sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GuardSeen {
    pub key: GuardKey,
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<SocketAddr>,
    /// What resets the host when its guard cannot: `device`, `fake` (labs) or `none`.
    pub watchdog: String,
    pub lease: LeaseSeen,
    /// Of the voters, as the guard knows them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration: Option<u64>,
    /// The version that the lease rests on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed: Option<u64>,
    /// It has no lease and wants one. Each question has a number of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asks: Option<Uuid>,
    /// The last epoch that it returned by itself, with nothing left under it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub returned: Option<u64>,
    /// Why it is of no use now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// Where a guard says that its lease stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum LeaseSeen {
    #[default]
    None,
    /// Joined, and not granted yet.
    Candidate {
        epoch: u64,
    },
    Held {
        epoch: u64,
    },
    /// Its VMs are being ended.
    Expired {
        epoch: u64,
    },
}

impl LeaseSeen {
    #[must_use]
    pub fn held(self) -> Option<u64> {
        match self {
            LeaseSeen::Held { epoch } => Some(epoch),
            _ => None,
        }
    }
}

/// Whether a VM is started elsewhere when its host is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Ha {
    On,
    Off,
}

/// What becomes of a VM whose host has lost its lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// It is ended, so that it can be started elsewhere.
    Kill,
    /// It runs on; it is started elsewhere once the host is known to be off.
    Keep,
}

/// How a VM came to its host when its former one was lost.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub struct Takeover {
    pub from: Name,
    pub from_epoch: u64,
    /// `F2`, `F3` or `F5`; the whole proof is in the lost host's decision.
    pub proof: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_form_is_a_key() {
        assert!(GuardKey::try_from("ab".repeat(32)).is_ok());
        for wrong in ["", "ab", &"AB".repeat(32), &"zz".repeat(32)] {
            assert!(GuardKey::try_from(wrong.to_owned()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_proof_holds_for_its_epoch_and_those_before() {
        let fenced = Fenced { epoch: 3, proof: Proof::F5 { by: "ada".into() }, at: Timestamp::default() };
        let decision = HostDecision { fenced: Some(fenced), ..HostDecision::default() };
        assert!(decision.proof_for(2).is_some() && decision.proof_for(3).is_some());
        assert!(decision.proof_for(4).is_none());
        assert_eq!(decision.word(Timestamp::default()), "-");
    }
}
