//! What a host does by itself for a VM that ends or fails, under real QEMU.
#![allow(clippy::unwrap_used)]

mod world;

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use sterna_agent::process::Process;
use sterna_base::units::Span;
use sterna_model::health::{CheckAction, CheckState, HealthCheck, HealthReport, OnFault, Probe};
use sterna_model::network::Mac;
use sterna_model::vm::{CopyState, Exit, Nic, Power};
use sterna_qemu::boot::{self, Pace};
use sterna_wire::assignment::{HealthOrder, Owner, Role};
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
async fn writes_again(host: &Host, before: Process, disk: &Path) {
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
    let stop = Owner { power: Power::Stopped, shutdown_timeout: Span::from_secs(600), ..owner(&host) };
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

/// An owner whose host does all that it can for the guest.
fn cared_for(host: &Host) -> Owner {
    Owner { health: Some(HealthOrder { power_request: 1, ..HealthOrder::default() }), ..owner(host) }
}

fn health(host: &Host) -> HealthReport {
    host.report(UID).map(|report| report.health).unwrap_or_default()
}

async fn quarantined(host: &Host) -> String {
    eventually("it is left alone", || health(host).quarantine.is_some()).await;
    health(host).quarantine.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_crashes_is_reset_three_times_and_then_left_until_a_person_asks() {
    for qemu in [7, 10].into_iter().filter_map(qemu) {
        let folder = folder();
        let disk = disk(folder.path(), &boot::panicker());
        let host = Host::start(&folder.path().join("a"), &qemu, &disk);
        host.line.send_replace(false);
        host.order(vec![owns(UID, 3, cared_for(&host))]);
        eventually("a process", || host.run_record(UID).is_some()).await;
        let (process, begun) = (host.qemu_process(UID), Instant::now());
        let why = quarantined(&host).await;
        eprintln!("{}: four crashes, three resets in {:?}", qemu.1, begun.elapsed());
        assert!(begun.elapsed() < Duration::from_secs(30), "each guest boots before it crashes");
        assert!(why.contains("the guest crashed") && why.contains("3 resets"), "{why}");
        assert_eq!((health(&host).resets, host.qemu_process(UID)), (3, process), "in its process");
        assert!(matches!(host.state(UID), Some(CopyState::Paused { .. })), "{:?}", host.state(UID));
        // The next agent leaves it alone as well; a person's start gives it three more tries.
        let host = host.restart().await;
        let owner = cared_for(&host);
        host.order(vec![owns(UID, 3, owner.clone())]);
        assert_eq!(quarantined(&host).await, why);
        let order = HealthOrder { power_request: 2, ..HealthOrder::default() };
        host.order(vec![owns(UID, 3, Owner { health: Some(order), ..owner.clone() })]);
        eventually("three more", || health(&host).resets == 6 && health(&host).quarantine.is_some()).await;
        // So does a reset, which is one more.
        let order = HealthOrder { power_request: 2, on_panic: OnFault::Leave, ..HealthOrder::default() };
        host.order(vec![owns(UID, 3, Owner { health: Some(order), reset_request: 1, ..owner })]);
        eventually("reset as asked", || host.report(UID).is_some_and(|report| report.reset_request == 1))
            .await;
        eventually(
            "crashed and left as it is",
            || matches!(host.state(UID), Some(CopyState::Paused { why }) if why.contains("crashed")),
        )
        .await;
        assert_eq!((health(&host).resets, health(&host).quarantine), (6, None));
        host.order(vec![order_to_end()]);
        eventually("ended", || exit(&host).is_some()).await;
    }
}

fn order_to_end() -> sterna_wire::assignment::VmAssignment {
    order(UID, 99, Role::Release)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_does_not_feed_its_watchdog_is_reset() {
    for qemu in [7, 10].into_iter().filter_map(qemu) {
        let folder = folder();
        let disk = disk(folder.path(), &boot::unfed());
        let host = Host::start(&folder.path().join("a"), &qemu, &disk);
        let mut owner = cared_for(&host);
        owner.machine.hardware.watchdog = true;
        let lenient = HealthOrder { on_hang: OnFault::Leave, ..HealthOrder::default() };
        host.order(vec![owns(UID, 3, owner)]);
        let why = quarantined(&host).await;
        assert!(why.contains("watchdog"), "{why}");
        assert_eq!((health(&host).resets, host.state(UID)), (3, Some(CopyState::Running)));
        // Whoever wants it left alone has it left alone, and a machine without one never hears of it.
        let mut owner = Owner { health: Some(lenient), ..host.owner() };
        owner.machine.hardware.watchdog = true;
        host.order(vec![owns(UID, 4, owner)]);
        host.runs(UID, 4).await;
        host.order(vec![order_to_end()]);
        eventually("ended", || exit(&host).is_some()).await;
        assert_eq!(health(&host).resets, 0);
    }
}

/// A file system of some pages, for as long as this lives.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(at: &Path, kib: u32) -> Self {
        std::fs::create_dir(at).unwrap();
        let size = format!("size={kib}k,mode=711");
        let mounted =
            std::process::Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(at).status();
        assert!(mounted.unwrap().success());
        Self(at.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_whose_storage_fails_stands_still_with_the_reason_and_goes_on_when_it_is_back() {
    let Some(qemu) = qemu(10) else { return };
    if !rustix::process::geteuid().is_root() {
        eprintln!("not run: needs root to mount a file system");
        return;
    }
    let folder = folder();
    let pool = SmallDisk::mount(&folder.path().join("pool"), 64);
    let disk = disk(&pool.0, &boot::writer(Pace::Ticks));
    // All room but that of the boot sector: the guest's first write has none.
    let filler = pool.0.join("filler");
    let full = (0..100).any(|_| append(&filler).is_err());
    assert!(full);
    let host = Host::start(&folder.path().join("a"), &qemu, &disk);
    host.order(vec![owns(UID, 3, cared_for(&host))]);
    eventually("it stands still", || {
        matches!(host.state(UID), Some(CopyState::Paused { why }) if why.contains("volume web-boot in pool p has no room left"))
    })
    .await;
    let process = host.qemu_process(UID);
    let told = host.heard.states.lock().unwrap().len();
    // That it is tried again and fails is no news.
    let later = Instant::now() + Duration::from_secs(6);
    eventually("it was tried again", || Instant::now() > later).await;
    assert_eq!(host.heard.states.lock().unwrap().len(), told);
    std::fs::remove_file(&filler).unwrap();
    host.runs(UID, 3).await;
    let counter = boot::read_counter(&disk).unwrap();
    eventually("the guest writes", || boot::read_counter(&disk).unwrap() > counter).await;
    assert_eq!((host.qemu_process(UID), health(&host)), (process, HealthReport::default()));
    host.order(vec![order_to_end()]);
    eventually("ended", || exit(&host).is_some()).await;
}

fn append(file: &Path) -> std::io::Result<()> {
    use std::io::Write;
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(file)?;
    file.write_all(&[1; 4096])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_worked_and_fails_has_its_guest_reset_where_that_is_asked_for() {
    let Some(qemu) = qemu(10) else { return };
    let folder = folder();
    let disk = disk(folder.path(), &boot::writer(Pace::Ticks));
    let host = Host::start(&folder.path().join("a"), &qemu, &disk);
    // Stands for the guest's: its address is one of this machine.
    let service = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = service.local_addr().unwrap().port();
    let check = |probe| HealthCheck {
        probe,
        interval: Span::from_millis(100),
        timeout: Span::from_millis(100),
        failures: 3,
        action: CheckAction::Restart,
    };
    let silent = check(Probe::Exec { command: vec!["/bin/true".into()] });
    let checks = vec![check(Probe::Tcp { port }), silent];
    let mut owner = Owner { health: Some(HealthOrder { checks, ..HealthOrder::default() }), ..owner(&host) };
    let mac = "52:54:00:00:00:01".parse::<Mac>().unwrap();
    owner.machine.hardware.nics =
        vec![Nic { network: world::name("lan"), mac, address: Some(Ipv4Addr::LOCALHOST) }];
    host.order(vec![owns(UID, 3, owner)]);
    host.runs(UID, 3).await;
    let states = |host: &Host| health(host).checks.iter().map(|check| check.state).collect::<Vec<_>>();
    eventually("healthy", || states(&host) == [CheckState::Healthy, CheckState::Starting]).await;
    // This guest has no agent: that it never worked is shown, and is no reason for a reset.
    eventually("the reason is told", || health(&host).checks[1].why.is_some()).await;
    assert_eq!(health(&host).resets, 0);
    drop(service);
    eventually("reset", || health(&host).resets == 1).await;
    assert!(health(&host).reset_why.unwrap().contains(&format!("check tcp :{port} fails")));
    // After it the service may take as long as it likes.
    eventually("asked anew", || states(&host) == [CheckState::Starting, CheckState::Starting]).await;
    eventually("and not there", || health(&host).checks.first().is_some_and(|check| check.why.is_some()))
        .await;
    assert_eq!(health(&host).resets, 1);
    host.order(vec![order_to_end()]);
    eventually("ended", || exit(&host).is_some()).await;
}
