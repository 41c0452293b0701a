//! Every back end passes the one suite.

#![allow(clippy::unwrap_used, reason = "also the helpers of tests may panic")]

use std::sync::Arc;

use proptest::prelude::*;
use sterna_store::conformance::{self, model::Step};
use sterna_store::{Memory, Sqlite, Store};

/// A store with the folder it lives in.
fn sqlite() -> (tempfile::TempDir, Arc<dyn Store>) {
    let folder = tempfile::tempdir().unwrap();
    let store = Sqlite::open(&folder.path().join("store.db")).unwrap();
    (folder, Arc::new(store))
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_conforms() {
    conformance::all(async || Arc::new(Memory::default()) as Arc<dyn Store>).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let number = std::sync::atomic::AtomicU32::new(0);
    conformance::all(async || {
        let number = number.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = folder.path().join(format!("{number}.db"));
        Arc::new(Sqlite::open(&path).unwrap()) as Arc<dyn Store>
    })
    .await;
}

fn step() -> impl Strategy<Value = Step> {
    let writes = proptest::collection::btree_map(0..6u8, proptest::option::of(0..250u8), 0..5);
    let commit = (writes, proptest::option::of(0..6u8), proptest::bool::weighted(0.2))
        .prop_map(|(writes, compare, stale)| Step::Commit { writes, compare, stale });
    prop_oneof![
        8 => commit,
        1 => (0..20u8).prop_map(|back| Step::Compact { back }),
        2 => (0..20u8).prop_map(|back| Step::Read { back }),
    ]
}

fn run(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

    #[test]
    fn memory_equals_the_model(history in proptest::collection::vec(step(), 0..60)) {
        run(async { conformance::model::check(&Memory::default(), &history).await });
    }

    #[test]
    fn sqlite_equals_the_model(history in proptest::collection::vec(step(), 0..40)) {
        let (_folder, store) = sqlite();
        run(async { conformance::model::check(&*store, &history).await });
    }
}
