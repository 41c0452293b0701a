//! What one QEMU process is made of, and its command line.
//!
//! A [`Config`] is complete: two hosts that are given the same one (paths and descriptors aside) build the
//! same guest-visible machine, which is what live migration asks for. Each device has a fixed address and
//! each feature that QEMU would take from the host kernel is pinned.
//!
//! Everything that carries text from outside goes to QEMU as JSON or is checked here against a short
//! alphabet, so that no comma in a name can add an option.
//!
//! Never opens a file and never starts a process; it does not know whether an image is safe (`image`).

mod argv;
mod block;
mod device;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::ram::{self, UnsafeRam};
use crate::version::{MachineType, Version};

pub use block::{Backing, Disk, Format, Source};
pub use device::{Nic, Place};

/// What runs the guest's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// Emulation: runs anywhere, slow, and outside of what QEMU calls a security boundary.
    Tcg,
    Kvm,
}

impl Accel {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcg => "tcg",
            Self::Kvm => "kvm",
        }
    }
}

/// The processor a guest sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// A model of `query-cpu-definitions`. Hosts that exchange guests need a named one, never `host` or `max`.
    pub model: String,
    /// Features switched on or off against the model.
    #[serde(default)]
    pub features: Vec<(String, bool)>,
    /// Refuse to start when the host lacks a feature, instead of hiding it from the guest.
    #[serde(default)]
    pub enforce: bool,
}

/// How the manager talks QMP with this process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Monitor {
    /// One end of a socketpair, inherited under this number. QEMU sends its greeting at once. When the other
    /// end closes, QEMU runs on without a monitor.
    Fd(i32),
    /// A socket that QEMU listens on; one client at a time, the next one waits for its greeting.
    Socket(PathBuf),
}

/// A serial port at a unix socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serial {
    pub socket: PathBuf,
    /// Everything the guest prints is added to this file as well. QEMU never trims it.
    #[serde(default)]
    pub log: Option<PathBuf>,
}

/// One QEMU process.
///
/// QEMU creates its listening sockets itself: with an unprivileged user they must lie in a directory that
/// belongs to that user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Shown in `ps` and in VNC: letters, digits, `.`, `_`, `-`.
    pub name: String,
    /// Textual UUID, what the guest sees in SMBIOS.
    pub uuid: String,
    pub machine: MachineType,
    pub accel: Accel,
    pub cpu: Cpu,
    pub vcpus: u32,
    /// Exact; see [`ram`] for sizes that must be avoided.
    pub memory_kib: u64,
    /// Limit of the buffer for translated code under TCG; QEMU's own is 1 GiB.
    #[serde(default)]
    pub tcg_buffer_mib: Option<u32>,
    #[serde(default)]
    pub disks: Vec<Disk>,
    /// A cloud-init seed image, seen as a small read-only disk.
    #[serde(default)]
    pub seed: Option<PathBuf>,
    #[serde(default)]
    pub nics: Vec<Nic>,
    /// Empty PCIe ports into which disks and NICs can be plugged while the guest runs.
    #[serde(default)]
    pub hot_ports: u8,
    pub monitor: Monitor,
    #[serde(default)]
    pub serial: Option<Serial>,
    /// A display at a VNC server on this socket. Without it there is no graphics card.
    #[serde(default)]
    pub vnc: Option<PathBuf>,
    /// The guest agent's channel.
    #[serde(default)]
    pub guest_agent: Option<PathBuf>,
    /// A watchdog (i6300esb) that the guest feeds or not. Its end is an event, and nothing else happens.
    #[serde(default)]
    pub watchdog: bool,
    /// Start with the processors stopped; needed wherever ownership is settled before the guest runs.
    #[serde(default)]
    pub paused: bool,
    /// Wait for `migrate-incoming` instead of booting.
    #[serde(default)]
    pub incoming: bool,
}

