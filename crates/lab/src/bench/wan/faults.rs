//! Moves between the datacentres with a fault in each, at a random moment: one of the processes is killed with signal 9,
//! or the line is cut for a while. The VM's disk goes along, and the guest writes to it all the time.
//!
//! A fault is survived when within 30 s of it (of its end, where the line was cut) the VM runs, no migration of it is open,
//! exactly one QEMU of it is left and its guest answers; at no time two copies answered the same datagram, and a guest that
//! had to start again finds every write that its disk had acknowledged before the fault.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::process::Signal;
use sterna_base::units::Span;
use sterna_client::migration::{self, Migration};
use sterna_client::vm::{Move, Vm};
use sterna_model::meta::Name;
use tokio::time::sleep;

use super::load::State;
use super::rig::{Path, Rig};
use crate::bench::chaos::{self, LIMIT, VICTIMS, Victim};
use crate::bench::table::{Bar, Table, percentile};
use crate::bench::world::World;
use crate::place::Host;
use crate::user;

/// Short moves: what is wanted are many.
const PATH: Path = Path { rtt_ms: 20, mbit_s: 200, loss: 0.0 };
/// Of those faults that are no kill.
const CUTS_OF_TEN: u32 = 3;
const CUT_S: std::ops::RangeInclusive<f64> = 1.0..=5.0;
/// The guest's disk, and its memory, are never at rest.
const LOAD: [&str; 2] = ["/counter/start?hz=20", "/dirty?pages_per_s=500&mib=24&random_percent=50"];
/// A fault is one only in a move that is under way; who is not there yet is waited for.
const DRAWS_MAX: usize = 20;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    Kill(Victim),
    /// Of the line.
    Cut(Duration),
}

/// The move that a fault is put into.
struct Moving {
    source: Host,
    target: Host,
    /// Neither of both: its own agent is never touched.
    watcher: Host,
    migration: Name,
}

