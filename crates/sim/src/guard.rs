//! A guard's process: the production core over a fake shell, which does as `sterna_guard::shell` does.
//!
//! The agent speaks to it in the production words, line by line. Whatever comes while the machine stands still waits.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use serde_json::json;
use sterna_agent::guard::line::{Door, Ends};
use sterna_base::scope::Scope;
use sterna_guard::core::event::{Effect, Event, KillReason, Report, State};
use sterna_guard::core::guard::{Guard, StartOrder};
use sterna_guard::core::id::{HostId, VmId};
use sterna_guard::core::message::Message;
use sterna_guard::shell::request::{Request, Settings};
use sterna_store::BoxFuture;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

use crate::mutation::Mutation;
use crate::qemu::End;
use crate::world::World;

/// What a socket holds before whoever writes to it waits.
const SOCKET_BYTES: usize = 1 << 20;

/// What reaches a guard's process.
pub enum ToGuard {
    Datagram {
        from: HostId,
        message: Message,
    },
    /// From a life of the agent.
    Said {
        connection: u64,
        agent: u64,
        line: String,
    },
    Connected {
        connection: u64,
        to: UnboundedSender<String>,
    },
    HungUp {
        connection: u64,
    },
    AgentEnded {
        agent: u64,
    },
    Reaped {
        vm: VmId,
    },
    /// From the fencer beside it.
    Configure(Box<Settings>),
}

/// One life of a guard.
struct Keep {
    world: World,
    node: usize,
    life: u64,
    guard: Guard,
    connections: BTreeMap<u64, UnboundedSender<String>>,
    /// The agent whose starts may be under way.
    agent: Option<u64>,
    wake: u64,
}

impl World {
    pub fn start_guard(&self, node: usize) {
        let now = self.now_ns();
        let (inbox, come) = mpsc::unbounded_channel();
        let scope = Scope::new();
        let (guard, life) = {
            let mut state = self.lock();
            let defect = state.config.guard_defect;
            let forgets = state.config.mutation == Some(Mutation::PageIsLost);
            let Some(at) = state.nodes.get_mut(node).filter(|at| !at.is_down && !at.guard.is_up) else {
                return;
            };
            at.guard.life += 1;
            at.guard.is_up = true;
            at.guard.inbox = Some(inbox);
            at.guard.scope = Some(scope.clone());
            let page = at.page.clone().filter(|_| !forgets);
            let mut guard = Guard::start(at.id, at.boot_id(), page, at.clock.at(now));
            guard.set_mutations(defect);
            (guard, at.guard.life)
        };
        self.say(format!("{}: guard starts", self.node_name(node)));
        let connections = BTreeMap::new();
        let keep = Keep { world: self.clone(), node, life, guard, connections, agent: None, wake: 0 };
        scope.spawn(keep.run(come));
    }

    /// Its process ends in this instant, and is not started again.
    pub fn end_guard(&self, node: usize) -> bool {
        let scope = {
            let mut state = self.lock();
            let Some(at) = state.nodes.get_mut(node).filter(|at| at.guard.is_up) else { return false };
            at.guard.is_up = false;
            at.guard.inbox = None;
            at.guard.scope.take()
        };
        if let Some(scope) = scope {
            scope.token().cancel();
        }
        true
    }

    /// kill -9; its supervisor starts another.
    pub fn kill_guard(&self, node: usize) {
        if self.stands_still(node) || !self.end_guard(node) {
            return;
        }
        self.say(format!("{}: guard is killed", self.node_name(node)));
        self.later(50, 1000, move |world| world.start_guard(node));
    }

    #[must_use]
    pub fn node_name(&self, node: usize) -> String {
        let state = self.lock();
        state.hosts.get(node).map_or_else(|| "server".to_owned(), |host| host.name.to_string())
    }

    fn is_guard_alive(&self, node: usize, life: u64) -> bool {
        let state = self.lock();
        state.nodes[node].guard.is_up && state.nodes[node].guard.life == life
    }

    pub(crate) fn tell_guard(&self, node: usize, what: ToGuard) {
        let state = self.lock();
        if let Some(inbox) = state.nodes.get(node).and_then(|node| node.guard.inbox.as_ref()) {
            // Nobody listens while it is down.
            let _ = inbox.send(what);
        }
    }
}

impl Keep {
    async fn run(mut self, mut inbox: UnboundedReceiver<ToGuard>) {
        self.recall();
        self.step(Event::Tick);
        loop {
            let wake = self.world.sleep_until_ns(self.wake);
            let come = tokio::select! {
                biased;
                come = inbox.recv() => match come {
                    Some(come) => Some(come),
                    None => return,
                },
                () = wake => None,
            };
            self.world.goes_on(self.node).await;
            // Before anything else: it may be late, and then the lease is over whatever else has come.
            self.step(Event::Tick);
            if let Some(come) = come {
                self.on(come);
            }
        }
    }

