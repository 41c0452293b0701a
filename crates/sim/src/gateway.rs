//! The server's side of the agents: rows from reports, assignments from the view, and who is connected.
//!
//! The rules are the contract's: a VM that is absent is gone only when the inventory was complete; a silent host says
//! nothing about its VMs; a report is about one epoch of one VM and never replaces a newer one; what a host has of a VM
//! that the store does not know is to be released.

use std::collections::BTreeMap;
use std::time::Duration;

use sterna_base::clock::Clock;
use sterna_model::host::{HostReport, LinkState};
use sterna_model::key::{Column, Key, Kind};
use sterna_model::meta::{Name, Object};
use sterna_model::migration::{MigrationReport, Outcome, SideState};
use sterna_model::store::MAIN;
use sterna_model::vm::{CopyState, Exit, VmReport, VmSpec};
use sterna_model::volume::VolumeSpec;
use sterna_plan::assignment::{assignment, may_end_stray};
use sterna_plan::{View, recovery};
use sterna_store::{Store, Txn, Watch};
use sterna_wire::assignment::{Assignment, Role, VmAssignment};
use sterna_wire::down::Down;
use sterna_wire::up::{Up, VmSeen, VolumeSeen};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use crate::mutation::Mutation;
use crate::store::Reached;
use crate::world::World;

/// What reaches the gateway from the lines.
pub enum FromAgent {
    Arrived { host: Name, connection: u64, down: UnboundedSender<Down> },
    Post { host: Name, connection: u64, ups: Vec<Up>, answer: oneshot::Sender<()> },
    Ended { host: Name, connection: u64 },
}

/// Everything is read anew this often, in case a change was never told.
const REREAD_EVERY: Duration = Duration::from_secs(5);
/// How long a server that has just started waits for the agents before it calls them silent.
const GRACE: Duration = Duration::from_secs(3);

struct Line {
    connection: u64,
    down: UnboundedSender<Down>,
    sent: Option<Assignment>,
    is_held: bool,
}

pub struct Gateway {
    world: World,
    store: Reached,
    view: View,
    lines: BTreeMap<Name, Line>,
    /// What hosts have of VMs that the store does not know.
    strays: BTreeMap<(Name, Uuid), (Name, u64)>,
    was_recovering: bool,
}

/// Serves until the server dies.
pub async fn run(world: World, life: u64, mut inbox: UnboundedReceiver<FromAgent>) {
    let store = Reached { world: world.clone(), life, is_control: false };
    let mut gateway = Gateway {
        world,
        store,
        view: View::default(),
        lines: BTreeMap::new(),
        strays: BTreeMap::new(),
        was_recovering: false,
    };
    let mut watch = gateway.read().await;
    let mut reread = Instant::now() + REREAD_EVERY;
    let mut grace = Some(Instant::now() + GRACE);
    loop {
        let next = grace.map_or(reread, |grace| grace.min(reread));
        tokio::select! {
            biased;
            message = inbox.recv() => match message {
                Some(message) => gateway.on_message(message).await,
                None => return,
            },
            batch = watch.next() => if let Ok(batch) = batch {
                for change in &batch.changes {
                    gateway.view.apply(&change.key, change.value.as_deref(), batch.revision);
                }
            },
            () = sleep_until(next) => {
                if grace.is_some_and(|grace| grace <= Instant::now()) {
                    grace = None;
                    gateway.silence_the_absent().await;
                }
                if reread <= Instant::now() {
                    watch = gateway.read().await;
                    reread = Instant::now() + REREAD_EVERY;
                }
            }
        }
        if gateway.was_recovering != recovery::is_on(&gateway.view) {
            // What was decided meanwhile may not have been told.
            watch = gateway.read().await;
            gateway.was_recovering = recovery::is_on(&gateway.view);
        }
        gateway.push();
    }
}

