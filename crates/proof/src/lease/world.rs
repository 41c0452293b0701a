//! Three machines, a fencer, a store and one VM: all of a state, and what changes it.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use sterna_guard::core::event::{Effect, Event, Isolation, State, VmUnderLease};
use sterna_guard::core::fencer::{Fencer, Order};
use sterna_guard::core::guard::{Guard, StartOrder};
use sterna_guard::core::id::{Epoch, HostId, VmId};
use sterna_guard::core::membership::{Configuration, Membership};
use sterna_guard::core::message::Message;
use sterna_guard::core::mutation::Mutations;
use sterna_guard::core::page::Page;
use sterna_guard::core::profile::Profile;
use sterna_guard::core::time::BootInstant;
use sterna_guard::core::voters::Voters;
use uuid::Uuid;

use super::bounds::Bounds;

/// The host whose lease it is about.
pub const A: usize = 0;
/// The voter that runs on the host that takes over.
pub const B: usize = 1;
/// A witness: a voter and nothing else.
pub const W: usize = 2;
pub const MACHINES: usize = 3;
const FENCER: usize = 3;
const VM: VmId = VmId::from_u128(77);

/// In ticks the lease lasts three, the watchdog two, a promise five; none a moment longer. A deadline falls just before a
/// tick, and the end of a promise on one: as near to each other as the protocol allows.
pub const PROFILE: Profile = Profile {
    renew: Duration::from_nanos(TICK),
    lease: Duration::from_secs(3),
    watchdog: Duration::from_secs(2),
};
const TICK: u64 = promise_of(3, 2).div_ceil(5);

const fn promise_of(lease: u64, watchdog: u64) -> u64 {
    let profile = Profile {
        renew: Duration::from_secs(1),
        lease: Duration::from_secs(lease),
        watchdog: Duration::from_secs(watchdog),
    };
    profile.promise().as_nanos() as u64
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    pub guard: Guard,
    /// Of all else: most happenings leave most machines as they were.
    hash: u64,
    boot: u8,
    page: Option<Page>,
    /// When it resets its host, and how long it waits: a fake of the device, which does it at the last instant allowed.
    watchdog: Option<(BootInstant, Duration)>,
    wake: BootInstant,
    pub is_stalled: bool,
}

/// A's VM as a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Process {
    pub host_epoch: Epoch,
    pub is_frozen: bool,
    /// Signalled, not reaped.
    pub is_killed: bool,
}

