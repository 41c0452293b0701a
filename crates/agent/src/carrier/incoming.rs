//! The target's side: rebuilds the stream into a QEMU that waits for it.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use sterna_base::units::Span;
use sterna_mover::codec::pages_of;
use sterna_mover::link::{Options, SessionId};
use sterna_mover::session::target::{self, TargetEvent};
use sterna_mover::session::{Outcome, Target};
use sterna_mover::volume;
use sterna_qemu::qmp::Client;
use sterna_qemu::qmp::migration::{Address, Capability, Parameters};
use sterna_wire::assignment::Carry;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use super::{Carriers, Error, disks, lock, store_bytes};

/// QEMU's socket, in the guest's directory.
const SOCKET: &str = "in.sock";
/// QEMU opens it before it answers the command that makes it.
const OPEN_WITHIN: Duration = Duration::from_secs(5);
const OPEN_POLL: Duration = Duration::from_millis(5);

/// A guest that arrives. The last one dropped calls it off.
#[derive(Clone)]
pub struct Incoming(Arc<Inner>);

struct Inner {
    session: Uuid,
    address: SocketAddr,
    has_disks: bool,
    /// When the end of the stream was here.
    granted: Arc<OnceLock<Instant>>,
    _stop: DropGuard,
}

impl Incoming {
    /// Where the source finds it.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// Since the end of the stream was here.
    #[must_use]
    pub fn loading(&self) -> Option<Span> {
        self.0.granted.get().map(|granted| Span(granted.elapsed()))
    }

    /// Its disks are open to the mover until the guest runs.
    #[must_use]
    pub fn has_disks(&self) -> bool {
        self.0.has_disks
    }
}

impl Carriers {
    /// Makes a paused QEMU wait, and answers where the source finds it. Asked again for the same session, answers the
    /// same.
    pub async fn receive(
        &self,
        vm: Uuid,
        carry: &Carry,
        at: IpAddr,
        qemu: (&Client, &Path),
    ) -> Result<SocketAddr, Error> {
        if let Some(there) = self.incoming(vm).filter(|there| there.0.session == carry.session) {
            return Ok(there.address());
        }
        let (client, directory) = qemu;
        let listener = self.listener(at).await?;
        let has_disks = !carry.disks.is_empty();
        let disks = if has_disks {
            let exports = disks::export(client, directory, carry).await?;
            let link = listener.expect(disks::session(carry), Options::default());
            Some(disks::take_in(link, exports, carry))
        } else {
            None
        };
        let path = directory.join(SOCKET);
        prepare(client, &path).await?;
        let socket = open(&path).await?;
        let memory = client.query_memory_size().await?;
        let most = target::Bounds { store_bytes: store_bytes(memory), pages_max: pages_of(memory) };
        let (checkpoint, keeper) = self.kept(vm).await;
        let options = target::Options { most, checkpoint, offers: self.offering(vm, carry), keeper };
        let link = listener.expect(SessionId(carry.session.into_bytes()), Options::default());
        let target = Target::start(socket, link, options);
        let stop = CancellationToken::new();
        let granted = Arc::default();
        let arriving = Arriving { target, disks, granted: Arc::clone(&granted) };
        self.0.scope.spawn(watch(self.clone(), vm, arriving, stop.clone()));
        let address = listener.address();
        let _stop = stop.drop_guard();
        let incoming = Inner { session: carry.session, address, has_disks, granted, _stop };
        lock(&self.0.incoming).insert(vm, Incoming(Arc::new(incoming)));
        Ok(address)
    }
}

async fn prepare(client: &Client, socket: &Path) -> Result<(), Error> {
    let on = [Capability::Events, Capability::ReturnPath, Capability::LateBlockActivate];
    client.set_migration_capabilities(&on, &[]).await?;
    // Announced after the guest runs, not when it has merely arrived.
    let parameters = Parameters { announce_rounds: Some(0), ..Parameters::default() };
    client.set_migration_parameters(&parameters).await?;
    Ok(client.migrate_incoming(&Address::Unix(socket.to_owned())).await?)
}

async fn open(path: &Path) -> Result<tokio::net::UnixStream, Error> {
    let begun = tokio::time::Instant::now();
    loop {
        match Target::connect(path).await {
            Ok(socket) => return Ok(socket),
            Err(_) if begun.elapsed() < OPEN_WITHIN => tokio::time::sleep(OPEN_POLL).await,
            Err(source) => return Err(Error::Io { what: "open qemu's migration socket", source }),
        }
    }
}

struct Arriving {
    target: Target,
    disks: Option<volume::Target>,
    granted: Arc<OnceLock<Instant>>,
}

/// Why the disks' session failed; never, when it does not.
async fn lost(disks: &mut Option<volume::Target>) -> volume::Error {
    loop {
        let Some(target) = disks.as_mut() else { return std::future::pending().await };
        match target.events.recv().await {
            Some(volume::TargetEvent::Ended(volume::Outcome::Failed(error))) => return error,
            Some(volume::TargetEvent::Ended(_)) | None => *disks = None,
            Some(_) => {}
        }
    }
}

/// Keeps the session until it ends. QEMU itself says whether it has everything.
async fn watch(carriers: Carriers, vm: Uuid, arriving: Arriving, stop: CancellationToken) {
    let Arriving { mut target, mut disks, granted } = arriving;
    loop {
        let event = tokio::select! {
            event = target.events.recv() => event,
            failed = lost(&mut disks) => {
                tracing::warn!(%vm, error = %failed, "a guest's disks have failed on their way in");
                // The source does not grant a guest whose disks are not here.
                disks = None;
                continue;
            }
            () = stop.cancelled() => {
                target.abort();
                target.events.recv().await
            }
        };
        match event {
            Some(TargetEvent::Opened(key)) => {
                if let Err(error) = carriers.0.vault.keep_page_key(vm, &key) {
                    tracing::warn!(%vm, %error, "a way back will take longer");
                }
            }
            Some(TargetEvent::Granted(end)) => {
                let _ = granted.set(Instant::now());
                tracing::info!(%vm, bytes = end.length, "a guest was granted");
            }
            Some(TargetEvent::Loaded { code, .. }) => tracing::debug!(%vm, code, "a guest was loaded"),
            Some(TargetEvent::Ended(Outcome::Failed(error))) => {
                return tracing::warn!(%vm, %error, "a guest's way in has failed");
            }
            Some(TargetEvent::Ended(outcome)) => {
                return tracing::debug!(%vm, ?outcome, "a guest's way in has ended");
            }
            None => return,
        }
    }
}
