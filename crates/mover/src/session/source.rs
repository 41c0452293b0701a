//! Where memory comes from: reads QEMU's stream, and holds its end until it is granted.

mod pump;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::message::Message;
use super::return_path::ReturnPath;
use super::target::OFFERED_MAX;
use super::{Error, Left, Outcome, Progress, Refused, Shared, take_leave};
use crate::codec::encoder::Held;
use crate::codec::level::Meter;
use crate::codec::{Encoder, Keeper, Settings};
use crate::frame::Kind;
use crate::link::Link;
use pump::Pump;

/// What the caller must know, in order.
#[derive(Debug)]
pub enum SourceEvent {
    /// The target is ready and memory flows; whether a checkpoint helps.
    Opened { has_checkpoint: bool },
    /// Everything is on its way but the end. Said again if the end turns out to be another one, which cannot be after
    /// a certain one: without certainty, look whether QEMU says `device` before granting.
    TailHeld(Held),
    /// The target QEMU's last word; 0 is success.
    Loaded { code: u32 },
    /// Something failed after the grant. QEMU stands still until [`Source::commit`] or [`Source::reclaim`].
    InDoubt(Error),
    /// Nothing comes after this.
    Ended(Outcome),
}

/// What a session starts with.
pub struct Options {
    pub settings: Settings,
    pub checkpoint: Option<Shared>,
    pub keeper: Option<Box<dyn Keeper>>,
}

enum Call {
    Grant,
    Commit,
    Abort,
    Reclaim,
}

type Answer = oneshot::Sender<Result<(), Refused>>;

/// The source's end of a session. Dropping it closes QEMU's socket.
#[derive(Debug)]
pub struct Source {
    calls: mpsc::Sender<(Call, Answer)>,
    pub events: mpsc::UnboundedReceiver<SourceEvent>,
    progress: watch::Receiver<Progress>,
    _stop: DropGuard,
}

impl Source {
    /// `qemu` is the socket that the source QEMU migrates to.
    pub fn start(qemu: UnixStream, link: Link, options: Options) -> Result<Self, Error> {
        let encoder = Encoder::new(&options.settings).map_err(Error::Encode)?;
        let (calls, called) = mpsc::channel(4);
        let (events, heard) = mpsc::unbounded_channel();
        let (progress, watched) = watch::channel(Progress::default());
        let stop = CancellationToken::new();
        let run = run(qemu, link, encoder, options, Ports { called, events, progress });
        tokio::spawn(stop.clone().run_until_cancelled_owned(run));
        Ok(Self { calls, events: heard, progress: watched, _stop: stop.drop_guard() })
    }

    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// Lets the end of the stream go. Refused unless it is held.
    pub async fn grant(&self) -> Result<(), Refused> {
        self.call(Call::Grant).await
    }

    /// The target owns the guest: the source QEMU may complete. Refused before the target loaded everything.
    pub async fn commit(&self) -> Result<(), Refused> {
        self.call(Call::Commit).await
    }

    /// Gives up; the source QEMU keeps its guest. Refused after a grant.
    pub async fn abort(&self) -> Result<(), Refused> {
        self.call(Call::Abort).await
    }

    /// After a grant, the source owns the guest again. The caller must know that the target never will.
    pub async fn reclaim(&self) -> Result<(), Refused> {
        self.call(Call::Reclaim).await
    }

    async fn call(&self, call: Call) -> Result<(), Refused> {
        let (answer, answered) = oneshot::channel();
        self.calls.send((call, answer)).await.map_err(|_| Refused::Ended)?;
        answered.await.unwrap_or(Err(Refused::Ended))
    }
}

struct Ports {
    called: mpsc::Receiver<(Call, Answer)>,
    events: mpsc::UnboundedSender<SourceEvent>,
    progress: watch::Sender<Progress>,
}

async fn run(qemu: UnixStream, mut link: Link, encoder: Encoder, options: Options, mut ports: Ports) {
    let outcome = drive(qemu, &mut link, encoder, options, &mut ports).await.unwrap_or_else(Outcome::Failed);
    if let Outcome::Failed(error) = &outcome {
        tracing::warn!(%error, "a memory stream failed at its source");
    }
    let left = Left::from(&outcome);
    let first = matches!(outcome, Outcome::Committed).then_some(Message::Committed);
    let _ = ports.events.send(SourceEvent::Ended(outcome));
    // Calls from now on are answered: it has ended.
    drop(ports);
    take_leave(link, first, left);
}

/// How far the commit is.
#[derive(Default)]
struct Commit {
    is_held: watch::Sender<bool>,
    is_granted: bool,
    loaded: Option<u32>,
}

async fn drive(
    qemu: UnixStream,
    link: &mut Link,
    mut encoder: Encoder,
    options: Options,
    ports: &mut Ports,
) -> Result<Outcome, Error> {
    if !open(link, &mut encoder, options, ports).await? {
        return Ok(Outcome::Aborted);
    }
    let (reader, writer) = qemu.into_split();
    let commit = Commit::default();
    let is_held = commit.is_held.clone();
    let (granted, committed) = (Notify::new(), Notify::new());
    let pump = Pump {
        encoder,
        reader,
        sender: link.sender.clone(),
        events: ports.events.clone(),
        progress: ports.progress.clone(),
        is_held,
        granted: &granted,
        committed: &committed,
        meter: Meter::new(),
    };
    let mut side =
        Side { writer, path: ReturnPath::default(), commit, committed: &committed, granted: &granted };
    let mut pumping = std::pin::pin!(pump.run());
    let decided = match side.exchange(link, ports, pumping.as_mut()).await {
        // What the target does now nobody here knows. The socket stays open until somebody does.
        Err(error) if side.commit.is_granted => {
            tracing::warn!(%error, "a granted stream is in doubt");
            let _ = ports.events.send(SourceEvent::InDoubt(error));
            return side.wait_for_decision(ports).await;
        }
        decided => decided?,
    };
    if matches!(decided, Outcome::Committed) {
        let mut encoder = pumping.await?;
        let _ = tokio::task::spawn_blocking(move || encoder.memory().seal()).await;
    }
    Ok(decided)
}

