//! Measurements that agents sent lately: kept in memory, never stored.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sterna_model::forecast::LoadSample;
use sterna_model::meta::Name;
use sterna_model::migration::Progress;
use sterna_wire::up::HostSample;
use tokio::sync::broadcast;

/// Older than this a measurement says nothing about now.
const FRESH: Duration = Duration::from_secs(600);
/// Progress messages that a slow watcher may lag behind before it misses some; newer ones replace them anyway.
const BACKLOG: usize = 256;

/// Progress of one migration, as told to watchers.
#[derive(Debug, Clone)]
pub struct Told {
    pub migration: Name,
    pub progress: Progress,
}

pub struct Samples {
    kept: Mutex<Kept>,
    progress: broadcast::Sender<Told>,
}

#[derive(Default)]
struct Kept {
    vms: BTreeMap<Name, (LoadSample, Instant)>,
    migrations: BTreeMap<Name, (Progress, Instant)>,
    hosts: BTreeMap<Name, (HostSample, Instant)>,
}

impl Default for Samples {
    fn default() -> Self {
        Self { kept: Mutex::default(), progress: broadcast::Sender::new(BACKLOG) }
    }
}

impl Samples {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn vm(&self, name: &Name) -> Option<LoadSample> {
        fresh(&self.kept().vms, name)
    }

    pub fn migration(&self, name: &Name) -> Option<Progress> {
        fresh(&self.kept().migrations, name)
    }

    pub fn host(&self, name: &Name) -> Option<HostSample> {
        fresh(&self.kept().hosts, name)
    }

    pub fn put_vm(&self, name: Name, sample: LoadSample) {
        put(&mut self.kept().vms, name, sample);
    }

    pub fn put_host(&self, name: Name, sample: HostSample) {
        put(&mut self.kept().hosts, name, sample);
    }

    pub fn put_migration(&self, name: Name, progress: Progress) {
        put(&mut self.kept().migrations, name.clone(), progress.clone());
        // Nobody watching is no error.
        let _ = self.progress.send(Told { migration: name, progress });
    }

    pub fn subscribe(&self) -> broadcast::Receiver<Told> {
        self.progress.subscribe()
    }
}

fn fresh<T: Clone>(kept: &BTreeMap<Name, (T, Instant)>, name: &Name) -> Option<T> {
    kept.get(name).filter(|(_, at)| at.elapsed() < FRESH).map(|(value, _)| value.clone())
}

/// Every entry is about an object that existed when it was put; those of objects long gone leave here.
fn put<T>(kept: &mut BTreeMap<Name, (T, Instant)>, name: Name, value: T) {
    if kept.len() > 256 {
        kept.retain(|_, (_, at)| at.elapsed() < FRESH);
    }
    kept.insert(name, (value, Instant::now()));
}
