//! What a user does with VMs, in a lab with real agents and real QEMU.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

mod lab_world;

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab_world::console::Console;
use lab_world::{
    Plot, Ran, SHARED, binary, demo_once, get, image, name, neighbour, ok, ran, running, running_on, serving,
    sterna, sterna_lab, until, until_state,
};
use rustix::process::Signal;
use sterna_base::units::{Bytes, Span};
use sterna_client::Error;
use sterna_client::migration::Migration;
use sterna_client::object::New;
use sterna_client::vm::{Move, Vm};
use sterna_lab::bench::api::kill_and_wait;
use sterna_lab::bench::world::{Process, World};
use sterna_lab::member;
use sterna_lab::place::Host;
use sterna_lab::user;
use sterna_model::error::Code;
use sterna_model::network::NetworkKind;
use sterna_model::network::NetworkSpec;
use sterna_model::status::VmState;

const PLOT: Plot = Plot { name: "e2e", net: "10.94.0.0/16", port: 7743, datacentres: "a,b" };
const PATIENCE: Duration = Duration::from_secs(60);
const DOWNTIME: Span = Span::from_millis(300);

/// The word in the guest's greeting that is random for each boot.
async fn boot_of(world: &World, vm: &Vm, host: Host) -> Result<String> {
    world.guest_answers(host, user::address(vm)?).await?;
    let greeting = world.ask_guest(host, user::address(vm)?, "/").await?;
    let boot = greeting.split_whitespace().find_map(|word| word.strip_prefix("boot="));
    boot.map(str::to_owned).with_context(|| format!("no boot word in {greeting}"))
}

fn epoch(vm: &Vm) -> u64 {
    vm.decision.as_ref().map_or(0, |decision| decision.owner.epoch)
}

/// QEMU processes of a VM, wherever they run in the lab.
fn copies(world: &World, vm: &Vm) -> usize {
    let uid = vm.meta.uid.to_string();
    let is_copy = |line: &str| {
        line.split(' ').next().is_some_and(|word| word.contains("qemu-system")) && line.contains(&uid)
    };
    member::all(&world.lab.dir).iter().filter(|member| is_copy(&member.line)).count()
}

#[test]
fn a_vm_lives_from_create_to_delete() -> Result<()> {
    lab_world::run(&PLOT, async |world| {
        let (user, vms) = (&world.user, world.user.client.vms());
        let (vm, host) = serving(world, "life").await?;
        let (id, boot) = (vm.name(), boot_of(world, &vm, host).await?);

        user.done(&vms.pause(id).await?).await?;
        let paused = until_state(world, "life", VmState::Paused).await?;
        ensure!(world.ask_guest(host, user::address(&vm)?, "/").await.is_err(), "a paused guest answers");
        user.done(&vms.resume(id).await?).await?;
        until_state(world, "life", VmState::Running).await?;
        ensure!(boot_of(world, &vm, host).await? == boot, "resumed, not booted");
        ensure!(epoch(&paused) == epoch(&vm), "a pause is no start");

        user.done(&vms.reset(id).await?).await?;
        until(PATIENCE, "another boot", async || Ok(boot_of(world, &vm, host).await? != boot)).await?;
        ensure!(epoch(&get(world, "life").await?) == epoch(&vm), "a reset is no start");

        user.done(&vms.stop(id, false).await?).await?;
        let stopped = until_state(world, "life", VmState::Stopped).await?;
        let message = &stopped.status.as_ref().unwrap().message;
        ensure!(message == "stopped as asked", "the guest shut down in time: {message}");
        ensure!(copies(world, &vm) == 0);
        user.done(&vms.start(id).await?).await?;
        let started = until_state(world, "life", VmState::Running).await?;
        ensure!(epoch(&started) > epoch(&vm), "a start has a new epoch");
        ensure!(user::address(&started)? == user::address(&vm)?, "the address stays");
        let host = world.host_of(user::owner(&started)?)?;
        boot_of(world, &started, host).await?;

        user.done(&vms.stop(id, true).await?).await?;
        let off = until_state(world, "life", VmState::Stopped).await?;
        ensure!(off.status.as_ref().unwrap().message == "switched off as asked");
        user.done(&vms.start(id).await?).await?;
        let boot_volume = name("life-boot");
        let disk = user.client.volumes().get(&boot_volume).await?.meta.uid;
        let file = world.lab.shared(host.site).join("volumes").join(format!("{disk}.qcow2"));
        ensure!(file.exists(), "{} is its disk", file.display());
        user.done(&vms.delete(id).await?).await?;
        let gone = vms.get(id).await;
        ensure!(gone.as_ref().is_err_and(|error| error.is(Code::NotFound)), "{gone:?}");
        ensure!(copies(world, &vm) == 0, "its process is gone");
        until(PATIENCE, "its volume to go", async || {
            Ok(user.client.volumes().get(&boot_volume).await.is_err_and(|error| error.is(Code::NotFound)))
        })
        .await?;
        ensure!(!file.exists(), "{} is left", file.display());
        Ok(())
    })
}

