//! Hosts that are lost, in a lab with real guards, agents and QEMU: what was on them runs elsewhere, and never twice.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

mod lab_world;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab_world::lost::{PATIENCE, check_takeover, goes_over, holds_lease, leased, runs_on, switch_on};
use lab_world::{Plot, get, name, running_on, sterna, until};
use sterna_client::vm::Vm;
use sterna_lab::bench::world::World;
use sterna_lab::place::Host;
use sterna_lab::{member, topology};
use sterna_model::ha::HaState;

const PLOT: Plot = Plot { name: "loss", net: "10.96.0.0/16", port: 7943, datacentres: "a,b" };
/// From a host's loss until its VM runs elsewhere, with profile `quick`.
const RUNS_WITHIN: Duration = Duration::from_secs(10);

/// A VM on the first host, under that host's lease, with the other host ready to take it over.
async fn protected(world: &World, vm: &str) -> Result<(Vm, Host, Host)> {
    let (host, other) = leased(world).await?;
    let made = running_on(world, vm, host).await?;
    until(PATIENCE, "the VM to live under the lease", async || world.user.is_under_lease(&name(vm)).await)
        .await?;
    Ok((made, host, other))
}

/// By the voters' word, and under the new host's lease.
async fn check(world: &World, before: &Vm, lost: Host) -> Result<()> {
    let after = get(world, before.name().as_str()).await?;
    check_takeover(before, &after, (lost, "F3"))?;
    ensure!(after.decision.is_some_and(|it| it.host_epoch.is_some()), "it lives under the new host's lease");
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
        check(world, &vm, host).await?;
        let lost = world.user.client.hosts().get(&name(&host.name())).await?;
        let state = serde_json::to_value(&lost.decision)?["state"].clone();
        ensure!(state == serde_json::to_value(HaState::Fenced)?, "{state}");

        // Power is back: the host gets another epoch, and nothing of the old one.
        switch_on(&PLOT)?;
        holds_lease(world, host).await?;
        ensure!(runs_on(world, "dies", other).await? && world.copy(host, &vm).is_none());
        Ok(())
    })
}

#[test]
fn a_host_that_is_cut_off_ends_its_vm_before_it_starts_elsewhere() -> Result<()> {
    lab_world::run(&PLOT, async |world| {
        let (vm, host, other) = protected(world, "cut").await?;
        topology::cable(&world.lab, host, false)?;
        goes_over(world, &vm, (host, other)).await?;
        check(world, &vm, host).await?;
        topology::cable(&world.lab, host, true)?;
        holds_lease(world, host).await?;
        ensure!(world.copy(host, &vm).is_none(), "it stays away");
        Ok(())
    })
}
