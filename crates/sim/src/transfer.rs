//! How guest memory travels from one fake QEMU to another, with everything that QEMU does by itself.
//!
//! ```text
//! set-up ─► rounds ─► the source stands still ─► the target has everything ─► `completed` on both, in either order
//!    └─────────┴──────────────┴─ any failure: the source runs again if it ran before; the target ends
//! ```
//!
//! With disks that go straight the source stands still until its agent has ended their mirrors (`direct`).

use std::net::SocketAddr;

use sterna_agent::hypervisor::{Happened, Pause, Run, Transfer};
use sterna_model::line::Line;

use crate::direct;
use crate::mutation::Mutation;
use crate::qemu::End;
use crate::world::World;

struct Moving {
    world: World,
    source: u64,
    target: u64,
    source_host: usize,
    target_host: usize,
    did_run: bool,
    /// The life of the agent that ends the mirrors of its disks; absent: no disk goes along.
    mirrored_by: Option<u64>,
}

/// For how long a guest stands still while the mirrors cannot end.
const MIRRORS_END_WITHIN_MS: u64 = 5000;

/// Why a transfer ends early.
enum Broken {
    Failed(&'static str),
    Cancelled,
    /// Nobody is left who could be told.
    SourceGone,
}

pub async fn run(world: World, source: u64, to: SocketAddr, line: Option<Line>, mirrored_by: Option<u64>) {
    world.pause(1, 10).await;
    let ends = {
        let state = world.lock();
        let machines = &state.machines;
        let target = machines.listener(to).filter(|id| {
            // Whoever calls in another way is sent away, and the next one is waited for.
            machines.qemus.get(id).is_some_and(|qemu| qemu.transfer == Transfer::None && qemu.line == line)
        });
        let host_of = |id: u64| machines.qemus.get(&id).map(|qemu| qemu.host);
        target.and_then(|target| Some((target, host_of(source)?, host_of(target)?)))
    };
    let Some((target, source_host, target_host)) = ends else {
        let why = "connection refused".to_owned();
        fail(&world, source, Transfer::Failed { why: why.clone() }, false);
        return direct::end(&world, source, direct::Stage::Failed(why));
    };
    let mut moving = Moving { world, source, target, source_host, target_host, did_run: false, mirrored_by };
    if let Err(broken) = moving.copy().await {
        moving.undo(&broken);
        return;
    }
    moving.complete().await;
}

/// The source is itself again.
pub fn fail(world: &World, source: u64, transfer: Transfer, resumes: bool) {
    world.on_machines(|machines| {
        let Some(qemu) = machines.qemus.get_mut(&source) else { return };
        qemu.transfer = transfer;
        qemu.tell(Happened::Changed);
        // A target that holds the image locks already keeps the source from its disk.
        if resumes && machines.other_writer(source).is_none() {
            machines.run(source);
        }
    });
}

impl Moving {
    fn say(&self, host: usize, what: &str) {
        let name = self.world.lock().hosts[host].name.clone();
        self.world.moment(&format!("{name}: {what}"));
    }

    /// What ended the transfer meanwhile, if anything.
    fn look(&self) -> Result<(), Broken> {
        let state = self.world.lock();
        let Some(source) = state.machines.qemus.get(&self.source) else { return Err(Broken::SourceGone) };
        if !state.machines.qemus.contains_key(&self.target) {
            return Err(Broken::Failed("the other end closed the connection"));
        }
        if source.wants_cancel { Err(Broken::Cancelled) } else { Ok(()) }
    }

    fn is_cut(&self) -> bool {
        let state = self.world.lock();
        let stops = |id: u64| state.machines.qemus.get(&id).is_some_and(|qemu| qemu.is_iced);
        let ends = state.is_cut_off(self.source_host) || state.is_cut_off(self.target_host);
        ends || stops(self.source) || stops(self.target)
    }

    /// Waits, and longer while the line between the hosts is cut: TCP keeps what it has.
    async fn step(&self, low: u64, high: u64) -> Result<(), Broken> {
        let mut left = self.world.draw(low, high).max(1);
        loop {
            let part = left.min(20);
            self.world.sleep(part).await;
            self.look()?;
            if !self.is_cut() {
                left -= part;
            }
            if left == 0 {
                return Ok(());
            }
        }
    }

