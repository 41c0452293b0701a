//! A paused QEMU with one disk, and what one asks of it when its disk moves.

#![allow(clippy::unwrap_used, dead_code)]

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use sterna_mover::hash::Key;
use sterna_mover::volume::source::MirrorTo;
use sterna_mover::volume::target::Export;
use sterna_qemu::qmp::{Client, Options};

use crate::machines::Binary;
use crate::world::eventually;

pub const EXPORT: &str = "disk-0";
pub const MIB: u64 = 1 << 20;
/// Of every disk.
pub const SIZE: u64 = 64 * MIB;

pub fn key() -> Key {
    Key([7; 32])
}

pub struct Box {
    child: Child,
    pub qmp: Client,
    folder: PathBuf,
}

impl Box {
    /// The source: its guest never runs, but its disk is a guest's.
    pub async fn source(binary: &Binary, folder: &Path, disk: &Path) -> Self {
        Self::start(binary, folder, ("here", &[]), disk).await
    }

    /// The target: waits for a guest, so that nobody but its export writes to the disk.
    pub async fn target(binary: &Binary, folder: &Path, disk: &Path) -> Self {
        Self::start(binary, folder, ("there", &["-incoming", "defer"]), disk).await
    }

    async fn start(binary: &Binary, folder: &Path, (name, more): (&str, &[&str]), disk: &Path) -> Self {
        let folder = folder.join(name);
        std::fs::create_dir(&folder).unwrap();
        let socket = folder.join("qmp");
        let node = json!({
            "driver": "qcow2", "node-name": "disk", "discard": "unmap",
            "file": { "driver": "file", "filename": disk, "locking": "on" },
        });
        let child = Command::new(&binary.path)
            .args(["-machine", "q35,accel=tcg", "-m", "16", "-nodefaults", "-display", "none", "-S"])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", socket.display())])
            .args(["-blockdev", &node.to_string()])
            .args(["-device", "virtio-blk-pci,drive=disk,id=d0"])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        eventually("QEMU listens", || async { UnixStream::connect(&socket).is_ok() }).await;
        let stream = tokio::net::UnixStream::connect(&socket).await.unwrap();
        let qmp = Client::connect(stream, Options::default()).await.unwrap();
        Self { child, qmp, folder }
    }

    pub async fn ask(&self, command: &str, arguments: Value) -> Value {
        self.qmp.execute_within(command, arguments, Duration::from_secs(60)).await.unwrap()
    }

    /// As the guest would: through the device, and so through whatever watches it.
    pub async fn io(&self, command: &str) {
        let line = format!("qemu-io -d /machine/peripheral/d0/virtio-backend \"{command}\"");
        let said = self.ask("human-monitor-command", json!({ "command-line": line })).await;
        assert_eq!(said, "", "{command}");
    }

    /// Offers the disk to who writes what arrives.
    pub async fn export(&self) -> Export {
        let socket = self.folder.join("export");
        let address = json!({ "addr": { "type": "unix", "data": { "path": socket } } });
        self.ask("nbd-server-start", address).await;
        let export =
            json!({ "type": "nbd", "id": "e0", "node-name": "disk", "name": EXPORT, "writable": true });
        self.ask("block-export-add", export).await;
        Export { socket, name: EXPORT.to_owned() }
    }

    pub async fn mirror(&self, to: &MirrorTo) {
        let node = json!({
            "driver": "nbd", "node-name": "there", "discard": "ignore", "export": to.export,
            "server": { "type": "unix", "path": to.socket },
        });
        self.ask("blockdev-add", node).await;
        let job = json!({
            "job-id": "m0", "device": "disk", "target": "there", "sync": "full", "copy-mode": "background",
            "granularity": 4096, "buf-size": 64 << 20, "on-target-error": "report", "on-source-error": "report",
        });
        self.ask("blockdev-mirror", job).await;
    }

    /// `None` when there is no such job any more.
    pub async fn job(&self) -> Option<Value> {
        let jobs = self.ask("query-block-jobs", Value::Null).await;
        jobs.as_array().unwrap().first().cloned()
    }

    pub async fn is_ready(&self) -> bool {
        self.job().await.expect("the mirror is alive")["ready"] == true
    }

    /// Guests wait for both places from now on, where this QEMU can switch.
    pub async fn block_writes(&self) -> bool {
        let change = json!({ "id": "m0", "type": "mirror", "copy-mode": "write-blocking" });
        self.qmp.execute::<Value>("block-job-change", change).await.is_ok()
    }

    /// The soft end: both sides are alike, and the disk stays where it is.
    pub async fn end_mirror(&self) {
        self.ask("block-job-cancel", json!({ "device": "m0", "force": false })).await;
        eventually("the mirror has ended", || async { self.job().await.is_none() }).await;
        self.ask("blockdev-del", json!({ "node-name": "there" })).await;
    }

    /// Ends and gives the disk up.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Box {
    fn drop(&mut self) {
        self.kill();
    }
}

pub fn img(arguments: &[&str]) -> Output {
    let output = Command::new("qemu-img").args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

pub fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A qcow2 image of this size, on top of another one if there is one.
pub fn image(folder: &Path, name: &str, bytes: u64, below: Option<&Path>) -> PathBuf {
    let image = folder.join(name);
    let size = bytes.to_string();
    match below {
        None => img(&["create", "-q", "-f", "qcow2", path(&image), &size]),
        Some(below) => {
            img(&["create", "-q", "-f", "qcow2", "-F", "raw", "-b", path(below), path(&image), &size])
        }
    };
    image
}

/// Writes into an image that nobody has open.
pub fn write(image: &Path, command: &str) {
    let output = Command::new("qemu-io").args(["-f", "qcow2", "-c", command, path(image)]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Bytes that nothing makes smaller, the same for the same seed.
pub fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(bytes).collect()
}
