//! The source's side: takes the stream from a running QEMU, and holds its end until the guest may go.

/// One stream that flows.
mod way;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sterna_mover::codec::Settings;
use sterna_mover::link::{self, Link, SessionId};
use sterna_mover::session::source::Options;
use sterna_mover::session::{Refused, Source};
use sterna_qemu::qmp::Client;
use sterna_qemu::qmp::migration::{Address, Capability, Parameters};
use sterna_wire::assignment::Carry;
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

use super::disks::Mirrors;
use super::{Carriers, Error, lock, mirrors, store_bytes};
use crate::hypervisor::{GuestError, Happened};
use way::Way;

/// The socket that QEMU sends to, in the guest's directory.
const SOCKET: &str = "out.sock";
/// QEMU opens it at once.
const OPEN_WITHIN: Duration = Duration::from_secs(5);

/// An attempt that failed is tidied up within milliseconds.
const PART_WITHIN: Duration = Duration::from_secs(5);

/// How far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    Going,
    /// Everything but the end of the stream is on its way; the guest stands still.
    Held,
    /// The end was let go: only the owner's word continues the guest here.
    Granted,
    /// The guest stays, and QEMU resumes it by itself.
    Failed {
        why: String,
    },
    /// The target has the disks, and nothing more was asked for.
    Seeded,
    Over,
}

/// What a guest leaves with.
pub struct Departure {
    pub vm: Uuid,
    pub client: Client,
    /// The guest's directory, which is its QEMU's.
    pub directory: PathBuf,
    pub to: SocketAddr,
    pub carry: Carry,
    pub parameters: Parameters,
    pub happened: mpsc::UnboundedSender<Happened>,
    /// The disks alone, ahead of the move.
    pub seed: bool,
    /// Filled in on the way.
    pub disk_bytes: Arc<AtomicU64>,
    pub disk_delay_ms: Arc<AtomicU64>,
}

/// Numbers of a stream under way.
#[derive(Debug, Clone, Copy, Default)]
pub struct Figures {
    pub wire_bytes: u64,
    /// Bytes a second.
    pub rate: u64,
    pub round_trip: Option<Duration>,
    /// Taken from QEMU, and not taken by the target yet.
    pub queued_bytes: u64,
    /// Since the guest's CPUs stand still, and half a round trip: what the source knows of the pause.
    pub pause: Option<Duration>,
    /// What each write of the guest to its disks waits for now, for the line is behind.
    pub slowed: Option<Duration>,
}

/// Loading of device state and starting of CPUs at the target, measured at 20 to 50 ms.
const LOADING: Duration = Duration::from_millis(50);

impl Figures {
    /// The part of a guest's pause that QEMU knows nothing of: what the mover still holds, the way, and the loading.
    #[must_use]
    pub fn beyond_qemu(&self) -> Duration {
        let queued = Duration::from_millis(self.queued_bytes.saturating_mul(1000) / self.rate.max(1));
        queued + self.round_trip.unwrap_or_default() / 2 + LOADING
    }
}

enum Call {
    Grant,
    Reclaim,
    Abort,
    Finish,
}

type Answer = oneshot::Sender<Result<(), String>>;

/// A guest that leaves. The last one dropped closes QEMU's socket.
#[derive(Clone)]
pub struct Outgoing(Arc<Inner>);

struct Inner {
    stage: watch::Receiver<Stage>,
    calls: mpsc::Sender<(Call, Answer)>,
    link: watch::Receiver<link::Progress>,
    /// What the disks' session has sent.
    disk_bytes: Arc<AtomicU64>,
    disk_delay_ms: Arc<AtomicU64>,
    /// Since when the guest's CPUs stand still.
    stopped: watch::Receiver<Option<Instant>>,
}

impl Outgoing {
    #[must_use]
    pub fn stage(&self) -> Stage {
        self.0.stage.borrow().clone()
    }