/// A's agent and one order to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Start {
    /// The order has not come, or was refused and will come again.
    Ordered,
    /// The guard said yes; QEMU does not run yet.
    Allowed,
    Made,
    /// The agent died before it was made.
    GivenUp,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Envelope {
    pub from: usize,
    pub to: usize,
    pub message: Message,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct World {
    pub tick: u8,
    pub machines: [Arc<Machine>; MACHINES],
    /// Sent at this tick, in this order.
    pub net: VecDeque<Envelope>,
    /// Comes at some later tick, or never.
    pub late: Vec<Envelope>,
    pub fencer: Option<Fencer>,
    /// The fencer has asked at this tick.
    pub has_asked: bool,
    /// The fencer's proof stands in the store, and B runs the VM.
    pub is_fenced: bool,
    pub host_epoch: Epoch,
    /// The store's answer, on its way: the epoch, and when it was asked for.
    pub joining: Option<(Epoch, BootInstant)>,
    pub start: Start,
    pub process: Option<Process>,
    /// The lease as A's guard last had it.
    lease: Option<(Epoch, BootInstant)>,
    pub is_revived: bool,
    pub was_reset: bool,
    /// The voters are being changed; what it is to.
    pub change: Change,
    pub left: Bounds,
    mutations: Mutations,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Change {
    No,
    /// Written as joint; A has not confirmed it.
    Joint,
    /// A said that its lease rests on the new voters.
    Done,
}

pub fn host_id(machine: usize) -> HostId {
    HostId::from_u128(machine as u128 + 1)
}

fn machine_of(host: HostId) -> usize {
    usize::try_from(host.0.as_u128()).unwrap() - 1
}

fn voters(machines: &[usize]) -> Voters {
    machines.iter().map(|machine| host_id(*machine)).collect()
}

fn configuration(version: u64) -> Configuration {
    let voters = if version == 1 { voters(&[0, 1, 2]) } else { voters(&[B]) };
    Configuration { version, voters, fencers: [host_id(FENCER)].into(), profile: PROFILE }
}

impl World {
    /// Guards that have promised nothing; A has asked for its first epoch, and control wants the VM on it.
    pub fn new(left: Bounds, mutations: Mutations) -> Self {
        let page = Page {
            boot: Uuid::nil(),
            last_epoch: Epoch::default(),
            lease: None,
            membership: Membership::new(configuration(1)).ok(),
            quarantine: Duration::ZERO,
            vms: Vec::new(),
        };
        let tick = 10;
        let machines = [0, 1, 2].map(|machine| {
            let page = Some(page.clone());
            // Long enough ago: a voter promises for no longer than it has been up.
            Arc::new(Machine::start(machine, 0, page, at(1), mutations))
        });
        let mut world = Self {
            tick,
            machines,
            net: VecDeque::new(),
            late: Vec::new(),
            fencer: None,
            has_asked: false,
            is_fenced: false,
            host_epoch: Epoch(1),
            joining: Some((Epoch(1), at(tick))),
            start: Start::Ordered,
            process: None,
            lease: None,
            is_revived: false,
            was_reset: false,
            change: Change::No,
            left: Bounds { ticks: left.ticks + tick, ..left },
            mutations,
        };
        for machine in 0..MACHINES {
            world.step(machine, at(tick), Event::Tick);
        }
        world.settle(None);
        world
    }

    /// What follows by itself from a happening: in the instant that it may.
    pub fn settle(&mut self, before: Option<&World>) {
        if !self.left.late_start && !self.a().is_stalled {
            self.join();
            if self.start == Start::Ordered && matches!(self.lease_state(), State::Held { .. }) {
                self.order();
            }
            if self.start == Start::Allowed {
                self.spawn();
            }
        }
        if !self.left.may_disturb()
            && let Some(envelope) = self.net.pop_front()
        {
            self.deliver(envelope);
            return self.settle(before);
        }
        self.prove();
        for (index, machine) in self.machines.iter_mut().enumerate() {
            let is_same = before.is_some_and(|before| Arc::ptr_eq(machine, &before.machines[index]));
            if !is_same {
                let hash = machine.hash_now();
                Arc::make_mut(machine).hash = hash;
            }
        }
    }

    /// The store's answer reaches A's guard.
    pub fn join(&mut self) {
        if let Some((epoch, asked_at)) = self.joining.take() {
            self.step(A, self.now(), Event::Join { epoch, asked_at });
        }
    }

    /// The VM has had its process, and never gets one again: nothing more can go wrong.
    pub fn is_over(&self) -> bool {
        self.process.is_none() && matches!(self.start, Start::Made | Start::GivenUp)
    }

    pub fn now(&self) -> BootInstant {
        at(self.tick)
    }

    pub fn a(&self) -> &Machine {
        &self.machines[A]
    }

    pub fn lease_state(&self) -> State {
        self.a().guard.status(self.now()).lease
    }

    /// One step of a production guard, and all that it wants done.
    pub fn step(&mut self, machine: usize, now: BootInstant, event: Event) {
        let it = Arc::make_mut(&mut self.machines[machine]);
        let effects = it.guard.step(now, event);
        for effect in effects {
            self.carry_out(machine, now, effect);
        }
        if machine == A {
            self.look_at_lease(now);
        }
    }

    fn carry_out(&mut self, machine: usize, now: BootInstant, effect: Effect) {
        let it = Arc::make_mut(&mut self.machines[machine]);
        match effect {
            Effect::Freeze { .. } | Effect::Thaw { .. } => {
                let is_frozen = matches!(effect, Effect::Freeze { .. });
                self.process.iter_mut().for_each(|process| process.is_frozen = is_frozen);
            }
            Effect::Kill { vm } => match &mut self.process {
                Some(process) => process.is_killed = true,
                None => self.step(machine, now, Event::Reaped { vm }),
            },
            Effect::Persist(page) => it.page = Some(page),
            Effect::ProgramWatchdog { timeout } => it.watchdog = Some((now + timeout, timeout)),
            Effect::Pet => {
                it.watchdog = it.watchdog.map(|(_, timeout)| (now + timeout, timeout));
            }
            Effect::Send { to, message } => {
                self.net.push_back(Envelope { from: machine, to: machine_of(to), message });
            }
            Effect::Report(_) => {}
            Effect::NextWake(at) => it.wake = at,
        }
    }

    /// A lease that A's guard has when its last deadline is over was given back to it.
    fn look_at_lease(&mut self, now: BootInstant) {
        let status = self.machines[A].guard.status(now);
        if self.change == Change::Joint && status.confirmed_configuration == Some(2) {
            self.change = Change::Done;
        }
        let State::Held { epoch } = status.lease else { return };
        let had = self.lease.filter(|(had, _)| *had == epoch);
        self.is_revived |= had.is_some_and(|(_, deadline)| deadline <= now);
        self.lease = Some((epoch, now + status.left.unwrap_or_default()));
    }

    /// Until the next tick: guards are stepped when they want to, unless they stand still, and watchdogs fire.
    pub fn pass(&mut self) {
        let next = at(self.tick + 1);
        for machine in 0..MACHINES {
            loop {
                let it = &self.machines[machine];
                let fires = it.watchdog.map_or(BootInstant::NEVER, |(fires, _)| fires);
                let wake = if it.is_stalled { BootInstant::NEVER } else { it.wake.max(self.now()) };
                if fires.min(wake) >= next {
                    break;
                }
                if fires <= wake {
                    self.reset(machine, fires);
                } else {
                    self.step(machine, wake, Event::Tick);
                }
            }
        }
        self.tick += 1;
        self.has_asked = false;
        for machine in 0..MACHINES {
            if !self.machines[machine].is_stalled {
                self.step(machine, next, Event::Tick);
            }
        }
    }

    /// The guard's process ends, and its successor reads what it left.
    pub fn restart_guard(&mut self, machine: usize, now: BootInstant) {
        let it = &self.machines[machine];
        let (boot, page, watchdog) = (it.boot, it.page.clone(), it.watchdog);
        self.begin(machine, boot, page, now);
        Arc::make_mut(&mut self.machines[machine]).watchdog = watchdog;
        self.step(machine, now, Event::Tick);
        if machine == A {
            self.tell_list();
        }
    }

    /// Nothing of this boot is left.
    pub fn reset(&mut self, machine: usize, now: BootInstant) {
        if machine == A {
            self.process = None;
            self.lease = None;
            self.was_reset = true;
            if self.start == Start::Allowed || self.start == Start::Made {
                self.start = Start::GivenUp;
            }
        }
        let it = &self.machines[machine];
        let (boot, page) = (it.boot + 1, it.page.clone());
        self.begin(machine, boot, page, now);
        self.step(machine, now, Event::Tick);
    }

    fn begin(&mut self, machine: usize, boot: u8, page: Option<Page>, now: BootInstant) {
        let mutations = self.mutations;
        self.machines[machine] = Arc::new(Machine::start(machine, boot, page, now, mutations));
    }

    pub fn set_stalled(&mut self, is_stalled: bool) {
        Arc::make_mut(&mut self.machines[A]).is_stalled = is_stalled;
    }

    pub fn deliver(&mut self, envelope: Envelope) {
        let Envelope { from, to, message } = envelope;
        if to == FENCER {
            let fencer = self.fencer.iter_mut();
            fencer.for_each(|fencer| fencer.on_message(host_id(from), &message));
        } else if self.machines[to].is_stalled {
            // It waits in the socket.
            self.late.push(Envelope { from, to, message });
        } else {
            self.step(to, self.now(), Event::Datagram { from: host_id(from), message });
        }
    }

    /// The transaction that relies on a proof compares the configuration.
    fn prove(&mut self) {
        let proof = self.fencer.as_ref().and_then(|fencer| fencer.proof(self.now()));
        let version = if self.change == Change::No { 1 } else { 2 };
        self.is_fenced |= proof.is_some_and(|proof| proof.configuration == version);
    }

    /// From here is no way back for A's first epoch.
    fn fence(&mut self) {
        let (old, new) = (voters(&[0, 1, 2]), voters(&[B]));
        let (configuration, voters) = match self.change {
            Change::No => (1, vec![old]),
            Change::Joint => (2, vec![old, new]),
            Change::Done => (2, vec![new]),
        };
        let order = Order { host: host_id(A), epoch: Epoch(1), voters, configuration, profile: PROFILE };
        let mut fencer = Fencer::start(order, self.now());
        fencer.set_mutations(self.mutations);
        self.fencer = Some(fencer);
    }

    pub fn ask(&mut self) {
        let now = self.now();
        if self.fencer.is_none() {
            self.fence();
        }
        let questions = self.fencer.as_mut().map(|fencer| fencer.ask_if_due(now)).unwrap_or_default();
        for (to, message) in questions {
            self.net.push_back(Envelope { from: FENCER, to: machine_of(to), message });
        }
        self.has_asked = true;
    }

    /// The order to start the VM under A's first epoch reaches A's agent, which asks its guard.
    pub fn order(&mut self) {
        let order = StartOrder { vm: VM, vm_epoch: 1, host_epoch: Epoch(1) };
        self.step(A, self.now(), Event::VmsChanged(vec![listed(true)]));
        if self.a().guard.may_start(order, self.now()).is_ok() {
            self.start = Start::Allowed;
        } else {
            self.step(A, self.now(), Event::VmsChanged(Vec::new()));
        }
    }

    pub fn spawn(&mut self) {
        self.start = Start::Made;
        self.process = Some(Process { host_epoch: Epoch(1), is_frozen: false, is_killed: false });
        self.tell_list();
    }

    pub fn reap(&mut self) {
        self.process = None;
        self.step(A, self.now(), Event::Reaped { vm: VM });
        self.tell_list();
    }

    /// The agent's list.
    fn tell_list(&mut self) {
        let starting = self.start == Start::Allowed;
        let list = (starting || self.process.is_some()).then(|| listed(starting));
        self.step(A, self.now(), Event::VmsChanged(Vec::from_iter(list)));
    }

    pub fn change_voters(&mut self) {
        self.change = Change::Joint;
        // A proof for the former voters alone would be refused.
        self.fencer = None;
        self.step(A, self.now(), Event::Configure(configuration(2)));
    }

    /// Nothing that may run is at A once lease and watchdog have run out.
    pub fn outlives_its_lease(&self) -> bool {
        let Some((epoch, deadline)) = self.lease else { return self.process.is_some() };
        let is_its = self.process.is_some_and(|process| process.host_epoch == epoch);
        is_its && self.now() >= deadline + PROFILE.watchdog
    }
}

impl Machine {
    fn start(machine: usize, boot: u8, page: Option<Page>, now: BootInstant, mutations: Mutations) -> Self {
        let id = Uuid::from_u128(((machine as u128) << 8) | u128::from(boot) | 1 << 64);
        let mut guard = Guard::start(host_id(machine), id, page.clone(), now);
        guard.set_mutations(mutations);
        Self { guard, hash: 0, boot, page, watchdog: None, wake: now, is_stalled: false }
    }

    /// The page on the disk is the one in the guard, or follows from what the guard was started with.
    fn hash_now(&self) -> u64 {
        let mut hasher = std::hash::DefaultHasher::new();
        (&self.guard, self.boot, &self.page, self.watchdog, self.wake, self.is_stalled).hash(&mut hasher);
        hasher.finish()
    }
}

impl Hash for Machine {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.hash.hash(state);
    }
}

fn listed(starting: bool) -> VmUnderLease {
    VmUnderLease { vm: VM, epoch: 1, host_epoch: Epoch(1), isolation: Isolation::Kill, starting }
}

fn at(tick: u8) -> BootInstant {
    BootInstant(u64::from(tick) * TICK)
}
