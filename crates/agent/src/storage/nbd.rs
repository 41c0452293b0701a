//! Pools of kind `nbd`: a folder on one host, served to the others as network block devices.
//!
//! ```text
//!   QEMU of VM (epoch g)    ── export VOLUME.VM.g   ─┐
//!   QEMU of VM (epoch g+1)  ── export VOLUME.VM.g+1 ─┴─ one node ── file in POOL/volumes
//! ```
//!
//! On the pool's own host one storage daemon of QEMU has the files open. Each VM reaches a volume through an export of
//! its own epoch. An export that is not in the assignment is cut at once: its client is disconnected and cannot come
//! back, so an old copy of a VM can write no more (fence F1). During a migration the exports of both ends share one
//! node, so that both see the same bytes.
//!
//! Everywhere else a volume of the pool is an address and the name of an export.

/// The storage daemon as a process.
mod daemon;
/// Asks a server whether it has an export.
mod handshake;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use sterna_qemu::config;
use sterna_qemu::qmp::export::{Exported, NbdExport, Removal};
use sterna_qemu::qmp::{self, Client};
use sterna_wire::assignment::{Export, export_name};
use uuid::Uuid;

use super::error::Error;
use super::folder::Folder;
use super::{chain, volume};

use daemon::Daemon;
pub use daemon::{Settings, end_all_below};

/// Longer than this a cut export has never been seen to take; its requests in flight are finished first.
const CUT_DEADLINE: Duration = Duration::from_secs(10);

/// How often the daemon is asked meanwhile.
const CUT_POLL: Duration = Duration::from_millis(5);

/// How long the pool's host may take to answer somebody who wants to open a volume.
const ASK_DEADLINE: Duration = Duration::from_secs(3);

/// One pool, on its own host.
pub struct Server {
    settings: Settings,
    daemon: Option<Daemon>,
}

impl Server {
    pub fn new(settings: Settings) -> Self {
        Self { settings, daemon: None }
    }

    /// Makes the exports exactly those wanted, cutting first; answers the port. One that cannot be made does not keep
    /// back the others: its VM finds no export and waits.
    pub async fn ensure(&mut self, pool: &Arc<Folder>, wanted: &[Export]) -> Result<u16, Error> {
        let daemon = match self.daemon.take().filter(|daemon| !daemon.qmp.is_closed()) {
            Some(daemon) => daemon,
            None => daemon::ensure(&self.settings).await?,
        };
        let converged = converge(&daemon.qmp, pool, wanted).await;
        let port = daemon.port;
        // Kept also after a failure: another daemon must not be started beside it.
        self.daemon = Some(daemon);
        converged.map(|()| port)
    }

    /// Cuts all exports and ends the daemon, for a pool that is no longer this host's.
    pub async fn stop(&mut self) -> Result<(), Error> {
        self.daemon = None;
        daemon::end(&self.settings).await
    }
}

async fn converge(qmp: &Client, pool: &Arc<Folder>, wanted: &[Export]) -> Result<(), Error> {
    let keep: BTreeSet<String> = wanted.iter().map(id).collect();
    let there = exports(qmp).await?;
    let surplus: Vec<&Exported> = there.iter().filter(|export| !keep.contains(&export.id)).collect();
    for export in &surplus {
        cut(qmp, &export.id).await?;
    }
    wait_until_cut(qmp, &surplus).await?;
    let there: BTreeSet<&str> = there.iter().map(|export| export.id.as_str()).collect();
    for export in wanted.iter().filter(|export| !there.contains(id(export).as_str())) {
        if let Err(error) = add(qmp, pool, export).await {
            tracing::warn!(volume = %export.volume, vm = %export.vm, epoch = export.epoch, why = error.explain(), "export not made");
        }
    }
    close_idle_nodes(qmp).await
}

/// Ids of exports start with a letter.
fn id(export: &Export) -> String {
    format!("x-{}", export_name(export.uid, export.vm, export.epoch))
}

/// A node's name has at most 31 characters, an UUID 32 digits: the first, which no two of our time differ in, is left out.
fn node_name(volume: Uuid) -> String {
    format!("v{}", &volume.simple().to_string()[2..])
}

async fn exports(qmp: &Client) -> Result<Vec<Exported>, Error> {
    qmp.query_exports().await.map_err(said_no("list the exports"))
}

