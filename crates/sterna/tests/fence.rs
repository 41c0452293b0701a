//! Fence devices, in a lab with real guards, agents, QEMU, and a fence agent that is a fake: it kills everything on a host at once. A VM
//! that outlives its host's lease runs elsewhere once its host is off, and never twice.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

mod lab_world;

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab_world::{Plot, get, name, neighbour, ok, ran, running_on, sterna, sterna_lab, until};
use sterna_client::object::Patch;
use sterna_client::vm::Vm;
use sterna_lab::bench::world::World;
use sterna_lab::member;
use sterna_lab::place::Host;
use sterna_lab::user;
use sterna_model::status::VmState;

const PLOT: Plot = Plot { name: "e2e-fence", net: "10.92.0.0/16", port: 7750, datacentres: "a,b" };
/// Voters that have just been started are silent for half a minute.
const PATIENCE: Duration = Duration::from_secs(90);
/// From the cut: the lease has long run out by then.
const OUTLIVES: Duration = Duration::from_secs(12);

/// Profile `quick`, and both hosts of the first datacentre hold a lease.
async fn leased(world: &World) -> Result<(Host, Host)> {
    let site = world.lab.home();
    let quick = Patch::of(serde_json::json!({ "ha": { "profile": "quick" } }));
    world.user.client.datacentres().patch(&name(&site.letter().to_string()), &quick).await?;
    let host = Host { site, number: 1 };
    let other = neighbour(world, host);
    world.user.ensure_image(&name("tiny"), &world.image).await?;
    for host in [host, other] {
        until(PATIENCE, &format!("{} to hold a lease", host.name()), async || {
            let voters = world.user.client.datacentres().get(&name(&site.letter().to_string())).await?;
            let is_settled =
                voters.decision.is_some_and(|it| it["profile"] == "quick" && it["former"].is_null());
            Ok(is_settled && ways(world, host).await?.contains(&"F3".to_owned()))
        })
        .await?;
    }
    Ok((host, other))
}

async fn ways(world: &World, host: Host) -> Result<Vec<String>> {
    let host = world.user.client.hosts().get(&name(&host.name())).await?;
    Ok(host.status.map(|status| status.protected_by).unwrap_or_default())
}

/// Gives the host its plug of the lab's fake device.
async fn plug_in(world: &World, host: Host) -> Result<()> {
    let host_name = host.name();
    ok(world, &format!("host fence set {host_name} --agent fence_fake --option plug={host_name}"))?;
    until(PATIENCE, "the device to count", async || Ok(ways(world, host).await? == ["F2", "F3"])).await
}

/// Whether QEMU has a process of the VM on that host.
fn has_copy(world: &World, vm: &Vm, host: Host) -> bool {
    let folder = world.lab.run_dir(host).join("vm").join(vm.meta.uid.to_string());
    let is_qemu = |line: &str| line.split(' ').next().is_some_and(|word| word.contains("qemu-system"));
    member::naming(&folder.display().to_string()).iter().any(|member| is_qemu(&member.line))
}

fn cable(world: &World, host: Host, state: &str) -> Result<()> {
    let switch = world.lab.switch_space(host.site);
    let ran = ran(Command::new("ip").args(["-n", &switch, "link", "set", "dev", &host.name(), state]));
    ensure!(ran.code == 0, "{}", ran.talk);
    Ok(())
}

/// Whatever a test switched off.
fn switch_on() -> Result<()> {
    let up = format!("up --net {} --port {} --datacentres {}", PLOT.net, PLOT.port, PLOT.datacentres);
    let up = sterna_lab(&PLOT, &up);
    ensure!(up.code == 0, "{}", up.talk);
    Ok(())
}

