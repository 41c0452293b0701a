//! Where memory goes to: rebuilds the stream, and gives its end to QEMU only when all of it is right.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::message::{self, Message, OFFER_MAX};
use super::return_path::ReturnPath;
use super::{End, Error, Left, Outcome, Progress, Shared, take_leave};
use crate::codec::{Decoder, Dictionary, Keeper, Settings};
use crate::frame::Kind;
use crate::hash::{Key, PAGE_BYTES, PageHash};
use crate::link::{Link, Receiver, Sender};

/// QEMU's words on the return path are short.
const READ_BYTES: usize = 64 << 10;
/// Names that may be offered to one source: of a GiB of pages, 4 MiB on the way there.
pub const OFFERED_MAX: usize = 1 << 18;

/// What the caller must know, in order.
#[derive(Debug)]
pub enum TargetEvent {
    /// The source is there, and names pages under this key.
    Opened(Key),
    /// The source let go, and the whole stream is right. Ownership may be decided from now on.
    Granted(End),
    /// This side's QEMU has everything; 0 is success. `is_granted` says whether it may be believed.
    Loaded { code: u32, is_granted: bool },
    /// Nothing comes after this.
    Ended(Outcome),
}

/// Pages that only this side has, say another guest's; they must stay as they are until the session ends.
pub struct Offers {
    pub pages: Box<dyn Dictionary>,
    /// In the order in which reading them is cheap.
    pub hashes: Vec<PageHash>,
}

/// Makes offers, once it is known under which key the source names its pages. It may take seconds, on a thread that may
/// be blocked; the source's guest runs meanwhile. Not asked where this side has a checkpoint of the guest itself: that is
/// what both share, or is offered in place of others' pages.
pub type Offering = Box<dyn FnOnce(&Key) -> Option<Offers> + Send>;

/// Memory that a session may take here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Of contents, in bytes.
    pub store_bytes: u64,
    /// Places whose last content is remembered.
    pub pages_max: u64,
}

/// What a session starts with.
pub struct Options {
    /// The most that the source may ask for.
    pub most: Bounds,
    pub checkpoint: Option<Shared>,
    pub offers: Option<Offering>,
    pub keeper: Option<Box<dyn Keeper>>,
}

/// The target's end of a session. Dropping it closes QEMU's socket.
#[derive(Debug)]
pub struct Target {
    pub events: mpsc::UnboundedReceiver<TargetEvent>,
    progress: watch::Receiver<Progress>,
    abort: CancellationToken,
    _stop: DropGuard,
}

impl Target {
    /// Connects to a QEMU that waits with `migrate-incoming unix:PATH`.
    pub async fn connect(path: &Path) -> std::io::Result<UnixStream> {
        UnixStream::connect(path).await
    }

    #[must_use]
    pub fn start(qemu: UnixStream, link: Link, options: Options) -> Self {
        let (events, heard) = mpsc::unbounded_channel();
        let (progress, watched) = watch::channel(Progress::default());
        let (stop, abort) = (CancellationToken::new(), CancellationToken::new());
        let run = run(qemu, link, options, events, (progress, abort.clone()));
        tokio::spawn(stop.clone().run_until_cancelled_owned(run));
        Self { events: heard, progress: watched, abort, _stop: stop.drop_guard() }
    }

    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// Gives up and tells the source. What that means for the guest is decided by who owns it, not here.
    pub fn abort(&self) {
        self.abort.cancel();
    }
}

type Events = mpsc::UnboundedSender<TargetEvent>;

async fn run(
    qemu: UnixStream,
    mut link: Link,
    options: Options,
    events: Events,
    (progress, abort): (watch::Sender<Progress>, CancellationToken),
) {
    let driven = abort.run_until_cancelled(drive(qemu, &mut link, options, &events, progress)).await;
    let outcome = driven.map_or(Outcome::Aborted, |driven| driven.unwrap_or_else(Outcome::Failed));
    if let Outcome::Failed(error) = &outcome {
        tracing::warn!(%error, "a memory stream failed at its target");
    }
    let left = Left::from(&outcome);
    let _ = events.send(TargetEvent::Ended(outcome));
    take_leave(link, None, left);
}

async fn drive(
    qemu: UnixStream,
    link: &mut Link,
    mut options: Options,
    events: &Events,
    progress: watch::Sender<Progress>,
) -> Result<Outcome, Error> {
    let decoder = open(link, &mut options, events).await?;
    let (reader, writer) = qemu.into_split();
    let is_granted = Arc::new(AtomicBool::new(false));
    let committed = Notify::new();
    let rebuild = Rebuild { decoder, writer, events, progress, is_granted: Arc::clone(&is_granted) };
    let mut rebuilding = std::pin::pin!(rebuild.run(&mut link.data, &committed));
    let mut listening = std::pin::pin!(listen(reader, &link.sender, events, &is_granted));
    let urgent = &mut link.urgent;
    loop {
        tokio::select! {
            biased;
            frame = urgent.recv() => match Message::parse(&frame?.payload).ok_or(Error::OutOfPlace)? {
                Message::Committed => {
                    committed.notify_one();
                    let mut decoder = rebuilding.await?;
                    let _ = tokio::task::spawn_blocking(move || decoder.memory().seal()).await;
                    return Ok(Outcome::Committed);
                }
                Message::Abort { reason } => return Err(Error::Peer(reason)),
                _ => return Err(Error::OutOfPlace),
            },
            rebuilt = &mut rebuilding => {
                // Without a commit it ends only by failing.
                rebuilt?;
            }
            failed = &mut listening => return Err(failed),
        }
    }
}

