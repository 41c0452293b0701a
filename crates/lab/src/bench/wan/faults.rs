//! Moves between the datacentres with a fault in each, at a random moment: one of the processes is killed with signal 9,
//! or the line is cut for a while. The VM's disk goes along, and the guest writes to it all the time.
//!
//! A fault is survived when within 30 s of it (of its end, where the line was cut) the VM runs, no migration of it is open,
//! exactly one QEMU of it is left and its guest answers; at no time two copies answered the same datagram, and a guest that
//! had to start again finds every write that its disk had acknowledged before the fault, read from the disk itself.
//!
//! After every tenth of them the guest, which has been through them all, goes over once more while it stands still and the
//! line is cut: its memory is the same there, page by page (`still.rs`).

/// A guest that stands still.
mod still;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
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
/// One of so many is followed by a comparison of memory.
const COMPARED_OF: usize = 10;
/// So many faults meet every phase that lasts: a campaign that met none in one of them shows nothing about it.
const WHOLE: usize = 100;
const LASTING: [&str; 2] = ["preparing", "copying"];

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

/// How many faults hit a move in which phase.
type Hits = BTreeMap<&'static str, usize>;

/// All that was seen.
#[derive(Default)]
struct Campaign {
    seed: u32,
    count: usize,
    /// How long each took that was survived, in seconds.
    times: Vec<f64>,
    failures: Vec<String>,
    doubles: u64,
    writes_lost: u64,
    vms_lost: u64,
    hits: Hits,
    still: still::Seen,
}

pub async fn faults(rig: &Rig<'_>, count: usize) -> Result<Table> {
    let seed = rand::random::<u32>();
    println!("  seed {seed}");
    let mut random = StdRng::seed_from_u64(u64::from(seed));
    let name = chaos::set_up(rig.world).await?;
    rig.path(PATH)?;
    let length = calm(rig, &name).await?;
    println!("  a calm move takes {:.1} s", length.as_secs_f64());
    let mut all = Campaign { seed, count, ..Campaign::default() };
    for number in 0..count {
        let (outcome, fault) = once(rig, &name, (&mut random, length), &mut all.hits).await;
        let outcome = all.add(&format!("{}/{count} {fault:?}", number + 1), outcome);
        let compared = if outcome.is_ok() && number % COMPARED_OF == COMPARED_OF - 1 {
            still::compare(rig, &name, (&mut random, length), &mut all.still).await
        } else {
            Ok(())
        };
        if let Err(error) = &compared {
            println!("  {} stands still: FAILED: {error:#}", number + 1);
            all.failures.push(format!("{} stands still: {error:#}", number + 1));
        }
        if outcome.and(compared).is_err() {
            all.vms_lost += u64::from(recover(rig, &name).await.is_err());
        }
    }
    rig.clear().await?;
    Ok(all.table())
}

impl Campaign {
    /// Says it, too.
    fn add(&mut self, at: &str, outcome: Result<Done>) -> Result<()> {
        match outcome {
            Ok(done) => {
                let [met, ended] = done.phases;
                println!("  {at} while {met}: {ended}, settled in {:.1} s", done.settled.as_secs_f64());
                self.times.push(done.settled.as_secs_f64());
                self.doubles += done.doubles;
                self.writes_lost += u64::from(done.is_lost);
                Ok(())
            }
            Err(error) => {
                println!("  {at}: FAILED: {error:#}");
                self.failures.push(format!("{at}: {error:#}"));
                Err(error)
            }
        }
    }

    fn table(&self) -> Table {
        let mut table = Table::default();
        let (count, seed) = (self.count, self.seed);
        table.note(format!(
            "faults: {count} moves between datacentres, in each a process killed or the line cut for 1 to 5 s (seed {seed})"
        ));
        let none = Bar::AtMost(0.0);
        let failed = self.failures.len() as f64;
        table.bar("faults without one running copy in 30 s", failed, "", none, None);
        table.bar("faults: VMs lost", self.vms_lost as f64, "", none, None);
        table.bar("faults: datagrams answered by two copies", self.doubles as f64, "", none, None);
        let name = "faults after which the guest's disk missed acknowledged writes";
        table.bar(name, self.writes_lost as f64, "", none, None);
        let still::Seen { arrived, pages, .. } = self.still;
        let name = format!("faults: pages differing, of {arrived} moves over a line that was cut");
        table.bar(&name, pages as f64, "", none, None);
        let wanted = Bar::AtLeast((self.count / COMPARED_OF) as f64);
        table.bar("faults: moves whose memory was compared", arrived as f64, "", wanted, None);
        self.phases(&mut table);
        table.info("faults: settled p50", percentile(&self.times, 0.5), "s", None);
        let longest = percentile(&self.times, 1.0);
        table.bar("faults: settled, longest", longest, "s", Bar::AtMost(LIMIT.as_secs_f64()), None);
        for failure in &self.failures {
            table.note(format!("failed: {failure}"));
        }
        table
    }