/// What was seen of one that was survived.
struct Done {
    /// In which the fault met it, and in which it ended.
    phases: [&'static str; 2],
    settled: Duration,
    doubles: u64,
    is_lost: bool,
}

pub async fn faults(rig: &Rig<'_>, count: usize) -> Result<Table> {
    let seed = rand::random::<u32>();
    println!("  seed {seed}");
    let mut random = StdRng::seed_from_u64(u64::from(seed));
    let name = chaos::set_up(rig.world).await?;
    rig.path(PATH)?;
    let length = calm(rig, &name).await?;
    println!("  a calm move takes {:.1} s", length.as_secs_f64());
    let (mut times, mut failures, mut sums) = (Vec::new(), Vec::new(), [0; 3]);
    for number in 0..count {
        let (outcome, fault) = once(rig, &name, (&mut random, length)).await;
        let at = format!("{}/{count} {fault:?}", number + 1);
        match outcome {
            Ok(done) => {
                let [met, ended] = done.phases;
                println!("  {at} while {met}: {ended}, settled in {:.1} s", done.settled.as_secs_f64());
                times.push(done.settled.as_secs_f64());
                sums[0] += done.doubles;
                sums[1] += u64::from(done.is_lost);
            }
            Err(error) => {
                println!("  {at}: FAILED: {error:#}");
                failures.push(format!("{at}: {error:#}"));
                sums[2] += u64::from(recover(rig, &name).await.is_err());
            }
        }
    }
    rig.clear().await?;
    Ok(table_of((seed, count), &times, &failures, sums))
}

fn table_of(
    (seed, count): (u32, usize),
    times: &[f64],
    failures: &[String],
    [doubles, writes, vms]: [u64; 3],
) -> Table {
    let mut table = Table::default();
    table.note(format!(
        "faults: {count} moves between datacentres, in each a process killed or the line cut for 1 to 5 s (seed {seed})"
    ));
    let name = "faults without one running copy in 30 s";
    table.bar(name, failures.len() as f64, "", Bar::AtMost(0.0), None);
    table.bar("faults: VMs lost", vms as f64, "", Bar::AtMost(0.0), None);
    table.bar("faults: datagrams answered by two copies", doubles as f64, "", Bar::AtMost(0.0), None);
    table.bar(
        "faults after which a guest that started again missed acknowledged writes",
        writes as f64,
        "",
        Bar::AtMost(0.0),
        None,
    );
    table.info("faults: settled p50", percentile(times, 0.5), "s", None);
    let longest = percentile(times, 1.0);
    table.bar("faults: settled, longest", longest, "s", Bar::AtMost(LIMIT.as_secs_f64()), None);
    for failure in failures {
        table.note(format!("failed: {failure}"));
    }
    table
}

/// How long a move takes that nothing disturbs: the second there and back, which are like those that follow.
async fn calm(rig: &Rig<'_>, name: &Name) -> Result<Duration> {
    let mut took = Duration::ZERO;
    for _ in 0..4 {
        let vm = rig.world.user.running(name).await?;
        let began = Instant::now();
        let (_, target, _) = hosts(rig.world, &vm)?;
        rig.world.user.move_to(name, &Name::new(&target.name())?, Span::from_millis(300)).await?;
        took = began.elapsed();
    }
    Ok(took)
}

/// One move with a fault. A move that was over before its fault is made again with another.
async fn once(
    rig: &Rig<'_>,
    name: &Name,
    (random, length): (&mut StdRng, Duration),
) -> (Result<Done>, Fault) {
    let mut fault = draw(random);
    for _ in 0..DRAWS_MAX {
        let moment = length.mul_f64(random.random_range(0.0..1.0));
        match case(rig, name, (fault, moment)).await {
            Ok(None) => fault = draw(random),
            Ok(Some(done)) => return (Ok(done), fault),
            Err(error) => return (Err(error.context(format!("after {:.2} s", moment.as_secs_f64()))), fault),
        }
    }
    (Err(anyhow::anyhow!("every move is over before its fault")), fault)
}

fn draw(random: &mut StdRng) -> Fault {
    if random.random_range(0..10) < CUTS_OF_TEN {
        return Fault::Cut(Duration::from_secs_f64(random.random_range(CUT_S)));
    }
    Fault::Kill(VICTIMS[random.random_range(0..VICTIMS.len())])
}

/// `None`: the move was over before the fault.
async fn case(rig: &Rig<'_>, name: &Name, (fault, moment): (Fault, Duration)) -> Result<Option<Done>> {
    let world = rig.world;
    let vm = chaos::rested(world, name).await?;
    let (source, target, watcher) = hosts(world, &vm)?;
    let guest = user::address(&vm)?;
    world.guest_answers(watcher, guest).await?;
    for path in LOAD {
        world.ask_guest(watcher, guest, path).await?;
    }
    let probes = world.probes(watcher, guest, false).await?;
    let order = Move {
        to: Some(Name::new(&target.name())?),
        max_downtime: Some(Span::from_millis(300)),
        ..Move::default()
    };
    let answer = world.user.client.vms().migrate(name, &order).await?;
    let migration = answer.migration.context("the server named no migration")?;
    let moving = Moving { source, target, watcher, migration };
    let acknowledged = AtomicU64::new(0);
    let injected = async {
        sleep(moment).await;
        inject(rig, &moving, fault).await
    };
    let injected = tokio::select! {
        injected = injected => injected,
        () = follow(world, &moving, &vm, &acknowledged) => unreachable!("it follows for ever"),
    };
    let began = Instant::now();
    let settled = chaos::settle(world, &vm, began).await;
    let seen = tokio::task::spawn_blocking(move || probes.finish()).await??;
    let Some(phase) = injected? else { return Ok(None) };
    let settled = settled.with_context(|| format!("while {phase}"))?;
    world.guest_answers(watcher, guest).await.context("after the fault")?;
    let now = state(world, watcher, &vm).await?.counter.value;
    let is_lost = now < acknowledged.load(Ordering::Relaxed);
    let ended = world.user.client.migrations().get(&moving.migration).await?;
    let phases = [phase, self::phase(&ended)];
    Ok(Some(Done { phases, settled, doubles: seen.udp.context("no echo")?.doubled, is_lost }))
}

/// From where, to where in the other datacentre, and who watches.
fn hosts(world: &World, vm: &Vm) -> Result<(Host, Host, Host)> {
    let source = world.host_of(user::owner(vm)?)?;
    let target = world.lab.hosts().find(|host| host.site != source.site).context("no other datacentre")?;
    let watcher =
        world.lab.hosts().find(|host| *host != source && *host != target).context("no third host")?;
    Ok((source, target, watcher))
}

/// The phase in which the move was; `None`: it was over before there was somebody to kill.
async fn inject(rig: &Rig<'_>, moving: &Moving, fault: Fault) -> Result<Option<&'static str>> {
    loop {
        let now = rig.world.user.client.migrations().get(&moving.migration).await?;
        if migration::has_ended(&now) {
            return Ok(None);
        }
        match fault {
            Fault::Cut(time) => {
                rig.connect(false)?;
                sleep(time).await;
                rig.connect(true)?;
                return Ok(Some(phase(&now)));
            }
            Fault::Kill(victim) => {
                if let Ok(process) = rig.world.find(victim.process(moving.source, moving.target)) {
                    process.signal(Signal::KILL);
                    return Ok(Some(phase(&now)));
                }
            }
        }
        sleep(Duration::from_millis(10)).await;
    }
}

fn phase(migration: &Migration) -> &'static str {
    user::phase(migration).map_or("asked", sterna_model::migration::Phase::word)
}

/// Keeps the highest value that the guest says its disk has.
async fn follow(world: &World, moving: &Moving, vm: &Vm, acknowledged: &AtomicU64) {
    loop {
        // A guest that stands still for its switchover answers later.
        if let Ok(state) = state(world, moving.watcher, vm).await {
            acknowledged.fetch_max(state.counter.value, Ordering::Relaxed);
        }
        sleep(Duration::from_millis(100)).await;
    }
}

async fn state(world: &World, from: Host, vm: &Vm) -> Result<State> {
    let text = world.ask_guest(from, user::address(vm)?, "/state").await?;
    serde_json::from_str(&text).context("understand the guest")
}

/// After a fault that was not survived: the next one needs a VM that runs. Fails when the VM was lost.
async fn recover(rig: &Rig<'_>, name: &Name) -> Result<()> {
    rig.connect(true)?;
    let running = rig.world.user.running(name).await;
    if running.is_err() {
        rig.clear().await?;
        rig.path(PATH)?;
        let again = chaos::set_up(rig.world).await?;
        ensure!(again == *name, "another VM was made");
    }
    running.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_faults_again_and_all_kinds_of_them() {
        let drawn = || {
            let mut random = StdRng::seed_from_u64(7);
            (0..200).map(|_| draw(&mut random)).collect::<Vec<_>>()
        };
        assert_eq!(drawn(), drawn());
        for victim in VICTIMS {
            assert!(drawn().contains(&Fault::Kill(victim)), "{victim:?}");
        }
        let cuts: Vec<_> = drawn().into_iter().filter(|fault| matches!(fault, Fault::Cut(_))).collect();
        assert!((30..90).contains(&cuts.len()), "{}", cuts.len());
    }

    #[test]
    fn a_fault_that_was_not_survived_misses_the_bar() {
        let whole = |failures: &[String], sums| table_of((1, 2), &[1.0], failures, sums).all_hold();
        assert!(whole(&[], [0; 3]));
        assert!(!whole(&["1/2".to_owned()], [0; 3]));
        for sums in [[1, 0, 0], [0, 1, 0], [0, 0, 1]] {
            assert!(!whole(&[], sums));
        }
    }
}