#[test]
fn a_change_of_memory_holds_after_the_next_start() -> Result<()> {
    lab_world::run(&PLOT, async |world| {
        running(world, "grows").await?;
        let set = ok(world, "vm set grows --memory 192MiB")?;
        ensure!(set.talk.contains("at next start: memory"), "{}", set.talk);
        let pending = get(world, "grows").await?.status.context("status")?.pending;
        ensure!(pending.len() == 1 && pending[0].contains("128MiB -> 192MiB"), "{pending:?}");
        ok(world, "vm stop grows --force --yes")?;
        ok(world, "vm start grows")?;
        let vm = until_state(world, "grows", VmState::Running).await?;
        ensure!(vm.status.as_ref().unwrap().pending.is_empty());
        ensure!(vm.decision.as_ref().unwrap().hardware.memory == Bytes::mib(192));
        let host = world.host_of(user::owner(&vm)?)?;
        world.guest_answers(host, user::address(&vm)?).await?;
        let state = world.ask_guest(host, user::address(&vm)?, "/state").await?;
        let state: serde_json::Value = serde_json::from_str(&state)?;
        // Of 128 MiB the kernel leaves 64.
        ensure!(state["available_mib"].as_u64().is_some_and(|mib| (100..192).contains(&mib)), "{state}");
        Ok(())
    })
}

#[test]
fn a_volume_grows_under_its_guest_which_says_so_on_the_console() -> Result<()> {
    lab_world::run(&PLOT, async |world| {
        let (vm, _) = serving(world, "shell").await?;
        let mut console = Console::open(world, &vm).await?;
        ensure!(console.ask("echo $((6 * 7))").await?.contains("42"));
        let before = world.user.client.volumes().get(&name("shell-boot")).await?;
        let size = |text: &str| {
            text.split_whitespace()
                .find_map(|word| word.parse::<u64>().ok())
                .map(|sectors| Bytes(sectors * 512))
        };
        let seen = console.ask("cat /sys/block/vda/size").await?;
        ensure!(size(&seen) == Some(before.decision.context("decision")?.size), "{seen}");
        let grown = ok(world, "volume grow shell-boot 64MiB")?;
        let seen = console.ask("cat /sys/block/vda/size").await?;
        ensure!(size(&seen) == Some(Bytes::mib(64)), "{seen}; {}", grown.talk);
        let smaller = sterna(world, "volume grow shell-boot 48MiB");
        ensure!(smaller.code == 1, "{smaller:?}");
        Ok(())
    })
}

#[test]
fn a_nic_comes_with_the_next_start_and_goes_again() -> Result<()> {
    lab_world::run(&PLOT, async |world| {
        let kind = NetworkKind::Overlay { cidr: "10.101.0.0/24".parse()? };
        let spec = NetworkSpec { kind, default: false };
        match world.user.client.networks().create(&New::named(name("second"), spec)).await {
            Err(error) if error.is(Code::AlreadyExists) => {}
            made => drop(made?),
        }
        let (vm, _) = running(world, "ports").await?;
        let added = ok(world, "nic add ports --network second")?;
        ensure!(added.talk.contains("next start"), "{}", added.talk);
        ensure!(get(world, "ports").await?.status.unwrap().pending == ["nics changed"]);
        ok(world, "vm stop ports --force --yes")?;
        ok(world, "vm start ports")?;
        let both = until_state(world, "ports", VmState::Running).await?;
        let nics = &both.decision.as_ref().unwrap().hardware.nics;
        ensure!(
            nics.len() == 2 && nics[0].mac == vm.decision.as_ref().unwrap().hardware.nics[0].mac,
            "{nics:?}"
        );
        let host = world.host_of(user::owner(&both)?)?;
        for nic in nics {
            world
                .guest_answers(host, nic.address.unwrap())
                .await
                .with_context(|| format!("on {}", nic.network))?;
        }
        ok(world, "nic remove ports 1 --yes")?;
        ok(world, "vm stop ports --force --yes")?;
        ok(world, "vm start ports")?;
        let one = until_state(world, "ports", VmState::Running).await?;
        ensure!(one.decision.unwrap().hardware.nics.len() == 1);
        ok(world, "vm delete ports --yes")?;
        ok(world, "network delete second --yes")?;
        Ok(())
    })
}

