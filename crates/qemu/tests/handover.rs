//! Who may open a disk, and who runs, around the switchover of a migration.
//!
//! These are not wishes but observations of QEMU, on which the ownership protocol stands. The same tables
//! are in docs/decisions/0002-image-locks-at-the-handover.md.
#![allow(clippy::unwrap_used)]

mod world;

use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use sterna_qemu::boot::{self, Pace, Sector};
use sterna_qemu::config::Config;
use sterna_qemu::qmp::machine::RunStatus;
use sterna_qemu::qmp::migration::{Address, Capability, Parameters, Status};
use world::{Binary, Qemu, eventually, folder, machine, qemu};

/// Far below what a guest needs, so that the copying does not end by itself.
const CRAWL: u64 = 20_000;
const FAST: u64 = 1 << 30;

/// A running source, and a paused target that waits for it, on one disk.
struct Pair {
    binary: Binary,
    folder: tempfile::TempDir,
    disk: PathBuf,
    source: Qemu,
    target: Qemu,
}

impl Pair {
    async fn new(binary: &Binary, late_block_activate: bool, guest: &Sector) -> Self {
        let folder = folder();
        let disk = folder.path().join("root.img");
        boot::write_disk(&disk, guest, 1 << 20).unwrap();
        let config = machine(binary, folder.path(), "source", &disk);
        let source = Qemu::start(binary, &config).await.unwrap();
        source.lives().await;
        let config =
            Config { paused: true, incoming: true, ..machine(binary, folder.path(), "target", &disk) };
        let target = Qemu::start(binary, &config).await.unwrap();
        let pair = Self { binary: binary.clone(), disk, source, target, folder };
        pair.prepare(late_block_activate).await;
        pair
    }

    async fn prepare(&self, late_block_activate: bool) {
        use Capability::{Events, LateBlockActivate, PauseBeforeSwitchover, ReturnPath};
        let source = [Events, ReturnPath, PauseBeforeSwitchover];
        self.source.qmp.set_migration_capabilities(&source, &[]).await.unwrap();
        let (on, off): (&[_], &[_]) = if late_block_activate {
            (&[Events, ReturnPath, LateBlockActivate], &[])
        } else {
            (&[Events, ReturnPath], &[LateBlockActivate])
        };
        self.target.qmp.set_migration_capabilities(on, off).await.unwrap();
        let quiet = Parameters { announce_rounds: Some(0), ..Parameters::default() };
        self.target.qmp.set_migration_parameters(&quiet).await.unwrap();
        self.target.qmp.migrate_incoming(&self.address()).await.unwrap();
    }

    fn address(&self) -> Address {
        Address::Unix(self.folder.path().join("in"))
    }

    async fn start(&self, bytes_per_second: u64) {
        let rate = Parameters { max_bandwidth: Some(bytes_per_second), ..Parameters::default() };
        self.source.qmp.set_migration_parameters(&rate).await.unwrap();
        self.source.qmp.migrate(&self.address()).await.unwrap();
    }

    async fn copying(&self) {
        self.start(CRAWL).await;
        self.source_is(Status::Active).await;
    }

    async fn stopped_before_switchover(&self) {
        self.start(FAST).await;
        self.source_is(Status::PreSwitchover).await;
    }

    async fn completed(&self) {
        self.stopped_before_switchover().await;
        self.source.qmp.migrate_continue().await.unwrap();
        self.source_is(Status::Completed).await;
        eventually("target has loaded all", || async {
            self.target.qmp.query_migrate().await.unwrap().status == Status::Completed
        })
        .await;
        assert_eq!(self.source.qmp.query_status().await.unwrap().status, RunStatus::PostMigrate);
        assert_eq!(self.target.qmp.query_status().await.unwrap().status, RunStatus::Paused);
    }

    async fn source_is(&self, status: Status) {
        eventually(&format!("source is {status}"), || async {
            self.source.qmp.query_migrate().await.unwrap().status == status
        })
        .await;
    }

    /// QEMU resumed the source, nobody else did, and its writes reach the disk.
    async fn source_runs_by_itself(&self, case: &str) {
        let what = format!("{}: source runs again after: {case}", self.binary.version);
        eventually(&what, || async { self.source.is_running().await }).await;
        self.source.lives().await;
        assert_eq!(self.third_opener().await, Outcome::Refused, "{what}");
    }

