//! One of two controllers that know nothing of each other: the production suspicion and fencer, and placement by chance.

use std::collections::BTreeSet;
use std::rc::Rc;

use sterna_guard::core::fencer::{Fencer, Order};
use sterna_guard::core::guard::StartOrder;
use sterna_guard::core::id::{Epoch, HostId};
use sterna_guard::core::message::Message;
use sterna_guard::core::profile::Profile;
use sterna_guard::core::suspicion::{Suspicion, View};
use sterna_guard::core::time::BootInstant;
use sterna_guard::core::voters::Voters;

use crate::lease::clock::Clock;
use crate::lease::copies::vm_id;
use crate::lease::queue::{Happening, HostReport, Packet, Reply};
use crate::lease::store::{HostState, Op, Rows, VmRow, Why};
use crate::lease::world::{World, host_id, node_of};

const TICK_NS: u64 = 250_000_000;
/// How long a host has to be silent until it is fenced, after it is suspected.
const SUSPECT_NS: u64 = 1_000_000_000;
const REPORT_AGE_NS: u64 = 3_000_000_000;

#[derive(Debug)]
pub struct Controller {
    pub is_up: bool,
    pub life: u64,
    pub clock: Clock,
    pub stalls_until: u64,
    rows: Option<Rc<Rows>>,
    watched: Vec<Watched>,
    ticks: u64,
    next_query: BootInstant,
}

/// What this controller knows of one host.
#[derive(Debug)]
struct Watched {
    suspicion: Suspicion,
    profile: Profile,
    epoch: u64,
    was_alive: bool,
    silent_since: Option<u64>,
    fencer: Option<Fencer>,
    report: Option<(u64, Rc<HostReport>)>,
}

impl Controller {
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self {
            is_up: false,
            life: 0,
            clock,
            stalls_until: 0,
            rows: None,
            watched: Vec::new(),
            ticks: 0,
            next_query: BootInstant::default(),
        }
    }

    pub fn end(&mut self) {
        self.is_up = false;
        self.life += 1;
        self.stalls_until = 0;
        self.rows = None;
        self.watched.clear();
    }

    /// It believes that the host has fallen silent.
    #[must_use]
    pub fn suspects(&self, host: usize) -> bool {
        self.watched.get(host).is_none_or(|watched| watched.silent_since.is_some())
    }

    fn voters(&self) -> BTreeSet<HostId> {
        let Some(rows) = &self.rows else { return BTreeSet::new() };
        let former = rows.former.iter().flat_map(|former| &former.voters.0);
        rows.configuration.voters.0.iter().chain(former).copied().collect()
    }
}

impl Rows {
    fn order(&self, host: usize) -> Order {
        let all = std::iter::once(&self.configuration).chain(&self.former);
        let voters: Vec<Voters> = all.clone().map(|configuration| configuration.voters.clone()).collect();
        let profile = all.map(|c| c.profile).min_by_key(Profile::promise).unwrap_or(Profile::FAST);
        Order {
            host: host_id(host),
            epoch: Epoch(self.hosts[host].epoch),
            voters,
            configuration: self.configuration.version,
            profile,
        }
    }
}

impl World {
    pub(crate) fn on_controller_starts(&mut self, index: usize) {
        let hosts = self.setup.hosts;
        let profile = self.store.rows.configuration.profile;
        let controller = &mut self.controllers[index];
        controller.is_up = true;
        controller.watched = (0..hosts).map(|host| Watched::of(host, profile)).collect();
        controller.next_query = BootInstant::default();
        let life = controller.life;
        self.note([60, index as u64, life], || format!("controller {index} starts"));
        self.queue.push(self.now, Happening::ControllerTick { controller: index, life });
    }

    pub(crate) fn on_controller_tick(&mut self, index: usize) {
        let controller = &mut self.controllers[index];
        controller.ticks += 1;
        let life = controller.life;
        let reads = controller.ticks.is_multiple_of(2) || controller.rows.is_none();
        self.queue.push(self.now + TICK_NS, Happening::ControllerTick { controller: index, life });
        if reads {
            self.ask_store(self.machines.len() + index, life, Op::Read);
        }
        self.query(index);
        self.fence_further(index);
    }