#[test]
fn ten_moves_there_and_back_lose_no_request() -> Result<()> {
    lab_world::run(&PLOT, async |world| {
        let (vm, first) = serving(world, SHARED).await?;
        let guest = user::address(&vm)?;
        let boot = boot_of(world, &vm, first).await?;
        let probes = world.probes(first, guest, true).await?;
        let mut at = first;
        for _ in 0..10 {
            at = neighbour(world, at);
            world.user.move_to(vm.name(), &name(&at.name()), DOWNTIME).await?;
        }
        let seen = tokio::task::spawn_blocking(move || probes.finish()).await??;
        let (http, udp) = (seen.http.context("requests")?, seen.udp.context("echo")?);
        println!(
            "{} requests, {} lost; longest gap of ten moves {:.0} ms",
            http.requests, http.lost, udp.gap_ms
        );
        ensure!(http.lost == 0 && http.in_order && http.requests > 100, "{http:?}");
        ensure!(udp.doubled == 0, "two copies answered: {udp:?}");
        ensure!(boot_of(world, &vm, at).await? == boot, "it never booted again");
        ensure!(copies(world, &vm) == 1);
        let ledger = world.user.client.vms().ledger(vm.name()).await?;
        ensure!(ledger.len() >= 10, "{} moves in the ledger", ledger.len());
        let measured =
            |moved: &Migration| moved.decision.as_ref().and_then(|d| d.outcome.as_ref()?.downtime).is_some();
        ensure!(ledger.iter().take(10).all(measured), "each with its downtime");
        Ok(())
    })
}

/// Orders a move and waits until it is in this phase.
async fn moving(world: &World, vm: &Vm, to: Host, phase: &str) -> Result<Migration> {
    let order =
        Move { to: Some(name(&to.name())), max_downtime: Some(Span::from_millis(10)), ..Move::default() };
    let answer = world.user.client.vms().migrate(vm.name(), &order).await?;
    in_phase(world, &answer.migration.context("no migration")?, phase).await
}

async fn in_phase(world: &World, migration: &sterna_model::meta::Name, phase: &str) -> Result<Migration> {
    until(PATIENCE, &format!("the move to be {phase}"), async || {
        let now = world.user.client.migrations().get(migration).await?;
        let word = user::phase(&now).map_or("asked", sterna_model::migration::Phase::word);
        ensure!(word == phase || !sterna_client::migration::has_ended(&now), "it is {:?}", user::phase(&now));
        Ok(word == phase)
    })
    .await?;
    Ok(world.user.client.migrations().get(migration).await?)
}

#[test]
fn a_move_that_is_cancelled_while_it_copies_leaves_the_guest_where_it_is() -> Result<()> {
    lab_world::run(&PLOT, async |world| {
        let (vm, host) = serving(world, SHARED).await?;
        let (to, boot) = (neighbour(world, host), boot_of(world, &vm, host).await?);
        let probes = world.probes(host, user::address(&vm)?, true).await?;
        // Nothing is sent before the target stands still, and then nothing arrives: it copies until it is cancelled.
        let agent = world.find(Process::Agent(host))?;
        agent.signal(Signal::STOP);
        let moved = moving(world, &vm, to, "copying").await;
        let target = world.find(Process::Qemu(to));
        target.iter().for_each(|target| target.signal(Signal::STOP));
        agent.signal(Signal::CONT);
        let (moved, _) = (moved?, target?);
        until(PATIENCE, "the source to send", async || {
            let now = world.user.client.migrations().get(moved.name()).await?;
            ensure!(user::phase(&now) == user::phase(&moved), "it is {:?}", user::phase(&now));
            Ok(sterna_client::migration::progress(&now).is_some())
        })
        .await?;
        world.user.client.migrations().cancel(moved.name()).await?;
        let asked = Instant::now();
        in_phase(world, moved.name(), "cancelled").await?;
        println!("cancelled after {:?}", asked.elapsed());
        let seen = tokio::task::spawn_blocking(move || probes.finish()).await??;
        ensure!(seen.http.as_ref().is_some_and(|http| http.lost == 0), "{:?}", seen.http);
        let now = get(world, SHARED).await?;
        ensure!(user::owner(&now)?.as_str() == host.name() && epoch(&now) == epoch(&vm));
        ensure!(boot_of(world, &now, host).await? == boot && copies(world, &vm) == 1);
        Ok(())
    })
}

