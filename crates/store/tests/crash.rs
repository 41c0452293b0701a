//! Kills a process that commits, at any moment, and damages what it left: nothing that was acknowledged may be
//! lost in silence, and no transaction may be there by half.
//!
//! `STERNA_STORE_KILLS` sets the number of kills (default 60). The process that is killed is this test binary,
//! started again with [`CHILD`] in its environment.

#![allow(clippy::unwrap_used, reason = "also the helpers of tests may panic")]

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sterna_store::{Error, OpenError, Revision, Sqlite, Store, Txn};

const CHILD: &str = "STERNA_STORE_CRASH_CHILD";
/// Tasks that commit at the same time, so that groups form.
const TASKS: usize = 4;
/// Large enough that a checkpoint comes every hundred commits or so.
const VALUE_BYTES: usize = 3000;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn value(count: u64) -> Vec<u8> {
    let mut value = count.to_string().into_bytes();
    value.resize(VALUE_BYTES, b' ');
    value
}

fn count_in(value: &[u8]) -> u64 {
    std::str::from_utf8(value).unwrap().trim().parse().unwrap()
}

/// Starts this binary again to run one of its functions on the store at `path`.
fn start_child(test: &str, path: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(CHILD, path)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

/// Not a test when run without [`CHILD`]: the process to be killed. Commits until its end and prints
/// `ack TASK COUNT REVISION` after each answer.
#[test]
fn child_that_commits() {
    let Ok(path) = std::env::var(CHILD) else { return };
    runtime().block_on(async {
        let store = std::sync::Arc::new(Sqlite::open(Path::new(&path)).unwrap());
        let tasks: Vec<_> = (0..TASKS).map(|task| tokio::spawn(commit_on(store.clone(), task))).collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
}

async fn commit_on(store: std::sync::Arc<Sqlite>, task: usize) {
    let keys = [format!("{task}/a"), format!("{task}/b"), format!("{task}/gone")];
    let stored = store.get(&keys[0]).await.unwrap();
    let mut count = stored.map_or(0, |entry| count_in(&entry.value));
    loop {
        count += 1;
        let txn = Txn::new().put(&keys[0], value(count)).put(&keys[1], value(count));
        let txn = if count % 2 == 0 { txn.delete(&keys[2]) } else { txn.put(&keys[2], value(count)) };
        let revision = store.commit(txn).await.unwrap();
        // One write, so that a line is there whole or not at all.
        let line = format!("ack {task} {count} {revision}\n");
        std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
        if task == 0 && count % 40 == 0 {
            store.compact(revision.saturating_sub(60)).await.unwrap();
        }
    }
}

/// The last acknowledged count and revision of each task.
type Acks = [(u64, Revision); TASKS];

/// Lets the child acknowledge `acks` commits, waits `delay`, kills it and reads what it still had to say.
fn run_and_kill(path: &Path, acks: u64, delay: Duration, last: &mut Acks) {
    let mut child = start_child("child_that_commits", path);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut seen = 0;
    let note = |line: String, last: &mut Acks| {
        // The test harness prints its own text in front of the first line.
        let Some(at) = line.find("ack ") else { return 0 };
        let words: Vec<u64> = line[at + 4..].split(' ').map(|word| word.parse().unwrap()).collect();
        let task = usize::try_from(words[0]).unwrap();
        assert_eq!(words[1], last[task].0 + 1, "task {task} goes on where it was");
        last[task] = (words[1], words[2]);
        1
    };
    while seen < acks {
        let line = lines.next().expect("the child lives").unwrap();
        seen += note(line, last);
    }
    let until = Instant::now() + delay;
    while Instant::now() < until {
        std::hint::spin_loop();
    }
    child.kill().unwrap();
    for line in lines {
        note(line.unwrap(), last);
    }
    child.wait().unwrap();
}

/// Checks the store against what was acknowledged; a commit in flight may have happened or not.
async fn check(path: &Path, last: &mut Acks) {
    let store = Sqlite::open(path).unwrap();
    let head = store.revision().await.unwrap();
    for (task, acked) in last.iter_mut().enumerate() {
        let a = store.get(&format!("{task}/a")).await.unwrap();
        let b = store.get(&format!("{task}/b")).await.unwrap();
        let gone = store.get(&format!("{task}/gone")).await.unwrap();
        let count = a.as_ref().map_or(0, |entry| count_in(&entry.value));
        let same =
            |entry: &Option<sterna_store::Entry>| entry.as_ref().map(|e| (e.value.clone(), e.modified));
        assert_eq!(same(&a), same(&b), "task {task}: half a transaction");
        assert_eq!(gone.is_some(), count % 2 == 1, "task {task}: half a transaction");
        assert!(
            count == acked.0 || count == acked.0 + 1,
            "task {task}: {count} stored, {} acknowledged",
            acked.0
        );
        let modified = a.map_or(0, |entry| entry.modified);
        assert!(modified <= head);
        if count == acked.0 {
            assert_eq!(modified, acked.1, "task {task}: not the revision that was acknowledged");
        }
        *acked = (count, modified);
    }
    check_log(&store, head).await;
    let next = store.commit(Txn::new().put("parent", *b"x")).await;
    assert_eq!(next, Ok(head + 1), "revisions go on");
}

/// Every revision from the oldest on is there, once, and counts never jump.
async fn check_log(store: &Sqlite, head: Revision) {
    let oldest = match store.range("", Some(0)).await {
        Err(Error::Compacted { oldest }) => oldest,
        other => other.map(|_| 0).unwrap(),
    };
    let mut watch = store.watch("", oldest).await.unwrap();
    let mut counts = [None; TASKS];
    for revision in oldest.max(1)..=head {
        let batch = tokio::time::timeout(Duration::from_secs(10), watch.next()).await.unwrap().unwrap();
        assert_eq!(batch.revision, revision, "a gap in the log");
        let Some(change) = batch.changes.iter().find(|change| change.key.ends_with("/a")) else { continue };
        let task: usize = change.key[..1].parse().unwrap();
        let count = count_in(change.value.as_ref().unwrap());
        assert!(counts[task].is_none_or(|before| count == before + 1));
        counts[task] = Some(count);
    }
}

#[test]
fn a_kill_at_any_moment_loses_nothing_acknowledged() {
    if std::env::var(CHILD).is_ok() {
        return;
    }
    let kills = std::env::var("STERNA_STORE_KILLS").map_or(60, |kills| kills.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let mut last = Acks::default();
    let runtime = runtime();
    for round in 0..kills {
        // Every number of acknowledged commits up to 40, then some more; delays through all of a commit.
        let acks = if round % 5 == 4 { 100 + round * 7 % 150 } else { round % 40 };
        let delay = Duration::from_micros(round * 397 % 4000);
        run_and_kill(&path, acks, delay, &mut last);
        runtime.block_on(check(&path, &mut last));
    }
    assert!(last.iter().all(|(count, _)| *count > kills / 8), "the children did work: {last:?}");
}

/// A store whose file holds 5 commits and whose log holds 30 more, copied while it was open.
struct Torn {
    folder: tempfile::TempDir,
    /// Length of the log after commit 5, 6, ... 35.
    lengths: Vec<u64>,
}

const IN_FILE: Revision = 5;
const IN_ALL: Revision = 35;

impl Torn {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.db");
        let put = |i: Revision| Txn::new().put(format!("k/{}", i % 4), i.to_string().into_bytes());
        let store = Sqlite::open(&path).unwrap();
        for i in 1..=IN_FILE {
            store.commit(put(i)).await.unwrap();
        }
        drop(store);
        let store = Sqlite::open(&path).unwrap();
        let length = || std::fs::metadata(beside(&path, "-wal")).unwrap().len();
        let mut lengths = vec![length()];
        for i in IN_FILE + 1..=IN_ALL {
            assert_eq!(store.commit(put(i)).await, Ok(i));
            lengths.push(length());
        }
        for suffix in ["", "-wal", ".lock"] {
            std::fs::copy(beside(&path, suffix), beside(&folder.path().join("kept"), suffix)).unwrap();
        }
        Self { folder, lengths }
    }

    /// A fresh copy with this log; `noted`: with the note of what was acknowledged.
    fn copy(&self, log: &[u8], noted: bool) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.db");
        let kept = self.folder.path().join("kept");
        std::fs::copy(&kept, &path).unwrap();
        std::fs::write(beside(&path, "-wal"), log).unwrap();
        if noted {
            std::fs::copy(beside(&kept, ".lock"), beside(&path, ".lock")).unwrap();
        }
        (folder, path)
    }

    fn log(&self) -> Vec<u8> {
        std::fs::read(beside(&self.folder.path().join("kept"), "-wal")).unwrap()
    }

    /// The last commit that lies wholly before this place in the log.
    fn before(&self, offset: u64) -> Revision {
        IN_FILE
            + self.lengths.iter().filter(|length| **length <= offset).count().saturating_sub(1) as Revision
    }

    /// Opens a copy: all before the damage is there, and nobody is deceived about the rest.
    async fn check(&self, log: &[u8], wanted: Revision, what: &str) {
        let (_folder, path) = self.copy(log, true);
        match Sqlite::open(&path) {
            Ok(_) => assert_eq!(wanted, IN_ALL, "{what}: acknowledged commits vanished in silence"),
            Err(OpenError::Behind { found, acknowledged, .. }) => {
                assert_eq!((found, acknowledged), (wanted, IN_ALL), "{what}");
            }
            Err(error) => panic!("{what}: {error}"),
        }
        let (_folder, path) = self.copy(log, false);
        let store = Sqlite::open(&path).unwrap();
        let snapshot = store.range("k/", None).await.unwrap();
        assert_eq!(snapshot.revision, wanted, "{what}");
        for entry in snapshot.entries {
            assert_eq!(entry.value[..], *entry.modified.to_string().as_bytes(), "{what}");
            assert!(entry.modified + 4 > wanted, "{what}");
        }
        assert_eq!(store.commit(Txn::new().put("next", *b"x")).await, Ok(wanted + 1), "{what}");
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// As many damages as take a few seconds: around every commit, and every so often in between.
fn offsets(torn: &Torn, length: u64) -> Vec<u64> {
    let around = torn.lengths.iter().flat_map(|at| [at.saturating_sub(1), *at, at + 1, at + 23, at + 2000]);
    let mut offsets: Vec<u64> = around.chain((0..length).step_by(9973)).filter(|at| *at < length).collect();
    offsets.sort_unstable();
    offsets.dedup();
    offsets
}

#[tokio::test]
async fn a_torn_log_loses_only_what_was_torn_and_says_so() {
    let torn = Torn::new().await;
    let log = torn.log();
    assert_eq!(log.len() as u64, *torn.lengths.last().unwrap());
    torn.check(&log, IN_ALL, "untouched").await;
    for offset in offsets(&torn, log.len() as u64) {
        let at = usize::try_from(offset).unwrap();
        torn.check(&log[..at], torn.before(offset), &format!("cut at {offset}")).await;
    }
}

#[tokio::test]
async fn a_damaged_log_loses_only_what_follows_and_says_so() {
    let torn = Torn::new().await;
    let log = torn.log();
    for offset in offsets(&torn, log.len() as u64) {
        let at = usize::try_from(offset).unwrap();
        let mut damaged = log.clone();
        damaged[at] ^= 0x10;
        torn.check(&damaged, torn.before(offset), &format!("a bit flipped at {offset}")).await;
        damaged[at..].fill(0);
        torn.check(&damaged, torn.before(offset), &format!("zeros from {offset}")).await;
    }
}

#[tokio::test]
async fn a_damaged_value_is_named_and_the_others_are_served() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let store = Sqlite::open(&path).unwrap();
    store.commit(Txn::new().put("good", *b"fine").put("bad", *b"a-value-to-be-found")).await.unwrap();
    drop(store);
    let mut bytes = std::fs::read(&path).unwrap();
    let places: Vec<usize> = bytes
        .windows(19)
        .enumerate()
        .filter(|(_, window)| window == b"a-value-to-be-found")
        .map(|(at, _)| at)
        .collect();
    assert_eq!(places.len(), 2, "once in the present, once in the log");
    places.into_iter().for_each(|at| bytes[at + 3] ^= 1);
    std::fs::write(&path, bytes).unwrap();

    let store = Sqlite::open(&path).unwrap();
    let damaged = Error::Damaged { key: "bad".into(), revision: 1 };
    assert_eq!(store.get("bad").await, Err(damaged.clone()));
    assert_eq!(store.range("", None).await, Err(damaged.clone()));
    assert_eq!(store.watch("", 0).await.unwrap().next().await, Err(damaged));
    assert_eq!(&store.get("good").await.unwrap().unwrap().value[..], b"fine");
    store.commit(Txn::new().require("bad", 1).put("bad", *b"mended")).await.unwrap();
    assert_eq!(&store.get("bad").await.unwrap().unwrap().value[..], b"mended");
}

/// Runs [`child_with_a_small_disk`] where it may mount a disk of its own that nobody else sees.
#[test]
fn a_full_disk_is_a_precise_error_and_ends_with_it() {
    if std::env::var(CHILD).is_ok() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    let mut child = command
        .arg("--mount")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "child_with_a_small_disk", "--nocapture"])
        .env(CHILD, folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(child.wait().unwrap().success(), "{said}");
    assert!(said.contains("went on after a full disk"), "{said}");
}

/// Not a test when run without [`CHILD`]: fills a disk of 1 MiB, then makes it larger.
#[test]
fn child_with_a_small_disk() {
    let Ok(folder) = std::env::var(CHILD) else { return };
    let mount = |arguments: &[&str]| {
        assert!(Command::new("mount").args(arguments).arg(&folder).status().unwrap().success());
    };
    mount(&["-t", "tmpfs", "-o", "size=1m", "sterna-test"]);
    runtime().block_on(async {
        let path = Path::new(&folder).join("store.db");
        let store = Sqlite::open(&path).unwrap();
        let mut revision = 0;
        let put = |i: u64| Txn::new().put(format!("k/{i}"), vec![b'x'; 10_000]);
        let error = loop {
            match store.commit(put(revision + 1)).await {
                Ok(next) => revision = next,
                Err(error) => break error,
            }
            assert!(revision < 200, "the disk never fills");
        };
        assert_eq!(error, Error::Full);
        assert!(revision > 5);
        assert_eq!(store.commit(put(revision + 1)).await, Err(Error::Full), "and again");
        let snapshot = store.range("", None).await.unwrap();
        assert_eq!((snapshot.revision, snapshot.entries.len() as u64), (revision, revision));
        mount(&["-o", "remount,size=16m"]);
        assert_eq!(store.commit(put(revision + 1)).await, Ok(revision + 1), "the store goes on");
        drop(store);
        let store = Sqlite::open(&path).unwrap();
        assert_eq!(store.range("", None).await.unwrap().entries.len() as u64, revision + 1);
    });
    println!("went on after a full disk");
}