    fn query(&mut self, index: usize) {
        let controller = &mut self.controllers[index];
        let now = controller.clock.at(self.now);
        let Some(rows) = &controller.rows else { return };
        if now < controller.next_query {
            return;
        }
        controller.next_query = now + rows.configuration.profile.renew;
        let voters = controller.voters();
        let questions: Vec<Message> = controller.watched.iter().map(|w| w.suspicion.question(now)).collect();
        for voter in voters {
            for question in &questions {
                self.send(self.machines.len() + index, node_of(voter), Packet::Guard(*question));
            }
        }
    }

    fn fence_further(&mut self, index: usize) {
        for host in 0..self.setup.hosts {
            let controller = &mut self.controllers[index];
            let now = controller.clock.at(self.now);
            let Some(fencer) = controller.watched[host].fencer.as_mut() else { continue };
            let questions = fencer.ask_if_due(now);
            for (voter, question) in questions {
                self.send(self.machines.len() + index, node_of(voter), Packet::Guard(question));
            }
            self.prove(index, host);
        }
    }

    fn prove(&mut self, index: usize, host: usize) {
        let controller = &self.controllers[index];
        let now = controller.clock.at(self.now);
        let Some(proof) = controller.watched[host].fencer.as_ref().and_then(|fencer| fencer.proof(now))
        else {
            return;
        };
        let life = controller.life;
        self.note([61, index as u64, host as u64], || {
            format!("controller {index} has proof for host {host} epoch {}: {:?}", proof.epoch, proof.acks)
        });
        self.ask_store(self.machines.len() + index, life, Op::EndFence { proof, host });
    }

    pub(crate) fn on_controller_packet(&mut self, index: usize, from: usize, packet: Packet) {
        let (real, hosts) = (self.now, self.setup.hosts);
        let controller = &mut self.controllers[index];
        let now = controller.clock.at(real);
        match packet {
            Packet::Guard(message @ Message::LastSeen { host, .. }) if node_of(host) < hosts => {
                if controller.voters().contains(&host_id(from)) {
                    controller.watched[node_of(host)].suspicion.on_message(host_id(from), &message, now);
                }
            }
            Packet::Guard(message @ Message::FenceAck { host, .. }) if node_of(host) < hosts => {
                if let Some(fencer) = &mut controller.watched[node_of(host)].fencer {
                    fencer.on_message(host_id(from), &message);
                    self.note([62, index as u64, from as u64], || {
                        format!("controller {index} hears {message:?} from {from}")
                    });
                    self.prove(index, node_of(host));
                }
            }
            Packet::Report(report) => {
                let host = report.host;
                controller.watched[host].report = Some((real, report));
            }
            Packet::Guard(_) | Packet::Order(_) => {}
        }
    }

    pub(crate) fn on_controller_reply(&mut self, index: usize, reply: Reply) {
        let Reply::Rows(rows) = reply else { return };
        let mutations = self.setup.mutations;
        let now = self.now;
        let controller = &mut self.controllers[index];
        controller.rows = Some(rows.clone());
        let clock_now = controller.clock.at(now);
        for (host, watched) in controller.watched.iter_mut().enumerate() {
            watched.learn(&rows, host, now, clock_now);
            if let Some(order) = watched.needs_fencer(&rows, host) {
                let mut fencer = Fencer::start(order, clock_now);
                fencer.set_mutations(mutations);
                watched.fencer = Some(fencer);
            }
        }
        self.suspect(index, &rows);
        for vm in 0..rows.vms.len() {
            self.place(index, &rows, vm);
        }
        if rows.former.is_some() && rows.is_confirmed_by_all() {
            let op = Op::Settle { version: rows.configuration.version };
            self.as_controller(index, op);
        }
    }

    fn as_controller(&mut self, index: usize, op: Op) {
        let life = self.controllers[index].life;
        self.ask_store(self.machines.len() + index, life, op);
    }

    fn suspect(&mut self, index: usize, rows: &Rows) {
        let silent: Vec<usize> = (0..rows.hosts.len())
            .filter(|host| self.controllers[index].watched[*host].silent_since.is_some())
            .collect();
        // The storm brake: when so many fall silent together, it may be the line to us.
        if silent.len() > (rows.hosts.len() * 3 / 10).max(2) {
            return;
        }
        for host in silent {
            let watched = &self.controllers[index].watched[host];
            let lease = u64::try_from(rows.configuration.profile.lease.as_nanos()).unwrap_or(u64::MAX);
            let patience = if watched.was_alive { SUSPECT_NS } else { lease };
            let is_due = watched.silent_since.is_some_and(|since| self.now >= since + patience);
            if is_due && rows.hosts[host].state == HostState::Up {
                self.as_controller(index, Op::BeginFence { host, epoch: rows.hosts[host].epoch });
            }
        }
    }