/// Why a configuration cannot be turned into a command line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("{field} {value:?} may hold only letters, digits and {allowed:?}, and at most {len_max} of them")]
    Text { field: &'static str, value: String, allowed: &'static str, len_max: usize },
    #[error("{field} {path:?} must be an absolute UTF-8 path without control characters")]
    Path { field: &'static str, path: PathBuf },
    #[error("socket {path:?} is longer than the {len_max} bytes that a unix socket address can hold")]
    SocketPathTooLong { path: PathBuf, len_max: usize },
    #[error("{field} is {value}, but must lie between {min} and {max}")]
    Range { field: &'static str, value: u64, min: u64, max: u64 },
    #[error("{what} {value:?} is used twice")]
    Twice { what: &'static str, value: String },
    #[error("MAC address {mac:?} is not a unicast address such as 52:54:00:12:34:56")]
    Mac { mac: String },
    #[error("UUID {uuid:?} is not of the form 8-4-4-4-12 hexadecimal digits")]
    Uuid { uuid: String },
    #[error("disk {disk:?} is raw and cannot have a backing image")]
    RawWithBacking { disk: String },
}

impl Config {
    /// The arguments for QEMU, without the program itself.
    pub fn argv(&self) -> Result<Vec<OsString>, Refused> {
        self.check()?;
        Ok(argv::argv(self))
    }

    /// Whether this RAM size is migrated rightly by this QEMU under this accelerator.
    pub fn check_ram(&self, version: Version, accel: Accel) -> Result<(), UnsafeRam> {
        ram::check(self.memory_kib, version, accel)
    }

    /// Everything that [`Config::argv`] would refuse.
    pub fn check(&self) -> Result<(), Refused> {
        text("name", &self.name, "._-", 64)?;
        uuid(&self.uuid)?;
        text("CPU model", &self.cpu.model, "._-", 64)?;
        for (feature, _) in &self.cpu.features {
            text("CPU feature", feature, "._-", 64)?;
        }
        range("vcpus", self.vcpus.into(), 1, 255)?;
        range("memory_kib", self.memory_kib, 1024, 16 << 30)?;
        range("hot_ports", self.hot_ports.into(), 0, argv::HOT_PORTS_MAX.into())?;
        if let Some(mib) = self.tcg_buffer_mib {
            range("tcg_buffer_mib", mib.into(), 8, 2048)?;
        }
        self.check_paths()?;
        block::check(&self.disks)?;
        device::check(&self.nics)?;
        device::check_places(self)
    }

    fn check_paths(&self) -> Result<(), Refused> {
        if let Some(seed) = &self.seed {
            path("seed", seed)?;
        }
        if let Some(log) = self.serial.as_ref().and_then(|serial| serial.log.as_ref()) {
            path("serial log", log)?;
        }
        let monitor = match &self.monitor {
            Monitor::Fd(_) => None,
            Monitor::Socket(socket) => Some(socket),
        };
        let serial = self.serial.as_ref().map(|serial| &serial.socket);
        for socket in [monitor, serial, self.vnc.as_ref(), self.guest_agent.as_ref()].into_iter().flatten() {
            socket_path(socket)?;
        }
        Ok(())
    }
}

fn text(field: &'static str, value: &str, allowed: &'static str, len_max: usize) -> Result<(), Refused> {
    let fits = !value.is_empty() && value.len() <= len_max && !value.starts_with('-');
    if fits && value.chars().all(|c| c.is_ascii_alphanumeric() || allowed.contains(c)) {
        return Ok(());
    }
    Err(Refused::Text { field, value: value.to_owned(), allowed, len_max })
}

fn range(field: &'static str, value: u64, min: u64, max: u64) -> Result<(), Refused> {
    if (min..=max).contains(&value) { Ok(()) } else { Err(Refused::Range { field, value, min, max }) }
}

fn path(field: &'static str, path: &Path) -> Result<(), Refused> {
    match path.to_str() {
        Some(text) if path.is_absolute() && !text.chars().any(char::is_control) => Ok(()),
        _ => Err(Refused::Path { field, path: path.to_owned() }),
    }
}

/// `sun_path` has 108 bytes, one of them for the NUL that QEMU adds.
const SOCKET_PATH_MAX: usize = 107;

fn socket_path(socket: &Path) -> Result<(), Refused> {
    path("socket", socket)?;
    if socket.as_os_str().len() > SOCKET_PATH_MAX {
        return Err(Refused::SocketPathTooLong { path: socket.to_owned(), len_max: SOCKET_PATH_MAX });
    }
    Ok(())
}

fn uuid(uuid: &str) -> Result<(), Refused> {
    let groups: Vec<&str> = uuid.split('-').collect();
    let lengths_fit = groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12]);
    if lengths_fit && groups.iter().all(|group| group.chars().all(|c| c.is_ascii_hexdigit())) {
        return Ok(());
    }
    Err(Refused::Uuid { uuid: uuid.to_owned() })
}

fn all_different<'a>(what: &'static str, values: impl Iterator<Item = &'a str>) -> Result<(), Refused> {
    let mut seen = std::collections::BTreeSet::new();
    for value in values {
        if !seen.insert(value) {
            return Err(Refused::Twice { what, value: value.to_owned() });
        }
    }
    Ok(())
}
