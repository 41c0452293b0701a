//! Carries guests to and from other hosts through the mover, and their disks also straight.
//!
//! ```text
//! source QEMU ─ unix socket ─ Outgoing ══ TLS ══ Incoming ─ unix socket ─ target QEMU
//! source QEMU ─ told by Direct ══════════════════════════════════════════ target QEMU
//! ```
//!
//! One task per guest on the move owns its session. Sessions outlive the connection to QEMU's monitor, not the agent:
//! with the agent they end, and QEMU sees its socket close. Who owns the guest is never decided here (`vm::decide`).

/// Disks that go straight from one QEMU to the other.
mod direct;
/// The disks that go with a guest through the mover.
mod disks;
/// The target's side.
mod incoming;
/// Copies of a disk in the making, in its QEMU.
mod mirrors;
/// The source's side.
mod outgoing;
/// How fast guests may go.
mod pace;
/// How long guests wait.
mod patience;
/// What lines between datacentres carry.
mod probe;
/// Memory of other guests here that an arriving one resembles.
mod siblings;
/// Page keys and checkpoints of guests that have been here.
mod vault;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sterna_base::scope::Scope;
use sterna_base::units::Span;
use sterna_model::meta::Name;
use sterna_mover::codec::Keeper;
use sterna_mover::link::listen::Listener;
use sterna_mover::link::tls::{self, Dialer};
use sterna_mover::session::Shared;
use sterna_wire::join::host_dns_name;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use uuid::Uuid;

pub use direct::{Direct, Parting, end_orphan};
pub use incoming::Incoming;
pub(crate) use mirrors::away;
pub use mirrors::tidy;
pub use outgoing::{Departure, Outgoing, Stage};
pub use probe::{Lines, PROBE_EVERY};
use vault::Vault;

/// What is kept below the agent's folder: keys of guests' pages, memory of guests that left, and what they wrote and the
/// line has not taken.
pub const FOLDERS: [&str; 3] = [PAGE_KEYS, CHECKPOINTS, JOURNAL];
/// What checkpoints are sealed under.
pub const KEY: &str = "checkpoint.key";
const PAGE_KEYS: &str = "page-keys";
const CHECKPOINTS: &str = "checkpoints";
const JOURNAL: &str = "journal";