    /// A QEMU that should not be there boots from the same disk.
    async fn third_opener(&self) -> Outcome {
        let config = machine(&self.binary, self.folder.path(), "third", &self.disk);
        match Qemu::start(&self.binary, &config).await {
            Ok(third) => {
                third.lives().await;
                Outcome::Allowed
            }
            Err(printed) => {
                assert!(printed.contains("lock"), "{printed}");
                Outcome::Refused
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// For a third opener: it opened the disk *and wrote to it*. For a `cont`: the guest runs.
    Allowed,
    Refused,
}
use Outcome::{Allowed, Refused};

async fn cont(vm: &Qemu) -> Outcome {
    match vm.qmp.cont().await {
        Ok(()) => {
            assert!(vm.is_running().await);
            Allowed
        }
        Err(error) => {
            assert!(error.to_string().contains("lock"), "{error}");
            assert!(!vm.is_running().await);
            Refused
        }
    }
}

/// What is allowed after `completed`, before anybody sent `cont`; then after `blockdev-set-active` on the
/// paused target where that exists.
#[derive(Debug, PartialEq, Eq)]
struct Handover {
    third_opener: Outcome,
    /// Third opener and `cont` on the source.
    after_activation: Option<(Outcome, Outcome)>,
}

async fn handover(binary: &Binary, late_block_activate: bool) -> Handover {
    let pair = Pair::new(binary, late_block_activate, &boot::writer(Pace::Flat)).await;
    assert_eq!(pair.third_opener().await, Refused, "while the source runs");
    pair.stopped_before_switchover().await;
    assert_eq!(pair.third_opener().await, Refused, "while the source waits before its switchover");
    pair.source.qmp.migrate_continue().await.unwrap();
    pair.source_is(Status::Completed).await;
    let third_opener = pair.third_opener().await;
    let schema = pair.target.qmp.query_schema().await.unwrap();
    let after_activation = if pair.target.qmp.set_blocks_active(&schema, true).await.unwrap() {
        Some((pair.third_opener().await, cont(&pair.source).await))
    } else {
        None
    };
    // Where the source was not tried, it is still paused, and the target is free to run.
    assert_eq!(cont(&pair.target).await, Allowed);
    pair.target.lives().await;
    assert_eq!(pair.third_opener().await, Refused, "while the target runs");
    assert_eq!(cont(&pair.source).await, Refused, "while the target runs");
    Handover { third_opener, after_activation }
}

#[tokio::test]
async fn old_qemu_locks_at_completion_unless_told_to_be_late() {
    let Some(binary) = qemu(7) else { return };
    let locked = Handover { third_opener: Refused, after_activation: None };
    assert_eq!(handover(&binary, false).await, locked);
    let open = Handover { third_opener: Allowed, after_activation: None };
    assert_eq!(handover(&binary, true).await, open);
}

#[tokio::test]
async fn new_qemu_leaves_the_disk_unlocked_until_it_is_activated() {
    let Some(binary) = qemu(10) else { return };
    for late_block_activate in [false, true] {
        let expected = Handover { third_opener: Allowed, after_activation: Some((Refused, Refused)) };
        assert_eq!(handover(&binary, late_block_activate).await, expected);
    }
}

/// `cont` on the source of a completed migration, with the target alive, paused and untouched; then on the
/// target.
async fn source_first(binary: &Binary, late_block_activate: bool) -> (Outcome, Outcome) {
    let pair = Pair::new(binary, late_block_activate, &boot::writer(Pace::Flat)).await;
    pair.completed().await;
    let outcome = (cont(&pair.source).await, cont(&pair.target).await);
    assert_eq!(pair.third_opener().await, Refused);
    outcome
}

#[tokio::test]
async fn whoever_takes_the_lock_first_keeps_the_other_out() {
    if let Some(binary) = qemu(7) {
        assert_eq!(source_first(&binary, false).await, (Refused, Allowed));
        assert_eq!(source_first(&binary, true).await, (Allowed, Refused));
    }
    if let Some(binary) = qemu(10) {
        assert_eq!(source_first(&binary, false).await, (Allowed, Refused));
    }
}

#[tokio::test]
async fn without_its_target_a_completed_source_stays_stopped_and_can_be_resumed() {
    for binary in [7, 10].into_iter().filter_map(qemu) {
        let mut pair = Pair::new(&binary, false, &boot::writer(Pace::Flat)).await;
        pair.completed().await;
        pair.target.kill();
        let state = pair.source.qmp.query_status().await.unwrap();
        assert_eq!(state.status, RunStatus::PostMigrate, "{}", binary.version);
        let counter = boot::read_counter(&pair.disk).unwrap();
        assert_eq!(cont(&pair.source).await, Allowed, "{}", binary.version);
        pair.source.lives().await;
        eventually("counter goes on", || async { boot::read_counter(&pair.disk).unwrap() > counter }).await;
        assert_eq!(pair.third_opener().await, Refused);
    }
}

#[tokio::test]
async fn a_cancelled_source_runs_by_itself_and_the_target_exits() {
    for binary in [7, 10].into_iter().filter_map(qemu) {
        let mut pair = Pair::new(&binary, false, &boot::writer(Pace::Flat)).await;
        pair.copying().await;
        pair.source.qmp.migrate_cancel().await.unwrap();
        pair.source_is(Status::Cancelled).await;
        pair.source_runs_by_itself("cancelled while copying").await;
        assert_eq!(pair.target.child.wait().unwrap().code(), Some(1));

        let pair = Pair::new(&binary, false, &boot::writer(Pace::Flat)).await;
        pair.stopped_before_switchover().await;
        pair.source.qmp.migrate_cancel().await.unwrap();
        pair.source_is(Status::Cancelled).await;
        pair.source_runs_by_itself("cancelled before the switchover").await;
    }
}

#[tokio::test]
async fn a_source_whose_target_dies_runs_by_itself() {
    for binary in [7, 10].into_iter().filter_map(qemu) {
        let mut pair = Pair::new(&binary, false, &boot::writer(Pace::Flat)).await;
        pair.copying().await;
        pair.target.kill();
        pair.source_is(Status::Failed).await;
        assert!(pair.source.qmp.query_migrate().await.unwrap().error_desc.is_some());
        pair.source_runs_by_itself("target killed while copying").await;

        let mut pair = Pair::new(&binary, false, &boot::writer(Pace::Flat)).await;
        pair.stopped_before_switchover().await;
        pair.target.kill();
        // It has not noticed yet, or has failed already: both are right.
        let _ = pair.source.qmp.migrate_continue().await;
        pair.source_is(Status::Failed).await;
        pair.source_runs_by_itself("target killed before the switchover").await;
    }
}

#[tokio::test]
async fn a_thawed_source_runs_by_itself() {
    for binary in [7, 10].into_iter().filter_map(qemu) {
        let mut pair = Pair::new(&binary, false, &boot::writer(Pace::Flat)).await;
        pair.copying().await;
        pair.source.signal(Signal::STOP);
        let soon = Duration::from_millis(300);
        let asked = pair.source.qmp.execute_within::<Value>("query-status", Value::Null, soon).await;
        assert!(asked.is_err(), "a frozen QEMU answered");
        assert_eq!(pair.third_opener().await, Refused, "while the source is frozen");
        pair.target.kill();
        pair.source.signal(Signal::CONT);
        pair.source_is(Status::Failed).await;
        pair.source_runs_by_itself("source frozen, target killed, source thawed").await;
    }
}

/// The last part has begun but the target takes nothing: the source has given up its lock already, may hold
/// its main loop until the target's end is closed (so that no command is answered), and then resumes.
#[tokio::test]
async fn a_source_past_its_switchover_still_runs_by_itself_when_the_target_dies() {
    for binary in [7, 10].into_iter().filter_map(qemu) {
        let mut pair = Pair::new(&binary, false, &boot::writer(Pace::Flat)).await;
        pair.stopped_before_switchover().await;
        pair.target.signal(Signal::STOP);
        pair.source.qmp.migrate_continue().await.unwrap();
        // Both versions: nobody holds the lock in this phase.
        eventually("lock is given up", || async { pair.third_opener().await == Allowed }).await;
        pair.target.kill();
        pair.source_is(Status::Failed).await;
        pair.source_runs_by_itself("target killed after the switchover began").await;
    }
}

/// Few pages, written all the time, and so slow that several passes are made: a write that one pass forgets
/// stays forgotten. (With a RAM of 16384 KiB this fails on 7.2, see `ram`.)
///
/// On a machine that builds beside it, 10.0.2 was seen to lose the emulated guest's very last write in one move of ten:
/// presumably a page is marked before the write to it is done, and the guest does not get to run in between. What is lost
/// by rule is lost each time.
#[tokio::test]
async fn memory_arrives_whole() {
    for binary in [7, 10].into_iter().filter_map(qemu) {
        let mut differing = pages_that_differ(&binary).await;
        for _ in 0..2 {
            if differing > 0 {
                differing = pages_that_differ(&binary).await;
            }
        }
        assert_eq!(differing, 0, "{}: pages differ in three moves of three", binary.version);
    }
}

/// After a move of a guest that writes.
async fn pages_that_differ(binary: &Binary) -> usize {
    let pair = Pair::new(binary, false, &boot::dirtier(200, 2_000)).await;
    pair.start(1 << 20).await;
    eventually("several passes", || async {
        let progress = pair.source.qmp.query_migrate().await.unwrap();
        let passes = progress.ram.unwrap_or_default().dirty_sync_count;
        passes >= 3 || progress.status == Status::PreSwitchover
    })
    .await;
    let fast = Parameters { max_bandwidth: Some(FAST), ..Parameters::default() };
    pair.source.qmp.set_migration_parameters(&fast).await.unwrap();
    pair.source_is(Status::PreSwitchover).await;
    pair.source.qmp.migrate_continue().await.unwrap();
    pair.source_is(Status::Completed).await;
    eventually("target has loaded all", || async {
        pair.target.qmp.query_migrate().await.unwrap().status == Status::Completed
    })
    .await;
    let bytes = 16_376 << 10;
    let mut copies = Vec::new();
    for (name, vm) in [("source.mem", &pair.source), ("target.mem", &pair.target)] {
        let file = pair.folder.path().join(name);
        vm.qmp.pmemsave(0, bytes, &file).await.unwrap();
        copies.push(std::fs::read(&file).unwrap());
    }
    assert_eq!(copies[0].len() as u64, bytes);
    let differing = copies[0].chunks(4096).zip(copies[1].chunks(4096)).filter(|(a, b)| a != b).count();
    let progress = pair.source.qmp.query_migrate().await.unwrap();
    assert!(progress.downtime.is_some() && progress.total_time.is_some(), "{progress:?}");
    assert!(progress.ram.unwrap().transferred > 0);
    assert_eq!(cont(&pair.target).await, Allowed);
    pair.target.lives().await;
    differing
}

#[tokio::test]
async fn a_target_tells_the_port_it_chose() {
    for binary in [7, 10].into_iter().filter_map(qemu) {
        let folder = folder();
        let disk = folder.path().join("root.img");
        boot::write_disk(&disk, &boot::writer(Pace::Ticks), 1 << 20).unwrap();
        let source = Qemu::start(&binary, &machine(&binary, folder.path(), "source", &disk)).await.unwrap();
        source.lives().await;
        let config =
            Config { paused: true, incoming: true, ..machine(&binary, folder.path(), "target", &disk) };
        let target = Qemu::start(&binary, &config).await.unwrap();
        let localhost = |port| Address::Tcp { ip: "127.0.0.1".parse().unwrap(), port };
        target.qmp.set_migration_capabilities(&[Capability::ReturnPath], &[]).await.unwrap();
        source.qmp.set_migration_capabilities(&[Capability::ReturnPath], &[]).await.unwrap();
        target.qmp.migrate_incoming(&localhost(0)).await.unwrap();
        let port = target.qmp.incoming_port().await.unwrap().expect("known as soon as it listens");
        assert_ne!(port, 0);
        source.qmp.migrate(&localhost(port)).await.unwrap();
        eventually("completed", || async {
            source.qmp.query_migrate().await.unwrap().status == Status::Completed
        })
        .await;
        assert_eq!(cont(&target).await, Allowed);
        target.lives().await;
    }
}
