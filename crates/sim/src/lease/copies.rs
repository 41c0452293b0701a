//! VMs as fakes: processes that run, stand frozen, die after a while, or never.

use crate::lease::queue::{Ask, Happening, Note};
use crate::lease::world::World;
use sterna_guard::core::event::Event;
use sterna_guard::core::guard::StartOrder;
use sterna_guard::core::id::VmId;

/// One process.
#[derive(Debug, Clone)]
pub struct Copy {
    pub id: u64,
    pub vm: usize,
    pub epoch: u64,
    pub host: usize,
    pub host_epoch: u64,
    pub is_frozen: bool,
    pub is_killed: bool,
    /// In D state: neither freezing nor killing has an effect.
    pub hangs: bool,
    /// The world's instant from which on it may not be there: its lease and the watchdog are over.
    pub until: u64,
}

impl Copy {
    /// It runs, or writes that it began may still land.
    #[must_use]
    pub fn is_active(&self) -> bool {
        !self.is_frozen || self.is_killed || self.hangs
    }
}

impl World {
    pub(crate) fn copy_at(&mut self, host: usize, vm: usize) -> Option<&mut Copy> {
        self.copies.iter_mut().find(|copy| copy.host == host && copy.vm == vm)
    }

    pub(crate) fn spawn(&mut self, machine: usize, order: StartOrder) {
        let vm = vm_number(order.vm);
        self.copies_made += 1;
        let (id, until) = (self.copies_made, self.machines[machine].until(order.host_epoch.0));
        let copy = Copy {
            id,
            vm,
            epoch: order.vm_epoch,
            host: machine,
            host_epoch: order.host_epoch.0,
            is_frozen: false,
            is_killed: false,
            hangs: false,
            until,
        };
        self.note([30, machine as u64, id], || {
            format!("host {machine} runs vm {vm} epoch {} under {}", order.vm_epoch, order.host_epoch)
        });
        self.copies.push(copy.clone());
        self.check_proof(&copy);
        self.check_alone(vm);
    }

    pub(crate) fn freeze(&mut self, machine: usize, vm: usize, frozen: bool) {
        let Some(copy) = self.copy_at(machine, vm) else { return };
        if !copy.is_killed {
            copy.is_frozen = frozen;
        }
        self.note([31, machine as u64, u64::from(frozen)], || {
            format!("host {machine} {} vm {vm}", if frozen { "freezes" } else { "thaws" })
        });
        self.check_alone(vm);
    }

    /// Ends a process some time later; what is not there is gone at once.
    pub(crate) fn kill(&mut self, machine: usize, vm: usize) {
        let now = self.now;
        let most = self.setup.weather.kill_ms_max * 1_000_000;
        let delay = self.random.between(1_000_000, most.max(1_000_000));
        let Some(copy) = self.copy_at(machine, vm) else {
            self.tell_guard(machine, Ask::Event(Event::Reaped { vm: vm_id(vm) }));
            return;
        };
        let (id, is_first) = (copy.id, !copy.is_killed && !copy.hangs);
        copy.is_killed = true;
        if is_first {
            self.queue.push(now + delay, Happening::Reap { copy: id });
        }
        self.note([32, machine as u64, id], || format!("host {machine} kills vm {vm}"));
        self.check_alone(vm);
    }

    /// What the kernel waited for has come: a process that was killed meanwhile ends.
    pub(crate) fn end_hangs(&mut self) {
        for copy in self.copies.iter_mut().filter(|copy| copy.hangs) {
            copy.hangs = false;
            if copy.is_killed {
                self.queue.push(self.now + 1_000_000, Happening::Reap { copy: copy.id });
            }
        }
    }

    /// A process is gone, and both who may care are told.
    pub(crate) fn reap(&mut self, id: u64) {
        let Some(index) = self.copies.iter().position(|copy| copy.id == id && !copy.hangs) else { return };
        let copy = self.copies.remove(index);
        self.note([33, copy.host as u64, id], || {
            format!("host {} has no process of vm {} any more", copy.host, copy.vm)
        });
        self.tell_guard(copy.host, Ask::Event(Event::Reaped { vm: vm_id(copy.vm) }));
        self.tell_agent(copy.host, Note::ProcessGone { vm: copy.vm, epoch: copy.epoch });
    }
}

#[must_use]
pub fn vm_id(vm: usize) -> VmId {
    VmId::from_u128(vm as u128 + 1)
}

#[must_use]
pub fn vm_number(vm: VmId) -> usize {
    usize::try_from(vm.0.as_u128()).unwrap_or(0).saturating_sub(1)
}
