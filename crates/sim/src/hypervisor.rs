//! The agent's port to fake QEMUs: takes its time, and does nothing for an agent that is dead.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use sterna_agent::hypervisor::{
    Blueprint, Figures, Guest, GuestError, Happenings, Hypervisor, Limits, Listening, Look, Pause, Run,
    SpawnFailed, Transfer, View,
};
use sterna_base::units::{Bytes, Span};
use sterna_model::forecast::LoadSample;
use sterna_model::line::{Laying, LineKey};
use sterna_model::migration::Progress;
use sterna_wire::assignment::{Carry, Outgoing};
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::carrier;
use crate::direct;
use crate::mutation::Mutation;
use crate::qemu::{End, Qemu};
use crate::transfer;
use crate::world::World;

/// How long a question to a process waits for an answer.
const ANSWERS_WITHIN_MS: u64 = 5000;

/// What one life of an agent sees of its machine's processes.
#[derive(Clone)]
pub struct Bench {
    pub world: World,
    pub host: usize,
    pub life: u64,
}

/// One process, as one life of an agent holds it.
#[derive(Clone)]
pub struct Held {
    pub(crate) bench: Bench,
    pub(crate) id: u64,
}

impl Bench {
    async fn lives(&self) {
        self.world.agent_lives(self.host, self.life).await;
    }

    /// The way to a process or back.
    pub(crate) async fn travel(&self) {
        self.world.pause(0, 2).await;
        self.lives().await;
    }

    /// An agent that was given leave to start may be slow to do so.
    async fn stall(&self) {
        let ms = {
            let mut state = self.world.lock();
            let rate = if state.is_calm { 0 } else { state.config.starts_stall };
            if rate > 0 && state.random.chance(rate) { state.random.below(20_000) } else { 0 }
        };
        if ms > 0 {
            self.world.sleep(ms).await;
        }
    }

    fn is_stuck(&self, uid: Uuid) -> bool {
        let state = self.world.lock();
        let id = state.machines.here(self.host, uid);
        id.and_then(|id| state.machines.qemus.get(&id)).is_some_and(|qemu| qemu.is_stuck)
    }

    fn here(&self) -> String {
        self.world.lock().hosts[self.host].name.to_string()
    }

    fn attach(&self, id: u64) -> (Held, Happenings) {
        let (sender, receiver) = mpsc::unbounded_channel();
        if let Some(qemu) = self.world.lock().machines.qemus.get_mut(&id) {
            qemu.told = Some(sender);
        }
        (Held { bench: self.clone(), id }, receiver)
    }
}

impl Hypervisor for Bench {
    type Guest = Held;

    async fn look(&self, uid: Uuid) -> Look<Held> {
        self.travel().await;
        self.world.pause(0, 3).await;
        self.lives().await;
        let (id, record) = {
            let mut state = self.world.lock();
            let rate = if state.is_calm { 0 } else { state.config.looks_fail };
            if state.random.chance(rate) {
                if state.config.mutation == Some(Mutation::HungCountsAsGone) {
                    return Look::Absent;
                }
                return Look::Unknown { why: "it does not answer".to_owned() };
            }
            let record = state.machines.ended.get(&(self.host, uid)).cloned();
            (state.machines.here(self.host, uid), record)
        };
        match (id, record) {
            (Some(id), _) => {
                let epoch = self.world.lock().machines.qemus.get(&id).map_or(0, |qemu| qemu.epoch);
                let (guest, happenings) = self.attach(id);
                guest.thaw_by_mistake().await;
                guest.end_orphan();
                Look::Alive { guest, happenings, epoch }
            }
            (None, Some(record)) => Look::Ended(record),
            (None, None) => Look::Absent,
        }
    }

    async fn spawn(&self, blueprint: Blueprint) -> Result<(Held, Happenings), SpawnFailed> {
        self.travel().await;
        self.world.pause(5, 60).await;
        self.stall().await;
        self.lives().await;
        let fails = {
            let mut state = self.world.lock();
            let rate = if state.is_calm { 0 } else { state.config.start_fails };
            state.random.chance(rate)
        };
        if fails {
            return Err(SpawnFailed { why: "no memory left".to_owned() });
        }
        let here = self.here();
        self.world.check_spawn(self.host, &blueprint);
        // A target of an ended move may hold the image locks until it is released.
        let is_locked = {
            let state = self.world.lock();
            let mine = state.machines.qemus.values().filter(|qemu| qemu.uid == blueprint.uid);
            let mut writers = mine.filter(|qemu| qemu.has_disk);
            writers.any(|qemu| state.machines.disks.is_same(qemu.host, self.host))
        };
        if is_locked && !blueprint.incoming {
            return Err(SpawnFailed { why: "failed to get the write lock".to_owned() });
        }
        let born = self.world.now_ms();
        let run = if blueprint.incoming { Run::Incoming } else { Run::Paused(Pause::NotStarted) };
        let runs_when_loaded = blueprint.incoming && self.world.mutates(Mutation::TargetRunsByItself);
        let id = self.world.on_machines(|machines| {
            machines.add(Qemu {
                host: self.host,
                uid: blueprint.uid,
                vm: blueprint.name.clone(),
                epoch: blueprint.epoch,
                run,
                transfer: Transfer::None,
                memory: None,
                has_disk: !blueprint.incoming,
                is_target: blueprint.incoming,
                born,
                has_run: false,
                listens: None,
                line: None,
                runs_when_loaded,
                wants_cancel: false,
                sent: 0,
                is_frozen: false,
                is_iced: false,
                host_stands: false,
                is_stuck: false,
                is_hung: false,
                is_mute: false,
                way: None,
                direct: None,
                arrival: None,
                told: None,
            })
        });
        self.world.moment(&format!("{here}: spawned"));
        self.travel().await;
        Ok(self.attach(id))
    }

