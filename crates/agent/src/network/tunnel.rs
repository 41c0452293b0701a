//! This host's end of the encrypted tunnel between datacentres: WireGuard of the kernel, else `wireguard-go`.
//!
//! ```text
//!   sterna-fN  VXLAN to other datacentres ── sterna-wHASH  fd53:7465:726e:6100::.../64 ══ UDP ══ their hosts
//! ```
//!
//! Every host talks straight to every host of the other datacentres. The key is made once and stays on this machine;
//! a peer may send from its one address alone. What is as it should be is not touched, so an agent that starts again
//! disturbs nothing; `wireguard-go` outlives it.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sterna_base::file::{read_if_there, write_durably};
use sterna_base::scope::Scope;
use sterna_model::tunnel::{Carrier, PREFIX_LENGTH, PublicKey, TunnelSeen};
use sterna_wire::assignment::Tunnel as Wanted;

use super::daemon::{self, Daemon, Process};
use super::overlay::{Far, addresses};
use super::wireguard::{Device, changes};
use super::world::World;
use super::{Error, forwarding, name, tap, tool};

/// 1500 less what WireGuard adds at most: IPv6, UDP, its own headers.
const MTU: u32 = 1500 - 80;
const UNDERLAY_MTU_MIN: u32 = 1500;
/// `wireguard-go` answers within tens of milliseconds; a busy machine may take longer.
const START_WITHIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(20);
const USERSPACE: &str = "wireguard-go";
/// Made and removed at once, to find out whether the kernel can.
const TRIAL: &str = "sterna-wtrial";

/// What the one who installed the host decides.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The private key's file.
    pub key: PathBuf,
    /// Where other hosts send to. This port is listened on.
    pub endpoint: SocketAddr,
}

/// This host's end.
pub(super) struct Tunnel {
    settings: Option<Settings>,
    log: PathBuf,
    underlay: IpAddr,
    seen: Mutex<Seen>,
    /// The process behind the device ended, and the device with it, since this was last asked.
    has_ended: Arc<AtomicBool>,
}

#[derive(Default)]
struct Seen {
    report: Option<TunnelSeen>,
    is_news: bool,
}

/// Keeps `wireguard-go` running behind a device.
pub(super) struct Keeper {
    device: String,
    scope: Scope,
}

impl Tunnel {
    pub(super) fn new(settings: Option<Settings>, log: PathBuf, underlay: IpAddr) -> Self {
        Self { settings, log, underlay, seen: Mutex::default(), has_ended: Arc::default() }
    }

    /// What to tell of it; `None`: not looked at yet, or this host is to have none.
    pub(super) fn seen(&self) -> Option<TunnelSeen> {
        self.lock().report.clone()
    }

    /// Whether [`Self::seen`] changed since the last call.
    pub(super) fn is_news(&self) -> bool {
        std::mem::take(&mut self.lock().is_news)
    }

