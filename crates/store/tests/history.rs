//! The history keeps what it was told, in order, and shows when the audit record was touched.

#![allow(clippy::unwrap_used, reason = "also the helpers of tests may panic")]

use std::path::{Path, PathBuf};

use sterna_store::History;
use sterna_store::history::{Audit, Event, EventFilter, Trim, Verdict};

fn event(time_ms: i64, kind: &str, object: &str) -> Event {
    Event {
        time_ms,
        kind: kind.into(),
        object_kind: "vm".into(),
        object: object.into(),
        message: format!("{object}: {kind}"),
        why: Some("asked for".into()),
        operation: Some(format!("op-{time_ms}")),
    }
}

fn audit(number: i64) -> Audit {
    Audit {
        time_ms: number,
        actor: "ada".into(),
        source: "192.0.2.7".into(),
        method: "POST".into(),
        path: format!("/v1/vms/{number}"),
        request_hash: "00ff".into(),
        outcome: "201".into(),
    }
}

fn place() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("history.db");
    (folder, path)
}

async fn ids(history: &History, filter: EventFilter) -> Vec<u64> {
    history.events(filter).await.unwrap().into_iter().map(|event| event.id).collect()
}

#[tokio::test]
async fn events_are_found_by_every_filter() {
    let (_folder, path) = place();
    let history = History::open(&path).unwrap();
    for (time_ms, kind, object) in
        [(10, "created", "a"), (20, "started", "a"), (30, "created", "b"), (40, "started", "b")]
    {
        history.append_event(event(time_ms, kind, object)).await.unwrap();
    }
    let all = EventFilter::default();
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(ids(&history, all.clone()).await, [4, 3, 2, 1]);
    assert_eq!(ids(&history, EventFilter { kind: some("created"), ..all.clone() }).await, [3, 1]);
    assert_eq!(ids(&history, EventFilter { object: some("b"), ..all.clone() }).await, [4, 3]);
    assert_eq!(ids(&history, EventFilter { object_kind: some("host"), ..all.clone() }).await, []);
    assert_eq!(ids(&history, EventFilter { operation: some("op-20"), ..all.clone() }).await, [2]);
    assert_eq!(ids(&history, EventFilter { since_ms: Some(30), ..all.clone() }).await, [4, 3]);
    assert_eq!(ids(&history, EventFilter { limit: 2, before: Some(4), ..all.clone() }).await, [3, 2]);
    let both = EventFilter { kind: some("started"), object: some("a"), ..all };
    assert_eq!(history.events(both).await.unwrap()[0].row, event(20, "started", "a"));
}

#[tokio::test]
async fn subscribers_hear_each_row_once_it_can_be_read() {
    let (_folder, path) = place();
    let history = History::open(&path).unwrap();
    let mut events = history.subscribe_events();
    let mut audits = history.subscribe_audits();
    drop(history.append_event(event(1, "dropped", "a")));
    assert_eq!(history.append_audit(audit(1)).await, Ok(1));
    let heard = events.recv().await.unwrap();
    assert_eq!((heard.id, &heard.row), (1, &event(1, "dropped", "a")));
    assert_eq!(ids(&history, EventFilter::default()).await, [1]);
    assert_eq!(audits.recv().await.unwrap().row, audit(1));
    assert!(events.try_recv().is_err() && audits.try_recv().is_err(), "each once");
}

#[tokio::test]
async fn trimming_removes_old_events_and_no_audit_row() {
    let (_folder, path) = place();
    let history = History::open(&path).unwrap();
    for i in 1..=10 {
        history.append_event(event(i, "tick", "a")).await.unwrap();
        history.append_audit(audit(i)).await.unwrap();
    }
    let by_age = Trim { before_ms: Some(4), keep: None };
    assert_eq!(history.trim(by_age).await, Ok(3));
    assert_eq!(history.trim(Trim { before_ms: None, keep: Some(2) }).await, Ok(5));
    assert_eq!(history.trim(Trim::default()).await, Ok(0));
    assert_eq!(ids(&history, EventFilter::default()).await, [10, 9]);
    assert_eq!(history.audits(None, 100).await.unwrap().len(), 10);
    history.trim(Trim { before_ms: None, keep: Some(0) }).await.unwrap();
    drop(history);
    let history = History::open(&path).unwrap();
    assert_eq!(history.append_event(event(11, "tick", "a")).await, Ok(11), "a number never comes twice");
}

async fn written(path: &Path) -> String {
    let history = History::open(path).unwrap();
    let appends: Vec<_> = (1..=20).map(|i| history.append_audit(audit(i))).collect();
    for (wanted, append) in (1..).zip(appends) {
        assert_eq!(append.await, Ok(wanted));
    }
    drop(history);
    let history = History::open(path).unwrap();
    assert_eq!(history.append_audit(audit(21)).await, Ok(21), "the chain goes on after opening");
    let page = history.audits(Some(20), 2).await.unwrap();
    assert_eq!(page.iter().map(|audit| audit.id).collect::<Vec<_>>(), [19, 18]);
    match history.verify().await.unwrap() {
        Verdict::Whole { last: 21, head } => head,
        verdict => panic!("{verdict:?}"),
    }
}

#[tokio::test]
async fn every_touch_of_the_audit_record_is_found() {
    let (folder, path) = place();
    let head = written(&path).await;
    let touches = [
        ("UPDATE audit SET actor = 'eve' WHERE id = 7", Verdict::Broken { id: 7 }),
        ("UPDATE audit SET time_ms = time_ms + 1 WHERE id = 7", Verdict::Broken { id: 7 }),
        ("UPDATE audit SET method = 'POST/', path = 'v1/vms/7' WHERE id = 7", Verdict::Broken { id: 7 }),
        ("UPDATE audit SET chain = zeroblob(32) WHERE id = 7", Verdict::Broken { id: 7 }),
        ("DELETE FROM audit WHERE id = 7", Verdict::Broken { id: 7 }),
        ("DELETE FROM audit WHERE id = 1", Verdict::Broken { id: 1 }),
        ("UPDATE audit SET id = id + 100 WHERE id = 21", Verdict::Broken { id: 21 }),
        ("UPDATE audit SET path = '/v1/vms/21' WHERE id = 21", Verdict::Whole { last: 21, head }),
    ];
    for (number, (sql, wanted)) in touches.into_iter().enumerate() {
        let copy = folder.path().join(format!("{number}.db"));
        std::fs::copy(&path, &copy).unwrap();
        let db = rusqlite::Connection::open(&copy).unwrap();
        assert_eq!(db.execute(sql, []).unwrap(), 1, "{sql}");
        drop(db);
        assert_eq!(History::open(&copy).unwrap().verify().await, Ok(wanted), "{sql}");
    }
}

/// The stored form of the chain must never change: old records would look forged.
#[tokio::test]
async fn the_chain_of_a_known_row_is_known() {
    let (_folder, path) = place();
    let history = History::open(&path).unwrap();
    history.append_audit(audit(1)).await.unwrap();
    let Verdict::Whole { head, .. } = history.verify().await.unwrap() else { panic!("broken") };
    assert_eq!(head, "9a771246d7d0de6a99c5ac05d0319efcf07b910e6b5990f6b01d8ce278c7914d");
}
