//! `sterna bench chaos`: `kill -9` of each process in each phase of a migration, then one running copy and nobody's help.
//!
//! A phase is held open by stopping the agent whose turn it is, so that the kill meets the phase and not its end. A case
//! passes when within 30 s the VM runs, no migration of it is open, exactly one QEMU of it is left, its guest answers,
//! and at no time did two copies answer the same datagram.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use sterna_base::units::{Bytes, Span};
use sterna_client::object::Filter;
use sterna_client::vm::{Move, Vm};
use sterna_model::meta::Name;
use sterna_model::status::VmState;

use super::table::{Bar, Table, percentile};
use super::world::{Process, World};
use crate::member::{self, Member};
use crate::place::Host;
use crate::user;

/// Within which everything is as it should be again.
pub const LIMIT: Duration = Duration::from_secs(30);
const MEMORY: Bytes = Bytes::mib(128);
/// The third restart in a row waits for seconds, the fourth for half a minute: that is not what is measured here.
const RESTARTS_MAX: u32 = 2;

/// A moment of a migration that can be held open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    Preparing,
    Copying,
    Resuming,
    Finishing,
}

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    Server,
    SourceAgent,
    TargetAgent,
    SourceShim,
    TargetShim,
    SourceQemu,
    TargetQemu,
}

const MOMENTS: [Moment; 4] = [Moment::Preparing, Moment::Copying, Moment::Resuming, Moment::Finishing];
pub const VICTIMS: [Victim; 7] = [
    Victim::Server,
    Victim::SourceAgent,
    Victim::TargetAgent,
    Victim::SourceShim,
    Victim::TargetShim,
    Victim::SourceQemu,
    Victim::TargetQemu,
];

impl Victim {
    /// In a move from one host to another.
    #[must_use]
    pub fn process(self, source: Host, target: Host) -> Process {
        match self {
            Victim::Server => Process::Server,
            Victim::SourceAgent => Process::Agent(source),
            Victim::TargetAgent => Process::Agent(target),
            Victim::SourceShim => Process::Shim(source),
            Victim::TargetShim => Process::Shim(target),
            Victim::SourceQemu => Process::Qemu(source),
            Victim::TargetQemu => Process::Qemu(target),
        }
    }
}

/// All cases that can be: before the target listens there may be nothing of it to kill.
fn cases() -> impl Iterator<Item = (Moment, Victim)> {
    let has_target = |moment, victim| {
        moment != Moment::Preparing || !matches!(victim, Victim::TargetShim | Victim::TargetQemu)
    };
    MOMENTS
        .into_iter()
        .flat_map(|moment| VICTIMS.map(|victim| (moment, victim)))
        .filter(move |(moment, victim)| has_target(*moment, *victim))
}

/// Every case `rounds` times.
pub async fn run(world: &World, rounds: usize) -> Result<Table> {
    let mut table = Table::default();
    let vm = set_up(world).await?;
    let (mut times, mut failures, mut doubles) = (Vec::new(), Vec::new(), 0);
    let all: Vec<_> = (0..rounds).flat_map(|_| cases()).collect();
    for (number, (moment, victim)) in all.iter().enumerate() {
        match case(world, &vm, *moment, *victim).await {
            Ok(done) => {
                times.push(done.settled.as_secs_f64());
                doubles += done.doubles;
                println!(
                    "{}/{} {moment:?}, {victim:?}: {:.1} s",
                    number + 1,
                    all.len(),
                    done.settled.as_secs_f64()
                );
            }
            Err(error) => {
                println!("{}/{} {moment:?}, {victim:?}: FAILED: {error:#}", number + 1, all.len());
                failures.push(format!("{moment:?} {victim:?}: {error:#}"));
                recover(world).await;
            }
        }
    }
    table.note(format!("{} cases, each process killed with signal 9 in each phase", all.len()));
    table.bar("cases without one running copy in 30 s", failures.len() as f64, "", Bar::AtMost(0.0), None);
    table.bar("datagrams answered by two copies", doubles as f64, "", Bar::AtMost(0.0), None);
    table.info("settled p50", percentile(&times, 0.5), "s", None);
    table.bar("settled, longest", percentile(&times, 1.0), "s", Bar::AtMost(LIMIT.as_secs_f64()), None);
    for failure in failures {
        table.note(format!("failed: {failure}"));
    }
    Ok(table)
}

struct Done {
    settled: Duration,
    doubles: u64,
}

/// The VM that is moved, where its guest answers.
pub async fn set_up(world: &World) -> Result<Name> {
    let (vm, image) = (Name::new("victim")?, Name::new("tiny")?);
    world.user.ensure_image(&image, &world.image).await?;
    let made = world.user.ensure_vm(&vm, &image, MEMORY).await?;
    world.guest_answers(world.host_of(user::owner(&made)?)?, user::address(&made)?).await?;
    Ok(vm)
}

