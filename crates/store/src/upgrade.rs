//! Brings an older stored format to the one this version writes.
//!
//! A format is a chain of steps: step `n` turns version `n` into version `n + 1`, and version 0 is the empty
//! file. A new file walks the whole chain, so every step runs in every test. A step that was released is never
//! edited; a change of the stored form is a new step at the end.

use rusqlite::Connection;

/// One step of the chain; runs inside the one transaction of the whole upgrade.
pub type Step = fn(&Connection) -> rusqlite::Result<()>;

/// A kind of file that Sterna writes.
#[derive(Debug, Clone, Copy)]
pub struct Format {
    /// SQLite's application id, at a fixed place in the file: tells our files from others.
    pub application_id: i32,
    pub steps: &'static [Step],
}

/// What a file says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Nothing in it yet.
    Empty,
    Version(u32),
    Foreign,
}

/// The store, "STRN".
pub const STORE: Format = Format { application_id: 0x5354_524e, steps: &[store_v1] };
/// Events and audit, "STRH".
pub const HISTORY: Format = Format { application_id: 0x5354_5248, steps: &[history_v1] };

impl Format {
    /// The version that this chain ends in.
    pub fn version(&self) -> u32 {
        u32::try_from(self.steps.len()).expect("a chain of steps is short")
    }

    /// Reads what a database file is, without changing it.
    pub fn identify(&self, db: &Connection) -> rusqlite::Result<Found> {
        let pragma = |name| db.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i64>(0));
        let application_id = pragma("application_id")?;
        let version = pragma("user_version")?;
        let tables: i64 = db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        if application_id == i64::from(self.application_id) {
            return Ok(u32::try_from(version).map_or(Found::Foreign, Found::Version));
        }
        Ok(if (application_id, version, tables) == (0, 0, 0) { Found::Empty } else { Found::Foreign })
    }

    /// Walks from version `from` to the end of the chain, whole or not at all.
    pub fn upgrade(&self, db: &Connection, from: u32) -> rusqlite::Result<()> {
        if from == self.version() {
            return Ok(());
        }
        let transaction = db.unchecked_transaction()?;
        for step in &self.steps[from as usize..] {
            step(db)?;
        }
        db.pragma_update(None, "application_id", self.application_id)?;
        db.pragma_update(None, "user_version", self.version())?;
        transaction.commit()
    }
}

/// `entry` is the present, `change` the log that watches and reads of the past need. Rows carry a checksum.
/// Both are tables with a rowid: values of some kilobytes would overflow in the pages of an index.
fn store_v1(db: &Connection) -> rusqlite::Result<()> {
    db.execute_batch(
        "CREATE TABLE head (
             only INTEGER PRIMARY KEY CHECK (only = 1),
             revision INTEGER NOT NULL,
             oldest INTEGER NOT NULL
         ) STRICT;
         INSERT INTO head VALUES (1, 0, 0);
         CREATE TABLE entry (
             id INTEGER PRIMARY KEY,
             key TEXT NOT NULL UNIQUE,
             modified INTEGER NOT NULL,
             created INTEGER NOT NULL,
             value BLOB NOT NULL,
             sum INTEGER NOT NULL
         ) STRICT;
         CREATE TABLE change (
             id INTEGER PRIMARY KEY,
             key TEXT NOT NULL,
             modified INTEGER NOT NULL,
             created INTEGER NOT NULL,
             value BLOB,
             sum INTEGER NOT NULL
         ) STRICT;
         CREATE INDEX change_by_revision ON change (modified);
         CREATE UNIQUE INDEX change_by_key ON change (key, modified);",
    )
}

fn history_v1(db: &Connection) -> rusqlite::Result<()> {
    db.execute_batch(
        "CREATE TABLE event (
             id INTEGER PRIMARY KEY AUTOINCREMENT,
             time_ms INTEGER NOT NULL,
             kind TEXT NOT NULL,
             object_kind TEXT NOT NULL,
             object TEXT NOT NULL,
             message TEXT NOT NULL,
             why TEXT,
             operation TEXT
         ) STRICT;
         CREATE INDEX event_by_object ON event (object_kind, object, id);
         CREATE INDEX event_by_kind ON event (kind, id);
         CREATE INDEX event_by_time ON event (time_ms);
         CREATE TABLE audit (
             id INTEGER PRIMARY KEY,
             time_ms INTEGER NOT NULL,
             actor TEXT NOT NULL,
             source TEXT NOT NULL,
             method TEXT NOT NULL,
             path TEXT NOT NULL,
             request_hash TEXT NOT NULL,
             outcome TEXT NOT NULL,
             chain BLOB NOT NULL
         ) STRICT;",
    )
}
