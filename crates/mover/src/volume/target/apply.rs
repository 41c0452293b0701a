//! Manifests and batches into reads and writes: one frame after the other, the parts of one frame together.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::known::Known;
use super::{Progress, TargetEvent};
use crate::codec::squeeze::Expander;
use crate::frame::{Frame, Kind};
use crate::hash::Key;
use crate::link::{Receiver, Sender};
use crate::volume::chunk::{ChunkHash, Place, Tally, chunk_length};
use crate::volume::message::{self, Message, Record};
use crate::volume::nbd::client::{self, Client};
use crate::volume::{Error, blocking};

pub(super) struct Ports {
    pub(super) sender: Sender,
    pub(super) events: mpsc::UnboundedSender<TargetEvent>,
    pub(super) progress: watch::Sender<Progress>,
    pub(super) is_flushed: watch::Sender<bool>,
}

/// A disk, and how much of it the source has.
type Disk = (Arc<Client>, u64);

pub(super) struct Apply {
    disks: Vec<Disk>,
    key: Key,
    tally: Tally,
    known: Known,
    /// Away while a batch is unpacked.
    expander: Option<Expander>,
    ports: Ports,
}

/// How a chunk came to be where it belongs, or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Here,
    Copied,
    Nowhere,
}

impl Apply {
    pub(super) fn new(disks: Vec<Disk>, key: &Key, ports: Ports) -> io::Result<Self> {
        let (tally, expander) = (Tally::new(key), Some(Expander::new()?));
        Ok(Self { disks, key: key.clone(), tally, known: Known::default(), expander, ports })
    }

    /// Ends only by failing.
    pub(super) async fn run(mut self, data: &mut Receiver) -> Error {
        loop {
            let frame = match data.recv().await {
                Ok(frame) => frame,
                Err(ended) => return ended.into(),
            };
            if let Err(error) = self.on_frame(frame).await {
                return error;
            }
        }
    }

    async fn on_frame(&mut self, frame: Frame) -> Result<(), Error> {
        if frame.kind != Kind::VolumeBarrier {
            self.ports.is_flushed.send_replace(false);
        }
        match frame.kind {
            Kind::VolumeManifest => self.on_manifest(&frame.payload).await,
            Kind::VolumeChunks => self.on_batch(frame.payload).await,
            Kind::VolumeEpoch => {
                let epoch = message::parse_epoch(&frame.payload).ok_or(Error::Malformed("an epoch"))?;
                self.ports.progress.send_modify(|progress| progress.epochs_applied = epoch);
                self.say(Message::Applied { epoch }).await
            }
            Kind::VolumeBarrier => self.on_barrier(&frame.payload).await,
            _ => Err(Error::OutOfPlace),
        }
    }

    async fn say(&self, message: Message) -> Result<(), Error> {
        Ok(self.ports.sender.send(Kind::Message, message.payload()).await?)
    }

    /// Looks which contents are where they belong, and puts those there that are elsewhere.
    async fn on_manifest(&mut self, payload: &[u8]) -> Result<(), Error> {
        let offers = message::parse_manifest(payload).ok_or(Error::Malformed("a manifest"))?;
        let mut looking = JoinSet::new();
        for (at, (place, hash)) in offers.iter().copied().enumerate() {
            let look = Look {
                key: self.key.clone(),
                hash,
                here: self.spot(place)?,
                elsewhere: self.known.get(&hash).map(|place| self.spot(place)).transpose()?,
            };
            looking.spawn(async move {
                let found = look.run().await;
                found.map(|found| (at, found)).map_err(|source| Error::Disk { index: place.volume, source })
            });
        }
        let mut found = vec![Found::Nowhere; offers.len()];
        while let Some(looked) = looking.join_next().await {
            let (at, how) = joined(looked)?;
            found[at] = how;
        }
        for ((place, hash), found) in offers.into_iter().zip(&found) {
            if *found != Found::Nowhere {
                self.tally.had(place, hash);
                self.known.insert(hash, place);
            }
        }
        let count = |is: fn(&Found) -> bool| found.iter().filter(|found| is(found)).count() as u64;
        self.ports.progress.send_modify(|progress| {
            progress.chunks_offered += found.len() as u64;
            progress.chunks_had += count(|found| *found != Found::Nowhere);
            progress.chunks_copied += count(|found| *found == Found::Copied);
        });
        let had = found.into_iter().map(|found| found != Found::Nowhere).collect();
        self.say(Message::Answer { had }).await
    }

