//! Copies that are taken while others write, and stores that go on from one.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sterna_store::{Error, OpenError, Sqlite, Store, Txn, copy};

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_taken_while_others_write_is_one_commit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = Arc::new(Sqlite::open(&path).unwrap());
    let is_over = Arc::new(AtomicBool::new(false));
    let writer = {
        let (store, is_over) = (Arc::clone(&store), Arc::clone(&is_over));
        tokio::spawn(async move {
            let mut number = 0u64;
            while !is_over.load(Ordering::Relaxed) {
                number += 1;
                let text = number.to_string().into_bytes();
                // Two rows that are always equal.
                store.commit(Txn::new().put("x/a", text.clone()).put("x/b", text)).await.unwrap();
            }
            number
        })
    };
    let mut revisions = Vec::new();
    for number in 0..5 {
        let to = dir.path().join(format!("copy-{number}"));
        let from = path.clone();
        let shown = tokio::task::spawn_blocking(move || copy::copy_store(&from, &to)).await.unwrap().unwrap();
        revisions.push(shown);
    }
    is_over.store(true, Ordering::Relaxed);
    let written = writer.await.unwrap();
    assert!(revisions.is_sorted() && *revisions.last().unwrap() <= written, "{revisions:?} of {written}");
    for (number, shown) in revisions.iter().enumerate() {
        let copied = dir.path().join(format!("copy-{number}"));
        assert_eq!(copy::revision(&copied).unwrap(), *shown);
        let copied = Sqlite::open(&copied).unwrap();
        let snapshot = copied.range("x/", None).await.unwrap();
        assert_eq!(snapshot.revision, *shown);
        if let [a, b] = &snapshot.entries[..] {
            assert_eq!((&a.value, a.modified), (&b.value, b.modified));
            assert_eq!(a.modified, *shown);
        }
    }
}

#[tokio::test]
async fn a_store_goes_on_under_a_later_revision() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = Sqlite::open(&path).unwrap();
    store.commit(Txn::new().put("vm/web", *b"1").put("main", *b"old")).await.unwrap();
    store.commit(Txn::new().put("vm/web", *b"2")).await.unwrap();
    let busy = copy::go_on(&path, 1000, "main", |_| Vec::new());
    assert!(matches!(busy, Err(OpenError::Locked { .. })), "{busy:?}");
    drop(store);
    let gone_on = copy::go_on(&path, 1000, "main", |before| {
        assert_eq!(before, Some(&b"old"[..]));
        b"new".to_vec()
    });
    assert_eq!(gone_on.unwrap(), 1002);
    let store = Sqlite::open(&path).unwrap();
    let snapshot = store.range("", None).await.unwrap();
    assert_eq!(snapshot.revision, 1002);
    let rows: Vec<_> = snapshot
        .entries
        .iter()
        .map(|row| (row.key.as_str(), &row.value[..], row.created, row.modified))
        .collect();
    assert_eq!(rows, [("main", &b"new"[..], 1, 1002), ("vm/web", &b"2"[..], 1, 2)]);
    assert!(matches!(store.watch("", 3).await, Err(Error::Compacted { oldest: 1002 })));
    assert_eq!(store.commit(Txn::new().put("vm/web", *b"3")).await.unwrap(), 1003);
}

#[tokio::test]
async fn a_damaged_or_foreign_copy_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    assert!(matches!(copy::copy_store(&path, &dir.path().join("x")), Err(OpenError::Io { .. })));
    let store = Sqlite::open(&path).unwrap();
    store.commit(Txn::new().put("vm/web", vec![b'w'; 3000])).await.unwrap();
    let copied = dir.path().join("copied");
    copy::copy_store(&path, &copied).unwrap();
    let mut bytes = std::fs::read(&copied).unwrap();
    let place = bytes.windows(64).position(|window| window == [b'w'; 64]).unwrap();
    bytes[place + 10] = b'x';
    std::fs::write(&copied, &bytes).unwrap();
    let refused = copy::revision(&copied).unwrap_err();
    assert!(matches!(&refused, OpenError::Damaged { reason, .. } if reason.contains("vm/web")), "{refused}");
    std::fs::write(&copied, b"not a database at all, but a letter to somebody").unwrap();
    assert!(matches!(copy::revision(&copied), Err(OpenError::Foreign { .. })));
}
