//! Hosts that lose their leases, and what is seen of their VMs.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sterna_client::vm::Vm;
use sterna_lab::bench::world::World;
use sterna_lab::place::Host;
use sterna_lab::user;
use sterna_model::ha::Profile;
use sterna_model::status::VmState;

use super::{Plot, get, name, neighbour, sterna_lab, until};

/// Voters that have just been started are silent for half a minute.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Profile `quick`, and both hosts of the first datacentre hold a lease. The image is there as well.
pub async fn leased(world: &World) -> Result<(Host, Host)> {
    let host = Host { site: world.lab.home(), number: 1 };
    let other = neighbour(world, host);
    world.user.set_profile(&name(&host.site.letter().to_string()), Profile::Quick).await?;
    for host in [host, other] {
        holds_lease(world, host).await?;
    }
    world.user.ensure_image(&name("tiny"), &world.image).await?;
    Ok((host, other))
}

pub async fn holds_lease(world: &World, host: Host) -> Result<()> {
    let what = format!("{} to hold a lease", host.name());
    until(PATIENCE, &what, async || world.user.holds_lease(&name(&host.name()), Profile::Quick).await).await
}

pub async fn runs_on(world: &World, vm: &str, host: Host) -> Result<bool> {
    let vm = get(world, vm).await?;
    let is_running = vm.status.as_ref().is_some_and(|status| status.state == VmState::Running);
    Ok(is_running && user::owner(&vm)?.as_str() == host.name())
}

/// Looks all the time until the VM has gone from one host to the other: at no instant are there two.
pub async fn goes_over(world: &World, vm: &Vm, (host, other): (Host, Host)) -> Result<()> {
    let began = Instant::now();
    let (mut gone, mut there) = (None, None);
    while there.is_none() && began.elapsed() < PATIENCE {
        let has_new = world.copy(other, vm).is_some();
        // Looked for after the new one: what is seen now was there then.
        let has_old = world.copy(host, vm).is_some();
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
    let vm = vm.name().as_str();
    until(PATIENCE, "the VM to run elsewhere", async || runs_on(world, vm, other).await).await
}

/// It was started once more, elsewhere, by that proof.
pub fn check_takeover(before: &Vm, after: &Vm, (lost, proof): (Host, &str)) -> Result<()> {
    let (before, after) =
        (before.decision.as_ref().context("owned")?, after.decision.as_ref().context("owned")?);
    ensure!(after.owner.epoch == before.owner.epoch + 1, "{} then {}", before.owner.epoch, after.owner.epoch);
    let takeover = after.takeover.as_ref().context("its taking over is on record")?;
    ensure!(takeover.from.as_str() == lost.name() && takeover.proof == proof, "{takeover:?}");
    Ok(())
}

/// Whatever a test switched off.
pub fn switch_on(plot: &Plot) -> Result<()> {
    let up = format!("up --net {} --port {} --datacentres {}", plot.net, plot.port, plot.datacentres);
    let up = sterna_lab(plot, &up);
    ensure!(up.code == 0, "{}", up.talk);
    Ok(())
}
