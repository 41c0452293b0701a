//! The VMs that could be restarted elsewhere, and what is done to them when the lease says so.
//!
//! A VM that is being killed stays here until it is gone for good: reaped, and no start of it under way. While one is here
//! that may not run, the watchdog is not fed.

use std::collections::{BTreeMap, BTreeSet};

use crate::core::event::{Effect, Isolation, KillReason, Report, StartRefusal, VmUnderLease};
use crate::core::id::{Epoch, VmId};
use crate::core::mutation::Mutations;
use crate::core::page::PageVm;

/// What fits the page; far more than QEMU processes fit a host.
pub const VMS_MAX: usize = 512;

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Vms {
    entries: BTreeMap<VmId, Entry>,
    mutations: Mutations,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Entry {
    vm: VmUnderLease,
    /// None: nobody knows, for a guard that has ended may have frozen it.
    is_frozen: Option<bool>,
    doom: Option<Doom>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Doom {
    is_reaped: bool,
}

impl Entry {
    /// Whether it lives and dies with the lease, and lives.
    fn is_at_stake(&self) -> bool {
        self.vm.isolation == Isolation::Kill && self.doom.is_none()
    }

    /// It could run only under a lease that this host does not hold.
    fn is_orphan(&self, held: Option<Epoch>, mutations: Mutations) -> bool {
        let any_epoch = crate::mutated!(mutations, StartsUnderAnyEpoch);
        let has_lease = if any_epoch { held.is_some() } else { held == Some(self.vm.host_epoch) };
        self.is_at_stake() && !has_lease
    }
}

impl Vms {
    /// Those of an earlier guard on this boot. What was being killed is killed again: nobody knows how far it came.
    pub fn resume(left: &[PageVm], held: Option<Epoch>, effects: &mut Vec<Effect>) -> Self {
        let mut vms = Self::default();
        for PageVm { vm, doomed } in left {
            let is_frozen = (vm.isolation == Isolation::Keep).then_some(false);
            vms.entries.insert(vm.vm, Entry { vm: *vm, is_frozen, doom: None });
            if *doomed {
                vms.doom(vm.vm, KillReason::LeaseExpired, effects);
            }
        }
        vms.doom_orphans(held, effects);
        vms
    }

    pub fn set_mutations(&mut self, mutations: Mutations) {
        self.mutations = mutations;
    }

    /// The agent's whole list. What is missing from it is no longer our concern, unless we are ending it.
    pub fn set_list(&mut self, list: &[VmUnderLease], held: Option<Epoch>, effects: &mut Vec<Effect>) {
        if list.len() > VMS_MAX {
            effects.push(Effect::Report(Report::VmsRefused { count: list.len(), limit: VMS_MAX }));
            return;
        }
        let listed: BTreeSet<VmId> = list.iter().map(|vm| vm.vm).collect();
        let missing: Vec<VmId> = self.entries.keys().filter(|vm| !listed.contains(vm)).copied().collect();
        for vm in missing {
            self.on_unlisted(vm, effects);
        }
        for vm in list {
            self.on_listed(*vm, effects);
        }
        self.doom_orphans(held, effects);
    }

    fn on_unlisted(&mut self, vm: VmId, effects: &mut Vec<Effect>) {
        let Some(entry) = self.entries.get(&vm) else { return };
        if entry.doom.is_some() {
            self.end_start(vm, effects);
            return;
        }
        if entry.is_frozen != Some(false) {
            effects.push(Effect::Thaw { vm });
        }
        self.entries.remove(&vm);
    }

    fn on_listed(&mut self, vm: VmUnderLease, effects: &mut Vec<Effect>) {
        match self.entries.get_mut(&vm.vm) {
            None => {
                self.entries.insert(vm.vm, Entry { vm, is_frozen: Some(false), doom: None });
            }
            Some(entry) if entry.doom.is_none() => entry.vm = vm,
            // The agent does not know yet. Whether it may still start is all that counts.
            Some(entry) if vm.starting => entry.vm.starting = true,
            Some(_) => self.end_start(vm.vm, effects),
        }
    }

    /// The agent's starts died with it.
    pub fn on_agent_lost(&mut self, effects: &mut Vec<Effect>) {
        let starting: Vec<VmId> =
            self.entries.values().filter(|entry| entry.vm.starting).map(|entry| entry.vm.vm).collect();
        for vm in starting {
            self.end_start(vm, effects);
        }
    }

    /// A start that was under way is made or given up. One that was being killed meanwhile is looked for once more: it may
    /// have come up after the first look.
    fn end_start(&mut self, vm: VmId, effects: &mut Vec<Effect>) {
        let Some(entry) = self.entries.get_mut(&vm) else { return };
        let was_starting = std::mem::replace(&mut entry.vm.starting, false);
        if was_starting && let Some(doom) = &mut entry.doom {
            doom.is_reaped = false;
            effects.push(Effect::Kill { vm });
        }
    }

    /// No process of it is left. True when that was the last one that was being ended.
    pub fn on_reaped(&mut self, vm: VmId, effects: &mut Vec<Effect>) {
        let Some(entry) = self.entries.get_mut(&vm) else { return };
        let Some(doom) = &mut entry.doom else { return };
        doom.is_reaped = true;
        let may_still_come = entry.vm.starting && !crate::mutated!(self.mutations, StartUnderWayIsIgnored);
        if !may_still_come {
            self.entries.remove(&vm);
            effects.push(Effect::Report(Report::Gone { vm }));
        }
    }

    /// Nothing is written from here on, until the lease is renewed.
    pub fn freeze(&mut self, effects: &mut Vec<Effect>) {
        let mut vms = 0;
        for entry in
            self.entries.values_mut().filter(|entry| entry.is_at_stake() && entry.is_frozen != Some(true))
        {
            entry.is_frozen = Some(true);
            vms += 1;
            effects.push(Effect::Freeze { vm: entry.vm.vm });
        }
        if vms > 0 {
            effects.push(Effect::Report(Report::Frozen { vms }));
        }
    }

    pub fn thaw(&mut self, effects: &mut Vec<Effect>) {
        let mut vms = 0;
        for entry in
            self.entries.values_mut().filter(|entry| entry.is_frozen != Some(false) && entry.doom.is_none())
        {
            entry.is_frozen = Some(false);
            vms += 1;
            effects.push(Effect::Thaw { vm: entry.vm.vm });
        }
        if vms > 0 {
            effects.push(Effect::Report(Report::Thawed { vms }));
        }
    }

    /// The lease is over: ends all that lived under it.
    pub fn expire(&mut self, effects: &mut Vec<Effect>) {
        let at_stake: Vec<VmId> =
            self.entries.values().filter(|entry| entry.is_at_stake()).map(|entry| entry.vm.vm).collect();
        for vm in at_stake {
            self.doom(vm, KillReason::LeaseExpired, effects);
        }
    }

    fn doom_orphans(&mut self, held: Option<Epoch>, effects: &mut Vec<Effect>) {
        let orphans: Vec<VmId> = self
            .entries
            .values()
            .filter(|entry| entry.is_orphan(held, self.mutations))
            .map(|entry| entry.vm.vm)
            .collect();
        for vm in orphans {
            self.doom(vm, KillReason::WrongEpoch, effects);
        }
    }

    fn doom(&mut self, vm: VmId, why: KillReason, effects: &mut Vec<Effect>) {
        let Some(entry) = self.entries.get_mut(&vm) else { return };
        entry.doom = Some(Doom::default());
        if entry.is_frozen != Some(true) {
            entry.is_frozen = Some(true);
            effects.push(Effect::Freeze { vm });
        }
        effects.push(Effect::Kill { vm });
        effects.push(Effect::Report(Report::Killing { vm, why }));
        if crate::mutated!(self.mutations, UnreapedCountsAsGone) {
            self.entries.remove(&vm);
        }
    }

    /// Some are being ended and not gone.
    #[must_use]
    pub fn any_doomed(&self) -> bool {
        self.entries.values().any(|entry| entry.doom.is_some())
    }

    /// No VM is left that could be restarted elsewhere, also none that outlives the lease.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Some live under the lease.
    #[must_use]
    pub fn any_at_stake(&self) -> bool {
        self.entries.values().any(Entry::is_at_stake)
    }

    /// Some that live under the lease are not frozen.
    #[must_use]
    pub fn any_to_freeze(&self) -> bool {
        self.entries.values().any(|entry| entry.is_at_stake() && entry.is_frozen != Some(true))
    }

    /// Whether this VM, listed as starting, may be started by an order for `ordered`.
    pub fn check_start(&self, vm: VmId, ordered: u64) -> Result<(), StartRefusal> {
        match self.entries.get(&vm) {
            Some(entry) if entry.doom.is_some() => Err(StartRefusal::BeingKilled),
            Some(entry) if entry.vm.epoch > ordered => {
                Err(StartRefusal::OldVmEpoch { seen: entry.vm.epoch, ordered })
            }
            Some(entry) if entry.vm.starting => Ok(()),
            _ => Err(StartRefusal::NotListed),
        }
    }

    #[must_use]
    pub fn for_page(&self) -> Vec<PageVm> {
        self.entries.values().map(|entry| PageVm { vm: entry.vm, doomed: entry.doom.is_some() }).collect()
    }
}

#[cfg(test)]
mod tests;