/// Restarts in a row come later and later. After a start that was asked for, the next crash is the first again.
pub async fn rested(world: &World, name: &Name) -> Result<Vm> {
    let vm = world.user.running(name).await?;
    if vm.decision.as_ref().is_none_or(|decision| decision.restarts < RESTARTS_MAX) {
        return Ok(vm);
    }
    let vms = world.user.client.vms();
    world.user.done(&vms.stop(name, true).await?).await?;
    world.user.done(&vms.start(name).await?).await?;
    world.user.running(name).await
}

async fn case(world: &World, name: &Name, moment: Moment, victim: Victim) -> Result<Done> {
    let vm = rested(world, name).await?;
    let source = world.host_of(user::owner(&vm)?)?;
    let target = world
        .lab
        .hosts()
        .find(|host| host.site == source.site && *host != source)
        .context("no other host")?;
    let guest = user::address(&vm)?;
    // Neither host of the move: its own agent is never touched.
    let watcher = world.lab.hosts().find(|host| host.site != source.site).context("no third host")?;
    world.guest_answers(watcher, guest).await?;
    let probes = world.probes(watcher, guest, false).await?;
    let held = hold(world, &vm, (source, target), moment).await?;
    let killed = world.find(victim.process(source, target));
    let killed = match killed {
        Ok(member) => member,
        Err(error) => {
            release(&held);
            return Err(error);
        }
    };
    killed.signal(Signal::KILL);
    let began = Instant::now();
    release(&held);
    let settled = settle(world, &vm, began).await;
    let seen = tokio::task::spawn_blocking(move || probes.finish()).await??;
    let settled = settled?;
    world.guest_answers(watcher, guest).await.context("after the case")?;
    Ok(Done { settled, doubles: seen.udp.context("no echo")?.doubled })
}

/// Orders the move and stops it at the moment; the processes that stand still.
async fn hold(world: &World, vm: &Vm, (source, target): (Host, Host), moment: Moment) -> Result<Vec<Member>> {
    let agents = [world.find(Process::Agent(source))?, world.find(Process::Agent(target))?];
    let [at_source, at_target] = agents;
    if moment == Moment::Preparing {
        at_target.signal(Signal::STOP);
    }
    let to = Some(Name::new(&target.name())?);
    let order = Move { to, max_downtime: Some(Span::from_millis(300)), ..Move::default() };
    let answer = world.user.client.vms().migrate(vm.name(), &order).await;
    let migration = match answer {
        Ok(answer) => answer.migration.context("the server named no migration")?,
        Err(error) => {
            at_target.signal(Signal::CONT);
            return Err(error.into());
        }
    };
    if moment == Moment::Preparing {
        reach(world, &migration, &["preparing"]).await?;
        return Ok(vec![at_target]);
    }
    reach(world, &migration, &["copying"]).await?;
    at_target.signal(Signal::STOP);
    if moment == Moment::Copying {
        return Ok(vec![at_target]);
    }
    let held = reach(world, &migration, &["resuming"]).await;
    if held.is_err() || moment == Moment::Resuming {
        held?;
        return Ok(vec![at_target]);
    }
    at_source.signal(Signal::STOP);
    at_target.signal(Signal::CONT);
    let held = reach(world, &migration, &["finishing"]).await;
    if held.is_err() {
        at_source.signal(Signal::CONT);
    }
    held.map(|()| vec![at_source])
}

fn release(held: &[Member]) {
    held.iter().for_each(|member| member.signal(Signal::CONT));
}

/// Polls closely: the phase must be met.
async fn reach(world: &World, migration: &Name, words: &[&str]) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let now = world.user.client.migrations().get(migration).await?;
        let word = user::phase(&now).map_or("asked", sterna_model::migration::Phase::word);
        if words.contains(&word) {
            return Ok(());
        }
        ensure!(Instant::now() < until, "the move is {word}, not {}", words.join(" or "));
        if user::phase(&now).is_some_and(sterna_model::migration::Phase::has_ended) {
            bail!("the move ended as {:?} before it was {}", user::phase(&now), words.join(" or "));
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Waits until everything is as it should be, and says what is not when it takes too long.
pub async fn settle(world: &World, vm: &Vm, began: Instant) -> Result<Duration> {
    loop {
        match is_settled(world, vm).await {
            Ok(()) => return Ok(began.elapsed()),
            Err(error) if began.elapsed() > LIMIT => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn is_settled(world: &World, vm: &Vm) -> Result<()> {
    let now = world.user.client.vms().get(vm.name()).await.context("ask the server")?;
    let status = now.status.context("the VM has no status")?;
    ensure!(status.state == VmState::Running, "the VM is {}: {}", status.state.word(), status.message);
    let open = world.user.client.migrations().list(&Filter::default()).await?;
    let open = open.iter().find(|m| m.spec.vm == *vm.name() && !sterna_client::migration::has_ended(m));
    ensure!(open.is_none(), "migration {:?} is open", open.map(|m| m.name().to_string()));
    let copies = world.copies(vm);
    ensure!(copies == 1, "{copies} QEMUs of the VM are left");
    Ok(())
}

/// After a failed case: nobody stands still, and the next case starts from a running VM.
async fn recover(world: &World) {
    for member in member::all(&world.lab.dir) {
        member.signal(Signal::CONT);
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
}
