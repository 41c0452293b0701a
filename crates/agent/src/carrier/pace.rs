//! How fast each guest on its way out may go: what the server shares out of the lines' limits, by this host's clock.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sterna_base::clock::{Clock, SystemClock, Timestamp};
use sterna_model::bandwidth::{Share, rate_at};
use sterna_mover::link::{Pace, UNLIMITED};
use sterna_wire::assignment;
use tokio::sync::watch;
use uuid::Uuid;

use super::Carriers;

/// A limit begins and ends on a minute; this is soon enough after it, also when the clock was set anew.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// By the name of the session; one that is not here has no limit.
pub(super) type Shares = Arc<HashMap<Uuid, Vec<Share>>>;

impl Carriers {
    /// The newest word of the server; moves under way take it up at once.
    pub fn set_paces(&self, paces: &[assignment::Pace]) {
        let shares: HashMap<_, _> = paces.iter().map(|pace| (pace.session, pace.shares.clone())).collect();
        self.0.paces.send_if_modified(|present| {
            let is_news = **present != shares;
            *present = Arc::new(shares);
            is_news
        });
    }

    /// For all links of one move.
    pub(super) fn pace(&self, session: Uuid) -> Pace {
        let shares = self.0.paces.subscribe();
        let (rate, pace) = watch::channel(now_for(&shares, session, SystemClock.now()));
        self.0.scope.spawn(follow(shares, session, SystemClock, rate));
        Pace::limited(pace)
    }
}

fn now_for(shares: &watch::Receiver<Shares>, session: Uuid, now: Timestamp) -> u64 {
    let shares = shares.borrow();
    shares.get(&session).and_then(|shares| rate_at(shares, now)).unwrap_or(UNLIMITED)
}

/// Until the last link of the move is gone.
async fn follow(
    mut shares: watch::Receiver<Shares>,
    session: Uuid,
    clock: impl Clock,
    rate: watch::Sender<u64>,
) {
    loop {
        tokio::select! {
            () = rate.closed() => return,
            changed = shares.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let allowed = now_for(&shares, session, clock.now());
        let is_news = rate.send_if_modified(|present| std::mem::replace(present, allowed) != allowed);
        if is_news {
            let bytes_per_second = (allowed != UNLIMITED).then_some(allowed);
            tracing::info!(%session, bytes_per_second, "a move's pace changed");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;

    #[derive(Clone)]
    struct Set(Arc<AtomicI64>);

    impl Set {
        fn to(&self, text: &str) {
            let at: Timestamp = text.parse().unwrap();
            self.0.store(at.as_millis(), Ordering::Relaxed);
        }
    }

    impl Clock for Set {
        fn now(&self) -> Timestamp {
            Timestamp::from_millis(self.0.load(Ordering::Relaxed))
        }
    }

    fn shares(session: Uuid, moves: u32) -> Shares {
        let limits = vec!["mon-fri 08:00-18:00 8Mbit/s".parse().unwrap()];
        Arc::new(HashMap::from([(session, vec![Share { limits, moves }])]))
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_begins_and_ends_while_a_move_is_under_way() {
        let (clock, session) = (Set(Arc::default()), Uuid::from_u128(1));
        clock.to("2026-11-23T07:59:00Z");
        let (paces, told) = watch::channel(shares(session, 1));
        let (rate, mut seen) = watch::channel(UNLIMITED);
        let following = tokio::spawn(follow(told, session, clock.clone(), rate));
        clock.to("2026-11-23T08:00:00Z");
        seen.wait_for(|rate| *rate == 1_000_000).await.unwrap();
        // Another move begins, and then this one is of no concern to the limit any more.
        paces.send_replace(shares(session, 4));
        seen.wait_for(|rate| *rate == 250_000).await.unwrap();
        paces.send_replace(shares(Uuid::from_u128(2), 1));
        seen.wait_for(|rate| *rate == UNLIMITED).await.unwrap();
        paces.send_replace(shares(session, 1));
        seen.wait_for(|rate| *rate == 1_000_000).await.unwrap();
        clock.to("2026-11-23T18:00:00Z");
        seen.wait_for(|rate| *rate == UNLIMITED).await.unwrap();
        drop(seen);
        following.await.unwrap();
    }
}
