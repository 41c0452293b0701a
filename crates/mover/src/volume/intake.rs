//! The journal between those who write and the one who sends.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::{Notify, watch};

use super::journal::{Journal, Limits};
use super::{Progress, Volume};

#[derive(Debug)]
pub(super) struct Intake {
    journal: Mutex<Journal>,
    /// There may be something to send.
    pub(super) arrived: Notify,
    /// There may be room.
    room: Notify,
    progress: watch::Sender<Progress>,
}

impl Intake {
    pub(super) fn new(volumes: &[Volume], limits: &Limits) -> io::Result<Self> {
        let sizes: Vec<u64> = volumes.iter().map(|volume| volume.bytes).collect();
        Ok(Self {
            journal: Mutex::new(Journal::new(&sizes, limits)?),
            arrived: Notify::new(),
            room: Notify::new(),
            progress: watch::channel(Progress::default()).0,
        })
    }

    pub(super) fn journal(&self) -> MutexGuard<'_, Journal> {
        // Every change of a journal is complete before anything can panic.
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn progress(&self) -> &watch::Sender<Progress> {
        &self.progress
    }

    /// Returns once all of it is in the journal.
    pub(super) async fn write(self: &Arc<Self>, volume: u16, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut done = 0;
        while done < data.len() {
            let room = self.room.notified();
            let taken = self.write_some(volume, offset + done as u64, &data[done..]).await?;
            done += taken;
            self.publish(taken, 0);
            if done < data.len() && taken == 0 {
                room.await;
            }
        }
        Ok(())
    }

    async fn write_some(self: &Arc<Self>, volume: u16, offset: u64, data: &[u8]) -> io::Result<usize> {
        {
            let mut journal = self.journal();
            if journal.stays_in_memory(data.len()) {
                return journal.write(volume, offset, data, Instant::now());
            }
        }
        let (intake, data) = (Arc::clone(self), Bytes::copy_from_slice(data));
        // A file may make us wait, and others of this thread with us.
        super::blocking(move || intake.journal().write(volume, offset, &data, Instant::now())).await
    }

    /// Returns once the range is in the journal.
    pub(super) async fn zero(&self, volume: u16, offset: u64, length: u64) {
        loop {
            let room = self.room.notified();
            let is_taken = self.journal().zero(volume, offset..offset + length, Instant::now());
            self.publish(0, if is_taken { length } else { 0 });
            if is_taken {
                return;
            }
            room.await;
        }
    }

    /// Before a write is answered: as long as the state of the journal asks for.
    pub(super) async fn hold_back(&self) {
        let delay = self.progress.borrow().pressure.delay();
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
    }

    /// Something left the journal.
    pub(super) fn on_room(&self) {
        self.publish(0, 0);
        self.room.notify_waiters();
    }

    /// The oldest write that was taken and not sent.
    pub(super) fn on_taken(&self, oldest: Option<Instant>) {
        self.progress.send_modify(|progress| progress.oldest_queued = oldest);
        self.publish(0, 0);
    }

    fn publish(&self, written: usize, zeroed: u64) {
        {
            let journal = self.journal();
            let (used, _) = journal.usage();
            let oldest = journal.oldest();
            self.progress.send_modify(|progress| {
                progress.written_bytes += written as u64;
                progress.zeroed_bytes += zeroed;
                progress.journal_bytes = used;
                progress.spilled_bytes = journal.spilled_bytes();
                progress.pressure = journal.pressure();
                progress.oldest_waiting = oldest;
            });
        }
        if written > 0 || zeroed > 0 {
            self.arrived.notify_one();
        }
    }
}
