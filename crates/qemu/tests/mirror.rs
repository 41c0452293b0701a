//! A disk goes from one QEMU to another while it is written to, and what happens when a side is lost.
//!
//! Observations of QEMU, on which moves without shared storage stand.
#![allow(clippy::unwrap_used)]

mod world;

use std::time::Duration;

use serde_json::{Value, json};
use sterna_qemu::boot::{self, Pace};
use sterna_qemu::config::Format;
use sterna_qemu::qmp::export::Removal;
use sterna_qemu::qmp::migration::{Address, Capability, Parameters, Status};
use sterna_qemu::qmp::mirror::{CopyMode, JobState, Mirror, NbdNode};
use sterna_qemu::qmp::{Error, Event};
use world::disks::{BLOCK, DISK, JOB, Pair, THERE, are_equal, disk_of, ended, mirror, told, tool};
use world::{Binary, eventually, folder, qemu};

/// Longer than any test.
const FOR_EVER: Duration = Duration::from_secs(600);

fn binaries() -> impl Iterator<Item = Binary> {
    [7, 10].into_iter().filter_map(qemu)
}

/// Block numbers and bytes that look random and are the same each time.
fn writes() -> impl Iterator<Item = (u64, u8)> {
    let mut state = 1_u64;
    std::iter::from_fn(move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Some(((state >> 33) % (DISK / BLOCK), (state >> 56) as u8))
    })
}

/// A disk under a writer moves; half of the writes come before the copy is ready, half after it.
async fn moves(binary: &Binary, begin: CopyMode, then_write_blocking: bool) {
    let pair = Pair::new(binary).await;
    let mut writes = writes();
    for (block, byte) in writes.by_ref().take(200) {
        pair.write(block, byte).await;
    }
    let mut events = pair.source.qmp.events();
    pair.start(&mirror(begin)).await;
    let mut during = 0;
    while !pair.job().await.unwrap().is_ready {
        let (block, byte) = writes.next().unwrap();
        pair.write(block, byte).await;
        during += 1;
    }
    assert_eq!(told(&mut events).await, Event::BlockJobReady { job: JOB.into() });
    let schema = pair.source.qmp.query_schema().await.unwrap();
    if then_write_blocking {
        let can = schema.has_command("block-job-change");
        let is_changed = pair.source.qmp.make_write_blocking(&schema, JOB).await.unwrap();
        assert_eq!(is_changed, can, "{}", binary.version);
        if can {
            eventually("each write is at both places", || async {
                pair.job().await.unwrap().is_actively_synced == Some(true)
            })
            .await;
        }
    }
    let mut last = (0, 0);
    for (block, byte) in writes.take(200) {
        pair.write(block, byte).await;
        last = (block, byte);
    }
    pair.source.qmp.finish_mirror(JOB).await.unwrap();
    let completed = Event::BlockJobCompleted { job: JOB.into(), error: None };
    assert_eq!(told(&mut events).await, completed, "{}: {during} writes before it was ready", binary.version);
    assert_eq!(pair.job().await, None);
    pair.source.qmp.remove_node(THERE).await.unwrap();
    pair.target.qmp.nbd_server_stop().await.unwrap();
    assert_eq!(pair.target.qmp.query_exports().await.unwrap(), []);
    let folder = pair.holds("target", last).await;
    are_equal(&disk_of(folder.path(), "source"), &disk_of(folder.path(), "target"));
}

#[tokio::test]
async fn a_disk_arrives_whole_while_it_is_written_to() {
    for binary in binaries() {
        moves(&binary, CopyMode::Background, false).await;
        moves(&binary, CopyMode::Background, true).await;
        moves(&binary, CopyMode::WriteBlocking, false).await;
    }
}

