//! Copies of files that are in use, and stores that come back from one.
//!
//! A copy shows one commit, whoever writes meanwhile, and is a whole file of its own: no log lies beside it.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension, params};

use crate::disk::lock::Lock;
use crate::disk::open::{check, known, open, open_reader, refusal};
use crate::error::OpenError;
use crate::sqlite::read;
use crate::sqlite::row::{column, sum};
use crate::store::Revision;
use crate::upgrade::{Format, HISTORY, STORE};

/// Copies the store at `from` as it is now to `to`, which must not be there. Answers the revision that the copy shows.
///
/// The store may be open, here or in another process. Blocks; nothing waits for it.
pub fn copy_store(from: &Path, to: &Path) -> Result<Revision, OpenError> {
    copy(from, to, &STORE)?;
    revision(to)
}

/// The same for a history.
pub fn copy_history(from: &Path, to: &Path) -> Result<(), OpenError> {
    copy(from, to, &HISTORY)
}

fn copy(from: &Path, to: &Path, format: &Format) -> Result<(), OpenError> {
    let database = |path: &Path, source| OpenError::Database { path: path.to_owned(), source };
    if !from.exists() {
        let source = std::io::Error::from(std::io::ErrorKind::NotFound);
        return Err(OpenError::Io { path: from.to_owned(), source });
    }
    let db = open_reader(from)?;
    known(from, &db, format)?;
    db.execute("VACUUM INTO ?1", params![to.to_string_lossy()]).map_err(|source| database(to, source))?;
    let file = std::fs::File::open(to).and_then(|file| file.sync_all());
    file.map_err(|source| OpenError::Io { path: to.to_owned(), source })
}

/// What a copy of a store shows, once its structure and every row of it were found whole.
pub fn revision(path: &Path) -> Result<Revision, OpenError> {
    let db = open_reader(path)?;
    known(path, &db, &STORE)?;
    check(path, &db)?;
    // Reading a row compares its checksum.
    match read::range(&db, "", None).map_err(|source| refusal(path, source))? {
        Ok(snapshot) => Ok(snapshot.revision),
        Err(error) => Err(OpenError::Damaged { path: path.to_owned(), reason: error.to_string() }),
    }
}

/// One value of a copy of a store.
pub fn value(path: &Path, key: &str) -> Result<Option<Vec<u8>>, OpenError> {
    let db = open_reader(path)?;
    known(path, &db, &STORE)?;
    match read::get(&db, key).map_err(|source| refusal(path, source))? {
        Ok(entry) => Ok(entry.map(|entry| entry.value.to_vec())),
        Err(error) => Err(OpenError::Damaged { path: path.to_owned(), reason: error.to_string() }),
    }
}

/// Keeps everybody else from opening the file, until it is dropped.
#[derive(Debug)]
pub struct Claim {
    _lock: Lock,
}

/// Takes a store or a history for oneself, or says who has it.
pub fn claim(path: &Path) -> Result<Claim, OpenError> {
    Ok(Claim { _lock: Lock::take(path)? })
}

/// Lets a store that lay still go on under a later revision, with one row written: reads of the past and watches from there
/// answer that it is compacted.
///
/// `write` gets the value of the row, if there is one, and answers the one to write.
pub fn go_on(
    path: &Path,
    by: Revision,
    key: &str,
    write: impl FnOnce(Option<&[u8]>) -> Vec<u8>,
) -> Result<Revision, OpenError> {
    let database = |source| OpenError::Database { path: path.to_owned(), source };
    // Nobody else may have it, and an older format is upgraded on the way.
    let _lock = Lock::take(path)?;
    let db = open(path, &STORE)?;
    let (now, _) = read::head(&db).map_err(database)?;
    let revision = now + by;
    put(&db, revision, key, write).map_err(database)?;
    Ok(revision)
}

fn put(
    db: &Connection,
    revision: Revision,
    key: &str,
    write: impl FnOnce(Option<&[u8]>) -> Vec<u8>,
) -> rusqlite::Result<()> {
    let transaction = db.unchecked_transaction()?;
    let before: Option<(i64, Vec<u8>)> = db
        .query_row("SELECT created, value FROM entry WHERE key = ?1", [key], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?;
    let value = write(before.as_ref().map(|(_, value)| value.as_slice()));
    let created = before.map_or(revision, |(created, _)| u64::try_from(created).unwrap_or(revision));
    let row =
        params![key, column(revision), column(created), value, sum(key, revision, created, Some(&value))];
    db.execute("INSERT INTO change (key, modified, created, value, sum) VALUES (?1, ?2, ?3, ?4, ?5)", row)?;
    db.execute(
        "INSERT INTO entry (key, modified, created, value, sum) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (key) DO UPDATE SET modified = ?2, created = ?3, value = ?4, sum = ?5",
        row,
    )?;
    db.execute("UPDATE head SET revision = ?1, oldest = ?1", [column(revision)])?;
    transaction.commit()
}
