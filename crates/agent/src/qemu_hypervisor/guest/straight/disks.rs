//! The disks of a QEMU whose guest goes straight to another one: served at the target, mirrored from the source.

use std::fs::File;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::Path;

use serde_json::Value;
use sterna_base::file::read_if_there;
use sterna_model::line::DiskLine;
use sterna_qemu::image::{self, Header};
use sterna_qemu::qmp::Error;
use sterna_qemu::qmp::export::{NbdAddress, NbdExport};
use sterna_wire::shim::{LAUNCH, Launch};

use crate::carrier::{self, Parting, away};
use crate::hypervisor::GuestError;
use crate::qemu_hypervisor::guest::QemuGuest;
use crate::qemu_hypervisor::line::{self, CREDENTIALS};
use crate::qemu_hypervisor::node_of;

/// Somebody may take a port between our look and QEMU's; not so often.
const PORTS_TRIED: usize = 5;

impl QemuGuest {
    /// Target: opens its disks to the source. `is_encrypted`: with the key of the line for its memory.
    pub(super) async fn serve(
        &self,
        at: IpAddr,
        disks: &[usize],
        is_encrypted: bool,
    ) -> Result<DiskLine, GuestError> {
        // Looked at before anybody can write to them.
        let blank = self.blank(disks);
        // Of an attempt that did not succeed. Usually there is none, which is refused.
        if let Err(error) = self.client.nbd_server_stop().await {
            tracing::trace!(%error, "no block server to stop");
        }
        let port = self.serve_at(at, disks.len(), is_encrypted).await?;
        let word = line::draw().map_err(line::refused)?;
        let served = DiskLine { port, word, blank };
        for index in disks {
            let export = NbdExport {
                id: away(*index),
                node: node_of(*index),
                name: served.export(*index),
                is_writable: true,
            };
            self.client.add_nbd_export(&export).await?;
        }
        Ok(served)
    }

    /// On a port that was free a moment ago.
    async fn serve_at(&self, ip: IpAddr, disks: usize, is_encrypted: bool) -> Result<u16, GuestError> {
        let tls_creds = is_encrypted.then(|| CREDENTIALS.to_owned());
        let connections_max = u32::try_from(disks).unwrap_or(u32::MAX);
        let mut tried = 0;
        loop {
            let free = TcpListener::bind(SocketAddr::new(ip, 0)).and_then(|socket| socket.local_addr());
            let at = free.map_err(|error| GuestError::Refused(format!("no port for its disks: {error}")))?;
            let address = NbdAddress::Tcp { at, tls_creds: tls_creds.clone() };
            tried += 1;
            match self.client.nbd_server_start(&address, connections_max).await {
                Ok(()) => return Ok(at.port()),
                Err(Error::Refused { .. }) if tried < PORTS_TRIED => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Those of them into whose topmost image nothing was written.
    fn blank(&self, disks: &[usize]) -> Vec<usize> {
        let launch = read_if_there(&self.directory.with_file_name(LAUNCH)).ok().flatten();
        let launch = launch.and_then(|launch| serde_json::from_slice::<Launch>(&launch).ok());
        let Some(launch) = launch else { return Vec::new() };
        disks.iter().copied().filter(|index| is_blank(&launch, *index)).collect()
    }

    /// Target: its disks are its own from here on.
    pub(in crate::qemu_hypervisor::guest) async fn end_serving(&self) -> Result<(), GuestError> {
        if self.line_files().read_disks().map_err(line::refused)?.is_none() {
            return Ok(());
        }
        let stopped = self.client.nbd_server_stop().await;
        let is_refused = matches!(stopped, Err(Error::Refused { .. }));
        // It may have been stopped by an agent that did not live to write it down.
        if is_refused && self.client.query_exports().await?.is_empty() { Ok(()) } else { Ok(stopped?) }
    }

    /// Source: its disks begin to go; memory follows by itself.
    pub(super) async fn part_with(
        &self,
        to: SocketAddr,
        disks: &[usize],
        line: &DiskLine,
        is_encrypted: bool,
    ) -> Result<(), GuestError> {
        self.carriers.part_with(Parting {
            vm: self.uid,
            client: self.client.clone(),
            pid: self.pid,
            schema: self.schema().await?.clone(),
            to,
            disks: disks.to_vec(),
            line: line.clone(),
            tls_creds: is_encrypted.then(|| CREDENTIALS.to_owned()),
            happened: self.happened.clone(),
        });
        Ok(())
    }

    /// Source: nobody is left who could bring its transfer to an end.
    pub(in crate::qemu_hypervisor) async fn end_orphan(&self) -> Result<(), GuestError> {
        // A frozen one answers nothing, and its owner will say.
        if self.carriers.is_sending(self.uid) || self.is_frozen()? {
            return Ok(());
        }
        Ok(carrier::end_orphan(&self.client).await?)
    }
}

/// What cannot be told is copied in full, which is always right.
fn is_blank(launch: &Launch, index: usize) -> bool {
    let name = node_of(index);
    let nodes = launch.args.iter().filter_map(|arg| serde_json::from_str::<Value>(arg).ok());
    let mut ours = nodes.filter(|node| node["node-name"] == *name && node["driver"] == "qcow2");
    let file = ours.next().and_then(|node| Some(node["file"]["filename"].as_str()?.to_owned()));
    file.is_some_and(|file| is_blank_file(Path::new(&file)).unwrap_or(false))
}

fn is_blank_file(path: &Path) -> Option<bool> {
    let folder = File::open(path.parent()?).ok()?;
    let opened = image::open(folder, Path::new(path.file_name()?)).ok()?;
    Header::read(&opened).ok()?.is_blank(&opened).ok()
}
