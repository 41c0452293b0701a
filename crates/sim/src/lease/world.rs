//! The event loop: one queue, one source of chance, and everything that has a state.

use std::collections::BTreeSet;
use std::time::Duration;

use sterna_guard::core::id::{Epoch, HostId};
use sterna_guard::core::membership::{Configuration, Membership};
use sterna_guard::core::message::Message;
use sterna_guard::core::mutation::Mutations;
use sterna_guard::core::page::Page;
use sterna_guard::core::profile::Profile;
use uuid::Uuid;

use crate::lease::clock::Clock;
use crate::lease::controller::Controller;
use crate::lease::copies::Copy;
use crate::lease::fault::Fault;
use crate::lease::journal::Journal;
use crate::lease::machine::Machine;
use crate::lease::network::{Network, Weather};
use crate::lease::queue::{Happening, Packet, Queue, Reply};
use crate::lease::store::{Op, Store};
use crate::random::Random;

pub const CONTROLLERS: usize = 2;

/// Everything that a seed decides before the world begins.
#[derive(Debug, Clone)]
pub struct Setup {
    pub seed: u64,
    pub hosts: usize,
    pub has_witness: bool,
    pub vms: usize,
    pub voters: Vec<usize>,
    pub profile: Profile,
    /// Clocks are wrong by at most so many millionths.
    pub ppm_max: i64,
    pub watchdog_fires: bool,
    pub weather: Weather,
    /// Milliseconds of the world, and what happens then.
    pub plan: Vec<(u64, Fault)>,
    pub calm_at_ms: u64,
    pub mutations: Mutations,
}

impl Setup {
    #[must_use]
    pub fn machines(&self) -> usize {
        self.hosts + usize::from(self.has_witness)
    }

    #[must_use]
    pub fn controller(&self, index: usize) -> usize {
        self.machines() + index
    }

    #[must_use]
    pub fn store(&self) -> usize {
        self.machines() + CONTROLLERS
    }
}

pub struct World {
    pub(crate) now: u64,
    pub(crate) setup: Setup,
    pub(crate) random: Random,
    pub(crate) journal: Journal,
    pub(crate) queue: Queue,
    pub(crate) net: Network,
    pub(crate) store: Store,
    pub(crate) machines: Vec<Machine>,
    pub(crate) controllers: Vec<Controller>,
    pub(crate) copies: Vec<Copy>,
    pub(crate) copies_made: u64,
    pub(crate) is_calm: bool,
    pub(crate) well_in_a_row: u32,
    pub(crate) wrong: Option<String>,
    pub(crate) is_unsafe: bool,
    pub(crate) events: u64,
}

#[must_use]
pub fn host_id(node: usize) -> HostId {
    HostId::from_u128(node as u128 + 1)
}

#[must_use]
pub fn node_of(host: HostId) -> usize {
    usize::try_from(host.0.as_u128()).unwrap_or(0).saturating_sub(1)
}

impl World {
    #[must_use]
    pub fn new(setup: Setup, is_read: bool) -> Self {
        let mut random = Random::new(setup.seed);
        let fencers: BTreeSet<HostId> =
            (0..CONTROLLERS).map(|index| host_id(setup.controller(index))).collect();
        let voters = setup.voters.iter().map(|machine| host_id(*machine)).collect();
        let configuration = Configuration { version: 1, voters, fencers, profile: setup.profile };
        let mut clock = || Clock::drawn(&mut random, 0, setup.ppm_max);
        let machines = (0..setup.machines())
            .map(|index| Machine::new(index < setup.hosts, clock(), setup.vms))
            .collect();
        let controllers = (0..CONTROLLERS).map(|_| Controller::new(clock())).collect();
        let mut world = Self {
            now: 0,
            net: Network::new(setup.store() + 1),
            store: Store::new(setup.hosts, setup.vms, configuration.clone()),
            random,
            journal: Journal::new(is_read),
            queue: Queue::default(),
            machines,
            controllers,
            copies: Vec::new(),
            copies_made: 0,
            is_calm: false,
            well_in_a_row: 0,
            wrong: None,
            is_unsafe: false,
            events: 0,
            setup,
        };
        world.dawn(&configuration);
        world
    }

