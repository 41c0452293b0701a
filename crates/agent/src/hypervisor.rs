//! The port between the task that owns a VM and what runs it.
//!
//! The real one ([`crate::qemu_hypervisor`]) is a shim and a QEMU per VM; the simulation brings its own. Nothing
//! behind this port decides: it does what it is told, and tells what it sees.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use sterna_base::units::{Bytes, Span};
use sterna_model::forecast::LoadSample;
use sterna_model::line::{Laying, Line};
use sterna_model::meta::Name;
use sterna_model::migration::Progress;
use sterna_wire::assignment::{Carry, Machine, Outgoing};
use sterna_wire::shim::ExitRecord;
use tokio::sync::mpsc;
use uuid::Uuid;

/// Everything a new copy is made of.
#[derive(Debug, Clone)]
pub struct Blueprint {
    pub name: Name,
    pub uid: Uuid,
    pub epoch: u64,
    pub machine: Machine,
    pub parts: Parts,
    /// Waits for a migration instead of booting.
    pub incoming: bool,
    /// Times that it was started again under this epoch.
    pub restart: u32,
}

/// What the host has made ready for a copy.
#[derive(Debug, Clone, Default)]
pub struct Parts {
    /// In the order of `machine.disks`.
    pub disks: Vec<Opened>,
    pub seed: Option<PathBuf>,
    /// In the order of `machine.hardware.nics`.
    pub taps: Vec<Tap>,
}

/// How QEMU reaches the bytes of a volume.
#[derive(Debug, Clone)]
pub struct Opened {
    pub format: sterna_qemu::config::Format,
    pub source: sterna_qemu::config::Source,
    pub backing: Vec<sterna_qemu::config::Backing>,
}

/// A persistent tap device that is attached to its network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tap {
    pub device: String,
    pub mtu: u16,
}

/// What a copy does now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    pub run: Run,
    pub transfer: Transfer,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Run {
    Running,
    Paused(Pause),
    /// A target that waits for memory or takes it in.
    Incoming,
}

/// Why guest CPUs stand still.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pause {
    /// It never ran in this process.
    NotStarted,
    Asked,
    /// For the last pass of a migration, or after it.
    Migrated,
    /// Its storage failed; it goes on with the same request once it is run again. Empty: which disk is not known.
    IoError(Vec<FailedDisk>),
    /// The guest said that it crashed.
    Panicked,
    Other(String),
}

impl Pause {
    #[must_use]
    pub fn why(&self) -> String {
        match self {
            Self::NotStarted => "not started yet".to_owned(),
            Self::Asked => "paused as asked".to_owned(),
            Self::Migrated => "its memory is being handed over".to_owned(),
            Self::IoError(disks) => why_disks(disks, |index| format!("disk {index}")),
            Self::Panicked => "the guest crashed".to_owned(),
            Self::Other(word) => format!("qemu says {word}"),
        }
    }
}

/// A disk whose storage did not do as it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailedDisk {
    /// In the order of the machine's disks.
    pub index: usize,
    /// There is no room for what the guest writes.
    pub is_full: bool,
}

/// Which disks failed and how, each called as `name` has it.
#[must_use]
pub fn why_disks(disks: &[FailedDisk], name: impl Fn(usize) -> String) -> String {
    if disks.is_empty() {
        return "a disk failed or is full".to_owned();
    }
    let word =
        |disk: &FailedDisk| if disk.is_full { "has no room left" } else { "does not answer or failed" };
    let each: Vec<_> = disks.iter().map(|disk| format!("{} {}", name(disk.index), word(disk))).collect();
    format!("{}; it goes on when that is over", each.join(", "))
}

/// How far a migration is, on either side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transfer {
    None,
    /// Also every state that we have no word for.
    Going,
    /// Source: the guest stands still, and everything but the end of its stream was sent. It will neither complete nor
    /// be resumed by QEMU until it is granted or cancelled.
    Held,
    Completed,
    /// Source: the target has the disks as they were a moment ago, which was all that was asked for.
    Seeded,
    Failed {
        why: String,
    },
    Cancelled,
}

/// Told without being asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happened {
    Resumed,
    /// The transfer completed on this side.
    TransferCompleted,
    /// Everything but the end was sent.
    TransferHeld,
    /// The guest did not feed its watchdog.
    WatchdogBit,
    /// Something else changed: ask.
    Changed,
    /// The connection to the copy is gone: look what became of it.
    Lost,
}

pub type Happenings = mpsc::UnboundedReceiver<Happened>;

/// What is found of a VM on this host.
pub enum Look<G> {
    /// No process and no trace of one.
    Absent,
    Alive {
        guest: G,
        happenings: Happenings,
        epoch: u64,
    },
    /// The process is gone and reaped.
    Ended(ExitRecord),
    /// Something is there that does not answer: nothing may be concluded.
    Unknown {
        why: String,
    },
}

/// No copy came up. No process is left of the attempt.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{why}")]
pub struct SpawnFailed {
    pub why: String,
}

/// Why a copy did not do as it was told.
#[derive(Debug, Clone, thiserror::Error)]
pub enum GuestError {
    /// It understood and said no; nothing was changed.
    #[error("{0}")]
    Refused(String),
    /// It may or may not have done it: look.
    #[error("{0}")]
    Unclear(String),
}

/// Where a target takes its memory in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listening {
    pub at: SocketAddr,
    /// How the source's copy has to call. `None`: in clear, or it is the mover that listens.
    pub line: Option<Line>,
}

