//! What an agent does to its machine's network: overlay segments between hosts, ports of VMs, addresses for guests.
//!
//! ```text
//!   guest ── tap ──┐
//!   guest ── tap ──┤ bridge sterna-bN ── host_address (this host on the segment), DHCP for this host's own guests
//!                  ├── sterna-xN  VXLAN to the hosts of this datacentre         ┐ isolated from each other: the
//!                  ├── sterna-fN  VXLAN through the tunnel to the others        │ gateway's frames never leave this
//!                  └── sterna-hN ══ sterna-gN  gateway address, MAC             ┘ host, no frame passes through it
//! ```
//!
//! The gateway has the same address and MAC on every host, so that a guest keeps its default route when it moves.
//! The host's own addresses, routes and devices are never changed; everything made here carries [`name::PREFIX`] or
//! the mark [`name::TAP_MARK`], and [`Networks::leave`] removes exactly that.

mod bridge;
mod daemon;
mod dhcp;
/// Asks guests for a sign of life.
pub mod echo;
mod filter;
mod forwarding;
/// How devices are called, and which are ours.
pub mod name;
mod overlay;
mod tap;
mod tool;
mod tunnel;
mod wireguard;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sterna_model::meta::Name;
use sterna_model::network::{Cidr, OVERLAY_MTU};
use sterna_model::tunnel::TunnelSeen;
use sterna_wire::assignment::{NetworkAssignment, NetworkKind, Tunnel as WantedTunnel};
use tokio::sync::Mutex;
use uuid::Uuid;

use overlay::Far;
pub use tap::Tap;
pub use tunnel::Settings as TunnelSettings;
use tunnel::{Keeper, Tunnel};
use world::World;

/// An unchanged assignment is compared with the machine again after this long, in case someone else changed it.
const RECHECK: Duration = Duration::from_secs(30);

/// Why a network or a port could not be made. One variant per remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("`{tool}` is not installed (Debian package {package})")]
    Missing { tool: &'static str, package: &'static str },
    #[error("this host's address {0} is on none of its devices")]
    NoUnderlay(IpAddr),
    #[error("the device of this host's address has an MTU of {mtu}; {least} is needed")]
    SmallUnderlay { mtu: u32, least: u32 },
    #[error("this host has no end of the tunnel between datacentres")]
    NoTunnel,
    #[error("there is no bridge `{bridge}` on this host; make it, with the physical device as its port")]
    NoBridge { bridge: String },
    #[error("`{bridge}` is a device of kind `{kind}`, not a bridge")]
    NotABridge { bridge: String, kind: String },
    #[error(
        "bridge `{bridge}` does not filter VLANs; VLAN {vlan} needs `ip link set {bridge} type bridge vlan_filtering 1`"
    )]
    NoVlans { bridge: String, vlan: u16 },
    #[error("network `{network}` is not set up on this host: {why}")]
    NotReady { network: Name, why: String },
    #[error("device `{device}` belongs to something else")]
    Foreign { device: String },
    #[error("{command} refused: {text}")]
    Refused { command: String, text: String },
    #[error("{action}")]
    Io { action: String, source: std::io::Error },
}

impl Error {
    /// With its cause, for people.
    fn explain(&self) -> String {
        match std::error::Error::source(self) {
            Some(source) => format!("{self}: {source}"),
            None => self.to_string(),
        }
    }
}

/// The networks of this host. Shared by all VM tasks.
pub struct Networks {
    dir: PathBuf,
    underlay: IpAddr,
    /// The user that QEMU runs as: owner of the taps.
    run_as: u32,
    tunnel: Tunnel,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What the last [`Networks::ensure`] was asked for, and when it compared it with the machine.
    applied: Option<Applied>,
    ready: BTreeMap<Name, Ready>,
    failed: BTreeMap<Name, String>,
    filter: Option<String>,
    dhcp: BTreeMap<u32, dhcp::Server>,
    keeper: Option<Keeper>,
}