    fn dawn(&mut self, configuration: &Configuration) {
        for machine in 0..self.machines.len() {
            self.boot(machine);
            self.machines[machine].set_page(first_page(configuration));
        }
        for controller in 0..CONTROLLERS {
            self.queue.push(0, Happening::ControllerStarts { controller });
        }
        for index in 0..self.setup.plan.len() {
            let at = self.setup.plan[index].0 * 1_000_000;
            self.queue.push(at, Happening::Fault(index));
        }
        self.queue.push(self.setup.calm_at_ms * 1_000_000, Happening::Judge);
    }

    /// Until all is well after the last fault, or something was wrong.
    pub fn run(&mut self) {
        while let Some((at, happening)) = self.queue.pop() {
            self.now = at;
            self.events += 1;
            self.check_deadlines();
            let is_over = self.happen(happening);
            if is_over || self.wrong.is_some() {
                return;
            }
        }
    }

    fn happen(&mut self, happening: Happening) -> bool {
        let Some(happening) = self.unless_stalled(happening) else { return false };
        match happening {
            Happening::Packet { from, to, packet } => self.on_packet(from, to, packet),
            Happening::Wake { machine, life, number } => self.on_wake(machine, life, number),
            Happening::ToGuard { machine, life, ask } if self.machines[machine].guard_life == life => {
                self.on_ask(machine, ask);
            }
            Happening::ToAgent { machine, life, note } if self.is_agent(machine, life) => {
                self.on_agent_note(machine, note);
            }
            Happening::AgentTick { machine, life } if self.is_agent(machine, life) => {
                self.on_agent_tick(machine)
            }
            Happening::Spawn { machine, life, order } if self.is_agent(machine, life) => {
                self.on_spawned(machine, order);
            }
            Happening::Reap { copy } => self.reap(copy),
            Happening::WatchdogFires { machine, boot } => self.on_watchdog(machine, boot),
            Happening::Boot { machine } => self.boot(machine),
            Happening::GuardStarts { machine, boot } => self.on_guard_starts(machine, boot),
            Happening::AgentStarts { machine, boot } => self.on_agent_starts(machine, boot),
            Happening::ControllerTick { controller, life } if self.is_controller(controller, life) => {
                self.on_controller_tick(controller);
            }
            Happening::ControllerStarts { controller } => self.on_controller_starts(controller),
            Happening::AtStore { from, life, op } => self.on_store(from, life, &op),
            Happening::FromStore { to, life, reply } => self.on_reply(to, life, reply),
            Happening::StoreIsBack => self.store.is_up = true,
            Happening::Fault(index) => {
                let fault = self.setup.plan[index].1.clone();
                self.on_fault(&fault);
            }
            Happening::Judge => return self.on_judge(),
            // To somebody who is no more.
            _ => {}
        }
        false
    }

    fn on_judge(&mut self) -> bool {
        if !self.is_calm {
            self.is_calm = true;
            self.end_hangs();
        }
        self.queue.push(self.now + 1_000_000_000, Happening::Judge);
        self.judge()
    }

    /// What is for somebody who has no processor waits until he has, in order; a timer may come a little after it.
    fn unless_stalled(&mut self, happening: Happening) -> Option<Happening> {
        let machines = self.machines.len();
        let (until, jitter) = match &happening {
            Happening::Wake { machine, .. } => (self.machines[*machine].guard_stalls_until, 2_000_000),
            Happening::ToGuard { machine, .. } => (self.machines[*machine].guard_stalls_until, 0),
            Happening::Packet { to, packet: Packet::Guard(_), .. } if *to < machines => {
                (self.machines[*to].guard_stalls_until, 0)
            }
            Happening::ToAgent { machine, .. }
            | Happening::AgentTick { machine, .. }
            | Happening::Spawn { machine, .. } => (self.machines[*machine].agent_stalls_until, 0),
            Happening::Packet { to, .. } if *to < machines => (self.machines[*to].agent_stalls_until, 0),
            Happening::Packet { to, .. } => (self.controllers[*to - machines].stalls_until, 0),
            Happening::ControllerTick { controller, .. } => (self.controllers[*controller].stalls_until, 0),
            Happening::FromStore { to, .. } if *to < machines => (self.machines[*to].agent_stalls_until, 0),
            Happening::FromStore { to, .. } => (self.controllers[*to - machines].stalls_until, 0),
            _ => (0, 0),
        };
        if self.now >= until {
            return Some(happening);
        }
        let late = self.random.below(jitter + 1);
        self.queue.push(until + late, happening);
        None
    }

