//! Facts recorded for people.

use std::fmt::Write as _;

use rusqlite::types::Value;
use rusqlite::{Connection, Row, params, params_from_iter};

use crate::history::{Numbered, column, number};

/// Events deleted in one transaction; bounds how long appends wait behind it.
pub(super) const TRIM_ROWS: u64 = 2000;

/// What happened to which object, and why.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Event {
    /// Milliseconds since 1970, UTC.
    pub time_ms: i64,
    /// A word for programs, as "migration-finished".
    pub kind: String,
    /// As "vm".
    pub object_kind: String,
    /// The name of the object.
    pub object: String,
    /// A sentence for people.
    pub message: String,
    /// The reason that the deciding planner gave.
    pub why: Option<String>,
    /// The operation that this is part of.
    pub operation: Option<String>,
}

/// Which events to list. Empty fields select all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventFilter {
    pub kind: Option<String>,
    pub object_kind: Option<String>,
    pub object: Option<String>,
    pub operation: Option<String>,
    /// Not older than this, milliseconds since 1970.
    pub since_ms: Option<i64>,
    /// Only numbers below this: the last number of a page gives the next page.
    pub before: Option<u64>,
    pub limit: usize,
}

impl Default for EventFilter {
    fn default() -> Self {
        Self {
            kind: None,
            object_kind: None,
            object: None,
            operation: None,
            since_ms: None,
            before: None,
            limit: 100,
        }
    }
}

/// Which events may go: those older than `before_ms`, and those beyond the newest `keep`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Trim {
    pub before_ms: Option<i64>,
    pub keep: Option<u64>,
}

pub(super) fn insert(db: &Connection, event: &Event) -> rusqlite::Result<u64> {
    let Event { time_ms, kind, object_kind, object, message, why, operation } = event;
    db.prepare_cached(
        "INSERT INTO event (time_ms, kind, object_kind, object, message, why, operation)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?
    .execute(params![time_ms, kind, object_kind, object, message, why, operation])?;
    Ok(number(db.last_insert_rowid()))
}

pub(super) fn list(db: &Connection, filter: &EventFilter) -> rusqlite::Result<Vec<Numbered<Event>>> {
    let mut sql =
        "SELECT id, time_ms, kind, object_kind, object, message, why, operation FROM event WHERE true"
            .to_owned();
    let mut values: Vec<Value> = Vec::new();
    let texts = [
        ("kind =", &filter.kind),
        ("object_kind =", &filter.object_kind),
        ("object =", &filter.object),
        ("operation =", &filter.operation),
    ]
    .map(|(test, text)| (test, text.clone().map(Value::Text)));
    let numbers = [
        ("time_ms >=", filter.since_ms.map(Value::Integer)),
        ("id <", filter.before.map(column).map(Value::Integer)),
    ];
    for (test, value) in texts.into_iter().chain(numbers) {
        if let Some(value) = value {
            values.push(value);
            // Writing to a String cannot fail.
            let _ = write!(sql, " AND {test} ?{}", values.len());
        }
    }
    let _ = write!(sql, " ORDER BY id DESC LIMIT {}", filter.limit);
    let mut query = db.prepare_cached(&sql)?;
    query.query_map(params_from_iter(values), from_row)?.collect()
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<Numbered<Event>> {
    let event = Event {
        time_ms: row.get(1)?,
        kind: row.get(2)?,
        object_kind: row.get(3)?,
        object: row.get(4)?,
        message: row.get(5)?,
        why: row.get(6)?,
        operation: row.get(7)?,
    };
    Ok(Numbered { id: number(row.get(0)?), row: event })
}

/// Deletes one slice; fewer than [`TRIM_ROWS`] means that nothing is left to delete.
pub(super) fn trim(db: &Connection, trim: &Trim) -> rusqlite::Result<u64> {
    // The newest number that is beyond the ones to keep.
    let beyond: i64 = match trim.keep {
        Some(keep) => db
            .prepare_cached("SELECT coalesce((SELECT id FROM event ORDER BY id DESC LIMIT 1 OFFSET ?1), 0)")?
            .query_row([column(keep)], |row| row.get(0))?,
        None => 0,
    };
    let deleted = db
        .prepare_cached(
            "DELETE FROM event WHERE id IN (
                 SELECT id FROM event WHERE id <= ?1 OR time_ms < ?2 ORDER BY id LIMIT ?3)",
        )?
        .execute(params![beyond, trim.before_ms.unwrap_or(i64::MIN), column(TRIM_ROWS)])?;
    Ok(deleted as u64)
}