#[test]
fn a_kept_vm_of_a_host_that_is_cut_off_runs_elsewhere_once_that_host_is_off() -> Result<()> {
    lab_world::run(&PLOT, async |world| {
        let (host, other) = leased(world).await?;
        plug_in(world, host).await?;
        let made = running_on(world, "kept", host).await?;
        let keep = Patch::of(serde_json::json!({ "isolation": "keep" }));
        world.user.client.vms().patch(&name("kept"), &keep).await?;
        let owned = get(world, "kept").await?.decision.context("it is owned")?;
        ensure!(owned.host_epoch.is_none(), "no lease ends it: the device has its own power");

        let began = Instant::now();
        cable(world, host, "down")?;
        // Looked at all the time: at no instant are there two.
        let (mut gone, mut there) = (None, None);
        while there.is_none() && began.elapsed() < PATIENCE {
            let has_new = has_copy(world, &made, other);
            // Looked for after the new one: what is seen now was there then.
            let has_old = has_copy(world, &made, host);
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
        until(PATIENCE, "the VM to run elsewhere", async || {
            let vm = get(world, "kept").await?;
            let is_running = vm.status.as_ref().is_some_and(|status| status.state == VmState::Running);
            Ok(is_running && user::owner(&vm)?.as_str() == other.name())
        })
        .await?;
        let after = get(world, "kept").await?.decision.context("it is owned")?;
        ensure!(
            after.owner.epoch == owned.owner.epoch + 1,
            "{} then {}",
            owned.owner.epoch,
            after.owner.epoch
        );
        let takeover = after.takeover.as_ref().context("its taking over is on record")?;
        ensure!(takeover.from.as_str() == host.name() && takeover.proof == "F2", "{takeover:?}");
        ensure!(member::on_host(&world.lab, host)?.is_empty(), "the host is off, and stays so");

        cable(world, host, "up")?;
        switch_on()?;
        until(PATIENCE, "the host to be protected again", async || {
            Ok(ways(world, host).await? == ["F2", "F3"])
        })
        .await?;
        ensure!(!has_copy(world, &made, host), "it stays away");
        ok(world, &format!("host fence remove {} --yes", host.name()))?;
        Ok(())
    })
}

#[test]
fn a_kept_vm_lives_on_while_its_hosts_device_cannot_be_reached() -> Result<()> {
    lab_world::run(&PLOT, async |world| {
        let (host, other) = leased(world).await?;
        plug_in(world, host).await?;
        let made = running_on(world, "stays", host).await?;
        // The device breaks: it is not executable any more.
        let agent = sterna_lab::fence::agents(&world.lab).join(sterna_lab::fence::AGENT);
        let away = agent.with_extension("away");
        std::fs::rename(&agent, &away)?;
        let outcome: Result<()> = async {
            cable(world, host, "down")?;
            let began = Instant::now();
            while began.elapsed() < OUTLIVES {
                ensure!(has_copy(world, &made, host), "ended after {:?}", began.elapsed());
                ensure!(!has_copy(world, &made, other), "a second copy after {:?}", began.elapsed());
            }
            until(PATIENCE, "an alert about the device", async || {
                let list = sterna(world, "alert list");
                Ok(list.data.contains("fence-device") && list.data.contains("does not switch it off"))
            })
            .await?;
            ensure!(has_copy(world, &made, host) && !has_copy(world, &made, other));
            Ok(())
        }
        .await;
        std::fs::rename(&away, &agent)?;
        outcome?;
        // Mended, it is tried again.
        until(PATIENCE, "the VM to run elsewhere", async || Ok(has_copy(world, &made, other))).await?;
        ensure!(!has_copy(world, &made, host));
        cable(world, host, "up")?;
        switch_on()?;
        ok(world, &format!("host fence remove {} --yes", host.name()))?;
        Ok(())
    })
}

#[test]
fn only_a_device_that_answers_is_taken() -> Result<()> {
    lab_world::run(&PLOT, async |world| {
        let (host, other) = leased(world).await?;
        let (host, other) = (host.name(), other.name());
        let set = |host: &str, more: &str| sterna(world, &format!("host fence set {host} {more}"));
        let refused = set(&host, "--agent fence_fake --option plug=nowhere");
        ensure!(refused.code != 0 && refused.talk.contains("nowhere"), "{}", refused.talk);
        let refused = set(&host, "--agent fence_nobody --option plug=1");
        ensure!(refused.code != 0 && refused.talk.contains("fence_nobody"), "{}", refused.talk);
        ok(world, &format!("host fence set {host} --agent fence_fake --option plug={host}"))?;
        let refused = set(&other, &format!("--agent fence_fake --option plug={host}"));
        ensure!(
            refused.code != 0 && refused.talk.contains(&format!("host {host} has the same")),
            "{}",
            refused.talk
        );
        let tested = ok(world, &format!("host fence test {host}"))?;
        ensure!(tested.talk.contains("is on"), "{}", tested.talk);
        let shown = ok(world, &format!("host fence show {host}"))?;
        ensure!(shown.data.contains(&format!("plug={host}")), "{}", shown.data);
        ok(world, &format!("host fence remove {host} --yes"))?;
        Ok(())
    })
}