    /// A whole campaign must have met all phases that last.
    fn phases(&self, table: &mut Table) {
        let met = |phase: &str| self.hits.get(phase).copied().unwrap_or(0);
        let told: Vec<_> = self.hits.iter().map(|(phase, count)| format!("{phase} {count}")).collect();
        table.note(format!("faults by the phase that they met: {}", told.join(", ")));
        let others = self.hits.keys().copied().filter(|phase| !LASTING.contains(phase));
        for phase in LASTING.into_iter().chain(others) {
            let (name, count) = (format!("faults that met a move {phase}"), met(phase) as f64);
            if LASTING.contains(&phase) && self.count >= WHOLE {
                table.bar(&name, count, "", Bar::AtLeast(1.0), None);
            } else {
                table.info(&name, count, "", None);
            }
        }
    }
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
    hits: &mut Hits,
) -> (Result<Done>, Fault) {
    let mut fault = draw(random);
    for _ in 0..DRAWS_MAX {
        let moment = length.mul_f64(random.random_range(0.0..1.0));
        match case(rig, name, (fault, moment), hits).await {
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
async fn case(
    rig: &Rig<'_>,
    name: &Name,
    (fault, moment): (Fault, Duration),
    hits: &mut Hits,
) -> Result<Option<Done>> {
    let world = rig.world;
    let vm = chaos::rested(world, name).await?;
    let (source, target, watcher) = hosts(world, &vm)?;
    let guest = user::address(&vm)?;
    world.guest_answers(watcher, guest).await?;
    for path in LOAD {
        world.ask_guest(watcher, guest, path).await?;
    }
    let probes = world.probes(watcher, guest, false).await?;
    let migration = order(world, name, target).await?;
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
    *hits.entry(phase).or_default() += 1;
    let settled = settled.with_context(|| format!("while {phase}"))?;
    world.guest_answers(watcher, guest).await.context("after the fault")?;
    let is_lost = on_disk(world, watcher, guest).await? < acknowledged.load(Ordering::Relaxed);
    let ended = world.user.client.migrations().get(&moving.migration).await?;
    let phases = [phase, self::phase(&ended)];
    Ok(Some(Done { phases, settled, doubles: seen.udp.context("no echo")?.doubled, is_lost }))
}

/// Its migration.
async fn order(world: &World, vm: &Name, target: Host) -> Result<Name> {
    let (to, max_downtime) = (Some(Name::new(&target.name())?), Some(Span::from_millis(300)));
    let order = Move { to, max_downtime, ..Move::default() };
    let answer = world.user.client.vms().migrate(vm, &order).await?;
    answer.migration.context("the server named no migration")
}

/// The highest value that the guest itself reads from its disk, past all caches.
async fn on_disk(world: &World, from: Host, guest: Ipv4Addr) -> Result<u64> {
    let value = world.ask_guest(from, guest, "/counter").await?;
    value.trim().parse().with_context(|| format!("the guest read {value:?}"))
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

    /// A whole campaign without anything wrong.
    fn good() -> Campaign {
        let hits = [("preparing", 20), ("copying", 170), ("finishing", 10)].into();
        let still = still::Seen { arrived: 20, returned: 1, pages: 0 };
        Campaign { count: 200, times: vec![1.0], hits, still, ..Campaign::default() }
    }

    #[test]
    fn a_fault_that_was_not_survived_misses_the_bar() {
        assert!(good().table().all_hold());
        let bad = [
            Campaign { failures: vec!["1/2".to_owned()], ..good() },
            Campaign { doubles: 1, ..good() },
            Campaign { writes_lost: 1, ..good() },
            Campaign { vms_lost: 1, ..good() },
            Campaign { still: still::Seen { pages: 1, ..good().still }, ..good() },
            Campaign { still: still::Seen { arrived: 19, ..good().still }, ..good() },
        ];
        assert!(bad.iter().all(|campaign| !campaign.table().all_hold()));
    }

    #[test]
    fn a_whole_campaign_that_never_met_a_phase_that_lasts_misses_its_bar() {
        for phase in LASTING {
            let mut one_sided = good();
            one_sided.hits.remove(phase);
            assert!(!one_sided.table().all_hold(), "{phase}");
            // A short one may.
            one_sided.count = 10;
            assert!(one_sided.table().all_hold(), "{phase}");
        }
    }
}
