//! Where disks come from: sockets for mirrors, the journal behind them, and the barrier.

/// From the journal to the link.
mod pump;
/// What was taken and is not at the target yet.
mod queue;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::chunk::Digest;
use super::intake::Intake;
use super::journal::Limits;
use super::message::Message;
use super::nbd::server::{self, Socket};
use super::{Error, JOURNAL_MIN, Left, Outcome, Progress, Volume, check_volumes, take_leave};
use crate::frame::Kind;
use crate::hash::Key;
use crate::link::{Ended, Link};
use pump::{Ends, Heard, Pump, Waiter};

/// What the caller must know, in order.
#[derive(Debug)]
pub enum SourceEvent {
    /// The target has room for all volumes, and takes them.
    Opened,
    /// Nothing comes after this. The sockets are closed: mirrors that still run fail.
    Ended(Outcome),
}

/// Why a call cannot be done now. It changed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("something was written after the last barrier, or there was none")]
    NotSettled,
    #[error("the session has ended")]
    Ended,
}

/// What a session starts with.
#[derive(Debug, Clone)]
pub struct Options {
    pub volumes: Vec<Volume>,
    /// The same on both sides, and of this migration only.
    pub key: Key,
    pub journal: Limits,
}

/// Where a mirror of one volume is to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MirrorTo {
    /// Owned by this process and closed to all others; a QEMU of another user needs it handed over.
    pub socket: PathBuf,
    pub export: &'static str,
}

enum Call {
    Finish(oneshot::Sender<Result<(), Refused>>),
    Abort,
}

/// The source's end of a session. Dropping it before its end closes the sockets, and the target is told nothing.
#[derive(Debug)]
pub struct Source {
    pub events: mpsc::UnboundedReceiver<SourceEvent>,
    mirrors: Vec<MirrorTo>,
    calls: mpsc::UnboundedSender<Call>,
    barriers: mpsc::UnboundedSender<Waiter>,
    progress: watch::Receiver<Progress>,
    _stop: DropGuard,
}

/// A session that has just ended takes its sockets' names away when its tasks are dropped, which may be after the next one
/// of the same guest has made its own.
static SESSIONS: AtomicU32 = AtomicU32::new(0);

/// Whatever fills the journal: it ends by failing, or not at all.
pub(super) type Feeds = JoinSet<Error>;

impl Source {
    /// Makes one socket for each volume in `folder`: sockets that a process left there when it died are replaced, those
    /// of another session of this process are not. Mirrors may write at once, whether the target is there or not.
    pub fn start(folder: &Path, link: Link, options: Options) -> Result<Self, Error> {
        let intake = prepare(&options)?;
        let (mut feeds, mut mirrors) = (Feeds::new(), Vec::new());
        let session = SESSIONS.fetch_add(1, Ordering::Relaxed);
        for (index, volume) in (0_u16..).zip(options.volumes.iter().copied()) {
            let path = folder.join(format!("volume-{session}-{index}.nbd"));
            let socket = Socket::bind(&path).map_err(|source| Error::Socket { index, source })?;
            mirrors.push(MirrorTo { socket: path, export: server::EXPORT });
            let intake = Arc::clone(&intake);
            feeds.spawn(async move { server::serve(&socket, index, volume, &intake).await });
        }
        Self::over(link, options, intake, (feeds, mirrors))
    }

    pub(super) fn over(
        link: Link,
        options: Options,
        intake: Arc<Intake>,
        (feeds, mirrors): (Feeds, Vec<MirrorTo>),
    ) -> Result<Self, Error> {
        let progress = intake.progress().subscribe();
        let (calls, called) = mpsc::unbounded_channel();
        let (events, told) = mpsc::unbounded_channel();
        let (barriers, asked) = mpsc::unbounded_channel();
        let (hears, heard) = mpsc::channel(pump::HEARD_MAX);
        let is_settled = watch::channel(false).0;
        let ends = Ends {
            intake,
            sender: link.sender.clone(),
            line: link.progress(),
            heard,
            barriers: asked,
            is_settled: is_settled.clone(),
            // Without mirrors there is no guest.
            asks_always: mirrors.is_empty(),
        };
        let pump = Pump::new(ends, options.volumes.len(), &options.key)?;
        let session = Session { link, feeds, called, hears, is_settled, events };
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(session.run(options.volumes, pump)));
        Ok(Self { events: told, mirrors, calls, barriers, progress, _stop: stop.drop_guard() })
    }

    /// In the order of the volumes.
    #[must_use]
    pub fn mirrors(&self) -> &[MirrorTo] {
        &self.mirrors
    }

    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// Returns when everything that was acknowledged to a mirror is on the target's disks, and both sides agree on
    /// what that was. The mirrors should have ended before: what they write after the call may be in or not. Giving
    /// up to wait changes nothing.
    pub async fn barrier(&self) -> Result<Digest, Refused> {
        let (waiter, crossed) = oneshot::channel();
        self.barriers.send(waiter).map_err(|_| Refused::Ended)?;
        crossed.await.map_err(|_| Refused::Ended)
    }

    /// The disks belong to the target: the session ends on both sides. Refused unless a barrier was the last thing.
    pub async fn finish(&self) -> Result<(), Refused> {
        let (answer, answered) = oneshot::channel();
        self.calls.send(Call::Finish(answer)).map_err(|_| Refused::Ended)?;
        answered.await.unwrap_or(Err(Refused::Ended))
    }

    /// Gives up, and tells the target.
    pub fn abort(&self) {
        // A session that has ended has nothing to give up.
        let _ = self.calls.send(Call::Abort);
    }
}

