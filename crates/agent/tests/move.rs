//! A guest moves between two hosts of one machine, under real QEMU, with every way in which that can go wrong.
#![allow(clippy::unwrap_used)]

mod world;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Instant;

use sterna_base::units::Span;
use sterna_model::line::{Laying, Line, LineKey};
use sterna_model::migration::SideState;
use sterna_model::vm::{CopyState, Exit, Power};
use sterna_qemu::boot::{self, Pace};
use sterna_qemu::version::Version;
use sterna_wire::assignment::{Outgoing, Owner, Role, VmAssignment};
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
    /// The line between them; `None`: one connection in clear.
    laying: Option<Laying>,
    disk: PathBuf,
    folder: tempfile::TempDir,
}

/// Where and how the target wants to be called.
type Call = (SocketAddr, Option<Line>);

fn encrypted(channels: u8) -> Option<Laying> {
    Some(Laying { channels, is_encrypted: true })
}

fn incoming(host: &Host, epoch: u64, migration: &str, laying: Option<Laying>) -> VmAssignment {
    let listen = "127.0.0.1".parse().unwrap();
    let machine = Box::new(host.machine());
    let migration = name(migration);
    let channels = laying.map(|laying| laying.channels);
    let in_clear = laying.is_some_and(|laying| !laying.is_encrypted);
    let (carry, host_epoch) = (None, None);
    let incoming = Role::Incoming { migration, machine, listen, carry, channels, in_clear, host_epoch };
    order(UID, epoch, incoming)
}

fn outgoing(migration: &str, (to, line): &Call, cancel: bool) -> Outgoing {
    let (migration, max_downtime) = (name(migration), Span::from_millis(300));
    Outgoing { migration, to: *to, carry: None, line: line.clone(), max_downtime, cancel, seed: false }
}

fn sends(host: &Host, epoch: u64, call: &Call, cancel: bool) -> VmAssignment {
    let outgoing = outgoing("m", call, cancel);
    owns(UID, epoch, Owner { outgoing: Some(outgoing), ..host.owner() })
}

fn continues(host: &Host, epoch: u64) -> VmAssignment {
    owns(UID, epoch, Owner { continues: Some(name("m")), ..host.owner() })
}

fn listens(host: &Host) -> Option<Call> {
    match host.side(UID) {
        Some(SideState::Listening { at, line }) => Some((at.parse().unwrap(), line)),
        _ => None,
    }
}

fn is_released(host: &Host) -> bool {
    matches!(host.side(UID), Some(SideState::Released { .. }))
}

impl Pair {
    /// The guest runs on `a` under epoch 3, and goes over one encrypted connection.
    async fn new(qemu: &(PathBuf, Version)) -> Self {
        Self::with(qemu, encrypted(0)).await
    }

    async fn with(qemu: &(PathBuf, Version), laying: Option<Laying>) -> Self {
        let folder = folder();
        let disk = disk(folder.path(), &boot::writer(Pace::Flat));
        let a = Host::start(&folder.path().join("a"), qemu, &disk);
        let b = Host::start(&folder.path().join("b"), qemu, &disk);
        a.order(vec![owns(UID, 3, a.owner())]);
        a.runs(UID, 3).await;
        let pair = Self { a, b, laying, disk, folder };
        pair.writes().await;
        pair
    }

    async fn prepare(&self) -> Call {
        self.b.order(vec![incoming(&self.b, 4, "m", self.laying)]);
        eventually("the target listens", || listens(&self.b).is_some()).await;
        listens(&self.b).unwrap()
    }

    /// Until the source has let go and the target has everything.
    async fn hand_over(&self) {
        let to = self.prepare().await;
        self.a.order(vec![sends(&self.a, 3, &to, false)]);
        eventually("the source let go", || is_released(&self.a)).await;
        eventually("the target has it", || self.b.side(UID) == Some(SideState::Loaded)).await;
    }

    async fn writes(&self) {
        let before = boot::read_counter(&self.disk).unwrap();
        eventually("the guest writes", || boot::read_counter(&self.disk).unwrap() > before + 3).await;
    }

