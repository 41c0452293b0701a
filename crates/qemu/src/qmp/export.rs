//! QEMU as a network block server: its disks for other processes.
//!
//! The target of a migration takes in its disks this way. Adding an export makes an image writable that still waits for
//! its guest, so the exports must be gone before the guest runs: two would write.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Client, Error};

/// Where a block server is, and how its clients have to call.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum NbdAddress {
    /// On this machine.
    Unix(PathBuf),
    Tcp {
        at: SocketAddr,
        /// Credentials that encrypt it; absent: in clear.
        tls_creds: Option<String>,
    },
}

impl From<&Path> for NbdAddress {
    fn from(socket: &Path) -> Self {
        Self::Unix(socket.to_owned())
    }
}

/// A disk for others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NbdExport {
    /// The name of the export in QMP; starts with a letter.
    pub id: String,
    /// The disk, by its node.
    pub node: String,
    /// The name that clients ask for.
    pub name: String,
    pub is_writable: bool,
}

/// How an export is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Removal {
    /// Refused while a client is connected.
    Safe,
    /// Its clients are disconnected.
    Hard,
}

/// One export of `query-block-exports`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Exported {
    pub id: String,
    pub node_name: String,
    /// Removed, but requests are still under way.
    #[serde(rename = "shutting-down")]
    pub is_shutting_down: bool,
}

impl Client {
    /// Listens for network block clients, of which so many are served at a time. A QEMU has one such server. It tells no
    /// port that it chose by itself: one has to be named.
    pub async fn nbd_server_start(&self, address: &NbdAddress, connections_max: u32) -> Result<(), Error> {
        let mut arguments = match address {
            NbdAddress::Unix(path) => json!({ "addr": { "type": "unix", "data": { "path": path } } }),
            NbdAddress::Tcp { at, .. } => {
                let data = json!({ "host": at.ip().to_string(), "port": at.port().to_string() });
                json!({ "addr": { "type": "inet", "data": data } })
            }
        };
        if let NbdAddress::Tcp { tls_creds: Some(credentials), .. } = address {
            arguments["tls-creds"] = json!(credentials);
        }
        arguments["max-connections"] = json!(connections_max);
        self.done("nbd-server-start", arguments).await
    }

    /// Disconnects all clients and removes all exports; all is done when this returns.
    pub async fn nbd_server_stop(&self) -> Result<(), Error> {
        self.done("nbd-server-stop", Value::Null).await
    }

    pub async fn add_nbd_export(&self, export: &NbdExport) -> Result<(), Error> {
        let arguments = json!({
            "type": "nbd",
            "id": export.id,
            "node-name": export.node,
            "name": export.name,
            "writable": export.is_writable,
        });
        self.done("block-export-add", arguments).await
    }

    /// Starts to remove an export; it is gone when [`Client::query_exports`] names it no more.
    pub async fn remove_export(&self, id: &str, removal: Removal) -> Result<(), Error> {
        let mode = match removal {
            Removal::Safe => "safe",
            Removal::Hard => "hard",
        };
        self.done("block-export-del", json!({ "id": id, "mode": mode })).await
    }

    pub async fn query_exports(&self) -> Result<Vec<Exported>, Error> {
        self.execute("query-block-exports", Value::Null).await
    }
}
