//! A guest is carried between two hosts by the mover, under real QEMU, with what can go wrong on the way.
#![allow(clippy::unwrap_used)]

mod world;

use std::net::SocketAddr;
use std::path::PathBuf;

use sterna_agent::process;
use sterna_base::units::Span;
use sterna_model::migration::SideState;
use sterna_model::vm::{CopyState, Exit};
use sterna_qemu::boot::{self, Pace};
use sterna_qemu::version::Version;
use sterna_wire::assignment::{Carry, Outgoing, Owner, Role, VmAssignment};
use uuid::Uuid;
use world::{Host, disk, eventually, folder, name, order, owns, qemu};

const UID: Uuid = Uuid::from_u128(7);

#[test]
fn shim_entry() {
    world::shim_entry();
}

struct Pair {
    a: Host,
    b: Host,
    disk: PathBuf,
    _folder: tempfile::TempDir,
}

/// One session a migration, as the server gives them. The disk goes with the guest when the hosts do not share it.
fn carry(host: &Host, epoch: u64, peer: &str) -> Option<Carry> {
    let is_shared = host.disk().parent() != Some(host.folder());
    let disks = if is_shared { vec![] } else { vec![0] };
    Some(Carry {
        session: Uuid::from_u128(u128::from(epoch)),
        peer: name(peer),
        disks,
        straight: false,
        siblings: vec![],
    })
}

fn incoming(host: &Host, epoch: u64, peer: &str) -> VmAssignment {
    let (listen, machine) = ("127.0.0.1".parse().unwrap(), Box::new(host.machine()));
    let migration = name(&format!("m{epoch}"));
    let carry = carry(host, epoch, peer);
    let (channels, in_clear, host_epoch) = (None, false, None);
    let incoming = Role::Incoming { migration, machine, listen, carry, channels, in_clear, host_epoch };
    order(UID, epoch, incoming)
}

fn sends(host: &Host, epoch: u64, to: SocketAddr, peer: &str) -> VmAssignment {
    let outgoing = Outgoing {
        migration: name(&format!("m{}", epoch + 1)),
        to,
        carry: carry(host, epoch + 1, peer),
        line: None,
        max_downtime: Span::from_millis(300),
        cancel: false,
        seed: false,
    };
    owns(UID, epoch, Owner { outgoing: Some(outgoing), ..host.owner() })
}

fn continues(host: &Host, epoch: u64, migration: &str) -> VmAssignment {
    owns(UID, epoch, Owner { continues: Some(name(migration)), ..host.owner() })
}

/// What was reported of an earlier copy may still be the newest that was heard.
fn side(host: &Host, epoch: u64) -> Option<SideState> {
    host.report(UID).filter(|report| report.epoch == epoch)?.migration.map(|migration| migration.side)
}

fn listens(host: &Host, epoch: u64) -> Option<SocketAddr> {
    match side(host, epoch) {
        Some(SideState::Listening { at, .. }) => Some(at.parse().unwrap()),
        _ => None,
    }
}

fn is_released(host: &Host, epoch: u64) -> bool {
    matches!(side(host, epoch), Some(SideState::Released { .. }))
}

fn is_gone(host: &Host) -> bool {
    matches!(host.state(UID), Some(CopyState::Stopped { .. }))
}

impl Pair {
    /// The guest runs on `a` under epoch 3.
    async fn new(qemu: &(PathBuf, Version)) -> Self {
        let folder = folder();
        let disk = disk(folder.path(), &boot::writer(Pace::Flat));
        let a = Host::start(&folder.path().join("a"), qemu, &disk);
        let b = Host::start(&folder.path().join("b"), qemu, &disk);
        a.order(vec![owns(UID, 3, a.owner())]);
        a.runs(UID, 3).await;
        let pair = Self { a, b, disk, _folder: folder };
        pair.writes().await;
        pair
    }

    async fn writes(&self) {
        let before = boot::read_counter(&self.disk).unwrap();
        eventually("the guest writes", || boot::read_counter(&self.disk).unwrap() > before + 3).await;
    }

    async fn end(self) {
        for host in [&self.a, &self.b] {
            if host.state(UID).is_some_and(|state| state.has_process()) {
                let epoch = host.report(UID).unwrap().epoch;
                host.order(vec![order(UID, epoch, Role::Release)]);
                eventually("the last copy is gone", || is_gone(host)).await;
            }
            host.order(vec![]);
            eventually("forgotten", || !host.run_directory(UID).exists()).await;
        }
    }
}

/// Until `from` has let go of what it has under `epoch`; what control does then is up to the test.
async fn released(from: &Host, to: &Host, epoch: u64, peer: &str) {
    to.order(vec![incoming(to, epoch + 1, peer)]);
    eventually("the target listens", || listens(to, epoch + 1).is_some()).await;
    from.order(vec![sends(from, epoch, listens(to, epoch + 1).unwrap(), peer)]);
    eventually("the source let go", || is_released(from, epoch)).await;
}

