//! What leases promise.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::conformance::{deadline, value};
use crate::error::Error;
use crate::lease::Lease;
use crate::store::{Revision, Store};
use crate::txn::Txn;

/// Longer than the test may take.
const LONG: Duration = Duration::from_secs(600);
/// Soon over; the test waits for its end.
const SHORT: Duration = Duration::from_millis(50);

async fn take(store: &dyn Store, holder: &str, ttl: Duration) -> Lease {
    store.campaign("control", holder, ttl).await.expect("the lease is free")
}

fn deposed(lease: &Lease) -> Error {
    Error::Deposed { name: lease.name.clone(), epoch: lease.epoch }
}

pub(super) async fn one_holder_at_a_time(store: &dyn Store) {
    assert_eq!(store.leader("control").await, Ok(None));
    let first = take(store, "a", LONG).await;
    assert_eq!(store.leader("control").await, Ok(Some(first.clone())));
    let held = Error::Held { name: "control".into(), holder: "a".into(), epoch: first.epoch };
    assert_eq!(store.campaign("control", "b", LONG).await, Err(held));
    assert!(store.campaign("other", "b", LONG).await.is_ok(), "another name is another lease");
    assert_eq!(store.keep(&first).await, Ok(()));
    assert_eq!(store.resign(&first).await, Ok(()));
    assert_eq!(store.keep(&first).await, Err(deposed(&first)));
    let second = take(store, "b", LONG).await;
    assert!(second.epoch > first.epoch);
    assert_eq!(store.resign(&first).await, Ok(()), "giving back what is lost is fine");
    assert_eq!(store.keep(&second).await, Ok(()), "and takes nothing from the new holder");
    let again = take(store, "b", LONG).await;
    assert!(again.epoch > second.epoch, "the same holder again is a new epoch");
    assert_eq!(store.keep(&second).await, Err(deposed(&second)));
}

pub(super) async fn a_deposed_leader_cannot_write(store: &dyn Store) {
    store.commit(Txn::new().put("before", *b"x")).await.expect("commit");
    let first = take(store, "a", LONG).await;
    assert!(first.epoch > 1, "an epoch is a revision of its own");
    let revision = store.commit(Txn::new().led_by(&first).put("k", *b"a")).await.expect("leads");
    assert!(revision > first.epoch);
    store.resign(&first).await.expect("resign");
    assert_eq!(store.commit(Txn::new().led_by(&first).put("k", *b"late")).await, Err(deposed(&first)));
    let second = take(store, "b", LONG).await;
    assert_eq!(store.commit(Txn::new().led_by(&first).put("k", *b"late")).await, Err(deposed(&first)));
    assert_eq!(value(store, "k").await, Some(b"a".to_vec()));
    store.commit(Txn::new().led_by(&second).put("k", *b"b")).await.expect("leads");
    let unknown = Lease { name: "nobody".into(), ..second };
    assert_eq!(store.commit(Txn::new().led_by(&unknown).put("k", *b"x")).await, Err(deposed(&unknown)));
    assert_eq!(value(store, "k").await, Some(b"b".to_vec()));
}

pub(super) async fn an_expired_lease_is_taken_over(store: &dyn Store) {
    let started = Instant::now();
    let first = take(store, "a", SHORT).await;
    let until = deadline();
    let second = loop {
        match store.campaign("control", "b", LONG).await {
            Ok(lease) => break lease,
            Err(Error::Held { .. }) => assert!(Instant::now() < until, "a lease ends"),
            Err(error) => panic!("{error}"),
        }
        tokio::task::yield_now().await;
    };
    assert!(started.elapsed() >= SHORT, "not before its end");
    assert!(second.epoch > first.epoch);
    assert_eq!(store.keep(&first).await, Err(deposed(&first)));
    assert_eq!(store.commit(Txn::new().led_by(&first).put("k", *b"late")).await, Err(deposed(&first)));

    let third = store.campaign("third", "a", SHORT).await.expect("campaign");
    while store.leader("third").await.expect("leader").is_some() {
        assert!(Instant::now() < until, "a lease ends");
        tokio::task::yield_now().await;
    }
    assert_eq!(store.keep(&third).await, Err(deposed(&third)), "run out is lost, also with no rival");
}

pub(super) async fn candidates_get_distinct_growing_epochs(store: Arc<dyn Store>) {
    let tasks: Vec<_> = (0..8).map(|i| tokio::spawn(lead_once(Arc::clone(&store), i))).collect();
    let mut epochs = Vec::new();
    for task in tasks {
        epochs.push(task.await.expect("task"));
    }
    epochs.sort_unstable();
    epochs.dedup();
    assert_eq!(epochs.len(), 8, "no epoch twice");
    assert_eq!(value(&*store, "reigns").await, Some(b"8".to_vec()), "no two led at a time");
}

/// Waits for its turn, then adds one to a counter, read and written under the lease alone.
async fn lead_once(store: Arc<dyn Store>, number: u32) -> Revision {
    let until = deadline();
    let holder = format!("server-{number}");
    let lease = loop {
        match store.campaign("control", &holder, LONG).await {
            Ok(lease) => break lease,
            Err(Error::Held { .. }) => assert!(Instant::now() < until, "everyone gets a turn"),
            Err(error) => panic!("{error}"),
        }
        tokio::task::yield_now().await;
    };
    let reigns = value(&*store, "reigns").await.unwrap_or(b"0".to_vec());
    let reigns: u32 = String::from_utf8(reigns).expect("text").parse().expect("a number");
    tokio::task::yield_now().await;
    let txn = Txn::new().led_by(&lease).put("reigns", (reigns + 1).to_string().into_bytes());
    store.commit(txn).await.expect("leads");
    store.resign(&lease).await.expect("resign");
    lease.epoch
}
