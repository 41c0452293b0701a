//! An agent's process: the production tasks of its VMs over fakes of its machine, and its line to the server.

use std::sync::Arc;

use sterna_agent::guard::keeper::{Identity, Keeper, Unattached};
use sterna_agent::guard::{NoGuard, Wards, listed};
use sterna_agent::hypervisor::Parts;
use sterna_agent::resources::{NotReady, Resources, Whose};
use sterna_agent::vm::board::Board;
use sterna_agent::vm::fleet::Fleet;
use sterna_agent::vm::{Guests, Ports, Reports};
use sterna_base::clock::Clock;
use sterna_base::scope::Scope;
use sterna_base::units::Bytes;
use sterna_model::cpu::{Accel, CpuReport};
use sterna_model::ha::{GuardSeen, Peer};
use sterna_model::host::{HostReport, LinkState, PoolSeen};
use sterna_model::meta::Name;
use sterna_model::volume::VolumeReport;
use sterna_wire::assignment::{Assignment, Machine, Purpose};
use sterna_wire::down::Down;
use sterna_wire::up::{Up, VolumeSeen};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::gateway::FromAgent;
use crate::guard::{self, ToGuard};
use crate::hypervisor::Bench;
use crate::mutation::Mutation;
use crate::records::Shelf;
use crate::site::POOL;
use crate::voice;
use crate::world::{Connection, World, host_name};

/// Makes parts ready after a while.
struct Workshop {
    world: World,
    host: usize,
    life: u64,
}

impl Resources for Workshop {
    async fn prepare(&self, _whose: &Whose, _machine: &Machine) -> Result<Parts, NotReady> {
        self.world.pause(0, 10).await;
        self.world.agent_lives(self.host, self.life).await;
        let is_slow = {
            let mut state = self.world.lock();
            let rate = if state.is_calm { 0 } else { state.config.parts_wait };
            state.random.chance(rate)
        };
        if is_slow {
            Err(NotReady::Wait { step: "fetching the image".to_owned() })
        } else {
            Ok(Parts::default())
        }
    }

    async fn release(&self, _uid: Uuid, _taps: &[String]) {
        self.world.pause(0, 5).await;
        self.world.agent_lives(self.host, self.life).await;
    }
}

/// Takes reports to the line, while the agent lives.
struct Mouth {
    world: World,
    host: usize,
    life: u64,
    to_line: UnboundedSender<Up>,
}

impl Reports for Mouth {
    fn report(&self, up: Up) {
        if self.world.is_agent_alive(self.host, self.life) && !matches!(up, Up::Samples(_)) {
            // The line goes only with the agent.
            let _ = self.to_line.send(up);
        }
    }
}

/// One life of an agent, as its line sees it.
struct Agent {
    world: World,
    host: usize,
    name: Name,
    fleet: Arc<Fleet<Bench, Workshop>>,
    board: Arc<Board>,
    link: watch::Sender<bool>,
    /// For the guard's keeper.
    assigned: watch::Sender<Option<Arc<Assignment>>>,
    guard_seen: watch::Receiver<Option<GuardSeen>>,
    volumes: Vec<VolumeSeen>,
    /// The incarnation that asked to hold, on this connection.
    held: Option<Uuid>,
}

