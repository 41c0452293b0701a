//! `sterna bench api`: how soon an accepted request is a process, how fast a list is, how soon killed processes are back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use sterna_base::units::Bytes;
use sterna_client::object::{Filter, New};
use sterna_client::vm::Ask;
use sterna_model::host::LinkState;
use sterna_model::meta::Name;
use sterna_model::vm::Power;

use super::table::{Bar, Table, percentile};
use super::world::{Process, World};
use crate::place::Host;
use crate::user;

/// With less than 96 MiB the tiny guest's kernel does not unpack its initramfs.
const MEMORY: Bytes = Bytes::mib(128);
const OBJECTS: usize = 1000;

/// `starts` VMs are started one after another.
pub async fn run(world: &World, starts: usize) -> Result<Table> {
    let mut table = Table::default();
    let image = Name::new("tiny")?;
    world.user.ensure_image(&image, &world.image).await?;
    let spawned = spawn_times(world, &image, starts).await?;
    table.bar(
        "request accepted to QEMU spawned, p50",
        percentile(&spawned, 0.5),
        "ms",
        Bar::AtMost(150.0),
        None,
    );
    table.info("request accepted to QEMU spawned, p99", percentile(&spawned, 0.99), "ms", None);
    kills(world, &mut table, &image, starts.min(10)).await?;
    lists(world, &mut table, &image).await?;
    Ok(table)
}

async fn spawn_times(world: &World, image: &Name, starts: usize) -> Result<Vec<f64>> {
    let vms = world.user.client.vms();
    let mut times = Vec::new();
    for number in 0..starts {
        let name = Name::new(&format!("start-{number}"))?;
        let ask = Ask { image: Some(image.clone()), memory: Some(MEMORY), ..Ask::default() };
        let answer = vms.create(&New::named(name.clone(), ask)).await?;
        let accepted = Instant::now();
        let uid = match &answer.object {
            Some(vm) => vm.meta.uid,
            None => vms.get(&name).await?.meta.uid,
        };
        let records: Vec<_> = world
            .lab
            .hosts()
            .map(|host| world.lab.run_dir(host).join("vm").join(uid.to_string()).join("run.json"))
            .collect();
        while !records.iter().any(|record| record.exists()) {
            ensure!(accepted.elapsed() < Duration::from_secs(30), "VM {name} was not started");
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
        let took = accepted.elapsed().as_secs_f64() * 1000.0;
        // The first makes the pool fetch the image, which is once per image and pool.
        if number > 0 {
            times.push(took);
        }
        world.user.done(&answer).await?;
        let gone = vms.delete(&name).await?;
        world.user.done(&gone).await?;
    }
    Ok(times)
}

/// `kill -9` of server and agent with a VM running.
async fn kills(world: &World, table: &mut Table, image: &Name, times: usize) -> Result<()> {
    let name = Name::new("untouched")?;
    let vm = world.user.ensure_vm(&name, image, MEMORY).await?;
    let host = world.host_of(user::owner(&vm)?)?;
    let guest = user::address(&vm)?;
    world.guest_answers(host, guest).await?;
    let qemu = world.find(Process::Qemu(host))?.pid;
    let probes = world.probes(host, guest, false).await?;
    let (mut server, mut agent) = (Vec::new(), Vec::new());
    for _ in 0..times {
        server.push(kill_and_wait(world, Process::Server, &name, host).await?);
        agent.push(kill_and_wait(world, Process::Agent(host), &name, host).await?);
    }
    let seen = tokio::task::spawn_blocking(move || probes.finish()).await??;
    ensure!(world.find(Process::Qemu(host))?.pid == qemu, "the VM's process was replaced");
    table.bar("server killed: back, longest", percentile(&server, 1.0), "s", Bar::AtMost(3.0), None);
    table.bar("agent killed: back, longest", percentile(&agent, 1.0), "s", Bar::AtMost(3.0), None);
    table.info("gap of the VM meanwhile", seen.udp.context("no echo")?.gap_ms, "ms", None);
    Ok(())
}

/// Seconds until the API answers, the host is connected by a *new* process, and the VM is seen running.
pub async fn kill_and_wait(world: &World, process: Process, vm: &Name, host: Host) -> Result<f64> {
    let killed = world.find(process)?;
    killed.signal(Signal::KILL);
    let began = Instant::now();
    loop {
        if is_back(world, process, killed.pid, vm, host).await.unwrap_or(false) {
            return Ok(began.elapsed().as_secs_f64());
        }
        ensure!(began.elapsed() < Duration::from_secs(30), "{process:?} did not come back");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn is_back(world: &World, process: Process, old: i32, vm: &Name, host: Host) -> Result<bool> {
    let is_new = world.find(process)?.pid != old;
    let seen = world.user.client.hosts().get(&Name::new(&host.name())?).await?;
    let report = seen.report.context("the host has not reported")?;
    let status = world.user.client.vms().get(vm).await?.status.context("no status")?;
    let runs = status.state == sterna_model::status::VmState::Running;
    Ok(is_new && report.link == LinkState::Connected && runs)
}

/// Stopped VMs have no host, so no disk is made for them.
async fn lists(world: &World, table: &mut Table, image: &Name) -> Result<()> {
    let vms = world.user.client.vms();
    for number in 0..OBJECTS {
        let ask = Ask {
            image: Some(image.clone()),
            memory: Some(MEMORY),
            power: Some(Power::Stopped),
            nics: Some(Vec::new()),
            ..Ask::default()
        };
        vms.create(&New::named(Name::new(&format!("object-{number}"))?, ask)).await?;
        if number % 250 == 249 {
            println!("{} objects made", number + 1);
        }
    }
    let mut times = Vec::new();
    for _ in 0..20 {
        let began = Instant::now();
        let listed = vms.list(&Filter::default()).await?;
        times.push(began.elapsed().as_secs_f64() * 1000.0);
        ensure!(listed.len() >= OBJECTS, "only {} were listed", listed.len());
    }
    table.bar("1,000 VM objects listed, p50", percentile(&times, 0.5), "ms", Bar::AtMost(50.0), None);
    for number in 0..OBJECTS {
        vms.delete(&Name::new(&format!("object-{number}"))?).await?;
    }
    Ok(())
}
