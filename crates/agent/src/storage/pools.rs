//! All pools of this host: opened at every assignment, so that a lost mount is noticed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::future::join_all;
use sterna_base::units::Bytes;
use sterna_model::host::PoolSeen;
use sterna_model::meta::Name;
use sterna_model::pool::PoolKind;
use sterna_wire::assignment::PoolAssignment;
use uuid::Uuid;

use super::error::{Error, blocking};
use super::folder::{self, Folder, Space};
use super::{Settings, dir, former, nbd, shared_dir};

/// A pool that has not answered by then hangs: a lost NFS server makes every call wait for ever.
const OPEN_DEADLINE: Duration = Duration::from_secs(5);

pub struct Pools {
    settings: Settings,
    open: Mutex<Open>,
    servers: tokio::sync::Mutex<BTreeMap<Name, nbd::Server>>,
}

#[derive(Default)]
struct Open {
    assigned: Vec<PoolAssignment>,
    folders: BTreeMap<Name, Arc<Folder>>,
    /// Pools with a thread that waits in the kernel; a second one would wait as well.
    hanging: BTreeSet<Name>,
    /// The step of use that was last told.
    used: BTreeMap<Name, u8>,
}

/// Below this nobody needs to know, and each change would be a write in the store.
const USED_FROM: u8 = 80;
const USED_STEP: u8 = 5;
/// A step is left only by this much below it, so that a pool at its edge does not go to and fro.
const USED_SLACK: u8 = 2;

/// How full a pool is, in steps, where it matters.
fn used_step(space: &Space, before: Option<u8>) -> Option<u8> {
    let used = space.capacity.saturating_sub(space.free);
    let percent = u128::from(used) * 100 / u128::from(space.capacity.max(1));
    let percent = u8::try_from(percent).unwrap_or(100).min(100);
    let step = percent - percent % USED_STEP;
    match before {
        Some(before) if percent < before && percent + USED_SLACK >= before => Some(before),
        _ => (step >= USED_FROM).then_some(step),
    }
}

