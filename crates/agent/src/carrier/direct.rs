//! Disks that go straight from one QEMU to the other, beside the memory.
//!
//! ```text
//! source QEMU ─ mirrors ─► block server of the target QEMU ─► its own file
//!
//! mirrors begin ─► alike: writes wait for both ─► memory ─► the guest stands still: mirrors end ─► QEMU goes on
//!       └───────────────────────┴─────────────────────┴──────────────┴─ any failure: the guest stays, nothing is left
//! ```
//!
//! QEMU does not hand a guest over before it is told to at `pre-switchover`, and nobody but this task tells it. So until
//! then a move can be called off at any time, and one whose agent ended never completes: see [`end_orphan`].

/// Closes connections of a QEMU that does not answer.
mod cut;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use sterna_model::line::DiskLine;
use sterna_qemu::qmp::client::{self, Events, Heard};
use sterna_qemu::qmp::event::Event;
use sterna_qemu::qmp::export::NbdAddress;
use sterna_qemu::qmp::migration::{Address, Status};
use sterna_qemu::qmp::mirror::{BlockJob, CopyMode, Depth, NbdNode};
use sterna_qemu::qmp::{Client, Schema};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use uuid::Uuid;

use super::mirrors::{self, Jobs, Shape, away};
use super::{Carriers, Error, Stage, lock};
use crate::hypervisor::{GuestError, Happened};

/// Events tell of each change at once; this only catches what they missed.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A mirror that is behind and gets no further for this long is given up.
const STALL: Duration = Duration::from_secs(30);
/// A QEMU that answers nothing for this long waits for the target's disk with all it has, its guest included.
const MUTE: Duration = Duration::from_secs(10);
/// All of QEMU waits while it opens the target's disk, so it is asked to only when somebody is there.
const REACH_WITHIN: Duration = Duration::from_secs(5);
const OPEN_WITHIN: Duration = Duration::from_secs(2);
/// QEMU gives a transfer up as soon as it is told.
const CANCEL_WITHIN: Duration = Duration::from_secs(5);
const CANCEL_POLL: Duration = Duration::from_millis(5);

/// What a guest leaves with. QEMU knows the line for its memory already, and stops at `pre-switchover`.
pub struct Parting {
    pub vm: Uuid,
    pub client: Client,
    pub pid: u32,
    pub schema: Schema,
    /// Where the target's QEMU takes in memory.
    pub to: SocketAddr,
    pub disks: Vec<usize>,
    pub line: DiskLine,
    /// QEMU's name of the key; absent: in clear.
    pub tls_creds: Option<String>,
    pub happened: mpsc::UnboundedSender<Happened>,
}

impl Parting {
    fn disks_at(&self) -> SocketAddr {
        SocketAddr::new(self.to.ip(), self.line.port)
    }
}

#[derive(Debug, Default)]
struct Counted {
    sent: AtomicU64,
    left: AtomicU64,
    has_memory: AtomicBool,
}

/// How far the disks are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskFigures {
    pub sent: u64,
    /// As far as that is known.
    pub left: u64,
    /// Memory goes as well: before, what QEMU says of it is about an earlier transfer.
    pub has_memory: bool,
}

type Answer = oneshot::Sender<()>;

/// A guest that leaves with its disks. The last one dropped calls it off.
#[derive(Clone)]
pub struct Direct(Arc<Inner>);

struct Inner {
    stage: watch::Receiver<Stage>,
    calls: mpsc::Sender<Answer>,
    counted: Arc<Counted>,
}

impl Direct {
    /// [`Stage::Over`]: QEMU goes on by itself, and its own word counts.
    #[must_use]
    pub fn stage(&self) -> Stage {
        self.0.stage.borrow().clone()
    }

    #[must_use]
    pub fn figures(&self) -> DiskFigures {
        let Counted { sent, left, has_memory } = &*self.0.counted;
        DiskFigures {
            sent: sent.load(Ordering::Relaxed),
            left: left.load(Ordering::Relaxed),
            has_memory: has_memory.load(Ordering::Relaxed),
        }
    }

    /// Calls it off; refused once the guest stands still and its mirrors are ending.
    pub async fn abort(&self) -> Result<(), GuestError> {
        let over = || GuestError::Refused("its disks are there already".to_owned());
        let (answer, answered) = oneshot::channel();
        self.0.calls.send(answer).await.map_err(|_| over())?;
        answered.await.map_err(|_| over())
    }
}

