//! What the writer does to the file: transactions, compaction, leases.

use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::watch;

use crate::disk::lock::Lock;
use crate::disk::writer;
use crate::error::Error;
use crate::lease::{Clock, Lease, Leases};
use crate::sqlite::row::{column, revision_at, sum};
use crate::store::Revision;
use crate::txn::{Compare, Txn, Write};

/// Rows that compaction deletes in one transaction; bounds how long commits wait behind it.
const COMPACT_ROWS: i64 = 2000;

/// The writer's memory: where the file stands, and the leases, which end with the process.
///
/// Leases need no rows: the lock on the file proves that every holder of an earlier process is gone, and the
/// revision in the file proves that no epoch comes twice.
#[derive(Clone)]
pub(super) struct State {
    pub(super) revision: Revision,
    pub(super) leases: Leases,
    pub(super) clock: Clock,
    pub(super) lock: Arc<Lock>,
    pub(super) head: Arc<watch::Sender<Revision>>,
}

impl writer::State for State {
    fn on_durable(&mut self) {
        if *self.head.borrow() == self.revision {
            return;
        }
        if let Err(error) = self.lock.acknowledge(self.revision) {
            // The commit itself is durable; only the check at the next start knows less.
            tracing::warn!(%error, "cannot note the acknowledged revision");
        }
        self.head.send_replace(self.revision);
    }
}

/// Answers from inside a transaction: the outer error takes the transaction back, the inner is an answer.
type Answer<T> = rusqlite::Result<Result<T, Error>>;

pub(super) fn commit(db: &Connection, state: &mut State, txn: &Txn) -> Answer<Revision> {
    for compare in &txn.compares {
        match compare {
            Compare::Leader { name, epoch } => {
                if let Err(deposed) = state.leases.check(name, *epoch, (state.clock)()) {
                    return Ok(Err(deposed));
                }
            }
            Compare::Modified { key, at } => {
                let found = live(db, key)?.map_or(0, |(modified, _)| modified);
                if found != *at {
                    return Ok(Err(Error::Conflict { key: key.clone(), expected: *at, found }));
                }
            }
        }
    }
    let revision = state.revision + 1;
    let mut changed = false;
    for write in &txn.writes {
        changed |= apply(db, write, revision)?;
    }
    if changed {
        advance(db, state, revision)?;
    }
    Ok(Ok(state.revision))
}

/// When the key was last written and when it was made, if it exists.
fn live(db: &Connection, key: &str) -> rusqlite::Result<Option<(Revision, Revision)>> {
    db.prepare_cached("SELECT modified, created FROM entry WHERE key = ?1")?
        .query_row([key], |row| Ok((revision_at(row, 0)?, revision_at(row, 1)?)))
        .optional()
}

/// Does one write; false if there was nothing to change.
fn apply(db: &Connection, write: &Write, revision: Revision) -> rusqlite::Result<bool> {
    let key = write.key();
    let before = live(db, key)?.map(|(_, created)| created);
    let (value, created) = match (write, before) {
        (Write::Put { value, .. }, before) => (Some(&value[..]), before.unwrap_or(revision)),
        (Write::Delete { .. }, Some(created)) => (None, created),
        (Write::Delete { .. }, None) => return Ok(false),
    };
    let row = params![key, column(revision), column(created), value, sum(key, revision, created, value)];
    db.prepare_cached("INSERT INTO change (key, modified, created, value, sum) VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(row)?;
    if value.is_some() {
        db.prepare_cached(
            "INSERT INTO entry (key, modified, created, value, sum) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (key) DO UPDATE SET modified = ?2, created = ?3, value = ?4, sum = ?5",
        )?
        .execute(row)?;
    } else {
        db.prepare_cached("DELETE FROM entry WHERE key = ?1")?.execute([key])?;
    }
    Ok(true)
}

fn advance(db: &Connection, state: &mut State, revision: Revision) -> rusqlite::Result<()> {
    db.prepare_cached("UPDATE head SET revision = ?1")?.execute([column(revision)])?;
    state.revision = revision;
    Ok(())
}

/// Moves the oldest revision on and deletes some of the rows that nobody can ask for any more.
///
/// Answers true when none were left. A crash between two calls leaves rows that the next compaction deletes.
pub(super) fn compact(db: &Connection, state: &mut State, before: Revision) -> Answer<bool> {
    if before > state.revision {
        return Ok(Err(Error::Future { requested: before, revision: state.revision }));
    }
    db.prepare_cached("UPDATE head SET oldest = max(oldest, ?1)")?.execute([column(before)])?;
    // A row goes when a newer one of its key serves `before` already, or when it says "deleted" before then.
    let deleted = db
        .prepare_cached(
            "DELETE FROM change WHERE id IN (
                 SELECT old.id FROM change AS old WHERE old.modified < ?1 AND (old.value IS NULL OR EXISTS (
                     SELECT 1 FROM change AS new
                     WHERE new.key = old.key AND new.modified > old.modified AND new.modified <= ?1
                 )) LIMIT ?2)",
        )?
        .execute(params![column(before), COMPACT_ROWS])?;
    Ok(Ok(i64::try_from(deleted).is_ok_and(|deleted| deleted < COMPACT_ROWS)))
}

pub(super) fn campaign(
    db: &Connection,
    state: &mut State,
    name: &str,
    holder: &str,
    ttl: Duration,
) -> Answer<Lease> {
    let now = (state.clock)();
    if let Err(held) = state.leases.may_take(name, holder, now) {
        return Ok(Err(held));
    }
    let epoch = state.revision + 1;
    advance(db, state, epoch)?;
    let lease = Lease { name: name.to_owned(), holder: holder.to_owned(), epoch, ttl };
    state.leases.grant(lease.clone(), now);
    Ok(Ok(lease))
}