struct Applied {
    networks: Vec<NetworkAssignment>,
    tunnel: Option<WantedTunnel>,
    at: Instant,
}

/// A network that ports can be added to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Ready {
    bridge: String,
    mtu: u32,
    vlan: Option<u16>,
}

impl Networks {
    /// `underlay`: this host's address that the other hosts reach it by.
    #[must_use]
    pub fn new(run_dir: &Path, underlay: IpAddr, run_as: u32) -> Self {
        let dir = run_dir.join("net");
        let tunnel = Tunnel::new(None, dir.join("tunnel.log"), underlay);
        Self { dir, underlay, run_as, tunnel, state: Mutex::default() }
    }

    /// With an end of the tunnel to other datacentres, if this machine can have one.
    #[must_use]
    pub fn with_tunnel(mut self, settings: TunnelSettings) -> Self {
        self.tunnel = Tunnel::new(Some(settings), self.dir.join("tunnel.log"), self.underlay);
        self
    }

    /// Finds out whether this machine can have an end of the tunnel: the first report must say it.
    pub async fn observe_tunnel(&self) -> Result<(), Error> {
        self.tunnel.observe(&World::observe().await?).await;
        Ok(())
    }

    /// This host's end of the tunnel, for its report.
    pub fn tunnel_seen(&self) -> Option<TunnelSeen> {
        self.tunnel.seen()
    }

    /// Whether [`Self::tunnel_seen`] changed since the last call.
    pub fn is_tunnel_news(&self) -> bool {
        self.tunnel.is_news()
    }

    /// Makes the machine have these networks and no others. What fails is returned by network, and does not keep the
    /// others from being made. An overlay that still has ports of VMs is kept. Without the tunnel networks reach this
    /// datacentre only; why is in the report of it.
    pub async fn ensure(
        &self,
        wanted: &[NetworkAssignment],
        tunnel: Option<&WantedTunnel>,
    ) -> Result<BTreeMap<Name, Error>, Error> {
        let mut state = self.state.lock().await;
        if !self.tunnel.has_ended() && state.is_current(wanted, tunnel) {
            return self.ensure_leases(&mut state, wanted).await;
        }
        let far = self.ensure_tunnel(&mut state, tunnel).await?;
        // What leans on an end that was made anew went with the old one.
        let world = World::observe().await?;
        let mut failed = BTreeMap::new();
        let mut ready = BTreeMap::new();
        for network in wanted {
            match self.ensure_one(&world, network, far.as_ref()).await {
                Ok(made) => drop(ready.insert(network.name.clone(), made)),
                Err(error) => drop(failed.insert(network.name.clone(), error)),
            }
        }
        self.remove_unwanted(&mut state, &world, wanted).await?;
        self.ensure_filter(&mut state, wanted).await?;
        for network in wanted {
            let Some(mtu) = ready.get(&network.name).map(|made| made.mtu) else { continue };
            if let Err(error) = self.ensure_dhcp(&mut state, network, mtu).await {
                ready.remove(&network.name);
                failed.insert(network.name.clone(), error);
            }
        }
        state.ready = ready;
        state.failed = failed.iter().map(|(name, error)| (name.clone(), error.to_string())).collect();
        // A tunnel that failed is tried again with the next look.
        let is_whole = tunnel.is_none() || far.is_some();
        let applied = Applied { networks: wanted.to_vec(), tunnel: tunnel.cloned(), at: Instant::now() };
        state.applied = is_whole.then_some(applied);
        Ok(failed)
    }

    async fn ensure_tunnel(
        &self,
        state: &mut State,
        wanted: Option<&WantedTunnel>,
    ) -> Result<Option<Far>, Error> {
        let world = World::observe().await?;
        self.tunnel.observe(&world).await;
        Ok(self.tunnel.ensure(&mut state.keeper, &world, wanted).await)
    }