    async fn kill(&self, uid: Uuid, _guest: Option<Held>) {
        self.travel().await;
        if self.world.mutates(Mutation::KillDoesNothing) {
            return;
        }
        let here = self.here();
        while self.is_stuck(uid) {
            self.world.sleep(100).await;
            self.lives().await;
        }
        let ended = self.world.on_machines(|machines| {
            let id = machines.here(self.host, uid)?;
            machines.end(id, End::Killed);
            Some(())
        });
        if ended.is_some() {
            self.world.moment(&format!("{here}: killed"));
        }
        self.travel().await;
    }

    fn clear(&self, uid: Uuid) -> std::io::Result<()> {
        if self.world.is_agent_alive(self.host, self.life) {
            self.world.lock().machines.ended.remove(&(self.host, uid));
        }
        Ok(())
    }
}

impl Held {
    /// The way to a process that can answer.
    async fn reach(&self) -> Result<(), GuestError> {
        self.bench.travel().await;
        if self.is_stopped() {
            self.bench.world.sleep(ANSWERS_WITHIN_MS).await;
            self.bench.lives().await;
            return Err(GuestError::Unclear("it did not answer in time".to_owned()));
        }
        Ok(())
    }

    fn is_stopped(&self) -> bool {
        self.bench.world.lock().machines.qemus.get(&self.id).is_some_and(Qemu::is_stopped)
    }

    fn is_frozen(&self) -> bool {
        self.bench.world.lock().machines.qemus.get(&self.id).is_some_and(|qemu| qemu.is_frozen)
    }

    /// Does something to the process, if it is still there.
    pub(crate) async fn tell<T>(
        &self,
        what: impl FnOnce(&mut Qemu) -> Result<T, GuestError>,
    ) -> Result<T, GuestError> {
        self.reach().await?;
        let result = self.bench.world.on_machines(|machines| match machines.qemus.get_mut(&self.id) {
            Some(qemu) => what(qemu),
            None => Err(GuestError::Unclear("the connection was lost".to_owned())),
        });
        self.bench.travel().await;
        result
    }

    pub(crate) fn moment(&self, what: &str) {
        let here = self.bench.here();
        self.bench.world.moment(&format!("{here}: {what}"));
    }
}

impl Guest for Held {
    async fn view(&self) -> Result<View, GuestError> {
        if self.is_frozen() {
            self.bench.travel().await;
            return Ok(View { run: Run::Paused(Pause::Migrated), transfer: Transfer::Held });
        }
        let life = self.bench.life;
        self.tell(|qemu| Ok(View { run: qemu.run.clone(), transfer: carrier::carried(qemu, life) })).await
    }

    async fn cont(&self) -> Result<(), GuestError> {
        self.reach().await?;
        self.bench.world.check_cont(self.bench.host, self.id);
        let outcome = self.bench.world.on_machines(|machines| {
            let Some(qemu) = machines.qemus.get_mut(&self.id) else {
                return Err(GuestError::Unclear("the connection was lost".to_owned()));
            };
            match (&qemu.run, &qemu.transfer) {
                (Run::Running, _) => return Ok(false),
                (Run::Paused(Pause::Migrated), Transfer::Going) => {
                    return Err(GuestError::Refused("the migration is not finalized yet".to_owned()));
                }
                (Run::Incoming, _) if qemu.memory.is_none() => {
                    qemu.runs_when_loaded = true;
                    return Ok(false);
                }
                _ => {}
            }
            if machines.other_writer(self.id).is_some() {
                return Err(GuestError::Refused("failed to get the write lock".to_owned()));
            }
            machines.run(self.id);
            Ok(true)
        });
        if outcome.as_ref().is_ok_and(|changed| *changed) {
            self.moment("runs");
        }
        self.bench.travel().await;
        outcome.map(|_| ())
    }

    async fn stop(&self) -> Result<(), GuestError> {
        self.tell(|qemu| {
            if qemu.run == Run::Running {
                qemu.run = Run::Paused(Pause::Asked);
            }
            Ok(())
        })
        .await
    }

