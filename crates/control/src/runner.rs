//! The loop around turns: watches wake it, timers bound its patience, and it ends with its lease.

use std::sync::Arc;
use std::time::Duration;

use sterna_base::backoff::Backoff;
use sterna_base::clock::Clock;
use sterna_model::event::Event;
use sterna_store::{Error, Lease, Store, Watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::fencer::Fencer;
use crate::leader::{self, KEEP_EVERY};
use crate::turn::Mind;

/// Planners wait for time as well as for changes (back-offs, deadlines); this is how late they may notice.
const TICK: Duration = Duration::from_millis(500);
/// Everything is read anew this often, in case a change was never told.
const REREAD_EVERY: Duration = Duration::from_secs(30);
/// Revisions that stay readable for watches that are behind.
const REVISIONS_KEPT: u64 = 10_000;

/// Where the reasons of committed actions go.
pub type Sink = Arc<dyn Fn(Event) + Send + Sync>;

/// Who wants to lead.
pub struct Candidate {
    pub name: String,
    /// Asks voters about hosts while it leads. Without one no host is ever proven lost.
    pub fencer: Option<Fencer>,
}

/// Leads whenever it may, until cancelled. Ends with an error only when the store is closed for good.
pub async fn run(
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    Candidate { name, mut fencer }: Candidate,
    sink: Sink,
    cancel: CancellationToken,
) -> Result<(), Error> {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
    loop {
        let term = async {
            let lease = leader::win(&*store, &name).await?;
            tracing::info!(epoch = lease.epoch, "leads");
            lead(&store, &*clock, &lease, (&sink, fencer.as_mut())).await
        };
        let result = tokio::select! {
            biased;
            () = cancel.cancelled() => return Ok(()),
            result = term => result,
        };
        if let Some(fencer) = &mut fencer {
            fencer.rest();
        }
        match result {
            Ok(()) | Err(Error::Deposed { .. }) => backoff.reset(),
            Err(error @ Error::Closed { .. }) => return Err(error),
            Err(error) => tracing::warn!(%error, "control lost the store"),
        }
        tokio::select! {
            biased;
            () = cancel.cancelled() => return Ok(()),
            () = sleep(backoff.next_delay()) => {}
        }
    }
}

/// One term of leadership.
async fn lead(
    store: &Arc<dyn Store>,
    clock: &dyn Clock,
    lease: &Lease,
    (sink, mut fencer): (&Sink, Option<&mut Fencer>),
) -> Result<(), Error> {
    let mut mind = Mind::read(Arc::clone(store)).await?;
    let mut watch = store.watch("", mind.revision() + 1).await?;
    let mut tick = interval(TICK);
    let mut keep = interval(KEEP_EVERY);
    let mut reread = interval(REREAD_EVERY);
    for timer in [&mut tick, &mut keep, &mut reread] {
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    reread.reset();
    let mut goes_on = false;
    loop {
        tokio::select! {
            biased; // Losing the lease is most urgent; then what changed.
            _ = keep.tick() => store.keep(lease).await?,
            batch = watch.next() => follow(store, &mut mind, &mut watch, batch).await?,
            _ = reread.tick() => {
                mind.reread().await?;
                store.compact(mind.revision().saturating_sub(REVISIONS_KEPT)).await?;
            }
            () = std::future::ready(()), if goes_on => {}
            () = heard(fencer.as_deref_mut()) => {}
            _ = tick.tick() => {}
        }
        let turn = match &mut fencer {
            Some(fencer) => {
                fencer.learn(mind.view());
                let sights = fencer.sights();
                mind.turn_hearing(lease, (&sights, fencer.server(), fencer.heard()), clock.now()).await?
            }
            None => mind.turn(lease, clock.now()).await?,
        };
        goes_on = turn.is_partial;
        if turn.conflicts > 0 {
            tracing::debug!(conflicts = turn.conflicts, "the ground changed; deciding again");
        }
        // The next round has to see what this one wrote, or it would decide the same things again and conflict.
        while mind.revision() < turn.committed {
            match timeout(TICK, watch.next()).await {
                Ok(batch) => follow(store, &mut mind, &mut watch, batch).await?,
                // It was never told.
                Err(_) => mind.reread().await?,
            }
        }
        for event in turn.events {
            tracing::info!(
                kind = event.kind,
                name = event.name,
                what = event.what,
                why = event.why,
                "decided"
            );
            sink(event);
        }
    }
}

/// Something of what voters say has changed.
async fn heard(fencer: Option<&mut Fencer>) {
    match fencer {
        Some(fencer) => fencer.changed().await,
        None => std::future::pending().await,
    }
}

async fn follow(
    store: &Arc<dyn Store>,
    mind: &mut Mind,
    watch: &mut Watch,
    batch: Result<sterna_store::Batch, Error>,
) -> Result<(), Error> {
    match batch {
        Ok(batch) => mind.on_batch(&batch),
        Err(Error::Compacted { .. }) => {
            mind.reread().await?;
            *watch = store.watch("", mind.revision() + 1).await?;
        }
        Err(error) => return Err(error),
    }
    Ok(())
}