async fn cut(qmp: &Client, id: &str) -> Result<(), Error> {
    match qmp.remove_export(id, Removal::Hard).await {
        Ok(()) => Ok(()),
        // Gone, or going since an earlier attempt: waited for below.
        Err(qmp::Error::Refused { .. }) => Ok(()),
        Err(error) => Err(said_no("cut an export")(error)),
    }
}

/// An export counts as cut when the daemon has forgotten it: its last write is done or refused by then.
async fn wait_until_cut(qmp: &Client, surplus: &[&Exported]) -> Result<(), Error> {
    let ids: BTreeSet<&str> = surplus.iter().map(|export| export.id.as_str()).collect();
    let deadline = tokio::time::Instant::now() + CUT_DEADLINE;
    while !ids.is_empty() && exports(qmp).await?.iter().any(|export| ids.contains(export.id.as_str())) {
        if tokio::time::Instant::now() > deadline {
            return Err(Error::not_yet("the storage daemon does not let go of an export"));
        }
        tokio::time::sleep(CUT_POLL).await;
    }
    Ok(())
}

async fn add(qmp: &Client, pool: &Arc<Folder>, export: &Export) -> Result<(), Error> {
    if volume::look(pool, export.uid, export.format).await?.is_none() {
        return Err(Error::not_yet("the volume is not made yet"));
    }
    let node = node_name(export.uid);
    let nodes = qmp.query_named_block_nodes().await.map_err(said_no("list the open volumes"))?;
    if !nodes.iter().any(|there| there.node_name.as_deref() == Some(&node)) {
        let arguments = node_of(pool, export)?;
        qmp.execute::<Value>("blockdev-add", arguments).await.map_err(said_no("open the volume"))?;
    }
    let name = export_name(export.uid, export.vm, export.epoch);
    let export = NbdExport { id: id(export), node, name, is_writable: true };
    qmp.add_nbd_export(&export).await.map_err(said_no("export the volume"))
}

fn node_of(pool: &Folder, export: &Export) -> Result<Value, Error> {
    let opened = chain::files(pool, export.uid, export.format, export.image.as_ref())?;
    let node = node_name(export.uid);
    let disk = config::Disk {
        id: node.clone(),
        node,
        format: opened.format,
        source: opened.source,
        backing: opened.backing,
        serial: None,
        read_only: false,
        place: config::Place::Slot(0),
        boot_index: None,
    };
    Ok(disk.blockdev())
}

/// A volume without exports is closed, so that it can be grown or removed as a file.
async fn close_idle_nodes(qmp: &Client) -> Result<(), Error> {
    let used: BTreeSet<String> = exports(qmp).await?.into_iter().map(|export| export.node_name).collect();
    let nodes = qmp.query_named_block_nodes().await.map_err(said_no("list the open volumes"))?;
    // Nodes below ours have names that QEMU made up, starting with `#`.
    let ours = nodes.into_iter().filter_map(|node| node.node_name).filter(|name| name.starts_with('v'));
    for name in ours.filter(|name| !used.contains(name)) {
        qmp.remove_node(&name).await.map_err(said_no("close a volume"))?;
    }
    Ok(())
}

fn said_no(what: &'static str) -> impl FnOnce(qmp::Error) -> Error {
    move |error| Error::Io { what: what.to_owned(), source: std::io::Error::other(error) }
}

/// The address of a volume, on any host; only once the pool's host serves it.
pub async fn reach(server: SocketAddr, volume: Uuid, vm: Uuid, epoch: u64) -> Result<config::Source, Error> {
    let export = export_name(volume, vm, epoch);
    match tokio::time::timeout(ASK_DEADLINE, handshake::has_export(server, &export)).await {
        Ok(Ok(true)) => {}
        Ok(Ok(false)) => return Err(Error::not_yet(format!("{server} does not serve the volume yet"))),
        Ok(Err(source)) => return Err(Error::Io { what: format!("reach the storage at {server}"), source }),
        Err(_) => return Err(Error::not_yet(format!("the storage at {server} does not answer"))),
    }
    Ok(config::Source::NbdTcp { host: server.ip().to_string(), port: server.port(), export })
}

/// Whether anybody answers there as a network block server.
pub async fn check(server: SocketAddr) -> Result<(), Error> {
    match tokio::time::timeout(ASK_DEADLINE, handshake::has_export(server, "")).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(source)) => Err(Error::Io { what: format!("reach the storage at {server}"), source }),
        Err(_) => Err(Error::not_yet(format!("the storage at {server} does not answer"))),
    }
}
