//! Where memory comes from: reads QEMU's stream, and holds its end until it is granted.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::message::{self, Message};
use super::return_path::ReturnPath;
use super::{End, Error, Outcome, Progress, Refused, Shared};
use crate::codec::encoder::Held;
use crate::codec::level::{self, Load};
use crate::codec::{Batch, Encoder, Keeper, Settings};
use crate::frame::Kind;
use crate::link::{Link, Sender};

/// One read: QEMU writes pages in pieces of this order.
const READ_BYTES: usize = 256 << 10;
/// QEMU paused between two writes: what is complete goes.
const PAUSE: Duration = Duration::from_millis(4);
/// What seems to be half a record is let go, too.
const LONG_PAUSE: Duration = Duration::from_millis(300);
/// A stream whose end cannot be recognised is taken to have ended. Longer than any pause of QEMU's rate limit.
const SILENCE: Duration = Duration::from_millis(1500);
const LEVEL_EVERY: Duration = Duration::from_millis(500);

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
    let events = ports.events.clone();
    let sender = link.sender.clone();
    let outcome = drive(qemu, &mut link, encoder, options, &mut ports).await.unwrap_or_else(Outcome::Failed);
    if let Outcome::Failed(error) = &outcome {
        tracing::warn!(%error, "a memory stream failed at its source");
    }
    let reason = match &outcome {
        Outcome::Committed => None,
        Outcome::Failed(Error::Peer(_) | Error::Link(_)) => None,
        Outcome::Failed(error) => Some(error.to_string()),
        Outcome::Aborted | Outcome::Reclaimed => Some("aborted at the source".to_owned()),
    };
    let goodbye = match reason {
        Some(reason) => Message::Abort { reason },
        None => Message::Committed,
    };
    let is_ours = !matches!(outcome, Outcome::Failed(Error::Peer(_) | Error::Link(_)));
    // The caller is told first: the line may be down for long, and what is said to the target is a courtesy.
    let _ = events.send(SourceEvent::Ended(outcome));
    if is_ours && sender.send(Kind::Message, goodbye.payload()).await.is_ok() {
        let _ = sender.finish().await;
    }
}

