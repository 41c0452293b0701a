//! The checkpoints of one host, within bounds of space and time.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use sterna_base::file;

use super::{Checkpoint, CheckpointId, Error, HostKey, Scratch, Writer};
use crate::hash::Key;

const FINISHED: &str = "checkpoint";
const GROWING: &str = "growing";

/// What may be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Of one checkpoint.
    pub bytes_each: u64,
    /// Of all together.
    pub bytes: u64,
    pub age: Duration,
}

/// A folder of checkpoints: the newest of each guest, named by the guest's uid and the checkpoint's id.
#[derive(Debug, Clone)]
pub struct Shelf(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    key: HostKey,
    limits: Limits,
    begun: AtomicU64,
}

struct Entry {
    path: PathBuf,
    vm: String,
    bytes: u64,
    kept_at: SystemTime,
}

impl Shelf {
    /// Opens the folder, and removes what a crash left half done.
    pub fn open(folder: &Path, key: HostKey, limits: Limits) -> Result<Self, Error> {
        fs::create_dir_all(folder)?;
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == GROWING) {
                file::remove_if_there(&path)?;
            }
        }
        let begun = AtomicU64::new(0);
        Ok(Self(Arc::new(Inner { folder: folder.to_owned(), key, limits, begun })))
    }

    pub(super) fn key(&self) -> &HostKey {
        &self.0.key
    }

    pub(super) fn limits(&self) -> Limits {
        self.0.limits
    }

    /// Begins a checkpoint of a guest, which counts once its session was committed.
    pub fn begin(&self, vm: [u8; 16]) -> Result<Writer, Error> {
        Writer::create(self, vm, &self.growing(&hex(&vm)))
    }

    /// Begins to gather contents that are named under this key, at most so many.
    pub fn scratch(&self, key: &Key, pages_max: usize) -> Result<Scratch, Error> {
        Scratch::create(&self.growing("scratch"), key, pages_max, self.limits().bytes_each)
    }

    fn growing(&self, what: &str) -> PathBuf {
        let number = self.0.begun.fetch_add(1, Ordering::Relaxed);
        self.0.folder.join(format!("{what}-{}-{number}.{GROWING}", std::process::id()))
    }

    /// The newest checkpoint of a guest. One that cannot be read is removed: it would stand in the way of the next.
    pub fn newest(&self, vm: [u8; 16]) -> Result<Option<Checkpoint>, Error> {
        let vm = hex(&vm);
        let mut entries = self.entries()?;
        entries.retain(|entry| entry.vm == vm);
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.kept_at));
        for entry in entries {
            match Checkpoint::open(&entry.path, self.key()) {
                Ok(checkpoint) => return Ok(Some(checkpoint)),
                Err(error) => {
                    tracing::warn!(path = %entry.path.display(), %error, "a checkpoint is removed");
                    file::remove_if_there(&entry.path)?;
                }
            }
        }
        Ok(None)
    }

    /// A finished file takes its place, and the guest's older ones go.
    pub(super) fn put(&self, vm: [u8; 16], finished: &Path, id: CheckpointId) -> Result<(), Error> {
        let vm = hex(&vm);
        let path = self.0.folder.join(format!("{vm}-{}.{FINISHED}", hex(&id.0)));
        fs::rename(finished, &path)?;
        fs::File::open(&self.0.folder)?.sync_all()?;
        for entry in self.entries()?.into_iter().filter(|entry| entry.vm == vm && entry.path != path) {
            file::remove_if_there(&entry.path)?;
        }
        self.sweep(SystemTime::now())
    }

    /// Removes what is too old, then the oldest until the rest fits.
    pub fn sweep(&self, now: SystemTime) -> Result<(), Error> {
        let mut entries = self.entries()?;
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.kept_at));
        let mut bytes = 0;
        for entry in entries {
            // A file from the future is as good as a new one.
            let age = now.duration_since(entry.kept_at).unwrap_or_default();
            bytes += entry.bytes;
            if age > self.limits().age || bytes > self.limits().bytes {
                bytes -= entry.bytes;
                file::remove_if_there(&entry.path)?;
            }
        }
        Ok(())
    }

    fn entries(&self) -> Result<Vec<Entry>, Error> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(&self.0.folder)? {
            let entry = entry?;
            let path = entry.path();
            let is_finished = path.extension().is_some_and(|extension| extension == FINISHED);
            let stem = path.file_stem().and_then(|stem| stem.to_str());
            if let Some((vm, _)) = stem.filter(|_| is_finished).and_then(|stem| stem.split_once('-')) {
                let vm = vm.to_owned();
                let metadata = entry.metadata()?;
                entries.push(Entry { path, vm, bytes: metadata.len(), kept_at: metadata.modified()? });
            }
        }
        Ok(entries)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
