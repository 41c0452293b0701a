//! From the journal to the link.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

use super::queue::{Queue, Ready};
use crate::codec::level::Meter;
use crate::codec::squeeze::Squeezer;
use crate::frame::Kind;
use crate::hash::Key;
use crate::link::{self, Sender};
use crate::volume::chunk::{CHUNK_BYTES, ChunkHash, Digest, Tally};
use crate::volume::intake::Intake;
use crate::volume::journal::{Chunk, Journal, Taken};
use crate::volume::message::{self, BATCH_BYTES, OFFER_MAX, Record};
use crate::volume::{Error, blocking};

/// How long a write waits for others to the same place. The oldest goes first, so on a slow line all wait longer.
const EPOCH: Duration = Duration::from_millis(200);
/// In one epoch, and so in one manifest.
const EPOCH_CHUNKS: usize = 64;
/// Of a line that was not measured yet.
const HOLDS_MIN: u64 = 256 << 10;

const _: () = assert!(EPOCH_CHUNKS <= OFFER_MAX);

/// Words that wait while the line takes nothing: more than all questions and epochs under way have answers.
pub(super) const HEARD_MAX: usize = 8192;

/// What the target said.
#[derive(Debug)]
pub(super) enum Heard {
    Answer(Vec<bool>),
    Applied(u64),
    Flushed(u64, Digest),
}

pub(super) type Waiter = oneshot::Sender<Digest>;

pub(super) struct Pump {
    ends: Ends,
    key: Key,
    queue: Queue,
    packer: Option<Packer>,
    meter: Meter,
    /// They asked for a barrier that is not under way.
    waiting: Vec<Waiter>,
    crossing: Option<Crossing>,
    barriers_sent: u64,
}

/// A barrier under way.
struct Crossing {
    number: u64,
    digest: Digest,
    waiters: Vec<Waiter>,
}

/// What a pump is connected to.
pub(super) struct Ends {
    pub(super) intake: Arc<Intake>,
    pub(super) sender: Sender,
    pub(super) line: watch::Receiver<link::Progress>,
    pub(super) heard: mpsc::Receiver<Heard>,
    pub(super) barriers: mpsc::UnboundedReceiver<Waiter>,
    /// Whether a barrier was answered and nothing came since.
    pub(super) is_settled: watch::Sender<bool>,
    /// No guest stands still while somebody waits for a barrier.
    pub(super) asks_always: bool,
}

impl Pump {
    pub(super) fn new(ends: Ends, volumes: usize, key: &Key) -> Result<Self, Error> {
        let meter = Meter::new();
        let packer = Packer::new(key, meter.level()).map_err(Error::Pack)?;
        Ok(Self {
            ends,
            key: key.clone(),
            queue: Queue::new(volumes),
            packer: Some(packer),
            meter,
            waiting: Vec::new(),
            crossing: None,
            barriers_sent: 0,
        })
    }

    /// Ends only by failing.
    pub(super) async fn run(mut self) -> Error {
        loop {
            if let Err(error) = self.turn().await {
                return error;
            }
        }
    }

    async fn turn(&mut self) -> Result<(), Error> {
        while let Ok(heard) = self.ends.heard.try_recv() {
            self.on_heard(heard)?;
        }
        while let Ok(waiter) = self.ends.barriers.try_recv() {
            self.waiting.push(waiter);
        }
        self.take_more().await?;
        if !self.send_batch().await? && !self.send_barrier().await? {
            self.wait().await?;
        }
        Ok(())
    }

    /// Takes epochs from the journal, and asks the target about whole chunks.
    async fn take_more(&mut self) -> Result<(), Error> {
        while self.queue.wants_more(self.ends.line.borrow().window_bytes as usize) {
            let is_urgent = !self.waiting.is_empty();
            let Some((taken, is_asked)) = self.take(is_urgent) else { break };
            self.ends.is_settled.send_replace(false);
            let (intake, key) = (Arc::clone(&self.ends.intake), self.key.clone());
            let began = Instant::now();
            let named = blocking(move || name(&intake, &key, taken, &is_asked)).await;
            self.meter.load.busy += began.elapsed();
            let (taken, hashes) = named.map_err(Error::Journal)?;
            let offers = self.queue.admit(taken, hashes);
            if !offers.is_empty() {
                let manifest = message::manifest(&offers);
                self.count(|progress| progress.chunks_offered += offers.len() as u64);
                self.send(Kind::VolumeManifest, manifest).await?;
            }
        }
        self.count_oldest();
        Ok(())
    }