/// The whole order of a move without shared storage: the guest writes to its disk all the time and finds it again.
#[tokio::test]
async fn a_running_guest_takes_its_disk_along() {
    use Capability::{Events, LateBlockActivate, PauseBeforeSwitchover, ReturnPath};
    for binary in binaries() {
        let folder = folder();
        boot::write_disk(&disk_of(folder.path(), "source"), &boot::writer(Pace::Ticks), 1 << 20).unwrap();
        std::fs::write(disk_of(folder.path(), "target"), vec![0; 1 << 20]).unwrap();
        let pair = Pair::with_disks(&binary, folder, Format::Raw, false).await;
        let address = Address::Unix(pair.folder.path().join("in"));
        let source = [Events, ReturnPath, PauseBeforeSwitchover];
        pair.source.qmp.set_migration_capabilities(&source, &[]).await.unwrap();
        let target = [Events, ReturnPath, LateBlockActivate];
        pair.target.qmp.set_migration_capabilities(&target, &[]).await.unwrap();
        pair.target.qmp.migrate_incoming(&address).await.unwrap();
        pair.source.lives().await;

        let mut events = pair.source.qmp.events();
        pair.start(&mirror(CopyMode::Background)).await;
        assert_eq!(told(&mut events).await, Event::BlockJobReady { job: JOB.into() });
        let fast = Parameters { max_bandwidth: Some(1 << 30), ..Parameters::default() };
        pair.source.qmp.set_migration_parameters(&fast).await.unwrap();
        pair.source.qmp.migrate(&address).await.unwrap();
        source_is(&pair, Status::PreSwitchover).await;
        pair.source.qmp.finish_mirror(JOB).await.unwrap();
        let completed = Event::BlockJobCompleted { job: JOB.into(), error: None };
        assert_eq!(told(&mut events).await, completed);
        pair.source.qmp.remove_node(THERE).await.unwrap();
        let [there, here] = ["source", "target"].map(|name| std::fs::read(pair.disk(name)).unwrap());
        assert!(there == here, "{}: the disks differ at the switchover", binary.version);
        let counter = boot::read_counter(&pair.disk("target")).unwrap();
        assert!(counter > 0, "the guest has written");

        pair.source.qmp.migrate_continue().await.unwrap();
        source_is(&pair, Status::Completed).await;
        eventually("target has loaded all", || async {
            pair.target.qmp.query_migrate().await.unwrap().status == Status::Completed
        })
        .await;
        pair.target.qmp.nbd_server_stop().await.unwrap();
        pair.target.qmp.cont().await.unwrap();
        eventually("the guest writes on", || async {
            boot::read_counter(&pair.disk("target")).unwrap() > counter
        })
        .await;
        assert_eq!(boot::read_counter(&pair.disk("source")).unwrap(), counter, "nobody writes where it was");
    }
}

async fn source_is(pair: &Pair, status: Status) {
    eventually(&format!("source is {status}"), || async {
        pair.source.qmp.query_migrate().await.unwrap().status == status
    })
    .await;
}

#[tokio::test]
async fn an_aborted_mirror_leaves_the_disk_as_it_was() {
    for binary in binaries() {
        let pair = Pair::new(&binary).await;
        let mut events = pair.source.qmp.events();
        pair.start(&mirror(CopyMode::WriteBlocking)).await;
        assert_eq!(told(&mut events).await, Event::BlockJobReady { job: JOB.into() });
        pair.source.qmp.abort_mirror(JOB).await.unwrap();
        assert_eq!(told(&mut events).await, Event::BlockJobCancelled { job: JOB.into() });
        pair.source.qmp.remove_node(THERE).await.unwrap();
        pair.write(3, 9).await;
        let nodes = pair.source.qmp.query_named_block_nodes().await.unwrap();
        let mirrors = nodes.iter().filter(|node| ["mirror_top", "nbd"].contains(&node.driver.as_str()));
        assert_eq!(mirrors.count(), 0, "nothing of it is left");
        pair.holds("source", (3, 9)).await;
    }
}

/// The guest does not notice, and the job that was to be kept says why it ended.
#[tokio::test]
async fn a_mirror_whose_target_is_cut_off_ends_with_an_error_and_the_guest_goes_on() {
    for binary in binaries() {
        let pair = Pair::new(&binary).await;
        let mut events = pair.source.qmp.events();
        pair.start(&Mirror { auto_dismiss: false, ..mirror(CopyMode::WriteBlocking) }).await;
        assert_eq!(told(&mut events).await, Event::BlockJobReady { job: JOB.into() });
        let safely = pair.target.qmp.remove_export("x-root", Removal::Safe).await;
        assert!(matches!(safely, Err(Error::Refused { .. })), "{safely:?}");
        pair.target.qmp.remove_export("x-root", Removal::Hard).await.unwrap();
        eventually("the export is gone", || async {
            pair.target.qmp.query_exports().await.unwrap().is_empty()
        })
        .await;
        pair.write(3, 9).await;
        eventually("the job has ended", || async { pair.job().await.unwrap().status == JobState::Concluded })
            .await;
        let end = ended(&mut events).await;
        assert!(matches!(end, Event::BlockJobCompleted { error: Some(_), .. }), "{end:?}");
        assert!(pair.job().await.unwrap().error.is_some());
        pair.source.qmp.dismiss_job(JOB).await.unwrap();
        assert_eq!(pair.job().await, None);
        pair.source.qmp.remove_node(THERE).await.unwrap();
        pair.write(4, 8).await;
        let folder = pair.holds("source", (3, 9)).await;
        let source = disk_of(folder.path(), "source");
        tool("qemu-io", &["-f", "qcow2", "-c", "read -P 8 256k 64k", source.to_str().unwrap()]);
    }
}

