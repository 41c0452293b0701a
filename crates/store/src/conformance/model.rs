//! A plain map with all its past: what a store must look like after any history.

use std::collections::BTreeMap;

use crate::conformance::next;
use crate::error::Error;
use crate::store::{Entry, Revision, Snapshot, Store};
use crate::txn::{Compare, Txn, Write};
use crate::watch::{Batch, Change};

/// One step of a history. Keys are few, so that steps meet.
#[derive(Debug, Clone)]
pub enum Step {
    /// Writes keys: each with a value, or none to delete it. `stale`: with a compare that must fail.
    Commit { writes: BTreeMap<u8, Option<u8>>, compare: Option<u8>, stale: bool },
    /// Compacts this many revisions before the last.
    Compact { back: u8 },
    /// Reads this many revisions before the last.
    Read { back: u8 },
}

/// A history that depends on nothing but its seed.
pub fn history(seed: u64, steps: usize) -> Vec<Step> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    // xorshift64 (Marsaglia 2003): any generator does, and this one needs no dependency.
    let mut draw = move |below: u8| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 32) % u64::from(below)) as u8
    };
    let mut step = |_| match draw(10) {
        0 => Step::Compact { back: draw(20) },
        1 | 2 => Step::Read { back: draw(20) },
        _ => Step::Commit {
            writes: (0..=draw(4)).map(|_| (draw(6), (draw(3) > 0).then(|| draw(250)))).collect(),
            compare: (draw(2) > 0).then(|| draw(6)),
            stale: draw(4) == 0,
        },
    };
    (0..steps).map(&mut step).collect()
}

#[derive(Default)]
struct Model {
    /// The whole map after each revision.
    past: Vec<BTreeMap<String, Entry>>,
    log: Vec<Batch>,
    oldest: Revision,
}

impl Model {
    fn revision(&self) -> Revision {
        self.past.len() as Revision - 1
    }

    fn now(&self) -> &BTreeMap<String, Entry> {
        self.past.last().expect("revision 0 is always there")
    }

    fn range(&self, at: Revision) -> Result<Snapshot, Error> {
        if at < self.oldest {
            return Err(Error::Compacted { oldest: self.oldest });
        }
        let entries = self.past[at as usize].values().cloned().collect();
        Ok(Snapshot { revision: at, entries })
    }

    fn commit(&mut self, txn: &Txn) -> Result<Revision, Error> {
        for compare in &txn.compares {
            let Compare::Modified { key, at } = compare else { continue };
            let found = self.now().get(key).map_or(0, |entry| entry.modified);
            if found != *at {
                return Err(Error::Conflict { key: key.clone(), expected: *at, found });
            }
        }
        let revision = self.revision() + 1;
        let mut map = self.now().clone();
        let mut changes = Vec::new();
        for write in &txn.writes {
            let key = write.key().to_owned();
            let created = map.get(&key).map(|entry| entry.created);
            match (write, created) {
                (Write::Put { value, .. }, created) => {
                    let created = created.unwrap_or(revision);
                    let value = value.clone();
                    changes.push(Change { key: key.clone(), value: Some(value.clone()), created });
                    map.insert(key.clone(), Entry { key, value, created, modified: revision });
                }
                (Write::Delete { .. }, Some(created)) => {
                    map.remove(&key);
                    changes.push(Change { key, value: None, created });
                }
                (Write::Delete { .. }, None) => {}
            }
        }
        if !changes.is_empty() {
            self.past.push(map);
            self.log.push(Batch { revision, changes });
        }
        Ok(self.revision())
    }
}

fn key(number: u8) -> String {
    format!("model/{number}")
}

fn txn(model: &Model, writes: &BTreeMap<u8, Option<u8>>, compare: Option<u8>, stale: bool) -> Txn {
    let mut txn = Txn::new();
    if let Some(number) = compare {
        let at = model.now().get(&key(number)).map_or(0, |entry| entry.modified);
        txn = txn.require(key(number), if stale { at + 1 } else { at });
    }
    for (number, value) in writes {
        txn = match value {
            Some(value) => txn.put(key(*number), vec![*value; usize::from(*value) * 8]),
            None => txn.delete(key(*number)),
        };
    }
    txn
}

/// Does the history on an empty store and on the model, and compares every answer; at the end also every past
/// revision that is left, and a watch of all that is left.
pub async fn check(store: &dyn Store, history: &[Step]) {
    let mut model = Model { past: vec![BTreeMap::new()], ..Default::default() };
    let mut watched = 0;
    let mut watch = store.watch("model/", 0).await.expect("watch");
    for step in history {
        match step {
            Step::Commit { writes, compare, stale } => {
                let txn = txn(&model, writes, *compare, *stale);
                assert_eq!(store.commit(txn.clone()).await, model.commit(&txn), "{step:?}");
            }
            Step::Compact { back } => {
                // The watch reads what it would lose first; that it is told of the loss is tested elsewhere.
                while let Some(batch) = model.log.get(watched) {
                    assert_eq!(next(&mut watch).await.as_ref(), Ok(batch));
                    watched += 1;
                }
                let before = model.revision().saturating_sub(Revision::from(*back));
                assert_eq!(store.compact(before).await, Ok(()), "{step:?}");
                model.oldest = model.oldest.max(before);
            }
            Step::Read { back } => {
                let at = model.revision().saturating_sub(Revision::from(*back));
                assert_eq!(store.range("model/", Some(at)).await, model.range(at), "{step:?}");
            }
        }
        assert_eq!(store.range("", None).await, model.range(model.revision()), "after {step:?}");
    }
    for at in 0..=model.revision() {
        assert_eq!(store.range("", Some(at)).await, model.range(at), "at {at}");
    }
    let mut again = store.watch("", model.oldest).await.expect("watch");
    for batch in model.log.iter().filter(|batch| batch.revision >= model.oldest) {
        assert_eq!(next(&mut again).await.as_ref(), Ok(batch));
    }
}