    /// An epoch, and which of its chunks to ask about.
    fn take(&self, is_urgent: bool) -> Option<(Taken, Vec<bool>)> {
        let mut journal = self.ends.intake.journal();
        let wait = if is_urgent { Duration::ZERO } else { patience(&journal) };
        // Somebody waits, and the answers would come later than the contents themselves.
        let is_little = is_urgent && !self.ends.asks_always && journal.waiting_bytes() < self.line_holds();
        let taken = journal.take(Instant::now(), wait, EPOCH_CHUNKS)?;
        // Still under the lock: what was taken must not look like nothing for a moment.
        self.ends.intake.progress().send_modify(|progress| progress.oldest_queued = Some(taken.since));
        let may_ask =
            |chunk: &Chunk| !is_little && journal.is_whole(chunk) && self.queue.may_ask(chunk.place);
        let is_asked = taken.chunks.iter().map(may_ask).collect();
        Some((taken, is_asked))
    }

    /// Bytes that go over the line during one round trip.
    fn line_holds(&self) -> u64 {
        let line = self.ends.line.borrow();
        let holds = line.rate.zip(line.round_trip).map(|(rate, took)| rate as f64 * took.as_secs_f64());
        holds.map_or(HOLDS_MIN, |holds| (holds as u64).max(HOLDS_MIN))
    }

    /// Sends what is ready, up to a batch; `false` if nothing is.
    async fn send_batch(&mut self) -> Result<bool, Error> {
        let (mut ready, mut bytes, mut end) = (Vec::new(), 0, None);
        while bytes < BATCH_BYTES && end.is_none() {
            match self.queue.pop() {
                Some(Ready::End(number)) => end = Some(number),
                Some(Ready::Data(chunk)) => {
                    bytes += chunk.bytes();
                    ready.push(Ready::Data(chunk));
                }
                Some(zero) => ready.push(zero),
                None => break,
            }
        }
        if ready.is_empty() && end.is_none() {
            return Ok(false);
        }
        if !ready.is_empty() {
            let batch = self.pack(ready).await?;
            self.ends.intake.on_room();
            self.send(Kind::VolumeChunks, batch).await?;
        }
        if let Some(number) = end {
            self.count(|progress| progress.epochs_sent = number);
            self.send(Kind::VolumeEpoch, message::epoch(number)).await?;
        }
        self.count_oldest();
        Ok(true)
    }

    async fn pack(&mut self, ready: Vec<Ready>) -> Result<Bytes, Error> {
        // Only while it is away packing is there none.
        let mut packer = self.packer.take().ok_or(Error::OutOfPlace)?;
        let (intake, level) = (Arc::clone(&self.ends.intake), self.meter.level());
        let began = Instant::now();
        let (packer, packed) = blocking(move || {
            let packed = packer.pack(&intake, &ready, level);
            (packer, packed)
        })
        .await;
        self.meter.load.busy += began.elapsed();
        self.packer = Some(packer);
        // A choice that did not change is the same choice.
        let _ = self.meter.next_level();
        packed
    }

    async fn send(&mut self, kind: Kind, payload: Bytes) -> Result<(), Error> {
        let (began, bytes) = (Instant::now(), payload.len() as u64);
        self.ends.sender.send(kind, payload).await?;
        self.meter.load.blocked += began.elapsed();
        self.count(|progress| progress.wire_bytes += bytes);
        Ok(())
    }

    /// When everything that came has gone and somebody waits for it.
    async fn send_barrier(&mut self) -> Result<bool, Error> {
        let is_quiet = self.queue.is_sent() && self.ends.intake.journal().is_empty();
        if self.waiting.is_empty() || self.crossing.is_some() || !is_quiet {
            return Ok(false);
        }
        let Some(packer) = &self.packer else { return Ok(false) };
        self.barriers_sent += 1;
        let (number, digest) = (self.barriers_sent, packer.tally.digest());
        let waiters = std::mem::take(&mut self.waiting);
        self.crossing = Some(Crossing { number, digest, waiters });
        self.send(Kind::VolumeBarrier, message::barrier(number, digest)).await?;
        Ok(true)
    }