    /// Renewals go on whether or not there is an agent.
    fn recall(&mut self) {
        let settings = self.world.lock().nodes[self.node].settings.clone();
        if let Some(configuration) = settings.and_then(|settings| settings.configuration().ok()) {
            self.step(Event::Configure(configuration));
        }
    }

    fn on(&mut self, come: ToGuard) {
        match come {
            ToGuard::Datagram { from, message } => {
                if self.knows(from) {
                    self.step(Event::Datagram { from, message });
                }
            }
            ToGuard::Connected { connection, to } => drop(self.connections.insert(connection, to)),
            ToGuard::HungUp { connection } => drop(self.connections.remove(&connection)),
            ToGuard::Said { connection, agent, line } => {
                let answer = match serde_json::from_str(&line) {
                    Ok(request) => self.on_request(agent, request),
                    Err(error) => refused(format!("not a request: {error}")),
                };
                self.tell(connection, answer.to_string());
            }
            ToGuard::AgentEnded { agent } => {
                if self.agent.take_if(|known| *known == agent).is_some() {
                    self.step(Event::AgentLost);
                }
            }
            ToGuard::Reaped { vm } => self.step(Event::Reaped { vm }),
            ToGuard::Configure(settings) => drop(self.on_settings(*settings)),
        }
    }

    /// Only these have a key that this guard has.
    fn knows(&self, peer: HostId) -> bool {
        let state = self.world.lock();
        state.nodes[self.node].settings.as_ref().is_some_and(|settings| settings.peers.contains_key(&peer))
    }

    fn tell(&mut self, connection: u64, line: String) {
        if let Some(to) = self.connections.get(&connection) {
            let _ = to.send(line);
        }
    }

    fn on_request(&mut self, agent: u64, request: Request) -> serde_json::Value {
        let event = match request {
            Request::Vms { mut vms } => {
                if self.world.mutates(Mutation::OnlyStartsAreListed) {
                    vms.retain(|vm| vm.starting);
                }
                if *self.agent.get_or_insert(agent) != agent {
                    return refused("another agent is alive".to_owned());
                }
                Event::VmsChanged(vms)
            }
            Request::MayStart { vm, vm_epoch, host_epoch } => {
                let order = StartOrder { vm, vm_epoch, host_epoch };
                return match self.guard.may_start(order, self.world.boot_time(self.node)) {
                    Ok(()) => json!({ "answer": "done" }),
                    Err(refusal) => refused(refusal.to_string()),
                };
            }
            Request::Join { epoch, asked_at } => Event::Join { epoch, asked_at },
            Request::Configure(settings) => return self.on_settings(settings),
            Request::Release {} => Event::Release,
            Request::Status {} => {
                let status = self.guard.status(self.world.boot_time(self.node));
                return json!({ "answer": "status", "guard": status, "watchdog": "fake", "watchdog_error": null });
            }
        };
        self.step(event);
        json!({ "answer": "done" })
    }

    fn on_settings(&mut self, settings: Settings) -> serde_json::Value {
        let known = self.world.lock().nodes[self.node].settings.as_ref().map(|known| known.version);
        if known.is_some_and(|known| settings.version < known) {
            return refused(format!("version {} is older than what is known", settings.version));
        }
        let configuration = match settings.configuration() {
            Ok(configuration) => configuration,
            Err(error) => return refused(error.to_string()),
        };
        if let Err(error) = configuration.check() {
            return refused(error.to_string());
        }
        self.world.lock().nodes[self.node].settings = Some(settings);
        self.step(Event::Configure(configuration));
        json!({ "answer": "done" })
    }