/// The whole way of a move.
async fn moved(from: &Host, to: &Host, epoch: u64, peer: &str) {
    released(from, to, epoch, peer).await;
    from.order(vec![]);
    to.order(vec![continues(to, epoch + 1, &format!("m{}", epoch + 1))]);
    to.runs(UID, epoch + 1).await;
    from.order(vec![order(UID, epoch, Role::Release)]);
    eventually("the source is gone", || is_gone(from)).await;
    assert_eq!(from.state(UID), Some(CopyState::Stopped { exit: Exit::Released }));
    from.order(vec![]);
    eventually("forgotten", || !from.run_directory(UID).exists()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_is_carried_there_and_back_with_what_each_side_kept() {
    for qemu in [7, 10].into_iter().filter_map(qemu) {
        let pair = Pair::new(&qemu).await;
        moved(&pair.a, &pair.b, 3, "b").await;
        pair.writes().await;
        let checkpoints = |host: &str| {
            let folder = pair._folder.path().join(host).join("data/checkpoints");
            std::fs::read_dir(folder).unwrap().count()
        };
        eventually("both kept a checkpoint", || checkpoints("a") == 1 && checkpoints("b") == 1).await;
        moved(&pair.b, &pair.a, 4, "a").await;
        pair.writes().await;
        pair.end().await;
    }
}

/// Each host has a disk of its own.
struct Apart {
    a: Host,
    b: Host,
    _folder: tempfile::TempDir,
}

impl Apart {
    async fn new(qemu: &(PathBuf, Version)) -> Self {
        let folder = folder();
        let [a, b] = ["a", "b"].map(|host| folder.path().join(host));
        for (host, is_source) in [(&a, true), (&b, false)] {
            std::fs::create_dir_all(host).unwrap();
            let path = disk(host, &boot::writer(Pace::Flat));
            if !is_source {
                // The same size, and nothing of it in it.
                let size = usize::try_from(std::fs::metadata(&path).unwrap().len()).unwrap();
                std::fs::write(&path, vec![0xa5; size]).unwrap();
            }
        }
        let start = |host: &PathBuf| Host::start(host, qemu, &host.join("disk.img"));
        let (a, b) = (start(&a), start(&b));
        a.order(vec![owns(UID, 3, a.owner())]);
        a.runs(UID, 3).await;
        let apart = Self { a, b, _folder: folder };
        apart.writes(&apart.a, 0).await;
        apart
    }

    async fn writes(&self, host: &Host, at_least: u32) -> u32 {
        let before = boot::read_counter(host.disk()).unwrap().max(at_least);
        eventually("the guest writes", || boot::read_counter(host.disk()).unwrap() > before + 3).await;
        boot::read_counter(host.disk()).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_takes_its_disk_along_and_back() {
    for qemu in [7, 10].into_iter().filter_map(qemu) {
        let apart = Apart::new(&qemu).await;
        let written = apart.writes(&apart.a, 0).await;
        moved(&apart.a, &apart.b, 3, "b").await;
        let left = boot::read_counter(apart.a.disk()).unwrap();
        assert!(left >= written);
        let written = apart.writes(&apart.b, left).await;
        assert_eq!(boot::read_counter(apart.a.disk()).unwrap(), left, "something writes where it was");
        moved(&apart.b, &apart.a, 4, "a").await;
        apart.writes(&apart.a, written).await;
        let a = &apart.a;
        a.order(vec![order(UID, 5, Role::Release)]);
        eventually("the last copy is gone", || is_gone(a)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_goes_ahead_of_its_guest_which_does_not_notice() {
    for qemu in [7, 10].into_iter().filter_map(qemu) {
        let apart = Apart::new(&qemu).await;
        let (a, b) = (&apart.a, &apart.b);
        let before = apart.writes(a, 0).await;
        b.order(vec![incoming(b, 4, "b")]);
        eventually("the target listens", || listens(b, 4).is_some()).await;
        let seed = match sends(a, 3, listens(b, 4).unwrap(), "b").role {
            Role::Owner(owner) => {
                let outgoing = owner.outgoing.clone().map(|outgoing| Outgoing { seed: true, ..outgoing });
                owns(UID, 3, Owner { outgoing, ..*owner })
            }
            _ => unreachable!(),
        };
        a.order(vec![seed]);
        eventually("the disk is there", || matches!(side(a, 3), Some(SideState::Seeded { .. }))).await;
        assert!(boot::read_counter(b.disk()).unwrap() >= before);
        assert_eq!(a.state(UID), Some(CopyState::Running));
        b.order(vec![order(UID, 4, Role::Release)]);
        eventually("the target is gone", || is_gone(b)).await;
        apart.writes(a, before).await;
        a.order(vec![order(UID, 5, Role::Release)]);
        eventually("the guest is gone", || is_gone(a)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_whose_target_is_lost_stays_and_nothing_is_left_of_the_move() {
    let qemu = qemu(10).unwrap();
    let apart = Apart::new(&qemu).await;
    let (a, b) = (&apart.a, &apart.b);
    released(a, b, 3, "b").await;
    b.qemu_process(UID).kill();
    eventually("the target says so", || is_gone(b)).await;
    a.order(vec![continues(a, 5, "m4")]);
    a.runs(UID, 5).await;
    apart.writes(a, 0).await;
    // And it can be tried again.
    b.order(vec![]);
    eventually("forgotten", || !b.run_directory(UID).exists()).await;
    moved(a, b, 5, "b").await;
    apart.writes(b, boot::read_counter(a.disk()).unwrap()).await;
    b.order(vec![order(UID, 6, Role::Release)]);
    eventually("the last copy is gone", || is_gone(b)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_let_go_stands_still_until_its_owner_says_otherwise() {
    let qemu = qemu(10).unwrap();
    let pair = Pair::new(&qemu).await;
    let (a, b) = (&pair.a, &pair.b);
    released(a, b, 3, "b").await;
    assert!(process::is_stopped(a.qemu_process(UID).pid).unwrap(), "it is not frozen");
    // The target is lost before anybody could own it there.
    b.qemu_process(UID).kill();
    eventually("the target says so", || is_gone(b)).await;
    assert!(process::is_stopped(a.qemu_process(UID).pid).unwrap(), "it was thawed by nobody's word");
    a.order(vec![continues(a, 5, "m4")]);
    a.runs(UID, 5).await;
    pair.writes().await;
    pair.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_whose_agent_died_after_letting_go_is_taken_back_by_the_next() {
    let qemu = qemu(10).unwrap();
    let mut pair = Pair::new(&qemu).await;
    released(&pair.a, &pair.b, 3, "b").await;
    pair.a = pair.a.restart().await;
    let a = &pair.a;
    eventually("the next agent found it", || is_released(a, 3)).await;
    assert!(process::is_stopped(a.qemu_process(UID).pid).unwrap(), "it was thawed by nobody's word");
    pair.b.order(vec![order(UID, 4, Role::Release)]);
    eventually("the target is gone", || is_gone(&pair.b)).await;
    a.order(vec![continues(a, 5, "m4")]);
    a.runs(UID, 5).await;
    pair.writes().await;
    pair.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_whose_agent_dies_on_the_way_keeps_its_guest() {
    let qemu = qemu(10).unwrap();
    let mut pair = Pair::new(&qemu).await;
    let b = &pair.b;
    b.order(vec![incoming(b, 4, "b")]);
    eventually("the target listens", || listens(b, 4).is_some()).await;
    let to = listens(b, 4).unwrap();
    pair.a.order(vec![sends(&pair.a, 3, to, "b")]);
    eventually("it sends", || pair.a.side(UID).is_some()).await;
    pair.a = pair.a.restart().await;
    let a = &pair.a;
    eventually("the next agent knows how it ended", || {
        matches!(a.side(UID), Some(SideState::Kept { .. } | SideState::Released { .. }))
    })
    .await;
    if !is_released(a, 3) {
        a.order(vec![owns(UID, 3, a.owner())]);
        a.runs(UID, 3).await;
        pair.writes().await;
    }
    pair.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_not_the_one_meant_gets_nothing() {
    let qemu = qemu(10).unwrap();
    let pair = Pair::new(&qemu).await;
    let (a, b) = (&pair.a, &pair.b);
    b.order(vec![incoming(b, 4, "b")]);
    eventually("the target listens", || listens(b, 4).is_some()).await;
    a.order(vec![sends(a, 3, listens(b, 4).unwrap(), "c")]);
    eventually("it sends", || a.side(UID) == Some(SideState::Sending)).await;
    let memory_sent = || std::fs::metadata(b.run_directory(UID).join("q/in.sock")).is_ok();
    eventually("the target waits in vain", memory_sent).await;
    pair.writes().await;
    let cancel = match sends(a, 3, listens(b, 4).unwrap(), "c").role {
        Role::Owner(owner) => {
            let outgoing = owner.outgoing.clone().map(|outgoing| Outgoing { cancel: true, ..outgoing });
            owns(UID, 3, Owner { outgoing, ..*owner })
        }
        _ => unreachable!(),
    };
    a.order(vec![cancel]);
    eventually("it stays", || matches!(a.side(UID), Some(SideState::Kept { .. }))).await;
    pair.writes().await;
    pair.end().await;
}
