//! The agent's end of this host's guard: which copies live under the host's lease, and the lease itself.
//!
//! ```text
//! vm (one task a VM) ── begin, enlist, set ──► keeper ── vms, may-start ──►  guard
//! assignment ── voters, answer to a question ──►  │   ── configure, join ─►
//! host row ◄── what the guard says, questions ────┘
//! ```
//!
//! A copy that is to live under a lease is in the guard's list before it is started, and before anybody is told that it is.
//! It stays there as long as it lives. On a host without a guard nothing is under a lease, and all is as it was.

/// Talks to the guard, all the time.
pub mod keeper;
/// One connection with it.
pub mod line;

use std::collections::BTreeMap;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use uuid::Uuid;

use crate::vm::record::Records;

/// A copy under the host's lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ward {
    pub vm: Uuid,
    /// The VM's own epoch.
    pub epoch: u64,
    /// Of the host's lease.
    pub host_epoch: u64,
    /// It has no process yet, and may get one any moment.
    pub starting: bool,
}

/// Why a copy is not under the lease.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Never under this epoch: the host has lost it.
    #[error("{0}")]
    Over(String),
    #[error("{0}")]
    NotNow(String),
}

/// Every copy that was under the lease and is not known to have ended. `is_here`: there is something of that VM.
pub fn listed(
    records: &dyn Records,
    is_here: impl Fn(Uuid) -> bool,
) -> std::io::Result<BTreeMap<Uuid, Ward>> {
    let mut wards = BTreeMap::new();
    for vm in records.known()? {
        let (notes, seen) = (records.notes(vm)?, records.seen(vm)?);
        let noted = notes.and_then(|notes| Some((notes.epoch, notes.lease?)));
        // Without notes it lives only if there is something of it; after a boot there is not.
        let lives = seen
            .filter(|seen| seen.exit.is_none() && is_here(vm))
            .and_then(|seen| Some((seen.epoch, seen.lease?)));
        if let Some((epoch, host_epoch)) = noted.or(lives) {
            wards.insert(vm, Ward { vm, epoch, host_epoch, starting: false });
        }
    }
    Ok(wards)
}

/// What the tasks of VMs reach the guard through.
pub trait Wards: Send + Sync + 'static {
    /// Lists a copy as starting, and asks whether it may. Only then may there be a process of it.
    fn begin(&self, ward: Ward) -> BoxFuture<'_, Result<(), Refused>>;
    /// Lists a copy that runs already.
    fn enlist(&self, ward: Ward) -> BoxFuture<'_, Result<(), Refused>>;
    /// What is here of a VM under the lease now; `None`: nothing is, and nothing will come.
    fn set(&self, vm: Uuid, ward: Option<Ward>);
}

/// This host has no guard.
pub struct NoGuard;

impl Wards for NoGuard {
    fn begin(&self, _: Ward) -> BoxFuture<'_, Result<(), Refused>> {
        std::future::ready(Err(Refused::NotNow("this host has no guard".to_owned()))).boxed()
    }

    fn enlist(&self, ward: Ward) -> BoxFuture<'_, Result<(), Refused>> {
        self.begin(ward)
    }

    fn set(&self, _: Uuid, _: Option<Ward>) {}
}