impl Carriers {
    /// Begins to send a guest away; answers at once.
    pub fn part_with(&self, parting: Parting) {
        let (stage, staged) = watch::channel(Stage::Going);
        let (calls, called) = mpsc::channel(4);
        let counted = Arc::<Counted>::default();
        let former = self.part(parting.vm, &staged);
        let direct = Direct(Arc::new(Inner { stage: staged, calls, counted: Arc::clone(&counted) }));
        lock(&self.0.direct).insert(parting.vm, direct);
        self.0.scope.spawn(async move {
            super::outgoing::parted(former).await;
            let vm = parting.vm;
            let happened = parting.happened.clone();
            let over = run(parting, counted, called).await;
            tracing::debug!(%vm, ?over, "a guest's disks are on no way any more");
            stage.send_replace(over);
            let _ = happened.send(Happened::Changed);
        });
    }
}

async fn run(parting: Parting, counted: Arc<Counted>, mut called: mpsc::Receiver<Answer>) -> Stage {
    let (vm, client, pid, at) = (parting.vm, parting.client.clone(), parting.pid, parting.disks_at());
    let Err(error) = Trip::new(parting, counted).go(&mut called).await else { return Stage::Over };
    let why = error.explain();
    tracing::warn!(%vm, %why, "a guest does not leave with its disks");
    // First of all nothing waits for the target any more, QEMU itself included.
    if let Err(error) = cut::connections(pid, at) {
        tracing::debug!(%vm, %error, "the lines of its mirrors are not cut");
    }
    if let Err(error) = call_off(&client).await {
        tracing::warn!(%vm, error = error.explain(), "something of the transfer is left");
    }
    Stage::Failed { why }
}

/// The guest runs on, and nothing is left of the transfer.
async fn call_off(client: &Client) -> Result<(), Error> {
    // One that has not begun, or has ended by itself, has nothing to cancel.
    let _ = client.migrate_cancel().await;
    let begun = Instant::now();
    while is_under_way(&client.query_migrate().await?.status) && begun.elapsed() < CANCEL_WITHIN {
        tokio::time::sleep(CANCEL_POLL).await;
    }
    mirrors::tidy(client).await
}

fn is_under_way(status: &Status) -> bool {
    !status.is_final() && *status != Status::None
}

/// Gives up what an earlier agent began and nobody can bring to its end: mirrors, or a guest that stands still until somebody
/// says that they have ended.
pub async fn end_orphan(client: &Client) -> Result<(), Error> {
    let is_waiting = client.query_migrate().await?.status == Status::PreSwitchover;
    if is_waiting || mirrors::is_mirroring(client).await? {
        tracing::warn!("a transfer with disks has lost its agent: the guest stays");
        call_off(client).await?;
    }
    Ok(())
}

/// One way, from the first byte of the disks until QEMU goes on by itself.
struct Trip {
    parting: Parting,
    events: Events,
    jobs: Jobs,
    counted: Arc<Counted>,
    /// The last time that QEMU answered.
    answered: Instant,
    /// What the mirrors had done, and since when.
    moved: (u64, Instant),
}

impl Trip {
    fn new(parting: Parting, counted: Arc<Counted>) -> Self {
        let (events, jobs, now) = (parting.client.events(), Jobs::none(&parting.client), Instant::now());
        Self { parting, events, jobs, counted, answered: now, moved: (0, now) }
    }