/// The journal for these volumes.
pub(super) fn prepare(options: &Options) -> Result<Arc<Intake>, Error> {
    check_volumes(&options.volumes)?;
    if options.journal.memory_bytes < JOURNAL_MIN {
        return Err(Error::Room { bytes: options.journal.memory_bytes });
    }
    let intake = Intake::new(&options.volumes, &options.journal).map_err(Error::Journal)?;
    Ok(Arc::new(intake))
}

struct Session {
    link: Link,
    feeds: Feeds,
    called: mpsc::UnboundedReceiver<Call>,
    hears: mpsc::Sender<Heard>,
    is_settled: watch::Sender<bool>,
    events: mpsc::UnboundedSender<SourceEvent>,
}

impl Session {
    async fn run(mut self, volumes: Vec<Volume>, pump: Pump) {
        let outcome = self.drive(&volumes, pump).await.unwrap_or_else(Outcome::Failed);
        if let Outcome::Failed(error) = &outcome {
            tracing::warn!(%error, "volumes failed at their source");
        }
        // No mirror may believe any more that what it writes goes anywhere.
        self.feeds.shutdown().await;
        let left = Left::from(&outcome);
        let _ = self.events.send(SourceEvent::Ended(outcome));
        // Calls from now on are answered: it has ended.
        drop(self.called);
        take_leave(self.link, left);
    }

    async fn drive(&mut self, volumes: &[Volume], pump: Pump) -> Result<Outcome, Error> {
        let sizes = volumes.iter().map(|volume| volume.bytes).collect();
        self.link.sender.send(Kind::Message, Message::Open { volumes: sizes }.payload()).await?;
        let mut pumping = std::pin::pin!(pump.run());
        let mut is_open = false;
        loop {
            tokio::select! {
                call = self.called.recv() => match call {
                    Some(Call::Abort) | None => return Ok(Outcome::Aborted),
                    Some(Call::Finish(answer)) => {
                        let is_settled = *self.is_settled.borrow();
                        let _ = answer.send(if is_settled { Ok(()) } else { Err(Refused::NotSettled) });
                        if is_settled {
                            return Ok(Outcome::Finished);
                        }
                    }
                },
                frame = self.link.urgent.recv() => match frame {
                    Ok(frame) => self.on_message(Message::parse(&frame.payload), &mut is_open)?,
                    // The target has all it wanted.
                    Err(Ended::Finished) if *self.is_settled.borrow() => return Ok(Outcome::Finished),
                    Err(ended) => return Err(ended.into()),
                },
                error = &mut pumping, if is_open => return Err(error),
                Some(failed) = self.feeds.join_next() => match failed {
                    Ok(error) => return Err(error),
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                },
            }
        }
    }

    fn on_message(&self, message: Option<Message>, is_open: &mut bool) -> Result<(), Error> {
        let heard = match message {
            Some(Message::Accept) if !*is_open => {
                *is_open = true;
                let _ = self.events.send(SourceEvent::Opened);
                return Ok(());
            }
            Some(Message::Answer { had }) => Heard::Answer(had),
            Some(Message::Applied { epoch }) => Heard::Applied(epoch),
            Some(Message::Flushed { barrier, digest }) => Heard::Flushed(barrier, digest),
            Some(Message::Abort { why, reason }) => return Err(Error::Peer { why, reason }),
            Some(Message::Open { .. } | Message::Accept) => return Err(Error::OutOfPlace),
            None => return Err(Error::Malformed("a message")),
        };
        // No target that only answers what it was asked has so much to say.
        self.hears.try_send(heard).map_err(|_| Error::OutOfPlace)
    }
}
