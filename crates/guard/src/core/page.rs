//! What a guard leaves for its successor on the same boot: enough to go on with a lease, and to end VMs when it cannot.
//!
//! It may be old only in one direction: a deadline in it is too early, never too late, because it is written after every
//! renewal; and a VM is in it before its start is allowed.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::core::event::VmUnderLease;
use crate::core::id::Epoch;
use crate::core::membership::Membership;
use crate::core::time::BootInstant;

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Page {
    /// Instants mean nothing on another boot, and no process lives on into it.
    pub boot: Uuid,
    /// The highest epoch this host has joined with.
    pub last_epoch: Epoch,
    pub lease: Option<HeldLease>,
    pub membership: Option<Membership>,
    /// How long a voter that comes after this one has to be silent.
    pub quarantine: Duration,
    pub vms: Vec<PageVm>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldLease {
    pub epoch: Epoch,
    pub deadline: BootInstant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PageVm {
    pub vm: VmUnderLease,
    /// Being killed: it stays so whatever the agent says.
    pub doomed: bool,
}
