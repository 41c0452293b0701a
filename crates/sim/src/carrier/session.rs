//! One session, from the first page to the last.

use std::net::SocketAddr;

use sterna_agent::hypervisor::{Happened, Pause, Run, Transfer};
use uuid::Uuid;

use super::Stage;
use crate::hypervisor::Bench;
use crate::mutation::Mutation;
use crate::qemu::{End, Qemu};
use crate::site::host_at;
use crate::transfer::fail;
use crate::world::World;

/// A guest that stands still, with no line to the target, runs on at the source after this.
const PAUSE_PATIENCE_MS: u64 = 1500;
/// How often a session looks at what became of the two sides.
const LOOK_EVERY_MS: u64 = 10;

pub(super) struct Session {
    world: World,
    source: u64,
    host: usize,
    life: u64,
    to: SocketAddr,
    id: Uuid,
    did_run: bool,
    /// For so long there has been no line.
    down_ms: u64,
}

enum Line {
    Up { target: u64 },
    Down,
}

/// Why a session ends early.
enum Broken {
    SourceGone,
    AgentGone,
    TakenBack,
    Failed(&'static str),
    Cancelled,
}

impl Session {
    pub fn new(bench: &Bench, source: u64, (to, id): (SocketAddr, Uuid)) -> Self {
        let (world, host, life) = (bench.world.clone(), bench.host, bench.life);
        Self { world, source, host, life, to, id, did_run: false, down_ms: 0 }
    }

    pub async fn run(mut self) {
        if let Err(broken) = self.carry().await {
            self.end(&broken);
        }
    }

    /// Disks alone: the guest is not touched, and the other side sees the session end.
    pub async fn seed(mut self) {
        let copied = async {
            self.copy().await?;
            self.pass(1, 30, true).await
        };
        if let Err(broken) = copied.await {
            return self.end(&broken);
        }
        self.on_source(|source| {
            source.transfer = Transfer::None;
            if let Some(way) = &mut source.way {
                way.stage = Stage::Seeded;
            }
            source.tell(Happened::Changed);
        });
        self.say("has seeded");
    }

    async fn carry(&mut self) -> Result<(), Broken> {
        self.copy().await?;
        self.stand_still();
        // Memory may wait for the line, when all but the end lies ready; disks must be whole there.
        let is_local = self.world.lock().config.layout.is_local;
        self.pass(1, 30, is_local).await?;
        self.hold();
        while self.stage() != Some(Stage::Granted) {
            self.pass(LOOK_EVERY_MS, LOOK_EVERY_MS, false).await?;
        }
        self.pass(1, 20, true).await?;
        if let Line::Up { target } = self.look()? {
            tokio::spawn(load(self.world.clone(), self.source, target));
        }
        self.keep_socket().await
    }

    /// The end is there, and QEMU's socket stays open as long as this agent lives.
    async fn keep_socket(&self) -> Result<(), Broken> {
        loop {
            self.world.sleep(LOOK_EVERY_MS).await;
            match self.look() {
                Ok(_) => {}
                Err(Broken::AgentGone) => return Err(Broken::AgentGone),
                // Its copy was ended, or is the owner's again.
                Err(_) => return Ok(()),
            }
        }
    }

    async fn copy(&mut self) -> Result<(), Broken> {
        self.pass(1, 10, false).await?;
        self.on_source(|source| source.transfer = Transfer::Going);
        self.pass(1, 20, true).await?;
        self.reach_target();
        self.say("copies");
        for _ in 0..self.world.draw(1, 6) {
            self.pass(5, 150, true).await?;
            self.on_source(|source| source.sent += 1 << 20);
        }
        Ok(())
    }

    /// The first bytes are there.
    fn reach_target(&self) {
        let target = self.world.lock().target_of(self.id);
        self.world.on_machines(|machines| {
            let target = target.and_then(|target| machines.qemus.get_mut(&target));
            if let Some(target) = target {
                target.transfer = Transfer::Going;
                target.tell(Happened::Changed);
            }
        });
    }

