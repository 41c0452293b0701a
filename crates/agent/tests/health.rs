//! What a host does by itself for a VM that ends or fails, under real QEMU.
#![allow(clippy::unwrap_used)]

mod world;

use std::time::{Duration, Instant};

use sterna_agent::process::Process;
use sterna_model::vm::{CopyState, Exit, Power};
use sterna_qemu::boot::{self, Pace};
use sterna_wire::assignment::{Owner, Role};
use uuid::Uuid;
use world::{Host, disk, eventually, folder, order, owns, qemu};

const UID: Uuid = Uuid::from_u128(7);

#[test]
fn shim_entry() {
    world::shim_entry();
}

/// An owner whose host may bring it back by itself.
fn owner(host: &Host) -> Owner {
    Owner { restart_here: Some(0), ..host.owner() }
}

fn exit(host: &Host) -> Option<Exit> {
    match host.state(UID) {
        Some(CopyState::Stopped { exit }) => Some(exit),
        _ => None,
    }
}

fn restarts(host: &Host) -> u32 {
    host.report(UID).map_or(0, |report| report.health.restarts)
}

/// Another process than this one has a record and guest code in it writes.
async fn writes_again(host: &Host, before: Process, disk: &std::path::Path) {
    eventually("another process", || {
        host.run_record(UID).is_some_and(|record| record.qemu_pid != before.pid)
    })
    .await;
    let counter = boot::read_counter(disk).unwrap();
    eventually("guest code writes", || boot::read_counter(disk).unwrap() > counter).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_qemu_runs_again_within_a_second_whoever_else_is_dead() {
    let Some(qemu) = qemu(10) else { return };
    let folder = folder();
    let disk = disk(folder.path(), &boot::writer(Pace::Ticks));
    let host = Host::start(&folder.path().join("a"), &qemu, &disk);
    // No server, no store: nothing but this agent.
    host.line.send_replace(false);
    let mut took = Vec::new();
    // Each under an epoch of its own, so that none has to wait for those before it.
    for epoch in 3..13 {
        host.order(vec![owns(UID, epoch, owner(&host))]);
        host.runs(UID, epoch).await;
        let counter = boot::read_counter(&disk).unwrap();
        eventually("the guest writes", || boot::read_counter(&disk).unwrap() > counter).await;
        let before = host.qemu_process(UID);
        let killed = Instant::now();
        before.kill();
        writes_again(&host, before, &disk).await;
        took.push(killed.elapsed());
        host.runs(UID, epoch).await;
        assert_eq!((host.report(UID).unwrap().epoch, restarts(&host)), (epoch, 1));
    }
    took.sort();
    eprintln!("from kill to guest code: {took:?}");
    assert!(took[took.len() - 1] < Duration::from_secs(2), "{took:?}");
    assert!(host.report(UID).unwrap().health.why.unwrap().contains("signal 9"));
    host.order(vec![order(UID, 20, Role::Release)]);
    eventually("released", || exit(&host).is_some()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_starts_without_a_server_brings_back_what_crashed_meanwhile() {
    let Some(qemu) = qemu(10) else { return };
    let folder = folder();
    let disk = disk(folder.path(), &boot::writer(Pace::Ticks));
    let host = Host::start(&folder.path().join("a"), &qemu, &disk);
    host.order(vec![owns(UID, 3, owner(&host))]);
    host.runs(UID, 3).await;
    let before = host.qemu_process(UID);
    let host = host.restart_after(|| before.kill()).await;
    writes_again(&host, before, &disk).await;
    host.runs(UID, 3).await;
    assert_eq!(restarts(&host), 1);
    // The next one knows of it as well, and what it was told to end meanwhile stays so.
    let host = host.restart().await;
    host.runs(UID, 3).await;
    assert_eq!(restarts(&host), 1);
    host.order(vec![owns(UID, 3, Owner { power: Power::Off, restart_here: None, ..host.owner() })]);
    eventually("off", || exit(&host) == Some(Exit::Requested { forced: true })).await;
    let host = host.restart().await;
    eventually("still known", || exit(&host) == Some(Exit::Requested { forced: true })).await;
    host.order(vec![]);
    eventually("forgotten", || !host.run_directory(UID).exists()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_was_asked_for_or_is_somebody_elses_is_no_crash() {
    let Some(qemu) = qemu(10) else { return };
    let folder = folder();
    let disk = disk(folder.path(), &boot::writer(Pace::Ticks));
    let host = Host::start(&folder.path().join("a"), &qemu, &disk);
    // The guest is asked and does not hear; its QEMU dies meanwhile.
    host.order(vec![owns(UID, 3, owner(&host))]);
    host.runs(UID, 3).await;
    let stop = Owner {
        power: Power::Stopped,
        shutdown_timeout: sterna_base::units::Span::from_secs(600),
        ..owner(&host)
    };
    host.order(vec![owns(UID, 3, stop)]);
    eventually("asked", || host.state(UID) == Some(CopyState::ShuttingDown)).await;
    host.qemu_process(UID).kill();
    eventually("it stays down", || matches!(exit(&host), Some(Exit::Crashed { .. }))).await;
    // A policy of `never`, or a move that has begun.
    host.order(vec![owns(UID, 4, host.owner())]);
    host.runs(UID, 4).await;
    host.qemu_process(UID).kill();
    eventually("control hears of it", || matches!(exit(&host), Some(Exit::Crashed { .. }))).await;
    // It belongs to another host now.
    host.order(vec![owns(UID, 5, owner(&host))]);
    host.runs(UID, 5).await;
    let before = host.qemu_process(UID);
    host.order(vec![order(UID, 6, Role::Release)]);
    eventually("released", || exit(&host) == Some(Exit::Released)).await;
    let host = host.restart().await;
    eventually("still released", || exit(&host) == Some(Exit::Released)).await;
    assert!(!before.is_alive());
    host.order(vec![]);
    eventually("forgotten", || !host.run_directory(UID).exists()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_that_cannot_succeed_is_told_to_control_with_its_reason() {
    let Some(qemu) = qemu(10) else { return };
    let folder = folder();
    let disk = disk(folder.path(), &boot::writer(Pace::Ticks));
    let host = Host::start(&folder.path().join("a"), &qemu, &disk);
    host.order(vec![owns(UID, 3, owner(&host))]);
    host.runs(UID, 3).await;
    let away = disk.with_extension("away");
    std::fs::rename(&disk, &away).unwrap();
    host.qemu_process(UID).kill();
    eventually("its first try failed", || restarts(&host) == 1).await;
    assert!(exit(&host).is_none(), "it is tried again before anybody is told");
    std::fs::rename(&away, &disk).unwrap();
    host.runs(UID, 3).await;
    std::fs::rename(&disk, &away).unwrap();
    host.qemu_process(UID).kill();
    eventually("told", || matches!(exit(&host), Some(Exit::StartFailed { why }) if why.contains("disk.img")))
        .await;
    assert!(restarts(&host) >= 3);
    host.order(vec![]);
    eventually("forgotten", || !host.run_directory(UID).exists()).await;
}
