//! What is here of every VM, for inventories.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use sterna_wire::up::VmSeen;
use tokio::sync::Notify;
use uuid::Uuid;

struct Row {
    seen: VmSeen,
    is_known: bool,
}

/// One row a VM, kept by the VM's own task.
#[derive(Default)]
pub struct Board {
    rows: Mutex<BTreeMap<Uuid, Row>>,
    changed: Notify,
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Uuid, Row>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `is_known` is false while the VM could not be looked at.
    pub fn set(&self, seen: VmSeen, is_known: bool) {
        self.lock().insert(seen.uid, Row { seen, is_known });
        self.changed.notify_one();
    }

    /// Nothing is known of it until its task says so again.
    pub fn doubt(&self, uid: Uuid) {
        if let Some(row) = self.lock().get_mut(&uid) {
            row.is_known = false;
        }
    }

    pub fn remove(&self, uid: Uuid) {
        self.lock().remove(&uid);
    }

    /// Waits until this many VMs are here and each was looked at.
    pub async fn all_known(&self, count: usize) {
        loop {
            let changed = self.changed.notified();
            {
                let rows = self.lock();
                if rows.len() >= count && rows.values().all(|row| row.is_known) {
                    return;
                }
            }
            changed.await;
        }
    }

    /// Everything that is here, and whether all of it could be looked at.
    pub fn inventory(&self) -> (bool, Vec<VmSeen>) {
        let rows = self.lock();
        let is_complete = rows.values().all(|row| row.is_known);
        let here = rows.values().filter(|row| row.seen.report.is_some()).map(|row| row.seen.clone());
        (is_complete, here.collect())
    }

    /// The VM's present report.
    pub fn report(&self, uid: Uuid) -> Option<VmSeen> {
        self.lock().get(&uid).map(|row| row.seen.clone())
    }
}
