//! `sterna bench migration`: moves by Sterna and by hand, the same guest, the same line, alternating.
//!
//! Both are timed from the decision to move until the target runs and the source is gone, the start of the target's
//! process included; Sterna's from the order at the API to the end of its operation there. The gap is the longest
//! silence of a UDP echo every 5 ms, asked from the same host throughout.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use sterna_base::units::{Bytes, Span};
use sterna_client::vm::{Move, Vm};
use sterna_model::meta::Name;
use sterna_qemu::qmp::migration::Status;

use super::memory::{SIDES, Saved};
use super::plain::{self, Hand, Machine, Place, Style};
use super::table::{Bar, Table, median, percentile};
use super::world::{Process, World};
use crate::place::Host;
use crate::user;

/// How much of it runs.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Alternating pairs of the loaded guest.
    pub pairs: usize,
    pub idle_pairs: usize,
    /// Moves back and forth under HTTP load.
    pub moves: usize,
    /// How many of them compare the memory of both sides.
    pub compared: usize,
}

impl Size {
    pub const WHOLE: Size = Size { pairs: 40, idle_pairs: 10, moves: 100, compared: 10 };
    pub const QUICK: Size = Size { pairs: 6, idle_pairs: 4, moves: 10, compared: 3 };
}

const MEMORY: Bytes = Bytes::mib(512);
const DOWNTIME: Span = Span::from_millis(300);
/// The loaded guest: sparse writes all over half of its memory, and a CPU that is a third busy.
pub const LOAD: [&str; 2] = ["/dirty?pages_per_s=2000&mib=256", "/cpu?percent=30"];
const REST: [&str; 2] = ["/dirty?pages_per_s=0&mib=256", "/cpu?percent=0"];
/// After the echo is back, before the next measurement: under emulation a guest that has just moved is slow until its
/// code has been translated again. An even number of pairs lets both sides go first equally often.
const SETTLE: Duration = Duration::from_secs(1);

/// A guest first fills its working set, with a whole CPU: what is measured is the load after it.
const WORK_IN: Duration = Duration::from_secs(3);

/// One move, whoever made it. Milliseconds and bytes.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    pub total: f64,
    pub downtime: f64,
    pub gap: f64,
    pub bytes: f64,
}

/// What can be measured alone: pairs beside moves by hand, and many moves of a guest that serves.
pub const ROWS: [&str; 2] = ["pairs", "moves"];

pub async fn run(world: &World, size: Size, row: Option<&str>) -> Result<Table> {
    let mut table = Table::default();
    let mut pair = Pair::set_up(world, Style::Plain).await?;
    table.note(format!(
        "guest {} KiB under {}, {}; hosts {} and {}",
        pair.machine.memory_kib,
        pair.accel,
        pair.machine.machine,
        pair.places[0].namespace,
        pair.places[1].namespace
    ));
    table.note("baseline: QEMU by hand, as described in crates/lab/src/bench/plain.rs");
    if row != Some("moves") {
        let idle = pair.alternate("idle", size.idle_pairs, &REST).await?;
        let loaded = pair.alternate("loaded", size.pairs, &LOAD).await?;
        compare(&mut table, &idle, &loaded);
    }
    pair.end().await?;
    if row != Some("pairs")
        && let Err(error) = back_and_forth(world, &mut table, &pair.vm, size).await
    {
        // What was measured before took long.
        table.note(format!("row moves failed: {error:#}"));
        table.failed("moves");
    }
    Ok(table)
}

/// The VM that Sterna moves and its twin that is moved by hand.
pub struct Pair<'a> {
    world: &'a World,
    pub vm: Vm,
    twin: Vm,
    machine: Machine,
    accel: String,
    places: [Place; 2],
    hand: Option<Hand>,
    style: Style,
    /// Where the client is.
    from: Host,
}

