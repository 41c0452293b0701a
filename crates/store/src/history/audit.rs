//! Who asked for what, and what came of it; each row chained to the one before.
//!
//! ```text
//! chain(0) = 32 zero bytes
//! chain(n) = SHA-256(chain(n-1) ‖ n ‖ time_ms ‖ for each text: length ‖ bytes)    numbers: 8 bytes, big-endian
//! ```

use rusqlite::{Connection, Row, params};
use sha2::{Digest, Sha256};

use crate::history::{Numbered, column, first, number};

type Link = [u8; 32];

/// One request.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Audit {
    /// Milliseconds since 1970, UTC.
    pub time_ms: i64,
    /// Who asked, as the authentication saw it.
    pub actor: String,
    /// Where from: an address.
    pub source: String,
    pub method: String,
    pub path: String,
    /// Of the body, so that what was asked can be proved without keeping secrets.
    pub request_hash: String,
    /// As "201" or "409 conflict".
    pub outcome: String,
}

/// What checking the chain found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Rows 1 to `last` are as they were written; `head` stands for all of them (lower-case hexadecimal).
    Whole { last: u64, head: String },
    /// The first row that is missing, or not as it was written.
    Broken { id: u64 },
}

/// The end of the chain.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tail {
    id: u64,
    link: Link,
}

const START: Tail = Tail { id: 0, link: [0; 32] };

impl Tail {
    pub(super) fn read(db: &Connection) -> rusqlite::Result<Self> {
        let sql = "SELECT id, chain FROM audit ORDER BY id DESC LIMIT 1";
        let tail = first(db, sql, |row| Ok(Tail { id: number(row.get(0)?), link: row.get(1)? }))?;
        Ok(tail.unwrap_or(START))
    }

    fn next(&self, audit: &Audit) -> Tail {
        let id = self.id + 1;
        let mut hash = Sha256::new();
        hash.update(self.link);
        hash.update(id.to_be_bytes());
        hash.update(audit.time_ms.to_be_bytes());
        let Audit { time_ms: _, actor, source, method, path, request_hash, outcome } = audit;
        for text in [actor, source, method, path, request_hash, outcome] {
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text.as_bytes());
        }
        Tail { id, link: hash.finalize().into() }
    }
}

pub(super) fn insert(db: &Connection, tail: &mut Tail, audit: &Audit) -> rusqlite::Result<u64> {
    let next = tail.next(audit);
    let Audit { time_ms, actor, source, method, path, request_hash, outcome } = audit;
    db.prepare_cached("INSERT INTO audit VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)")?.execute(params![
        column(next.id),
        time_ms,
        actor,
        source,
        method,
        path,
        request_hash,
        outcome,
        next.link
    ])?;
    *tail = next;
    Ok(next.id)
}

const COLUMNS: &str = "id, time_ms, actor, source, method, path, request_hash, outcome";

pub(super) fn list(
    db: &Connection,
    before: Option<u64>,
    limit: usize,
) -> rusqlite::Result<Vec<Numbered<Audit>>> {
    let mut query =
        db.prepare_cached(&format!("SELECT {COLUMNS} FROM audit WHERE id < ?1 ORDER BY id DESC LIMIT ?2"))?;
    let bounds = [before.map_or(i64::MAX, column), i64::try_from(limit).unwrap_or(i64::MAX)];
    query.query_map(bounds, from_row)?.collect()
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<Numbered<Audit>> {
    let audit = Audit {
        time_ms: row.get(1)?,
        actor: row.get(2)?,
        source: row.get(3)?,
        method: row.get(4)?,
        path: row.get(5)?,
        request_hash: row.get(6)?,
        outcome: row.get(7)?,
    };
    Ok(Numbered { id: number(row.get(0)?), row: audit })
}

pub(super) fn verify(db: &Connection) -> rusqlite::Result<Verdict> {
    let mut query = db.prepare_cached(&format!("SELECT {COLUMNS}, chain FROM audit ORDER BY id"))?;
    let mut rows = query.query([])?;
    let mut tail = START;
    while let Some(row) = rows.next()? {
        let Numbered { id, row: audit } = from_row(row)?;
        let stored = row.get_ref(8)?.as_blob_or_null()?.unwrap_or_default();
        let next = tail.next(&audit);
        if id != next.id || stored != next.link {
            return Ok(Verdict::Broken { id: next.id });
        }
        tail = next;
    }
    let head = tail.link.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Verdict::Whole { last: tail.id, head })
}