impl World {
    pub fn start_agent(&self, host: usize) {
        let scope = Scope::new();
        if self.lock().nodes.get(host).is_some_and(|node| node.is_down) {
            return;
        }
        if self.stands_still(host) {
            return self.later(100, 100, move |world| world.start_agent(host));
        }
        let (life, name) = {
            let mut state = self.lock();
            let forgets = state.config.mutation == Some(Mutation::NotesAreForgotten);
            let at = &mut state.hosts[host];
            if at.agent_is_up {
                return;
            }
            at.life += 1;
            at.agent_is_up = true;
            at.scope = Some(scope.clone());
            if forgets {
                at.notes.clear();
            }
            (at.life, at.name.clone())
        };
        self.moment(&format!("{name}: agent starts"));
        let (to_line, reports) = mpsc::unbounded_channel();
        let (link, link_seen) = watch::channel(false);
        let board = Arc::new(Board::default());
        let world = || self.clone();
        let found = self.found(host);
        let mouth: Arc<dyn Reports> = Arc::new(Mouth { world: world(), host, life, to_line });
        let (guard, assigned) = (watch::Sender::new(None), watch::Sender::new(None));
        let (wards, keeper) = self.keeper((host, life), &found, &assigned, &mouth);
        let ports = Ports {
            hypervisor: Bench { world: world(), host, life },
            resources: Workshop { world: world(), host, life },
            records: Arc::new(Shelf { world: world(), host, life }),
            clock: Arc::new(world()),
            reports: mouth,
            board: Arc::clone(&board),
            link: link_seen,
            guests: Guests::default(),
            wards,
        };
        let ports = Arc::new(ports);
        // What was assigned last, until a server says more.
        assigned.send_replace(ports.records.assignment().ok().flatten().map(Arc::new));
        let fleet = Fleet::new(ports, scope.clone());
        for (uid, vm) in found {
            fleet.adopt(vm, uid);
        }
        let guard_seen = guard.subscribe();
        if let Some(keeper) = keeper {
            let (world, guard_seen) = (world(), guard_seen.clone());
            let row = move || Up::Host(Box::new(world.host_report(host, guard_seen.borrow().clone())));
            scope.spawn(keeper.attach(guard, Arc::new(row)).run());
        }
        let volumes = Vec::new();
        let agent = Agent {
            world: world(),
            host,
            name,
            fleet,
            board,
            link,
            assigned,
            guard_seen,
            volumes,
            held: None,
        };
        scope.spawn(agent.keep_connected(reports));
    }

    /// What speaks to this host's guard, if it has one.
    fn keeper(
        &self,
        (host, life): (usize, u64),
        found: &[(Uuid, Name)],
        assigned: &watch::Sender<Option<Arc<Assignment>>>,
        mouth: &Arc<dyn Reports>,
    ) -> (Arc<dyn Wards>, Option<Unattached>) {
        if !self.has_guards() {
            return (Arc::new(NoGuard), None);
        }
        let (name, id) = {
            let state = self.lock();
            (state.hosts[host].name.clone(), state.nodes[host].id)
        };
        let Peer { key, addresses, .. } = voice::peer(name.as_str(), id);
        let identity = Identity { name, host: id.0, key, addresses, door: guard::door(self, host, life) };
        let records = Shelf { world: self.clone(), host, life };
        let is_here = |vm| found.iter().any(|(uid, _)| *uid == vm);
        // It may have been killed as it started.
        let Ok(wards) = listed(&records, is_here) else { return (Arc::new(NoGuard), None) };
        let (handle, keeper) = Keeper::prepare(identity, wards, assigned.subscribe(), Arc::clone(mouth));
        (Arc::new(handle), Some(keeper))
    }

    /// What run directories and processes say is here.
    fn found(&self, host: usize) -> Vec<(Uuid, Name)> {
        let state = self.lock();
        let noted = state.hosts[host].notes.iter().map(|(uid, notes)| (*uid, notes.name.clone()));
        let processes = state.machines.qemus.values().filter(|qemu| qemu.host == host);
        let mut found: Vec<_> = noted.chain(processes.map(|qemu| (qemu.uid, qemu.vm.clone()))).collect();
        found.sort();
        found.dedup();
        found
    }

    /// kill -9.
    pub fn kill_agent(&self, host: usize) {
        if self.stands_still(host) || !self.lock().hosts[host].agent_is_up {
            return;
        }
        let name = host_name(host);
        self.say(format!("{name}: agent is killed"));
        let agent = self.lock().hosts[host].life;
        let line = self.end_agent(host);
        if self.has_guards() {
            self.later(0, 5, move |world| world.tell_guard(host, ToGuard::AgentEnded { agent }));
        }
        if let Some(line) = line {
            self.later(1, 20, move |world| world.server_sees_end(&name, line.id));
        }
        self.later(50, 1000, move |world| world.start_agent(host));
    }

    /// Its process ends in this instant. Returns the connection that it had.
    pub fn end_agent(&self, host: usize) -> Option<Connection> {
        let (scope, line) = {
            let mut state = self.lock();
            let at = &mut state.hosts[host];
            at.agent_is_up = false;
            (at.scope.take(), at.connection.take())
        };
        if let Some(scope) = scope {
            scope.token().cancel();
        }
        line
    }

    /// The server notices that a connection is gone.
    pub fn server_sees_end(&self, host: &Name, connection: u64) {
        if let Some(inbox) = &self.lock().server.inbox {
            let _ = inbox.send(FromAgent::Ended { host: host.clone(), connection });
        }
    }

