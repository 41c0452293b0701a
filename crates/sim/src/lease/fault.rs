//! What may be done to the world. None outlasts the calm: what is cut is joined and what is down is started then.

use sterna_guard::core::id::HostId;
use sterna_guard::core::membership::Configuration;
use sterna_guard::core::profile::Profile;
use sterna_guard::core::voters::Voters;

use crate::lease::queue::Happening;
use crate::lease::store::Op;
use crate::lease::world::{World, host_id};

/// Who of a machine does not get a processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// Guard and agent; VMs run on.
    Both,
    Guard,
    Agent,
}

#[derive(Debug, Clone)]
pub enum Fault {
    Stall {
        machine: usize,
        who: Who,
        ms: u64,
    },
    Crash {
        machine: usize,
        down_ms: u64,
    },
    CrashGuard {
        machine: usize,
        down_ms: u64,
    },
    /// In the midst of its next step that wants more than this done.
    CrashMidStep {
        machine: usize,
        after: usize,
    },
    CrashAgent {
        machine: usize,
        down_ms: u64,
    },
    CrashController {
        controller: usize,
        down_ms: u64,
    },
    StallController {
        controller: usize,
        ms: u64,
    },
    /// One direction.
    Cut {
        from: usize,
        to: usize,
        ms: u64,
    },
    Slow {
        from: usize,
        to: usize,
        by_ms: u64,
        ms: u64,
    },
    StoreDown {
        ms: u64,
    },
    /// Its process goes into D state.
    Hang {
        vm: usize,
    },
    CrashVm {
        vm: usize,
    },
    /// Somebody has a host fenced that is well.
    Suspect {
        host: usize,
    },
    Drain {
        machine: usize,
    },
    Change {
        voters: Vec<usize>,
        profile: Option<Profile>,
    },
}

impl World {
    pub(crate) fn on_fault(&mut self, fault: &Fault) {
        self.note([70, 0, 0], || format!("FAULT {fault:?}"));
        match *fault {
            Fault::Stall { machine, who, ms } => self.stall(machine, who, ms),
            Fault::Crash { machine, down_ms } => {
                let down = self.span(down_ms);
                self.reset(machine, down, "power");
            }
            Fault::CrashGuard { machine, down_ms } => {
                let down = self.span(down_ms);
                self.crash_guard(machine, down);
            }
            Fault::CrashMidStep { machine, after } => self.machines[machine].dies_after = Some(after),
            Fault::CrashAgent { machine, down_ms } => {
                let down = self.span(down_ms);
                self.crash_agent(machine, down);
            }
            Fault::CrashController { controller, down_ms } => self.crash_controller(controller, down_ms),
            Fault::StallController { controller, ms } => {
                self.controllers[controller].stalls_until = self.now + self.span(ms);
            }
            Fault::Cut { from, to, ms } => self.net.cut(from, to, self.now + self.span(ms)),
            Fault::Slow { from, to, by_ms, ms } => {
                self.net.slow((from, to), by_ms * 1_000_000, self.now + self.span(ms));
            }
            Fault::StoreDown { ms } => {
                self.store.is_up = false;
                self.queue.push(self.now + self.span(ms), Happening::StoreIsBack);
            }
            Fault::Hang { vm } | Fault::CrashVm { vm } => {
                self.hurt_vm(vm, matches!(fault, Fault::Hang { .. }))
            }
            Fault::Suspect { host } => {
                let epoch = self.store.rows.hosts[host].epoch;
                let is_up = self.store.is_up;
                if is_up {
                    self.store.apply(&Op::BeginFence { host, epoch });
                }
            }
            Fault::Drain { machine } => {
                let agent = &mut self.machines[machine].agent;
                agent.is_draining = agent.is_up;
            }
            Fault::Change { ref voters, profile } => self.change_voters(voters, profile),
        }
    }

    /// So long, or until the calm begins.
    fn span(&self, ms: u64) -> u64 {
        let left = (self.setup.calm_at_ms * 1_000_000).saturating_sub(self.now);
        (ms * 1_000_000).min(left)
    }

    fn stall(&mut self, machine: usize, who: Who, ms: u64) {
        let until = self.now + self.span(ms);
        let it = &mut self.machines[machine];
        if who != Who::Agent {
            it.guard_stalls_until = it.guard_stalls_until.max(until);
        }
        if who != Who::Guard {
            it.agent_stalls_until = it.agent_stalls_until.max(until);
        }
    }

    fn crash_controller(&mut self, controller: usize, down_ms: u64) {
        let down = self.span(down_ms);
        if self.controllers[controller].is_up {
            self.controllers[controller].end();
            self.queue.push(self.now + down, Happening::ControllerStarts { controller });
        }
    }

    fn hurt_vm(&mut self, vm: usize, hangs: bool) {
        let Some(copy) = self.copies.iter_mut().find(|copy| copy.vm == vm && !copy.is_killed) else { return };
        let id = copy.id;
        copy.hangs |= hangs;
        if hangs {
            self.check_alone(vm);
        } else {
            self.reap(id);
        }
    }

    fn change_voters(&mut self, voters: &[usize], profile: Option<Profile>) {
        let old = &self.store.rows.configuration;
        let to = Configuration {
            version: old.version + 1,
            voters: voters.iter().map(|machine| host_id(*machine)).collect::<Voters>(),
            fencers: old.fencers.iter().copied().collect::<std::collections::BTreeSet<HostId>>(),
            profile: profile.unwrap_or(old.profile),
        };
        if self.store.is_up {
            self.store.apply(&Op::Change { to });
        }
    }
}