    fn stand_still(&mut self) {
        self.did_run = self.world.on_machines(|machines| {
            let did_run = machines.qemus.get(&self.source).is_some_and(|qemu| qemu.run == Run::Running);
            machines.pause(self.source, Pause::Migrated);
            did_run
        });
        self.say("stands still");
    }

    /// All but the end was sent.
    fn hold(&self) {
        let target = self.world.lock().target_of(self.id);
        self.world.on_machines(|machines| {
            let ends = [Some(self.source), target].map(|id| machines.qemus.get(&id?));
            if let [Some(source), Some(target)] = ends {
                machines.disks.mirror(source.uid, source.host, target.host);
            }
        });
        self.on_source(|source| {
            source.has_disk = false;
            if let Some(way) = &mut source.way {
                way.stage = Stage::Held;
            }
            source.tell(Happened::TransferHeld);
        });
        self.say("holds the end");
        if self.world.mutates(Mutation::LoadedBeforeTheEnd) {
            self.complete_too_early();
        }
    }

    fn stage(&self) -> Option<Stage> {
        let state = self.world.lock();
        let way = state.machines.qemus.get(&self.source)?.way.as_ref()?;
        Some(way.stage.clone())
    }

    fn on_source(&self, change: impl FnOnce(&mut Qemu)) {
        self.world.on_machines(|machines| machines.qemus.get_mut(&self.source).map(change));
    }

    fn say(&self, what: &str) {
        let name = self.world.lock().hosts[self.host].name.clone();
        self.world.moment(&format!("{name}: {what}"));
    }

    /// How the line is, or what ended the session meanwhile.
    fn look(&self) -> Result<Line, Broken> {
        let state = self.world.lock();
        let source = state.machines.qemus.get(&self.source).ok_or(Broken::SourceGone)?;
        if !(state.hosts[self.host].agent_is_up && state.hosts[self.host].life == self.life) {
            return Err(Broken::AgentGone);
        }
        let way = source.way.as_ref().filter(|way| way.session == self.id).ok_or(Broken::TakenBack)?;
        let is_granted = way.stage == Stage::Granted;
        if source.wants_cancel && !is_granted {
            return Err(Broken::Cancelled);
        }
        let there = host_at(self.to.ip()).filter(|there| state.is_listening(*there, self.to));
        let Some(there) = there else { return Ok(Line::Down) };
        if state.is_cut_off(self.host) || state.is_cut_off(there) {
            return Ok(Line::Down);
        }
        match state.target_of(self.id) {
            Some(target) => Ok(Line::Up { target }),
            // What the target did with the end, nobody here knows.
            None if is_granted => Ok(Line::Down),
            None => Err(Broken::Failed("the other side expects no such session")),
        }
    }

    /// Spends a drawn time; what needs the line waits for it.
    async fn pass(&mut self, low: u64, high: u64, needs_line: bool) -> Result<(), Broken> {
        let mut left = self.world.draw(low, high).max(1);
        while left > 0 {
            let part = left.min(LOOK_EVERY_MS);
            self.world.sleep(part).await;
            let is_down = matches!(self.look()?, Line::Down);
            self.down_ms = if is_down { self.down_ms + part } else { 0 };
            self.mind_the_line()?;
            if !(is_down && needs_line) {
                left -= part;
            }
        }
        Ok(())
    }

    /// A guest never stands still for a line that is gone; while it runs, the line may be gone for as long as it likes. A
    /// frozen QEMU does not say that it stands still.
    fn mind_the_line(&self) -> Result<(), Broken> {
        let state = self.world.lock();
        let source = state.machines.qemus.get(&self.source).ok_or(Broken::SourceGone)?;
        let is_granted = source.way.as_ref().is_some_and(|way| way.stage == Stage::Granted);
        let stands = source.run != Run::Running && !source.is_frozen && !is_granted;
        if stands && self.down_ms >= PAUSE_PATIENCE_MS {
            return Err(Broken::Failed("no line to the target"));
        }
        Ok(())
    }

