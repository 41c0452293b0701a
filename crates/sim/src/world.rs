//! What all parts of the simulated world stand on: virtual time, one source of chance, the trace, the state of every
//! machine, and faults that wait for an instant.
//!
//! Everything runs as tasks of one single-threaded runtime whose clock jumps to the next timer, so that the production
//! code runs unchanged and the same seed gives the same run. A killed process is one whose *life* is over: nothing that
//! its tasks still do reaches the world.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use sterna_agent::vm::record::{Notes, Seen};
use sterna_base::clock::{Clock, Timestamp};
use sterna_base::scope::Scope;
use sterna_guard::core::mutation::Mutations;
use sterna_model::ha::{Ha, Isolation, Profile};
use sterna_model::meta::Name;
use sterna_store::{Memory, Snapshot};
use sterna_wire::assignment::Assignment;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::campaign::Injected;
use crate::check::Checker;
use crate::datagram::{Air, Ear};
use crate::fault::{Act, Trigger};
use crate::gateway::FromAgent;
use crate::loss::Losses;
use crate::mutation::Mutation;
use crate::node::{Node, nodes};
use crate::qemu::Machines;
use crate::random::Random;
use crate::site::Layout;
use crate::trace::Trace;

/// The wall clock at the world's beginning; any value does.
const DAWN_MS: i64 = 1_800_000_000_000;

/// How a world is laid out.
#[derive(Debug, Clone)]
pub struct Config {
    pub seed: u64,
    pub hosts: usize,
    /// Delays are multiplied by this, in tenths.
    pub slowness: u64,
    /// Of 1,000 starts of a process, how many fail.
    pub start_fails: u64,
    /// Of 1,000 starts, how many come late by up to 20 seconds.
    pub starts_stall: u64,
    /// Of 1,000 questions for the parts of a copy, how many are answered with "not yet".
    pub parts_wait: u64,
    /// Of 1,000 looks at a process, how many get no answer.
    pub looks_fail: u64,
    /// Of 1,000 instants that are named in the trace, how many bring a drawn kill.
    pub kills_at_moments: u64,
    /// QEMU takes the disks at the target's completion (before 10) instead of when it is told.
    pub takes_disks_early: bool,
    /// Of 1,000 ends of streams, how many a target cannot load.
    pub loads_fail: u64,
    pub layout: Layout,
    pub mutation: Option<Mutation>,
    /// Hosts have guards, and are taken over when they are lost.
    pub guards: bool,
    /// A defect of all guards' cores.
    pub guard_defect: Mutations,
    /// Processes that lead, or wait for it.
    pub controllers: usize,
    pub profile: Profile,
    /// Of every VM.
    pub ha: Option<Ha>,
    pub isolation: Option<Isolation>,
}

impl Config {
    /// Nothing goes wrong by itself.
    #[must_use]
    pub fn calm(seed: u64, hosts: usize) -> Self {
        Self {
            seed,
            hosts,
            slowness: 10,
            start_fails: 0,
            starts_stall: 0,
            looks_fail: 0,
            parts_wait: 0,
            kills_at_moments: 0,
            takes_disks_early: false,
            loads_fail: 0,
            layout: Layout::default(),
            mutation: None,
            guards: false,
            guard_defect: Mutations::default(),
            controllers: 1,
            profile: Profile::default(),
            ha: None,
            isolation: None,
        }
    }
}

/// One machine: what survives which death is the contract's.
pub struct Host {
    pub name: Name,
    /// Counts boots.
    pub boot: u64,
    /// Counts starts of the agent.
    pub life: u64,
    pub agent_is_up: bool,
    pub scope: Option<Scope>,
    /// On disk.
    pub seen: BTreeMap<Uuid, Seen>,
    /// In memory of the machine: dies with its boot.
    pub notes: BTreeMap<Uuid, Notes>,
    /// Likewise.
    pub assignment: Option<Assignment>,
    pub line_is_cut: bool,
    /// Milliseconds of the world when the line was last cut.
    pub line_was_cut: u64,
    /// Memory of guests does not travel from or to here.
    pub data_is_cut: bool,
    pub connection: Option<Connection>,
}

