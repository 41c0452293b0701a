//! A suite that every back end must pass.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use sterna_store::{Memory, Store, conformance};
//! # async fn test() {
//! conformance::all(async || Arc::new(Memory::default()) as Arc<dyn Store>).await;
//! # }
//! ```
//!
//! It needs a tokio runtime with several threads and panics at the first promise that is not kept.
//! Random histories are checked against the module `model`.

/// What commits and reads promise.
mod commits;
/// What leases promise.
mod leases;
/// A plain map with all its past: what a store must look like after any history.
pub mod model;
/// What watches promise.
mod watches;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::store::{Entry, Store};
use crate::watch::{Batch, Watch};

/// How long a thing that must happen may take; far beyond any honest delay.
const PATIENCE: Duration = Duration::from_secs(20);
/// Random histories in one run of the suite.
const HISTORIES: u64 = 20;
/// Steps of one random history.
const HISTORY_STEPS: usize = 60;

/// Runs the whole suite; `make` gives a new empty store for each part.
pub async fn all<M>(make: M)
where
    M: AsyncFn() -> Arc<dyn Store>,
{
    commits::revisions_count_commits_that_change_something(&*make().await).await;
    commits::entries_say_when_they_were_made_and_changed(&*make().await).await;
    commits::a_failed_compare_changes_nothing(&*make().await).await;
    commits::a_prefix_selects_exactly_its_keys(&*make().await).await;
    commits::the_past_can_be_read(&*make().await).await;
    commits::invalid_requests_are_refused(&*make().await).await;
    commits::compaction_forgets_the_past_and_nothing_else(&*make().await).await;
    commits::large_transactions_are_whole(&*make().await).await;
    commits::concurrent_counters_lose_no_step(make().await).await;
    commits::readers_never_see_half_a_transaction(make().await).await;
    watches::a_watch_tells_past_present_and_future(&*make().await).await;
    watches::a_watch_of_the_future_starts_there(&*make().await).await;
    watches::a_watch_follows_a_snapshot_without_gap_or_repeat(make().await).await;
    watches::a_commit_is_one_batch(&*make().await).await;
    watches::a_dropped_wait_loses_nothing(&*make().await).await;
    watches::compaction_ends_watches_that_need_the_past(&*make().await).await;
    leases::one_holder_at_a_time(&*make().await).await;
    leases::a_deposed_leader_cannot_write(&*make().await).await;
    leases::an_expired_lease_is_taken_over(&*make().await).await;
    leases::candidates_get_distinct_growing_epochs(make().await).await;
    for seed in 0..HISTORIES {
        model::check(&*make().await, &model::history(seed, HISTORY_STEPS)).await;
    }
}

async fn next(watch: &mut Watch) -> Result<Batch, Error> {
    tokio::time::timeout(PATIENCE, watch.next()).await.expect("a change that was made is told")
}

async fn value(store: &dyn Store, key: &str) -> Option<Vec<u8>> {
    store.get(key).await.expect("get").map(|entry: Entry| entry.value.to_vec())
}

fn deadline() -> Instant {
    Instant::now() + PATIENCE
}
