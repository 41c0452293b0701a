//! What may be opened as a store, what is refused, and that what was refused was not touched.

#![allow(clippy::unwrap_used, reason = "also the helpers of tests may panic")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rusqlite::Connection;
use sterna_store::upgrade::{Format, Found, STORE};
use sterna_store::{History, OpenError, Sqlite, Store, Txn};

const CHILD: &str = "STERNA_STORE_OPEN_CHILD";

fn place() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    (folder, path)
}

fn refusal(path: &Path) -> OpenError {
    match Sqlite::open(path) {
        Ok(_) => panic!("{} was opened", path.display()),
        Err(error) => error,
    }
}

/// Not a test when run without [`CHILD`]: reports how opening ends in another process.
#[test]
fn child_that_opens() {
    let Ok(path) = std::env::var(CHILD) else { return };
    println!("refused: {}", refusal(Path::new(&path)));
}

#[test]
fn one_process_at_a_time() {
    if std::env::var(CHILD).is_ok() {
        return;
    }
    let (_folder, path) = place();
    let store = Sqlite::open(&path).unwrap();
    let us = std::process::id();
    assert!(matches!(refusal(&path), OpenError::Locked { pid, .. } if pid == us), "nor twice in one");
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_opens", "--nocapture"])
        .env(CHILD, &path)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains(&format!("refused: {} is open in process {us}", path.display())), "{said}");
    drop(store);
    Sqlite::open(&path).unwrap();
}

#[test]
fn a_file_of_others_is_refused_and_not_touched() {
    let (folder, _) = place();
    let text = folder.path().join("notes.txt");
    std::fs::write(&text, "not a database, but long enough to have a header of one hundred bytes".repeat(9))
        .unwrap();
    let other = folder.path().join("other.db");
    Connection::open(&other).unwrap().execute_batch("CREATE TABLE theirs (a)").unwrap();
    let history = folder.path().join("history.db");
    drop(History::open(&history).unwrap());
    for path in [text, other, history] {
        let before = std::fs::read(&path).unwrap();
        assert!(matches!(refusal(&path), OpenError::Foreign { .. }), "{}", path.display());
        assert_eq!(std::fs::read(&path).unwrap(), before, "{}", path.display());
    }
    let nowhere = folder.path().join("missing/store.db");
    assert!(matches!(refusal(&nowhere), OpenError::Io { .. }));
}

