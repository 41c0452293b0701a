//! VMs that take their disks along, to another datacentre or to a host that shares nothing with theirs, in a lab with real
//! agents, a real line and real QEMU.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

mod lab_world;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab_world::{
    Plot, binary, get, name, neighbour, ok, ran, running_on, serving, sterna, sterna_lab, until,
};
use serde_json::json;
use sterna_base::clock::{Clock, SystemClock, Timestamp};
use sterna_base::units::{Bytes, Span};
use sterna_client::object::Patch;
use sterna_client::vm::{Move, Vm};
use sterna_lab::bench::world::{Process, World};
use sterna_lab::place::Host;
use sterna_lab::user;
use sterna_model::bandwidth::BandwidthLimit;
use sterna_model::migration::{Outcome, Phase};

const PLOT: Plot = Plot { name: "e2e-wan", net: "10.98.0.0/16", port: 7747, datacentres: "a,b" };
const PATIENCE: Duration = Duration::from_secs(90);

/// The word in the guest's greeting that is random for each boot.
async fn boot_of(world: &World, vm: &Vm, from: Host) -> Result<String> {
    world.guest_answers(from, user::address(vm)?).await?;
    let greeting = world.ask_guest(from, user::address(vm)?, "/").await?;
    let boot = greeting.split_whitespace().find_map(|word| word.strip_prefix("boot="));
    boot.map(str::to_owned).with_context(|| format!("no boot word in {greeting}"))
}

fn line(words: &str) -> Result<()> {
    let set = sterna_lab(&PLOT, &format!("link a-b {words}"));
    ensure!(set.code == 0, "{}", set.talk);
    Ok(())
}

/// A long and narrow one, for those tests that want it so.
fn slow() -> Result<()> {
    line("--rtt 40ms --rate 80Mbit --loss 0% --up")
}

fn fast() -> Result<()> {
    line("--rtt 0ms --rate none --loss 0% --up")
}

/// Mends the line also after a test that failed.
struct Mends;

impl Drop for Mends {
    fn drop(&mut self) {
        if let Err(error) = fast() {
            println!("the line is not mended: {error:#}");
        }
    }
}

fn host(world: &World, text: &str) -> Result<Host> {
    world.lab.host(text).with_context(|| format!("no host {text}"))
}

/// The VM on the first host of datacentre a, with its guest's boot word.
async fn begin(world: &World, vm: &str) -> Result<(Vm, String)> {
    let here = host(world, "a1")?;
    world.user.ensure_image(&name("tiny"), &lab_world::image()?).await?;
    let made = running_on(world, vm, here).await?;
    let boot = boot_of(world, &made, here).await?;
    Ok((made, boot))
}

async fn moved(world: &World, vm: &str, to: &str) -> Result<Outcome> {
    let ended = world.user.move_to(&name(vm), &name(to), Span::from_millis(1000)).await?;
    ended.decision.and_then(|decision| decision.outcome).context("nothing was measured")
}

async fn volume_is(world: &World, vm: &str, pool: &str, at: &str) -> Result<()> {
    let volume = world.user.client.volumes().get(&name(&format!("{vm}-boot"))).await?;
    let decision = volume.decision.context("the volume has no place")?;
    let place = (decision.pool.as_str(), decision.host.as_str());
    ensure!(place == (pool, at), "the volume is at {place:?}");
    ensure!(!decision.is_moving(), "{decision:?}");
    Ok(())
}

#[test]
fn a_vm_moves_to_the_other_datacentre_with_its_disk_and_is_back_with_next_to_nothing() -> Result<()> {
    lab_world::run(&PLOT, async |world| {
        let _mends = Mends;
        let (vm, boot) = begin(world, "far").await?;
        slow()?;
        let there = moved(world, "far", "b1").await?;
        volume_is(world, "far", "shared-b", "b1").await?;
        ensure!(
            there.downtime.is_some_and(|pause| pause.as_millis() > 20),
            "half a round trip at least: {there:?}"
        );
        ensure!(boot_of(world, &vm, host(world, "b2")?).await? == boot, "it runs on, and not anew");
        ensure!(boot_of(world, &vm, host(world, "a2")?).await? == boot, "and is reached from where it was");
        let back = moved(world, "far", "a1").await?;
        volume_is(world, "far", "shared-a", "a1").await?;
        ensure!(boot_of(world, &vm, host(world, "a2")?).await? == boot);
        println!("there {there:?}\nback {back:?}");
        ensure!(back.bytes.as_u64() * 5 < there.bytes.as_u64(), "what was there is known: {back:?}");
        Ok(())
    })
}