/// What a source is told to keep to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub max_downtime: Span,
}

/// Figures of a transfer that is going or has just completed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Figures {
    pub progress: Progress,
    /// Known after completion.
    pub downtime: Option<Span>,
    /// Of the line; only through the mover.
    pub round_trip: Option<Span>,
}

pub trait Hypervisor: Send + Sync + 'static {
    type Guest: Guest;

    /// What is there of this VM; never changes anything but to write down an end that nobody else did.
    fn look(&self, uid: Uuid) -> impl Future<Output = Look<Self::Guest>> + Send;

    /// Starts a copy whose CPUs stand still. Must not be called while another copy of the VM is here.
    fn spawn(
        &self,
        blueprint: Blueprint,
    ) -> impl Future<Output = Result<(Self::Guest, Happenings), SpawnFailed>> + Send;

    /// Ends whatever is here of the VM. Look afterwards.
    fn kill(&self, uid: Uuid, guest: Option<Self::Guest>) -> impl Future<Output = ()> + Send;

    /// Removes the traces of a copy that has ended.
    fn clear(&self, uid: Uuid) -> std::io::Result<()>;
}

pub trait Guest: Clone + Send + Sync + 'static {
    fn view(&self) -> impl Future<Output = Result<View, GuestError>> + Send;

    /// Runs the guest. Only for the owner of the VM.
    fn cont(&self) -> impl Future<Output = Result<(), GuestError>> + Send;
    fn stop(&self) -> impl Future<Output = Result<(), GuestError>> + Send;
    fn press_power_button(&self) -> impl Future<Output = Result<(), GuestError>> + Send;
    fn reset(&self) -> impl Future<Output = Result<(), GuestError>> + Send;

    /// Target: listens, once in the life of a copy; asked again, answers the same. With `laying`: for one copy that calls
    /// the other like that.
    fn listen(
        &self,
        at: IpAddr,
        carry: Option<&Carry>,
        laying: Option<Laying>,
    ) -> impl Future<Output = Result<Listening, GuestError>> + Send;

    /// Target, after completion: takes the image locks while still paused.
    fn activate_disks(&self) -> impl Future<Output = Result<(), GuestError>> + Send;

    /// Target, just continued: since when the last of it had arrived, where that is known.
    fn loading(&self) -> Option<Span> {
        None
    }

    /// Target, just continued: how long it takes until the guest answers at this address. `None`: not within seconds, or
    /// nobody here can ask.
    fn answers(&self, at: Ipv4Addr) -> impl Future<Output = Option<Duration>> + Send {
        let _ = at;
        std::future::ready(None)
    }

    /// Tells the network where the guest now is.
    fn announce(&self) -> impl Future<Output = Result<(), GuestError>> + Send;

    /// Source: starts to send; answers at once.
    fn send(
        &self,
        outgoing: &Outgoing,
        limits: Limits,
    ) -> impl Future<Output = Result<(), GuestError>> + Send;

    /// Source, held: from now on nothing but [`Guest::take_back`] lets this copy run, also not the end of this agent.
    fn freeze(&self) -> impl Future<Output = Result<(), GuestError>> + Send;

    /// Source, frozen: lets the end of the stream go.
    fn grant(&self) -> impl Future<Output = Result<(), GuestError>> + Send;

    /// Source, after its memory was handed over: the guest runs here again. Only for the owner of the VM.
    fn take_back(&self) -> impl Future<Output = Result<(), GuestError>> + Send;

    /// Source: other limits for a transfer that is under way.
    fn limit(&self, limits: Limits) -> impl Future<Output = Result<(), GuestError>> + Send;

    /// Source: removes what a transfer that failed may have left, also one of an earlier agent.
    fn tidy(&self) -> impl Future<Output = Result<(), GuestError>> + Send {
        std::future::ready(Ok(()))
    }

    /// Source: asks to give up; it may complete all the same.
    fn cancel(&self) -> impl Future<Output = Result<(), GuestError>> + Send;

    fn figures(&self) -> impl Future<Output = Result<Figures, GuestError>> + Send;

    /// Grows the image of the n-th disk, and tells the guest.
    fn resize_disk(&self, index: usize, size: Bytes) -> impl Future<Output = Result<(), GuestError>> + Send;

    /// Whether the guest's agent gives a sign of life within this time.
    fn ping(&self, within: Duration) -> impl Future<Output = Result<(), GuestError>> + Send {
        let _ = within;
        std::future::ready(Err(GuestError::Refused("there is nobody to ask".to_owned())))
    }

    /// Runs a program in the guest; an error unless it ends well within this time.
    fn execute(
        &self,
        program: &str,
        args: &[String],
        within: Duration,
    ) -> impl Future<Output = Result<(), GuestError>> + Send {
        let _ = (program, args, within);
        std::future::ready(Err(GuestError::Refused("there is nobody to ask".to_owned())))
    }

    /// Operations of its disks and packets that it sent, since it was started. Only whether it grows means anything.
    fn activity(&self) -> impl Future<Output = Result<u64, GuestError>> + Send {
        std::future::ready(Err(GuestError::Refused("nobody counts".to_owned())))
    }

    /// What the guest uses; with a window, also how much of its memory it writes to within it, which takes as long.
    fn load(&self, window: Option<Duration>) -> impl Future<Output = Result<LoadSample, GuestError>> + Send;
}
