//! The fake store for simulation and tests: the whole store in memory, nothing durable.
//!
//! Same calls in the same order give the same answers: every future is ready at once (but a watch that has
//! nothing to tell), time comes from the given clock, and faults of watches are drawn from a seed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;

use crate::error::Error;
use crate::lease::{Clock, Lease, Leases, monotonic};
use crate::store::{BoxFuture, Entry, Revision, Snapshot, Store};
use crate::txn::{Compare, Txn, Write, check_key, check_prefix, prefix_end};
use crate::watch::{Batch, Change, Source, Watch};

/// Faults that watches of a [`Memory`] show. They never touch what reads answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WatchFaults {
    pub seed: u64,
    /// Of 1,000 batches, how many are never told.
    pub drop_per_mille: u16,
    /// Of 1,000 batches, how many are told twice.
    pub duplicate_per_mille: u16,
    /// Tell nothing until this is taken back.
    pub held: bool,
}

/// The fake store. Cheap to clone; all clones are the same store.
#[derive(Clone)]
pub struct Memory {
    shared: Arc<Shared>,
}

struct Shared {
    clock: Clock,
    state: Mutex<State>,
    /// Told on every commit and every change of the faults. It wakes watches in the order in which they began to
    /// wait; tokio's `watch` channel wakes its receivers in a random one.
    wake: Notify,
}

#[derive(Default)]
struct State {
    revision: Revision,
    oldest: Revision,
    /// Per key, its values in the order of their revisions.
    versions: BTreeMap<String, Vec<Version>>,
    log: BTreeMap<Revision, Vec<Change>>,
    leases: Leases,
    faults: WatchFaults,
}

#[derive(Clone)]
struct Version {
    modified: Revision,
    created: Revision,
    value: Option<Arc<[u8]>>,
}

impl Default for Memory {
    fn default() -> Self {
        Self::new(monotonic())
    }
}

impl Memory {
    pub fn new(clock: Clock) -> Self {
        let shared = Shared { clock, state: Mutex::default(), wake: Notify::new() };
        Self { shared: Arc::new(shared) }
    }

    /// Sets how watches misbehave from now on.
    pub fn set_watch_faults(&self, faults: WatchFaults) {
        self.shared.state().faults = faults;
        self.shared.wake.notify_waiters();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while holding the lock is a bug in this file; going on with half a commit would hide it.
        self.state.lock().expect("no panic while the state was locked")
    }
}

impl State {
    fn live(&self, key: &str) -> Option<&Version> {
        self.versions.get(key)?.last().filter(|version| version.value.is_some())
    }

    fn range(&self, prefix: &str, at: Option<Revision>) -> Result<Snapshot, Error> {
        let revision = at.unwrap_or(self.revision);
        if revision > self.revision {
            return Err(Error::Future { requested: revision, revision: self.revision });
        }
        if revision < self.oldest {
            return Err(Error::Compacted { oldest: self.oldest });
        }
        let keys = self.versions.range(prefix.to_owned()..prefix_end(prefix));
        let entries = keys.filter_map(|(key, versions)| {
            let version = versions.iter().rev().find(|version| version.modified <= revision)?;
            entry(key, version)
        });
        Ok(Snapshot { revision, entries: entries.collect() })
    }

    fn commit(&mut self, txn: Txn, now: Duration) -> Result<Revision, Error> {
        txn.check()?;
        for compare in txn.compares {
            match compare {
                Compare::Leader { name, epoch } => self.leases.check(&name, epoch, now)?,
                Compare::Modified { key, at } => {
                    let found = self.live(&key).map_or(0, |version| version.modified);
                    if found != at {
                        return Err(Error::Conflict { key, expected: at, found });
                    }
                }
            }
        }
        let revision = self.revision + 1;
        let mut changes: Vec<Change> =
            txn.writes.into_iter().filter_map(|write| self.write(write, revision)).collect();
        if !changes.is_empty() {
            changes.sort_by(|a, b| a.key.cmp(&b.key));
            self.log.insert(revision, changes);
            self.revision = revision;
        }
        Ok(self.revision)
    }