#[test]
fn volumes_that_went_ahead_need_not_go_again() -> Result<()> {
    lab_world::run(&PLOT, async |world| {
        let _mends = Mends;
        let (vm, boot) = begin(world, "ahead").await?;
        slow()?;
        let near = sterna(world, "vm preseed ahead --to a2");
        ensure!(near.code != 0 && near.talk.contains("opens every volume"), "{}", near.talk);
        let said = ok(world, "vm preseed ahead --to b1")?;
        ensure!(said.data.contains("it stays on host a1"), "{} {}", said.data, said.talk);
        volume_is(world, "ahead", "shared-a", "a1").await?;
        until(PATIENCE, "nothing to run there", async || Ok(world.copies(&vm) == 1)).await?;
        ensure!(boot_of(world, &vm, host(world, "a2")?).await? == boot, "its guest did not notice");
        let bytes = |name_of: &str| {
            let shown = ok(world, &format!("migration show {name_of} -o json"))?.data;
            let shown: serde_json::Value = serde_json::from_str(&shown)?;
            let bytes = shown["decision"]["outcome"]["bytes"].as_str().context("no bytes")?.parse::<Bytes>();
            bytes.map_err(|why| anyhow::anyhow!("{why}"))
        };
        let first = bytes("ahead-1")?;
        ok(world, "vm preseed ahead --to b1")?;
        let again = bytes("ahead-2")?;
        println!("ahead {first}, again {again}");
        // What is the image's is there as a clone of it; names travel, and what the guest wrote.
        ensure!(first < Bytes::mib(1) && again < Bytes::mib(1), "{first}, then {again}");
        moved(world, "ahead", "b1").await?;
        ensure!(boot_of(world, &vm, host(world, "a2")?).await? == boot);
        volume_is(world, "ahead", "shared-b", "b1").await
    })
}

#[test]
fn a_line_that_is_gone_for_a_while_pauses_the_move_and_not_the_guest() -> Result<()> {
    lab_world::run(&PLOT, async |world| {
        let _mends = Mends;
        let (vm, boot) = begin(world, "cut").await?;
        line("--rtt 40ms --rate 16Mbit --up")?;
        let order =
            Move { to: Some(name("b1")), max_downtime: Some(Span::from_millis(1000)), ..Move::default() };
        let mut is_cut = false;
        let mut cut_at = None;
        let from = host(world, "a2")?;
        let cut = name("cut");
        let moving = world.user.migrate(&cut, &order, |_, progress| {
            let sent = progress.map_or(Bytes(0), |progress| progress.sent);
            if !is_cut && sent.as_u64() > 1 << 20 {
                is_cut = true;
                cut_at = Some((sent, std::time::Instant::now()));
                line("--down").unwrap();
            }
            if cut_at.is_some_and(|(_, at)| at.elapsed() > Duration::from_secs(8)) {
                cut_at = None;
                line("--rate 80Mbit --up").unwrap();
            }
        });
        let ended = moving.await?;
        ensure!(is_cut && cut_at.is_none(), "the line was never cut");
        ensure!(matches!(user::phase(&ended), Some(Phase::Succeeded)), "{:?}", user::phase(&ended));
        ensure!(boot_of(world, &vm, from).await? == boot, "it runs on, and not anew");
        volume_is(world, "cut", "shared-b", "b1").await
    })
}