/// One connection of an agent; each end learns of its end by itself.
#[derive(Clone)]
pub struct Connection {
    pub id: u64,
    pub agent_sees_end: CancellationToken,
}

#[derive(Default)]
pub struct Server {
    pub life: u64,
    pub is_up: bool,
    pub inbox: Option<UnboundedSender<FromAgent>>,
    pub scope: Option<Scope>,
}

pub struct State {
    pub config: Config,
    pub random: Random,
    pub trace: Trace,
    pub machines: Machines,
    pub hosts: Vec<Host>,
    pub server: Server,
    pub checker: Checker,
    pub triggers: Vec<Trigger>,
    /// Drawn faults may still happen.
    pub is_stormy: bool,
    /// No fault happens any more.
    pub is_calm: bool,
    pub connections_made: u64,
    /// What must never happen and did.
    pub violations: Vec<String>,
    pub acts_done: BTreeSet<String>,
    pub injected: Injected,
    /// VMs that the store has lost; they run on all the same.
    pub lost: BTreeSet<Uuid>,
    /// The last copy of the store.
    pub backup: Option<Snapshot>,
    /// What guards stand on: each host, and the server's machine last; none where there are no guards.
    pub nodes: Vec<Node>,
    pub air: Air,
    pub ears: Vec<Ear>,
    /// Milliseconds of the world until which each controller stands still.
    pub controllers_stand: Vec<u64>,
    pub watchdog_resets: u32,
    pub losses: Losses,
}

pub struct Inner {
    started: Instant,
    pub store: Memory,
    state: Mutex<State>,
}

/// Handle of the world; all clones are the same.
#[derive(Clone)]
pub struct World(Arc<Inner>);

impl std::ops::Deref for World {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl World {
    /// # Panics
    /// Outside a runtime.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let started = Instant::now();
        let hosts = (0..config.hosts).map(|index| Host {
            name: host_name(index),
            boot: 1,
            life: 0,
            agent_is_up: false,
            scope: None,
            seen: BTreeMap::new(),
            notes: BTreeMap::new(),
            assignment: None,
            line_is_cut: false,
            line_was_cut: 0,
            data_is_cut: false,
            connection: None,
        });
        let state = State {
            random: Random::new(config.seed),
            trace: Trace::default(),
            machines: Machines::new(config.layout.is_local),
            hosts: hosts.collect(),
            server: Server::default(),
            checker: Checker::default(),
            triggers: Vec::new(),
            is_stormy: false,
            is_calm: false,
            connections_made: 0,
            violations: Vec::new(),
            acts_done: BTreeSet::new(),
            injected: Injected::new(),
            lost: BTreeSet::new(),
            backup: None,
            nodes: nodes(&config),
            air: Air::default(),
            ears: Vec::new(),
            controllers_stand: vec![0; config.controllers],
            watchdog_resets: 0,
            losses: Losses::default(),
            config,
        };
        let store = Memory::new(Arc::new(move || started.elapsed()));
        Self(Arc::new(Inner { started, store, state: Mutex::new(state) }))
    }

