//! Hosts that are lost, in a lab with real guards, agents and QEMU: what was on them runs elsewhere, and never twice.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

mod lab_world;

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab_world::{Plot, get, name, neighbour, ran, running_on, sterna, sterna_lab, until};
use sterna_client::object::Patch;
use sterna_client::vm::Vm;
use sterna_lab::bench::world::World;
use sterna_lab::member;
use sterna_lab::place::Host;
use sterna_lab::user;
use sterna_model::ha::HaState;
use sterna_model::status::VmState;

const PLOT: Plot = Plot { name: "loss", net: "10.96.0.0/16", port: 7943, datacentres: "a,b" };
/// Voters that have just been started are silent for half a minute.
const PATIENCE: Duration = Duration::from_secs(90);
/// From a host's loss until its VM runs elsewhere, with profile `quick`.
const RUNS_WITHIN: Duration = Duration::from_secs(10);

/// A VM on the first host, under that host's lease, with the other host ready to take it over.
async fn protected(world: &World, vm: &str) -> Result<(Vm, Host, Host)> {
    let site = world.lab.home();
    let quick = Patch::of(serde_json::json!({ "ha": { "profile": "quick" } }));
    world.user.client.datacentres().patch(&name(&site.letter().to_string()), &quick).await?;
    let host = Host { site, number: 1 };
    let other = neighbour(world, host);
    for host in [host, other] {
        until(PATIENCE, &format!("{} to hold a lease", host.name()), async || {
            is_protected(world, host).await
        })
        .await?;
    }
    world.user.ensure_image(&name("tiny"), &world.image).await?;
    let made = running_on(world, vm, host).await?;
    until(PATIENCE, "the VM to live under the lease", async || {
        let vm = get(world, vm).await?;
        Ok(vm.decision.is_some_and(|decision| decision.host_epoch.is_some()))
    })
    .await?;
    Ok((made, host, other))
}

async fn is_protected(world: &World, host: Host) -> Result<bool> {
    let host = world.user.client.hosts().get(&name(&host.name())).await?;
    let voters = world.user.client.datacentres().get(&host.spec.datacentre).await?;
    let is_settled = voters.decision.is_some_and(|it| it["profile"] == "quick" && it["former"].is_null());
    Ok(is_settled && host.status.is_some_and(|status| status.protected_by == ["F3"]))
}

/// Whether QEMU has a process of the VM on that host.
fn has_copy(world: &World, vm: &Vm, host: Host) -> bool {
    let folder = world.lab.run_dir(host).join("vm").join(vm.meta.uid.to_string());
    let is_qemu = |line: &str| line.split(' ').next().is_some_and(|word| word.contains("qemu-system"));
    member::naming(&folder.display().to_string()).iter().any(|member| is_qemu(&member.line))
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
        until(PATIENCE, "the host to hold a lease again", async || is_protected(world, host).await).await?;
        ensure!(runs_on(world, "dies", other).await? && !has_copy(world, &vm, host));
        Ok(())
    })
}

#[test]
fn a_host_that_is_cut_off_ends_its_vm_before_it_starts_elsewhere() -> Result<()> {
    lab_world::run(&PLOT, async |world| {
        let (vm, host, other) = protected(world, "cut").await?;
        let cable = |state: &str| {
            let switch = world.lab.switch_space(host.site);
            let ran =
                ran(Command::new("ip").args(["-n", &switch, "link", "set", "dev", &host.name(), state]));
            ensure!(ran.code == 0, "{}", ran.talk);
            Ok(())
        };
        let began = Instant::now();
        cable("down")?;
        // Looked at all the time: at no instant are there two.
        let (mut gone, mut there) = (None, None);
        while there.is_none() && began.elapsed() < PATIENCE {
            let has_new = has_copy(world, &vm, other);
            // Looked for after the new one: what is seen now was there then.
            let has_old = has_copy(world, &vm, host);
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
        cable("up")?;
        until(PATIENCE, "the host to hold a lease again", async || is_protected(world, host).await).await?;
        ensure!(!has_copy(world, &vm, host), "it stays away");
        Ok(())
    })
}
