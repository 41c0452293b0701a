//! A QEMU whose guest goes straight to another one: encrypted, or in clear.

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
    ) -> Result<Listening, GuestError> {
        let files = self.line_files();
        let line = match self.client.incoming_port().await? {
            None => self.open(at, laying, &files).await?,
            // An earlier agent had it listen and did not live to say so.
            Some(_) => {
                let key = files.read().map_err(line::refused)?;
                laying
                    .filter(|laying| key.is_some() || !laying.is_encrypted)
                    .map(|Laying { channels, .. }| Line { key, channels })
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
        files: &Files,
    ) -> Result<Option<Line>, GuestError> {
        // Announced after the guest runs, not when it has merely arrived.
        let mut parameters = Parameters { announce_rounds: Some(0), ..Parameters::default() };
        let line = match laying {
            Some(Laying { channels, is_encrypted: true }) => {
                Some(Line { key: Some(line::draw().map_err(line::refused)?), channels })
            }
            Some(Laying { channels, is_encrypted: false }) => Some(Line { key: None, channels }),
            None => None,
        };
        self.lay(line.as_ref(), Endpoint::Server, (&[], &[]), &mut parameters).await?;
        if line.as_ref().is_none_or(|line| line.key.is_none()) {
            // Of a key that is not for this line nothing may be told.
            files.remove().map_err(line::refused)?;
        }
        self.client.migrate_incoming(&Address::Tcp { ip: at, port: 0 }).await?;
        Ok(line)
    }

    pub(super) async fn send_straight(
        &self,
        outgoing: &Outgoing,
        mut parameters: Parameters,
    ) -> Result<(), GuestError> {
        let (on, off) = ([Capability::AutoConverge], [Capability::PauseBeforeSwitchover]);
        self.lay(outgoing.line.as_ref(), Endpoint::Client, (&on, &off), &mut parameters).await?;
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
