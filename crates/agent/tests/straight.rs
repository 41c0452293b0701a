//! A guest takes its disk straight from one QEMU to another, with every way in which that can go wrong.
#![allow(clippy::unwrap_used)]

mod straight_world;
mod world;

use sterna_model::line::{DiskLine, Line, LineKey};
use sterna_model::migration::SideState;
use sterna_model::vm::CopyState;
use sterna_qemu::boot::{self, COUNTER_SECTOR};
use sterna_wire::assignment::{Owner, Role};
use straight_world::*;
use world::{eventually, name, owns, qemu};

#[test]
fn shim_entry() {
    world::shim_entry();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_takes_its_disk_straight_along() {
    let ways =
        [(7, None), (7, encrypted(0)), (10, None), (10, in_clear(2)), (10, encrypted(0)), (10, encrypted(2))];
    for (qemu, laying) in ways.into_iter().filter_map(|(major, laying)| Some((qemu(major)?, laying))) {
        let apart = Apart::new(&qemu, laying, 8 * MIB).await;
        let (a, b) = (&apart.a, &apart.b);
        let written = writes(a).await;
        apart.moves(4).await;
        let left = boot::read_counter(a.disk()).unwrap();
        assert!(left >= written);
        assert!(writes(b).await > left, "{}, {laying:?}: it went back", qemu.1);
        assert_eq!(boot::read_counter(a.disk()).unwrap(), left, "something writes where it was");
        apart.release(b).await;
        let [mut source, mut target] = [a, b].map(|host| std::fs::read(host.disk()).unwrap());
        let counter = usize::try_from(COUNTER_SECTOR * 512).unwrap();
        for disk in [&mut source, &mut target] {
            disk[counter..counter + 4].fill(0);
        }
        assert!(source == target, "{}, {laying:?}: the disks differ", qemu.1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_clone_only_what_was_written_crosses() {
    for qemu in [7, 10].into_iter().filter_map(qemu) {
        let apart = Apart::clones(&qemu).await;
        let (to, line) = apart.prepare(4).await;
        assert_eq!(line.as_ref().unwrap().disks.as_ref().unwrap().blank, [0]);
        drop((to, line));
        apart.moves(4).await;
        apart.release(&apart.b).await;
        let [source, target] = [&apart.a, &apart.b].map(|host| host.disk().to_owned());
        let size = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&target).unwrap()) * 512;
        assert!(size < 2 * MIB as u64, "{}: {size} bytes are in a clone of 8 MiB", qemu.1);
        for (disk, raw) in [(&source, "source.raw"), (&target, "target.raw")] {
            let raw = disk.with_file_name(raw);
            tool(&["convert", "-f", "qcow2", "-O", "raw", &text(disk), &text(&raw)]);
        }
        let [mut source, mut target] =
            [source.with_file_name("source.raw"), target.with_file_name("target.raw")]
                .map(|disk| std::fs::read(disk).unwrap());
        let counter = usize::try_from(COUNTER_SECTOR * 512).unwrap();
        let number = |disk: &[u8]| u32::from_le_bytes(disk[counter..counter + 4].try_into().unwrap());
        assert!(number(&target) >= number(&source) && number(&source) > 0, "{}: it went back", qemu.1);
        for disk in [&mut source, &mut target] {
            disk[counter..counter + 4].fill(0);
        }
        assert!(source == target, "{}: the disks differ", qemu.1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_dies_half_way_leaves_the_guest_with_its_own_disk() {
    for qemu in [7, 10].into_iter().filter_map(qemu) {
        let apart = Apart::new(&qemu, in_clear(0), 128 * MIB).await;
        let (a, b) = (&apart.a, &apart.b);
        apart.half_way().await;
        b.qemu_process(UID).kill();
        let why = kept(a, 3).await;
        assert!(why.contains("the copy of a disk failed"), "{why}");
        a.order(vec![owns(UID, 3, a.owner())]);
        a.runs(UID, 3).await;
        writes(a).await;
        // Nothing of it is in the way of the next.
        apart.release(b).await;
        apart.moves(6).await;
        writes(b).await;
        apart.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_dies_half_way_is_said_to_be_gone() {
    let qemu = qemu(10).unwrap();
    let apart = Apart::new(&qemu, in_clear(0), 128 * MIB).await;
    let (a, b) = (&apart.a, &apart.b);
    apart.half_way().await;
    a.qemu_process(UID).kill();
    eventually("the source says so", || is_gone(a)).await;
    assert_eq!(b.state(UID), Some(CopyState::Incoming));
    apart.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_hangs_half_way_is_given_up_and_the_guest_runs_on() {
    for qemu in [7, 10].into_iter().filter_map(qemu) {
        let apart = Apart::new(&qemu, encrypted(0), 128 * MIB).await;
        let (a, b) = (&apart.a, &apart.b);
        apart.half_way().await;
        let pid =
            i32::try_from(b.qemu_process(UID).pid).ok().and_then(rustix::process::Pid::from_raw).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        let why = kept(a, 3).await;
        assert!(why.contains("took nothing for 30s"), "{}: {why}", qemu.1);
        a.order(vec![owns(UID, 3, a.owner())]);
        a.runs(UID, 3).await;
        writes(a).await;
        rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
        apart.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_that_die_half_way_leave_the_guest_where_it_is() {
    let qemu = qemu(10).unwrap();
    let mut apart = Apart::new(&qemu, encrypted(0), 128 * MIB).await;
    let to = apart.prepare(4).await;
    apart.b = apart.b.restart().await;
    apart.b.order(vec![incoming(&apart.b, 4, apart.laying)]);
    eventually("still the same place and key", || listens(&apart.b, 4).as_ref() == Some(&to)).await;
    apart.half_way().await;
    apart.a = apart.a.restart().await;
    let why = kept(&apart.a, 3).await;
    assert!(why == "never began" || why.contains("cancel"), "{why}");
    let a = &apart.a;
    a.order(vec![owns(UID, 3, a.owner())]);
    a.runs(UID, 3).await;
    writes(a).await;
    apart.release(&apart.b).await;
    apart.moves(6).await;
    writes(&apart.b).await;
    apart.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_is_called_off_half_way_and_nobody_else_s_disk_is_written_to() {
    let qemu = qemu(10).unwrap();
    let apart = Apart::new(&qemu, encrypted(0), 128 * MIB).await;
    let (a, b) = (&apart.a, &apart.b);
    let (to, line) = apart.half_way().await;
    a.order(vec![sends(a, (3, 4), &(to, line), true)]);
    assert_eq!(kept(a, 3).await, "cancelled");
    a.order(vec![owns(UID, 3, a.owner())]);
    a.runs(UID, 3).await;
    writes(a).await;
    apart.release(b).await;
    // The next one has another word and another key: who has the old ones, or one of them, writes nothing.
    let (to, line) = apart.prepare(6).await;
    let line = line.unwrap();
    let disks = line.disks.clone().unwrap();
    let word = Some(DiskLine { word: LineKey::new([7; 32]), ..disks });
    let strangers = [
        Line { disks: word, ..line.clone() },
        Line { key: Some(LineKey::new([7; 32])), ..line.clone() },
        Line { key: None, ..line.clone() },
    ];
    let before = byte(b.disk(), MIB as u64);
    for (number, stranger) in strangers.into_iter().enumerate() {
        let mut outgoing = match sends(a, (3, 6), &(to, Some(stranger)), false).role {
            Role::Owner(owner) => owner.outgoing.unwrap(),
            _ => unreachable!(),
        };
        outgoing.migration = name(&format!("stranger-{number}"));
        a.order(vec![owns(UID, 3, Owner { outgoing: Some(outgoing.clone()), ..a.owner() })]);
        eventually("it is refused", || {
            let report = a.report(UID).and_then(|report| report.migration);
            report.is_some_and(|report| {
                report.migration == outgoing.migration && matches!(report.side, SideState::Kept { .. })
            })
        })
        .await;
        assert_eq!(byte(b.disk(), MIB as u64), before);
        a.runs(UID, 3).await;
    }
    apart.end().await;
}
