//! What happens to a guard, and what it wants done.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::core::id::{Epoch, HostId, VmId};
use crate::core::membership::Configuration;
use crate::core::message::Message;
use crate::core::page::Page;
use crate::core::time::BootInstant;

/// One thing that happened. Time may have passed before any of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Event {
    /// The instant came that `Effect::NextWake` asked for. Too early and too late are both harmless.
    Tick,
    /// From a peer whose key it bore.
    Datagram { from: HostId, message: Message },
    /// The agent's whole list of what could be restarted elsewhere.
    VmsChanged(Vec<VmUnderLease>),
    /// The agent's process has ended: it will make none of the starts that it was about to make.
    AgentLost,
    /// No process of a killed VM is left: reaped, not only signalled.
    Reaped { vm: VmId },
    /// The store has this host's new epoch. `asked_at` is this host's clock from *before* the store was asked (rule *).
    Join { epoch: Epoch, asked_at: BootInstant },
    /// New voters, fencers or profile.
    Configure(Configuration),
    /// Return the lease once no VM is left under it; begin nothing meanwhile.
    Release,
}

/// A VM that control may start elsewhere once this host's epoch is fenced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmUnderLease {
    pub vm: VmId,
    /// The VM's own epoch.
    pub epoch: u64,
    /// The host's epoch that its owner row names. A copy from another epoch has no lease and is killed.
    pub host_epoch: Epoch,
    pub isolation: Isolation,
    /// The agent may be about to start it: "no process" does not yet mean "will not run".
    pub starting: bool,
}

/// What becomes of a VM when its host loses its lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// Frozen shortly before the deadline, killed at it.
    Kill,
    /// It runs on: its storage or its host is fenced before another copy starts.
    Keep,
}

/// What is to be done, in this order. When one cannot be done, none of those behind it may be: a page that was not
/// written must not be followed by the message that relies on it. Only killing, freezing and feeding may fail alone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Stop its processes where they stand. Doing it twice is harmless, here and below.
    Freeze {
        vm: VmId,
    },
    /// Let them go on.
    Thaw {
        vm: VmId,
    },
    /// End them, and say `Event::Reaped` once none is left; at once, when there is none.
    Kill {
        vm: VmId,
    },
    /// For whoever runs after this process on this boot.
    Persist(Page),
    /// From now on the host is reset this long after it was last fed.
    ProgramWatchdog {
        timeout: Duration,
    },
    /// Feed the watchdog, now or not at all: later it would promise too much.
    Pet,
    Send {
        to: HostId,
        message: Message,
    },
    Report(Report),
    /// Step again at this instant, with whatever happened or a `Tick`. Always the last one.
    NextWake(BootInstant),
}

impl Effect {
    /// What stops writers goes first, and what others are told goes after what it relies on.
    pub(crate) fn rank(&self) -> u8 {
        match self {
            Effect::Freeze { .. } | Effect::Kill { .. } => 0,
            Effect::Persist(_) => 1,
            Effect::Thaw { .. } => 2,
            Effect::ProgramWatchdog { .. } | Effect::Pet => 3,
            Effect::Send { .. } => 4,
            Effect::Report(_) => 5,
            Effect::NextWake(_) => 6,
        }
    }
}

/// What the agent is told; nothing depends on its being heard.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case", tag = "report")]
pub enum Report {
    /// The lease has changed its state.
    Lease {
        state: State,
    },
    /// VMs are frozen until the lease is renewed, or killed in the last quarter.
    Frozen {
        vms: usize,
    },
    Thawed {
        vms: usize,
    },
    /// A VM is being killed, and why.
    Killing {
        vm: VmId,
        why: KillReason,
    },
    /// It is gone, and nothing of it can come.
    Gone {
        vm: VmId,
    },
    /// A voter has promised a fencer not to renew us: another host will start our VMs.
    Fenced {
        voter: HostId,
        fenced: Epoch,
    },
    JoinRefused {
        epoch: Epoch,
        why: JoinRefusal,
    },
    ConfigurationRefused {
        version: u64,
        why: String,
    },
    /// Every renewal that counts was granted under this version.
    ConfigurationConfirmed {
        version: u64,
    },
    VmsRefused {
        count: usize,
        limit: usize,
    },
    Released {
        epoch: Epoch,
    },
}

/// Where a lease stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum State {
    /// May join.
    NoEpoch,
    /// Joined, and no lease yet. Dies at its deadline as a lease does (rule *).
    Candidate { epoch: Epoch },
    /// VMs may run until the deadline.
    Held { epoch: Epoch },
    /// For ever, for this epoch: its VMs are being ended.
    Expired { epoch: Epoch },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum KillReason {
    /// The lease ran out.
    LeaseExpired,
    /// It was started under an epoch that this host does not hold.
    WrongEpoch,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum JoinRefusal {
    #[error("there is a lease, or VMs of the last one are not gone yet")]
    NotFree,
    #[error("this host has used this epoch or a later one already")]
    EpochUsed,
    #[error("the store was asked so long ago that the epoch has run out")]
    TooLate,
    #[error("the store was asked in the future: not this boot's clock")]
    NotOurClock,
    #[error("no voters are known yet")]
    NotConfigured,
}

/// Why a VM may not be started, or continued, now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, thiserror::Error)]
#[serde(rename_all = "kebab-case", tag = "refused")]
pub enum StartRefusal {
    #[error("this host holds no lease")]
    NoLease,
    #[error("ordered under the host's epoch {ordered}, and it holds {held}")]
    WrongHostEpoch { held: Epoch, ordered: Epoch },
    #[error("the lease is about to run out")]
    TooLate,
    #[error("this host is returning its lease")]
    Releasing,
    #[error("the VM is not in the list as one that is starting: nobody would end it")]
    NotListed,
    #[error("the VM's epoch {seen} was listed here, and the order says {ordered}")]
    OldVmEpoch { seen: u64, ordered: u64 },
    #[error("its last copy here is being killed")]
    BeingKilled,
}