    #[must_use]
    pub fn figures(&self) -> Figures {
        let progress = *self.0.link.borrow();
        let half_round_trip = progress.round_trip.unwrap_or_default() / 2;
        let delay = Duration::from_millis(self.0.disk_delay_ms.load(Ordering::Relaxed));
        Figures {
            wire_bytes: progress.wire_bytes + self.0.disk_bytes.load(Ordering::Relaxed),
            rate: progress.rate.unwrap_or(0),
            round_trip: progress.round_trip,
            queued_bytes: progress.queued_bytes,
            pause: self.0.stopped.borrow().map(|since| since.elapsed() + half_round_trip),
            slowed: Some(delay).filter(|delay| !delay.is_zero()),
        }
    }

    /// Lets the end go. The guest must be frozen, and it must be written down that it will not run here.
    pub async fn grant(&self) -> Result<(), GuestError> {
        self.call(Call::Grant).await
    }

    /// The guest is this host's again, after a grant: closes QEMU's socket.
    pub async fn reclaim(&self) -> Result<(), GuestError> {
        self.call(Call::Reclaim).await
    }

    /// Calls it off; refused after a grant.
    pub async fn abort(&self) -> Result<(), GuestError> {
        self.call(Call::Abort).await
    }

    /// The copy here has ended: what was granted comes to its end by itself.
    pub(super) fn finish(self) {
        tokio::spawn(async move { self.call(Call::Finish).await });
    }

    async fn call(&self, call: Call) -> Result<(), GuestError> {
        let (answer, answered) = oneshot::channel();
        let over = "the stream has ended";
        self.0.calls.send((call, answer)).await.map_err(|_| GuestError::Refused(over.to_owned()))?;
        // One that was heard and not answered may have been followed.
        let answered = answered.await.map_err(|_| GuestError::Unclear(over.to_owned()))?;
        answered.map_err(GuestError::Refused)
    }
}

impl Carriers {
    /// Begins to carry a guest away; answers at once.
    pub fn send(&self, departure: Departure) -> Result<Outgoing, Error> {
        let dialer = self.dialer(&departure.carry.peer)?;
        let session = SessionId(departure.carry.session.into_bytes());
        let pace = self.pace(departure.carry.session);
        let options = link::Options { pace, ..link::Options::default() };
        let link = Link::dial(session, departure.to, dialer, options);
        let (stage, staged) = watch::channel(Stage::Going);
        let (calls, called) = mpsc::channel(4);
        let (disk_bytes, disk_delay_ms) =
            (Arc::clone(&departure.disk_bytes), Arc::clone(&departure.disk_delay_ms));
        let (stops, stopped) = watch::channel(None);
        let former = self.part(departure.vm, &staged);
        let inner = Inner { stage: staged, calls, link: link.progress(), disk_bytes, disk_delay_ms, stopped };
        let outgoing = Outgoing(Arc::new(inner));
        lock(&self.0.outgoing).insert(departure.vm, outgoing.clone());
        let carriers = self.clone();
        self.0.scope.spawn(async move {
            parted(former).await;
            run(carriers, departure, link, (stage, stops), called).await;
        });
        Ok(outgoing)
    }
}

impl Carriers {
    /// The guest's former way out, which may still be under way; others that are over are forgotten.
    pub(super) fn part(&self, vm: Uuid, next: &watch::Receiver<Stage>) -> Option<watch::Receiver<Stage>> {
        let mut parting = lock(&self.0.parting);
        parting.retain(|_, way| way.has_changed().is_ok());
        parting.insert(vm, next.clone())
    }
}

/// What an attempt that failed leaves is removed by names that the next one uses as well.
pub(super) async fn parted(former: Option<watch::Receiver<Stage>>) {
    let Some(mut former) = former else { return };
    let over = async { while former.changed().await.is_ok() {} };
    if tokio::time::timeout(PART_WITHIN, over).await.is_err() {
        // That of a guest which left and came back, whose other side is silent: it is about another QEMU.
        tracing::debug!("a former way out is not over yet");
    }
}

