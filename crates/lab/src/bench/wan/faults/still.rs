//! A guest that stands still goes to the other datacentre over a line that is cut meanwhile. Nothing writes to its memory,
//! so that all of it can be saved before and after: no page may differ, whether it arrived or stayed.
//!
//! It stands still because somebody paused its VM: a guest that is paused stays so through a move.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::RngExt;
use rand::rngs::StdRng;
use rustix::process::Signal;
use sterna_client::migration;
use sterna_client::vm::Vm;
use sterna_model::meta::Name;
use sterna_model::migration::Phase;
use tokio::time::sleep;

use super::{CUT_S, hosts, order};
use crate::bench::memory::{SIDES, Saved};
use crate::bench::wan::rig::Rig;
use crate::bench::world::{Process, World};
use crate::place::Host;
use crate::user;

/// One that came back is compared as well, but does not count as one that arrived.
const TRIES: usize = 4;
const ENDS: Duration = Duration::from_secs(120);
/// An agent whose connection to QEMU was taken over makes another.
const RECONNECTS: Duration = Duration::from_secs(1);

/// What came of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    pub arrived: u64,
    /// Where the cut was too much for the move.
    pub returned: u64,
    /// Pages that differed, of all of them.
    pub pages: u64,
}

/// Until one arrived.
pub async fn compare(
    rig: &Rig<'_>,
    name: &Name,
    (random, length): (&mut StdRng, Duration),
    seen: &mut Seen,
) -> Result<()> {
    for _ in 0..TRIES {
        let vm = rig.user().running(name).await?;
        let vms = rig.user().client.vms();
        rig.user().done(&vms.pause(name).await?).await.context("pause")?;
        let moment = length.mul_f64(random.random_range(0.0..1.0));
        let cut = Duration::from_secs_f64(random.random_range(CUT_S));
        let moved = once(rig, &vm, (moment, cut)).await;
        rig.connect(true)?;
        rig.user().done(&vms.resume(name).await?).await.context("resume")?;
        let (saved, has_arrived) = moved?;
        let pages = tokio::task::spawn_blocking(move || saved.differing()).await??;
        let ended = if has_arrived { "arrived" } else { "stayed" };
        println!("  stands still, cut for {:.1} s: {ended}, {pages} pages differ", cut.as_secs_f64());
        seen.pages += pages;
        if has_arrived {
            seen.arrived += 1;
            return answers(rig, name).await;
        }
        seen.returned += 1;
    }
    anyhow::bail!("no guest that stands still arrives")
}

/// It goes on where it stood.
async fn answers(rig: &Rig<'_>, name: &Name) -> Result<()> {
    let vm = rig.user().running(name).await?;
    let (_, _, watcher) = hosts(rig.world, &vm)?;
    rig.world.guest_answers(watcher, user::address(&vm)?).await.context("after it stood still")
}

/// Whether it arrived, and its memory before and after.
async fn once(rig: &Rig<'_>, vm: &Vm, (moment, cut): (Duration, Duration)) -> Result<(Saved, bool)> {
    let (world, migrations) = (rig.world, rig.user().client.migrations());
    let (source, target, _) = hosts(world, vm)?;
    let size = vm.decision.as_ref().context("the VM has no hardware")?.hardware.memory.as_u64();
    let saved = Saved::new(size)?;
    save(world, (source, vm), &saved, SIDES[0]).await?;
    let migration = order(world, vm.name(), target).await?;
    sleep(moment).await;
    rig.connect(false)?;
    sleep(cut).await;
    rig.connect(true)?;
    let until = Instant::now() + ENDS;
    let ended = loop {
        let now = migrations.get(&migration).await?;
        if migration::has_ended(&now) {
            break now;
        }
        ensure!(Instant::now() < until, "the move does not end");
        sleep(Duration::from_millis(50)).await;
    };
    let now = rig.user().client.vms().get(vm.name()).await?;
    let at = world.host_of(user::owner(&now)?)?;
    save(world, (at, &now), &saved, SIDES[1]).await?;
    Ok((saved, user::phase(&ended) == Some(&Phase::Succeeded)))
}

/// The agent stands still meanwhile: QEMU's monitor has one listener.
async fn save(world: &World, (host, vm): (Host, &Vm), saved: &Saved, side: &str) -> Result<()> {
    let agent = world.find(Process::Agent(host))?;
    agent.signal(Signal::STOP);
    let done = async {
        let qmp = world.qmp(host, vm).await?;
        ensure!(!qmp.query_status().await?.is_running, "the guest runs on host {}", host.name());
        saved.save(side, &qmp).await
    };
    let done = done.await;
    agent.signal(Signal::CONT);
    sleep(RECONNECTS).await;
    done
}
