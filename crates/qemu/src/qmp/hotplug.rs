//! Plugging and unplugging devices of a running guest.
//!
//! Unplugging only asks: the guest answers with `DEVICE_DELETED`, or not at all. The back end may be
//! removed after that event, not before.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Client, Error};
use crate::config::{Disk, Nic};
use crate::version::MachineType;

/// Opening an image may wait for a network server.
const OPEN_TIMEOUT: Duration = Duration::from_secs(60);

/// The server was asked a moment before, and answered.
const REOPEN_TIMEOUT: Duration = Duration::from_secs(10);

impl Client {
    /// Opens the disk's image and plugs it in; its place must be a free hot port.
    pub async fn add_disk(&self, disk: &Disk, queues: u32) -> Result<(), Error> {
        self.execute_within::<Value>("blockdev-add", disk.blockdev(), OPEN_TIMEOUT).await?;
        let plugged = self.done("device_add", disk.device(queues)).await;
        if plugged.is_err() {
            self.remove_node(&disk.node).await?;
        }
        plugged
    }

    /// Plugs in a NIC. Its tap must have been passed to QEMU under the name that `netdev` mentions, or be a
    /// descriptor that QEMU inherited.
    pub async fn add_nic(&self, nic: &Nic, machine: &MachineType) -> Result<(), Error> {
        self.done("netdev_add", nic.netdev()).await?;
        let plugged = self.done("device_add", nic.device(machine)).await;
        if plugged.is_err() {
            self.remove_netdev(&nic.netdev_id()).await?;
        }
        plugged
    }

    /// Asks the guest to let a device go.
    pub async fn remove_device(&self, id: &str) -> Result<(), Error> {
        self.done("device_del", json!({ "id": id })).await
    }

    /// Closes an image that no device uses.
    pub async fn remove_node(&self, node: &str) -> Result<(), Error> {
        self.done("blockdev-del", json!({ "node-name": node })).await
    }

    /// Opens the image of a disk anew, from where `disk` says that it is now, and gives it to the device that has it. For a
    /// connection that is lost for good: the guest, which must stand still, tries again what it was at when it is run.
    /// In two steps, so that the node has the same name afterwards; what an earlier attempt left is gone over.
    pub async fn reopen_disk(&self, disk: &Disk) -> Result<(), Error> {
        let again = Disk { node: format!("{}-again", disk.node), ..disk.clone() };
        let there = self.query_block().await?.into_iter().find(|device| device.id() == Some(&disk.id));
        let node = there.and_then(|device| device.inserted).and_then(|inserted| inserted.node_name);
        if node.as_deref() != Some(&again.node) {
            self.replace_node(&again).await?;
        }
        self.replace_node(disk).await?;
        self.remove_node(&again.node).await
    }

    /// The device gets this node, which it does not have yet.
    async fn replace_node(&self, disk: &Disk) -> Result<(), Error> {
        match self.remove_node(&disk.node).await {
            // There is none: the usual case.
            Ok(()) | Err(Error::Refused { .. }) => {}
            Err(error) => return Err(error),
        }
        self.execute_within::<Value>("blockdev-add", disk.blockdev(), REOPEN_TIMEOUT).await?;
        let path = format!("/machine/peripheral/{}/virtio-backend", disk.id);
        self.done("qom-set", json!({ "path": path, "property": "drive", "value": disk.node })).await
    }

    pub async fn remove_netdev(&self, id: &str) -> Result<(), Error> {
        self.done("netdev_del", json!({ "id": id })).await
    }
}
