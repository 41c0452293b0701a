//! What a copy is built from on the real machine: taps, volumes, seeds.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use sterna_wire::assignment::{Assignment, Machine};
use tokio::sync::watch;
use uuid::Uuid;

use crate::hypervisor::{Opened, Parts, Tap};
use crate::network::{self, Networks};
use crate::resources::{NotReady, Resources, Whose};
use crate::storage::{self, Storage};

/// The newest assignment, as far as networks and pools go.
pub type Assigned = watch::Receiver<Option<Arc<Assignment>>>;

pub struct MachineResources {
    pub storage: Storage,
    pub networks: Arc<Networks>,
    pub assigned: Assigned,
    /// A folder a VM, for its seed.
    pub seeds: PathBuf,
}

impl From<storage::Error> for NotReady {
    fn from(error: storage::Error) -> Self {
        match error {
            storage::Error::NotYet { what } => Self::Wait { step: what },
            storage::Error::Refused { what } => Self::Never { why: what },
            // The machine may think better of it.
            error @ storage::Error::Io { .. } => Self::Wait { step: error.explain() },
        }
    }
}

impl From<network::Error> for NotReady {
    fn from(error: network::Error) -> Self {
        Self::Wait { step: error.to_string() }
    }
}

impl MachineResources {
    fn seed_folder(&self, uid: Uuid) -> PathBuf {
        self.seeds.join(uid.to_string())
    }

    async fn disks(&self, whose: &Whose, machine: &Machine) -> Result<Vec<Opened>, NotReady> {
        let assignment = self.assigned.borrow().clone();
        let pools = assignment.as_ref().map(|assignment| &assignment.pools[..]).unwrap_or_default();
        let mut disks = Vec::new();
        for disk in &machine.disks {
            let opened = self.storage.disk(disk, whose.uid, whose.epoch, pools).await?;
            disks.push(Opened { format: opened.format, source: opened.source, backing: opened.backing });
        }
        // A disk that is not known yet would be missing in the guest.
        if machine.disks.len() < machine.hardware.volumes.len() {
            return Err(NotReady::Wait { step: "a volume is not placed yet".to_owned() });
        }
        Ok(disks)
    }

    async fn taps(&self, whose: &Whose, machine: &Machine) -> Result<Vec<Tap>, NotReady> {
        let mut taps = Vec::new();
        for (index, nic) in machine.hardware.nics.iter().enumerate() {
            let mtu = self.networks.mtu(&nic.network).await?;
            let device = self.networks.tap(whose.uid, index, &nic.network).await?;
            taps.push(Tap { device, mtu: u16::try_from(mtu).unwrap_or(u16::MAX) });
        }
        Ok(taps)
    }

    async fn seed(&self, whose: &Whose, machine: &Machine) -> Result<Option<PathBuf>, NotReady> {
        let Some(cloud_init) = &machine.cloud_init else { return Ok(None) };
        let folder = self.seed_folder(whose.uid);
        make_passable(&folder).map_err(|error| NotReady::Wait { step: format!("seed folder: {error}") })?;
        Ok(Some(self.storage.seed(&folder, whose.uid, &whose.name, cloud_init).await?))
    }
}

/// QEMU's unprivileged user may pass, and not list.
fn make_passable(folder: &std::path::Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir_all(folder)?;
    let own = folder.ancestors().take(2);
    own.into_iter()
        .try_for_each(|path| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o711)))
}

impl Resources for MachineResources {
    async fn prepare(&self, whose: &Whose, machine: &Machine) -> Result<Parts, NotReady> {
        let (disks, taps, seed) = tokio::try_join!(
            self.disks(whose, machine),
            self.taps(whose, machine),
            self.seed(whose, machine),
        )?;
        Ok(Parts { disks, seed, taps })
    }

    async fn release(&self, uid: Uuid, taps: &[String]) {
        for tap in taps {
            if let Err(error) = self.networks.remove_tap(tap).await {
                tracing::warn!(%tap, %error, "a port is left behind");
            }
        }
        match std::fs::remove_dir_all(self.seed_folder(uid)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%uid, %error, "a seed is left behind");
            }
            _ => {}
        }
    }
}
