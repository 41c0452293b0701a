//! The agent, as a fake: joins, passes orders on to the guard, starts what the guard allows, and reports.
//!
//! It does what the guard's contract asks of the real one: it asks the store for an epoch only when its guard has said, after
//! whatever it was told before, that it has none; of several answers it passes on that to its last question; what it began
//! it notes on disk.

use std::rc::Rc;

use sterna_guard::core::event::{Event, Isolation, StartRefusal, State, VmUnderLease};
use sterna_guard::core::guard::{StartOrder, Status};
use sterna_guard::core::id::Epoch;
use sterna_guard::core::time::BootInstant;

use crate::lease::copies::{vm_id, vm_number};
use crate::lease::queue::{Ask, Happening, HostReport, Note, Packet, Reply};
use crate::lease::store::{Op, Rows};
use crate::lease::world::World;

const TICK_NS: u64 = 500_000_000;
/// A question to the store that has no answer by then is asked again.
const STORE_PATIENCE_NS: u64 = 3_000_000_000;

#[derive(Debug)]
pub struct Agent {
    pub is_up: bool,
    pub life: u64,
    list: Vec<Listed>,
    /// On disk, as `is_draining`.
    done: Vec<u64>,
    pub is_draining: bool,
    rows: Option<Rc<Rows>>,
    join: Option<Join>,
    tokens: u64,
    polls: u64,
    /// Answers of the guard to earlier questions do not know yet that it was told to join.
    joined_at_poll: u64,
}

#[derive(Debug, Clone, Copy)]
struct Join {
    token: u64,
    asked_at: BootInstant,
    since: u64,
}

#[derive(Debug, Clone, Copy)]
struct Listed {
    order: StartOrder,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Asked,
    Spawning,
    Here,
}

impl Agent {
    #[must_use]
    pub fn new(vms: usize) -> Self {
        Self {
            is_up: false,
            life: 0,
            list: Vec::new(),
            done: vec![0; vms],
            is_draining: false,
            rows: None,
            join: None,
            tokens: 0,
            polls: 0,
            joined_at_poll: 0,
        }
    }

    fn for_guard(&self) -> Vec<VmUnderLease> {
        let under_lease = |listed: &Listed| VmUnderLease {
            vm: listed.order.vm,
            epoch: listed.order.vm_epoch,
            host_epoch: listed.order.host_epoch,
            isolation: Isolation::Kill,
            starting: listed.phase != Phase::Here,
        };
        self.list.iter().map(under_lease).collect()
    }

    fn forget(&mut self, order: StartOrder) {
        self.list.retain(|listed| listed.order != order);
    }
}

impl World {
    pub(crate) fn end_agent(&mut self, machine: usize) {
        let agent = &mut self.machines[machine].agent;
        agent.is_up = false;
        agent.life += 1;
        agent.list.clear();
        (agent.rows, agent.join) = (None, None);
        self.machines[machine].agent_stalls_until = 0;
    }

    pub(crate) fn crash_agent(&mut self, machine: usize, down_ns: u64) {
        if !self.machines[machine].agent.is_up {
            return;
        }
        self.note([50, machine as u64, down_ns], || format!("agent {machine} ends"));
        self.end_agent(machine);
        self.tell_guard(machine, Ask::Event(Event::AgentLost));
        let boot = self.machines[machine].boot;
        self.queue.push(self.now + down_ns, Happening::AgentStarts { machine, boot });
    }

    /// Takes over what is running here.
    pub(crate) fn on_agent_starts(&mut self, machine: usize, boot: u64) {
        let it = &mut self.machines[machine];
        if !it.is_up || it.boot != boot || it.agent.is_up {
            return;
        }
        it.agent.is_up = true;
        let copies = self.copies.iter().filter(|copy| copy.host == machine);
        it.agent.list = copies
            .map(|copy| Listed {
                order: StartOrder {
                    vm: vm_id(copy.vm),
                    vm_epoch: copy.epoch,
                    host_epoch: Epoch(copy.host_epoch),
                },
                phase: Phase::Here,
            })
            .collect();
        let life = it.agent.life;
        self.note([51, machine as u64, life], || format!("agent {machine} starts"));
        self.tell_list(machine);
        self.queue.push(self.now, Happening::AgentTick { machine, life });
    }

    fn tell_list(&mut self, machine: usize) {
        let list = self.machines[machine].agent.for_guard();
        self.tell_guard(machine, Ask::Event(Event::VmsChanged(list)));
    }

    /// What was asked of the guard before this one has no answer.
    pub(crate) fn on_guard_is_back(&mut self, machine: usize) {
        let agent = &mut self.machines[machine].agent;
        if agent.is_up {
            agent.list.retain(|listed| listed.phase != Phase::Asked);
            self.tell_list(machine);
        }
    }

    pub(crate) fn on_agent_tick(&mut self, machine: usize) {
        let agent = &mut self.machines[machine].agent;
        agent.polls += 1;
        let (life, number) = (agent.life, agent.polls);
        self.ask_store(machine, life, Op::Read);
        self.tell_guard(machine, Ask::Poll { number });
        self.queue.push(self.now + TICK_NS, Happening::AgentTick { machine, life });
    }

    pub(crate) fn on_order(&mut self, machine: usize, order: StartOrder) {
        let agent = &mut self.machines[machine].agent;
        let is_listed = agent.list.iter().any(|listed| listed.order.vm == order.vm);
        if !agent.is_up || is_listed || order.vm_epoch <= agent.done[vm_number(order.vm)] {
            return;
        }
        agent.list.push(Listed { order, phase: Phase::Asked });
        let list = agent.for_guard();
        self.tell_guard(machine, Ask::Start { list, order });
    }