    async fn end(self, host: impl Fn(&Self) -> &Host, epoch: u64) {
        host(&self).order(vec![order(UID, epoch, Role::Release)]);
        let is_gone = || matches!(host(&self).state(UID), Some(CopyState::Stopped { .. }));
        eventually("the last copy is gone", is_gone).await;
        for host in [&self.a, &self.b] {
            host.order(vec![]);
            eventually("forgotten", || !host.run_directory(UID).exists()).await;
        }
        drop(self.folder);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_moves_and_the_old_copy_goes() {
    // QEMU 7.2 is told to use one connection alone.
    let in_clear = Some(Laying { channels: 2, is_encrypted: false });
    let ways =
        [(7, None), (7, encrypted(0)), (10, None), (10, in_clear), (10, encrypted(0)), (10, encrypted(2))];
    for (qemu, laying) in ways.into_iter().filter_map(|(major, laying)| Some((qemu(major)?, laying))) {
        let pair = Pair::with(&qemu, laying).await;
        let (a, b) = (&pair.a, &pair.b);
        let begun = Instant::now();
        pair.hand_over().await;
        let counter = boot::read_counter(&pair.disk).unwrap();
        let Some(SideState::Released { outcome }) = a.side(UID) else { panic!("not released") };
        assert!(outcome.bytes.as_u64() > 0 && outcome.rounds > 0, "{outcome:?}");
        // What control does between: the epoch grows, the source has no order for a moment.
        let decided = Instant::now();
        a.order(vec![]);
        b.order(vec![continues(b, 4)]);
        b.runs(UID, 4).await;
        eprintln!("{}, {laying:?}: {outcome:?}; order to running {:?}", qemu.1, decided.elapsed());
        assert!(!b.run_directory(UID).join("line/keys.psk").exists(), "the key of the move is left");
        assert_eq!(b.side(UID), Some(SideState::Continued { loading: None, answered: None }));
        a.order(vec![order(UID, 3, Role::Release)]);
        eventually("the source is gone", || {
            a.state(UID) == Some(CopyState::Stopped { exit: Exit::Released })
        })
        .await;
        eprintln!("{}: whole move {:?}", qemu.1, begun.elapsed());
        assert!(!a.qemu_process(UID).is_alive());
        assert!(boot::read_counter(&pair.disk).unwrap() >= counter);
        pair.writes().await;
        a.order(vec![]);
        eventually("forgotten", || !a.run_directory(UID).exists()).await;
        pair.end(|pair| &pair.b, 5).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_that_die_in_the_middle_find_their_place_again() {
    let Some(qemu) = qemu(10) else { return };
    let Pair { a, b, laying, disk, folder } = Pair::new(&qemu).await;
    b.order(vec![incoming(&b, 4, "m", laying)]);
    eventually("the target listens", || listens(&b).is_some()).await;
    let to = listens(&b).unwrap();
    let b = b.restart().await;
    b.order(vec![incoming(&b, 4, "m", laying)]);
    eventually("still the same place and key", || listens(&b).as_ref() == Some(&to)).await;
    a.order(vec![sends(&a, 3, &to, false)]);
    // From here on QEMU goes on by itself, and may have completed before the next agent looks.
    eventually("sending", || a.side(UID) == Some(SideState::Sending) || is_released(&a)).await;
    let a = a.restart().await;
    a.order(vec![sends(&a, 3, &to, false)]);
    eventually("the source let go", || is_released(&a)).await;
    let a = a.restart().await;
    let b = b.restart().await;
    eventually("the target has it", || b.side(UID) == Some(SideState::Loaded)).await;
    a.order(vec![owns(UID, 3, a.owner())]);
    b.order(vec![continues(&b, 4)]);
    b.runs(UID, 4).await;
    let b = b.restart().await;
    b.order(vec![continues(&b, 4)]);
    b.runs(UID, 4).await;
    // The order under the old epoch moved nobody.
    assert!(is_released(&a));
    assert!(matches!(a.state(UID), Some(CopyState::Paused { .. })));
    a.order(vec![order(UID, 3, Role::Release)]);
    eventually("gone", || matches!(a.state(UID), Some(CopyState::Stopped { .. }))).await;
    let pair = Pair { a, b, laying, disk, folder };
    pair.writes().await;
    pair.end(|pair| &pair.b, 5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_lost_after_the_handover_gives_the_guest_back() {
    for qemu in [7, 10].into_iter().filter_map(qemu) {
        let pair = Pair::new(&qemu).await;
        let (a, b) = (&pair.a, &pair.b);
        pair.hand_over().await;
        b.qemu_process(UID).kill();
        eventually("the target is lost", || {
            matches!(b.state(UID), Some(CopyState::Stopped { exit: Exit::Crashed { .. } }))
        })
        .await;
        b.order(vec![continues(b, 4)]);
        a.order(vec![continues(a, 5)]);
        a.runs(UID, 5).await;
        pair.writes().await;
        // The lost target is not started under the epoch it was given.
        assert!(matches!(b.state(UID), Some(CopyState::Stopped { .. })));
        pair.end(|pair| &pair.a, 6).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_nobody_hears_keeps_its_guest() {
    for qemu in [7, 10].into_iter().filter_map(qemu) {
        let pair = Pair::new(&qemu).await;
        let (a, b) = (&pair.a, &pair.b);
        let to = pair.prepare().await;
        a.line.send_replace(false);
        a.order(vec![sends(a, 3, &to, false)]);
        eventually("decided", || {
            matches!(a.side(UID), Some(SideState::Kept { .. } | SideState::Released { .. }))
        })
        .await;
        if is_released(a) {
            // The target's QEMU holds the disk already, as older ones do: the server has to settle it.
            assert!(qemu.1.major < 10);
            a.line.send_replace(true);
            b.order(vec![continues(b, 4)]);
            b.runs(UID, 4).await;
            pair.writes().await;
            a.order(vec![order(UID, 3, Role::Release)]);
            eventually("gone", || matches!(a.state(UID), Some(CopyState::Stopped { .. }))).await;
            pair.end(|pair| &pair.b, 5).await;
            continue;
        }
        a.runs(UID, 3).await;
        pair.writes().await;
        b.order(vec![order(UID, 4, Role::Release)]);
        eventually("the target is gone", || matches!(b.state(UID), Some(CopyState::Stopped { .. }))).await;
        a.runs(UID, 3).await;
        pair.writes().await;
        pair.end(|pair| &pair.a, 5).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_is_cancelled_and_a_dead_target_is_noticed() {
    let Some(qemu) = qemu(10) else { return };
    let pair = Pair::new(&qemu).await;
    let a = &pair.a;
    // Takes the connection and reads nothing: the transfer goes on for ever.
    let hole = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let to = (hole.local_addr().unwrap(), None);
    a.order(vec![sends(a, 3, &to, false)]);
    eventually("sending", || a.side(UID) == Some(SideState::Sending)).await;
    a.order(vec![sends(a, 3, &to, true)]);
    eventually("kept", || matches!(a.side(UID), Some(SideState::Kept { .. }))).await;
    a.runs(UID, 3).await;
    pair.writes().await;
    drop(hole);
    // Nobody listens any more.
    let outgoing = outgoing("n", &to, false);
    a.order(vec![owns(UID, 3, Owner { outgoing: Some(outgoing), power: Power::Running, ..a.owner() })]);
    eventually("kept again", || {
        let report = a.report(UID).and_then(|report| report.migration);
        report.is_some_and(|report| {
            report.migration == name("n") && matches!(report.side, SideState::Kept { .. })
        })
    })
    .await;
    a.runs(UID, 3).await;
    pair.writes().await;
    pair.end(|pair| &pair.a, 5).await;
}

fn is_kept(host: &Host, migration: &str) -> bool {
    let report = host.report(UID).and_then(|report| report.migration);
    report.is_some_and(|it| it.migration == name(migration) && matches!(it.side, SideState::Kept { .. }))
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_holds_the_key_of_the_move_may_send() {
    for (major, channels) in [(7, 0), (10, 0), (10, 2)] {
        let Some(qemu) = qemu(major) else { continue };
        let pair = Pair::with(&qemu, encrypted(channels)).await;
        let a = &pair.a;
        let (to, line) = pair.prepare().await;
        let line = line.unwrap();
        assert_eq!(line.channels, channels);
        // Another key, and none at all.
        let other = Line { key: Some(LineKey::new([7; 32])), ..line.clone() };
        for (migration, wrong) in [("x", Some(other)), ("y", None)] {
            let outgoing = outgoing(migration, &(to, wrong), false);
            a.order(vec![owns(UID, 3, Owner { outgoing: Some(outgoing), ..a.owner() })]);
            if migration == "y" && !is_kept(a, migration) {
                // What QEMU sends in clear is no greeting of TLS; it waits for an answer that never comes.
                eventually("sending or kept", || {
                    is_kept(a, migration) || a.side(UID) == Some(SideState::Sending)
                })
                .await;
                a.order(vec![a_cancelled(a, migration, to)]);
            }
            eventually("the guest stays", || is_kept(a, migration)).await;
            a.runs(UID, 3).await;
        }
        assert!(matches!(listens(&pair.b), Some((_, Some(_)))), "the target still waits for its source");
        assert!(!a.run_directory(UID).join("line/keys.psk").exists(), "the source's key is left");
        // The right one.
        a.order(vec![sends(a, 3, &(to, Some(line)), false)]);
        eventually("the source let go", || is_released(a)).await;
        eventually("the target has it", || pair.b.side(UID) == Some(SideState::Loaded)).await;
        pair.b.order(vec![continues(&pair.b, 4)]);
        pair.b.runs(UID, 4).await;
        a.order(vec![order(UID, 3, Role::Release)]);
        eventually("gone", || matches!(a.state(UID), Some(CopyState::Stopped { .. }))).await;
        pair.writes().await;
        pair.end(|pair| &pair.b, 5).await;
    }
}

fn a_cancelled(a: &Host, migration: &str, to: SocketAddr) -> VmAssignment {
    let outgoing = outgoing(migration, &(to, None), true);
    owns(UID, 3, Owner { outgoing: Some(outgoing), ..a.owner() })
}
