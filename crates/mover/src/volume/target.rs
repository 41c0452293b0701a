//! Where disks go to: reads and writes the target QEMU's own exports.

/// Manifests and batches into reads and writes.
mod apply;
/// Where contents are that were seen in this session.
mod known;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::message::Message;
use super::nbd::client::Client;
use super::source::Refused;
use super::{Digest, Error, Left, Outcome, take_leave};
use crate::frame::Kind;
use crate::hash::Key;
use crate::link::{Ended, Link};
use apply::Apply;

/// What the caller must know, in order.
#[derive(Debug)]
pub enum TargetEvent {
    /// All exports are open and large enough.
    Opened,
    /// Everything up to the source's barrier is on the disks, and both sides agree on what that is.
    Flushed { digest: Digest },
    /// Nothing comes after this. The exports are let go.
    Ended(Outcome),
}

/// A disk of the target QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    pub socket: PathBuf,
    pub name: String,
}

/// What a session starts with.
#[derive(Debug, Clone)]
pub struct Options {
    /// In the order of the source's volumes.
    pub exports: Vec<Export>,
    /// The same on both sides, and of this migration only.
    pub key: Key,
}

/// What the target did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    pub written_bytes: u64,
    pub zeroed_bytes: u64,
    pub chunks_offered: u64,
    /// Of them, those that were here, or elsewhere on these disks.
    pub chunks_had: u64,
    /// Of those, the ones that were copied from elsewhere.
    pub chunks_copied: u64,
    pub epochs_applied: u64,
}

/// The target's end of a session. Dropping it before its end lets the exports go, and the source is told nothing.
#[derive(Debug)]
pub struct Target {
    pub events: mpsc::UnboundedReceiver<TargetEvent>,
    progress: watch::Receiver<Progress>,
    is_flushed: watch::Receiver<bool>,
    release: CancellationToken,
    abort: CancellationToken,
    _stop: DropGuard,
}

impl Target {
    #[must_use]
    pub fn start(link: Link, options: Options) -> Self {
        let (events, told) = mpsc::unbounded_channel();
        let (progress, watched) = watch::channel(Progress::default());
        let (is_flushed, flushed) = watch::channel(false);
        let [stop, release, abort] = std::array::from_fn(|_| CancellationToken::new());
        let session =
            Session { link, events, progress, is_flushed, release: release.clone(), abort: abort.clone() };
        tokio::spawn(stop.clone().run_until_cancelled_owned(session.run(options)));
        Self {
            events: told,
            progress: watched,
            is_flushed: flushed,
            release,
            abort,
            _stop: stop.drop_guard(),
        }
    }

    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// The disks belong to this side: lets the exports go and ends the session on both sides. Refused unless a
    /// barrier was the last thing.
    pub fn release(&self) -> Result<(), Refused> {
        if self.events.is_closed() {
            return Err(Refused::Ended);
        }
        if !*self.is_flushed.borrow() {
            return Err(Refused::NotSettled);
        }
        self.release.cancel();
        Ok(())
    }

    /// Gives up, and tells the source.
    pub fn abort(&self) {
        self.abort.cancel();
    }
}

struct Session {
    link: Link,
    events: mpsc::UnboundedSender<TargetEvent>,
    progress: watch::Sender<Progress>,
    is_flushed: watch::Sender<bool>,
    release: CancellationToken,
    abort: CancellationToken,
}

impl Session {
    async fn run(mut self, options: Options) {
        let (abort, release) = (self.abort.clone(), self.release.clone());
        let outcome = tokio::select! {
            biased;
            () = abort.cancelled() => Outcome::Aborted,
            () = release.cancelled() => Outcome::Finished,
            driven = self.drive(options) => driven.unwrap_or_else(Outcome::Failed),
        };
        if let Outcome::Failed(error) = &outcome {
            tracing::warn!(%error, "volumes failed at their target");
        }
        let left = Left::from(&outcome);
        let _ = self.events.send(TargetEvent::Ended(outcome));
        take_leave(self.link, left);
    }

    async fn drive(&mut self, options: Options) -> Result<Outcome, Error> {
        let volumes = self.open(&options).await?;
        let _ = self.events.send(TargetEvent::Opened);
        let is_flushed = self.is_flushed.clone();
        let ports = apply::Ports {
            sender: self.link.sender.clone(),
            events: self.events.clone(),
            progress: self.progress.clone(),
            is_flushed: self.is_flushed.clone(),
        };
        let apply = Apply::new(volumes, &options.key, ports).map_err(Error::Unpack)?;
        let mut applying = std::pin::pin!(apply.run(&mut self.link.data));
        let ended = tokio::select! {
            biased;
            // The source says nothing more here unless it gives up.
            frame = self.link.urgent.recv() => match frame {
                Ok(frame) => match Message::parse(&frame.payload) {
                    Some(Message::Abort { why, reason }) => Error::Peer { why, reason },
                    _ => Error::OutOfPlace,
                },
                Err(ended) => ended.into(),
            },
            error = &mut applying => error,
        };
        match ended {
            Error::Link(Ended::Finished) if *is_flushed.borrow() => Ok(Outcome::Finished),
            error => Err(error),
        }
    }

    /// Opens the exports and looks whether what the source has fits.
    async fn open(&mut self, options: &Options) -> Result<Vec<(Arc<Client>, u64)>, Error> {
        let mut clients = Vec::new();
        for (index, export) in (0..).zip(&options.exports) {
            let client = Client::connect(&export.socket, &export.name).await;
            clients.push(Arc::new(client.map_err(|source| Error::Disk { index, source })?));
        }
        let first = self.link.urgent.recv().await?;
        let sizes = match Message::parse(&first.payload) {
            Some(Message::Open { volumes }) => volumes,
            Some(Message::Abort { why, reason }) => return Err(Error::Peer { why, reason }),
            _ => return Err(Error::OutOfPlace),
        };
        if sizes.len() != clients.len() {
            return Err(Error::Unlike);
        }
        for ((index, client), source_bytes) in (0..).zip(&clients).zip(sizes.iter().copied()) {
            let target_bytes = client.bytes();
            if target_bytes < source_bytes {
                return Err(Error::TooSmall { index, source_bytes, target_bytes });
            }
        }
        self.link.sender.send(Kind::Message, Message::Accept.payload()).await?;
        Ok(clients.into_iter().zip(sizes).collect())
    }
}