#[test]
fn a_move_cannot_be_cancelled_once_the_guest_was_handed_over() -> Result<()> {
    lab_world::run(&PLOT, async |world| {
        let (vm, host) = serving(world, SHARED).await?;
        let to = neighbour(world, host);
        // The source sends only when the target's agent stands still, which then cannot continue the guest.
        let (source, agent) = (world.find(Process::Agent(host))?, world.find(Process::Agent(to))?);
        source.signal(Signal::STOP);
        let moved = moving(world, &vm, to, "copying").await;
        agent.signal(Signal::STOP);
        source.signal(Signal::CONT);
        let moved = moved?;
        let handed = in_phase(world, moved.name(), "resuming").await;
        let refused = world.user.client.migrations().cancel(moved.name()).await;
        agent.signal(Signal::CONT);
        handed?;
        let Err(Error::Refused(refusal)) = refused else { anyhow::bail!("not refused: {refused:?}") };
        ensure!(refusal.code == Code::WrongState && refusal.code.http_status() == 409, "{refusal:?}");
        ensure!(refusal.message.contains("handed over") && refusal.hint.is_some(), "{refusal:?}");
        in_phase(world, moved.name(), "succeeded").await?;
        let now = until_state(world, SHARED, VmState::Running).await?;
        ensure!(user::owner(&now)?.as_str() == to.name());
        world.guest_answers(to, user::address(&now)?).await
    })
}

#[test]
fn a_host_outside_the_vms_place_is_refused_with_the_reason() -> Result<()> {
    lab_world::run(&PLOT, async |world| {
        let (vm, host) = serving(world, "pinned").await?;
        let far = world.lab.hosts().find(|other| other.site != host.site).unwrap();
        let datacentre = host.site.letter().to_string();
        let place = serde_json::json!({ "place": { "datacentre": datacentre } });
        world.user.client.vms().patch(vm.name(), &sterna_client::object::Patch::of(place)).await?;
        let order = Move { to: Some(name(&far.name())), ..Move::default() };
        let refused = world.user.client.vms().migrate(vm.name(), &order).await;
        let Err(Error::Refused(refusal)) = refused else { anyhow::bail!("not refused: {refused:?}") };
        ensure!(refusal.code == Code::Unmet && refusal.code.http_status() == 409, "{refusal:?}");
        let sentence = format!("the VM is pinned to datacentre {datacentre}");
        ensure!(
            refusal.message.contains(&sentence) && refusal.message.contains(&far.name()),
            "{}",
            refusal.message
        );
        let outlook = world.user.client.vms().forecast(vm.name(), &order).await?;
        ensure!(outlook.reasons.iter().any(|reason| reason.contains(&sentence)), "{:?}", outlook.reasons);
        let told = sterna(world, &format!("vm migrate pinned --to {}", far.name()));
        ensure!(told.code == 1 && told.talk.contains(&sentence), "{told:?}");
        Ok(())
    })
}

#[test]
fn a_drained_host_is_empty_and_takes_vms_again_when_told() -> Result<()> {
    lab_world::run(&PLOT, async |world| {
        let (one, host) = serving(world, SHARED).await?;
        let two = running_on(world, "two", host).await?;
        let boot = boot_of(world, &one, host).await?;
        let drained = ok(world, &format!("host drain {}", host.name()))?;
        let to = neighbour(world, host);
        for vm in [&one, &two] {
            let now = until_state(world, vm.name().as_str(), VmState::Running).await?;
            ensure!(user::owner(&now)?.as_str() == to.name(), "{}", drained.talk);
            let continues = now.decision.and_then(|decision| decision.continues);
            ensure!(continues.is_some(), "moved, not started anew");
        }
        ensure!(boot_of(world, &one, to).await? == boot);
        let back = Move { to: Some(name(&host.name())), ..Move::default() };
        let refused = world.user.client.vms().migrate(one.name(), &back).await;
        ensure!(refused.is_err_and(|error| error.to_string().contains("drained")));
        ok(world, &format!("host undrain {}", host.name()))?;
        world.user.move_to(one.name(), &name(&host.name()), DOWNTIME).await?;
        Ok(())
    })
}