#[test]
fn a_newer_format_is_refused_and_not_touched() {
    let (_folder, path) = place();
    drop(Sqlite::open(&path).unwrap());
    Connection::open(&path).unwrap().pragma_update(None, "user_version", STORE.version() + 1).unwrap();
    let before = std::fs::read(&path).unwrap();
    let wanted = (STORE.version() + 1, STORE.version());
    assert!(matches!(refusal(&path), OpenError::Newer { found, known, .. } if (found, known) == wanted));
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn a_broken_structure_is_refused() {
    let (_folder, path) = place();
    drop(Sqlite::open(&path).unwrap());
    let mut bytes = std::fs::read(&path).unwrap();
    // The second page, behind its first bytes that say what kind of page it is.
    bytes[4096..4200].fill(0xff);
    std::fs::write(&path, bytes).unwrap();
    assert!(matches!(refusal(&path), OpenError::Damaged { .. }));
}

#[test]
fn an_older_copy_put_in_place_is_noticed() {
    let (folder, path) = place();
    let put = || Txn::new().put("a", *b"x");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let store = Sqlite::open(&path).unwrap();
    runtime.block_on(store.commit(put())).unwrap();
    drop(store);
    let backup = folder.path().join("backup");
    std::fs::copy(&path, &backup).unwrap();
    let store = Sqlite::open(&path).unwrap();
    runtime.block_on(store.commit(put())).unwrap();
    drop(store);
    std::fs::copy(&backup, &path).unwrap();
    assert!(matches!(refusal(&path), OpenError::Behind { found: 1, acknowledged: 2, .. }));
    assert!(matches!(refusal(&path), OpenError::Behind { .. }), "asking again does not make it better");
    std::fs::remove_file(folder.path().join("store.db.lock")).unwrap();
    Sqlite::open(&path).unwrap();
}

/// A store as format 1 wrote it, statement by statement. Never edited: files like this are out there.
const STORE_V1: &str = "
    PRAGMA journal_mode = WAL;
    BEGIN;
    CREATE TABLE head (
        only INTEGER PRIMARY KEY CHECK (only = 1), revision INTEGER NOT NULL, oldest INTEGER NOT NULL) STRICT;
    CREATE TABLE entry (
        id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, modified INTEGER NOT NULL,
        created INTEGER NOT NULL, value BLOB NOT NULL, sum INTEGER NOT NULL) STRICT;
    CREATE TABLE change (
        id INTEGER PRIMARY KEY, key TEXT NOT NULL, modified INTEGER NOT NULL,
        created INTEGER NOT NULL, value BLOB, sum INTEGER NOT NULL) STRICT;
    CREATE INDEX change_by_revision ON change (modified);
    CREATE UNIQUE INDEX change_by_key ON change (key, modified);
    INSERT INTO head VALUES (1, 4, 2);
    INSERT INTO entry VALUES
        (1, 'vm/web', 4, 1, CAST('{\"memory\":\"512MiB\"}' AS BLOB), 1673064890786662170),
        (2, 'vm/empty', 2, 2, x'', 58495631465534478);
    INSERT INTO change VALUES
        (1, 'vm/web', 1, 1, CAST('{}' AS BLOB), -4854247078239050818),
        (2, 'vm/empty', 2, 2, x'', 58495631465534478),
        (3, 'vm/gone', 3, 1, NULL, 2105486490704944202),
        (4, 'vm/web', 4, 1, CAST('{\"memory\":\"512MiB\"}' AS BLOB), 1673064890786662170);
    PRAGMA application_id = 1398035022;
    PRAGMA user_version = 1;
    COMMIT;";

#[tokio::test]
async fn a_file_of_format_1_is_read_and_written() {
    let (_folder, path) = place();
    Connection::open(&path).unwrap().execute_batch(STORE_V1).unwrap();
    let store = Sqlite::open(&path).unwrap();
    let show = |snapshot: sterna_store::Snapshot| {
        let entries = snapshot.entries.into_iter();
        entries
            .map(|e| (e.key, String::from_utf8(e.value.to_vec()).unwrap(), e.created, e.modified))
            .collect::<Vec<_>>()
    };
    let web = |value: &str, modified| ("vm/web".to_owned(), value.to_owned(), 1, modified);
    let empty = ("vm/empty".to_owned(), String::new(), 2, 2);
    let now = store.range("", None).await.unwrap();
    assert_eq!(now.revision, 4);
    assert_eq!(show(now), [empty.clone(), web("{\"memory\":\"512MiB\"}", 4)]);
    assert_eq!(show(store.range("", Some(3)).await.unwrap()), [empty, web("{}", 1)]);
    let mut watch = store.watch("", 3).await.unwrap();
    assert_eq!(watch.next().await.unwrap().changes[0].value, None);
    assert_eq!(store.commit(Txn::new().require("vm/web", 4).delete("vm/web")).await, Ok(5));
}

/// What this version writes today, so that a change of the stored form cannot go unseen.
#[tokio::test]
async fn the_stored_form_is_that_of_the_fixture() {
    let (folder, path) = place();
    let fixture = folder.path().join("fixture.db");
    let fixture = Connection::open(fixture).unwrap();
    fixture.execute_batch(STORE_V1).unwrap();
    let store = Sqlite::open(&path).unwrap();
    store.commit(Txn::new().put("vm/web", *b"{}").put("vm/gone", *b"x")).await.unwrap();
    store.commit(Txn::new().put("vm/empty", *b"")).await.unwrap();
    store.commit(Txn::new().delete("vm/gone")).await.unwrap();
    store.commit(Txn::new().put("vm/web", *b"{\"memory\":\"512MiB\"}")).await.unwrap();
    store.compact(2).await.unwrap();
    drop(store);
    let written = Connection::open(&path).unwrap();
    let dump = |db: &Connection, sql: &str| -> Vec<String> {
        let mut query = db.prepare(sql).unwrap();
        let rows = query.query_map([], |row| row.get::<_, String>(0)).unwrap();
        rows.map(|row| {
            row.unwrap()
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
                .replace("( ", "(")
                .replace(" )", ")")
        })
        .collect()
    };
    let row = "format('%s %d %d %s %d', key, modified, created, coalesce(hex(value), '-'), sum)";
    for sql in [
        "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name",
        "SELECT format('%d %d', revision, oldest) FROM head",
        &format!("SELECT {row} FROM entry ORDER BY key"),
        // The deleted key's first value went with the compaction, but its deletion at 3 is still told.
        &format!(
            "SELECT {row} FROM change WHERE NOT (key = 'vm/gone' AND modified = 1) ORDER BY key, modified"
        ),
        "SELECT format('%d', application_id) FROM pragma_application_id",
        "SELECT format('%d', user_version) FROM pragma_user_version",
    ] {
        assert_eq!(dump(&written, sql), dump(&fixture, sql), "{sql}");
    }
}

fn step_1(db: &Connection) -> rusqlite::Result<()> {
    db.execute_batch("CREATE TABLE note (text TEXT); INSERT INTO note VALUES ('one')")
}

fn step_2(db: &Connection) -> rusqlite::Result<()> {
    db.execute_batch("ALTER TABLE note ADD COLUMN size INTEGER; UPDATE note SET size = length(text)")
}

fn step_that_fails(db: &Connection) -> rusqlite::Result<()> {
    db.execute_batch("DELETE FROM note; SELECT * FROM missing")
}

const V1: Format = Format { application_id: 7, steps: &[step_1] };
const V2: Format = Format { application_id: 7, steps: &[step_1, step_2] };
const V3: Format = Format { application_id: 7, steps: &[step_1, step_2, step_that_fails] };

#[test]
fn an_upgrade_walks_the_missing_steps_whole_or_not_at_all() {
    let sizes =
        |db: &Connection| db.query_row("SELECT size FROM note", [], |row| row.get::<_, i64>(0)).unwrap();
    let db = Connection::open_in_memory().unwrap();
    assert_eq!(V1.identify(&db), Ok(Found::Empty));
    V1.upgrade(&db, 0).unwrap();
    assert_eq!(V2.identify(&db), Ok(Found::Version(1)));
    V2.upgrade(&db, 1).unwrap();
    assert_eq!((V2.identify(&db), sizes(&db)), (Ok(Found::Version(2)), 3));
    V2.upgrade(&db, 2).unwrap();
    assert!(V3.upgrade(&db, 2).is_err());
    assert_eq!((V3.identify(&db), sizes(&db)), (Ok(Found::Version(2)), 3), "nothing of a failed step stays");

    let fresh = Connection::open_in_memory().unwrap();
    V2.upgrade(&fresh, 0).unwrap();
    assert_eq!((V2.identify(&fresh), sizes(&fresh)), (Ok(Found::Version(2)), 3), "a new file walks all");
    assert_eq!(STORE.identify(&fresh), Ok(Found::Foreign));
}