    /// The line is cut: neither end is told. Each notices by itself, unless it is whole again before.
    pub fn cut_line(&self, host: usize) {
        let (name, line) = {
            let mut state = self.lock();
            let at = &mut state.hosts[host];
            if at.line_is_cut {
                return;
            }
            at.line_is_cut = true;
            (at.name.clone(), at.connection.clone())
        };
        self.say(format!("{name}: line is cut"));
        let Some(line) = line else { return };
        let id = line.id;
        let is_still_cut = move |world: &World| {
            let state = world.lock();
            let at = &state.hosts[host];
            at.line_is_cut && at.connection.as_ref().is_none_or(|line| line.id == id)
        };
        self.later(100, 6000, move |world| {
            if is_still_cut(world) {
                line.agent_sees_end.cancel();
            }
        });
        self.later(100, 6000, move |world| {
            if is_still_cut(world) {
                world.server_sees_end(&name, id);
            }
        });
    }

    pub fn heal_line(&self, host: usize) {
        let now = self.now_ms();
        let name = {
            let mut state = self.lock();
            if std::mem::take(&mut state.hosts[host].line_is_cut) {
                state.hosts[host].line_was_cut = now;
            }
            state.hosts[host].name.clone()
        };
        self.say(format!("{name}: line is whole"));
    }
}

impl Agent {
    async fn keep_connected(mut self, mut reports: UnboundedReceiver<Up>) {
        loop {
            self.world.pause(10, 200).await;
            if let Some((connection, inbox, down)) = self.dial() {
                self.serve(&connection, &inbox, down, &mut reports).await;
                self.link.send_replace(false);
                self.hang_up(connection.id);
                self.world.moment(&format!("{}: agent has lost the server", self.name));
            }
        }
    }

    fn dial(&self) -> Option<(Connection, UnboundedSender<FromAgent>, UnboundedReceiver<Down>)> {
        let mut state = self.world.lock();
        let inbox = state.server.inbox.clone()?;
        let stands = state.nodes.get(self.host).is_some_and(|node| node.is_frozen || node.is_down);
        if state.hosts[self.host].line_is_cut || stands || !state.server.is_up {
            return None;
        }
        state.connections_made += 1;
        let connection = Connection { id: state.connections_made, agent_sees_end: CancellationToken::new() };
        state.hosts[self.host].connection = Some(connection.clone());
        let (from_server, down) = mpsc::unbounded_channel();
        let arrived =
            FromAgent::Arrived { host: self.name.clone(), connection: connection.id, down: from_server };
        inbox.send(arrived).ok()?;
        Some((connection, inbox, down))
    }

    fn hang_up(&self, connection: u64) {
        let mut state = self.world.lock();
        let at = &mut state.hosts[self.host];
        if at.connection.as_ref().is_some_and(|present| present.id == connection) {
            at.connection = None;
        }
        drop(state);
        // The other end of a connection that was cut does not hear of it now; a new one replaces it.
    }

    /// One connection, from its first report to its end.
    async fn serve(
        &mut self,
        connection: &Connection,
        inbox: &UnboundedSender<FromAgent>,
        down: UnboundedReceiver<Down>,
        reports: &mut UnboundedReceiver<Up>,
    ) {
        self.fleet.on_connected();
        self.held = None;
        let mut down = self.relay(down, connection.agent_sees_end.clone());
        let (world, host, name, id) = (self.world.clone(), self.host, self.name.clone(), connection.id);
        let post = |ups: Vec<Up>| {
            let (world, inbox, name) = (world.clone(), inbox.clone(), name.clone());
            Box::pin(async move {
                world.travel(host).await;
                let (answer, answered) = oneshot::channel();
                let _ = inbox.send(FromAgent::Post { host: name, connection: id, ups, answer });
                if answered.await.is_err() {
                    // The server died, or does not know this connection any more.
                    std::future::pending::<()>().await;
                }
                world.travel(host).await;
            })
        };
        // What was reported before is in the inventory.
        while reports.try_recv().is_ok() {}
        let (mut is_complete, first) = self.inventory();
        let mut posting = Some(post(first));
        self.link.send_replace(true);
        loop {
            let again = self.world.sleep(500);
            tokio::select! {
                biased;
                () = connection.agent_sees_end.cancelled() => return,
                message = down.recv() => match message {
                    Some(Down::Assignment(assignment)) => {
                        self.fleet.apply(&assignment);
                        self.assigned.send_replace(Some(Arc::new((*assignment).clone())));
                        let volumes = self.volumes_for(&assignment);
                        if let (false, None) = (volumes.is_empty(), &posting) {
                            posting = Some(post(volumes));
                        }
                    }
                    Some(Down::Hold { incarnation }) => {
                        self.fleet.hold();
                        self.held = Some(incarnation);
                        is_complete = false;
                    }
                    Some(_) => {}
                    None => return,
                },
                () = async { match posting.as_mut() { Some(posting) => posting.await, None => std::future::pending().await } } => {
                    posting = None;
                }
                Some(up) = reports.recv(), if posting.is_none() => {
                    let mut batch = vec![up];
                    while let Ok(up) = reports.try_recv() {
                        batch.push(up);
                    }
                    posting = Some(post(batch));
                }
                () = again, if posting.is_none() => {
                    if !is_complete {
                        let (complete, ups) = self.inventory();
                        is_complete = complete;
                        posting = Some(post(ups));
                    } else if !self.volumes.is_empty() {
                        posting = Some(post(self.volumes.drain(..).map(Up::Volume).collect()));
                    }
                }
            }
        }
    }

