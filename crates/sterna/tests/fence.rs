//! Fence devices, in a lab with real guards, agents, QEMU, and a fence agent that is a fake: it kills everything on a host at once. A VM
//! that outlives its host's lease runs elsewhere once its host is off, and never twice.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

mod lab_world;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab_world::lost::{PATIENCE, check_takeover, goes_over, leased, switch_on};
use lab_world::{Plot, get, name, ok, running_on, sterna, until};
use sterna_client::object::Patch;
use sterna_lab::bench::world::World;
use sterna_lab::place::Host;
use sterna_lab::{member, topology};

const PLOT: Plot = Plot { name: "e2e-fence", net: "10.92.0.0/16", port: 7750, datacentres: "a,b" };
/// From the cut: the lease has long run out by then.
const OUTLIVES: Duration = Duration::from_secs(12);

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

#[test]
fn a_kept_vm_of_a_host_that_is_cut_off_runs_elsewhere_once_that_host_is_off() -> Result<()> {
    lab_world::run(&PLOT, async |world| {
        let (host, other) = leased(world).await?;
        plug_in(world, host).await?;
        let made = running_on(world, "kept", host).await?;
        let keep = Patch::of(serde_json::json!({ "isolation": "keep" }));
        world.user.client.vms().patch(&name("kept"), &keep).await?;
        let before = get(world, "kept").await?;
        let owned = before.decision.as_ref().context("it is owned")?;
        ensure!(owned.host_epoch.is_none(), "no lease ends it: the device has its own power");

        topology::cable(&world.lab, host, false)?;
        goes_over(world, &made, (host, other)).await?;
        check_takeover(&before, &get(world, "kept").await?, (host, "F2"))?;
        ensure!(member::on_host(&world.lab, host)?.is_empty(), "the host is off, and stays so");

        topology::cable(&world.lab, host, true)?;
        switch_on(&PLOT)?;
        until(PATIENCE, "the host to be protected again", async || {
            Ok(ways(world, host).await? == ["F2", "F3"])
        })
        .await?;
        ensure!(world.copy(host, &made).is_none(), "it stays away");
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
            topology::cable(&world.lab, host, false)?;
            let began = Instant::now();
            while began.elapsed() < OUTLIVES {
                ensure!(world.copy(host, &made).is_some(), "ended after {:?}", began.elapsed());
                ensure!(world.copy(other, &made).is_none(), "a second copy after {:?}", began.elapsed());
            }
            until(PATIENCE, "an alert about the device", async || {
                let list = sterna(world, "alert list");
                Ok(list.data.contains("fence-device") && list.data.contains("does not switch it off"))
            })
            .await?;
            ensure!(world.copy(host, &made).is_some() && world.copy(other, &made).is_none());
            Ok(())
        }
        .await;
        std::fs::rename(&away, &agent)?;
        outcome?;
        // Mended, it is tried again.
        until(PATIENCE, "the VM to run elsewhere", async || Ok(world.copy(other, &made).is_some())).await?;
        ensure!(world.copy(host, &made).is_none());
        topology::cable(&world.lab, host, true)?;
        switch_on(&PLOT)?;
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