#[derive(Debug, Clone)]
pub struct Settings {
    /// PEM files; read anew for each session, so that a renewed certificate needs no restart.
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub ca: PathBuf,
    pub data_dir: PathBuf,
    /// Where the traces of running VMs are.
    pub run_dir: PathBuf,
    /// QEMU's user, who opens the sockets made here.
    pub run_as_uid: u32,
    pub run_as_gid: u32,
    /// How long checkpoints of guests that went away are kept.
    pub checkpoints_kept: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what}")]
    Io { what: &'static str, source: io::Error },
    #[error(transparent)]
    Tls(#[from] tls::Error),
    #[error("checkpoints")]
    Checkpoint(#[from] sterna_mover::checkpoint::Error),
    #[error("the stream cannot be carried: {0}")]
    Session(#[from] sterna_mover::session::Error),
    #[error("qemu: {0}")]
    Qemu(#[from] sterna_qemu::qmp::client::Error),
    #[error("qemu did not open its migration socket")]
    NotOpened,
    #[error("disk {index} is not there")]
    NoDisk { index: usize },
    #[error("a mirror of a disk ended before its time")]
    MirrorFailed,
    #[error("the copy of a disk failed: {why}")]
    Mirror { why: String },
    #[error("memory did not cross: {why}")]
    Memory { why: String },
    #[error("cancelled")]
    Cancelled,
    #[error("disks: {0}")]
    Volumes(#[from] sterna_mover::volume::Error),
    #[error(transparent)]
    CalledOff(#[from] patience::CalledOff),
    #[error("the other side was not there, or gave no echo, within {within}")]
    NoEcho { within: Span },
    #[error("the link has ended")]
    Link(#[from] sterna_mover::link::Ended),
}

impl Error {
    /// With the reason below it.
    #[must_use]
    pub fn explain(&self) -> String {
        let source = std::error::Error::source(self).map(|source| format!(": {source}")).unwrap_or_default();
        format!("{self}{source}")
    }

    fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}

/// All guests that this host's mover carries. Clones share them.
#[derive(Clone)]
pub struct Carriers(Arc<Inner>);

struct Inner {
    settings: Settings,
    vault: Vault,
    /// Sessions end with it.
    scope: Scope,
    /// One for all guests that arrive; by address, which is the host's.
    listeners: tokio::sync::Mutex<HashMap<IpAddr, Arc<Listener>>>,
    outgoing: Mutex<HashMap<Uuid, Outgoing>>,
    incoming: Mutex<HashMap<Uuid, Incoming>>,
    direct: Mutex<HashMap<Uuid, Direct>>,
    /// The way out that a guest took last: it is tidied up before the next begins.
    parting: Mutex<HashMap<Uuid, watch::Receiver<Stage>>>,
    paces: watch::Sender<pace::Shares>,
    probe_orders: watch::Sender<probe::Orders>,
    lines: watch::Sender<Lines>,
}

impl Carriers {
    /// Opens what earlier moves left here.
    pub fn open(settings: Settings, scope: Scope) -> Result<Self, Error> {
        let vault = Vault::open(&settings.data_dir, settings.checkpoints_kept)?;
        Ok(Self(Arc::new(Inner {
            settings,
            vault,
            scope,
            listeners: tokio::sync::Mutex::default(),
            outgoing: Mutex::default(),
            incoming: Mutex::default(),
            direct: Mutex::default(),
            parting: Mutex::default(),
            paces: watch::Sender::default(),
            probe_orders: watch::Sender::default(),
            lines: watch::Sender::default(),
        })))
    }

    /// The guest's way out, if it is on one.
    #[must_use]
    pub fn outgoing(&self, vm: Uuid) -> Option<Outgoing> {
        lock(&self.0.outgoing).get(&vm).cloned()
    }

    #[must_use]
    pub fn incoming(&self, vm: Uuid) -> Option<Incoming> {
        lock(&self.0.incoming).get(&vm).cloned()
    }

    /// The guest's way out with its disks, if it is on one without the mover.
    #[must_use]
    pub fn direct(&self, vm: Uuid) -> Option<Direct> {
        lock(&self.0.direct).get(&vm).cloned()
    }

    /// This agent is at it: nothing of the guest's transfer is anybody else's to end.
    #[must_use]
    pub fn is_sending(&self, vm: Uuid) -> bool {
        let stages = [
            self.direct(vm).map(|direct| direct.stage()),
            self.outgoing(vm).map(|outgoing| outgoing.stage()),
        ];
        stages.into_iter().flatten().any(|stage| matches!(stage, Stage::Going | Stage::Held | Stage::Granted))
    }

    /// Nothing of a former move of this guest is in the way of the next.
    pub fn forget(&self, vm: Uuid) {
        lock(&self.0.direct).remove(&vm);
        lock(&self.0.outgoing).remove(&vm);
        lock(&self.0.incoming).remove(&vm);
    }

    /// Its copy here ends. What was handed over is brought to its end, so that both sides keep their checkpoints; all
    /// else is called off.
    pub fn finish(&self, vm: Uuid) {
        let outgoing = lock(&self.0.outgoing).remove(&vm);
        if let Some(outgoing) = outgoing {
            outgoing.finish();
        }
        lock(&self.0.direct).remove(&vm);
        lock(&self.0.incoming).remove(&vm);
    }

    /// What is kept of a guest's memory here, and where what passes now is kept: both are files, and may be large.
    async fn kept(&self, vm: Uuid) -> (Option<Shared>, Option<Box<dyn Keeper>>) {
        let carriers = self.clone();
        let opened = move || (carriers.0.vault.checkpoint(vm), carriers.0.vault.keeper(vm));
        // Without them a move takes longer, and no more.
        tokio::task::spawn_blocking(opened).await.unwrap_or_default()
    }

    fn identity(&self) -> Result<tls::Identity, Error> {
        let settings = &self.0.settings;
        let read = |path: &Path| std::fs::read(path).map_err(Error::io("read this host's certificate"));
        Ok(tls::Identity::from_pem(
            &read(&settings.certificate)?,
            &read(&settings.key)?,
            &read(&settings.ca)?,
        )?)
    }

    fn dialer(&self, peer: &Name) -> Result<Dialer, Error> {
        Ok(self.identity()?.dialer(&host_dns_name(peer))?)
    }

    async fn listener(&self, at: IpAddr) -> Result<Arc<Listener>, Error> {
        let mut listeners = self.0.listeners.lock().await;
        if let Some(listener) = listeners.get(&at) {
            return Ok(Arc::clone(listener));
        }
        let tcp = TcpListener::bind(SocketAddr::new(at, 0)).await.map_err(Error::io("listen for a mover"))?;
        let listener =
            Listener::new(tcp, self.identity()?.acceptor()?).map_err(Error::io("listen for a mover"))?;
        let listener = Arc::new(listener);
        listeners.insert(at, Arc::clone(&listener));
        Ok(listener)
    }

    /// A socket in a guest's own directory that its QEMU may open, and nobody else.
    fn socket_for_qemu(&self, path: &Path) -> Result<UnixListener, Error> {
        let removed = sterna_base::file::remove_if_there(path);
        let made = removed.and_then(|()| UnixListener::bind(path));
        let socket = made.map_err(Error::io("make a socket for qemu"))?;
        self.hand_to_qemu(path)?;
        Ok(socket)
    }

    fn hand_to_qemu(&self, path: &Path) -> Result<(), Error> {
        let hand = || {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
            if rustix::process::geteuid().is_root() {
                let uid = rustix::process::Uid::from_raw(self.0.settings.run_as_uid);
                let gid = rustix::process::Gid::from_raw(self.0.settings.run_as_gid);
                rustix::fs::chown(path, Some(uid), Some(gid))?;
            }
            Ok(())
        };
        hand().map_err(Error::io("hand a socket to qemu"))
    }

    /// Where what a guest wrote waits for the line when memory is full.
    fn spill_folder(&self) -> Result<PathBuf, Error> {
        let folder = self.0.settings.data_dir.join(JOURNAL);
        std::fs::create_dir_all(&folder).map_err(Error::io("make the folder of journals"))?;
        Ok(folder)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Contents that a session keeps on each side: enough for the pages that are written again and again.
fn store_bytes(memory: u64) -> u64 {
    (memory / 2).clamp(64 << 20, 1 << 30)
}