    fn write(&mut self, write: Write, revision: Revision) -> Option<Change> {
        let created = self.live(write.key()).map(|version| version.created);
        let (key, value, created) = match write {
            Write::Put { key, value } => (key, Some(value), created.unwrap_or(revision)),
            Write::Delete { key } => (key, None, created?),
        };
        let version = Version { modified: revision, created, value: value.clone() };
        self.versions.entry(key.clone()).or_default().push(version);
        Some(Change { key, value, created })
    }

    fn compact(&mut self, before: Revision) -> Result<(), Error> {
        if before > self.revision {
            return Err(Error::Future { requested: before, revision: self.revision });
        }
        self.oldest = self.oldest.max(before);
        self.log = self.log.split_off(&self.oldest);
        for versions in self.versions.values_mut() {
            let base = versions.iter().rposition(|version| version.modified <= self.oldest);
            versions.drain(..base.unwrap_or(0));
            if versions.first().is_some_and(|first| first.value.is_none() && first.modified < self.oldest) {
                versions.remove(0);
            }
        }
        self.versions.retain(|_, versions| !versions.is_empty());
        Ok(())
    }

    fn campaign(&mut self, name: &str, holder: &str, ttl: Duration, now: Duration) -> Result<Lease, Error> {
        check_key(name)?;
        self.leases.may_take(name, holder, now)?;
        self.revision += 1;
        let lease = Lease { name: name.to_owned(), holder: holder.to_owned(), epoch: self.revision, ttl };
        self.leases.grant(lease.clone(), now);
        Ok(lease)
    }
}

fn entry(key: &str, version: &Version) -> Option<Entry> {
    let Version { modified, created, value } = version.clone();
    Some(Entry { key: key.to_owned(), value: value?, created, modified })
}

fn ready<'a, T: Send + 'a>(value: T) -> BoxFuture<'a, T> {
    Box::pin(std::future::ready(value))
}

impl Store for Memory {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, Error>> {
        let state = self.shared.state();
        ready(check_key(key).map(|()| state.live(key).and_then(|version| entry(key, version))))
    }

    fn range<'a>(&'a self, prefix: &'a str, at: Option<Revision>) -> BoxFuture<'a, Result<Snapshot, Error>> {
        ready(check_prefix(prefix).and_then(|()| self.shared.state().range(prefix, at)))
    }

    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Revision, Error>> {
        let outcome = self.shared.state().commit(txn, (self.shared.clock)());
        self.shared.wake.notify_waiters();
        ready(outcome)
    }

    fn watch<'a>(&'a self, prefix: &'a str, from: Revision) -> BoxFuture<'a, Result<Watch, Error>> {
        let oldest = self.shared.state().oldest;
        ready(check_prefix(prefix).and_then(|()| {
            if from < oldest {
                return Err(Error::Compacted { oldest });
            }
            let shared = Arc::clone(&self.shared);
            Ok(Watch::new(MemoryWatch { shared, prefix: prefix.to_owned(), next: from, again: None }))
        }))
    }

    fn compact(&self, before: Revision) -> BoxFuture<'_, Result<(), Error>> {
        ready(self.shared.state().compact(before))
    }

    fn revision(&self) -> BoxFuture<'_, Result<Revision, Error>> {
        ready(Ok(self.shared.state().revision))
    }

    fn campaign<'a>(
        &'a self,
        name: &'a str,
        holder: &'a str,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Lease, Error>> {
        ready(self.shared.state().campaign(name, holder, ttl, (self.shared.clock)()))
    }

    fn keep<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<(), Error>> {
        ready(self.shared.state().leases.keep(lease, (self.shared.clock)()))
    }

    fn resign<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<(), Error>> {
        self.shared.state().leases.resign(lease, (self.shared.clock)());
        ready(Ok(()))
    }

    fn leader<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Lease>, Error>> {
        ready(Ok(self.shared.state().leases.current(name, (self.shared.clock)()).cloned()))
    }
}

