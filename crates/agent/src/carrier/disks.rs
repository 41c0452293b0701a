//! The disks that go with a guest: mirrors at the source, exports at the target.
//!
//! ```text
//! source QEMU ─ mirror ─► journal here ══ TLS ══ the target's mover ─► export of the target QEMU ─► its own file
//! ```
//!
//! The mirrors write to this machine only, so that no delay and no break of the line reaches the guest's disks. They end
//! at the switchover, before QEMU gives its images up; the guest is not granted before all of it is on the target's disks.

/// What the guest waits for meanwhile.
mod minder;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sterna_mover::hash::Key;
use sterna_mover::link::{self, Link, Pace, SessionId};
use sterna_mover::volume::source::MirrorTo;
use sterna_mover::volume::target::Export;
use sterna_mover::volume::{self, Limits, Outcome, Pressure, SourceEvent, Spill, Volume};
use sterna_qemu::qmp::Client;
use sterna_qemu::qmp::export::{NbdAddress, NbdExport};
use sterna_qemu::qmp::mirror::{CopyMode, Depth, NbdNode};
use sterna_wire::assignment::Carry;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::mirrors::{Jobs, Shape, away};
use super::patience::{CalledOff, LINE_PATIENCE};
use super::{Carriers, Departure, Error};
use crate::qemu_hypervisor::node_of;
use minder::Minder;

/// The target QEMU's block server, in the guest's directory.
const SERVER: &str = "disks.sock";
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Memory begins when the disks are no further behind than this: what is left then goes with the switchover.
const LAG_MAX: Duration = Duration::from_secs(1);
const JOURNAL_MEMORY: u64 = 64 << 20;
/// In the agent's own folder: a guest that outruns the line for long is slowed, and stays when that does not help.
const JOURNAL_SPILL: u64 = 4 << 30;
/// In flight to the journal.
const MIRROR_BUFFER: u64 = 64 << 20;
/// Small writes stay small on the line.
const GRANULARITY: u32 = 4096;

/// Both sides' name of the session for disks, beside the one for memory.
pub(super) fn session(carry: &Carry) -> SessionId {
    let mut id = carry.session.into_bytes();
    id.iter_mut().for_each(|byte| *byte ^= 0xff);
    SessionId(id)
}

/// Names of chunks are compared between two disks of one guest only.
fn key(carry: &Carry) -> Key {
    let half = carry.session.into_bytes();
    let mut key = [0; 32];
    key[..16].copy_from_slice(&half);
    key[16..].copy_from_slice(&half);
    Key(key)
}

/// The source's side.
pub(super) struct Mirrors {
    source: Arc<volume::Source>,
    events: mpsc::UnboundedReceiver<SourceEvent>,
    jobs: Jobs,
    /// On the line.
    sent: Arc<AtomicU64>,
    minder: Minder,
}

impl Mirrors {
    /// Begins to copy; the guest goes on. Memory keeps to the same pace.
    pub async fn start(carriers: &Carriers, departure: &Departure, pace: Pace) -> Result<Self, Error> {
        let (client, carry) = (&departure.client, &departure.carry);
        let dialer = carriers.dialer(&carry.peer)?;
        let options = link::Options { pace, ..link::Options::default() };
        let link = Link::dial(session(carry), departure.to, dialer, options);
        let line = link.progress();
        let nodes = client.query_named_block_nodes().await?;
        let mut volumes = Vec::new();
        for index in &carry.disks {
            let name = node_of(*index);
            let node = nodes.iter().find(|node| node.node_name.as_deref() == Some(&name));
            volumes.push(Volume { bytes: node.ok_or(Error::NoDisk { index: *index })?.image.virtual_size });
        }
        let spill = Some(Spill { folder: carriers.spill_folder()?, bytes: JOURNAL_SPILL });
        let journal = Limits { memory_bytes: JOURNAL_MEMORY, spill };
        let options = volume::source::Options { volumes, key: key(carry), journal };
        let mut source = volume::Source::start(&departure.directory, link, options)?;
        let events = std::mem::replace(&mut source.events, mpsc::unbounded_channel().1);
        let (source, sent) = (Arc::new(source), Arc::clone(&departure.disk_bytes));
        let delay_ms = Arc::clone(&departure.disk_delay_ms);
        let minder = Minder::new(departure.vm, line, source.progress(), delay_ms);
        let mut mirrors = Self { source, events, jobs: Jobs::none(client), sent, minder };
        for (index, to) in carry.disks.iter().zip(mirrors.source.mirrors().to_vec()) {
            carriers.hand_to_qemu(&to.socket)?;
            mirrors.mirror(*index, to).await?;
        }
        Ok(mirrors)
    }

    async fn mirror(&mut self, index: usize, to: MirrorTo) -> Result<(), Error> {
        let node = NbdNode {
            node: away(index),
            at: NbdAddress::Unix(to.socket),
            export: to.export.to_owned(),
            reconnect_delay: Duration::ZERO,
            open_timeout: Duration::ZERO,
        };
        let shape = Shape {
            // What is below the topmost image is at the target as well, or not: names will tell.
            depth: Depth::Full,
            copy_mode: CopyMode::Background,
            buffer: Some(MIRROR_BUFFER),
            granularity: Some(GRANULARITY),
        };
        self.jobs.begin(index, node, shape).await
    }

