//! Pools, images, volumes and seeds of one host: makes them what the assignment says, and says how a QEMU opens them.
//!
//! Everything made here has a name that follows from uids and checksums, is made under another name first, and is never
//! made again when it is there: any call may be repeated, also by the next agent after a crash of this one.
//!
//! Never decides which host may use a volume: it is told (assignment), and the last line of defence is QEMU's image lock.

/// A volume's files as QEMU is to open them.
mod chain;
/// Pools of kind `dir`.
mod dir;
mod error;
/// Who has an image open.
mod file_lock;
/// The folder of a pool.
mod folder;
mod format;
/// Copies of volumes that moved away.
mod former;
/// Content of images in a pool.
mod image;
/// Pools of kind `nbd`.
mod nbd;
/// All pools of this host.
mod pools;
/// cloud-init seeds.
mod seed;
/// Pools of kind `shared-dir`.
mod shared_dir;
/// Volumes as files.
mod volume;
/// One task per volume that something is to be done with.
mod work;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sterna_base::units::Bytes;
use sterna_model::host::PoolSeen;
use sterna_model::meta::Name;
use sterna_model::pool::PoolKind;
use sterna_model::vm::CloudInit;
use sterna_model::volume::VolumeReport;
use sterna_qemu::img;
use sterna_wire::assignment::{Disk, PoolAssignment, VolumeAssignment};
use sterna_wire::up::VolumeSeen;
use tokio::sync::watch;
use uuid::Uuid;

pub use chain::Opened;
pub use error::Error;
pub use folder::User;
pub use former::Limits;
pub use image::{Fetched, Fetcher};

use former::Sweeper;
pub use nbd::end_all_below as end_daemons;
use pools::Pools;
use volume::Maker;
use work::Work;

/// What storage needs to know of its host.
#[derive(Debug, Clone)]
pub struct Settings {
    pub host: Name,
    /// The same on all hosts of one Sterna installation and on no other: the SHA-256 of its CA certificate.
    pub cluster: String,
    /// Outlives a boot. Pools with a relative path lie in here; QEMU's user must be able to pass it (mode 711).
    pub data_dir: PathBuf,
    /// Does not outlive a boot.
    pub run_dir: PathBuf,
    /// Where this host serves its `nbd` pools.
    pub address: IpAddr,
    pub run_as: User,
    pub qemu_img: PathBuf,
    pub storage_daemon: PathBuf,
    /// How long copies of volumes that moved away are kept.
    pub former: Limits,
}

/// Storage of this host; clones share it.
#[derive(Clone)]
pub struct Storage {
    user: User,
    pools: Arc<Pools>,
    work: Arc<Work>,
    sweeper: Arc<Sweeper>,
}

impl Storage {
    /// Must be called inside a tokio runtime. Touches nothing yet.
    #[must_use]
    pub fn new(settings: Settings, fetcher: Arc<dyn Fetcher>) -> Self {
        let user = settings.run_as;
        let sweeper = Arc::new(Sweeper::new(settings.former));
        let maker = Maker { qemu_img: img::Tool::new(&settings.qemu_img), fetcher, user };
        let pools = Arc::new(Pools::new(settings));
        let work = Arc::new(Work::new(Arc::clone(&pools), maker));
        Self { user, pools, work, sweeper }
    }

    /// Makes pools usable and, where this host serves them, their exports exactly those assigned. Returns within a few
    /// seconds even if a pool hangs. To be called at every assignment, and every few seconds as a safety net; former
    /// copies that are surplus go behind its back.
    pub async fn ensure_pools(&self, pools: &[PoolAssignment]) -> BTreeMap<Name, PoolSeen> {
        let seen = self.pools.ensure(pools).await;
        self.sweeper.start(self.pools.folders());
        seen
    }

    /// Starts making, growing, shelving and removing; answers at once. Volumes that are no longer named are left as they are.
    pub fn ensure_volumes(&self, volumes: &[VolumeAssignment]) {
        self.work.ensure(volumes);
    }

    /// The newest word on every volume named in [`Storage::ensure_volumes`]; none on one that is to be shelved.
    #[must_use]
    pub fn volumes(&self) -> watch::Receiver<BTreeMap<Uuid, VolumeSeen>> {
        self.work.seen()
    }

    /// Says that the VM's QEMU has changed the size of this volume: looks at it again.
    pub fn recheck(&self, volume: Uuid) {
        self.work.recheck(volume);
    }

    /// How this copy of a VM opens its disk. [`Error::NotYet`] while the pool, the volume or its export is not there.
    pub async fn disk(
        &self,
        disk: &Disk,
        vm: Uuid,
        epoch: u64,
        pools: &[PoolAssignment],
    ) -> Result<Opened, Error> {
        let pool = pools
            .iter()
            .find(|pool| pool.name == disk.pool)
            .ok_or_else(|| Error::not_yet(format!("pool {} is not assigned to this host yet", disk.pool)))?;
        if let PoolKind::Nbd { host, .. } = &pool.kind {
            let server = pool.server.ok_or_else(|| {
                Error::not_yet(format!("host {host} has not said yet where it serves pool {}", pool.name))
            })?;
            let source = nbd::reach(server, disk.uid, vm, epoch).await?;
            // The pool's host reads the format; what comes over the line is the plain disk.
            let format = sterna_qemu::config::Format::Raw;
            return Ok(Opened { format, source, backing: Vec::new() });
        }
        let folder = self.pools.folder(&pool.name)?;
        let missing = || Error::not_yet(format!("volume {} is not in pool {} yet", disk.volume, pool.name));
        volume::look(&folder, disk.uid, disk.format).await?.ok_or_else(missing)?;
        chain::files(&folder, disk.uid, disk.format, disk.image.as_ref())
    }

    /// What an earlier move left of this volume is still in some pool here.
    pub async fn has_former(&self, volume: Uuid) -> bool {
        self.pools.has_former(volume).await
    }

    /// Free bytes of the pools whose files this host sees; one that does not answer in time is left out.
    pub async fn free(&self) -> BTreeMap<Name, Bytes> {
        self.pools.free().await
    }

    /// Makes the cloud-init seed of a VM in `folder`, the same bytes on every host.
    pub async fn seed(
        &self,
        folder: &Path,
        vm: Uuid,
        hostname: &Name,
        cloud_init: &CloudInit,
    ) -> Result<PathBuf, Error> {
        seed::ensure(&folder.join("seed.iso"), vm, hostname, cloud_init, self.user).await
    }
}

/// The size that a volume should get through the QEMU that has it open here (`block_resize`, then
/// [`Storage::recheck`]); `None` where that is not needed or not possible. A volume of an `nbd` pool cannot change its
/// size while it is exported: it grows when its VM has stopped.
#[must_use]
pub fn grows_online(volume: &VolumeAssignment, seen: &VolumeReport, kind: &PoolKind) -> Option<Bytes> {
    match seen {
        VolumeReport::Ready { size }
            if volume.in_use_by.is_some() && *size < volume.size && !matches!(kind, PoolKind::Nbd { .. }) =>
        {
            Some(volume.size)
        }
        _ => None,
    }
}
