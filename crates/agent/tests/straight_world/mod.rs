//! Two hosts with disks of their own, between which a guest goes straight.
#![allow(clippy::unwrap_used, dead_code)]

use std::net::SocketAddr;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use sterna_base::units::Span;
use sterna_model::line::{Laying, Line};
use sterna_model::migration::SideState;
use sterna_model::vm::{CopyState, Exit};
use sterna_qemu::boot::{self, Pace};
use sterna_qemu::version::Version;
use sterna_wire::assignment::{Carry, Outgoing, Owner, Role, VmAssignment};
use uuid::Uuid;

use crate::world::{Host, IMAGE, disk, eventually, folder, name, order, owns};

pub const UID: Uuid = Uuid::from_u128(7);
pub const MIB: usize = 1 << 20;

pub type Call = (SocketAddr, Option<Line>);

pub fn in_clear(channels: u8) -> Option<Laying> {
    Some(Laying { channels, is_encrypted: false })
}

pub fn encrypted(channels: u8) -> Option<Laying> {
    Some(Laying { channels, is_encrypted: true })
}

pub fn carry() -> Option<Carry> {
    Some(Carry {
        session: Uuid::from_u128(1),
        peer: name("b"),
        disks: vec![0],
        straight: true,
        siblings: vec![],
    })
}

pub fn incoming(host: &Host, epoch: u64, laying: Option<Laying>) -> VmAssignment {
    let (listen, machine) = ("127.0.0.1".parse().unwrap(), Box::new(host.machine()));
    let channels = laying.map(|laying| laying.channels);
    let in_clear = laying.is_some_and(|laying| !laying.is_encrypted);
    let migration = name(&format!("m{epoch}"));
    order(UID, epoch, Role::Incoming { migration, machine, listen, carry: carry(), channels, in_clear })
}

/// The move under which the target will have the second epoch.
pub fn sends(host: &Host, (epoch, next): (u64, u64), (to, line): &Call, cancel: bool) -> VmAssignment {
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

pub fn continues(host: &Host, epoch: u64, migration: &str) -> VmAssignment {
    owns(UID, epoch, Owner { continues: Some(name(migration)), ..host.owner() })
}

pub fn side(host: &Host, epoch: u64) -> Option<SideState> {
    host.report(UID).filter(|report| report.epoch == epoch)?.migration.map(|migration| migration.side)
}

pub fn listens(host: &Host, epoch: u64) -> Option<Call> {
    match side(host, epoch) {
        Some(SideState::Listening { at, line }) => Some((at.parse().unwrap(), line)),
        _ => None,
    }
}

pub fn is_gone(host: &Host) -> bool {
    matches!(host.state(UID), Some(CopyState::Stopped { .. }))
}

/// Why the guest stays with `host`, once it does.
pub async fn kept(host: &Host, epoch: u64) -> String {
    let why = || match side(host, epoch) {
        Some(SideState::Kept { why }) => Some(why),
        _ => None,
    };
    eventually("the guest stays", || why().is_some()).await;
    why().unwrap()
}

/// Each host has a disk of its own, of so many bytes.
pub struct Apart {
    pub a: Host,
    pub b: Host,
    pub laying: Option<Laying>,
    _folder: tempfile::TempDir,
}

impl Apart {
    pub async fn new(qemu: &(PathBuf, Version), laying: Option<Laying>, bytes: usize) -> Self {
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
    pub async fn clones(qemu: &(PathBuf, Version)) -> Self {
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

    pub async fn start(
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

    pub async fn prepare(&self, epoch: u64) -> Call {
        self.b.order(vec![incoming(&self.b, epoch, self.laying)]);
        eventually("the target listens", || listens(&self.b, epoch).is_some()).await;
        listens(&self.b, epoch).unwrap()
    }

    /// Until part of the disk has crossed, and not all of it.
    pub async fn half_way(&self) -> Call {
        let to = self.prepare(4).await;
        self.a.order(vec![sends(&self.a, (3, 4), &to, false)]);
        let size = std::fs::metadata(self.b.disk()).unwrap().len();
        eventually("the disk begins to cross", || byte(self.b.disk(), MIB as u64) == 0x5a).await;
        assert_eq!(byte(self.b.disk(), size - 1), 0xa5, "all of the disk is there already");
        to
    }

    /// The whole way of a move to `b`, from epoch 3 on.
    pub async fn moves(&self, next: u64) {
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

    pub async fn release(&self, host: &Host) {
        if host.state(UID).is_some_and(|state| state.has_process()) {
            host.order(vec![order(UID, host.report(UID).unwrap().epoch, Role::Release)]);
            eventually("the copy is gone", || is_gone(host)).await;
        }
        host.order(vec![]);
        eventually("forgotten", || !host.run_directory(UID).exists()).await;
    }

    pub async fn end(self) {
        self.release(&self.a).await;
        self.release(&self.b).await;
    }
}

pub fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

pub fn tool(arguments: &[&str]) {
    let output = Command::new("qemu-img").args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

pub fn byte(disk: &Path, at: u64) -> u8 {
    let mut byte = [0];
    std::fs::File::open(disk).unwrap().read_exact_at(&mut byte, at).unwrap();
    byte[0]
}

pub async fn writes(host: &Host) -> u32 {
    let before = boot::read_counter(host.disk()).unwrap();
    eventually("the guest writes", || boot::read_counter(host.disk()).unwrap() > before + 3).await;
    boot::read_counter(host.disk()).unwrap()
}
