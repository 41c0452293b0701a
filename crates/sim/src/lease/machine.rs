//! A machine with a guard: what the guard's shell does, a fake watchdog, and all the ways to stop.

use sterna_guard::core::event::{Effect, Event, State};
use sterna_guard::core::guard::Guard;
use sterna_guard::core::page::Page;
use sterna_guard::core::time::BootInstant;
use uuid::Uuid;

use crate::lease::agent::Agent;
use crate::lease::clock::Clock;
use crate::lease::copies::vm_number;
use crate::lease::queue::{Ask, Happening, Note, Packet};
use crate::lease::world::{World, host_id, node_of};

/// From one end of a local socket to the other.
const SOCKET_NS: u64 = 100_000;

/// Resets its host when nobody has fed it for so long: a fake of the device, which does it at the last instant allowed.
#[derive(Debug, Clone, Copy)]
pub struct FakeWatchdog {
    pub timeout: std::time::Duration,
    pub fires_at: u64,
}

#[derive(Debug)]
pub struct Machine {
    /// A witness has no VMs and never joins.
    pub is_host: bool,
    pub is_up: bool,
    pub boot: u64,
    pub clock: Clock,
    pub guard: Option<Guard>,
    /// Grows with each end and each start of a guard.
    pub guard_life: u64,
    wake: u64,
    pub guard_stalls_until: u64,
    pub agent_stalls_until: u64,
    page: Option<Page>,
    watchdog: Option<FakeWatchdog>,
    /// The guard ends in the midst of its next step, having done so much of it.
    pub dies_after: Option<usize>,
    /// The lease as the guard last had it: its epoch, its deadline, and when the watchdog has fired after that.
    pub lease: Option<(u64, BootInstant, u64)>,
    pub agent: Agent,
}

impl Machine {
    #[must_use]
    pub fn new(is_host: bool, clock: Clock, vms: usize) -> Self {
        Self {
            is_host,
            is_up: false,
            boot: 0,
            clock,
            guard: None,
            guard_life: 0,
            wake: 0,
            guard_stalls_until: 0,
            agent_stalls_until: 0,
            page: None,
            watchdog: None,
            dies_after: None,
            lease: None,
            agent: Agent::new(vms),
        }
    }

    pub fn set_page(&mut self, page: Page) {
        self.page = Some(page);
    }

    /// Until when a VM of this epoch may be here.
    #[must_use]
    pub fn until(&self, epoch: u64) -> u64 {
        self.lease.filter(|(held, ..)| *held == epoch).map_or(0, |(.., until)| until)
    }
}

impl World {
    pub(crate) fn tell_guard(&mut self, machine: usize, ask: Ask) {
        let life = self.machines[machine].guard_life;
        self.queue.push(self.now + SOCKET_NS, Happening::ToGuard { machine, life, ask });
    }

    pub(crate) fn tell_agent(&mut self, machine: usize, note: Note) {
        let life = self.machines[machine].agent.life;
        self.queue.push(self.now + SOCKET_NS, Happening::ToAgent { machine, life, note });
    }

    pub(crate) fn boot(&mut self, machine: usize) {
        let (now, ppm) = (self.now, self.setup.ppm_max);
        let clock = Clock::drawn(&mut self.random, now, ppm);
        let keeps = self.setup.weather.page_survives;
        let keeps_page = self.random.chance(keeps);
        let it = &mut self.machines[machine];
        it.is_up = true;
        it.boot += 1;
        it.clock = clock;
        if !keeps_page {
            it.page = None;
        }
        let boot = it.boot;
        self.note([40, machine as u64, boot], || format!("machine {machine} boots ({boot})"));
        self.queue.push(now + 1_000_000, Happening::GuardStarts { machine, boot });
        self.queue.push(now + 2_000_000, Happening::AgentStarts { machine, boot });
    }

    /// Power is gone, or the watchdog has fired: nothing of this boot is left.
    pub(crate) fn reset(&mut self, machine: usize, down_ns: u64, why: &str) {
        if !self.machines[machine].is_up {
            return;
        }
        self.note([41, machine as u64, down_ns], || format!("machine {machine} is reset: {why}"));
        self.copies.retain(|copy| copy.host != machine);
        self.end_guard(machine);
        self.end_agent(machine);
        let it = &mut self.machines[machine];
        it.is_up = false;
        it.watchdog = None;
        it.lease = None;
        (it.guard_stalls_until, it.agent_stalls_until, it.dies_after) = (0, 0, None);
        self.queue.push(self.now + down_ns, Happening::Boot { machine });
    }

    pub(crate) fn end_guard(&mut self, machine: usize) {
        let it = &mut self.machines[machine];
        it.guard = None;
        it.guard_life += 1;
        it.guard_stalls_until = 0;
    }

    pub(crate) fn crash_guard(&mut self, machine: usize, down_ns: u64) {
        if self.machines[machine].guard.is_none() {
            return;
        }
        self.note([42, machine as u64, down_ns], || format!("guard {machine} ends"));
        self.end_guard(machine);
        let boot = self.machines[machine].boot;
        self.queue.push(self.now + down_ns, Happening::GuardStarts { machine, boot });
    }

    pub(crate) fn on_guard_starts(&mut self, machine: usize, boot: u64) {
        let now = self.now;
        let it = &mut self.machines[machine];
        if !it.is_up || it.boot != boot || it.guard.is_some() {
            return;
        }
        let boot = Uuid::from_u128((machine as u128) << 64 | u128::from(boot));
        let mut guard = Guard::start(host_id(machine), boot, it.page.clone(), it.clock.at(now));
        guard.set_mutations(self.setup.mutations);
        it.guard_life += 1;
        it.guard = Some(guard);
        self.note([43, machine as u64, 0], || format!("guard {machine} starts"));
        self.step(machine, Event::Tick);
        self.on_guard_is_back(machine);
    }