impl Gateway {
    async fn read(&mut self) -> Watch {
        let snapshot = self.store.range("", None).await.expect("the memory store reads");
        self.view = View::default();
        for entry in &snapshot.entries {
            self.view.apply(&entry.key, Some(&entry.value), entry.modified);
        }
        self.view.revision = snapshot.revision;
        self.store.watch("", snapshot.revision + 1).await.expect("nothing is compacted this soon")
    }

    async fn on_message(&mut self, message: FromAgent) {
        match message {
            FromAgent::Arrived { host, connection, down } => {
                self.strays.retain(|(on, _), _| *on != host);
                self.lines.insert(host, Line { connection, down, sent: None, is_held: false });
            }
            FromAgent::Post { host, connection, ups, answer } => {
                if self.lines.get(&host).is_none_or(|line| line.connection != connection) {
                    return;
                }
                for up in ups {
                    self.on_up(&host, up).await;
                }
                // The agent may be gone by now.
                let _ = answer.send(());
            }
            FromAgent::Ended { host, connection } => {
                if self.lines.get(&host).is_some_and(|line| line.connection == connection) {
                    self.lines.remove(&host);
                    self.on_silent(&host).await;
                }
            }
        }
    }

    async fn on_silent(&self, host: &Name) {
        self.set_link(host, None, Some(LinkState::Silent)).await;
        if self.world.mutates(Mutation::SilenceMeansStopped) {
            self.stop_rows(host).await;
        }
    }

    /// A defect on purpose: every row of the host says that its copy has stopped.
    async fn stop_rows(&self, host: &Name) {
        let snapshot = self.store.range(&Kind::Vm.prefix(), None).await.expect("the memory store reads");
        for entry in snapshot.entries {
            let is_theirs =
                Key::parse(&entry.key).is_some_and(|key| key.column == Column::ReportOf(host.clone()));
            let row = serde_json::from_slice::<VmReport>(&entry.value).ok().filter(|_| is_theirs);
            let Some(row) = row else { continue };
            let stopped = VmReport { state: CopyState::Stopped { exit: Exit::Lost }, ..row };
            let value = serde_json::to_vec(&stopped).expect("plain data");
            // A conflict means that the VM was removed meanwhile.
            let _ = self
                .store
                .commit(Txn::new().require(&entry.key, entry.modified).put(&entry.key, value))
                .await;
        }
    }

    async fn silence_the_absent(&self) {
        let connected: Vec<_> =
            self.view.hosts().filter(|host| host.is_connected()).map(|h| h.name.clone()).collect();
        for host in connected.iter().filter(|host| !self.lines.contains_key(*host)) {
            self.on_silent(host).await;
        }
    }

    async fn on_up(&mut self, host: &Name, up: Up) {
        match up {
            // It counts as connected, or not, as before, until its inventory has come.
            Up::Host(report) => self.set_link(host, Some(*report), None).await,
            Up::Inventory { complete, vms, volumes, held } => {
                for seen in &vms {
                    self.on_vm(host, seen).await;
                }
                for seen in &volumes {
                    self.on_volume(seen).await;
                }
                if complete || self.world.mutates(Mutation::TrustsIncompleteInventory) {
                    self.forget_absent(host, &vms).await;
                    self.set_link(host, None, Some(LinkState::Connected)).await;
                    let mutated = self.world.mutates(Mutation::OrdersWhileRecovering);
                    let incarnation = self.incarnation();
                    if let Some(incarnation) = incarnation.filter(|it| held == Some(*it) || mutated) {
                        self.tell(host, incarnation).await;
                    }
                }
            }
            Up::Vm(seen) => self.on_vm(host, &seen).await,
            Up::Volume(seen) => self.on_volume(&seen).await,
            Up::Event { .. } | Up::Samples(_) => {}
        }
    }

    fn incarnation(&self) -> Option<Uuid> {
        let entry = self.view.stores.get(MAIN)?;
        Some(entry.spec.as_ref()?.value.spec.incarnation)
    }