    fn end(&self, broken: &Broken) {
        let why = match broken {
            Broken::TakenBack => return,
            Broken::SourceGone => "qemu closed its socket",
            Broken::AgentGone => "the mover closed its socket",
            Broken::Failed(why) => why,
            Broken::Cancelled => "cancelled",
        };
        if !matches!(broken, Broken::AgentGone) {
            self.tell_target();
        }
        let is_frozen = {
            let mut state = self.world.lock();
            let source = state.machines.qemus.get_mut(&self.source);
            if let Some(way) = source.and_then(|source| source.way.as_mut()) {
                way.stage = Stage::Failed(why.to_owned());
            }
            state.machines.qemus.get(&self.source).is_some_and(|source| source.is_frozen)
        };
        // What is frozen sees that its socket is closed when it is continued.
        if !is_frozen {
            fail(&self.world, self.source, Transfer::Failed { why: why.to_owned() }, self.did_run);
        }
        self.say("stream ended early");
    }

    /// The last message, if there is a way for it.
    fn tell_target(&self) {
        let target = {
            let state = self.world.lock();
            let there = host_at(self.to.ip()).filter(|there| state.is_listening(*there, self.to));
            let is_whole = |there: usize| !state.is_cut_off(self.host) && !state.is_cut_off(there);
            there.filter(|there| is_whole(*there)).and_then(|_| state.target_of(self.id))
        };
        self.world.on_machines(|machines| {
            let is_waiting = |target: &u64| {
                let arrival = machines.qemus.get(target).and_then(|qemu| qemu.arrival.as_ref());
                arrival.is_some_and(|arrival| !arrival.has_end)
            };
            if let Some(target) = target.filter(is_waiting) {
                machines.end(target, End::LoadFailed);
            }
        });
    }

    /// A defect on purpose: the target takes all but the end for everything.
    fn complete_too_early(&self) {
        let target = self.world.lock().target_of(self.id);
        self.world.on_machines(|machines| {
            let memory = machines.qemus.get(&self.source).and_then(|source| source.memory);
            let target = target.and_then(|target| machines.qemus.get_mut(&target));
            if let Some(target) = target {
                target.memory = memory.map(|memory| memory.saturating_sub(1));
                target.run = Run::Paused(Pause::Asked);
                target.transfer = Transfer::Completed;
                target.tell(Happened::TransferCompleted);
            }
        });
    }
}

/// The target has the end: what becomes of the source changes nothing any more.
async fn load(world: World, source: u64, target: u64) {
    let taken = world.on_machines(|machines| {
        let memory = machines.qemus.get(&source).and_then(|qemu| qemu.memory);
        let target = machines.qemus.get_mut(&target)?;
        target.arrival.as_mut()?.has_end = true;
        Some((target.host, memory))
    });
    let Some((host, memory)) = taken else { return };
    let name = world.lock().hosts[host].name.clone();
    world.moment(&format!("{name}: has the end"));
    world.pause(2, 60).await;
    let fails = {
        let mut state = world.lock();
        let rate = if state.is_calm { 0 } else { state.config.loads_fail };
        state.random.chance(rate)
    };
    let is_there = world.on_machines(|machines| {
        if fails {
            machines.end(target, End::LoadFailed);
        }
        let Some(qemu) = machines.qemus.get_mut(&target) else { return false };
        qemu.memory = memory;
        qemu.run = Run::Paused(Pause::Asked);
        qemu.transfer = Transfer::Completed;
        qemu.tell(Happened::TransferCompleted);
        if qemu.runs_when_loaded {
            machines.run(target);
        }
        true
    });
    world.moment(&format!("{name}: {}", if is_there { "completed" } else { "could not load" }));
}
