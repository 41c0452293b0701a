//! Disks: where their bytes are, in which format, and which device the guest sees.
//!
//! Formats and backing chains are always spelt out. QEMU must never guess a format (a guest can write any
//! header onto its raw disk) nor follow a file name found inside an image: each level says its `backing`,
//! and the last one says `null`. An external data file cannot be overridden with `null`; images that name
//! one are refused when they are inspected (`image`).

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Place, Refused, all_different, path, socket_path, text};

/// How an image's bytes are to be read. Nothing else is ever opened by a guest's QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    Raw,
    Qcow2,
}

impl Format {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// Where the bytes of an image are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A file, opened past the page cache (a killed QEMU then has no write left in the host) and under an
    /// image lock.
    File { path: PathBuf },
    /// An export of a network block server on this machine.
    NbdUnix { socket: PathBuf, export: String },
    /// An export of a network block server elsewhere.
    NbdTcp { host: String, port: u16, export: String },
}

/// One level below a disk's own image; always read-only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backing {
    pub format: Format,
    pub source: Source,
}

/// A disk of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Id of the device: what `device_del` and `query-block` name.
    pub id: String,
    /// Name of the top node: what `block_resize` names.
    pub node: String,
    pub format: Format,
    pub source: Source,
    /// From the image right below this one to the last; empty for an image that stands alone.
    #[serde(default)]
    pub backing: Vec<Backing>,
    /// What the guest sees under `/dev/disk/by-id/virtio-...`.
    #[serde(default)]
    pub serial: Option<String>,
    #[serde(default)]
    pub read_only: bool,
    pub place: Place,
    /// Order in which the firmware tries to boot, lowest first; none = never.
    #[serde(default)]
    pub boot_index: Option<u32>,
}

/// QEMU's limit for a node name is 31 characters; `/` cannot start one but our alphabet has none.
const NODE_NAME_MAX: usize = 31;

/// A virtio-blk serial has 20 bytes.
const SERIAL_MAX: usize = 20;

/// A deeper chain than this is a sign of a forgotten merge, and each level costs file descriptors and memory.
const BACKING_MAX: u64 = 64;

pub(super) fn check(disks: &[Disk]) -> Result<(), Refused> {
    for disk in disks {
        text("disk id", &disk.id, "._-", NODE_NAME_MAX)?;
        text("node name", &disk.node, "._-", NODE_NAME_MAX)?;
        if let Some(serial) = &disk.serial {
            text("disk serial", serial, "._-", SERIAL_MAX)?;
        }
        check_source(&disk.source)?;
        super::range("backing", disk.backing.len() as u64, 0, BACKING_MAX)?;
        let mut upper = disk.format;
        for level in &disk.backing {
            if upper == Format::Raw {
                return Err(Refused::RawWithBacking { disk: disk.id.clone() });
            }
            check_source(&level.source)?;
            upper = level.format;
        }
    }
    all_different("disk id", disks.iter().map(|disk| disk.id.as_str()))?;
    all_different("node name", disks.iter().map(|disk| disk.node.as_str()))
}

fn check_source(source: &Source) -> Result<(), Refused> {
    match source {
        Source::File { path: file } => path("disk", file),
        Source::NbdUnix { socket, export } => {
            socket_path(socket)?;
            text("export", export, "._-/:", 128)
        }
        Source::NbdTcp { host, export, .. } => {
            text("NBD host", host, ".-:%", 253)?;
            text("export", export, "._-/:", 128)
        }
    }
}

impl Disk {
    /// The value of `-blockdev`, and the arguments of `blockdev-add`.
    pub fn blockdev(&self) -> Value {
        let mut node = image_node(self.format, &self.source, self.read_only, &self.backing);
        node["node-name"] = json!(self.node);
        node["discard"] = json!("unmap");
        node
    }

    /// The value of `-device`, and the arguments of `device_add`. `queues` is pinned to the number of
    /// processors at start, as QEMU would choose another for a guest that has grown since.
    pub fn device(&self, queues: u32) -> Value {
        let mut device = json!({
            "driver": "virtio-blk-pci",
            "id": self.id,
            "drive": self.node,
            "num-queues": queues,
            // A full or lost pool pauses the guest instead of showing it errors.
            "werror": "stop",
            "rerror": "stop",
            "write-cache": "on",
        });
        if let Some(serial) = &self.serial {
            device["serial"] = json!(serial);
        }
        if let Some(index) = self.boot_index {
            device["bootindex"] = json!(index);
        }
        self.place.put_disk(&mut device);
        device
    }
}

/// A format node with its protocol node below and its whole backing chain, inline.
fn image_node(format: Format, source: &Source, read_only: bool, below: &[Backing]) -> Value {
    let mut node = json!({
        "driver": format.as_str(),
        "read-only": read_only,
        "auto-read-only": false,
        "file": source_node(source, read_only),
    });
    if format == Format::Qcow2 {
        node["backing"] = match below.split_first() {
            None => Value::Null,
            Some((next, rest)) => image_node(next.format, &next.source, true, rest),
        };
    }
    node
}

fn source_node(source: &Source, read_only: bool) -> Value {
    let mut node = match source {
        Source::File { path } => json!({
            "driver": "file",
            "filename": path,
            "locking": "on",
            "aio": "threads",
            "cache": { "direct": true, "no-flush": false },
        }),
        Source::NbdUnix { socket, export } => nbd(json!({ "type": "unix", "path": socket }), export),
        Source::NbdTcp { host, port, export } => {
            nbd(json!({ "type": "inet", "host": host, "port": port.to_string() }), export)
        }
    };
    node["read-only"] = json!(read_only);
    node["auto-read-only"] = json!(false);
    node["discard"] = json!("unmap");
    node
}

fn nbd(server: Value, export: &str) -> Value {
    // No reconnecting: an export that was revoked must stay lost for this process.
    json!({ "driver": "nbd", "server": server, "export": export, "reconnect-delay": 0 })
}

/// The node of a cloud-init seed image.
pub(super) fn seed_node(seed: &std::path::Path) -> Value {
    json!({
        "driver": "raw",
        "node-name": "seed",
        "read-only": true,
        "auto-read-only": false,
        "file": { "driver": "file", "filename": seed, "locking": "on", "read-only": true, "auto-read-only": false },
    })
}
