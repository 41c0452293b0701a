//! Opens a file after making sure that it is ours, whole and of a version we know.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::error::OpenError;
use crate::upgrade::{Format, Found};

/// How long a writer waits for a person who looks into the file with another tool.
const BUSY: Duration = Duration::from_secs(5);

/// Opens `path` for writing, creates it if it is missing and upgrades it if it is older.
pub(crate) fn open(path: &Path, format: &Format) -> Result<Connection, OpenError> {
    let db = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )
    .map_err(|source| refusal(path, source))?;
    let from = known(path, &db, format)?;
    prepare(&db).map_err(|source| refusal(path, source))?;
    check(path, &db)?;
    format.upgrade(&db, from).map_err(|source| refusal(path, source))?;
    sync_directory(path).map_err(|source| OpenError::Io { path: path.to_owned(), source })?;
    Ok(db)
}

/// The version of the file, 0 when nothing is in it yet, or why it is not one that this program reads.
pub(crate) fn known(path: &Path, db: &Connection, format: &Format) -> Result<u32, OpenError> {
    match format.identify(db).map_err(|source| refusal(path, source))? {
        Found::Foreign => Err(OpenError::Foreign { path: path.to_owned() }),
        Found::Version(found) if found > format.version() => {
            Err(OpenError::Newer { path: path.to_owned(), found, known: format.version() })
        }
        Found::Version(found) => Ok(found),
        Found::Empty => Ok(0),
    }
}

/// Opens a further connection that only reads.
pub(crate) fn open_reader(path: &Path) -> Result<Connection, OpenError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = || {
        let db = Connection::open_with_flags(path, flags)?;
        db.busy_timeout(BUSY)?;
        db.set_prepared_statement_cache_capacity(32);
        Ok(db)
    };
    open().map_err(|source| refusal(path, source))
}

fn prepare(db: &Connection) -> rusqlite::Result<()> {
    db.busy_timeout(BUSY)?;
    db.set_prepared_statement_cache_capacity(32);
    // With the write-ahead log, FULL means one sync for a commit, before it answers.
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", "FULL")?;
    db.pragma_update(None, "cell_size_check", true)?;
    db.pragma_update(None, "trusted_schema", false)
}

pub(crate) fn check(path: &Path, db: &Connection) -> Result<(), OpenError> {
    let verdict: String = db
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(|source| refusal(path, source))?;
    if verdict == "ok" { Ok(()) } else { Err(OpenError::Damaged { path: path.to_owned(), reason: verdict }) }
}

/// Makes the file's name durable, not just its content.
fn sync_directory(path: &Path) -> std::io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

pub(crate) fn refusal(path: &Path, source: rusqlite::Error) -> OpenError {
    let path = path.to_owned();
    match source.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => OpenError::Foreign { path },
        Some(ErrorCode::DatabaseCorrupt) => OpenError::Damaged { path, reason: source.to_string() },
        _ => OpenError::Database { path, source },
    }
}