type Called = mpsc::Receiver<(Call, Answer)>;

async fn run(
    carriers: Carriers,
    departure: Departure,
    link: Link,
    (stage, stops): (watch::Sender<Stage>, watch::Sender<Option<Instant>>),
    mut called: Called,
) {
    let watched = link.progress();
    let begun = tokio::select! {
        begun = begin(&carriers, &departure, link) => begun.map_err(|error| error.explain()),
        why = called_off(&mut called) => Err(why),
    };
    let mut over = Stage::Over;
    let ended = match begun {
        Ok(None) => {
            over = Stage::Seeded;
            Ok(())
        }
        Ok(Some(stream)) => Way::new(&departure, stream, watched, (&stage, stops)).go(&mut called).await,
        Err(why) => Err(why),
    };
    if let Err(why) = &ended {
        tracing::warn!(vm = %departure.vm, %why, "a guest's way out has failed");
        // A transfer that has not begun, or has ended by itself, has nothing to cancel.
        let _ = departure.client.migrate_cancel().await;
    }
    if (ended.is_err() || over == Stage::Seeded)
        && let Err(error) = mirrors::tidy(&departure.client).await
    {
        tracing::warn!(vm = %departure.vm, %error, "mirrors could not be removed");
    }
    stage.send_replace(ended.map_or_else(|why| Stage::Failed { why }, |()| over));
    let _ = departure.happened.send(Happened::Changed);
    // Later calls are told that it has ended.
    drop(called);
}

/// Until somebody gives up what has not begun.
async fn called_off(called: &mut Called) -> String {
    loop {
        match called.recv().await {
            None => return "nobody waits for it any more".to_owned(),
            Some((Call::Abort | Call::Finish, answer)) => {
                let _ = answer.send(Ok(()));
                return "cancelled".to_owned();
            }
            Some((_, answer)) => drop(answer.send(Err(Refused::NothingHeld.to_string()))),
        }
    }
}

/// Disks first, which take longer; memory when they are close behind. `None`: the disks were all.
async fn begin(
    carriers: &Carriers,
    departure: &Departure,
    link: Link,
) -> Result<Option<(Source, Option<Mirrors>)>, Error> {
    let (client, vault) = (&departure.client, &carriers.0.vault);
    let mirrors = if departure.carry.disks.is_empty() {
        None
    } else {
        mirrors::tidy(client).await?;
        let mut mirrors = Mirrors::start(carriers, departure, link.pace()).await?;
        mirrors.catch_up().await?;
        Some(mirrors)
    };
    if departure.seed {
        if let Some(mut mirrors) = mirrors {
            mirrors.seed().await?;
        }
        return Ok(None);
    }
    let memory = client.query_memory_size().await?;
    let settings = Settings::for_guest(vault.page_key(departure.vm)?, memory, store_bytes(memory));
    let (checkpoint, keeper) = carriers.kept(departure.vm).await;
    let options = Options { settings, checkpoint, keeper };
    // Mirrors must have ended before QEMU gives its images up.
    let (mut on, mut off) =
        (vec![Capability::Events, Capability::ReturnPath, Capability::AutoConverge], Vec::new());
    if mirrors.is_some() { &mut on } else { &mut off }.push(Capability::PauseBeforeSwitchover);
    client.set_migration_capabilities(&on, &off).await?;
    client.set_migration_parameters(&departure.parameters).await?;
    let path = departure.directory.join(SOCKET);
    let socket = carriers.socket_for_qemu(&path)?;
    client.migrate(&Address::Unix(path)).await?;
    let (stream, _) = tokio::time::timeout(OPEN_WITHIN, socket.accept())
        .await
        .map_err(|_| Error::NotOpened)?
        .map_err(Error::io("take qemu's migration socket"))?;
    Ok(Some((Source::start(stream, link, options)?, mirrors)))
}