    /// # Panics
    /// When an earlier panic left the world half changed.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panicked before")
    }

    #[must_use]
    pub fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    #[must_use]
    pub fn now_ns(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// A year is for ever.
    pub async fn sleep_until_ns(&self, at: u64) {
        const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
        let left = Duration::from_nanos(at.saturating_sub(self.now_ns()));
        tokio::time::sleep(left.min(YEAR)).await;
    }

    pub async fn sleep(&self, ms: u64) {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    /// Waits a drawn time, stretched when the world is slow.
    pub async fn pause(&self, low: u64, high: u64) {
        let ms = self.draw(low, high);
        self.sleep(ms).await;
    }

    #[must_use]
    pub fn draw(&self, low: u64, high: u64) -> u64 {
        let mut state = self.lock();
        let slowness = state.config.slowness;
        state.random.between(low, high) * slowness / 10
    }

    /// A line of the trace.
    pub fn say(&self, line: impl AsRef<str>) {
        let now = self.now_ms();
        self.lock().trace.push(now, line.as_ref());
    }

    pub fn violate(&self, what: impl Into<String>) {
        let what = what.into();
        self.say(format!("VIOLATION {what}"));
        self.lock().violations.push(what);
    }

    /// An instant that faults may wait for. What they do is done before this returns.
    pub fn moment(&self, name: &str) {
        self.say(format!("- {name}"));
        let (due, later) = self.lock().due(name);
        for act in due {
            self.act(&act);
        }
        for (delay, act) in later {
            let world = self.clone();
            tokio::spawn(async move {
                world.sleep(delay).await;
                world.act(&act);
            });
        }
    }

    /// Changes the processes and looks at what that did to the guests.
    pub fn on_machines<T>(&self, change: impl FnOnce(&mut Machines) -> T) -> T {
        let now = self.now_ns();
        let (result, wrong) = {
            let mut state = self.lock();
            let result = change(&mut state.machines);
            let mut wrong = state.machines.breathe();
            wrong.extend(state.running_strangers());
            wrong.extend(state.running_without_lease(now));
            state.note_gaps(now);
            (result, wrong)
        };
        for what in wrong {
            self.violate(what);
        }
        result
    }

    /// Guests that run where their VM is not owned.
    #[must_use]
    pub fn strangers(&self) -> Vec<String> {
        self.lock().running_strangers()
    }

    #[must_use]
    pub fn mutates(&self, mutation: Mutation) -> bool {
        self.lock().config.mutation == Some(mutation)
    }

    /// Never returns once the agent's life is over, nor while its machine stands still.
    pub async fn agent_lives(&self, host: usize, life: u64) {
        self.goes_on(host).await;
        if !self.is_agent_alive(host, life) {
            std::future::pending::<()>().await;
        }
    }

    #[must_use]
    pub fn is_agent_alive(&self, host: usize, life: u64) -> bool {
        let state = self.lock();
        state.hosts[host].agent_is_up && state.hosts[host].life == life
    }

    #[must_use]
    pub fn is_server_alive(&self, life: u64) -> bool {
        let state = self.lock();
        state.server.is_up && state.server.life == life
    }
}

impl State {
    /// What waits for this instant: to be done now, and later.
    fn due(&mut self, name: &str) -> (Vec<Act>, Vec<(u64, Act)>) {
        let (mut now, mut later) = (Vec::new(), Vec::new());
        for trigger in &mut self.triggers {
            if trigger.left > 0 && trigger.moment == name {
                trigger.left -= 1;
                if trigger.left == 0 && trigger.delay == 0 {
                    now.push(trigger.act.clone());
                } else if trigger.left == 0 {
                    later.push((trigger.delay, trigger.act.clone()));
                }
            }
        }
        let rate = self.config.kills_at_moments;
        if self.is_stormy && self.random.chance(rate) {
            let hosts = self.hosts.len() as u64;
            if self.config.guards {
                now.push(Act::draw_loss(&mut self.random, hosts));
                return (now, later);
            }
            let is_carried = self.config.layout != Layout::default();
            let draw = if is_carried { Act::draw_on_the_way } else { Act::draw_kill };
            now.push(draw(&mut self.random, hosts));
        }
        (now, later)
    }

    /// Memory of guests does not travel from or to this host.
    #[must_use]
    pub fn is_cut_off(&self, host: usize) -> bool {
        let stands = self.nodes.get(host).is_some_and(|node| node.is_frozen || node.is_down);
        stands || self.hosts[host].data_is_cut
    }

    #[must_use]
    pub fn host_index(&self, name: &Name) -> Option<usize> {
        self.hosts.iter().position(|host| host.name == *name)
    }
}

impl Clock for World {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(DAWN_MS) + self.started.elapsed()
    }
}

/// `a`, `b`, ...
///
/// # Panics
/// When there are more hosts than letters.
#[must_use]
pub fn host_name(index: usize) -> Name {
    let letter = (b'a'..=b'z').nth(index).expect("there are fewer hosts than letters");
    Name::new(&char::from(letter).to_string()).expect("a letter is a name")
}