    async fn press_power_button(&self) -> Result<(), GuestError> {
        let is_running = self.tell(|qemu| Ok(qemu.run == Run::Running)).await?;
        if is_running {
            let (world, id) = (self.bench.world.clone(), self.id);
            tokio::spawn(async move {
                world.pause(100, 3000).await;
                let is_running = |qemu: &Qemu| qemu.run == Run::Running;
                world.on_machines(|machines| {
                    if machines.qemus.get(&id).is_some_and(is_running) {
                        machines.end(id, End::ShutDown);
                    }
                });
            });
        }
        Ok(())
    }

    async fn reset(&self) -> Result<(), GuestError> {
        self.reach().await?;
        self.bench.world.on_machines(|machines| machines.reset(self.id));
        self.moment("reset");
        self.bench.travel().await;
        Ok(())
    }

    async fn listen(
        &self,
        at: IpAddr,
        carry: Option<&Carry>,
        laying: Option<Laying>,
    ) -> Result<Listening, GuestError> {
        let straight = carry.is_some_and(|carry| carry.straight);
        if let Some(carry) = carry.filter(|_| !straight) {
            return Ok(Listening { at: self.receive(at, carry.session).await?, line: None });
        }
        let port = 40_000 + u16::try_from(self.id % 20_000).unwrap_or(0);
        // As good as drawn: no two processes have one.
        let mut key = [0; 32];
        key[..8].copy_from_slice(&self.id.to_be_bytes());
        let listening = self
            .tell(|qemu| {
                if qemu.listens.is_none() {
                    qemu.line = direct::line(laying, straight, port, LineKey::new(key));
                }
                let at = *qemu.listens.get_or_insert(SocketAddr::new(at, port));
                Ok(Listening { at, line: qemu.line.clone() })
            })
            .await?;
        self.moment("listens");
        Ok(listening)
    }

    async fn activate_disks(&self) -> Result<(), GuestError> {
        self.tell(|qemu| {
            if qemu.memory.is_none() {
                return Err(GuestError::Refused("nothing has arrived".to_owned()));
            }
            qemu.has_disk = true;
            Ok(())
        })
        .await
    }

    async fn announce(&self) -> Result<(), GuestError> {
        self.tell(|_| Ok(())).await
    }

    async fn send(&self, outgoing: &Outgoing, _limits: Limits) -> Result<(), GuestError> {
        let to = outgoing.to;
        if let Some(carry) = outgoing.carry.as_ref().filter(|_| outgoing.is_carried()) {
            return self.depart(to, carry.session, outgoing.seed).await;
        }
        if outgoing.straight_disks().is_some() {
            return self.part(to, outgoing.line.clone()).await;
        }
        self.tell(|qemu| {
            if qemu.transfer == Transfer::Going {
                return Err(GuestError::Refused("a migration is already under way".to_owned()));
            }
            (qemu.way, qemu.direct) = (None, None);
            qemu.transfer = Transfer::Going;
            qemu.wants_cancel = false;
            Ok(())
        })
        .await?;
        self.moment("sends");
        tokio::spawn(transfer::run(self.bench.world.clone(), self.id, to, outgoing.line.clone(), None));
        Ok(())
    }

    async fn freeze(&self) -> Result<(), GuestError> {
        self.halt().await
    }

    async fn grant(&self) -> Result<(), GuestError> {
        self.let_end_go().await
    }

    async fn take_back(&self) -> Result<(), GuestError> {
        self.reclaim().await;
        self.cont().await
    }

    async fn cancel(&self) -> Result<(), GuestError> {
        if let Some(answer) = self.call_off().await {
            return answer;
        }
        self.tell(|qemu| {
            qemu.wants_cancel = true;
            Ok(())
        })
        .await?;
        self.moment("asked to cancel");
        Ok(())
    }

    async fn limit(&self, _limits: Limits) -> Result<(), GuestError> {
        Ok(())
    }

    async fn figures(&self) -> Result<Figures, GuestError> {
        self.tell(|qemu| {
            let downtime = (qemu.transfer == Transfer::Completed).then_some(Span::from_millis(20));
            let progress = Progress { sent: Bytes(qemu.sent), ..Progress::default() };
            Ok(Figures { progress, downtime, round_trip: None })
        })
        .await
    }

    async fn resize_disk(&self, _index: usize, _size: Bytes) -> Result<(), GuestError> {
        self.tell(|_| Ok(())).await
    }

    async fn ping(&self, _within: Duration) -> Result<(), GuestError> {
        self.bench.lives().await;
        let state = self.bench.world.lock();
        let qemu = state.machines.qemus.get(&self.id).filter(|qemu| qemu.runs() && !qemu.is_mute);
        qemu.map(|_| ()).ok_or_else(|| GuestError::Unclear("it did not answer in time".to_owned()))
    }

    async fn activity(&self) -> Result<u64, GuestError> {
        self.bench.lives().await;
        let state = self.bench.world.lock();
        let written = state.machines.qemus.get(&self.id).and_then(|qemu| qemu.memory);
        written.ok_or_else(|| GuestError::Unclear("the connection was lost".to_owned()))
    }

    async fn load(&self, _window: Option<Duration>) -> Result<LoadSample, GuestError> {
        self.tell(|_| Ok(LoadSample::default())).await
    }
}