#[test]
fn killed_server_and_agents_are_back_and_no_vm_notices() -> Result<()> {
    lab_world::run(&PLOT, async |world| {
        let (vm, host) = serving(world, SHARED).await?;
        let qemu = world.find(Process::Qemu(host))?.pid;
        let probes = world.probes(host, user::address(&vm)?, true).await?;
        let mut longest: f64 = 0.0;
        for process in [Process::Server, Process::Agent(host), Process::Server, Process::Agent(host)] {
            let took = kill_and_wait(world, process, vm.name(), host).await?;
            println!("{process:?} killed, back after {took:.2} s");
            longest = longest.max(took);
        }
        let seen = tokio::task::spawn_blocking(move || probes.finish()).await??;
        let gap = seen.udp.context("echo")?.gap_ms;
        println!("longest silence of the guest {gap:.0} ms");
        ensure!(longest < 3.0, "back after {longest:.2} s");
        ensure!(seen.http.context("requests")?.lost == 0);
        ensure!(world.find(Process::Qemu(host))?.pid == qemu, "the VM's process was replaced");
        ensure!(epoch(&get(world, SHARED).await?) == epoch(&vm));
        Ok(())
    })
}

#[test]
fn a_vm_whose_qemu_or_shim_is_killed_runs_again_where_it_was() -> Result<()> {
    lab_world::run(&PLOT, async |world| {
        let (vm, host) = serving(world, SHARED).await?;
        let mut last = (restarts(&vm), boot_of(world, &vm, host).await?);
        for process in [Process::Qemu(host), Process::Shim(host)] {
            world.find(process)?.signal(Signal::KILL);
            let killed = Instant::now();
            until(PATIENCE, "its host to start it again", async || {
                let now = get(world, SHARED).await?;
                let runs = now.status.as_ref().is_some_and(|status| status.state == VmState::Running);
                Ok(runs && restarts(&now) > last.0)
            })
            .await?;
            let now = get(world, SHARED).await?;
            println!("{process:?} killed, runs again after {:.1} s", killed.elapsed().as_secs_f64());
            ensure!(
                world.host_of(user::owner(&now)?)? == host && epoch(&now) == epoch(&vm),
                "it is no new start"
            );
            let boot = boot_of(world, &now, host).await?;
            ensure!(boot != last.1, "it must have booted again");
            ensure!(copies(world, &vm) == 1, "{} copies", copies(world, &vm));
            last = (restarts(&now), boot);
        }
        let why = world.user.client.vms().why(vm.name()).await?;
        ensure!(why.events.iter().any(|event| event.what.contains("restart")), "{:?}", why.events);
        Ok(())
    })
}

/// How often its host has started it again by itself.
fn restarts(vm: &Vm) -> u32 {
    let owner = vm.decision.as_ref().map(|decision| &decision.owner.host);
    owner.and_then(|host| vm.reports.get(host)).map_or(0, |row| row.health.restarts)
}

#[test]
fn the_demo_shows_a_move_and_its_lines_can_be_pasted() -> Result<()> {
    lab_world::run(&PLOT, async |world| {
        let shown = sterna_lab(&PLOT, &format!("demo --image {}", image()?.display()));
        ensure!(shown.code == 0, "{}{}", shown.data, shown.talk);
        ensure!(
            shown.data.contains(" / 0 lost") && shown.data.contains("a client heard nothing for"),
            "{}",
            shown.data
        );
        let (_, after) = shown.data.split_once("Try:").context("no lines to paste")?;
        let lines: Vec<_> = after.lines().map(str::trim).skip(1).take(5).collect();
        let program = binary()?.display().to_string();
        for line in &lines {
            ensure!(line.starts_with(&program), "{line}");
            let mut command = Command::new("sh");
            let Ran { code, talk, .. } =
                ran(command.args(["-c", line]).env("STERNA_CONFIG", world.lab.cli_config()));
            ensure!(code == 0, "{line}: {talk}");
        }
        ensure!(lines.len() == 5);
        Ok(())
    })
}

#[test]
fn the_demo_once_leaves_nothing_behind() -> Result<()> {
    let plot = Plot { name: "e2e-demo", net: "10.95.0.0/16", port: 7744, datacentres: "a,b" };
    lab_world::run(&PLOT, async |_| {
        demo_once(&plot, "")?;
        Ok(())
    })
}
