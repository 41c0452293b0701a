//! What watches promise.

use std::sync::Arc;

use crate::conformance::next;
use crate::error::Error;
use crate::store::{Revision, Store};
use crate::txn::{STEPS_MAX, Txn};
use crate::watch::{Batch, Change};

async fn put(store: &dyn Store, key: &str) -> Revision {
    store.commit(Txn::new().put(key, key.as_bytes())).await.expect("commit")
}

fn told(revision: Revision, key: &str, created: Revision) -> Result<Batch, Error> {
    let change = Change { key: key.to_owned(), value: Some(key.as_bytes().into()), created };
    Ok(Batch { revision, changes: vec![change] })
}

pub(super) async fn a_watch_tells_past_present_and_future(store: &dyn Store) {
    put(store, "w/a").await;
    put(store, "other").await;
    put(store, "w/a").await;
    store.commit(Txn::new().delete("w/a")).await.expect("commit");
    let mut all = store.watch("w/", 0).await.expect("watch");
    let mut late = store.watch("w/", 2).await.expect("watch");
    assert_eq!(next(&mut all).await, told(1, "w/a", 1));
    let gone = Change { key: "w/a".to_owned(), value: None, created: 1 };
    for watch in [&mut all, &mut late] {
        assert_eq!(next(watch).await, told(3, "w/a", 1));
        assert_eq!(next(watch).await, Ok(Batch { revision: 4, changes: vec![gone.clone()] }));
    }
    put(store, "other").await;
    put(store, "w/b").await;
    for watch in [&mut all, &mut late] {
        assert_eq!(next(watch).await, told(6, "w/b", 6));
    }
}

pub(super) async fn a_watch_of_the_future_starts_there(store: &dyn Store) {
    let mut watch = store.watch("", 3).await.expect("watch");
    for key in ["a", "b", "c", "d"] {
        put(store, key).await;
    }
    assert_eq!(next(&mut watch).await, told(3, "c", 3));
    assert_eq!(next(&mut watch).await, told(4, "d", 4));
}

/// While commits go on, a copy kept by snapshot and watch must equal the store.
pub(super) async fn a_watch_follows_a_snapshot_without_gap_or_repeat(store: Arc<dyn Store>) {
    const COMMITS: u64 = 150;
    let writer = Arc::clone(&store);
    let writing = tokio::spawn(async move {
        for i in 0..COMMITS {
            put(&*writer, &format!("f/{}", i % 7)).await;
        }
    });
    for _ in 0..5 {
        let snapshot = store.range("f/", None).await.expect("range");
        let mut watch = store.watch("f/", snapshot.revision + 1).await.expect("watch");
        for revision in snapshot.revision + 1..=COMMITS.min(snapshot.revision + 20) {
            assert_eq!(next(&mut watch).await.expect("next").revision, revision);
        }
    }
    let mut watch = store.watch("f/", 1).await.expect("watch");
    for revision in 1..=COMMITS {
        assert_eq!(next(&mut watch).await.expect("next").revision, revision);
    }
    writing.await.expect("writer");
}

pub(super) async fn a_commit_is_one_batch(store: &dyn Store) {
    // More commits and changes than any back end reads at once.
    let many = |value: &'static [u8]| {
        (0..STEPS_MAX).rev().fold(Txn::new(), |txn, i| txn.put(format!("m/{i:04}"), value))
    };
    for value in [b"1", b"2", b"3"] {
        store.commit(many(value)).await.expect("commit");
        put(store, "n").await;
    }
    let mut watch = store.watch("", 0).await.expect("watch");
    for revision in 1..=6 {
        let batch = next(&mut watch).await.expect("next");
        let wanted = if revision % 2 == 1 { STEPS_MAX } else { 1 };
        assert_eq!((batch.revision, batch.changes.len()), (revision, wanted));
        assert!(batch.changes.is_sorted_by(|a, b| a.key < b.key));
    }
}

pub(super) async fn a_dropped_wait_loses_nothing(store: &dyn Store) {
    let mut watch = store.watch("", 0).await.expect("watch");
    for revision in 1..=50 {
        {
            let mut wait = std::pin::pin!(watch.next());
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            assert!(wait.as_mut().poll(&mut context).is_pending(), "nothing to tell yet");
        }
        put(store, "a").await;
        {
            let mut wait = std::pin::pin!(watch.next());
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            if let std::task::Poll::Ready(batch) = wait.as_mut().poll(&mut context) {
                assert_eq!(batch.expect("next").revision, revision);
                continue;
            }
        }
        assert_eq!(next(&mut watch).await.expect("next").revision, revision);
    }
}

pub(super) async fn compaction_ends_watches_that_need_the_past(store: &dyn Store) {
    let mut slow = store.watch("", 0).await.expect("watch");
    let mut current = store.watch("", 4).await.expect("watch");
    for key in ["a", "b", "a", "d"] {
        put(store, key).await;
    }
    store.compact(3).await.expect("compact");
    assert_eq!(next(&mut slow).await, Err(Error::Compacted { oldest: 3 }));
    assert_eq!(next(&mut current).await, told(4, "d", 4));
    assert_eq!(store.watch("", 2).await.err(), Some(Error::Compacted { oldest: 3 }));
    let mut oldest = store.watch("", 3).await.expect("watch");
    assert_eq!(next(&mut oldest).await, told(3, "a", 1));
    assert_eq!(next(&mut oldest).await, told(4, "d", 4));
    store.compact(4).await.expect("compact");
    put(store, "e").await;
    assert_eq!(next(&mut oldest).await, told(5, "e", 5), "a watch that is up to date goes on");
}