    pub(super) fn has_ended(&self) -> bool {
        self.has_ended.swap(false, Ordering::Relaxed)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_seen(&self, report: TunnelSeen) {
        let mut seen = self.lock();
        if seen.report.as_ref() != Some(&report) {
            seen.report = Some(report);
            seen.is_news = true;
        }
    }

    /// Finds out what this machine can do, unless that is known already.
    pub(super) async fn observe(&self, world: &World) {
        let Some(settings) = &self.settings else { return };
        if matches!(self.seen(), Some(TunnelSeen::Ready { .. })) {
            return;
        }
        let endpoint = settings.endpoint;
        self.set_seen(match self.means(settings, world).await {
            Ok((public_key, carrier)) => TunnelSeen::Ready { public_key, endpoint, carrier, trouble: None },
            Err(error) => unavailable(&error),
        });
    }

    async fn means(&self, settings: &Settings, world: &World) -> Result<(PublicKey, Carrier), Error> {
        let mtu = world.underlay_mtu(self.underlay)?;
        if mtu < UNDERLAY_MTU_MIN {
            return Err(Error::SmallUnderlay { mtu, least: UNDERLAY_MTU_MIN });
        }
        let key = ensure_key(settings).await?;
        Ok((key, carrier(world).await?))
    }

    /// Makes the tunnel as it is wanted. What fails is told with the host and tried again with the next look.
    pub(super) async fn ensure(
        &self,
        keeper: &mut Option<Keeper>,
        world: &World,
        wanted: Option<&Wanted>,
    ) -> Option<Far> {
        let made = match wanted {
            Some(wanted) => self.try_ensure(keeper, world, wanted).await.map(Some),
            None => remove(keeper, world).await.map(|()| None),
        };
        let failed = made.as_ref().err().map(Error::explain);
        if let Some(error) = &failed {
            tracing::warn!(error, "the tunnel to other datacentres could not be made");
        }
        if let Some(TunnelSeen::Ready { public_key, endpoint, carrier, .. }) = self.seen() {
            self.set_seen(TunnelSeen::Ready { public_key, endpoint, carrier, trouble: failed });
        }
        made.ok().flatten()
    }

    async fn try_ensure(
        &self,
        keeper: &mut Option<Keeper>,
        world: &World,
        wanted: &Wanted,
    ) -> Result<Far, Error> {
        let (Some(settings), Some(TunnelSeen::Ready { carrier, public_key, .. })) =
            (&self.settings, self.seen())
        else {
            return Err(Error::NoTunnel);
        };
        let device = name::tunnel(wanted.address);
        if world.names().any(|other| name::is_tunnel(other) && other != device) {
            remove(keeper, world).await?;
        }
        self.ensure_device(keeper, world, &device, carrier).await?;
        configure(&device, settings, &public_key, wanted).await?;
        // Some machines turn IPv6 off; inside the tunnel nothing else is spoken.
        forwarding::allow_ipv6(&device)?;
        let link = world.link(&device);
        let mut lines = Vec::new();
        if link.is_none_or(|link| link.mtu != MTU || !link.is_up()) {
            lines.push(format!("link set dev {device} mtu {MTU} addrgenmode none up"));
        }
        lines.extend(addresses(&device, link, (wanted.address.into(), PREFIX_LENGTH)));
        tool::ip_batch(&lines).await?;
        Ok(Far { device, address: wanted.address })
    }

    async fn ensure_device(
        &self,
        keeper: &mut Option<Keeper>,
        world: &World,
        device: &str,
        carrier: Carrier,
    ) -> Result<(), Error> {
        match carrier {
            Carrier::Kernel if world.link(device).is_some() => Ok(()),
            Carrier::Kernel => tool::ip_batch(&[format!("link add name {device} type wireguard")]).await,
            Carrier::WireguardGo => {
                // Ports of VMs wait meanwhile: for one that does not start, only once.
                let within = if keeper.is_none() { START_WITHIN } else { Duration::ZERO };
                keeper.get_or_insert_with(|| self.keep(device));
                answers(device, within).await
            }
        }
    }

    fn keep(&self, device: &str) -> Keeper {
        let scope = Scope::new();
        let serving = Daemon {
            tool: USERSPACE,
            args: vec!["-f".to_owned(), device.to_owned()],
            log: self.log.clone(),
            device: device.to_owned(),
        };
        let (has_ended, served) = (Arc::clone(&self.has_ended), device.to_owned());
        let on_end = move || has_ended.store(true, Ordering::Relaxed);
        scope.spawn(serving.keep_running(move || find(&served), on_end));
        Keeper { device: device.to_owned(), scope }
    }
}

fn unavailable(error: &Error) -> TunnelSeen {
    let why = match error {
        Error::Missing { package, .. } => format!("install {package}"),
        error => error.explain(),
    };
    TunnelSeen::Unavailable { why }
}

/// Ends every tunnel of this host; that one is not there is no error.
pub(super) async fn remove(keeper: &mut Option<Keeper>, world: &World) -> Result<(), Error> {
    let mut devices: Vec<_> = world.names().filter(|name| name::is_tunnel(name)).map(str::to_owned).collect();
    if let Some(Keeper { device, scope }) = keeper.take() {
        scope.shut_down().await;
        devices.push(device);
    }
    for device in &devices {
        // The device of a process goes with it.
        for process in find(device) {
            process.end().await;
        }
    }
    let is_there = |device: &&String| tap::is_device(device).unwrap_or(false);
    let lines: Vec<_> =
        devices.iter().filter(is_there).map(|device| format!("link del dev {device}")).collect();
    tool::ip_batch(&lines).await
}

fn find(device: &str) -> Vec<Process> {
    daemon::find(USERSPACE, |args| args.last().is_some_and(|last| last == device))
}

async fn ensure_key(settings: &Settings) -> Result<PublicKey, Error> {
    let failed = |source| Error::Io { action: format!("keep {}", settings.key.display()), source };
    let kept = read_if_there(&settings.key).map_err(failed)?;
    let private = match kept {
        Some(kept) => String::from_utf8_lossy(&kept).into_owned(),
        None => {
            let made = tool::run("wg", &["genkey"], "").await?;
            write_durably(&settings.key, made.as_bytes(), 0o600).map_err(failed)?;
            made
        }
    };
    let public = tool::run("wg", &["pubkey"], &private).await?;
    public.trim().parse().map_err(|error| failed(std::io::Error::other(error)))
}

/// What is in use already, else what there is, the kernel first.
async fn carrier(world: &World) -> Result<Carrier, Error> {
    if let Some(link) = world.links().find(|link| name::is_tunnel(&link.name)) {
        let is_kernels = link.info.kind == "wireguard";
        return Ok(if is_kernels { Carrier::Kernel } else { Carrier::WireguardGo });
    }
    let trial = format!("link add name {TRIAL} type wireguard");
    let tried = match world.link(TRIAL) {
        // Left by an agent that ended between the two.
        Some(_) => Ok(()),
        None => tool::ip_batch(&[trial]).await,
    };
    match tried {
        Ok(()) => {
            tool::ip_batch(&[format!("link del dev {TRIAL}")]).await?;
            Ok(Carrier::Kernel)
        }
        Err(Error::Missing { tool, package }) => Err(Error::Missing { tool, package }),
        Err(_) if daemon::is_installed(USERSPACE) => Ok(Carrier::WireguardGo),
        Err(_) => Err(Error::Missing { tool: USERSPACE, package: tool::package(USERSPACE) }),
    }
}

/// Waits until the device is there and takes orders.
async fn answers(device: &str, within: Duration) -> Result<(), Error> {
    let deadline = Instant::now() + within;
    loop {
        let is_there = tap::is_device(device)?;
        match tool::run("wg", &["show", device, "listen-port"], "").await {
            Ok(_) if is_there => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(error),
            _ if Instant::now() > deadline => return Err(Error::NoTunnel),
            _ => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
}

/// Key, port and peers: only what differs, so that no session is disturbed.
async fn configure(
    device: &str,
    settings: &Settings,
    public_key: &PublicKey,
    wanted: &Wanted,
) -> Result<(), Error> {
    let have = Device::parse(&tool::run("wg", &["show", device, "dump"], "").await?);
    let mut args = vec!["set".to_owned(), device.to_owned()];
    let port = settings.endpoint.port();
    if have.public_key.as_ref() != Some(public_key) {
        args.extend(["private-key".to_owned(), settings.key.display().to_string()]);
    }
    if have.port != Some(port) {
        args.extend(["listen-port".to_owned(), port.to_string()]);
    }
    args.extend(changes(&have, &wanted.peers));
    if args.len() > 2 {
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        tool::run("wg", &args, "").await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_as_what_to_install() {
        let why = |error: &Error| match unavailable(error) {
            TunnelSeen::Unavailable { why } => why,
            ready @ TunnelSeen::Ready { .. } => panic!("{ready:?}"),
        };
        let missing = Error::Missing { tool: USERSPACE, package: tool::package(USERSPACE) };
        assert_eq!(why(&missing), "install wireguard-go");
        let source = std::io::Error::other("the disk is full");
        let refused = Error::Io { action: "keep the key".to_owned(), source };
        assert_eq!(why(&refused), "keep the key: the disk is full");
    }

    #[tokio::test]
    async fn a_key_is_made_once_and_only_its_owner_reads_it() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings { key: dir.path().join("key"), endpoint: ([192, 0, 2, 1], 7).into() };
        let first = ensure_key(&settings).await.unwrap();
        assert_eq!(ensure_key(&settings).await.unwrap(), first);
        let mode = std::fs::metadata(&settings.key).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(&settings.key, "no key").unwrap();
        assert!(ensure_key(&settings).await.is_err(), "a damaged key is told, not replaced");
    }
}
