//! What must hold after every event, and what must have become of it all in the end.

use crate::lease::copies::Copy;
use crate::lease::store::{HostState, Why};
use crate::lease::world::World;

/// Rounding of clocks.
const GRACE_NS: u64 = 1_000_000;
const SECOND_NS: u64 = 1_000_000_000;
/// How long after the last fault all has to be well.
pub const RECOVERY_NS: u64 = 120 * SECOND_NS;
/// All has to be well so often in a row, a second apart.
const WELL_IN_A_ROW: u32 = 3;

impl World {
    pub(crate) fn violate(&mut self, what: String) {
        self.note([80, 0, 0], || format!("VIOLATION {what}"));
        if self.wrong.is_none() {
            self.is_unsafe = true;
            self.wrong = Some(format!("{:.3} s: {what}", self.now as f64 / 1e9));
        }
    }

    /// At most one copy of a VM runs.
    pub(crate) fn check_alone(&mut self, vm: usize) {
        let active: Vec<&Copy> =
            self.copies.iter().filter(|copy| copy.vm == vm && copy.is_active()).collect();
        if active.len() > 1 {
            let which: Vec<_> = active.iter().map(|copy| (copy.host, copy.host_epoch, copy.epoch)).collect();
            self.violate(format!("vm {vm} runs twice (host, host's epoch, epoch): {which:?}"));
        }
    }

    /// No start without a proof object that its last owner is out.
    pub(crate) fn check_proof(&mut self, copy: &Copy) {
        let owned = self.store.owned.iter().find(|owned| owned.vm == copy.vm && owned.epoch == copy.epoch);
        let Some(owned) = owned else {
            self.violate(format!("vm {} runs under epoch {}, which nobody gave it", copy.vm, copy.epoch));
            return;
        };
        let is_owner = owned.owner == (copy.host, copy.host_epoch);
        let is_proven = match (&owned.why, owned.before) {
            (Why::Fenced, Some((host, epoch))) => {
                self.store.proofs.iter().any(|(of, proof)| *of == host && proof.epoch.0 >= epoch)
            }
            (Why::First, before) => before.is_none(),
            (Why::HostIsPast { held }, Some((_, epoch))) => *held > epoch,
            (Why::GaveUp, before) => before.is_some(),
            (Why::Fenced, None) | (Why::HostIsPast { .. }, None) => false,
        };
        if !is_owner || !is_proven {
            self.violate(format!("vm {} runs on host {} without proof: {owned:?}", copy.vm, copy.host));
        }
    }

    /// A host whose lease is over runs nothing once the watchdog has had its time.
    pub(crate) fn check_deadlines(&mut self) {
        let now = self.now;
        let late =
            self.copies.iter().find(|copy| now > copy.until.saturating_add(GRACE_NS) && copy.is_active());
        if let Some(copy) = late {
            let (vm, host, epoch) = (copy.vm, copy.host, copy.host_epoch);
            self.violate(format!("vm {vm} is on host {host} after deadline and watchdog of epoch {epoch}"));
        }
    }

    /// Once a second after the last fault. True when there is nothing more to wait for.
    pub(crate) fn judge(&mut self) -> bool {
        let unwell = self.unwell();
        self.well_in_a_row = if unwell.is_none() { self.well_in_a_row + 1 } else { 0 };
        if self.well_in_a_row >= WELL_IN_A_ROW {
            return true;
        }
        let is_over = self.now >= self.setup.calm_at_ms * 1_000_000 + RECOVERY_NS;
        if let Some(what) = unwell.filter(|_| is_over) {
            self.violate(format!("120 s after the last fault {what}"));
            self.is_unsafe = false;
        }
        is_over
    }

    fn unwell(&self) -> Option<String> {
        let rows = &self.store.rows;
        if rows.former.is_some() {
            return Some("the change of voters is not over".to_owned());
        }
        for (host, row) in rows.hosts.iter().enumerate() {
            if row.state != HostState::Up {
                return Some(format!("host {host} is {:?}", row.state));
            }
            if self.controllers.iter().any(|it| it.suspects(host)) {
                return Some(format!("host {host} is suspected"));
            }
            if self.machines[host].lease.is_none_or(|(held, ..)| held != row.epoch) {
                return Some(format!("host {host} does not hold epoch {}", row.epoch));
            }
        }
        (0..rows.vms.len()).find(|vm| !self.runs_as_owned(*vm)).map(|vm| format!("vm {vm} does not run"))
    }

    fn runs_as_owned(&self, vm: usize) -> bool {
        let row = self.store.rows.vms[vm];
        let mut copies = self.copies.iter().filter(|copy| copy.vm == vm);
        copies
            .any(|copy| row.owner == Some((copy.host, copy.host_epoch)) && !copy.is_frozen && !copy.is_killed)
    }
}