#[test]
fn a_move_over_a_line_that_does_not_come_back_is_called_off() -> Result<()> {
    lab_world::run(&PLOT, async |world| {
        let _mends = Mends;
        let (vm, boot) = begin(world, "stays").await?;
        line("--rtt 40ms --rate 16Mbit --up")?;
        let moving = sterna(world, "vm migrate stays --to b1 --no-wait");
        ensure!(moving.code == 0, "{}", moving.talk);
        until(PATIENCE, "something to be sent", async || {
            let shown = ok(world, "migration show stays-1 -o json")?;
            Ok(shown.data.contains("\"sent\"") && shown.data.contains("copying"))
        })
        .await?;
        line("--down")?;
        ok(world, "migration cancel stays-1")?;
        until(PATIENCE, "the move to end", async || {
            let shown = world.user.client.migrations().get(&name("stays-1")).await?;
            Ok(matches!(user::phase(&shown), Some(Phase::Cancelled)))
        })
        .await?;
        ensure!(boot_of(world, &vm, host(world, "a2")?).await? == boot);
        volume_is(world, "stays", "shared-a", "a1").await?;
        fast()?;
        until(PATIENCE, "nothing to be left there", async || Ok(world.copies(&vm) == 1)).await?;
        until(PATIENCE, "its host to be back", async || {
            let host = world.user.client.hosts().get(&name("b1")).await?;
            Ok(host.status.is_some_and(|status| status.state == "ready"))
        })
        .await?;
        // What arrived is of use: the second try is whole.
        moved(world, "stays", "b1").await?;
        ensure!(boot_of(world, &vm, host(world, "a2")?).await? == boot);
        volume_is(world, "stays", "shared-b", "b1").await
    })
}

/// Which way a move took and why, in its own words.
async fn method_of(world: &World, migration: &str) -> Result<String> {
    let shown = world.user.client.migrations().get(&name(migration)).await?;
    let method = shown.decision.context("it was never decided")?.method;
    println!("{migration}: {method}");
    Ok(method)
}

#[test]
fn a_vm_on_a_hosts_own_disk_moves_like_any_other() -> Result<()> {
    lab_world::run(&PLOT, async |world| {
        world.user.ensure_image(&name("tiny"), &lab_world::image()?).await?;
        ok(world, "vm create near --image tiny --memory 128MiB --pool default")?;
        let (vm, here) = serving(world, "near").await?;
        let boot = boot_of(world, &vm, here).await?;
        let there = neighbour(world, here);
        moved(world, "near", &there.name()).await?;
        volume_is(world, "near", "default", &there.name()).await?;
        ensure!(boot_of(world, &vm, here).await? == boot, "it runs on, and not anew");
        let way = method_of(world, "near-1").await?;
        ensure!(way.starts_with("memory and disks straight from host to host: volume near-boot"), "{way}");
        // A drain brings it back, also without being told where to.
        ok(world, &format!("host drain {}", there.name()))?;
        until(PATIENCE, "the drain to move it", async || {
            Ok(user::owner(&get(world, "near").await?)?.as_str() == here.name())
        })
        .await?;
        ensure!(boot_of(world, &vm, there).await? == boot);
        let way = method_of(world, "near-2").await?;
        ensure!(way.starts_with("through the mover: host") && way.contains("has a former copy"), "{way}");
        ok(world, &format!("host undrain {}", there.name())).map(drop)
    })
}

/// Takes the limits away, also after a test that failed.
struct Unlimits<'a>(&'a World);

impl Drop for Unlimits<'_> {
    fn drop(&mut self) {
        let ended = sterna(self.0, "datacentre set b --no-bandwidth");
        if ended.code != 0 {
            println!("the line keeps its limit: {}", ended.talk);
        }
    }
}

/// The next full minute that leaves a move some time before it.
fn soon(now: Timestamp) -> Timestamp {
    let minute = 60_000;
    Timestamp::from_millis((now.as_millis() + 15_000).div_euclid(minute) * minute + minute)
}