    async fn copy(&mut self) -> Result<(), Broken> {
        self.world.on_machines(|machines| {
            if let Some(qemu) = machines.qemus.get_mut(&self.target) {
                qemu.transfer = Transfer::Going;
            }
            if let Some(qemu) = machines.qemus.get_mut(&self.source) {
                qemu.transfer = Transfer::Going;
            }
        });
        self.say(self.source_host, "copies");
        let rounds = self.world.draw(1, 6);
        for _ in 0..rounds {
            self.step(5, 150).await?;
            self.world.on_machines(|machines| {
                if let Some(qemu) = machines.qemus.get_mut(&self.source) {
                    qemu.sent += 1 << 20;
                }
            });
        }
        if self.mirrored_by.is_some() && self.world.mutates(Mutation::GoesOnBeforeMirrorsEnd) {
            self.mirrored_by = None;
            self.mirror();
            self.step(5, 150).await?;
            direct::end(&self.world, self.source, direct::Stage::Over);
        }
        self.did_run = self.world.on_machines(|machines| {
            let did_run = machines.qemus.get(&self.source).is_some_and(|qemu| qemu.run == Run::Running);
            machines.pause(self.source, Pause::Migrated);
            did_run
        });
        self.say(self.source_host, "stands still");
        self.look()?;
        if let Some(life) = self.mirrored_by {
            self.end_mirrors(life).await?;
        }
        self.step(1, 30).await
    }

    /// By the agent, which QEMU waits for as long as it takes.
    async fn end_mirrors(&self, life: u64) -> Result<(), Broken> {
        let mut waited = 0;
        loop {
            self.world.sleep(5).await;
            self.look()?;
            let is_there = self.world.is_agent_alive(self.source_host, life);
            if is_there && !self.is_cut() {
                break;
            }
            waited += if is_there { 5 } else { 0 };
            if waited >= MIRRORS_END_WITHIN_MS {
                return Err(Broken::Failed("the mirrors did not end"));
            }
        }
        self.mirror();
        self.say(self.source_host, "mirrors ended");
        direct::end(&self.world, self.source, direct::Stage::Over);
        Ok(())
    }

    fn mirror(&self) {
        self.world.on_machines(|machines| {
            let uid = machines.qemus.get(&self.source).map(|source| source.uid);
            if let Some(uid) = uid {
                machines.disks.mirror(uid, self.source_host, self.target_host);
            }
        });
    }

    fn undo(&self, broken: &Broken) {
        let transfer = match broken {
            Broken::Failed(why) => Transfer::Failed { why: (*why).to_owned() },
            Broken::Cancelled => Transfer::Cancelled,
            Broken::SourceGone => Transfer::None,
        };
        let why = match &transfer {
            Transfer::Failed { why } => why.clone(),
            _ => "cancelled".to_owned(),
        };
        fail(&self.world, self.source, transfer, self.did_run);
        direct::fail(&self.world, self.source, why);
        self.world.on_machines(|machines| {
            machines.end(self.target, End::LoadFailed);
        });
        self.say(self.source_host, "transfer ended early");
    }

    /// The target has everything: from here on each side completes by itself.
    async fn complete(&self) {
        let early = self.world.lock().config.takes_disks_early;
        self.world.on_machines(|machines| {
            let memory = machines.qemus.get_mut(&self.source).and_then(|source| {
                source.has_disk = false;
                source.memory
            });
            if let Some(target) = machines.qemus.get_mut(&self.target) {
                target.memory = memory;
                target.has_disk = early;
                target.run = Run::Paused(Pause::Asked);
            }
        });
        self.say(self.target_host, "has everything");
        let (first, second) = (self.world.draw(0, 4), self.world.draw(0, 4));
        let source_first = first <= second;
        self.world.sleep(first.min(second)).await;
        if source_first {
            self.complete_source().await
        } else {
            self.complete_target()
        }
        self.world.sleep(first.max(second) - first.min(second)).await;
        if source_first { self.complete_target() } else { self.complete_source().await }
    }

    /// The source waits for the target's last word, which may have been on its way when the target died.
    async fn complete_source(&self) {
        while self.is_cut() && self.look().is_ok() {
            self.world.sleep(20).await;
        }
        let word_is_lost = match self.look() {
            Ok(()) => None,
            Err(broken) => self.world.lock().random.chance(500).then_some(broken),
        };
        if let Some(broken) = word_is_lost {
            let transfer = match broken {
                Broken::Cancelled => Transfer::Cancelled,
                _ => Transfer::Failed { why: "no last word".to_owned() },
            };
            // Also a target that has everything goes when its source calls it off.
            fail(&self.world, self.source, transfer, self.did_run);
            self.say(self.source_host, "transfer ended early");
            return;
        }
        let is_killed = self.world.mutates(Mutation::SourceKilledAtCompletion);
        self.world.on_machines(|machines| {
            if let Some(qemu) = machines.qemus.get_mut(&self.source) {
                qemu.transfer = Transfer::Completed;
                qemu.tell(Happened::TransferCompleted);
            }
            if is_killed {
                machines.end(self.source, End::Killed);
            }
        });
        self.say(self.source_host, "completed");
    }

    fn complete_target(&self) {
        self.world.on_machines(|machines| {
            let Some(qemu) = machines.qemus.get_mut(&self.target) else { return };
            qemu.transfer = Transfer::Completed;
            qemu.tell(Happened::TransferCompleted);
            if qemu.runs_when_loaded {
                machines.run(self.target);
            }
        });
        self.say(self.target_host, "completed");
    }
}
