//! Watches what a guest's disks wait for while it is on its way: their line, and the journal here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sterna_mover::{link, volume};
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

use crate::carrier::patience::{CalledOff, JournalWatch, Level, LineWatch};

pub(super) struct Minder {
    vm: Uuid,
    link: watch::Receiver<link::Progress>,
    line: LineWatch,
    progress: watch::Receiver<volume::Progress>,
    /// While the guest's writes wait for it.
    journal: Option<JournalWatch>,
    /// What a write of the guest waits for now.
    delay_ms: Arc<AtomicU64>,
}

impl Minder {
    pub fn new(
        vm: Uuid,
        link: watch::Receiver<link::Progress>,
        progress: watch::Receiver<volume::Progress>,
        delay_ms: Arc<AtomicU64>,
    ) -> Self {
        Self { vm, link, line: LineWatch::new(Instant::now()), progress, journal: None, delay_ms }
    }

    pub fn is_connected(&self) -> bool {
        self.link.borrow().connected > 0
    }

    /// From here on each write of the guest waits until it is in the journal.
    pub fn on_write_blocking(&mut self) {
        self.journal = Some(JournalWatch::new(Instant::now()));
    }

    /// The mirrors are gone, or about to be.
    pub fn on_mirrors_ended(&mut self) {
        self.journal = None;
        self.told(Duration::ZERO);
    }

    /// While nothing but the disks goes: the guest does not stand still for that.
    pub fn mind(&mut self) -> Result<(), CalledOff> {
        self.line.on(Instant::now(), self.is_connected(), false)?;
        self.mind_the_journal()
    }

    pub fn mind_the_journal(&mut self) -> Result<(), CalledOff> {
        let Some(journal) = &mut self.journal else { return Ok(()) };
        let (now, before) = (Instant::now(), journal.level());
        let pressure = self.progress.borrow().pressure;
        let judged = journal.on(now, pressure);
        let (level, delay) = (journal.level(), journal.delay(now, pressure));
        self.told(delay);
        if level != before {
            self.tell(level, delay);
        }
        judged
    }

    fn told(&self, delay: Duration) {
        self.delay_ms.store(delay.as_millis() as u64, Ordering::Relaxed);
    }

    fn tell(&self, level: Level, delay: Duration) {
        let journal_bytes = self.progress.borrow().journal_bytes;
        match level {
            Level::Easy => tracing::info!(vm = %self.vm, journal_bytes, "disk writes wait no longer"),
            Level::Slowing => {
                tracing::warn!(vm = %self.vm, journal_bytes, ?delay, "disk writes wait: the line is behind");
            }
            Level::Full => {
                tracing::warn!(vm = %self.vm, journal_bytes, "disk writes wait: the journal is full");
            }
        }
    }
}

impl Drop for Minder {
    fn drop(&mut self) {
        self.told(Duration::ZERO);
    }
}

#[cfg(test)]
mod tests {
    use sterna_mover::volume::Pressure;

    use super::*;

    struct World {
        link: watch::Sender<link::Progress>,
        progress: watch::Sender<volume::Progress>,
        delay_ms: Arc<AtomicU64>,
    }

    impl World {
        fn new() -> (Self, Minder) {
            let (link, linked) = watch::channel(link::Progress { connected: 5, ..Default::default() });
            let (progress, progressed) = watch::channel(volume::Progress::default());
            let delay_ms = Arc::new(AtomicU64::new(0));
            let minder = Minder::new(Uuid::from_u128(7), linked, progressed, Arc::clone(&delay_ms));
            (Self { link, progress, delay_ms }, minder)
        }

        fn has(&self, pressure: Pressure) {
            self.progress.send_modify(|progress| progress.pressure = pressure);
        }

        fn delay_ms(&self) -> u64 {
            self.delay_ms.load(Ordering::Relaxed)
        }
    }

    /// As often as the caller looks, for so long.
    async fn minded(minder: &mut Minder, seconds: u64) -> Result<(), CalledOff> {
        for _ in 0..seconds * 10 {
            tokio::time::advance(super::super::LOOK_EVERY).await;
            minder.mind()?;
        }
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn disks_whose_line_does_not_come_back_stay() {
        let (world, mut minder) = World::new();
        world.link.send_modify(|link| link.connected = 0);
        assert_eq!(minded(&mut minder, 3000).await, Ok(()));
        world.link.send_modify(|link| link.connected = 1);
        assert_eq!(minded(&mut minder, 1).await, Ok(()));
        world.link.send_modify(|link| link.connected = 0);
        assert_eq!(minded(&mut minder, 3599).await, Ok(()));
        assert!(matches!(minded(&mut minder, 2).await, Err(CalledOff::NoLine { .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_journal_matters_only_while_the_guest_waits_for_it() {
        let (world, mut minder) = World::new();
        world.has(Pressure::Full);
        assert_eq!(minded(&mut minder, 100).await, Ok(()));
        assert_eq!(world.delay_ms(), 0);
        minder.on_write_blocking();
        assert_eq!(minded(&mut minder, 10).await, Ok(()));
        assert!((9_500..=10_500).contains(&world.delay_ms()), "{} ms", world.delay_ms());
        assert!(matches!(minded(&mut minder, 1).await, Err(CalledOff::Outrun { .. })));
        minder.on_mirrors_ended();
        assert_eq!(world.delay_ms(), 0);
        assert_eq!(minded(&mut minder, 100).await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_of_this_host_without_room_ends_it_at_once_and_nobody_is_told_of_a_delay_any_more() {
        let (world, mut minder) = World::new();
        minder.on_write_blocking();
        world.has(Pressure::Slowing(Duration::from_millis(12)));
        assert_eq!(minder.mind(), Ok(()));
        assert_eq!(world.delay_ms(), 12);
        world.has(Pressure::NoSpace);
        assert_eq!(minder.mind(), Err(CalledOff::NoSpace));
        drop(minder);
        assert_eq!(world.delay_ms(), 0);
    }
}