/// QEMU's socket and what was said about it.
struct Side<'a> {
    writer: OwnedWriteHalf,
    path: ReturnPath,
    commit: Commit,
    granted: &'a Notify,
    committed: &'a Notify,
}

impl Side<'_> {
    /// Until a call decides how it ends, or something fails.
    async fn exchange<P>(
        &mut self,
        link: &mut Link,
        ports: &mut Ports,
        mut pumping: P,
    ) -> Result<Outcome, Error>
    where
        P: Future<Output = Result<Encoder, Error>> + Unpin,
    {
        loop {
            tokio::select! {
                call = ports.called.recv() => {
                    if let Some(outcome) = self.on_call(call).await? {
                        return Ok(outcome);
                    }
                }
                frame = link.urgent.recv() => {
                    let message = Message::parse(&frame?.payload).ok_or(Error::OutOfPlace)?;
                    self.on_message(message, &ports.events).await?;
                }
                pumped = &mut pumping => {
                    // Without a commit it ends only by failing.
                    pumped?;
                }
            }
        }
    }

    async fn wait_for_decision(&mut self, ports: &mut Ports) -> Result<Outcome, Error> {
        loop {
            let call = ports.called.recv().await;
            if let Some(outcome) = self.on_call(call).await? {
                return Ok(outcome);
            }
        }
    }

    async fn on_call(&mut self, call: Option<(Call, Answer)>) -> Result<Option<Outcome>, Error> {
        let Some((call, answer)) = call else { return Ok(Some(Outcome::Aborted)) };
        let allowed = self.commit.check(&call);
        let _ = answer.send(allowed);
        if allowed.is_err() {
            return Ok(None);
        }
        Ok(match call {
            Call::Grant => {
                self.commit.is_granted = true;
                self.granted.notify_one();
                None
            }
            Call::Commit => {
                // First, so that QEMU's closing the socket is not taken for a failure.
                self.committed.notify_one();
                if let Err(error) = self.writer.write_all(&self.path.take_rest()).await {
                    // A QEMU that died meanwhile changes nothing: the guest is the target's.
                    tracing::warn!(%error, "the source QEMU did not hear that it is done");
                }
                Some(Outcome::Committed)
            }
            Call::Abort => Some(Outcome::Aborted),
            Call::Reclaim => Some(Outcome::Reclaimed),
        })
    }

    async fn on_message(
        &mut self,
        message: Message,
        events: &mpsc::UnboundedSender<SourceEvent>,
    ) -> Result<(), Error> {
        match message {
            // The last word stays here: QEMU gets it by a commit.
            Message::ReturnPath(bytes) => {
                self.writer.write_all(&self.path.push(&bytes)).await.map_err(Error::Qemu)
            }
            Message::Loaded { code } => {
                self.commit.loaded = Some(code);
                let _ = events.send(SourceEvent::Loaded { code });
                Ok(())
            }
            Message::Abort { reason } => Err(Error::Peer(reason)),
            _ => Err(Error::OutOfPlace),
        }
    }
}

impl Commit {
    fn check(&self, call: &Call) -> Result<(), Refused> {
        match (call, self.is_granted, self.loaded) {
            (Call::Grant | Call::Abort, true, _) => Err(Refused::PastGrant),
            (Call::Commit | Call::Reclaim, false, _) => Err(Refused::NotGranted),
            (Call::Grant, false, _) if !*self.is_held.borrow() => Err(Refused::NothingHeld),
            (Call::Commit, true, loaded) if loaded != Some(0) => Err(Refused::NotLoaded),
            _ => Ok(()),
        }
    }
}

/// Agrees with the target on what both have; `false` if the caller gave up meanwhile.
async fn open(
    link: &mut Link,
    encoder: &mut Encoder,
    options: Options,
    ports: &mut Ports,
) -> Result<bool, Error> {
    let id = options.checkpoint.as_ref().map(|shared| shared.id);
    link.sender.send(Kind::Message, Message::open(&options.settings, id).payload()).await?;
    let mut offered = 0;
    loop {
        let frame = tokio::select! {
            frame = link.urgent.recv() => frame?,
            call = ports.called.recv() => match call {
                Some((Call::Abort, answer)) => {
                    let _ = answer.send(Ok(()));
                    return Ok(false);
                }
                Some((call, answer)) => {
                    let _ = answer.send(Commit::default().check(&call));
                    continue;
                }
                None => return Ok(false),
            },
        };
        match Message::parse(&frame.payload).ok_or(Error::OutOfPlace)? {
            Message::Offer(hashes) => {
                offered += hashes.len();
                if offered > OFFERED_MAX {
                    return Err(Error::OutOfPlace);
                }
                encoder.on_offered(hashes);
            }
            Message::Accept { has_checkpoint } => {
                let shared = options.checkpoint.filter(|_| has_checkpoint);
                shared.into_iter().for_each(|shared| encoder.memory().share(shared.pages));
                options.keeper.into_iter().for_each(|keeper| encoder.memory().keep_in(keeper));
                let _ = ports.events.send(SourceEvent::Opened { has_checkpoint });
                return Ok(true);
            }
            Message::Abort { reason } => return Err(Error::Peer(reason)),
            _ => return Err(Error::OutOfPlace),
        }
    }
}
