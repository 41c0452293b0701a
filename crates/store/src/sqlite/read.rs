//! What readers ask of the file. Each runs inside one read transaction.

use rusqlite::{Connection, OptionalExtension, params};

use crate::error::Error;
use crate::sqlite::row::{COLUMNS, Stored, column, revision_at};
use crate::store::{Entry, Revision, Snapshot};
use crate::txn::{STEPS_MAX, prefix_end};
use crate::watch::{Batch, Change};

/// Rows that a watch reads at once; more than one transaction can write, so that a commit is never split.
const PAGE_ROWS: usize = 2 * STEPS_MAX;

type Answer<T> = rusqlite::Result<Result<T, Error>>;

/// The last revision, and the oldest that can still be shown.
pub(crate) fn head(db: &Connection) -> rusqlite::Result<(Revision, Revision)> {
    db.prepare_cached("SELECT revision, oldest FROM head")?
        .query_row([], |row| Ok((revision_at(row, 0)?, revision_at(row, 1)?)))
}

pub(crate) fn get(db: &Connection, key: &str) -> Answer<Option<Entry>> {
    let mut query = db.prepare_cached(&format!("SELECT {COLUMNS} FROM entry WHERE key = ?1"))?;
    let stored = query.query_row([key], Stored::from_row).optional()?;
    Ok(stored.map(Stored::verified).transpose().map(|stored| stored.and_then(entry)))
}

pub(crate) fn range(db: &Connection, prefix: &str, at: Option<Revision>) -> Answer<Snapshot> {
    let (head, oldest) = head(db)?;
    let revision = at.unwrap_or(head);
    if revision > head {
        return Ok(Err(Error::Future { requested: revision, revision: head }));
    }
    if revision < oldest {
        return Ok(Err(Error::Compacted { oldest }));
    }
    let sql = if revision == head {
        format!("SELECT {COLUMNS} FROM entry WHERE key >= ?1 AND key < ?2 AND modified <= ?3 ORDER BY key")
    } else {
        // With max(), SQLite takes the other columns from the row that has the maximum.
        format!(
            "SELECT {COLUMNS} FROM (
                 SELECT key, max(modified) AS modified, created, value, sum FROM change
                 WHERE key >= ?1 AND key < ?2 AND modified <= ?3 GROUP BY key
             ) WHERE value IS NOT NULL ORDER BY key"
        )
    };
    let mut query = db.prepare_cached(&sql)?;
    let bounds = params![prefix, prefix_end(prefix), column(revision)];
    let mut entries = Vec::new();
    for stored in query.query_map(bounds, Stored::from_row)? {
        match stored?.verified() {
            Ok(stored) => entries.extend(entry(stored)),
            Err(damaged) => return Ok(Err(damaged)),
        }
    }
    Ok(Ok(Snapshot { revision, entries }))
}

fn entry(stored: Stored) -> Option<Entry> {
    let Stored { key, modified, created, value, .. } = stored;
    Some(Entry { key, value: value?, created, modified })
}

/// A piece of the log, and where to read on.
pub(super) struct Page {
    pub(super) batches: Vec<Batch>,
    pub(super) next: Revision,
}

/// The changes under a prefix from a revision on, as far as one page goes.
pub(super) fn page(db: &Connection, prefix: &str, from: Revision) -> Answer<Page> {
    let (head, oldest) = head(db)?;
    if from < oldest {
        return Ok(Err(Error::Compacted { oldest }));
    }
    // The plus keeps SQLite from searching by key, which would mean to sort the whole log.
    let mut query = db.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM change WHERE modified >= ?1 AND +key >= ?2 AND +key < ?3
         ORDER BY modified LIMIT {PAGE_ROWS}"
    ))?;
    let bounds = params![column(from), prefix, prefix_end(prefix)];
    let mut rows = 0;
    let mut batches: Vec<Batch> = Vec::new();
    for stored in query.query_map(bounds, Stored::from_row)? {
        let Stored { key, modified, created, value, .. } = match stored?.verified() {
            Ok(stored) => stored,
            Err(damaged) => return Ok(Err(damaged)),
        };
        rows += 1;
        let change = Change { key, value, created };
        match batches.last_mut().filter(|batch| batch.revision == modified) {
            Some(batch) => batch.changes.push(change),
            None => batches.push(Batch { revision: modified, changes: vec![change] }),
        }
    }
    let mut next = from.max(head + 1);
    if rows == PAGE_ROWS {
        // The last commit may go on beyond the page.
        next = batches.pop().map_or(next, |cut| cut.revision);
    }
    for batch in &mut batches {
        batch.changes.sort_by(|a, b| a.key.cmp(&b.key));
    }
    Ok(Ok(Page { batches, next }))
}