impl Pools {
    pub fn new(settings: Settings) -> Self {
        Self { settings, open: Mutex::default(), servers: tokio::sync::Mutex::default() }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        // No code panics while it holds this lock; if one did, the maps would still be whole.
        self.open.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub async fn ensure(self: &Arc<Self>, pools: &[PoolAssignment]) -> BTreeMap<Name, PoolSeen> {
        {
            let mut open = self.open();
            open.assigned = pools.to_vec();
            open.folders.retain(|name, _| pools.iter().any(|pool| pool.name == *name));
        }
        self.end_servers(pools).await;
        let seen = pools.iter().map(|pool| async move {
            let seen = match self.ensure_one(pool).await {
                Ok(seen) => seen,
                Err(error) => PoolSeen::Failed { why: error.explain() },
            };
            (pool.name.clone(), seen)
        });
        join_all(seen).await.into_iter().collect()
    }

    async fn ensure_one(self: &Arc<Self>, pool: &PoolAssignment) -> Result<PoolSeen, Error> {
        match &pool.kind {
            PoolKind::Dir { .. } | PoolKind::SharedDir { .. } => {
                let (_, space) = self.open_folder(pool).await?;
                Ok(self.ready(&pool.name, &space, None))
            }
            PoolKind::Nbd { host, .. } if *host == self.settings.host => {
                let (folder, space) = self.open_folder(pool).await?;
                let port = self.serve(pool, &folder).await?;
                Ok(self.ready(&pool.name, &space, Some(port)))
            }
            PoolKind::Nbd { host, .. } => {
                let server = pool.server.ok_or_else(|| {
                    Error::not_yet(format!("host {host} has not said yet where it serves this pool"))
                })?;
                nbd::check(server).await?;
                // Its size is for the pool's own host to say.
                Ok(PoolSeen::Ready { capacity: Bytes(0), port: None, used_percent: None })
            }
        }
    }

    fn ready(&self, name: &Name, space: &Space, port: Option<u16>) -> PoolSeen {
        let mut open = self.open();
        let used_percent = used_step(space, open.used.get(name).copied());
        match used_percent {
            Some(used) => drop(open.used.insert(name.clone(), used)),
            None => drop(open.used.remove(name)),
        }
        PoolSeen::Ready { capacity: Bytes(space.capacity), port, used_percent }
    }

    /// Opens the folder anew in a thread of its own and keeps it for the volumes.
    async fn open_folder(self: &Arc<Self>, pool: &PoolAssignment) -> Result<(Arc<Folder>, Space), Error> {
        let path = folder::locate(pool.kind.path(), &self.settings.data_dir)?;
        let hangs = || Error::not_yet(format!("folder {path:?} does not answer; is its server reachable?"));
        if !self.open().hanging.insert(pool.name.clone()) {
            return Err(hangs());
        }
        let (pools, name, kind) = (Arc::clone(self), pool.name.clone(), pool.kind.clone());
        let opening = {
            let path = path.clone();
            blocking(move || {
                let opened = pools.open_now(&name, &kind, path);
                pools.open().hanging.remove(&name);
                opened
            })
        };
        let opened = tokio::time::timeout(OPEN_DEADLINE, opening).await.unwrap_or_else(|_| Err(hangs()));
        let mut open = self.open();
        match opened {
            Ok((folder, space)) => {
                open.folders.insert(pool.name.clone(), Arc::clone(&folder));
                Ok((folder, space))
            }
            Err(error) => {
                open.folders.remove(&pool.name);
                Err(error)
            }
        }
    }

    fn open_now(&self, name: &Name, kind: &PoolKind, path: PathBuf) -> Result<(Arc<Folder>, Space), Error> {
        let Settings { cluster, run_as, data_dir, .. } = &self.settings;
        let folder = match kind {
            PoolKind::SharedDir { .. } => {
                let memory = data_dir.join("pools").join(format!("{name}.json"));
                shared_dir::open(&path, cluster, *run_as, &memory)?
            }
            PoolKind::Dir { .. } | PoolKind::Nbd { .. } => dir::open(&path, cluster, *run_as)?,
        };
        let space = folder.space()?;
        Ok((Arc::new(folder), space))
    }

    async fn serve(&self, pool: &PoolAssignment, folder: &Arc<Folder>) -> Result<u16, Error> {
        let mut servers = self.servers.lock().await;
        let server = servers
            .entry(pool.name.clone())
            .or_insert_with(|| nbd::Server::new(self.nbd_settings(&pool.name)));
        server.ensure(folder, &pool.exports).await
    }

    fn nbd_settings(&self, pool: &Name) -> nbd::Settings {
        nbd::Settings {
            program: self.settings.storage_daemon.clone(),
            run_dir: self.nbd_dir().join(pool.as_str()),
            port_file: self.settings.data_dir.join("pools").join(format!("{pool}.port")),
            address: self.settings.address,
            user: self.settings.run_as,
        }
    }

    fn nbd_dir(&self) -> PathBuf {
        self.settings.run_dir.join("nbd")
    }

    /// Makes the exports of a pool that waited for a volume.
    pub async fn refresh(self: &Arc<Self>, name: &Name) {
        let (pool, folder) = {
            let open = self.open();
            let pool = open.assigned.iter().find(|pool| pool.name == *name).cloned();
            (pool, open.folders.get(name).cloned())
        };
        let (Some(pool), Some(folder)) = (pool, folder) else { return };
        let is_ours = matches!(&pool.kind, PoolKind::Nbd { host, .. } if *host == self.settings.host);
        if !is_ours {
            return;
        }
        if let Err(error) = self.serve(&pool, &folder).await {
            tracing::warn!(pool = %name, why = error.explain(), "exports not refreshed");
        }
    }

    /// Ends the daemons of pools that this host serves no more; also those that an earlier agent left.
    async fn end_servers(&self, pools: &[PoolAssignment]) {
        let Ok(entries) = std::fs::read_dir(self.nbd_dir()) else { return };
        let is_served = |name: &Name| {
            pools.iter().any(|pool| {
                pool.name == *name
                    && matches!(&pool.kind, PoolKind::Nbd { host, .. } if *host == self.settings.host)
            })
        };
        let names = entries.flatten().filter_map(|entry| Name::new(entry.file_name().to_str()?).ok());
        for name in names.filter(|name| !is_served(name)).collect::<Vec<_>>() {
            let mut servers = self.servers.lock().await;
            let mut server =
                servers.remove(&name).unwrap_or_else(|| nbd::Server::new(self.nbd_settings(&name)));
            let ended = server.stop().await.and_then(|()| {
                std::fs::remove_dir_all(self.nbd_dir().join(name.as_str()))
                    .map_err(Error::io("remove its folder"))
            });
            match ended {
                Ok(()) => tracing::info!(pool = %name, "storage daemon ended with its pool"),
                Err(error) => tracing::warn!(pool = %name, why = error.explain(), "storage daemon not ended"),
            }
        }
    }

    pub fn folder(&self, name: &Name) -> Result<Arc<Folder>, Error> {
        let open = self.open();
        open.folders
            .get(name)
            .cloned()
            .ok_or_else(|| Error::not_yet(format!("pool {name} is not usable here now")))
    }

    /// Those whose files this host sees.
    pub fn folders(&self) -> BTreeMap<Name, Arc<Folder>> {
        self.open().folders.clone()
    }

    /// A former copy of this volume is in one of them; one that does not answer in time has none.
    pub async fn has_former(&self, uid: Uuid) -> bool {
        let looks = self.folders().into_values().map(|folder| async move {
            let look = blocking(move || former::is_there(&folder, uid));
            tokio::time::timeout(OPEN_DEADLINE, look).await.unwrap_or(false)
        });
        join_all(looks).await.contains(&true)
    }

    pub async fn free(&self) -> BTreeMap<Name, Bytes> {
        let free = self.folders().into_iter().map(|(name, folder)| async move {
            let space = tokio::time::timeout(OPEN_DEADLINE, blocking(move || folder.space())).await;
            Some((name, Bytes(space.ok()?.ok()?.free)))
        });
        join_all(free).await.into_iter().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn use_is_told_in_steps_that_do_not_go_to_and_fro() {
        let at =
            |percent: u64, before| used_step(&Space { capacity: 1000, free: 1000 - percent * 10 }, before);
        assert_eq!(at(50, None), None);
        assert_eq!(at(79, None), None);
        assert_eq!(at(80, None), Some(80));
        assert_eq!(at(89, Some(80)), Some(85));
        assert_eq!(at(84, Some(85)), Some(85));
        assert_eq!(at(83, Some(85)), Some(85));
        assert_eq!(at(82, Some(85)), Some(80));
        assert_eq!(at(78, Some(80)), Some(80));
        assert_eq!(at(77, Some(80)), None);
        assert_eq!(at(100, Some(95)), Some(100));
        assert_eq!(used_step(&Space { capacity: 0, free: 0 }, None), None);
    }
}