    /// One VM: whether its owner will not run it, and who is next; or that its owner be told.
    fn place(&mut self, index: usize, rows: &Rows, vm: usize) {
        let row = rows.vms[vm];
        if let Some(why) = self.controllers[index].why_free(rows, vm, row) {
            if let Some(to) = self.pick_host(index, rows, vm) {
                self.as_controller(index, Op::Own { vm, from: row, to, why });
            }
            return;
        }
        let Some((host, epoch)) = row.owner else { return };
        let report = self.controllers[index].fresh_report(host, self.now);
        let is_there = report.is_some_and(|report| report.vms.contains(&(vm, row.epoch)));
        let is_owner_up = rows.hosts[host].epoch == epoch && rows.hosts[host].state == HostState::Up;
        if is_owner_up && !is_there {
            let order = StartOrder { vm: vm_id(vm), vm_epoch: row.epoch, host_epoch: Epoch(epoch) };
            self.send(self.machines.len() + index, host, Packet::Order(order));
        }
    }

    fn pick_host(&mut self, index: usize, rows: &Rows, vm: usize) -> Option<(usize, u64)> {
        let controller = &self.controllers[index];
        let may = |host: &usize| {
            rows.hosts[*host].state == HostState::Up && controller.watched[*host].silent_since.is_none()
        };
        let up: Vec<usize> = (0..rows.hosts.len()).filter(may).collect();
        let home = vm % rows.hosts.len();
        let is_first = rows.vms[vm].epoch == 0;
        if is_first && !up.contains(&home) {
            return None;
        }
        let host = if is_first { home } else { *up.get(self.random.below(up.len() as u64) as usize)? };
        Some((host, rows.hosts[host].epoch))
    }
}

impl Controller {
    fn fresh_report(&self, host: usize, now: u64) -> Option<&HostReport> {
        let (at, report) = self.watched[host].report.as_ref()?;
        (now < at + REPORT_AGE_NS).then_some(&**report)
    }

    fn why_free(&self, rows: &Rows, vm: usize, row: VmRow) -> Option<Why> {
        let Some((host, epoch)) = row.owner else { return Some(Why::First) };
        if rows.hosts[host].fenced_to >= epoch {
            return Some(Why::Fenced);
        }
        let (_, report) = self.watched[host].report.as_ref()?;
        match report.held {
            Some(held) if held > epoch => Some(Why::HostIsPast { held }),
            _ => {
                let is_here = report.vms.iter().any(|(listed, _)| *listed == vm);
                (report.done[vm] >= row.epoch && !is_here).then_some(Why::GaveUp)
            }
        }
    }
}

impl Watched {
    fn of(host: usize, profile: Profile) -> Self {
        Self {
            suspicion: Suspicion::of(host_id(host), profile),
            profile,
            epoch: 0,
            was_alive: false,
            silent_since: None,
            fencer: None,
            report: None,
        }
    }

    fn learn(&mut self, rows: &Rows, host: usize, now: u64, clock_now: BootInstant) {
        let row = rows.hosts[host];
        if self.profile != rows.configuration.profile {
            *self = Self { fencer: self.fencer.take(), ..Self::of(host, rows.configuration.profile) };
        }
        if row.epoch != self.epoch {
            (self.epoch, self.was_alive, self.silent_since) = (row.epoch, false, None);
        }
        match self.suspicion.view(clock_now) {
            View::Alive { epoch } if epoch.0 >= row.epoch => {
                (self.was_alive, self.silent_since) = (true, None)
            }
            View::Alive { .. } | View::Silent { .. } => {
                self.silent_since.get_or_insert(now);
            }
            View::Unknown => {}
        }
    }

    /// A new one for a new epoch, or for a configuration that has changed.
    fn needs_fencer(&mut self, rows: &Rows, host: usize) -> Option<Order> {
        if rows.hosts[host].state != HostState::Fencing {
            self.fencer = None;
            return None;
        }
        let order = rows.order(host);
        self.fencer.as_ref().is_none_or(|fencer| *fencer.order() != order).then_some(order)
    }
}
