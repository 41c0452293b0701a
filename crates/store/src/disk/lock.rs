//! Makes sure that one process at a time owns a file, and remembers what was acknowledged.
//!
//! Beside `FILE` lies `FILE.lock`. The kernel's lock on it ends with the process, however it ends. It is not a
//! lock on the database itself, because closing any second descriptor of that would drop SQLite's own locks.
//!
//! The lock file also holds the last acknowledged revision. It is written after the commit is durable and is not
//! synced, so it never says too much, survives a kill, and may lag only after a power cut. A database that ends
//! below it has lost acknowledged commits.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::OpenError;
use crate::store::Revision;

/// Three numbers of fixed width; the revision twice, so that a torn write is seen.
const RECORD_BYTES: usize = 10 + 1 + 20 + 1 + 20 + 1;
/// Far longer than a process needs from its fork to its own program; short for a person who started a second server.
const PATIENCE: Duration = Duration::from_millis(500);
const RETRY: Duration = Duration::from_millis(5);

/// The lock; given back when dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
    pub(crate) acknowledged: Revision,
}

impl Lock {
    /// Takes the lock of `path` or says who has it.
    pub(crate) fn take(path: &Path) -> Result<Self, OpenError> {
        let beside = lock_path(path);
        let io = |source| OpenError::Io { path: beside.clone(), source };
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(false).open(&beside).map_err(io)?;
        let locked = lock_soon(&file);
        let (pid, acknowledged) = read(&file).map_err(io)?;
        match locked {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::Locked { path: path.to_owned(), pid }),
            Err(TryLockError::Error(source)) => return Err(io(source)),
        }
        let lock = Self { file, acknowledged };
        lock.acknowledge(acknowledged).map_err(io)?;
        Ok(lock)
    }

    /// Remembers that commits up to `revision` were answered as durable.
    pub(crate) fn acknowledge(&self, revision: Revision) -> io::Result<()> {
        let record = format!("{:>10} {revision:>20} {revision:>20}\n", std::process::id());
        self.file.write_all_at(record.as_bytes(), 0)
    }
}

/// A holder that has just ended may be seen for a moment longer: a process that it was starting has its open files until
/// it runs its own program.
fn lock_soon(file: &File) -> Result<(), TryLockError> {
    let until = Instant::now() + PATIENCE;
    loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if Instant::now() < until => std::thread::sleep(RETRY),
            outcome => return outcome,
        }
    }
}

fn lock_path(path: &Path) -> PathBuf {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".lock");
    beside.into()
}

/// The owner and the revision of a lock file; zeros where it says nothing that can be trusted.
fn read(file: &File) -> io::Result<(u32, Revision)> {
    let mut record = [0; RECORD_BYTES];
    match file.read_exact_at(&mut record, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok((0, 0)),
        other => other?,
    }
    let text = String::from_utf8_lossy(&record);
    let mut words = text.split_ascii_whitespace();
    let pid = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
    let acknowledged = match (words.next(), words.next()) {
        (Some(once), Some(twice)) if once == twice => once.parse().unwrap_or(0),
        _ => 0,
    };
    Ok((pid, acknowledged))
}