    /// Until all was copied once, and the line is close behind the guest.
    pub async fn catch_up(&mut self) -> Result<(), Error> {
        let mut look = tokio::time::interval(LOOK_EVERY);
        let (mut ready, mut is_blocking) = (None, false);
        let progress = self.source.progress();
        loop {
            tokio::select! {
                failed = self.failed() => return Err(failed),
                _ = look.tick() => {}
            }
            self.count();
            self.minder.mind()?;
            if !self.jobs.look().await?.iter().all(|job| job.is_ready) {
                continue;
            }
            let ready: Instant = *ready.get_or_insert_with(Instant::now);
            // The copy itself has filled the journal, and no write of the guest has to wait for that. One that the line
            // does not empty is the guest's doing.
            let is_easy = progress.borrow().pressure == Pressure::None || ready.elapsed() > LINE_PATIENCE;
            if !is_blocking && is_easy {
                self.make_write_blocking().await?;
                is_blocking = true;
            }
            if is_blocking && progress.borrow().lag() <= LAG_MAX {
                return Ok(());
            }
        }
    }

    /// Each write waits for the journal, which is near.
    async fn make_write_blocking(&mut self) -> Result<(), Error> {
        if self.jobs.make_write_blocking().await? {
            self.minder.on_write_blocking();
        }
        Ok(())
    }

    /// Whether the disks' own line is up.
    pub fn is_connected(&self) -> bool {
        self.minder.is_connected()
    }

    /// While memory goes as well, whose line is watched with that of the disks.
    pub fn mind_the_journal(&mut self) -> Result<(), CalledOff> {
        self.minder.mind_the_journal()
    }

    /// Resolves when the session can carry nothing more.
    pub async fn failed(&mut self) -> Error {
        loop {
            match self.events.recv().await {
                Some(SourceEvent::Opened) => {}
                Some(SourceEvent::Ended(Outcome::Failed(error))) => return Error::Volumes(error),
                Some(SourceEvent::Ended(_)) | None => return Error::MirrorFailed,
            }
        }
    }

    /// The guest stands still: both sides of each mirror become alike, and QEMU's part is over.
    pub async fn end(&mut self) -> Result<(), Error> {
        self.minder.on_mirrors_ended();
        self.jobs.end().await
    }

    /// Waits, beside everything else, until the target has it all on its disks.
    pub fn barrier(&self) -> impl Future<Output = Result<(), String>> + Send + 'static {
        let source = Arc::clone(&self.source);
        async move {
            let digest = source.barrier().await.map_err(|refused| refused.to_string())?;
            tracing::debug!(?digest, "the disks are over there");
            Ok(())
        }
    }

    /// Until what was taken so far is on the target's disks; the guest writes on, and what it writes from here on does
    /// not matter. Mirrors are removed by [`super::tidy`].
    pub async fn seed(&mut self) -> Result<(), Error> {
        let mut look = tokio::time::interval(LOOK_EVERY);
        let mut barrier = std::pin::pin!(self.barrier());
        loop {
            tokio::select! {
                failed = self.failed() => return Err(failed),
                crossed = &mut barrier => break crossed.map_err(|_| Error::MirrorFailed)?,
                _ = look.tick() => self.minder.mind()?,
            }
        }
        self.count();
        self.source.abort();
        Ok(())
    }

    /// The guest is the target's: both sides part in peace.
    pub async fn finish(&self) {
        if let Err(refused) = self.source.finish().await {
            tracing::debug!(%refused, "the disks' session had ended");
        }
    }

    /// Counts what was sent.
    pub fn count(&self) {
        self.sent.store(self.source.progress().borrow().wire_bytes, Ordering::Relaxed);
    }
}

/// Opens the target's disks to its mover.
pub(super) async fn export(client: &Client, directory: &Path, carry: &Carry) -> Result<Vec<Export>, Error> {
    let socket = directory.join(SERVER);
    // Of an attempt that did not succeed. Usually there is none, which is refused.
    if let Err(error) = client.nbd_server_stop().await {
        tracing::trace!(%error, "no block server to stop");
    }
    client.nbd_server_start(&socket.as_path().into(), 0).await?;
    let mut exports = Vec::new();
    for index in &carry.disks {
        let name = away(*index);
        let export =
            NbdExport { id: name.clone(), node: node_of(*index), name: name.clone(), is_writable: true };
        client.add_nbd_export(&export).await?;
        exports.push(Export { socket: socket.clone(), name });
    }
    Ok(exports)
}

/// The target's end of the disks' session.
pub(super) fn take_in(link: Link, exports: Vec<Export>, carry: &Carry) -> volume::Target {
    volume::Target::start(link, volume::target::Options { exports, key: key(carry) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_and_memory_of_one_guest_have_sessions_of_their_own() {
        let carry = Carry {
            session: uuid::Uuid::from_u128(7),
            peer: sterna_model::meta::Name::new("b").unwrap(),
            disks: vec![0],
            straight: false,
            siblings: vec![],
        };
        assert_ne!(session(&carry), SessionId(carry.session.into_bytes()));
    }
}
