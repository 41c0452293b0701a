//! A guest takes its disk straight from one QEMU to another, with every way in which that can go wrong.
#![allow(clippy::unwrap_used)]

mod world;

use std::net::SocketAddr;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use sterna_base::units::Span;
use sterna_model::line::{DiskLine, Laying, Line, LineKey};
use sterna_model::migration::SideState;
use sterna_model::vm::{CopyState, Exit};
use sterna_qemu::boot::{self, COUNTER_SECTOR, Pace};
use sterna_qemu::version::Version;
use sterna_wire::assignment::{Carry, Outgoing, Owner, Role, VmAssignment};
use uuid::Uuid;
use world::{Host, IMAGE, disk, eventually, folder, name, order, owns, qemu};

const UID: Uuid = Uuid::from_u128(7);
const MIB: usize = 1 << 20;

#[test]
fn shim_entry() {
    world::shim_entry();
}

type Call = (SocketAddr, Option<Line>);

fn in_clear(channels: u8) -> Option<Laying> {
    Some(Laying { channels, is_encrypted: false })
}

fn encrypted(channels: u8) -> Option<Laying> {
    Some(Laying { channels, is_encrypted: true })
}

fn carry() -> Option<Carry> {
    Some(Carry {
        session: Uuid::from_u128(1),
        peer: name("b"),
        disks: vec![0],
        straight: true,
        siblings: vec![],
    })
}

fn incoming(host: &Host, epoch: u64, laying: Option<Laying>) -> VmAssignment {
    let (listen, machine) = ("127.0.0.1".parse().unwrap(), Box::new(host.machine()));
    let channels = laying.map(|laying| laying.channels);
    let in_clear = laying.is_some_and(|laying| !laying.is_encrypted);
    let migration = name(&format!("m{epoch}"));
    order(
        UID,
        epoch,
        Role::Incoming { migration, machine, listen, carry: carry(), channels, in_clear, host_epoch: None },
    )
}

/// The move under which the target will have the second epoch.
fn sends(host: &Host, (epoch, next): (u64, u64), (to, line): &Call, cancel: bool) -> VmAssignment {
    let outgoing = Outgoing {
        migration: name(&format!("m{next}")),
        to: *to,
        carry: carry(),
        line: line.clone(),
        max_downtime: Span::from_millis(300),
        cancel,
        seed: false,
    };
    owns(UID, epoch, Owner { outgoing: Some(outgoing), ..host.owner() })
}

fn continues(host: &Host, epoch: u64, migration: &str) -> VmAssignment {
    owns(UID, epoch, Owner { continues: Some(name(migration)), ..host.owner() })
}

fn side(host: &Host, epoch: u64) -> Option<SideState> {
    host.report(UID).filter(|report| report.epoch == epoch)?.migration.map(|migration| migration.side)
}

fn listens(host: &Host, epoch: u64) -> Option<Call> {
    match side(host, epoch) {
        Some(SideState::Listening { at, line }) => Some((at.parse().unwrap(), line)),
        _ => None,
    }
}

fn is_gone(host: &Host) -> bool {
    matches!(host.state(UID), Some(CopyState::Stopped { .. }))
}

/// Why the guest stays with `host`, once it does.
async fn kept(host: &Host, epoch: u64) -> String {
    let why = || match side(host, epoch) {
        Some(SideState::Kept { why }) => Some(why),
        _ => None,
    };
    eventually("the guest stays", || why().is_some()).await;
    why().unwrap()
}

/// Each host has a disk of its own, of so many bytes.
struct Apart {
    a: Host,
    b: Host,
    laying: Option<Laying>,
    _folder: tempfile::TempDir,
}

impl Apart {
    async fn new(qemu: &(PathBuf, Version), laying: Option<Laying>, bytes: usize) -> Self {
        let folder = folder();
        let [a, b] = ["a", "b"].map(|host| folder.path().join(host));
        for (host, rest) in [(&a, 0x5a), (&b, 0xa5)] {
            std::fs::create_dir_all(host).unwrap();
            let path = disk(host, &boot::writer(Pace::Flat));
            let begin = std::fs::read(&path).unwrap();
            // Nothing of the source's is at the target.
            let mut content = vec![rest; bytes];
            if rest == 0x5a {
                content[..begin.len()].copy_from_slice(&begin);
            }
            std::fs::write(&path, content).unwrap();
        }
        Self::start(qemu, laying, [a.join("disk.img"), b.join("disk.img")], folder).await
    }