#[test]
fn a_limit_of_the_line_holds_a_move_back_until_its_time_is_over() -> Result<()> {
    lab_world::run(&PLOT, async |world| {
        let (_mends, _unlimits) = (Mends, Unlimits(world));
        let (vm, boot) = begin(world, "paced").await?;
        line("--rtt 40ms --rate 80Mbit --loss 0% --up")?;
        let ends = soon(SystemClock.now());
        let clock = |at: Timestamp| at.to_string()[11..16].to_owned();
        let began = Timestamp::from_millis(ends.as_millis() - 3_600_000);
        let limit: BandwidthLimit = format!("{}-{} 1Mbit/s", clock(began), clock(ends)).parse()?;
        let change = Patch::of(json!({"bandwidth": [limit]}));
        world.user.client.datacentres().patch(&name("b"), &change).await?;
        let forecast = ok(world, "vm forecast paced --to b1 -o json")?.data;
        ensure!(forecast.contains("0.1 MB/s at the most now, no limit from "), "{forecast}");
        let order =
            Move { to: Some(name("b1")), max_downtime: Some(Span::from_millis(1000)), ..Move::default() };
        let begun = std::time::Instant::now();
        let mut by_then = None;
        let paced = name("paced");
        let moving = world.user.migrate(&paced, &order, |_, progress| {
            let sent = progress.map_or(Bytes(0), |progress| progress.sent);
            if SystemClock.now() < ends {
                by_then = Some((sent, begun.elapsed()));
            }
        });
        let ended = moving.await?;
        let over = SystemClock.now();
        ensure!(matches!(user::phase(&ended), Some(Phase::Succeeded)), "{:?}", user::phase(&ended));
        let (sent, took) = by_then.context("the limit was over before the move began")?;
        // A frame may go before it has had its time.
        let most = took.as_secs_f64() * 125_000.0 + f64::from(2 << 20);
        println!("{sent} in {took:?} under the limit, over at {over}");
        ensure!(
            sent.as_u64() > 500_000 && (sent.as_u64() as f64) < most,
            "{sent} in {took:?}, at most {most}"
        );
        ensure!(over > ends, "the guest's memory and disk do not fit the limit");
        let after = over.since(ends);
        let outcome = ended.decision.and_then(|decision| decision.outcome).context("nothing was measured")?;
        let rest = (outcome.bytes.as_u64() - sent.as_u64()) as f64;
        ensure!(rest / after.as_secs_f64() > 500_000.0, "{rest} bytes in {after:?} without a limit");
        ensure!(boot_of(world, &vm, host(world, "a2")?).await? == boot, "it runs on, and not anew");
        volume_is(world, "paced", "shared-b", "b1").await
    })
}

#[test]
fn whatever_process_dies_on_the_way_one_guest_runs_on() -> Result<()> {
    lab_world::run(&PLOT, async |world| {
        let _mends = Mends;
        let (vm, boot) = begin(world, "dies").await?;
        slow()?;
        for (round, victim) in ["source agent", "target agent", "target qemu", "server"].iter().enumerate() {
            let (from, to) = (world.host_of(user::owner(&get(world, "dies").await?)?)?, "b1");
            let to = if from.name() == to { "a1" } else { to };
            let target = host(world, to)?;
            let name_of = format!("dies-{}", round + 1);
            let moving = sterna(world, &format!("vm migrate dies --to {to} --no-wait --max-downtime 1s"));
            ensure!(moving.code == 0, "{}", moving.talk);
            until(PATIENCE, "memory or disk to flow", async || {
                Ok(ok(world, &format!("migration show {name_of} -o json"))?.data.contains("copying"))
            })
            .await?;
            let process = match *victim {
                "source agent" => Process::Agent(from),
                "target agent" => Process::Agent(target),
                "target qemu" => Process::Qemu(target),
                _ => Process::Server,
            };
            // It may have ended by itself by now.
            if let Ok(member) = world.find(process) {
                member.signal(rustix::process::Signal::KILL);
            }
            until(PATIENCE, &format!("the move to end after the {victim} died"), async || {
                // The server may be the one that died.
                let shown = sterna(world, &format!("migration show {name_of} -o json"));
                Ok(["succeeded", "failed", "cancelled"].iter().any(|end| shown.data.contains(end)))
            })
            .await?;
            let now = boot_of(world, &get(world, "dies").await?, host(world, "a2")?).await?;
            ensure!(now == boot, "the guest booted anew after the {victim} died");
            until(PATIENCE, "one copy", async || Ok(world.copies(&vm) == 1)).await?;
        }
        Ok(())
    })
}

#[test]
fn the_help_says_how_far_a_vm_may_be_told_to_go() -> Result<()> {
    let help = ran(std::process::Command::new(binary()?).args(["vm", "migrate", "--help"]));
    ensure!(help.data.contains("--to-datacentre"), "{}", help.data);
    Ok(())
}
