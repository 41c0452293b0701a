//! The embedded store: one SQLite file, one server.
//!
//! ```text
//!  commit, compact, leases ──> writer thread ──> FILE-wal (one sync for a group), FILE
//!                                   │ revision
//!  watches <── read the log on <────┘
//!  get, range ──> reader threads ──> one commit each sees
//! ```
//!
//! Beside `FILE` lie `FILE-wal` and `FILE-shm`, which belong to SQLite, and `FILE.lock`.

mod commit;
pub(crate) mod read;
pub(crate) mod row;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::watch;

use crate::disk::lock::Lock;
use crate::disk::open::open;
use crate::disk::readers::Readers;
use crate::disk::writer::Writer;
use crate::error::{Error, OpenError};
use crate::lease::{Clock, Lease, Leases, monotonic};
use crate::store::{BoxFuture, Entry, Revision, Snapshot, Store};
use crate::txn::{Txn, check_key, check_prefix};
use crate::upgrade;
use crate::watch::{Batch, Source, Watch};

/// The embedded store. Dropping it finishes what was asked and closes the file.
///
/// Leases do not outlive the process: whoever held one lived in it.
pub struct Sqlite {
    // Before the writer: see `Readers`.
    readers: Arc<Readers>,
    writer: Writer<commit::State>,
    head: watch::Receiver<Revision>,
}

impl Sqlite {
    /// Opens the store at `path`; makes an empty one if there is nothing.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Self::open_with_clock(path, monotonic())
    }

    /// Opens the store with a clock of the caller's for leases.
    pub fn open_with_clock(path: &Path, clock: Clock) -> Result<Self, OpenError> {
        let lock = Arc::new(Lock::take(path)?);
        let db = open(path, &upgrade::STORE)?;
        let (found, _) =
            read::head(&db).map_err(|source| OpenError::Database { path: path.to_owned(), source })?;
        if found < lock.acknowledged {
            let acknowledged = lock.acknowledged;
            return Err(OpenError::Behind { path: path.to_owned(), found, acknowledged });
        }
        let readers = Arc::new(Readers::open(path)?);
        let (sender, head) = watch::channel(found);
        let state =
            commit::State { revision: found, leases: Leases::default(), clock, lock, head: Arc::new(sender) };
        let writer = Writer::start("store-write", db, state)
            .map_err(|source| OpenError::Io { path: path.to_owned(), source })?;
        Ok(Self { writer, readers, head })
    }
}

fn refuse<'a, T: Send + 'a>(error: Error) -> BoxFuture<'a, Result<T, Error>> {
    Box::pin(std::future::ready(Err(error)))
}

impl Store for Sqlite {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, Error>> {
        if let Err(error) = check_key(key) {
            return refuse(error);
        }
        let key = key.to_owned();
        Box::pin(self.readers.read(move |db| read::get(db, &key)))
    }

    fn range<'a>(&'a self, prefix: &'a str, at: Option<Revision>) -> BoxFuture<'a, Result<Snapshot, Error>> {
        if let Err(error) = check_prefix(prefix) {
            return refuse(error);
        }
        let prefix = prefix.to_owned();
        Box::pin(self.readers.read(move |db| read::range(db, &prefix, at)))
    }

    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Revision, Error>> {
        if let Err(error) = txn.check() {
            return refuse(error);
        }
        Box::pin(self.writer.submit(move |db, state| commit::commit(db, state, &txn)))
    }

    fn watch<'a>(&'a self, prefix: &'a str, from: Revision) -> BoxFuture<'a, Result<Watch, Error>> {
        if let Err(error) = check_prefix(prefix) {
            return refuse(error);
        }
        let watch = SqliteWatch {
            readers: Arc::downgrade(&self.readers),
            head: self.head.clone(),
            prefix: prefix.to_owned(),
            next: from,
            ready: VecDeque::new(),
        };
        Box::pin(async move {
            let oldest = self.readers.read(|db| read::head(db).map(|(_, oldest)| Ok(oldest))).await?;
            if from < oldest { Err(Error::Compacted { oldest }) } else { Ok(Watch::new(watch)) }
        })
    }

    fn compact(&self, before: Revision) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            while !self.writer.submit(move |db, state| commit::compact(db, state, before)).await? {}
            Ok(())
        })
    }

    fn revision(&self) -> BoxFuture<'_, Result<Revision, Error>> {
        Box::pin(self.readers.read(|db| read::head(db).map(|(revision, _)| Ok(revision))))
    }

    fn campaign<'a>(
        &'a self,
        name: &'a str,
        holder: &'a str,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Lease, Error>> {
        if let Err(error) = check_key(name) {
            return refuse(error);
        }
        let (name, holder) = (name.to_owned(), holder.to_owned());
        Box::pin(self.writer.submit(move |db, state| commit::campaign(db, state, &name, &holder, ttl)))
    }

    fn keep<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<(), Error>> {
        let lease = lease.clone();
        Box::pin(self.writer.submit(move |_, state| Ok(state.leases.keep(&lease, (state.clock)()))))
    }

    fn resign<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<(), Error>> {
        let lease = lease.clone();
        Box::pin(self.writer.submit(move |_, state| {
            state.leases.resign(&lease, (state.clock)());
            Ok(Ok(()))
        }))
    }

    fn leader<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Lease>, Error>> {
        let name = name.to_owned();
        Box::pin(
            self.writer.submit(move |_, state| Ok(Ok(state.leases.current(&name, (state.clock)()).cloned()))),
        )
    }
}

struct SqliteWatch {
    /// Weak: a forgotten watch must not keep the file open.
    readers: Weak<Readers>,
    head: watch::Receiver<Revision>,
    prefix: String,
    /// The first revision that was not read yet.
    next: Revision,
    /// Read, but not yet told.
    ready: VecDeque<Batch>,
}

impl Source for SqliteWatch {
    fn next(&mut self) -> BoxFuture<'_, Result<Batch, Error>> {
        Box::pin(async {
            loop {
                if let Some(batch) = self.ready.pop_front() {
                    return Ok(batch);
                }
                let head = *self.head.borrow_and_update();
                if head >= self.next {
                    let (prefix, from) = (self.prefix.clone(), self.next);
                    let readers = self.readers.upgrade().ok_or_else(closed)?;
                    let reading = readers.read(move |db| read::page(db, &prefix, from));
                    drop(readers);
                    let page = reading.await?;
                    self.next = page.next;
                    self.ready = page.batches.into();
                } else if self.head.changed().await.is_err() {
                    return Err(closed());
                }
            }
        })
    }
}

fn closed() -> Error {
    Error::Closed { reason: "the store was closed".to_owned() }
}