    fn step(&mut self, event: Event) {
        let now = self.world.boot_time(self.node);
        for effect in self.guard.step(now, event) {
            if !self.world.is_guard_alive(self.node, self.life) {
                return;
            }
            self.carry_out(effect);
        }
        let status = self.guard.status(now);
        if let (State::Held { epoch }, Some(left)) = (status.lease, status.left) {
            self.world.note_lease(self.node, epoch, now + left);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        let (world, node) = (self.world.clone(), self.node);
        match effect {
            Effect::Freeze { vm } => world.ice(node, vm, true),
            Effect::Thaw { .. } if world.mutates(Mutation::NothingThaws) => {}
            Effect::Thaw { vm } => world.ice(node, vm, false),
            Effect::Kill { vm } => drop(tokio::spawn(reap(world, node, self.life, vm))),
            Effect::Persist(page) => world.lock().nodes[node].page = Some(page),
            Effect::ProgramWatchdog { timeout } => world.program_watchdog(node, timeout),
            Effect::Pet => world.feed_watchdog(node),
            Effect::Send { to, message } => {
                let me = world.lock().nodes[node].id;
                if self.knows(to) {
                    world.send_datagram(node, me, to, message);
                }
            }
            Effect::Report(report) => self.report(&report),
            Effect::NextWake(at) => self.wake = world.when(node, at),
        }
    }

    fn report(&mut self, report: &Report) {
        let name = self.world.node_name(self.node);
        match report {
            Report::Lease { state } => self.world.moment(&format!("{name}: lease is {}", word(*state))),
            Report::Killing { vm, why } => {
                self.world.note_kill(self.node, *vm, *why);
                self.world.moment(&format!("{name}: guard ends a VM"));
            }
            Report::Frozen { .. } => self.world.moment(&format!("{name}: guard freezes")),
            Report::Thawed { .. } => self.world.moment(&format!("{name}: guard thaws")),
            other => self.world.say(format!("{name}: guard: {other:?}")),
        }
        let line = serde_json::to_string(report).expect("plain data");
        for to in self.connections.values() {
            let _ = to.send(line.clone());
        }
    }
}

fn refused(why: String) -> serde_json::Value {
    json!({ "answer": "refused", "why": why })
}

fn word(state: State) -> String {
    match state {
        State::NoEpoch => "none".to_owned(),
        State::Candidate { epoch } => format!("hoped for, {epoch}"),
        State::Held { epoch } => format!("held, {epoch}"),
        State::Expired { epoch } => format!("over, {epoch}"),
    }
}

/// Kills what there is of a VM until there is nothing, and says so to the guard that wanted it.
async fn reap(world: World, node: usize, life: u64, vm: VmId) {
    loop {
        world.pause(0, 20).await;
        world.goes_on(node).await;
        if !world.is_guard_alive(node, life) {
            return;
        }
        if world.mutates(Mutation::GuardKillsNothing) {
            return world.tell_guard(node, ToGuard::Reaped { vm });
        }
        let is_there = world.on_machines(|machines| {
            let id = machines.here(node, vm.0)?;
            if machines.qemus.get(&id).is_some_and(|qemu| !qemu.is_stuck) {
                machines.end(id, End::WithItsShim);
            }
            Some(())
        });
        if is_there.is_none() {
            return world.tell_guard(node, ToGuard::Reaped { vm });
        }
    }
}

impl World {
    /// Stops a VM's processes where they stand, or lets them go on.
    fn ice(&self, node: usize, vm: VmId, is_so: bool) {
        self.on_machines(|machines| {
            let id = machines.here(node, vm.0)?;
            machines.qemus.get_mut(&id)?.is_iced = is_so;
            Some(())
        });
    }

    pub(crate) fn note_kill(&self, node: usize, vm: VmId, why: KillReason) {
        let now = self.now_ms();
        let mut state = self.lock();
        let is_there = state.machines.here(node, vm.0).is_some();
        if is_there {
            state.losses.kills.push((now, node, vm.0, why));
        }
    }
}

/// The agent's way to its host's guard.
pub struct Gate {
    pub world: World,
    pub host: usize,
    pub life: u64,
}

impl Door for Gate {
    fn open(&self) -> BoxFuture<'_, io::Result<Ends>> {
        Box::pin(async {
            self.world.pause(0, 1).await;
            self.world.agent_lives(self.host, self.life).await;
            let (ours, theirs) = tokio::io::duplex(SOCKET_BYTES);
            let connection = {
                let mut state = self.world.lock();
                state.connections_made += 1;
                state.connections_made
            };
            let inbox = self.world.lock().nodes[self.host].guard.inbox.clone();
            let inbox = inbox.ok_or(io::ErrorKind::ConnectionRefused)?;
            let (to, from_guard) = mpsc::unbounded_channel();
            let gone = |_| io::Error::from(io::ErrorKind::ConnectionRefused);
            inbox.send(ToGuard::Connected { connection, to }).map_err(gone)?;
            tokio::spawn(carry(theirs, (connection, self.life), inbox, from_guard));
            let (input, out) = tokio::io::split(ours);
            Ok((Box::new(input) as _, Box::new(out) as _))
        })
    }

    fn place(&self) -> String {
        "its socket".to_owned()
    }
}

/// The kernel's part of one connection, until either end closes it.
async fn carry(
    stream: DuplexStream,
    (connection, agent): (u64, u64),
    inbox: UnboundedSender<ToGuard>,
    mut from_guard: UnboundedReceiver<String>,
) {
    let (input, mut out) = tokio::io::split(stream);
    let mut lines = BufReader::new(input).lines();
    loop {
        tokio::select! {
            biased;
            line = from_guard.recv() => {
                let Some(mut line) = line else { break };
                line.push('\n');
                if out.write_all(line.as_bytes()).await.is_err() {
                    break;
                }
            }
            line = lines.next_line() => {
                let Ok(Some(line)) = line else { break };
                if inbox.send(ToGuard::Said { connection, agent, line }).is_err() {
                    break;
                }
            }
        }
    }
    let _ = inbox.send(ToGuard::HungUp { connection });
}

/// For an agent's ports.
#[must_use]
pub fn door(world: &World, host: usize, life: u64) -> Arc<dyn Door> {
    Arc::new(Gate { world: world.clone(), host, life })
}