    fn on_heard(&mut self, heard: Heard) -> Result<(), Error> {
        match heard {
            Heard::Answer(had) => {
                let spared = self.queue.on_answer(&had)?;
                self.count(|progress| progress.chunks_had += spared.len() as u64);
                let packer = self.packer.as_mut().ok_or(Error::OutOfPlace)?;
                let mut journal = self.ends.intake.journal();
                for spared in spared {
                    packer.tally.had(spared.chunk.place, spared.hash);
                    journal.free(&spared.chunk);
                }
                drop(journal);
                self.ends.intake.on_room();
            }
            Heard::Applied(number) => {
                let applied = self.queue.on_applied(number)?;
                self.count(|progress| progress.epochs_applied += applied);
            }
            Heard::Flushed(number, digest) => {
                let crossing = self.crossing.take().filter(|crossing| crossing.number == number);
                let crossing = crossing.ok_or(Error::OutOfPlace)?;
                if crossing.digest != digest {
                    return Err(Error::Differs);
                }
                let is_quiet = self.queue.is_sent() && self.ends.intake.journal().is_empty();
                self.ends.is_settled.send_replace(is_quiet);
                // Who asked may have stopped waiting.
                for waiter in crossing.waiters {
                    let _ = waiter.send(digest);
                }
            }
        }
        Ok(())
    }

    /// Until something may have changed.
    async fn wait(&mut self) -> Result<(), Error> {
        let wants_more = self.queue.wants_more(self.ends.line.borrow().window_bytes as usize);
        let due = {
            let journal = self.ends.intake.journal();
            let oldest = journal.oldest().filter(|_| wants_more);
            oldest.map(|since| patience(&journal).saturating_sub(since.elapsed()))
        };
        let began = Instant::now();
        tokio::select! {
            heard = self.ends.heard.recv() => {
                // The session holds the other end for as long as it lives.
                self.on_heard(heard.ok_or(Error::OutOfPlace)?)?;
            }
            Some(waiter) = self.ends.barriers.recv() => self.waiting.push(waiter),
            () = self.ends.intake.arrived.notified() => {}
            () = tokio::time::sleep(due.unwrap_or_default()), if due.is_some() => {}
        }
        self.meter.load.idle += began.elapsed();
        Ok(())
    }

    fn count(&self, change: impl FnOnce(&mut crate::volume::Progress)) {
        self.ends.intake.progress().send_modify(change);
    }

    fn count_oldest(&self) {
        let oldest = self.queue.oldest();
        self.ends.intake.on_taken(oldest);
    }
}

/// A journal that fills does not wait for writes to merge.
fn patience(journal: &Journal) -> Duration {
    let (used, most) = journal.usage();
    if used > most / 4 { Duration::ZERO } else { EPOCH }
}

/// The names of the chunks that the target is asked about.
fn name(
    intake: &Intake,
    key: &Key,
    taken: Taken,
    is_asked: &[bool],
) -> io::Result<(Taken, Vec<Option<ChunkHash>>)> {
    let mut data = Vec::with_capacity(CHUNK_BYTES);
    let mut hashes = Vec::with_capacity(taken.chunks.len());
    for (chunk, is_asked) in taken.chunks.iter().zip(is_asked) {
        if !is_asked {
            hashes.push(None);
            continue;
        }
        data.clear();
        for run in chunk.runs() {
            intake.journal().read(chunk, run, &mut data)?;
        }
        hashes.push(Some(ChunkHash::of(key, &data)));
    }
    Ok((taken, hashes))
}

/// Makes batches, and keeps the tally of what is in them.
struct Packer {
    squeezer: Squeezer,
    tally: Tally,
    plain: Vec<u8>,
}

impl Packer {
    fn new(key: &Key, level: i32) -> io::Result<Self> {
        Ok(Self { squeezer: Squeezer::new(level)?, tally: Tally::new(key), plain: Vec::new() })
    }

    fn pack(&mut self, intake: &Intake, ready: &[Ready], level: i32) -> Result<Bytes, Error> {
        self.plain.clear();
        for item in ready {
            match item {
                Ready::Data(chunk) => self.pack_chunk(intake, chunk).map_err(Error::Journal)?,
                Ready::Zero(volume, range) => {
                    let length = range.end - range.start;
                    self.plain.extend(Record::zero(*volume, range.start, length));
                    self.tally.zeroed(*volume, range.start, length);
                }
                Ready::End(_) => {}
            }
        }
        let packed = self.squeezer.pack(&self.plain, level).map_err(Error::Pack)?;
        Ok(message::batch(self.plain.len(), &packed))
    }

    fn pack_chunk(&mut self, intake: &Intake, chunk: &Chunk) -> io::Result<()> {
        for run in chunk.runs() {
            let offset = chunk.place.offset() + run.start as u64;
            self.plain.extend(Record::data_header(chunk.place.volume, offset, run.len()));
            let start = self.plain.len();
            intake.journal().read(chunk, run, &mut self.plain)?;
            self.tally.wrote(chunk.place.volume, offset, &self.plain[start..]);
        }
        intake.journal().free(chunk);
        Ok(())
    }
}