impl<'a> Pair<'a> {
    /// `style` is that of the twin's moves.
    pub async fn set_up(world: &'a World, style: Style) -> Result<Self> {
        let user = &world.user;
        let image = Name::new("tiny")?;
        user.ensure_image(&image, &world.image).await?;
        let vm = user.ensure_vm(&Name::new("moved")?, &image, MEMORY).await?;
        let twin = user.ensure_vm(&Name::new("by-hand")?, &image, MEMORY).await?;
        let stopped = user.client.vms().stop(twin.name(), true).await?;
        user.done(&stopped).await?;
        let from = world.host_of(user::owner(&twin)?)?;
        let other = world
            .lab
            .hosts()
            .find(|host| host.site == from.site && *host != from)
            .context("no second host")?;
        let (machine, places) =
            plain::twin(world, &twin, &world.lab.shared(from.site), [from, other]).await?;
        let hardware = &twin.decision.as_ref().context("the twin has no hardware")?.hardware;
        let accel = format!("{:?}", hardware.accel).to_uppercase();
        let hand = Hand::boot(machine.clone(), places.clone()).await?;
        world.guest_answers(from, user::address(&twin)?).await?;
        world.guest_answers(from, user::address(&vm)?).await?;
        Ok(Self { world, vm, twin, machine, accel, places, hand: Some(hand), style, from })
    }

    /// The twin is gone.
    pub async fn end(&mut self) -> Result<()> {
        self.hand.take().context("the guest by hand is gone")?.end().await
    }

    /// Pairs of moves, Sterna first in every other one.
    pub async fn alternate(&mut self, what: &str, pairs: usize, load: &[&str]) -> Result<[Vec<Sample>; 2]> {
        let mut samples = [Vec::new(), Vec::new()];
        for pair in 0..pairs {
            let order = if pair % 2 == 0 { [0, 1] } else { [1, 0] };
            for side in order {
                let guest = user::address(if side == 0 { &self.vm } else { &self.twin })?;
                for path in load {
                    self.world.ask_guest(self.from, guest, path).await?;
                }
                tokio::time::sleep(WORK_IN).await;
                let sample = if side == 0 { self.by_sterna().await } else { self.by_hand().await };
                samples[side].push(sample.with_context(|| format!("{what} pair {pair}"))?);
                for path in REST {
                    self.world.ask_guest(self.from, guest, path).await?;
                }
            }
            let told = |side: usize| {
                let last: Option<&Sample> = samples[side].last();
                last.map(|s| {
                    let mib = s.bytes / f64::from(1 << 20);
                    format!(
                        "{:.0} ms, pause {:.0} ms, gap {:.0} ms, {mib:.0} MiB",
                        s.total, s.downtime, s.gap
                    )
                })
                .unwrap_or_default()
            };
            println!("{what} pair {}/{pairs}: Sterna {}; by hand {}", pair + 1, told(0), told(1));
        }
        Ok(samples)
    }

    async fn by_sterna(&self) -> Result<Sample> {
        warm_memory().await?;
        let user = &self.world.user;
        let now = user.client.vms().get(self.vm.name()).await?;
        let at = self.world.host_of(user::owner(&now)?)?;
        let to = self
            .world
            .lab
            .hosts()
            .find(|host| host.site == at.site && *host != at)
            .context("no other host")?;
        let probes = self.world.probes(self.from, user::address(&self.vm)?, false).await?;
        let began = Instant::now();
        let moved = user.move_to(self.vm.name(), &Name::new(&to.name())?, DOWNTIME).await?;
        let total = began.elapsed();
        tokio::time::sleep(SETTLE).await;
        let seen = tokio::task::spawn_blocking(move || probes.finish()).await??;
        let outcome = moved.decision.and_then(|decision| decision.outcome).context("nothing was measured")?;
        Ok(Sample {
            total: ms(total),
            downtime: outcome.downtime.map_or(f64::NAN, |span| ms(span.0)),
            gap: seen.udp.context("no echo")?.gap_ms,
            bytes: outcome.bytes.as_u64() as f64,
        })
    }

