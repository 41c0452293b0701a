//! A QEMU whose guest goes straight to another one: encrypted, or in clear.

/// The disks that it takes along.
mod disks;

use std::net::{IpAddr, SocketAddr};

use sterna_model::line::{Laying, Line};
use sterna_qemu::qmp::migration::{Address, Capability, Parameters};
use sterna_qemu::qmp::tls::Endpoint;
use sterna_wire::assignment::Outgoing;

use super::super::line::{self, CREDENTIALS, Files};
use super::QemuGuest;
use crate::hypervisor::{GuestError, Listening};

/// For QEMU: no credentials.
const IN_CLEAR: &str = "";

impl QemuGuest {
    fn line_files(&self) -> Files {
        Files::beside(&self.directory)
    }

    pub(super) async fn listen_straight(
        &self,
        at: IpAddr,
        laying: Option<Laying>,
        disks: &[usize],
    ) -> Result<Listening, GuestError> {
        let files = self.line_files();
        let line = match self.client.incoming_port().await? {
            None => self.open(at, laying, disks, &files).await?,
            // An earlier agent had it listen and did not live to say so.
            Some(_) => {
                let (key, disks) = (files.read(), files.read_disks());
                let (key, disks) = (key.map_err(line::refused)?, disks.map_err(line::refused)?);
                let laid = laying.filter(|laying| key.is_some() || !laying.is_encrypted);
                let channels = laid.map_or(0, |laying| laying.channels);
                (laid.is_some() || disks.is_some()).then_some(Line { key, channels, disks })
            }
        };
        let port = self.client.incoming_port().await?;
        let port = port.ok_or_else(|| GuestError::Unclear("qemu names no port".to_owned()))?;
        Ok(Listening { at: SocketAddr::new(at, port), line })
    }

    async fn open(
        &self,
        at: IpAddr,
        laying: Option<Laying>,
        disks: &[usize],
        files: &Files,
    ) -> Result<Option<Line>, GuestError> {
        // Announced after the guest runs, not when it has merely arrived.
        let mut parameters = Parameters { announce_rounds: Some(0), ..Parameters::default() };
        let mut line = Line { key: None, channels: laying.map_or(0, |laying| laying.channels), disks: None };
        if laying.is_some_and(|laying| laying.is_encrypted) {
            line.key = Some(line::draw().map_err(line::refused)?);
        }
        // Older QEMU would take a disk from its own block server.
        let on: &[_] = if disks.is_empty() { &[] } else { &[Capability::LateBlockActivate] };
        self.lay(Some(&line), Endpoint::Server, (on, &[]), &mut parameters).await?;
        if line.key.is_none() {
            // Of a key that is not for this line nothing may be told.
            files.remove().map_err(line::refused)?;
        }
        if !disks.is_empty() {
            let served = self.serve(at, disks, line.key.is_some()).await?;
            files.write_disks(&served).map_err(line::refused)?;
            line.disks = Some(served);
        }
        self.client.migrate_incoming(&Address::Tcp { ip: at, port: 0 }).await?;
        Ok((laying.is_some() || line.disks.is_some()).then_some(line))
    }

    pub(super) async fn send_straight(
        &self,
        outgoing: &Outgoing,
        mut parameters: Parameters,
    ) -> Result<(), GuestError> {
        let line = outgoing.line.as_ref();
        if let Some((disks, there)) = outgoing.straight_disks() {
            // Mirrors must have ended before QEMU gives its images up.
            let on = [Capability::AutoConverge, Capability::PauseBeforeSwitchover];
            self.lay(line, Endpoint::Client, (&on, &[]), &mut parameters).await?;
            let is_encrypted = line.is_some_and(|line| line.key.is_some());
            return self.part_with(outgoing.to, disks, there, is_encrypted).await;
        }
        let (on, off) = ([Capability::AutoConverge], [Capability::PauseBeforeSwitchover]);
        self.lay(line, Endpoint::Client, (&on, &off), &mut parameters).await?;
        let (ip, port) = (outgoing.to.ip(), outgoing.to.port());
        Ok(self.client.migrate(&Address::Tcp { ip, port }).await?)
    }

    /// Tells QEMU how its end of the line is. Capabilities and numbers must be the same at both.
    async fn lay(
        &self,
        line: Option<&Line>,
        endpoint: Endpoint,
        (on, off): (&[Capability], &[Capability]),
        parameters: &mut Parameters,
    ) -> Result<(), GuestError> {
        let mut on = [&[Capability::Events, Capability::ReturnPath], on].concat();
        let mut off = off.to_vec();
        let channels = line.map_or(0, |line| line.channels);
        if channels > 0 { &mut on } else { &mut off }.push(Capability::Multifd);
        self.client.set_migration_capabilities(&on, &off).await?;
        parameters.multifd_channels = (channels > 0).then_some(channels);
        let credentials = match line.and_then(|line| line.key.as_ref()) {
            Some(key) => {
                line::give(&self.client, endpoint, &self.line_files(), key).await?;
                CREDENTIALS
            }
            None => IN_CLEAR,
        };
        parameters.tls_creds = Some(credentials.to_owned());
        Ok(self.client.set_migration_parameters(parameters).await?)
    }

    /// Target: everything is here, or the copy has no line.
    pub(super) fn end_line(&self) {
        // Also where its disks came in: its block server was stopped.
        if let Err(error) = self.line_files().remove() {
            tracing::warn!(vm = %self.uid, %error, "the key of a move is left");
        }
    }

    /// Source: no key of an earlier move is left, and the next one goes another way.
    pub(super) async fn leave_line(&self) -> Result<(), GuestError> {
        let parameters = Parameters { tls_creds: Some(IN_CLEAR.to_owned()), ..Parameters::default() };
        self.client.set_migration_capabilities(&[], &[Capability::Multifd]).await?;
        self.client.set_migration_parameters(&parameters).await?;
        Ok(line::forget(&self.client).await?)
    }
}