    /// One step of the production guard, and all that it wants done.
    pub(crate) fn step(&mut self, machine: usize, event: Event) {
        let it = &mut self.machines[machine];
        let now = it.clock.at(self.now);
        let Some(guard) = &mut it.guard else { return };
        let before = guard.status(now).lease;
        let effects = guard.step(now, event);
        let dies_after = it.dies_after.take_if(|after| *after < effects.len());
        for effect in effects.into_iter().take(dies_after.unwrap_or(usize::MAX)) {
            self.carry_out(machine, effect);
        }
        if dies_after.is_some() {
            self.crash_guard(machine, 20_000_000);
            return;
        }
        self.look_at_lease(machine, now, before);
    }

    fn carry_out(&mut self, machine: usize, effect: Effect) {
        match effect {
            Effect::Freeze { vm } => self.freeze(machine, vm_number(vm), true),
            Effect::Thaw { vm } => self.freeze(machine, vm_number(vm), false),
            Effect::Kill { vm } => self.kill(machine, vm_number(vm)),
            Effect::Persist(page) => self.machines[machine].page = Some(page),
            Effect::ProgramWatchdog { timeout } => self.program_watchdog(machine, timeout),
            Effect::Pet => self.feed(machine),
            Effect::Send { to, message } => self.send(machine, node_of(to), Packet::Guard(message)),
            Effect::Report(report) => {
                self.note([44, machine as u64, 0], || format!("guard {machine}: {report:?}"));
            }
            Effect::NextWake(at) => {
                let it = &mut self.machines[machine];
                it.wake += 1;
                let (life, number) = (it.guard_life, it.wake);
                let at = it.clock.when(at).max(self.now + 1000);
                self.queue.push(at, Happening::Wake { machine, life, number });
            }
        }
    }

    pub(crate) fn on_wake(&mut self, machine: usize, life: u64, number: u64) {
        let it = &self.machines[machine];
        if it.guard_life == life && it.wake == number {
            self.step(machine, Event::Tick);
        }
    }

    pub(crate) fn on_ask(&mut self, machine: usize, ask: Ask) {
        match ask {
            Ask::Event(event) => self.step(machine, event),
            Ask::Start { list, order } => {
                self.step(machine, Event::VmsChanged(list));
                let it = &self.machines[machine];
                let Some(guard) = &it.guard else { return };
                let answer = guard.may_start(order, it.clock.at(self.now));
                self.note([45, machine as u64, u64::from(answer.is_ok())], || {
                    format!("guard {machine} may start {order:?}: {answer:?}")
                });
                self.tell_agent(machine, Note::Start { order, answer });
            }
            Ask::Poll { number } => {
                let it = &self.machines[machine];
                let Some(guard) = &it.guard else { return };
                let status = Box::new(guard.status(it.clock.at(self.now)));
                self.tell_agent(machine, Note::Status { number, status });
            }
        }
    }

    fn program_watchdog(&mut self, machine: usize, timeout: std::time::Duration) {
        let boot = self.machines[machine].boot;
        if self.machines[machine].watchdog.is_none() {
            self.queue.push(self.now, Happening::WatchdogFires { machine, boot });
        }
        self.machines[machine].watchdog = Some(FakeWatchdog { timeout, fires_at: 0 });
        self.feed(machine);
    }

    fn feed(&mut self, machine: usize) {
        let (now, it) = (self.now, &mut self.machines[machine]);
        if let Some(watchdog) = &mut it.watchdog {
            watchdog.fires_at = now + it.clock.lasts(watchdog.timeout);
        }
    }

    pub(crate) fn on_watchdog(&mut self, machine: usize, boot: u64) {
        let it = &self.machines[machine];
        let Some(watchdog) = it.watchdog.filter(|_| it.boot == boot) else { return };
        if self.now < watchdog.fires_at {
            self.queue.push(watchdog.fires_at, Happening::WatchdogFires { machine, boot });
        } else if self.setup.watchdog_fires {
            let down = self.random.between(2000, 8000) * 1_000_000;
            self.reset(machine, down, "watchdog");
        }
    }

    /// What the guard now believes, and what follows for its VMs. An epoch whose deadline is over is over for ever.
    fn look_at_lease(&mut self, machine: usize, now: BootInstant, before: State) {
        let it = &mut self.machines[machine];
        let Some(guard) = &it.guard else { return };
        let status = guard.status(now);
        if status.lease != before {
            let state = status.lease;
            self.note([46, machine as u64, 0], || format!("guard {machine} is {state:?}"));
        }
        let State::Held { epoch } = status.lease else { return };
        let it = &mut self.machines[machine];
        let deadline = now + status.left.unwrap_or_default();
        let timeout = it.watchdog.map(|watchdog| watchdog.timeout).unwrap_or_default();
        let until = it.clock.when(deadline).saturating_add(it.clock.lasts(timeout));
        let is_revived = it.lease.is_some_and(|(held, at, _)| held == epoch.0 && at <= now);
        it.lease = Some((epoch.0, deadline, until));
        for copy in &mut self.copies {
            if copy.host == machine && copy.host_epoch == epoch.0 {
                copy.until = copy.until.max(until);
            }
        }
        if is_revived {
            self.violate(format!("host {machine} holds epoch {epoch} after its deadline"));
        }
    }
}
