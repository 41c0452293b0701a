//! What commits and reads promise.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::conformance::value;
use crate::error::Error;
use crate::store::{Revision, Store};
use crate::txn::{BYTES_MAX, STEPS_MAX, Txn};

fn put(key: &str, value: &str) -> Txn {
    Txn::new().put(key, value.as_bytes())
}

async fn commit(store: &dyn Store, txn: Txn) -> Revision {
    store.commit(txn).await.expect("commit")
}

pub(super) async fn revisions_count_commits_that_change_something(store: &dyn Store) {
    assert_eq!(store.revision().await, Ok(0));
    assert_eq!(store.range("", None).await.expect("range").revision, 0);
    assert_eq!(commit(store, put("a", "1")).await, 1);
    assert_eq!(commit(store, put("a", "1").put("b", *b"2")).await, 2, "one commit, one revision");
    assert_eq!(commit(store, put("a", "1")).await, 3, "the same bytes are a change");
    assert_eq!(commit(store, Txn::new().delete("absent")).await, 3, "no change, no revision");
    assert_eq!(commit(store, Txn::new()).await, 3);
    assert_eq!(commit(store, Txn::new().require("a", 3)).await, 3);
    assert_eq!(commit(store, Txn::new().delete("a").delete("absent")).await, 4);
    assert_eq!(store.revision().await, Ok(4));
}

pub(super) async fn entries_say_when_they_were_made_and_changed(store: &dyn Store) {
    commit(store, put("a", "1")).await;
    commit(store, put("b", "")).await;
    commit(store, put("a", "2")).await;
    let entry = store.get("a").await.expect("get").expect("exists");
    assert_eq!((entry.key.as_str(), &entry.value[..], entry.created, entry.modified), ("a", &b"2"[..], 1, 3));
    assert_eq!(value(store, "b").await, Some(vec![]), "an empty value is a value");
    commit(store, Txn::new().delete("a")).await;
    assert_eq!(store.get("a").await, Ok(None));
    commit(store, put("a", "3")).await;
    let entry = store.get("a").await.expect("get").expect("exists");
    assert_eq!((entry.created, entry.modified), (5, 5), "made again");
}

pub(super) async fn a_failed_compare_changes_nothing(store: &dyn Store) {
    commit(store, put("a", "1")).await;
    let refused = [
        (Txn::new().absent("a").put("a", *b"x").put("b", *b"x"), "a", 0, 1),
        (Txn::new().require("a", 1).require("b", 1).put("a", *b"x").delete("a2"), "b", 1, 0),
        (Txn::new().require("a", 2).delete("a"), "a", 2, 1),
    ];
    for (txn, key, expected, found) in refused {
        let conflict = Error::Conflict { key: key.to_owned(), expected, found };
        assert_eq!(store.commit(txn).await, Err(conflict));
    }
    assert_eq!(store.revision().await, Ok(1));
    assert_eq!(value(store, "a").await, Some(b"1".to_vec()));
    assert_eq!(value(store, "b").await, None);
    assert_eq!(commit(store, Txn::new().require("a", 1).absent("b").delete("a").put("b", *b"1")).await, 2);
    commit(store, Txn::new().delete("b")).await;
    assert_eq!(commit(store, Txn::new().absent("b").put("b", *b"2")).await, 4, "deleted is absent");
}

pub(super) async fn a_prefix_selects_exactly_its_keys(store: &dyn Store) {
    let keys = ["vm", "vm!", "vm/", "vm/a", "vm/a/b", "vm/~~", "vm0", "VM/a", "vm-x/a"];
    let txn = keys.iter().fold(Txn::new(), |txn, key| txn.put(*key, *b"x"));
    commit(store, txn).await;
    for prefix in ["", "v", "vm", "vm/", "vm/a", "vm/~", "vm0", "V", "w", "~"] {
        let snapshot = store.range(prefix, None).await.expect("range");
        let found: Vec<&str> = snapshot.entries.iter().map(|entry| entry.key.as_str()).collect();
        let mut wanted: Vec<&str> = keys.into_iter().filter(|key| key.starts_with(prefix)).collect();
        wanted.sort_unstable();
        assert_eq!(found, wanted, "prefix {prefix:?}");
    }
}

pub(super) async fn the_past_can_be_read(store: &dyn Store) {
    commit(store, put("a", "1").put("b", *b"1")).await;
    commit(store, put("a", "2")).await;
    commit(store, Txn::new().delete("a")).await;
    commit(store, put("a", "4").delete("b")).await;
    let wanted: [&[(&str, &str)]; 5] =
        [&[], &[("a", "1"), ("b", "1")], &[("a", "2"), ("b", "1")], &[("b", "1")], &[("a", "4")]];
    for (revision, wanted) in (0..).zip(wanted) {
        let snapshot = store.range("", Some(revision)).await.expect("range");
        assert_eq!(snapshot.revision, revision);
        let found: Vec<(&str, &str)> = snapshot
            .entries
            .iter()
            .map(|entry| (entry.key.as_str(), std::str::from_utf8(&entry.value).expect("text")))
            .collect();
        assert_eq!(found, wanted, "at {revision}");
    }
    assert_eq!(store.range("", Some(5)).await, Err(Error::Future { requested: 5, revision: 4 }));
}

