//! Events and the audit record: an append-only local file outside the store.
//!
//! Events tell people what happened and why; old ones are trimmed. The audit record tells who asked for what;
//! it is never trimmed, and each row carries a hash over itself and the row before it, so that a changed,
//! removed or inserted row is found by [`History::verify`].

mod audit;
mod event;

use std::path::Path;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension};
use tokio::sync::broadcast;

pub use audit::{Audit, Verdict};
pub use event::{Event, EventFilter, Trim};

use crate::disk::lock::Lock;
use crate::disk::open::open;
use crate::disk::readers::Readers;
use crate::disk::writer::{self, Writer};
use crate::error::{Error, OpenError};
use crate::upgrade;

/// Rows that a slow subscriber may lag behind before it is told that it missed some.
const BACKLOG: usize = 1024;

/// A row with the number it got: 1, 2, 3, ... in the order of appending.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Numbered<T> {
    pub id: u64,
    #[serde(flatten)]
    pub row: T,
}

/// The open file. Dropping it finishes what was asked and closes it.
pub struct History {
    // Before the writer: see `Readers`.
    readers: Readers,
    writer: Writer<State>,
    events: broadcast::Sender<Numbered<Event>>,
    audits: broadcast::Sender<Numbered<Audit>>,
}

#[derive(Clone)]
struct State {
    /// The last link of the audit chain.
    tail: audit::Tail,
    /// Rows of the group under way, told once it is durable.
    fresh: Vec<Fresh>,
    events: broadcast::Sender<Numbered<Event>>,
    audits: broadcast::Sender<Numbered<Audit>>,
    /// Held until the file is closed.
    _lock: Arc<Lock>,
}

#[derive(Clone)]
enum Fresh {
    Event(Numbered<Event>),
    Audit(Numbered<Audit>),
}

impl writer::State for State {
    fn on_durable(&mut self) {
        for row in self.fresh.drain(..) {
            // No subscriber is no error.
            let _ = match row {
                Fresh::Event(event) => self.events.send(event).map_err(|_| ()),
                Fresh::Audit(audit) => self.audits.send(audit).map_err(|_| ()),
            };
        }
    }
}

impl History {
    /// Opens the history at `path`; makes an empty one if there is nothing.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let database = |source| OpenError::Database { path: path.to_owned(), source };
        let lock = Arc::new(Lock::take(path)?);
        let db = open(path, &upgrade::HISTORY)?;
        let tail = audit::Tail::read(&db).map_err(database)?;
        let (events, audits) = (broadcast::Sender::new(BACKLOG), broadcast::Sender::new(BACKLOG));
        let state =
            State { tail, fresh: Vec::new(), events: events.clone(), audits: audits.clone(), _lock: lock };
        let readers = Readers::open(path)?;
        let writer = Writer::start("history-write", db, state)
            .map_err(|source| OpenError::Io { path: path.to_owned(), source })?;
        Ok(Self { writer, readers, events, audits })
    }

    /// Appends an event; it is queued at once, also when the future is dropped. Answers its number once it is
    /// durable.
    pub fn append_event(&self, event: Event) -> impl Future<Output = Result<u64, Error>> + Send + use<> {
        self.writer.submit(move |db, state: &mut State| {
            let id = event::insert(db, &event)?;
            state.fresh.push(Fresh::Event(Numbered { id, row: event.clone() }));
            Ok(Ok(id))
        })
    }

    /// Appends to the audit record; durable when it answers.
    pub fn append_audit(&self, audit: Audit) -> impl Future<Output = Result<u64, Error>> + Send + use<> {
        self.writer.submit(move |db, state: &mut State| {
            let id = audit::insert(db, &mut state.tail, &audit)?;
            state.fresh.push(Fresh::Audit(Numbered { id, row: audit.clone() }));
            Ok(Ok(id))
        })
    }

    /// Events that match, the newest first.
    pub async fn events(&self, filter: EventFilter) -> Result<Vec<Numbered<Event>>, Error> {
        self.readers.read(move |db| event::list(db, &filter).map(Ok)).await
    }

    /// Audit rows with numbers below `before` (`None`: from the end), the newest first, at most `limit`.
    pub async fn audits(&self, before: Option<u64>, limit: usize) -> Result<Vec<Numbered<Audit>>, Error> {
        self.readers.read(move |db| audit::list(db, before, limit).map(Ok)).await
    }

    /// New events from now on, each after it became durable. A subscriber that lags behind by more than 1,024
    /// is told how many it missed and reads those with [`History::events`].
    pub fn subscribe_events(&self) -> broadcast::Receiver<Numbered<Event>> {
        self.events.subscribe()
    }

    /// New audit rows from now on, as [`History::subscribe_events`].
    pub fn subscribe_audits(&self) -> broadcast::Receiver<Numbered<Audit>> {
        self.audits.subscribe()
    }

    /// Deletes old events, in slices so that others may append meanwhile. Answers how many. Audit rows stay.
    pub async fn trim(&self, trim: Trim) -> Result<u64, Error> {
        let mut all = 0;
        loop {
            let deleted = self.writer.submit(move |db, _| event::trim(db, &trim).map(Ok)).await?;
            all += deleted;
            if deleted < event::TRIM_ROWS {
                return Ok(all);
            }
        }
    }

    /// Checks the chain of the whole audit record.
    ///
    /// It cannot see that the newest rows were cut off: keep [`Verdict::Whole`]'s `last` and `head` elsewhere
    /// and compare.
    pub async fn verify(&self) -> Result<Verdict, Error> {
        self.readers.read(|db| audit::verify(db).map(Ok)).await
    }
}

/// The number of a row. SQLite counts from 1, so it is never negative.
fn number(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

fn column(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn first<T>(
    db: &Connection,
    sql: &str,
    read: impl FnOnce(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<Option<T>> {
    db.prepare_cached(sql)?.query_row([], read).optional()
}
