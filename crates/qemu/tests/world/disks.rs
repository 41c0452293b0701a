//! Two QEMUs between which a disk moves: a source that has one, and a target that waits and serves an empty one.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use sterna_qemu::config::{Config, Format};
use sterna_qemu::qmp::client::Heard;
use sterna_qemu::qmp::export::NbdExport;
use sterna_qemu::qmp::mirror::{BlockJob, CopyMode, Depth, Mirror, NbdNode, OnError};
use sterna_qemu::qmp::{Event, Events};

use super::{Binary, Qemu, folder, machine};

pub const DISK: u64 = 32 << 20;
pub const BLOCK: u64 = 64 << 10;

/// The device of `world::machine`.
pub const DEVICE: &str = "/machine/peripheral/root/virtio-backend";
pub const NODE: &str = "root-node";
pub const JOB: &str = "mirror-root";
pub const THERE: &str = "mirror-root-target";

pub fn tool(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !printed.contains("failed"), "{program} {arguments:?}: {printed}");
}

/// Both show a guest the same.
pub fn are_equal(one: &Path, other: &Path) {
    tool(
        "qemu-img",
        &["compare", "-f", "qcow2", "-F", "qcow2", one.to_str().unwrap(), other.to_str().unwrap()],
    );
}

/// A paused source with a disk, and a target that waits for a migration with an empty one, which it serves.
pub struct Pair {
    pub folder: tempfile::TempDir,
    pub source: Qemu,
    pub target: Qemu,
}

impl Pair {
    pub async fn new(binary: &Binary) -> Self {
        let folder = folder();
        for name in ["source", "target"] {
            let disk = disk_of(folder.path(), name);
            tool("qemu-img", &["create", "-q", "-f", "qcow2", disk.to_str().unwrap(), &DISK.to_string()]);
        }
        Self::with_disks(binary, folder, Format::Qcow2, true).await
    }

    pub async fn with_disks(
        binary: &Binary,
        folder: tempfile::TempDir,
        format: Format,
        paused: bool,
    ) -> Self {
        let config = |name: &str| {
            let mut config = machine(binary, folder.path(), name, &disk_of(folder.path(), name));
            config.disks[0].format = format;
            config
        };
        let source = Qemu::start(binary, &Config { paused, ..config("source") }).await.unwrap();
        let waiting = Config { paused: true, incoming: true, ..config("target") };
        let target = Qemu::start(binary, &waiting).await.unwrap();
        let pair = Self { folder, source, target };
        pair.target.qmp.nbd_server_start(&pair.socket().as_path().into(), 0).await.unwrap();
        pair.target.qmp.add_nbd_export(&export()).await.unwrap();
        pair
    }

    /// A mirror that is ready, and whose server has gone.
    pub async fn without_target(binary: &Binary, reconnect_delay: Duration) -> (Self, Events) {
        let mut pair = Self::new(binary).await;
        let mut events = pair.source.qmp.events();
        let node = NbdNode { reconnect_delay, ..pair.there() };
        pair.source.qmp.add_nbd_node(&node).await.unwrap();
        pair.source.qmp.mirror(&mirror(CopyMode::Background)).await.unwrap();
        assert_eq!(told(&mut events).await, Event::BlockJobReady { job: JOB.into() });
        pair.target.kill();
        (pair, events)
    }

    pub fn disk(&self, name: &str) -> PathBuf {
        disk_of(self.folder.path(), name)
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("nbd")
    }

    pub fn there(&self) -> NbdNode {
        NbdNode {
            node: THERE.into(),
            at: self.socket().as_path().into(),
            export: "root".into(),
            reconnect_delay: Duration::ZERO,
            open_timeout: Duration::ZERO,
        }
    }

    pub async fn start(&self, mirror: &Mirror) {
        self.source.qmp.add_nbd_node(&self.there()).await.unwrap();
        self.source.qmp.mirror(mirror).await.unwrap();
    }

    /// What a guest would do: the request goes through the guest's device, below which the mirror sits.
    pub async fn write(&self, block: u64, byte: u8) {
        let write = format!("write -P {byte} {} {BLOCK}", block * BLOCK);
        let arguments = json!({ "command-line": format!("qemu-io -d {DEVICE} \"{write}\"") });
        // What became of it is printed where nobody hears: see `Pair::holds`.
        self.source.qmp.execute::<String>("human-monitor-command", arguments).await.unwrap();
    }

    /// Ends both processes properly and looks whether a disk holds what was written.
    pub async fn holds(self, name: &str, (block, byte): (u64, u8)) -> tempfile::TempDir {
        let Self { folder, mut source, mut target } = self;
        for vm in [&mut source, &mut target] {
            let _ = vm.qmp.quit().await;
            vm.child.wait().unwrap();
        }
        let read = format!("read -P {byte} {} {BLOCK}", block * BLOCK);
        let disk = disk_of(folder.path(), name);
        tool("qemu-io", &["-f", "qcow2", "-c", &read, disk.to_str().unwrap()]);
        folder
    }

    pub async fn job(&self) -> Option<BlockJob> {
        self.source.qmp.query_block_jobs().await.unwrap().into_iter().find(|job| job.job == JOB)
    }
}

pub fn disk_of(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.disk"))
}

pub fn export() -> NbdExport {
    NbdExport { id: "x-root".into(), node: NODE.into(), name: "root".into(), is_writable: true }
}

pub fn mirror(copy_mode: CopyMode) -> Mirror {
    Mirror {
        job: JOB.into(),
        node: NODE.into(),
        target: THERE.into(),
        depth: Depth::Full,
        copy_mode,
        buffer: Some(1 << 20),
        granularity: Some(1 << 16),
        on_source_error: OnError::Report,
        on_target_error: OnError::Report,
        auto_finalize: true,
        auto_dismiss: true,
    }
}

/// The next event about the job.
pub async fn told(events: &mut Events) -> Event {
    let next = async {
        loop {
            let Some(Heard::Event(stamped)) = events.next().await else { panic!("events were lost") };
            let job = match &stamped.event {
                Event::BlockJobReady { job }
                | Event::BlockJobCompleted { job, .. }
                | Event::BlockJobCancelled { job }
                | Event::BlockJobError { job, .. } => job,
                _ => continue,
            };
            assert_eq!(job, JOB);
            return stamped.event;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), next).await.expect("told in time")
}

/// How the job ended; requests that failed on the way are passed over.
pub async fn ended(events: &mut Events) -> Event {
    loop {
        match told(events).await {
            Event::BlockJobError { .. } => {}
            other => return other,
        }
    }
}