    /// Other leases, the networks as they were: a VM that comes or goes changes only files of the DHCP server.
    async fn ensure_leases(
        &self,
        state: &mut State,
        wanted: &[NetworkAssignment],
    ) -> Result<BTreeMap<Name, Error>, Error> {
        if state.applied.as_ref().is_none_or(|last| last.networks == wanted) {
            return Ok(BTreeMap::new());
        }
        for network in wanted {
            let Some(mtu) = state.ready.get(&network.name).map(|ready| ready.mtu) else { continue };
            self.ensure_dhcp(state, network, mtu).await?;
        }
        if let Some(last) = &mut state.applied {
            last.networks = wanted.to_vec();
        }
        Ok(BTreeMap::new())
    }

    /// Makes the next [`Self::ensure`] compare with the machine even if it is asked for nothing new.
    pub async fn recheck(&self) {
        self.state.lock().await.applied = None;
    }

    /// The largest packet a guest may send on `network`: what its NIC is given.
    pub async fn mtu(&self, network: &Name) -> Result<u32, Error> {
        Ok(self.state.lock().await.ready(network)?.mtu)
    }

    /// Makes the port of NIC `index` of a VM and puts it on `network`. The same port again is no error.
    pub async fn tap(&self, vm: Uuid, index: usize, network: &Name) -> Result<String, Error> {
        let ready = self.state.lock().await.ready(network)?.clone();
        tap::ensure(vm, index, &ready, self.run_as).await
    }

    /// Removes a port; one that is not there counts as removed. The bridge forgets what it learned behind it.
    pub async fn remove_tap(&self, name: &str) -> Result<(), Error> {
        tap::remove(name).await
    }

    /// Every port that Sterna made on this machine, also those of VMs nobody knows any more.
    pub async fn list_taps(&self) -> Result<Vec<Tap>, Error> {
        Ok(tap::list(&World::observe().await?))
    }