    async fn go(mut self, called: &mut mpsc::Receiver<Answer>) -> Result<(), Error> {
        mirrors::tidy(&self.parting.client).await?;
        self.begin().await?;
        while !self.are_ready().await? {
            self.wait(called).await?;
        }
        let is_blocking = self.jobs.make_write_blocking().await?;
        tracing::info!(vm = %self.parting.vm, is_blocking, "a guest's disks are there, but for what it writes");
        let to = Address::Tcp { ip: self.parting.to.ip(), port: self.parting.to.port() };
        self.parting.client.migrate(&to).await?;
        self.counted.has_memory.store(true, Ordering::Relaxed);
        while !self.stands_still().await? {
            self.wait(called).await?;
        }
        self.jobs.end().await?;
        match self.parting.client.migrate_continue().await {
            Err(error @ client::Error::Refused { .. }) => Err(error.into()),
            // It may have heard: from here on QEMU itself says what became of it.
            Err(error) => {
                tracing::warn!(vm = %self.parting.vm, %error, "whether the guest was let go is not known");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    async fn begin(&mut self) -> Result<(), Error> {
        let at = self.parting.disks_at();
        let reached = tokio::time::timeout(REACH_WITHIN, tokio::net::TcpStream::connect(at)).await;
        reached
            .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
            .map_err(Error::io("reach the target's disks"))?;
        // An old QEMU could not be told later that writes are to wait, and might never get in step.
        let is_changeable = self.parting.schema.has_command("block-job-change");
        let copy_mode = if is_changeable { CopyMode::Background } else { CopyMode::WriteBlocking };
        for index in self.parting.disks.clone() {
            let node = NbdNode {
                node: away(index),
                at: NbdAddress::Tcp { at, tls_creds: self.parting.tls_creds.clone() },
                export: self.parting.line.export(index),
                reconnect_delay: Duration::ZERO,
                open_timeout: OPEN_WITHIN,
            };
            let is_blank = self.parting.line.blank.contains(&index);
            let depth = if is_blank { Depth::Top } else { Depth::Full };
            self.jobs.begin(index, node, Shape { depth, copy_mode, buffer: None, granularity: None }).await?;
        }
        Ok(())
    }

    /// Until something may have changed, or it is called off.
    async fn wait(&mut self, called: &mut mpsc::Receiver<Answer>) -> Result<(), Error> {
        let until = Instant::now() + LOOK_EVERY;
        loop {
            tokio::select! {
                call = called.recv() => {
                    if let Some(answer) = call {
                        let _ = answer.send(());
                    }
                    return Err(Error::Cancelled);
                }
                heard = self.events.next() => match heard {
                    Some(heard) if is_news(&heard) => return Ok(()),
                    Some(_) => {}
                    None => return Err(client::Error::Closed.into()),
                },
                () = tokio::time::sleep_until(until) => return Ok(()),
            }
        }
    }

    /// All was copied once.
    async fn are_ready(&mut self) -> Result<bool, Error> {
        let jobs = self.look().await?;
        Ok(jobs.is_some_and(|jobs| jobs.iter().all(|job| job.is_ready)))
    }

    /// The guest's memory is all but there, and QEMU waits for the mirrors to end.
    async fn stands_still(&mut self) -> Result<bool, Error> {
        let told = self.parting.client.query_migrate().await;
        let Some(told) = self.answer(told.map_err(Error::from))? else { return Ok(false) };
        match told.status {
            Status::PreSwitchover => Ok(true),
            status if status.is_final() => {
                let why = told.error_desc.unwrap_or_else(|| format!("it ended as {status}"));
                Err(Error::Memory { why })
            }
            // One that ended with an error is heard of here.
            _ => self.look().await.map(|_| false),
        }
    }

    /// `None`: QEMU does not answer.
    async fn look(&mut self) -> Result<Option<Vec<BlockJob>>, Error> {
        let looked = self.jobs.look().await;
        let Some(jobs) = self.answer(looked)? else { return Ok(None) };
        let sum = |of: fn(&BlockJob) -> u64| jobs.iter().map(of).sum::<u64>();
        let (sent, left) = (sum(|job| job.offset), sum(|job| job.len.saturating_sub(job.offset)));
        self.counted.sent.store(sent, Ordering::Relaxed);
        self.counted.left.store(left, Ordering::Relaxed);
        let now = Instant::now();
        let is_behind = left > 0 || !jobs.iter().all(|job| job.is_ready);
        if sent != self.moved.0 || !is_behind {
            self.moved = (sent, now);
        }
        if now - self.moved.1 >= STALL {
            return Err(Error::Mirror { why: format!("the target's disk took nothing for {STALL:?}") });
        }
        Ok(Some(jobs))
    }

    fn answer<T>(&mut self, answer: Result<T, Error>) -> Result<Option<T>, Error> {
        match answer {
            Err(Error::Qemu(error @ client::Error::TimedOut { .. })) => {
                let is_mute = self.answered.elapsed() >= MUTE;
                if is_mute { Err(error.into()) } else { Ok(None) }
            }
            answer => {
                self.answered = Instant::now();
                answer.map(Some)
            }
        }
    }
}

fn is_news(heard: &Heard) -> bool {
    let Heard::Event(stamped) = heard else { return true };
    matches!(
        stamped.event,
        Event::BlockJobReady { .. }
            | Event::BlockJobCompleted { .. }
            | Event::BlockJobError { .. }
            | Event::Migration { .. }
    )
}
