//! The life of a VM on one host, under real QEMU: started, stopped, adopted, lost.
#![allow(clippy::unwrap_used)]

mod world;

use std::time::Instant;

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

fn exit(host: &Host) -> Option<Exit> {
    match host.state(UID) {
        Some(CopyState::Stopped { exit }) => Some(exit),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_is_started_paused_resumed_and_switched_off() {
    for qemu in [7, 10].into_iter().filter_map(qemu) {
        let folder = folder();
        let disk = disk(folder.path(), &boot::writer(Pace::Ticks));
        let host = Host::start(&folder.path().join("a"), &qemu, &disk);
        let asked = Instant::now();
        host.order(vec![owns(UID, 3, host.owner())]);
        eventually("qemu is spawned", || host.run_record(UID).is_some()).await;
        eprintln!("{}: order to process {:?}", qemu.1, asked.elapsed());
        host.runs(UID, 3).await;
        eprintln!("{}: order to running {:?}", qemu.1, asked.elapsed());
        eventually("the guest writes", || boot::read_counter(&disk).unwrap() > 2).await;
        host.order(vec![owns(UID, 3, Owner { power: Power::Paused, ..host.owner() })]);
        eventually("paused", || matches!(host.state(UID), Some(CopyState::Paused { .. }))).await;
        host.order(vec![owns(UID, 3, host.owner())]);
        host.runs(UID, 3).await;
        // This guest does not hear the power button.
        host.order(vec![owns(UID, 3, Owner { power: Power::Stopped, ..host.owner() })]);
        eventually("shutting down", || host.state(UID) == Some(CopyState::ShuttingDown)).await;
        eventually("switched off", || exit(&host) == Some(Exit::Requested { forced: true })).await;
        assert!(!host.qemu_process(UID).is_alive() && !host.shim_process(UID).is_alive());
        // The same epoch is not started again, whatever is wanted.
        host.order(vec![owns(UID, 3, host.owner())]);
        host.order(vec![owns(UID, 4, host.owner())]);
        host.runs(UID, 4).await;
        host.order(vec![order(UID, 5, Role::Release)]);
        eventually("released", || exit(&host) == Some(Exit::Released)).await;
        host.order(vec![]);
        eventually("forgotten", || host.report(UID).is_none() && !host.run_directory(UID).exists()).await;
        // It was here under epoch 4: an order from before that is not followed, and the answer is what became of it.
        host.order(vec![owns(UID, 3, host.owner())]);
        eventually("what became of it is told", || exit(&host) == Some(Exit::Released)).await;
        assert!(host.report(UID).is_some_and(|report| report.epoch > 3));
        assert!(!host.run_directory(UID).exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_runs_on_without_its_agent_and_is_found_again() {
    for qemu in [7, 10].into_iter().filter_map(qemu) {
        let folder = folder();
        let disk = disk(folder.path(), &boot::writer(Pace::Ticks));
        let host = Host::start(&folder.path().join("a"), &qemu, &disk);
        host.order(vec![owns(UID, 3, host.owner())]);
        host.runs(UID, 3).await;
        let before = host.qemu_process(UID);
        let counter = boot::read_counter(&disk).unwrap();
        let begun = Instant::now();
        let host = host.restart().await;
        host.runs(UID, 3).await;
        eprintln!("{}: adopted within {:?}", qemu.1, begun.elapsed());
        assert!(begun.elapsed().as_millis() < 1000);
        assert!(host.ports.board.inventory().0);
        eventually("the guest writes on", || boot::read_counter(&disk).unwrap() > counter).await;
        assert_eq!(host.qemu_process(UID), before);
        assert!(before.is_alive());
        // The new agent is obeyed.
        host.order(vec![owns(UID, 3, Owner { power: Power::Off, ..host.owner() })]);
        eventually("off", || exit(&host) == Some(Exit::Requested { forced: true })).await;
        // An end is remembered by the next agent as well.
        let host = host.restart().await;
        eventually("still known", || exit(&host) == Some(Exit::Requested { forced: true })).await;
        host.order(vec![]);
        eventually("forgotten", || !host.run_directory(UID).exists()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_qemu_or_shim_is_a_crash_and_nothing_is_left() {
    let Some(qemu) = qemu(10) else { return };
    let folder = folder();
    let disk = disk(folder.path(), &boot::writer(Pace::Ticks));
    let host = Host::start(&folder.path().join("a"), &qemu, &disk);
    host.order(vec![owns(UID, 3, host.owner())]);
    host.runs(UID, 3).await;
    host.qemu_process(UID).kill();
    eventually("crashed", || matches!(exit(&host), Some(Exit::Crashed { why }) if why.contains("signal 9")))
        .await;
    host.order(vec![owns(UID, 4, host.owner())]);
    host.runs(UID, 4).await;
    let (qemu, shim) = (host.qemu_process(UID), host.shim_process(UID));
    shim.kill();
    eventually("crashed", || matches!(exit(&host), Some(Exit::Crashed { why }) if why.contains("shim")))
        .await;
    assert!(!qemu.is_alive());
    // Killed while no agent looked.
    host.order(vec![owns(UID, 5, host.owner())]);
    host.runs(UID, 5).await;
    let (qemu, shim) = (host.qemu_process(UID), host.shim_process(UID));
    let host = host.restart().await;
    shim.kill();
    // Until a server says whose it is, an end is nobody's: the host may be allowed to start it again.
    host.order(vec![owns(UID, 5, host.owner())]);
    eventually("crashed", || matches!(exit(&host), Some(Exit::Crashed { .. }))).await;
    assert!(!qemu.is_alive() && host.report(UID).unwrap().epoch == 5);
    host.order(vec![]);
    eventually("forgotten", || !host.run_directory(UID).exists()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_cannot_succeed_says_why_and_leaves_nothing_behind() {
    let Some(qemu) = qemu(10) else { return };
    let folder = folder();
    let host = Host::start(&folder.path().join("a"), &qemu, &folder.path().join("none.img"));
    host.order(vec![owns(UID, 3, host.owner())]);
    eventually(
        "failed",
        || matches!(exit(&host), Some(Exit::StartFailed { why }) if why.contains("none.img")),
    )
    .await;
    // A size that loses memory writes while it migrates is refused where that is so.
    let mut owner = host.owner();
    owner.machine.hardware.machine = "pc-q35-999.0".into();
    host.order(vec![owns(UID, 4, owner)]);
    eventually("failed", || matches!(exit(&host), Some(Exit::StartFailed { why }) if why.contains("999")))
        .await;
    assert_eq!(host.report(UID).unwrap().epoch, 4);
    host.order(vec![]);
    eventually("forgotten", || !host.run_directory(UID).exists()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_shim_is_unknown_and_never_taken_for_gone() {
    let Some(qemu) = qemu(10) else { return };
    let folder = folder();
    let disk = disk(folder.path(), &boot::writer(Pace::Ticks));
    let host = Host::start(&folder.path().join("a"), &qemu, &disk);
    host.order(vec![owns(UID, 3, host.owner())]);
    host.runs(UID, 3).await;
    let shim = rustix::process::Pid::from_raw(host.shim_process(UID).pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(shim, rustix::process::Signal::STOP).unwrap();
    // It may be answering until its thread returns from the kernel.
    eventually("the shim stands still", || {
        sterna_agent::process::is_stopped(host.shim_process(UID).pid).unwrap()
    })
    .await;
    let host = host.restart().await;
    assert!(host.state(UID).is_none());
    let (is_complete, here) = host.ports.board.inventory();
    assert!(!is_complete || here.is_empty());
    host.order(vec![owns(UID, 3, host.owner())]);
    rustix::process::kill_process(shim, rustix::process::Signal::CONT).unwrap();
    host.runs(UID, 3).await;
    // What hangs for good is ended all the same when it is not ours any more.
    rustix::process::kill_process(shim, rustix::process::Signal::STOP).unwrap();
    let host = host.restart().await;
    host.order(vec![order(UID, 4, Role::Release)]);
    eventually("released", || exit(&host) == Some(Exit::Released)).await;
    host.order(vec![]);
    eventually("forgotten", || !host.run_directory(UID).exists()).await;
}