    /// Carries what the server sends, in order, one message after the other.
    fn relay(&self, mut from: UnboundedReceiver<Down>, ended: CancellationToken) -> UnboundedReceiver<Down> {
        let (to, arrived) = mpsc::unbounded_channel();
        let (world, host) = (self.world.clone(), self.host);
        tokio::spawn(async move {
            while let Some(message) = from.recv().await {
                world.travel(host).await;
                if ended.is_cancelled() || to.send(message).is_err() {
                    return;
                }
            }
            // The server closed the connection, or is dead.
            world.travel(host).await;
            ended.cancel();
        });
        arrived
    }

    fn inventory(&self) -> (bool, Vec<Up>) {
        let (complete, vms) = self.board.inventory();
        let guard = self.guard_seen.borrow().clone();
        let report = self.world.host_report(self.host, guard);
        (
            complete,
            vec![
                Up::Host(Box::new(report)),
                Up::Inventory { complete, vms, volumes: Vec::new(), held: self.held },
            ],
        )
    }

    /// Volumes are made and removed at once: what takes time is the VMs.
    fn volumes_for(&mut self, assignment: &Assignment) -> Vec<Up> {
        let seen = assignment.volumes.iter().filter_map(|volume| {
            let report = match (volume.purpose, volume.in_use_by) {
                (Purpose::Keep | Purpose::Arrive, _) => VolumeReport::Ready { size: volume.size },
                (Purpose::Remove, None) => VolumeReport::Gone,
                (Purpose::Remove, Some(_)) | (Purpose::Shelve, _) => return None,
            };
            Some(VolumeSeen { name: volume.name.clone(), uid: volume.uid, report })
        });
        self.volumes = seen.collect();
        self.volumes.iter().cloned().map(Up::Volume).collect()
    }
}

impl World {
    fn host_report(&self, host: usize, guard: Option<GuardSeen>) -> HostReport {
        let boot = self.lock().hosts[host].boot;
        let pool = Name::new(POOL).expect("it is a name");
        HostReport {
            boot_id: format!("{}-{boot}", host_name(host)),
            sterna_version: "simulated".to_owned(),
            qemu_version: "10.0.2".to_owned(),
            accel: Accel::Tcg,
            accel_why: "simulated".to_owned(),
            cpus: 8,
            memory: Bytes::gib(8),
            cpu: CpuReport {
                models: [("qemu64".to_owned(), Default::default())].into(),
                machines: ["pc-q35-10.0".to_owned()].into(),
            },
            pools: [(pool, PoolSeen::Ready { capacity: Bytes::gib(100), port: None, used_percent: None })]
                .into(),
            tunnel: None,
            mover: None,
            lines: Default::default(),
            guard,
            link: LinkState::Silent,
            since: self.now(),
            told: None,
        }
    }

    /// The way between an agent and the server, as long as it is whole.
    pub async fn travel(&self, host: usize) {
        self.pause(0, 3).await;
        while self.lock().hosts[host].line_is_cut || self.stands_still(host) {
            self.sleep(20).await;
        }
    }
}