#[tokio::test]
async fn a_mirror_that_waits_for_its_lost_target_cannot_be_finished_but_aborted() {
    for binary in binaries() {
        let (pair, mut events) = Pair::without_target(&binary, FOR_EVER).await;
        pair.write(3, 9).await;
        pair.source.qmp.finish_mirror(JOB).await.unwrap();
        assert!(pair.job().await.is_some(), "what was written cannot be copied");
        // A write that begins to wait for the target just then is not called off with the others: whoever aborts asks again.
        eventually("its end", || async {
            let _ = pair.source.qmp.abort_mirror(JOB).await;
            pair.job().await.is_none()
        })
        .await;
        let end = ended(&mut events).await;
        assert_eq!(end, Event::BlockJobCancelled { job: JOB.into() }, "{}", binary.version);
    }
}

/// Closing flushes; the flush waits for the server, and all of QEMU for the flush.
#[tokio::test]
async fn a_node_that_waits_for_its_lost_server_holds_up_all_of_qemu_when_it_is_closed() {
    let soon = Duration::from_millis(500);
    for binary in binaries() {
        for (reconnect_delay, holds_up) in [(Duration::ZERO, false), (FOR_EVER, true)] {
            let (pair, mut events) = Pair::without_target(&binary, reconnect_delay).await;
            pair.source.qmp.abort_mirror(JOB).await.unwrap();
            assert_eq!(ended(&mut events).await, Event::BlockJobCancelled { job: JOB.into() });
            if !holds_up {
                pair.source.qmp.remove_node(THERE).await.unwrap();
                continue;
            }
            let arguments = json!({ "node-name": THERE });
            let closed = pair.source.qmp.execute_within::<Value>("blockdev-del", arguments, soon).await;
            assert!(matches!(closed, Err(Error::TimedOut { .. })), "{}: {closed:?}", binary.version);
            let asked = pair.source.qmp.execute_within::<Value>("query-status", Value::Null, soon).await;
            assert!(matches!(asked, Err(Error::TimedOut { .. })), "{}: {asked:?}", binary.version);
        }
    }
}

#[tokio::test]
async fn a_job_that_waits_for_its_end_is_told_to() {
    for binary in binaries() {
        let pair = Pair::new(&binary).await;
        let mut events = pair.source.qmp.events();
        pair.start(&Mirror { auto_finalize: false, ..mirror(CopyMode::Background) }).await;
        assert_eq!(told(&mut events).await, Event::BlockJobReady { job: JOB.into() });
        pair.source.qmp.finish_mirror(JOB).await.unwrap();
        eventually("pending", || async { pair.job().await.unwrap().status == JobState::Pending }).await;
        pair.source.qmp.finalize_job(JOB).await.unwrap();
        assert_eq!(told(&mut events).await, Event::BlockJobCompleted { job: JOB.into(), error: None });
        assert_eq!(pair.job().await, None);
    }
}

#[tokio::test]
async fn what_qemu_refuses_leaves_nothing() {
    for binary in binaries() {
        let pair = Pair::new(&binary).await;
        let before = node_count(&pair).await;
        let long = NbdNode { node: "n".repeat(32), ..pair.there() };
        let absent = NbdNode { export: "other".into(), ..pair.there() };
        let nobody = NbdNode { at: pair.folder.path().join("none").as_path().into(), ..pair.there() };
        for node in [long, absent, nobody] {
            let added = pair.source.qmp.add_nbd_node(&node).await;
            assert!(matches!(added, Err(Error::Refused { .. })), "{}: {node:?}: {added:?}", binary.version);
        }
        let started = pair.source.qmp.mirror(&mirror(CopyMode::Background)).await;
        assert!(matches!(started, Err(Error::Refused { .. })), "{started:?}");
        assert_eq!(node_count(&pair).await, before);
        let longest = NbdNode { node: "n".repeat(31), ..pair.there() };
        pair.source.qmp.add_nbd_node(&longest).await.unwrap();
    }
}

async fn node_count(pair: &Pair) -> usize {
    let nodes: Vec<Value> =
        pair.source.qmp.execute("query-named-block-nodes", json!({ "flat": true })).await.unwrap();
    nodes.len()
}
