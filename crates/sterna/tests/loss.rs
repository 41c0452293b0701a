//! Hosts that are lost, in a lab with real guards, agents and QEMU: what was on them runs elsewhere, and never twice.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

mod lab_world;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab_world::{Plot, get, name, neighbour, running_on, sterna, sterna_lab, until};
use sterna_client::vm::Vm;
use sterna_lab::bench::world::World;
use sterna_lab::member;
use sterna_lab::place::Host;
use sterna_lab::{topology, user};
use sterna_model::ha::{HaState, Profile};
use sterna_model::status::VmState;

const PLOT: Plot = Plot { name: "loss", net: "10.96.0.0/16", port: 7943, datacentres: "a,b" };
/// Voters that have just been started are silent for half a minute.
const PATIENCE: Duration = Duration::from_secs(90);
/// From a host's loss until its VM runs elsewhere, with profile `quick`.
const RUNS_WITHIN: Duration = Duration::from_secs(10);

/// A VM on the first host, under that host's lease, with the other host ready to take it over.
async fn protected(world: &World, vm: &str) -> Result<(Vm, Host, Host)> {
    let host = Host { site: world.lab.home(), number: 1 };
    let other = neighbour(world, host);
    world.user.set_profile(&name(&host.site.letter().to_string()), Profile::Quick).await?;
    for host in [host, other] {
        holds_lease(world, host).await?;
    }
    world.user.ensure_image(&name("tiny"), &world.image).await?;
    let made = running_on(world, vm, host).await?;
    until(PATIENCE, "the VM to live under the lease", async || world.user.is_under_lease(&name(vm)).await)
        .await?;
    Ok((made, host, other))
}

async fn holds_lease(world: &World, host: Host) -> Result<()> {
    let what = format!("{} to hold a lease", host.name());
    until(PATIENCE, &what, async || world.user.holds_lease(&name(&host.name()), Profile::Quick).await).await
}

async fn runs_on(world: &World, vm: &str, host: Host) -> Result<bool> {
    let vm = get(world, vm).await?;
    let is_running = vm.status.as_ref().is_some_and(|status| status.state == VmState::Running);
    Ok(is_running && user::owner(&vm)?.as_str() == host.name())
}

fn check_takeover(before: &Vm, after: &Vm, lost: Host) -> Result<()> {
    let (before, after) =
        (before.decision.as_ref().context("owned")?, after.decision.as_ref().context("owned")?);
    ensure!(after.owner.epoch == before.owner.epoch + 1, "{} then {}", before.owner.epoch, after.owner.epoch);
    let takeover = after.takeover.as_ref().context("its taking over is on record")?;
    ensure!(takeover.from.as_str() == lost.name() && takeover.proof == "F3", "{takeover:?}");
    ensure!(after.host_epoch.is_some(), "it lives under the new host's lease");
    Ok(())
}

#[test]
fn a_vm_of_a_host_that_dies_runs_elsewhere_within_ten_seconds() -> Result<()> {
    lab_world::run(&PLOT, async |world| {
        let (vm, host, other) = protected(world, "dies").await?;
        let list = sterna(world, "host list");
        ensure!(list.data.contains("PROTECTED BY") && list.data.contains("F3"), "{}", list.data);

        let began = Instant::now();
        ensure!(member::kill_host(&world.lab, host)? > 0);
        until(PATIENCE, "the VM to run elsewhere", async || runs_on(world, "dies", other).await).await?;
        let took = began.elapsed();
        println!("running elsewhere after {:.1} s", took.as_secs_f64());
        ensure!(took < RUNS_WITHIN, "running elsewhere after {took:?}");
        check_takeover(&vm, &get(world, "dies").await?, host)?;
        let lost = world.user.client.hosts().get(&name(&host.name())).await?;
        let state = serde_json::to_value(&lost.decision)?["state"].clone();
        ensure!(state == serde_json::to_value(HaState::Fenced)?, "{state}");

        // Power is back: the host gets another epoch, and nothing of the old one.
        let up = format!("up --net {} --port {} --datacentres {}", PLOT.net, PLOT.port, PLOT.datacentres);
        let up = sterna_lab(&PLOT, &up);
        ensure!(up.code == 0, "{}", up.talk);
        holds_lease(world, host).await?;
        ensure!(runs_on(world, "dies", other).await? && world.copy(host, &vm).is_none());
        Ok(())
    })
}

#[test]
fn a_host_that_is_cut_off_ends_its_vm_before_it_starts_elsewhere() -> Result<()> {
    lab_world::run(&PLOT, async |world| {
        let (vm, host, other) = protected(world, "cut").await?;
        let began = Instant::now();
        topology::cable(&world.lab, host, false)?;
        // Looked at all the time: at no instant are there two.
        let (mut gone, mut there) = (None, None);
        while there.is_none() && began.elapsed() < PATIENCE {
            let has_new = world.copy(other, &vm).is_some();
            // Looked for after the new one: what is seen now was there then.
            let has_old = world.copy(host, &vm).is_some();
            ensure!(!(has_new && has_old), "two copies after {:?}", began.elapsed());
            if !has_old {
                gone.get_or_insert_with(|| began.elapsed());
            }
            there = has_new.then(|| began.elapsed());
        }
        let (gone, there) = (gone.context("the old copy ended")?, there.context("a new copy came")?);
        println!(
            "old copy gone after {:.1} s, new one there after {:.1} s",
            gone.as_secs_f64(),
            there.as_secs_f64()
        );
        ensure!(gone < there);
        until(PATIENCE, "the VM to run elsewhere", async || runs_on(world, "cut", other).await).await?;
        check_takeover(&vm, &get(world, "cut").await?, host)?;
        topology::cable(&world.lab, host, true)?;
        holds_lease(world, host).await?;
        ensure!(world.copy(host, &vm).is_none(), "it stays away");
        Ok(())
    })
}