struct MemoryWatch {
    shared: Arc<Shared>,
    prefix: String,
    next: Revision,
    /// A batch to be told a second time.
    again: Option<Batch>,
}

impl MemoryWatch {
    fn try_next(&mut self) -> Result<Option<Batch>, Error> {
        let state = self.shared.state();
        if state.faults.held {
            return Ok(None);
        }
        if let Some(batch) = self.again.take() {
            return Ok(Some(batch));
        }
        if self.next < state.oldest {
            return Err(Error::Compacted { oldest: state.oldest });
        }
        for (&revision, all) in state.log.range(self.next..) {
            self.next = revision + 1;
            let mine = all.iter().filter(|change| change.key.starts_with(&self.prefix));
            let changes: Vec<Change> = mine.cloned().collect();
            if changes.is_empty() || state.faults.strikes(state.faults.drop_per_mille, revision, 1) {
                continue;
            }
            let batch = Batch { revision, changes };
            if state.faults.strikes(state.faults.duplicate_per_mille, revision, 2) {
                self.again = Some(batch.clone());
            }
            return Ok(Some(batch));
        }
        self.next = self.next.max(state.revision + 1);
        Ok(None)
    }
}

impl Source for MemoryWatch {
    fn next(&mut self) -> BoxFuture<'_, Result<Batch, Error>> {
        Box::pin(async {
            let shared = Arc::clone(&self.shared);
            loop {
                // Begun before the look, so that a commit between the look and the wait is not missed.
                let woken = shared.wake.notified();
                if let Some(batch) = self.try_next()? {
                    return Ok(batch);
                }
                woken.await;
            }
        })
    }
}

impl WatchFaults {
    /// Whether a fault of this kind hits the batch: drawn from the seed, so the order of polls is irrelevant.
    fn strikes(&self, per_mille: u16, revision: Revision, kind: u64) -> bool {
        let mut x = self.seed ^ revision.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ kind.rotate_left(60);
        // The finalizer of splitmix64 (Steele, Lea, Flood 2014).
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % 1000 < u64::from(per_mille)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The revisions that a watch tells of a hundred commits.
    async fn told(faults: WatchFaults) -> Vec<Revision> {
        let store = Memory::default();
        store.set_watch_faults(faults);
        let mut watch = store.watch("", 0).await.unwrap();
        for _ in 0..100 {
            store.commit(Txn::new().put("a", *b"x")).await.unwrap();
        }
        let mut revisions = Vec::new();
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        while let std::task::Poll::Ready(batch) = Box::pin(watch.next()).as_mut().poll(&mut context) {
            revisions.push(batch.unwrap().revision);
        }
        revisions
    }

    #[tokio::test]
    async fn faults_are_shown_and_are_the_same_for_the_same_seed() {
        let drops = WatchFaults { seed: 1, drop_per_mille: 300, ..Default::default() };
        let doubles = WatchFaults { seed: 1, duplicate_per_mille: 300, ..Default::default() };
        assert_eq!(told(WatchFaults::default()).await, (1..=100).collect::<Vec<_>>());
        assert!((50..90).contains(&told(drops).await.len()));
        assert!((110..150).contains(&told(doubles).await.len()));
        assert_eq!(told(WatchFaults { drop_per_mille: 1000, ..drops }).await, []);
        assert_eq!(told(drops).await, told(drops).await);
        assert_ne!(told(drops).await, told(WatchFaults { seed: 2, ..drops }).await);
    }

    #[tokio::test]
    async fn a_held_watch_tells_all_once_it_is_let_go() {
        let store = Memory::default();
        let mut watch = store.watch("", 0).await.unwrap();
        store.set_watch_faults(WatchFaults { held: true, ..Default::default() });
        store.commit(Txn::new().put("a", *b"x")).await.unwrap();
        let mut next = Box::pin(watch.next());
        let waker = std::task::Waker::noop();
        let poll = next.as_mut().poll(&mut std::task::Context::from_waker(waker));
        assert!(poll.is_pending());
        store.set_watch_faults(WatchFaults::default());
        assert_eq!(next.await.unwrap().revision, 1);
    }
}