    fn is_agent(&self, machine: usize, life: u64) -> bool {
        let agent = &self.machines[machine].agent;
        agent.is_up && agent.life == life
    }

    fn is_controller(&self, controller: usize, life: u64) -> bool {
        self.controllers[controller].is_up && self.controllers[controller].life == life
    }

    fn on_packet(&mut self, from: usize, to: usize, packet: Packet) {
        let machines = self.machines.len();
        match packet {
            packet if to >= machines => {
                if self.controllers[to - machines].is_up {
                    self.on_controller_packet(to - machines, from, packet);
                }
            }
            Packet::Guard(message) => {
                let event = sterna_guard::core::event::Event::Datagram { from: host_id(from), message };
                if !matches!(message, Message::Query { .. }) {
                    self.note([20, from as u64, to as u64], || format!("{to} hears {message:?} from {from}"));
                }
                self.step(to, event);
            }
            Packet::Order(order) => self.on_order(to, order),
            Packet::Report(_) => {}
        }
    }

    pub(crate) fn send(&mut self, from: usize, to: usize, packet: Packet) {
        let weather = &self.setup.weather;
        let late = if matches!(packet, Packet::Guard(_)) { weather.late } else { weather.control_late };
        let weather = (!self.is_calm).then_some((weather, late));
        let arrivals = self.net.arrivals((from, to), self.now, weather, &mut self.random);
        for at in arrivals.into_iter().flatten() {
            self.queue.push(at, Happening::Packet { from, to, packet: packet.clone() });
        }
    }

    pub(crate) fn ask_store(&mut self, from: usize, life: u64, op: Op) {
        let weather = (!self.is_calm).then_some((&self.setup.weather, self.setup.weather.control_late));
        let line = (from, self.setup.store());
        let arrivals = self.net.arrivals(line, self.now, weather, &mut self.random);
        for at in arrivals.into_iter().flatten() {
            self.queue.push(at, Happening::AtStore { from, life, op: op.clone() });
        }
    }

    fn on_store(&mut self, from: usize, life: u64, op: &Op) {
        if !self.store.is_up {
            return;
        }
        let is_done = self.store.apply(op);
        if !matches!(op, Op::Read) && is_done {
            self.note([21, from as u64, u64::from(is_done)], || format!("{from} at the store: {op:?}"));
        }
        let reply = match op {
            Op::Read => Reply::Rows(self.store.rows.clone()),
            Op::Join { expected, token, .. } if is_done => {
                Reply::Joined { token: *token, epoch: expected + 1 }
            }
            _ => return,
        };
        let weather = (!self.is_calm).then_some((&self.setup.weather, self.setup.weather.control_late));
        let line = (self.setup.store(), from);
        let arrivals = self.net.arrivals(line, self.now, weather, &mut self.random);
        for at in arrivals.into_iter().flatten() {
            self.queue.push(at, Happening::FromStore { to: from, life, reply: reply.clone() });
        }
    }

    fn on_reply(&mut self, to: usize, life: u64, reply: Reply) {
        if to < self.machines.len() && self.is_agent(to, life) {
            self.on_agent_reply(to, reply);
        } else if to >= self.machines.len() && self.is_controller(to - self.machines.len(), life) {
            self.on_controller_reply(to - self.machines.len(), reply);
        }
    }

    pub(crate) fn note(&mut self, words: [u64; 3], text: impl FnOnce() -> String) {
        self.journal.note(self.now, words, text);
    }
}

/// Of a machine that has never promised anything.
fn first_page(configuration: &Configuration) -> Page {
    Page {
        boot: Uuid::nil(),
        last_epoch: Epoch::default(),
        lease: None,
        membership: Membership::new(configuration.clone()).ok(),
        quarantine: Duration::ZERO,
        vms: Vec::new(),
    }
}