    /// Removes everything Sterna made in this machine's network, and nothing else.
    pub async fn leave(&self) -> Result<(), Error> {
        let mut state = self.state.lock().await;
        for (_, server) in std::mem::take(&mut state.dhcp) {
            server.stop().await;
        }
        dhcp::end_strays(&self.dir).await;
        let world = World::observe().await?;
        let taps = tap::list(&world).into_iter().map(|tap| tap.name);
        let lines: Vec<_> =
            taps.chain(name::ours(&world)).map(|name| format!("link del dev {name}")).collect();
        tool::ip_batch(&lines).await?;
        tunnel::remove(&mut state.keeper, &world).await?;
        filter::remove().await?;
        forwarding::restore(&self.dir)?;
        *state = State::default();
        match std::fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::Io { action: format!("remove {}", self.dir.display()), source: error })
            }
            _ => Ok(()),
        }
    }

    async fn ensure_one(
        &self,
        world: &World,
        network: &NetworkAssignment,
        tunnel: Option<&Far>,
    ) -> Result<Ready, Error> {
        match &network.kind {
            NetworkKind::Overlay { vni, cidr, host_address, peers, far, .. } => {
                let (mtu, least) =
                    (world.underlay_mtu(self.underlay)?, OVERLAY_MTU + overlay::overhead(self.underlay));
                if mtu < least {
                    return Err(Error::SmallUnderlay { mtu, least });
                }
                let largest = world.largest_tap_on(&name::bridge(*vni)).unwrap_or(OVERLAY_MTU);
                let overlay = overlay::Overlay {
                    vni: *vni,
                    cidr: *cidr,
                    host_address: *host_address,
                    underlay: self.underlay,
                    mtu: largest.max(OVERLAY_MTU),
                    far: tunnel.cloned(),
                };
                if world.link(&name::bridge(*vni)).is_none() {
                    // It would stay bound to a bridge that is gone. Its keeper starts a new one.
                    dhcp::end_strays(&dhcp::dir(&self.dir, *vni)).await;
                }
                overlay.ensure(world).await?;
                overlay.ensure_peers(peers, far).await?;
                forwarding::ensure(&self.dir)?;
                Ok(Ready { bridge: name::bridge(*vni), mtu: OVERLAY_MTU, vlan: None })
            }
            NetworkKind::Bridge { bridge, vlan } => bridge::check(world, bridge, *vlan),
        }
    }

    async fn remove_unwanted(
        &self,
        state: &mut State,
        world: &World,
        wanted: &[NetworkAssignment],
    ) -> Result<(), Error> {
        let wanted: BTreeSet<u32> = wanted.iter().filter_map(cidr_of).map(|(vni, _)| vni).collect();
        let unwanted: BTreeSet<u32> = world.overlays().difference(&wanted).copied().collect();
        let idle = unwanted.into_iter().filter(|vni| !world.has_taps_on(&name::bridge(*vni)));
        let mut lines = Vec::new();
        for vni in idle {
            if let Some(server) = state.dhcp.remove(&vni) {
                server.stop().await;
            }
            dhcp::end_strays(&dhcp::dir(&self.dir, vni)).await;
            let devices = name::of(vni).into_iter().filter(|device| world.link(device).is_some());
            lines.extend(devices.map(|device| format!("link del dev {device}")));
        }
        tool::ip_batch(&lines).await
    }

    async fn ensure_filter(&self, state: &mut State, wanted: &[NetworkAssignment]) -> Result<(), Error> {
        let overlays: Vec<_> = wanted.iter().filter_map(cidr_of).collect();
        // Without overlays no rules are made; those of earlier overlays go.
        let rules = filter::rules(&overlays);
        if (overlays.is_empty() && state.filter.is_none()) || state.filter.as_ref() == Some(&rules) {
            return Ok(());
        }
        filter::apply(&rules).await?;
        state.filter = Some(rules);
        Ok(())
    }

    async fn ensure_dhcp(
        &self,
        state: &mut State,
        network: &NetworkAssignment,
        mtu: u32,
    ) -> Result<(), Error> {
        let NetworkKind::Overlay { vni, cidr, leases, .. } = &network.kind else { return Ok(()) };
        let config = dhcp::Config::new(dhcp::dir(&self.dir, *vni), *vni, *cidr, mtu);
        config.ensure_leases(leases)?;
        if state.dhcp.get(vni).is_none_or(|server| !server.serves(&config)) {
            if let Some(server) = state.dhcp.remove(vni) {
                server.stop().await;
            }
            state.dhcp.insert(*vni, dhcp::Server::start(config)?);
        }
        Ok(())
    }
}

impl State {
    /// Whether the machine was lately seen to have these networks, whatever their leases.
    fn is_current(&self, wanted: &[NetworkAssignment], tunnel: Option<&WantedTunnel>) -> bool {
        let is_unchanged = |last: &Applied| {
            last.at.elapsed() < RECHECK
                && last.tunnel.as_ref() == tunnel
                && last.networks.len() == wanted.len()
                && last.networks.iter().zip(wanted).all(|(last, wanted)| is_same_network(last, wanted))
        };
        self.failed.is_empty() && self.applied.as_ref().is_some_and(is_unchanged)
    }

    fn ready(&self, network: &Name) -> Result<&Ready, Error> {
        self.ready.get(network).ok_or_else(|| Error::NotReady {
            network: network.clone(),
            why: self.failed.get(network).cloned().unwrap_or_else(|| "not assigned yet".to_owned()),
        })
    }
}

/// Whatever their leases.
fn is_same_network(a: &NetworkAssignment, b: &NetworkAssignment) -> bool {
    let bare = |network: &NetworkAssignment| {
        let mut network = network.clone();
        if let NetworkKind::Overlay { leases, .. } = &mut network.kind {
            leases.clear();
        }
        network
    };
    bare(a) == bare(b)
}

fn cidr_of(network: &NetworkAssignment) -> Option<(u32, Cidr)> {
    match &network.kind {
        NetworkKind::Overlay { vni, cidr, .. } => Some((*vni, *cidr)),
        NetworkKind::Bridge { .. } => None,
    }
}
