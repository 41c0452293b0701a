//! A host's storage in a temporary folder, with the real tools.
#![allow(clippy::unwrap_used, reason = "a world that cannot be made fails the test")]
#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes as Chunk;
use futures_util::future::BoxFuture;
use futures_util::stream;
use sha2::{Digest, Sha256};
use sterna_agent::storage::{Fetched, Fetcher, Limits, Settings, Storage, User};
use sterna_base::units::Bytes;
use sterna_model::image::Format;
use sterna_model::meta::Name;
use sterna_model::pool::PoolKind;
use sterna_model::volume::{ImageRef, VolumeReport};
use sterna_wire::assignment::{Disk, PoolAssignment, Purpose, VolumeAssignment};
use tempfile::TempDir;
use uuid::Uuid;

pub const USER: User = User { uid: 64_711, gid: 64_711 };
pub const DEADLINE: Duration = Duration::from_secs(20);
pub const FORMER_KEPT: Duration = Duration::from_secs(3600);

pub fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// Serves images from memory, as told.
#[derive(Default)]
pub struct Shelf {
    images: Mutex<BTreeMap<Name, Stored>>,
    pub fetches: AtomicUsize,
}

#[derive(Clone)]
struct Stored {
    content: Vec<u8>,
    length: Option<u64>,
}

impl Shelf {
    /// Adds an image and answers the reference that is true of it.
    pub fn put(&self, image: &str, content: Vec<u8>, format: Format) -> ImageRef {
        let length = Some(content.len() as u64);
        self.put_saying(image, content, length, format)
    }

    /// The same, but the server says that it is of another length.
    pub fn put_saying(&self, image: &str, content: Vec<u8>, length: Option<u64>, format: Format) -> ImageRef {
        let sha256 = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
        self.images.lock().unwrap().insert(name(image), Stored { content, length });
        ImageRef { name: name(image), sha256, format }
    }
}

impl Fetcher for Shelf {
    fn fetch(&self, image: Name) -> BoxFuture<'static, io::Result<Fetched>> {
        self.fetches.fetch_add(1, Ordering::SeqCst);
        let stored = self.images.lock().unwrap().get(&image).cloned();
        Box::pin(async move {
            let stored = stored.ok_or_else(|| io::Error::other("no such image"))?;
            let chunks: Vec<io::Result<Chunk>> =
                stored.content.chunks(64 << 10).map(|chunk| Ok(Chunk::copy_from_slice(chunk))).collect();
            Ok(Fetched { length: stored.length, bytes: Box::pin(stream::iter(chunks)) })
        })
    }
}

pub struct World {
    pub folder: TempDir,
    pub shelf: Arc<Shelf>,
    pub storage_daemon: PathBuf,
}

impl World {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // QEMU's user must be able to pass.
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o711)).unwrap();
        Self { folder, shelf: Arc::default(), storage_daemon: "qemu-storage-daemon".into() }
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join(below)
    }

    pub fn settings(&self, host: &str) -> Settings {
        for part in ["data", "run"] {
            let folder = self.path(&format!("{host}-{part}"));
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o711)).unwrap();
        }
        Settings {
            host: name(host),
            cluster: "c1".into(),
            data_dir: self.path(&format!("{host}-data")),
            run_dir: self.path(&format!("{host}-run")),
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            run_as: USER,
            qemu_img: "qemu-img".into(),
            storage_daemon: self.storage_daemon.clone(),
            // Whoever runs the tests may have a disk that is nearly full.
            former: Limits { age_max: FORMER_KEPT, free_min: 0 },
        }
    }

    /// The storage of a host, as its newest agent sees it.
    pub fn host(&self, host: &str) -> Storage {
        Storage::new(self.settings(host), Arc::clone(&self.shelf) as Arc<dyn Fetcher>)
    }

    pub fn dir_pool(&self) -> PoolAssignment {
        pool("local", PoolKind::Dir { path: self.path("local").to_str().unwrap().into() })
    }

    pub fn shared_pool(&self) -> PoolAssignment {
        std::fs::create_dir_all(self.path("shared")).unwrap();
        std::fs::set_permissions(self.path("shared"), PermissionsExt::from_mode(0o711)).unwrap();
        pool("shared", PoolKind::SharedDir { path: self.path("shared").to_str().unwrap().into() })
    }
}

pub fn pool(pool: &str, kind: PoolKind) -> PoolAssignment {
    PoolAssignment { name: name(pool), kind, server: None, exports: Vec::new() }
}

pub fn volume(pool: &PoolAssignment, format: Format, mib: u64, image: Option<&ImageRef>) -> VolumeAssignment {
    VolumeAssignment {
        name: name("disk"),
        uid: Uuid::now_v7(),
        pool: pool.name.clone(),
        format,
        size: Bytes::mib(mib),
        image: image.cloned(),
        in_use_by: None,
        purpose: Purpose::Keep,
    }
}

pub fn disk(volume: &VolumeAssignment) -> Disk {
    Disk {
        volume: volume.name.clone(),
        uid: volume.uid,
        pool: volume.pool.clone(),
        format: volume.format,
        image: volume.image.clone(),
    }
}

/// The first word on this volume that the condition holds for.
pub async fn until(storage: &Storage, uid: Uuid, holds: impl Fn(&VolumeReport) -> bool) -> VolumeReport {
    let mut seen = storage.volumes();
    let found = seen.wait_for(|all| all.get(&uid).is_some_and(|volume| holds(&volume.report)));
    let all = tokio::time::timeout(DEADLINE, found).await.expect("in time").unwrap();
    all[&uid].report.clone()
}

pub async fn made(storage: &Storage, volume: &VolumeAssignment) -> VolumeReport {
    storage.ensure_volumes(std::slice::from_ref(volume));
    until(storage, volume.uid, |report| !matches!(report, VolumeReport::Making { .. })).await
}

/// Waits until the condition holds.
pub async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let holds = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE, holds).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

/// A process that has an image open as QEMU does, until its input ends.
pub struct Holder(std::process::Child);

impl Holder {
    pub fn open(format: &str, file: &Path) -> Self {
        let mut process = Command::new("qemu-io")
            .args(["-f", format, file.to_str().unwrap()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut prompt = [0; 8];
        io::Read::read_exact(process.stdout.as_mut().unwrap(), &mut prompt).unwrap();
        Self(process)
    }

    pub fn close(mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

pub fn ready(mib: u64) -> VolumeReport {
    VolumeReport::Ready { size: Bytes::mib(mib) }
}

pub fn why(report: VolumeReport) -> String {
    match report {
        VolumeReport::Failed { why } => why,
        other => panic!("{other:?} is no failure"),
    }
}

pub fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap()
}

pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A qcow2 image whose first bytes are 0xAB, as bytes.
pub fn qcow2(folder: &Path, size: &str, more: &[&str]) -> Vec<u8> {
    let file = folder.join("made.qcow2");
    let path = file.to_str().unwrap();
    let mut arguments = vec!["create", "-q", "-f", "qcow2"];
    arguments.extend(more);
    let made = run("qemu-img", &[arguments, vec![path, size]].concat());
    assert!(made.status.success(), "{}", text(&made));
    if more.is_empty() {
        let wrote = run("qemu-io", &["-f", "qcow2", "-c", "write -P 0xab 0 64k", path]);
        assert!(wrote.status.success(), "{}", text(&wrote));
    }
    std::fs::read(file).unwrap()
}

/// Names in a folder, sorted, without the locks that images leave.
pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.ends_with(".lock"))
        .collect();
    names.sort();
    names
}