    pub(crate) fn on_agent_note(&mut self, machine: usize, note: Note) {
        match note {
            Note::Status { number, status } => self.on_status(machine, number, &status),
            Note::Start { order, answer } => self.on_start_answer(machine, order, answer),
            Note::ProcessGone { vm, epoch } => {
                let agent = &mut self.machines[machine].agent;
                agent.list.retain(|listed| {
                    listed.order.vm != vm_id(vm)
                        || listed.order.vm_epoch != epoch
                        || listed.phase == Phase::Asked
                });
                self.tell_list(machine);
            }
        }
    }

    fn on_start_answer(&mut self, machine: usize, order: StartOrder, answer: Result<(), StartRefusal>) {
        let weather = &self.setup.weather;
        let is_slow = self.random.chance(weather.spawn_slow) && !self.is_calm;
        let most = if is_slow { weather.spawn_ms_max } else { 30 };
        let delay = self.random.between(1, most.max(1)) * 1_000_000;
        let agent = &mut self.machines[machine].agent;
        let Some(listed) = agent.list.iter_mut().find(|listed| listed.order == order) else { return };
        if listed.phase != Phase::Asked {
            return;
        }
        if answer.is_err() {
            agent.forget(order);
            self.tell_list(machine);
            return;
        }
        listed.phase = Phase::Spawning;
        agent.done[vm_number(order.vm)] = order.vm_epoch;
        let life = agent.life;
        self.queue.push(self.now + delay, Happening::Spawn { machine, life, order });
    }

    pub(crate) fn on_spawned(&mut self, machine: usize, order: StartOrder) {
        let agent = &mut self.machines[machine].agent;
        let Some(listed) = agent.list.iter_mut().find(|listed| listed.order == order) else { return };
        listed.phase = Phase::Here;
        self.spawn(machine, order);
        self.tell_list(machine);
    }

    fn on_status(&mut self, machine: usize, number: u64, status: &Status) {
        self.configure(machine, status);
        if self.machines[machine].is_host {
            self.drain_further(machine, status);
            if number > self.machines[machine].agent.joined_at_poll {
                self.join_if_free(machine, status);
            }
            self.confirm(machine, status);
            self.report(machine, status);
        }
    }

    fn configure(&mut self, machine: usize, status: &Status) {
        let Some(rows) = &self.machines[machine].agent.rows else { return };
        if status.configuration.is_none_or(|version| version < rows.configuration.version) {
            let event = Event::Configure(rows.configuration.clone());
            self.tell_guard(machine, Ask::Event(event));
        }
    }

    fn join_if_free(&mut self, machine: usize, status: &Status) {
        let now = self.now;
        let agent = &mut self.machines[machine].agent;
        let Some(rows) = agent.rows.clone() else { return };
        let is_asking = agent.join.is_some_and(|join| now < join.since + STORE_PATIENCE_NS);
        let is_free = status.lease == State::NoEpoch && !status.is_killing && !agent.is_draining;
        let version = rows.configuration.version;
        if is_asking || !is_free || status.configuration != Some(version) {
            return;
        }
        agent.tokens += 1;
        let (token, life) = (agent.tokens, agent.life);
        agent.join = Some(Join { token, asked_at: status.now, since: now });
        let expected = rows.hosts[machine].epoch;
        self.ask_store(machine, life, Op::Join { host: machine, expected, configuration: version, token });
    }

    pub(crate) fn on_agent_reply(&mut self, machine: usize, reply: Reply) {
        let agent = &mut self.machines[machine].agent;
        match reply {
            Reply::Rows(rows) => agent.rows = Some(rows),
            Reply::Joined { token, epoch } => {
                let Some(join) = agent.join.take_if(|join| join.token == token) else { return };
                agent.joined_at_poll = agent.polls;
                let event = Event::Join { epoch: Epoch(epoch), asked_at: join.asked_at };
                self.tell_guard(machine, Ask::Event(event));
            }
        }
    }

    fn confirm(&mut self, machine: usize, status: &Status) {
        let agent = &self.machines[machine].agent;
        let (Some(rows), Some(version)) = (&agent.rows, status.confirmed_configuration) else { return };
        let State::Held { epoch } = status.lease else { return };
        let row = rows.hosts[machine];
        if row.epoch == epoch.0 && row.confirmed < version {
            let life = agent.life;
            self.ask_store(machine, life, Op::Confirm { host: machine, epoch: epoch.0, version });
        }
    }

    fn report(&mut self, machine: usize, status: &Status) {
        let held = match status.lease {
            State::Held { epoch } => Some(epoch.0),
            _ => None,
        };
        let agent = &self.machines[machine].agent;
        let vms =
            agent.list.iter().map(|listed| (vm_number(listed.order.vm), listed.order.vm_epoch)).collect();
        let report = Rc::new(HostReport { host: machine, held, vms, done: agent.done.clone() });
        for controller in 0..self.controllers.len() {
            let to = self.machines.len() + controller;
            self.send(machine, to, Packet::Report(report.clone()));
        }
    }

    /// Stops what is here, then returns the lease.
    fn drain_further(&mut self, machine: usize, status: &Status) {
        let agent = &mut self.machines[machine].agent;
        if !agent.is_draining {
            return;
        }
        if status.lease == State::NoEpoch && agent.list.is_empty() {
            agent.is_draining = false;
            return;
        }
        let here: Vec<usize> = agent
            .list
            .iter()
            .filter(|listed| listed.phase == Phase::Here)
            .map(|listed| vm_number(listed.order.vm))
            .collect();
        here.into_iter()
            .filter(|vm| self.copies.iter().any(|c| c.host == machine && c.vm == *vm))
            .collect::<Vec<_>>()
            .into_iter()
            .for_each(|vm| self.kill(machine, vm));
        self.tell_guard(machine, Ask::Event(Event::Release));
    }
}