    /// Both are clones of one image, and the target's is blank.
    async fn clones(qemu: &(PathBuf, Version)) -> Self {
        let folder = folder();
        let disks = ["a", "b"].map(|host| folder.path().join(host)).map(|host| {
            std::fs::create_dir_all(&host).unwrap();
            let path = disk(&host, &boot::writer(Pace::Flat));
            let mut content = vec![0x5a; 8 * MIB];
            let begin = std::fs::read(&path).unwrap();
            content[..begin.len()].copy_from_slice(&begin);
            std::fs::write(&path, content).unwrap();
            std::fs::rename(&path, host.join(IMAGE)).unwrap();
            let clone = host.join("disk.qcow2");
            let image = host.join(IMAGE);
            tool(&["create", "-q", "-f", "qcow2", "-F", "raw", "-b", &text(&image), &text(&clone), "16M"]);
            std::fs::set_permissions(&clone, std::fs::Permissions::from_mode(0o666)).unwrap();
            clone
        });
        Self::start(qemu, in_clear(0), disks, folder).await
    }

    async fn start(
        qemu: &(PathBuf, Version),
        laying: Option<Laying>,
        [a, b]: [PathBuf; 2],
        folder: tempfile::TempDir,
    ) -> Self {
        let start = |disk: &Path| Host::start(disk.parent().unwrap(), qemu, disk);
        let (a, b) = (start(&a), start(&b));
        a.order(vec![owns(UID, 3, a.owner())]);
        a.runs(UID, 3).await;
        Self { a, b, laying, _folder: folder }
    }

    async fn prepare(&self, epoch: u64) -> Call {
        self.b.order(vec![incoming(&self.b, epoch, self.laying)]);
        eventually("the target listens", || listens(&self.b, epoch).is_some()).await;
        listens(&self.b, epoch).unwrap()
    }

    /// Until part of the disk has crossed, and not all of it.
    async fn half_way(&self) -> Call {
        let to = self.prepare(4).await;
        self.a.order(vec![sends(&self.a, (3, 4), &to, false)]);
        let size = std::fs::metadata(self.b.disk()).unwrap().len();
        eventually("the disk begins to cross", || byte(self.b.disk(), MIB as u64) == 0x5a).await;
        assert_eq!(byte(self.b.disk(), size - 1), 0xa5, "all of the disk is there already");
        to
    }

    /// The whole way of a move to `b`, from epoch 3 on.
    async fn moves(&self, next: u64) {
        let (a, b) = (&self.a, &self.b);
        let to = self.prepare(next).await;
        a.order(vec![sends(a, (3, next), &to, false)]);
        eventually("the source let go", || matches!(side(a, 3), Some(SideState::Released { .. }))).await;
        eventually("the target has it", || side(b, next) == Some(SideState::Loaded)).await;
        a.order(vec![]);
        b.order(vec![continues(b, next, &format!("m{next}"))]);
        b.runs(UID, next).await;
        let left = ["line/keys.psk", "line/disks.json"].map(|file| b.run_directory(UID).join(file).exists());
        assert_eq!(left, [false; 2], "something of the line is left");
        a.order(vec![order(UID, 3, Role::Release)]);
        eventually("the source is gone", || {
            a.state(UID) == Some(CopyState::Stopped { exit: Exit::Released })
        })
        .await;
        a.order(vec![]);
        eventually("forgotten", || !a.run_directory(UID).exists()).await;
    }

    async fn release(&self, host: &Host) {
        if host.state(UID).is_some_and(|state| state.has_process()) {
            host.order(vec![order(UID, host.report(UID).unwrap().epoch, Role::Release)]);
            eventually("the copy is gone", || is_gone(host)).await;
        }
        host.order(vec![]);
        eventually("forgotten", || !host.run_directory(UID).exists()).await;
    }

    async fn end(self) {
        self.release(&self.a).await;
        self.release(&self.b).await;
    }
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn tool(arguments: &[&str]) {
    let output = Command::new("qemu-img").args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn byte(disk: &Path, at: u64) -> u8 {
    let mut byte = [0];
    std::fs::File::open(disk).unwrap().read_exact_at(&mut byte, at).unwrap();
    byte[0]
}

async fn writes(host: &Host) -> u32 {
    let before = boot::read_counter(host.disk()).unwrap();
    eventually("the guest writes", || boot::read_counter(host.disk()).unwrap() > before + 3).await;
    boot::read_counter(host.disk()).unwrap()
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