    async fn on_batch(&mut self, payload: Bytes) -> Result<(), Error> {
        let mut expander = self.expander.take().ok_or(Error::OutOfPlace)?;
        let (expander, records) = blocking(move || {
            let records = unpack(&mut expander, &payload);
            (expander, records)
        })
        .await;
        self.expander = Some(expander);
        let mut writing = JoinSet::new();
        for record in records? {
            match record {
                Record::Data { volume, offset, data } => {
                    let client = self.range(volume, offset, data.len() as u64)?;
                    let hash = self.tally.wrote(volume, offset, &data);
                    let place = Place::of(volume, offset);
                    if self.spot(place)?.offset == offset && self.spot(place)?.length == data.len() {
                        self.known.insert(hash, place);
                    }
                    let bytes = data.len() as u64;
                    self.ports.progress.send_modify(|progress| progress.written_bytes += bytes);
                    writing.spawn(async move { (volume, client.write(offset, data).await) });
                }
                Record::Zero { volume, offset, length } => {
                    let client = self.range(volume, offset, length)?;
                    self.tally.zeroed(volume, offset, length);
                    self.ports.progress.send_modify(|progress| progress.zeroed_bytes += length);
                    writing.spawn(async move { (volume, client.write_zeroes(offset, length).await) });
                }
            }
        }
        all_done(writing).await
    }

    async fn on_barrier(&mut self, payload: &[u8]) -> Result<(), Error> {
        let (barrier, digest) = message::parse_barrier(payload).ok_or(Error::Malformed("a barrier"))?;
        if digest != self.tally.digest() {
            return Err(Error::Differs);
        }
        let mut flushing = JoinSet::new();
        for (index, (client, _)) in (0_u16..).zip(&self.disks) {
            let client = Arc::clone(client);
            flushing.spawn(async move { (index, client.flush().await) });
        }
        all_done(flushing).await?;
        // Before the source knows: it may end the session with its next word.
        self.ports.is_flushed.send_replace(true);
        self.say(Message::Flushed { barrier, digest }).await?;
        let _ = self.ports.events.send(TargetEvent::Flushed { digest });
        Ok(())
    }

    fn spot(&self, place: Place) -> Result<Spot, Error> {
        let disk = self.disks.get(usize::from(place.volume)).ok_or(Error::Malformed("a place"))?;
        let length = chunk_length(disk.1, place.chunk);
        if length == 0 {
            return Err(Error::Malformed("a place"));
        }
        Ok(Spot { client: Arc::clone(&disk.0), offset: place.offset(), length })
    }

    /// The disk for a write that lies within what the source has.
    fn range(&self, volume: u16, offset: u64, length: u64) -> Result<Arc<Client>, Error> {
        let disk = self.disks.get(usize::from(volume));
        let inside = disk.filter(|(_, bytes)| offset.checked_add(length).is_some_and(|end| end <= *bytes));
        inside.map(|(client, _)| Arc::clone(client)).ok_or(Error::Malformed("a range"))
    }
}

fn unpack(expander: &mut Expander, payload: &[u8]) -> Result<Vec<Record>, Error> {
    let (length, packed) = message::parse_batch(payload).ok_or(Error::Malformed("a batch"))?;
    let plain = Bytes::from(expander.unpack(packed, length).map_err(Error::Unpack)?);
    Record::parse_all(&plain).ok_or(Error::Malformed("a record"))
}

/// What a task that was never cancelled came to.
fn joined<T>(result: Result<T, tokio::task::JoinError>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

async fn all_done(mut work: JoinSet<(u16, Result<(), client::Error>)>) -> Result<(), Error> {
    while let Some(done) = work.join_next().await {
        let (index, done) = joined(done);
        done.map_err(|source| Error::Disk { index, source })?;
    }
    Ok(())
}

/// A chunk of a disk.
struct Spot {
    client: Arc<Client>,
    offset: u64,
    length: usize,
}

impl Spot {
    async fn read(&self) -> Result<Bytes, client::Error> {
        self.client.read(self.offset, self.length).await
    }
}

/// The search for one content.
struct Look {
    key: Key,
    hash: ChunkHash,
    here: Spot,
    elsewhere: Option<Spot>,
}

impl Look {
    async fn run(self) -> Result<Found, client::Error> {
        if ChunkHash::of(&self.key, &self.here.read().await?) == self.hash {
            return Ok(Found::Here);
        }
        let Some(elsewhere) = self.elsewhere.filter(|spot| spot.length == self.here.length) else {
            return Ok(Found::Nowhere);
        };
        let content = elsewhere.read().await?;
        if ChunkHash::of(&self.key, &content) != self.hash {
            return Ok(Found::Nowhere);
        }
        // Nothing older is on its way to this place, or the source would not have asked.
        self.here.client.write(self.here.offset, content).await?;
        Ok(Found::Copied)
    }
}
