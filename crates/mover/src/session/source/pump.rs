//! From QEMU's socket to the link, and what to do while QEMU is silent.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::AsyncReadExt;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::{Notify, mpsc, watch};

use super::SourceEvent;
use crate::codec::encoder::Held;
use crate::codec::level::Meter;
use crate::codec::{Batch, Encoder};
use crate::frame::Kind;
use crate::link::Sender;
use crate::session::message;
use crate::session::{End, Error, Progress};

/// One read: QEMU writes pages in pieces of this order.
const READ_BYTES: usize = 256 << 10;
/// QEMU paused between two writes: what is complete goes.
const PAUSE: Duration = Duration::from_millis(4);
/// What seems to be half a record is let go, too.
const LONG_PAUSE: Duration = Duration::from_millis(300);
/// A stream whose end cannot be recognised is taken to have ended. Longer than any pause of QEMU's rate limit.
const SILENCE: Duration = Duration::from_millis(1500);

/// From QEMU's socket to the link.
pub(super) struct Pump<'a> {
    pub(super) encoder: Encoder,
    pub(super) reader: OwnedReadHalf,
    pub(super) sender: Sender,
    pub(super) events: mpsc::UnboundedSender<SourceEvent>,
    pub(super) progress: watch::Sender<Progress>,
    pub(super) is_held: watch::Sender<bool>,
    pub(super) granted: &'a Notify,
    pub(super) committed: &'a Notify,
    pub(super) meter: Meter,
}

impl Pump<'_> {
    /// Gives the encoder back after a commit.
    pub(super) async fn run(mut self) -> Result<Encoder, Error> {
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
        self.progress.send_replace(Progress { counters: self.encoder.counters(), level: self.meter.level() });
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
        self.progress.send_replace(Progress { counters: self.encoder.counters(), level: self.meter.level() });
        let mut more = [0];
        let read = tokio::select! {
            biased;
            () = self.committed.notified() => return Ok(()),
            read = self.reader.read(&mut more) => read,
        };
        match read.map_err(Error::Qemu)? {
            0 => Err(Error::QemuClosed),
            _ => Err(Error::MoreAfterGrant),
        }
    }
}