pub(super) async fn invalid_requests_are_refused(store: &dyn Store) {
    let refused = [
        put("", "x"),
        put("a b", "x"),
        put("a\0", "x"),
        put("\u{e9}", "x"),
        put("a", "x").delete("a"),
        Txn::new().put("a", vec![0; BYTES_MAX + 1]),
    ];
    for txn in refused {
        assert!(matches!(store.commit(txn).await, Err(Error::Invalid { .. })));
    }
    assert!(matches!(store.get("").await, Err(Error::Invalid { .. })));
    assert!(matches!(store.range("\u{e9}", None).await, Err(Error::Invalid { .. })));
    assert!(matches!(store.watch(" ", 0).await, Err(Error::Invalid { .. })));
    assert_eq!(store.revision().await, Ok(0));
}

pub(super) async fn compaction_forgets_the_past_and_nothing_else(store: &dyn Store) {
    commit(store, put("kept", "1").put("gone", *b"1")).await;
    commit(store, Txn::new().delete("gone")).await;
    commit(store, put("new", "3")).await;
    commit(store, put("new", "4")).await;
    let before: Vec<_> = [3, 4].into_iter().map(Some).collect();
    let mut wanted = Vec::new();
    for &at in &before {
        wanted.push(store.range("", at).await);
    }
    assert_eq!(store.compact(5).await, Err(Error::Future { requested: 5, revision: 4 }));
    assert_eq!(store.compact(3).await, Ok(()));
    assert_eq!(store.compact(1).await, Ok(()), "forgetting less than before is fine");
    for (at, wanted) in before.into_iter().zip(wanted) {
        assert_eq!(store.range("", at).await, wanted, "at {at:?}");
    }
    for at in [0, 1, 2] {
        assert_eq!(store.range("", Some(at)).await, Err(Error::Compacted { oldest: 3 }), "at {at}");
    }
    assert_eq!(commit(store, put("gone", "5")).await, 5, "compaction is no commit");
    let entry = store.get("gone").await.expect("get").expect("exists");
    assert_eq!(entry.created, 5);
    assert_eq!(store.compact(5).await, Ok(()));
    assert_eq!(store.range("", Some(5)).await, store.range("", None).await);
}

pub(super) async fn large_transactions_are_whole(store: &dyn Store) {
    let keys: Vec<String> = (0..STEPS_MAX).map(|i| format!("many/{i:04}")).collect();
    let value = vec![7; 1000];
    let txn = keys.iter().fold(Txn::new(), |txn, key| txn.absent(key).put(key, &value[..]));
    commit(store, txn).await;
    assert_eq!(store.range("many/", None).await.expect("range").entries.len(), STEPS_MAX);
    commit(store, Txn::new().put("one", vec![9; BYTES_MAX - 3])).await;
    assert_eq!(super::value(store, "one").await, Some(vec![9; BYTES_MAX - 3]));
    let txn = keys.iter().fold(Txn::new(), |txn, key| txn.require(key, 1).delete(key));
    commit(store, txn).await;
    assert_eq!(store.range("many/", None).await.expect("range").entries, []);
}

/// Each task reads, adds one and writes under a compare. If two commits saw the same past, a step is lost.
pub(super) async fn concurrent_counters_lose_no_step(store: Arc<dyn Store>) {
    const TASKS: u64 = 8;
    const STEPS: u64 = 25;
    let tasks: Vec<_> = (0..TASKS).map(|_| tokio::spawn(count(Arc::clone(&store), STEPS))).collect();
    let mut seen = Vec::new();
    for task in tasks {
        seen.extend(task.await.expect("task"));
    }
    assert_eq!(value(&*store, "counter").await, Some((TASKS * STEPS).to_string().into_bytes()));
    seen.sort_unstable();
    let wanted: Vec<Revision> = (1..=TASKS * STEPS).collect();
    assert_eq!(seen, wanted, "each commit has its own revision, without a gap");
}

async fn count(store: Arc<dyn Store>, steps: u64) -> Vec<Revision> {
    let mut revisions = Vec::new();
    while (revisions.len() as u64) < steps {
        let entry = store.get("counter").await.expect("get");
        let at = entry.as_ref().map_or(0, |entry| entry.modified);
        let count: u64 = entry
            .map_or(0, |entry| std::str::from_utf8(&entry.value).expect("text").parse().expect("a number"));
        match store
            .commit(Txn::new().require("counter", at).put("counter", (count + 1).to_string().into_bytes()))
            .await
        {
            Ok(revision) => revisions.push(revision),
            Err(Error::Conflict { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    revisions
}

pub(super) async fn readers_never_see_half_a_transaction(store: Arc<dyn Store>) {
    let done = Arc::new(AtomicBool::new(false));
    let reader = tokio::spawn(read_pairs(Arc::clone(&store), Arc::clone(&done)));
    for i in 0..100u32 {
        let value = i.to_string().into_bytes();
        commit(&*store, Txn::new().put("pair/a", &value[..]).put("pair/b", &value[..])).await;
    }
    done.store(true, Ordering::SeqCst);
    reader.await.expect("reader");
}

async fn read_pairs(store: Arc<dyn Store>, done: Arc<AtomicBool>) {
    let mut last = 0;
    while !done.load(Ordering::SeqCst) {
        let snapshot = store.range("pair/", None).await.expect("range");
        assert!(snapshot.revision >= last, "reads never go back");
        last = snapshot.revision;
        if let [a, b] = &snapshot.entries[..] {
            assert_eq!((&a.value, a.modified), (&b.value, b.modified));
            assert_eq!(a.modified, snapshot.revision);
        } else {
            assert_eq!((snapshot.entries.len(), snapshot.revision), (0, 0));
        }
        tokio::task::yield_now().await;
    }
}
