//! Disks that go straight from one QEMU to the other, as a fake: what `agent::carrier::direct` does with real ones.
//!
//! ```text
//! mirrors fill ─► memory (`transfer`) ─► the source stands still ─► mirrors end ─► QEMU goes on by itself
//!      └────────────────┴───────────────────────┴─ any failure: the guest stays
//! ```
//!
//! The task lives in the life of the source's agent. Without it no mirror ends, so that the source stands still until the
//! next agent finds it and calls it off.

use std::net::SocketAddr;

use sterna_agent::hypervisor::{GuestError, Happened, Transfer};
use sterna_model::line::{DiskLine, Laying, Line, LineKey};

use crate::hypervisor::{Bench, Held};
use crate::qemu::Qemu;
use crate::transfer;
use crate::world::World;

/// Without a line for so long the mirrors are given up; with the guest standing still, sooner.
const STALL_MS: u64 = 30_000;
const LOOK_EVERY_MS: u64 = 10;

/// A source's side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Direct {
    /// Of the agent that is at it.
    pub life: u64,
    pub stage: Stage,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    Going,
    /// QEMU's own word counts.
    Over,
    Failed(String),
}

/// What the agent's part says of a transfer comes first while it is at it.
#[must_use]
pub fn told(qemu: &Qemu, life: u64) -> Transfer {
    match qemu.direct.as_ref().filter(|direct| direct.life == life).map(|direct| &direct.stage) {
        Some(Stage::Going) => Transfer::Going,
        Some(Stage::Failed(why)) => Transfer::Failed { why: why.clone() },
        Some(Stage::Over) | None => qemu.transfer.clone(),
    }
}

/// What a target that listens at this port has laid; `word` is its alone.
#[must_use]
pub fn line(laying: Option<Laying>, takes_disks: bool, port: u16, word: LineKey) -> Option<Line> {
    let is_encrypted = laying.is_some_and(|laying| laying.is_encrypted);
    (laying.is_some() || takes_disks).then(|| Line {
        key: is_encrypted.then(|| word.clone()),
        channels: laying.map_or(0, |laying| laying.channels),
        disks: takes_disks.then(|| DiskLine { port, word: word.clone(), blank: Vec::new() }),
    })
}

impl Held {
    pub(crate) async fn part(&self, to: SocketAddr, line: Option<Line>) -> Result<(), GuestError> {
        let life = self.bench.life;
        self.tell(|qemu| {
            if qemu.transfer == Transfer::Going {
                return Err(GuestError::Refused("a migration is already under way".to_owned()));
            }
            qemu.way = None;
            qemu.direct = Some(Direct { life, stage: Stage::Going });
            qemu.wants_cancel = false;
            Ok(())
        })
        .await?;
        self.moment("sends");
        tokio::spawn(run(self.bench.clone(), self.id, to, line));
        Ok(())
    }

    /// What an earlier agent began is called off by whoever finds it.
    pub(crate) fn end_orphan(&self) {
        let life = self.bench.life;
        let is_orphan = self.bench.world.on_machines(|machines| {
            let qemu = machines.qemus.get_mut(&self.id)?;
            let direct = qemu.direct.take_if(|direct| direct.life != life)?;
            qemu.wants_cancel |= direct.stage == Stage::Going && qemu.transfer == Transfer::Going;
            (direct.stage == Stage::Going).then_some(())
        });
        if is_orphan.is_some() {
            self.moment("called off what nobody is at");
        }
    }
}

/// Why the disks do not get there.
enum Broken {
    /// Nobody is there who would notice.
    Left,
    Failed(&'static str),
}

async fn run(bench: Bench, source: u64, to: SocketAddr, line: Option<Line>) {
    match fill(&bench, source, to, line.as_ref()).await {
        Ok(()) => transfer::run(bench.world.clone(), source, to, line, Some(bench.life)).await,
        Err(Broken::Left) => {}
        Err(Broken::Failed(why)) => {
            end(&bench.world, source, Stage::Failed(why.to_owned()));
            bench.world.moment("mirrors ended early");
        }
    }
}

/// Until the target's disk is like the source's, but for what the guest writes.
async fn fill(bench: &Bench, source: u64, to: SocketAddr, line: Option<&Line>) -> Result<(), Broken> {
    let (world, mut down) = (&bench.world, 0);
    let mut left = world.draw(20, 600);
    while left > 0 {
        world.sleep(LOOK_EVERY_MS).await;
        let is_cut = look(bench, source, to, line)?;
        down = if is_cut { down + LOOK_EVERY_MS } else { 0 };
        if down >= STALL_MS {
            return Err(Broken::Failed("the target's disk took nothing"));
        }
        if !is_cut {
            left = left.saturating_sub(LOOK_EVERY_MS);
            world.on_machines(|machines| {
                if let Some(qemu) = machines.qemus.get_mut(&source) {
                    qemu.sent += 1 << 16;
                }
            });
        }
    }
    let name = world.lock().hosts[bench.host].name.clone();
    world.moment(&format!("{name}: disks are alike"));
    Ok(())
}

/// Whether the line is cut, or why it is over.
fn look(bench: &Bench, source: u64, to: SocketAddr, line: Option<&Line>) -> Result<bool, Broken> {
    let is_alive = bench.world.is_agent_alive(bench.host, bench.life);
    let state = bench.world.lock();
    let qemu = state.machines.qemus.get(&source).filter(|_| is_alive).ok_or(Broken::Left)?;
    if qemu.wants_cancel {
        return Err(Broken::Failed("cancelled"));
    }
    let target = state.machines.listener(to).and_then(|id| state.machines.qemus.get(&id));
    let target = target.filter(|target| target.line.as_ref() == line);
    let target = target.ok_or(Broken::Failed("the other end closed the connection"))?;
    Ok(state.is_cut_off(bench.host) || state.is_cut_off(target.host))
}

/// The transfer has failed while the agent was at it.
pub fn fail(world: &World, source: u64, why: String) {
    let is_at_it = world.on_machines(|machines| {
        let direct = machines.qemus.get(&source).and_then(|qemu| qemu.direct.as_ref());
        direct.is_some_and(|direct| direct.stage == Stage::Going)
    });
    if is_at_it {
        end(world, source, Stage::Failed(why));
    }
}

/// The agent's part is over.
pub fn end(world: &World, source: u64, stage: Stage) {
    world.on_machines(|machines| {
        if let Some(qemu) = machines.qemus.get_mut(&source)
            && let Some(direct) = &mut qemu.direct
        {
            direct.stage = stage;
            qemu.tell(Happened::Changed);
        }
    });
}