    /// The host has told everything to this incarnation.
    async fn tell(&self, host: &Name, incarnation: Uuid) {
        let key = Key::report(Kind::Host, host);
        self.write(|| async {
            let (report, revision) = self.decoded::<HostReport>(&key).await?;
            (report.told != Some(incarnation)).then(|| {
                let told = HostReport { told: Some(incarnation), ..report };
                let value = serde_json::to_vec(&told).expect("plain data");
                Txn::new().require(key.to_string(), revision).put(key.to_string(), value)
            })
        })
        .await;
    }

    async fn decoded<T: serde::de::DeserializeOwned>(&self, key: &Key) -> Option<(T, u64)> {
        let entry = self.store.get(&key.to_string()).await.ok()??;
        Some((serde_json::from_slice(&entry.value).ok()?, entry.modified))
    }

    /// Repeats until nothing changed in between.
    async fn write<F: Future<Output = Option<Txn>>>(&self, compute: impl Fn() -> F) {
        while let Some(txn) = compute().await {
            if self.store.commit(txn).await.is_ok() {
                return;
            }
        }
    }

    async fn set_link(&self, host: &Name, fresh: Option<HostReport>, link: Option<LinkState>) {
        let key = Key::report(Kind::Host, host);
        self.write(|| async {
            let row = self.decoded::<HostReport>(&key).await;
            let revision = row.as_ref().map_or(0, |(_, revision)| *revision);
            let before = row.map(|(report, _)| report);
            let mut report = fresh.clone().or_else(|| before.clone())?;
            let link = link.or(before.as_ref().map(|before| before.link)).unwrap_or_default();
            let unchanged_link = before.as_ref().is_some_and(|before| before.link == link);
            report.link = link;
            report.told = before.as_ref().and_then(|before| before.told);
            report.since = match &before {
                Some(before) if unchanged_link => before.since,
                _ => self.world.now(),
            };
            (before.as_ref() != Some(&report)).then(|| {
                let value = serde_json::to_vec(&report).expect("plain data");
                Txn::new().require(key.to_string(), revision).put(key.to_string(), value)
            })
        })
        .await;
    }

    /// Rows of VMs that the host has nothing of.
    async fn forget_absent(&self, host: &Name, here: &[VmSeen]) {
        let snapshot = self.store.range(&Kind::Vm.prefix(), None).await.expect("the memory store reads");
        for entry in snapshot.entries {
            let Some(key) = Key::parse(&entry.key) else { continue };
            let is_theirs = key.column == Column::ReportOf(host.clone());
            if is_theirs && !here.iter().any(|seen| seen.name == key.name && seen.report.is_some()) {
                // A conflict means that the VM was removed meanwhile, and the row with it.
                let _ = self
                    .store
                    .commit(Txn::new().require(&entry.key, entry.modified).delete(&entry.key))
                    .await;
            }
        }
    }

    async fn on_vm(&mut self, host: &Name, seen: &VmSeen) {
        let key = Key::report_of(Kind::Vm, &seen.name, host);
        let spec = Key::spec(Kind::Vm, &seen.name);
        let known =
            self.decoded::<Object<VmSpec>>(&spec).await.filter(|(object, _)| object.meta.uid == seen.uid);
        let stray = (host.clone(), seen.uid);
        if known.is_none() && !self.world.mutates(Mutation::ReportsResurrect) {
            match &seen.report {
                // One that has run waits for a person, who does not come here.
                Some(report) if report.state.has_process() && may_end_stray(report) => {
                    self.strays.insert(stray, (seen.name.clone(), report.epoch));
                }
                _ => drop(self.strays.remove(&stray)),
            }
            return;
        }
        self.strays.remove(&stray);
        let (key, spec) = (&key, &spec);
        let gateway = &*self;
        gateway.write(|| async move { gateway.vm_row(key, spec, seen).await }).await;
    }

