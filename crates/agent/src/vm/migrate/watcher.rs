//! Watches a transfer from the side: tells its progress, allows the whole pause, and notices when it leads nowhere.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sterna_base::units::{Bytes, Span};
use sterna_model::meta::Name;
use sterna_wire::assignment::Outgoing;
use sterna_wire::up::{Samples, Up};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::super::Reports;
use super::passes::{Hopeless, Passes};
use crate::hypervisor::{Figures, Guest, Limits};

/// A transfer that moves no byte for this long is given up. There is no limit on its total time.
const STALL: Duration = Duration::from_secs(30);
/// Of progress.
const SAMPLE_EVERY: Duration = Duration::from_millis(250);

/// What is tried before the whole of the allowed pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rung {
    /// This part of it, in thirds,
    thirds: u64,
    /// for so long after the first pass.
    patience: Duration,
}

impl Rung {
    /// Over a far line a pass takes long, and so does what is left for the pause.
    pub const CARRIED: Self = Self { thirds: 1, patience: Duration::from_secs(1) };
    /// Between neighbours a pass is short, and each shorter pause costs one more. The last third is for what QEMU does not
    /// count: the handover.
    pub const STRAIGHT: Self = Self { thirds: 2, patience: Duration::from_millis(250) };

    pub fn of(outgoing: &Outgoing) -> Self {
        if outgoing.is_carried() { Self::CARRIED } else { Self::STRAIGHT }
    }

    pub fn pause(self, max_downtime: Span) -> Span {
        Span::from_millis((max_downtime.as_millis().saturating_mul(self.thirds) / 3).max(1))
    }
}
/// Why a transfer should be given up, if it should.
#[derive(Debug, Clone, Copy, Default)]
struct Verdict {
    is_stalled: bool,
    hopeless: Option<Hopeless>,
}

pub struct Watcher {
    task: JoinHandle<()>,
    verdict: Arc<Mutex<Verdict>>,
    is_carried: bool,
}

impl Watcher {
    /// `outgoing`: `None` while there is no order; the limits stay as they are.
    pub fn start<G: Guest>(
        migration: Name,
        guest: G,
        reports: Arc<dyn Reports>,
        outgoing: Option<Outgoing>,
    ) -> Self {
        let verdict = Arc::<Mutex<Verdict>>::default();
        let told = Arc::clone(&verdict);
        let rung = outgoing.as_ref().map_or(Rung::STRAIGHT, Rung::of);
        let is_carried = outgoing.as_ref().is_some_and(Outgoing::is_carried);
        let mut watch = Watch {
            max_downtime: outgoing.as_ref().map(|outgoing| outgoing.max_downtime),
            moved: (Bytes::default(), Instant::now()),
            ladder: Ladder::new(rung.patience),
            passes: Passes::default(),
        };
        let task = tokio::spawn(async move {
            let mut every = tokio::time::interval(SAMPLE_EVERY);
            loop {
                every.tick().await;
                let Ok(mut figures) = guest.figures().await else { continue };
                *told.lock().unwrap_or_else(PoisonError::into_inner) = watch.judge(&figures);
                watch.climb(&guest, &figures).await;
                figures.progress.eta = eta(&figures);
                let migrations = [(migration.clone(), figures.progress)].into();
                reports.report(Up::Samples(Samples { migrations, ..Samples::default() }));
            }
        });
        Self { task, verdict, is_carried }
    }

    fn verdict(&self) -> Verdict {
        *self.verdict.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// While a server asks for the move (`is_ordered`), the mover knows how long a line may be gone. A move that nobody speaks
    /// for might wait for a target that no longer exists.
    pub fn is_stalled(&self, is_ordered: bool) -> bool {
        self.verdict().is_stalled && !(self.is_carried && is_ordered)
    }

    /// It would never end as it is.
    pub fn hopeless(&self) -> Option<Hopeless> {
        self.verdict().hopeless
    }
}

/// What was seen of one transfer.
struct Watch {
    max_downtime: Option<Span>,
    /// What had been sent, and since when.
    moved: (Bytes, Instant),
    ladder: Ladder,
    passes: Passes,
}

impl Watch {
    fn judge(&mut self, figures: &Figures) -> Verdict {
        let (progress, now) = (&figures.progress, Instant::now());
        if progress.sent != self.moved.0 {
            self.moved = (progress.sent, now);
        }
        let is_stalled = now - self.moved.1 >= STALL;
        let hopeless = self.max_downtime.and_then(|allowed| self.passes.judge(progress, allowed, now));
        Verdict { is_stalled, hopeless }
    }

    async fn climb<G: Guest>(&mut self, guest: &G, figures: &Figures) {
        let Some(max_downtime) = self.max_downtime else { return };
        if self.ladder.climbs(figures.progress.rounds, Instant::now()) {
            // Not taken is tried again with the next sample.
            self.ladder.is_climbed = guest.limit(Limits { max_downtime }).await.is_ok();
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How long the guest may stand still at the end. QEMU hands over as soon as what remains fits the limit, so a short one
/// is tried first, for a moment: one more pass is cheaper than a longer pause.
pub struct Ladder {
    patience: Duration,
    /// When the first pass was seen to be over.
    first_pass: Option<Instant>,
    is_climbed: bool,
}

impl Ladder {
    fn new(patience: Duration) -> Self {
        Self { patience, first_pass: None, is_climbed: false }
    }

    /// Whether it is time for the whole of what the user allows.
    fn climbs(&mut self, rounds: u64, now: Instant) -> bool {
        // QEMU counts a pass when it begins.
        if rounds >= 2 {
            self.first_pass.get_or_insert(now);
        }
        !self.is_climbed && self.first_pass.is_some_and(|at| now >= at + self.patience)
    }
}

/// What remains, at the rate by which sending outruns the guest's writing. `None`: it does not.
fn eta(figures: &Figures) -> Option<Span> {
    let progress = &figures.progress;
    let gain =
        progress.send_rate.as_u64().checked_sub(progress.dirty_rate.as_u64()).filter(|gain| *gain > 0)?;
    Some(Span::from_millis(progress.remaining.as_u64().saturating_mul(1000) / gain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_pause_is_allowed_only_after_a_short_one_was_tried() {
        let pauses = |rung: Rung| [300, 1].map(|ms| rung.pause(Span::from_millis(ms)).as_millis());
        assert_eq!(pauses(Rung::CARRIED), [100, 1]);
        assert_eq!(pauses(Rung::STRAIGHT), [200, 1]);
        let patience = Rung::STRAIGHT.patience;
        let (mut ladder, now) = (Ladder::new(patience), Instant::now());
        let later = now + Duration::from_secs(60);
        assert!(!ladder.climbs(1, now));
        assert!(!ladder.climbs(1, later), "the first pass may take as long as it takes");
        assert!(!ladder.climbs(2, later));
        assert!(ladder.climbs(3, later + patience));
        ladder.is_climbed = true;
        assert!(!ladder.climbs(3, later + patience));
    }
}
