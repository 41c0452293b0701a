//! One task per volume that something is to be done with. The newest word of each is in a `watch`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use sterna_base::backoff::Backoff;
use sterna_base::units::Bytes;
use sterna_model::meta::Name;
use sterna_model::volume::VolumeReport;
use sterna_wire::assignment::{Purpose, VolumeAssignment};
use sterna_wire::up::VolumeSeen;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::error::Error;
use super::folder::Folder;
use super::former;
use super::pools::Pools;
use super::volume::{self, Maker};

/// How often a volume that is in use elsewhere is looked at again.
const IN_USE_POLL: Duration = Duration::from_secs(5);

/// What passes by itself is tried again after 0.2, 0.4 ... 30 s.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_CEILING: Duration = Duration::from_secs(30);

/// So many failures in a row are told although the next attempt may succeed: 3 s, then a person should know.
const QUIET_FAILURES: u32 = 4;

pub struct Work {
    pools: Arc<Pools>,
    maker: Maker,
    seen: watch::Sender<BTreeMap<Uuid, VolumeSeen>>,
    tasks: Mutex<BTreeMap<Place, Task>>,
}

/// A volume may be kept in one pool of a host and shelved in another.
type Place = (Uuid, Name);

fn place(volume: &VolumeAssignment) -> Place {
    (volume.uid, volume.pool.clone())
}

struct Task {
    volume: VolumeAssignment,
    handle: JoinHandle<()>,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

/// Where a volume came to rest.
enum Rest {
    Done(VolumeReport),
    /// Usable, but not yet of the size asked for.
    Waits(VolumeReport),
    /// Nothing is to be said of it.
    Silent,
}

impl Work {
    pub fn new(pools: Arc<Pools>, maker: Maker) -> Self {
        Self { pools, maker, seen: watch::Sender::default(), tasks: Mutex::default() }
    }

    fn tasks(&self) -> MutexGuard<'_, BTreeMap<Place, Task>> {
        // No code panics while it holds this lock; if one did, the map would still be whole.
        self.tasks.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub fn seen(&self) -> watch::Receiver<BTreeMap<Uuid, VolumeSeen>> {
        self.seen.subscribe()
    }

    pub fn ensure(self: &Arc<Self>, volumes: &[VolumeAssignment]) {
        let mut tasks = self.tasks();
        tasks.retain(|known, _| volumes.iter().any(|volume| place(volume) == *known));
        let is_told =
            |uid: &Uuid| volumes.iter().any(|volume| volume.uid == *uid && volume.purpose != Purpose::Shelve);
        self.seen.send_if_modified(|seen| {
            let before = seen.len();
            seen.retain(|uid, _| is_told(uid));
            seen.len() != before
        });
        for volume in volumes {
            // The same order is carried out, or was: its task is still at it or has said how it ended.
            if tasks.get(&place(volume)).is_none_or(|task| task.volume != *volume) {
                tasks.insert(place(volume), self.start(volume.clone()));
            }
        }
    }

    pub fn recheck(self: &Arc<Self>, uid: Uuid) {
        let mut tasks = self.tasks();
        for task in tasks.values_mut().filter(|task| task.volume.uid == uid) {
            *task = self.start(task.volume.clone());
        }
    }

    fn start(self: &Arc<Self>, volume: VolumeAssignment) -> Task {
        let work = Arc::clone(self);
        let handle = tokio::spawn({
            let volume = volume.clone();
            async move { work.run(&volume).await }
        });
        Task { volume, handle }
    }

    /// Goes on until the volume is as assigned.
    async fn run(&self, volume: &VolumeAssignment) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_CEILING);
        let mut failures = 0;
        loop {
            match self.step(volume).await {
                Ok(Rest::Done(report)) => return self.tell(volume, report),
                Ok(Rest::Silent) => return,
                Ok(Rest::Waits(report)) => {
                    self.tell(volume, report);
                    tokio::time::sleep(IN_USE_POLL).await;
                }
                Err(error) => {
                    failures += 1;
                    let why = error.explain();
                    tracing::warn!(volume = %volume.name, why, failures, "volume is not as assigned yet");
                    if matches!(error, Error::Refused { .. }) || failures > QUIET_FAILURES {
                        self.tell(volume, VolumeReport::Failed { why });
                    }
                    tokio::time::sleep(backoff.next_delay()).await;
                }
            }
        }
    }

    async fn step(&self, volume: &VolumeAssignment) -> Result<Rest, Error> {
        let pool = self.pools.folder(&volume.pool)?;
        match volume.purpose {
            Purpose::Keep | Purpose::Arrive => self.make(&pool, volume).await,
            Purpose::Shelve => {
                // A QEMU that has handed its VM over holds no lock, and may still get it back.
                if volume.in_use_by.is_some() {
                    return Err(Error::not_yet("a VM has it open"));
                }
                former::shelve(&pool, volume.uid, volume.format).await?;
                Ok(Rest::Silent)
            }
            Purpose::Remove => {
                volume::remove(&pool, volume.uid, volume.format).await?;
                former::remove(&pool, volume.uid).await?;
                Ok(Rest::Done(VolumeReport::Gone))
            }
        }
    }

    async fn make(&self, pool: &Arc<Folder>, volume: &VolumeAssignment) -> Result<Rest, Error> {
        let percent = |percent| self.tell(volume, VolumeReport::Making { percent });
        let size = match volume.purpose {
            Purpose::Arrive => volume::arrive(pool, volume, &self.maker, &percent).await?,
            _ => volume::ensure(pool, volume, &self.maker, &percent).await?,
        };
        let wanted = volume.size.as_u64();
        if size >= wanted || volume.in_use_by.is_some() {
            self.pools.refresh(&volume.pool).await;
            return Ok(Rest::Done(VolumeReport::Ready { size: Bytes(size) }));
        }
        match volume::grow(pool, volume.uid, volume.format, wanted, &self.maker).await {
            Ok(()) => {}
            Err(Error::NotYet { .. }) => return Ok(Rest::Waits(VolumeReport::Ready { size: Bytes(size) })),
            Err(error) => return Err(error),
        }
        let size = volume::look(pool, volume.uid, volume.format).await?.unwrap_or(wanted);
        Ok(Rest::Done(VolumeReport::Ready { size: Bytes(size) }))
    }

    fn tell(&self, volume: &VolumeAssignment, report: VolumeReport) {
        // Held until it is told: an order that was replaced meanwhile has no say any more.
        let tasks = self.tasks();
        let is_current = tasks.get(&place(volume)).is_some_and(|task| task.volume == *volume);
        if !is_current || volume.purpose == Purpose::Shelve {
            return;
        }
        self.seen.send_if_modified(|seen| {
            let said = VolumeSeen { name: volume.name.clone(), uid: volume.uid, report };
            if seen.get(&volume.uid) == Some(&said) {
                return false;
            }
            seen.insert(volume.uid, said);
            true
        });
    }
}