/// What calls and the pump know of each other.
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
    let (reader, mut writer) = qemu.into_split();
    let mut commit = Commit::default();
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
    let mut pumping = std::pin::pin!(pump.run());
    let mut path = ReturnPath::default();
    loop {
        tokio::select! {
            call = ports.called.recv() => {
                let Some((call, answer)) = call else { return Ok(Outcome::Aborted) };
                let allowed = commit.check(&call);
                let _ = answer.send(allowed);
                match (allowed, call) {
                    (Err(_), _) => {}
                    (Ok(()), Call::Grant) => {
                        commit.is_granted = true;
                        granted.notify_one();
                    }
                    (Ok(()), Call::Commit) => {
                        writer.write_all(&path.take_rest()).await.map_err(Error::Qemu)?;
                        committed.notify_one();
                        let mut encoder = pumping.await?;
                        let seal = move || encoder.memory().seal();
                        let _ = tokio::task::spawn_blocking(seal).await;
                        return Ok(Outcome::Committed);
                    }
                    (Ok(()), Call::Abort) => return Ok(Outcome::Aborted),
                    (Ok(()), Call::Reclaim) => return Ok(Outcome::Reclaimed),
                }
            }
            frame = link.urgent.recv() => {
                let message = Message::parse(&frame?.payload).ok_or(Error::OutOfPlace)?;
                on_message(message, &mut path, &mut writer, &mut commit, &ports.events).await?;
            }
            pumped = &mut pumping => {
                // Without a commit it ends only by failing.
                pumped?;
            }
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

async fn on_message(
    message: Message,
    path: &mut ReturnPath,
    writer: &mut OwnedWriteHalf,
    commit: &mut Commit,
    events: &mpsc::UnboundedSender<SourceEvent>,
) -> Result<(), Error> {
    match message {
        // The last word stays here: QEMU gets it by a commit.
        Message::ReturnPath(bytes) => writer.write_all(&path.push(&bytes)).await.map_err(Error::Qemu),
        Message::Loaded { code } => {
            commit.loaded = Some(code);
            let _ = events.send(SourceEvent::Loaded { code });
            Ok(())
        }
        Message::Abort { reason } => Err(Error::Peer(reason)),
        _ => Err(Error::OutOfPlace),
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
    loop {
        let frame = tokio::select! {
            frame = link.urgent.recv() => frame?,
            call = ports.called.recv() => match call {
                Some((Call::Abort, answer)) => {
                    let _ = answer.send(Ok(()));
                    return Ok(false);
                }
                Some((_, answer)) => {
                    let _ = answer.send(Err(Refused::NothingHeld));
                    continue;
                }
                None => return Ok(false),
            },
        };
        match Message::parse(&frame.payload).ok_or(Error::OutOfPlace)? {
            Message::Offer(hashes) => encoder.on_offered(hashes),
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

/// From QEMU's socket to the link.
struct Pump<'a> {
    encoder: Encoder,
    reader: OwnedReadHalf,
    sender: Sender,
    events: mpsc::UnboundedSender<SourceEvent>,
    progress: watch::Sender<Progress>,
    is_held: watch::Sender<bool>,
    granted: &'a Notify,
    committed: &'a Notify,
    meter: Meter,
}

impl Pump<'_> {
    /// Gives the encoder back after a commit.
    async fn run(mut self) -> Result<Encoder, Error> {
        self.stream().await?;
        Ok(self.encoder)
    }

    async fn stream(&mut self) -> Result<(), Error> {
        let mut buffer = vec![0; READ_BYTES];
        let mut told = None;
        let mut silent_since: Option<Instant> = None;
        loop {
            let wait = match silent_since.map(|since| since.elapsed()) {
                None => PAUSE,
                Some(silent) if silent < LONG_PAUSE => LONG_PAUSE - silent,
                Some(silent) if silent < SILENCE => SILENCE - silent,
                Some(_) => SILENCE,
            };
            let began = Instant::now();
            let read = tokio::select! {
                biased;
                () = self.granted.notified() => return self.grant().await,
                read = self.reader.read(&mut buffer) => Some(read.map_err(Error::Qemu)?),
                () = tokio::time::sleep(wait) => None,
            };
            self.meter.load.idle += began.elapsed();
            match read {
                Some(0) => return Err(Error::QemuClosed),
                Some(length) => {
                    silent_since = None;
                    self.encode(|encoder, batches| encoder.push(&buffer[..length], batches)).await?;
                }
                None => {
                    let silent = silent_since.get_or_insert(began).elapsed();
                    self.encode(|encoder, batches| match silent >= LONG_PAUSE {
                        true => encoder.flush_incomplete(batches),
                        false => encoder.flush(batches),
                    })
                    .await?;
                }
            }
            self.tell_held(&mut told, silent_since.is_some_and(|since| since.elapsed() >= SILENCE)).await?;
        }
    }

    async fn tell_held(&mut self, told: &mut Option<Held>, is_silent: bool) -> Result<(), Error> {
        let held = self.encoder.held().filter(|held| held.is_certain || is_silent);
        if held.is_some() && held != *told {
            // All before the end goes ahead of the word about it.
            self.encode(|encoder, batches| encoder.flush_incomplete(batches)).await?;
        }
        if held == *told {
            return Ok(());
        }
        *told = held;
        self.is_held.send_replace(held.is_some());
        held.into_iter().for_each(|held| drop(self.events.send(SourceEvent::TailHeld(held))));
        Ok(())
    }

    async fn encode(
        &mut self,
        work: impl FnOnce(&mut Encoder, &mut Vec<Batch>) -> std::io::Result<()>,
    ) -> Result<(), Error> {
        let mut batches = Vec::new();
        let began = Instant::now();
        work(&mut self.encoder, &mut batches).map_err(Error::Encode)?;
        let encoded = Instant::now();
        self.meter.load.busy += encoded - began;
        for batch in batches {
            self.sender.send(Kind::Batch, batch.payload).await?;
        }
        self.meter.load.blocked += encoded.elapsed();
        if let Some(level) = self.meter.next_level() {
            self.encoder.set_level(level);
        }
        self.progress.send_replace(Progress { counters: self.encoder.counters(), level: self.meter.level });
        Ok(())
    }

    /// Lets the end go, then watches until the commit that nothing more comes.
    async fn grant(&mut self) -> Result<(), Error> {
        let held = self.encoder.held().ok_or(Error::OutOfPlace)?;
        let mut batches = Vec::new();
        self.encoder.release(&mut batches).map_err(Error::Encode)?;
        let last = batches.pop().ok_or(Error::OutOfPlace)?;
        for batch in batches {
            self.sender.send(Kind::Batch, batch.payload).await?;
        }
        let end = End { hash: held.hash, length: held.length };
        let granted: Bytes = message::grant(end, &last.payload);
        self.sender.send(Kind::Grant, granted).await?;
        self.progress.send_replace(Progress { counters: self.encoder.counters(), level: self.meter.level });
        let mut more = [0];
        let read = tokio::select! {
            () = self.committed.notified() => return Ok(()),
            read = self.reader.read(&mut more) => read,
        };
        match read.map_err(Error::Qemu)? {
            0 => Err(Error::QemuClosed),
            _ => Err(Error::MoreAfterGrant),
        }
    }
}

/// What the pump spends its time on, and the level that follows from it.
struct Meter {
    since: Instant,
    load: Load,
    level: i32,
}

impl Meter {
    fn new() -> Self {
        let load = Load { busy: Duration::ZERO, blocked: Duration::ZERO, idle: Duration::ZERO };
        Self { since: Instant::now(), load, level: level::LEVEL_START }
    }

    /// A level that differs from the one before.
    fn next_level(&mut self) -> Option<i32> {
        if self.since.elapsed() < LEVEL_EVERY {
            return None;
        }
        let chosen = level::choose(self.level, self.load);
        let changed = (chosen != self.level).then_some(chosen);
        *self = Self { level: chosen, ..Self::new() };
        changed
    }
}