    async fn by_hand(&mut self) -> Result<Sample> {
        warm_memory().await?;
        let probes = self.world.probes(self.from, user::address(&self.twin)?, false).await?;
        let hand = self.hand.as_mut().context("the guest by hand is gone")?;
        let moved = hand.migrate(self.style, DOWNTIME.0).await?;
        tokio::time::sleep(SETTLE).await;
        let seen = tokio::task::spawn_blocking(move || probes.finish()).await??;
        Ok(Sample {
            total: ms(moved.total),
            downtime: ms(moved.downtime),
            gap: seen.udp.context("no echo")?.gap_ms,
            bytes: moved.bytes as f64,
        })
    }
}

/// Touches as much memory as a target will, and lets it go.
///
/// On a machine that is itself a guest, free memory may have been given back to the machine below; whoever touches it
/// first then waits (a second for 256 MiB was seen, against 0.03 s). Without this, half of the moves pay for it, by turns.
pub async fn warm_memory() -> Result<()> {
    let bytes = usize::try_from(2 * MEMORY.as_u64())?;
    tokio::task::spawn_blocking(move || drop(std::hint::black_box(vec![1_u8; bytes]))).await?;
    Ok(())
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn of(samples: &[Sample], field: fn(&Sample) -> f64) -> Vec<f64> {
    samples.iter().map(field).collect()
}

pub fn mid(samples: &[Sample], field: fn(&Sample) -> f64) -> f64 {
    median(&of(samples, field))
}

fn compare(table: &mut Table, idle: &[Vec<Sample>; 2], loaded: &[Vec<Sample>; 2]) {
    let [ours, hand] = loaded;
    let (total, base) = (mid(ours, |s| s.total), mid(hand, |s| s.total));
    table.info("loaded: total time, median", total, "ms", Some(base));
    table.bar("loaded: total time, ratio", total / base, "x", Bar::AtMost(1.10), Some(1.0));
    let (total, base) = (mid(&idle[0], |s| s.total), mid(&idle[1], |s| s.total));
    table.info("idle: total time, median", total, "ms", Some(base));
    table.bar("idle: total time, more than by hand", total - base, "ms", Bar::AtMost(250.0), Some(0.0));
    for (share, name, more) in [(0.5, "loaded: gap p50", 15.0), (0.99, "loaded: gap p99", 40.0)] {
        let base = percentile(&of(hand, |s| s.gap), share);
        let value = percentile(&of(ours, |s| s.gap), share);
        table.bar(name, value, "ms", Bar::AtMost(base + more), Some(base));
    }
    table.info("loaded: downtime p50", mid(ours, |s| s.downtime), "ms", Some(mid(hand, |s| s.downtime)));
    let (bytes, base) = (mid(ours, |s| s.bytes), mid(hand, |s| s.bytes));
    table.info("loaded: bytes sent, ratio", bytes / base, "x", Some(1.0));
}

/// Many moves while a client keeps requesting; in some of them the memory of both sides is compared, and the guest
/// stands still for as long as the bench takes to save it: those count in the requests lost, not in the gaps.
async fn back_and_forth(world: &World, table: &mut Table, vm: &Vm, size: Size) -> Result<()> {
    let guest = user::address(vm)?;
    let from = world.host_of(user::owner(vm)?)?;
    world.guest_answers(from, guest).await?;
    let (mut downtimes, mut gaps, mut lost, mut requests, mut differing) = (vec![], vec![], 0, 0, 0);
    let every = size.moves.checked_div(size.compared).unwrap_or(usize::MAX).max(1);
    let mut compared = 0;
    for number in 0..size.moves {
        let now = world.user.client.vms().get(vm.name()).await?;
        let at = world.host_of(user::owner(&now)?)?;
        let to =
            world.lab.hosts().find(|host| host.site == at.site && *host != at).context("no other host")?;
        let target = Name::new(&to.name())?;
        let probes = world.probes(from, guest, true).await?;
        let compares = compared < size.compared.min(number / every + 1);
        if compares {
            warm_memory().await?;
            if let Some(pages) = move_and_compare(world, vm, at, to).await? {
                compared += 1;
                differing += pages;
            }
        } else {
            let moved = world.user.move_to(vm.name(), &target, DOWNTIME).await?;
            let outcome = moved.decision.and_then(|decision| decision.outcome).unwrap_or_default();
            downtimes.push(outcome.downtime.map_or(f64::NAN, |span| ms(span.0)));
        }
        tokio::time::sleep(SETTLE).await;
        let seen = tokio::task::spawn_blocking(move || probes.finish()).await??;
        let http = seen.http.context("no requests")?;
        lost += http.lost + u64::from(!http.in_order);
        requests += http.requests;
        if !compares {
            gaps.push(seen.udp.context("no echo")?.gap_ms);
        }
        if (number + 1) % 10 == 0 {
            println!("move {}/{}: {requests} requests, {lost} lost", number + 1, size.moves);
        }
    }
    table.bar(&format!("{} moves: requests lost", size.moves), lost as f64, "", Bar::AtMost(0.0), None);
    table.info("requests answered meanwhile", requests as f64, "", None);
    table.bar(&format!("{compared} compared: pages differing"), differing as f64, "", Bar::AtMost(0.0), None);
    for (name, samples) in [("downtime", &downtimes), ("gap", &gaps)] {
        table.info(&format!("moves: {name} p50"), percentile(samples, 0.5), "ms", None);
        table.info(&format!("moves: {name} p99"), percentile(samples, 0.99), "ms", None);
    }
    Ok(())
}

/// Holds both agents still once the copy is under way, so that after QEMU's completion both sides stand paused with
/// the memory that was handed over; counts the pages in which they differ; lets the agents finish the move. `None`: it was
/// over before it could be held, and another one is to be compared.
async fn move_and_compare(world: &World, vm: &Vm, at: Host, to: Host) -> Result<Option<u64>> {
    let order = Move { to: Some(Name::new(&to.name())?), max_downtime: Some(DOWNTIME), ..Move::default() };
    let answer = world.user.client.vms().migrate(vm.name(), &order).await?;
    let name = answer.migration.clone().context("the server named no migration")?;
    let agents = [world.find(Process::Agent(at))?, world.find(Process::Agent(to))?];
    let began = Instant::now();
    loop {
        let now = world.user.client.migrations().get(&name).await?;
        match user::phase(&now).map(sterna_model::migration::Phase::word) {
            // The source's order is on its way, or carried out; its QEMU needs nobody to go on.
            Some("copying") if sends(&now) => break,
            Some("pending" | "preparing" | "copying") | None => {
                ensure!(began.elapsed() < Duration::from_secs(30), "the move did not begin");
            }
            Some(_) => {
                world.user.done(&answer).await?;
                return Ok(None);
            }
        }
    }
    agents.iter().for_each(|agent| agent.signal(Signal::STOP));
    let saved = save_memory(world, vm, at, to).await;
    agents.iter().for_each(|agent| agent.signal(Signal::CONT));
    world.user.done(&answer).await?;
    match saved {
        Ok(saved) => tokio::task::spawn_blocking(move || saved.differing().map(Some)).await?,
        Err(error) => {
            println!("a move was over before its memory could be saved: {error:#}");
            Ok(None)
        }
    }
}

fn sends(migration: &sterna_client::migration::Migration) -> bool {
    sterna_client::migration::progress(migration).is_some()
}

/// The guest stands still while this runs.
async fn save_memory(world: &World, vm: &Vm, at: Host, to: Host) -> Result<Saved> {
    let source = world.qmp(at, vm).await?;
    let until = Instant::now() + Duration::from_secs(60);
    while source.query_migrate().await?.status != Status::Completed {
        ensure!(Instant::now() < until, "the held move does not complete");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let target = world.qmp(to, vm).await?;
    let size = vm.decision.as_ref().context("the VM has no hardware")?.hardware.memory.as_u64();
    let saved = Saved::new(size)?;
    for (side, qmp) in SIDES.into_iter().zip([&source, &target]) {
        saved.save(side, qmp).await?;
    }
    Ok(saved)
}