/// Agrees with the source on what both have.
async fn open(link: &mut Link, options: &mut Options, events: &Events) -> Result<Decoder, Error> {
    let first = link.urgent.recv().await?;
    let (settings, wanted) = match Message::parse(&first.payload) {
        Some(Message::Open { key, store_bytes, pages_max, checkpoint }) => {
            (Settings { key, store_bytes, pages_max }, checkpoint)
        }
        Some(Message::Abort { reason }) => return Err(Error::Peer(reason)),
        _ => return Err(Error::OutOfPlace),
    };
    let most = options.most;
    if settings.store_bytes > most.store_bytes || settings.pages_max > most.pages_max {
        return Err(Error::Unlike);
    }
    let _ = events.send(TargetEvent::Opened(settings.key.clone()));
    let mut decoder = Decoder::new(&settings).map_err(Error::Encode)?;
    let found = options.checkpoint.take();
    let has_checkpoint = found.as_ref().is_some_and(|found| Some(found.id) == wanted);
    let (shared, former) = if has_checkpoint { (found, None) } else { (None, found) };
    shared.into_iter().for_each(|shared| decoder.memory().share(shared.pages));
    options.keeper.take().into_iter().for_each(|keeper| decoder.memory().keep_in(keeper));
    let making = match (former, options.offers.take()) {
        // The source has been elsewhere since, or lost its own: places say nothing any more, contents do.
        (Some(former), _) => {
            Some(Box::new(move |_: &Key| Some(Offers { hashes: former.pages.names(), pages: former.pages }))
                as Offering)
        }
        (None, offers) => offers.filter(|_| !has_checkpoint),
    };
    if let Some(make) = making {
        offer(&link.sender, &mut decoder, make, settings.key).await?;
    }
    link.sender.send(Kind::Message, Message::Accept { has_checkpoint }.payload()).await?;
    Ok(decoder)
}

async fn offer(sender: &Sender, decoder: &mut Decoder, make: Offering, key: Key) -> Result<(), Error> {
    let making = tokio::task::spawn_blocking(move || make(&key).map(|offers| sifted(offers, &key)));
    let offers = match making.await {
        Ok(Some(offers)) => offers,
        Ok(None) => return Ok(()),
        Err(error) => {
            tracing::error!(%error, "no pages are offered");
            return Ok(());
        }
    };
    decoder.offer(offers.pages);
    for part in offers.hashes.chunks(OFFER_MAX) {
        sender.send(Kind::Message, Message::Offer(part.to_vec()).payload()).await?;
    }
    Ok(())
}

/// Only what is worth a name, is here, and is what it claims to be.
fn sifted(mut offers: Offers, key: &Key) -> Offers {
    let (mut page, mut seen) = ([0; PAGE_BYTES], HashSet::new());
    let Offers { pages, hashes } = &mut offers;
    hashes.retain(|hash| {
        *hash != PageHash::ZERO
            && seen.len() < OFFERED_MAX
            && seen.insert(*hash)
            && pages.read(hash, &mut page)
            && PageHash::of(key, &page) == *hash
    });
    offers
}

/// From the link to QEMU's socket.
struct Rebuild<'a> {
    decoder: Decoder,
    writer: OwnedWriteHalf,
    events: &'a Events,
    progress: watch::Sender<Progress>,
    is_granted: Arc<AtomicBool>,
}

impl Rebuild<'_> {
    /// Gives the decoder back after a commit: by then all was written.
    async fn run(mut self, data: &mut Receiver, committed: &Notify) -> Result<Decoder, Error> {
        loop {
            tokio::select! {
                () = committed.notified() => return Ok(self.decoder),
                next = self.next(data) => next?,
            }
        }
    }

    async fn next(&mut self, data: &mut Receiver) -> Result<(), Error> {
        let frame = data.recv().await?;
        let is_past = self.is_granted.load(Ordering::Acquire);
        let bytes = match frame.kind {
            Kind::Batch if !is_past => self.decoder.decode(&frame.payload)?,
            Kind::Grant if !is_past => {
                let (end, batch) = message::parse_grant(&frame.payload).ok_or(Error::OutOfPlace)?;
                let bytes = self.decoder.decode(batch)?;
                if (self.decoder.hash(), self.decoder.length()) != (end.hash, end.length) {
                    return Err(Error::HashDiffers);
                }
                self.is_granted.store(true, Ordering::Release);
                let _ = self.events.send(TargetEvent::Granted(end));
                bytes
            }
            _ => return Err(Error::OutOfPlace),
        };
        self.progress.send_replace(Progress { counters: self.decoder.counters(), level: 0 });
        self.writer.write_all(&bytes).await.map_err(Error::Qemu)
    }
}

/// What QEMU says on its way back.
async fn listen(
    mut reader: OwnedReadHalf,
    sender: &Sender,
    events: &Events,
    is_granted: &AtomicBool,
) -> Error {
    let (mut path, mut buffer, mut is_told) = (ReturnPath::default(), vec![0; READ_BYTES], false);
    loop {
        let said = match reader.read(&mut buffer).await {
            // QEMU closes once it has everything. What follows is not its business.
            Ok(0) if is_told => std::future::pending().await,
            Ok(0) => return Error::QemuClosed,
            Ok(length) => &buffer[..length],
            Err(error) => return Error::Qemu(error),
        };
        let mut passed = path.push(said);
        if path.shut().is_some() {
            passed.extend(path.take_rest());
        }
        if let Err(ended) = sender.send(Kind::Message, Message::ReturnPath(passed.into()).payload()).await {
            return ended.into();
        }
        if let Some(code) = path.shut().filter(|_| !is_told) {
            is_told = true;
            let _ = events.send(TargetEvent::Loaded { code, is_granted: is_granted.load(Ordering::Acquire) });
            if let Err(ended) = sender.send(Kind::Message, Message::Loaded { code }.payload()).await {
                return ended.into();
            }
        }
    }
}