    async fn vm_row(&self, key: &Key, spec: &Key, seen: &VmSeen) -> Option<Txn> {
        let resurrects = self.world.mutates(Mutation::ReportsResurrect);
        let object =
            self.decoded::<Object<VmSpec>>(spec).await.filter(|(object, _)| object.meta.uid == seen.uid);
        if object.is_none() && !resurrects {
            return None;
        }
        let row = self.decoded::<VmReport>(key).await;
        let revision = row.as_ref().map_or(0, |(_, revision)| *revision);
        let txn = Txn::new().require(key.to_string(), revision);
        let txn = match object {
            Some((_, at)) => txn.require(spec.to_string(), at),
            None => txn,
        };
        let Some(report) = &seen.report else {
            return (revision != 0).then(|| txn.delete(key.to_string()));
        };
        let report = &self.taken_down(report);
        let before = row.map(|(report, _)| report);
        let is_old = before.as_ref().is_some_and(|before| before.epoch > report.epoch);
        if before.as_ref() == Some(report) || is_old {
            return None;
        }
        Some(txn.put(key.to_string(), serde_json::to_vec(report).expect("plain data")))
    }

    /// What the report is written as: what it says, but for a defect on purpose.
    fn taken_down(&self, report: &VmReport) -> VmReport {
        let mut row = report.clone();
        if let Some(MigrationReport { side, .. }) = &mut row.migration
            && *side == SideState::Sending
            && self.world.mutates(Mutation::SendingMeansReleased)
        {
            *side = SideState::Released { outcome: Outcome::default() };
        }
        row
    }

    async fn on_volume(&self, seen: &VolumeSeen) {
        let (key, spec) = (Key::report(Kind::Volume, &seen.name), Key::spec(Kind::Volume, &seen.name));
        let (key, spec) = (&key, &spec);
        self.write(|| async move {
            let (object, at) = self.decoded::<Object<VolumeSpec>>(spec).await?;
            let row = self.decoded::<sterna_model::volume::VolumeReport>(key).await;
            let revision = row.as_ref().map_or(0, |(_, revision)| *revision);
            let is_new = row.is_none_or(|(report, _)| report != seen.report);
            (object.meta.uid == seen.uid && is_new).then(|| {
                let value = serde_json::to_vec(&seen.report).expect("plain data");
                let txn = Txn::new().require(spec.to_string(), at).require(key.to_string(), revision);
                txn.put(key.to_string(), value)
            })
        })
        .await;
    }

    /// Sends every connected host what is new for it.
    fn push(&mut self) {
        if recovery::is_on(&self.view) && !self.world.mutates(Mutation::OrdersWhileRecovering) {
            let incarnation = self.incarnation().unwrap_or_default();
            for line in self.lines.values_mut().filter(|line| !line.is_held) {
                line.is_held = true;
                // A line that has just ended is told of by its own message.
                let _ = line.down.send(Down::Hold { incarnation });
            }
            return;
        }
        for (host, line) in &mut self.lines {
            let mut now = assignment(&self.view, host);
            for ((on, uid), (name, epoch)) in &self.strays {
                if on == host && !now.vms.iter().any(|vm| vm.uid == *uid) {
                    now.vms.push(VmAssignment {
                        name: name.clone(),
                        uid: *uid,
                        epoch: *epoch,
                        role: Role::Release,
                    });
                }
            }
            if self.world.mutates(Mutation::ReleaseIsLost) {
                now.vms.retain(|vm| vm.role != Role::Release);
            }
            let is_new = line.sent.as_ref().is_none_or(|sent| {
                sent.vms != now.vms || sent.volumes != now.volumes || sent.guard != now.guard
            });
            if is_new {
                line.sent = Some(now.clone());
                // A line that has just ended is told of by its own message.
                let _ = line.down.send(Down::Assignment(Box::new(now)));
            }
        }
    }
}
