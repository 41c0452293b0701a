//! All that is decided about one host. Complete each time: an agent converges on the newest and forgets the older.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};
use sterna_base::units::{Bytes, Span};
use sterna_model::bandwidth::Share;
use sterna_model::ha::VoterDecision;
use sterna_model::health::{HealthCheck, OnFault};
use sterna_model::image::Format;
use sterna_model::line::{DiskLine, Line};
use sterna_model::meta::Name;
use sterna_model::network::{Cidr, Mac};
use sterna_model::pool::PoolKind;
use sterna_model::tunnel::PublicKey;
use sterna_model::vm::{CloudInit, Hardware, Power};
use sterna_model::volume::ImageRef;
use uuid::Uuid;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// Store revision it was computed from; grows.
    pub revision: u64,
    pub host: Name,
    #[serde(default)]
    pub vms: Vec<VmAssignment>,
    #[serde(default)]
    pub networks: Vec<NetworkAssignment>,
    #[serde(default)]
    pub pools: Vec<PoolAssignment>,
    #[serde(default)]
    pub volumes: Vec<VolumeAssignment>,
    /// Absent: there is no other datacentre that this host can reach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<Tunnel>,
    /// Of the moves that leave this host over a line with limits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paces: Vec<Pace>,
    /// For the host's guard. Absent: nobody grants leases where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<Box<GuardOrder>>,
    /// Lines to other datacentres that this host measures: at first sight, then now and then. One that a move begins to
    /// use is not in here meanwhile.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub probes: Vec<Probe>,
    /// Absent: no other host measures a line to this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probed: Option<Probed>,
}

/// One line to measure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// To which it goes.
    pub datacentre: Name,
    /// The host there that answers, whose certificate must be met.
    pub peer: Name,
    /// Of its mover, as it reported it.
    pub at: SocketAddr,
    pub session: Uuid,
    /// How much of the line it may take: the lower counts, as for a move.
    pub shares: Vec<Share>,
}

/// Probes to answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probed {
    pub listen: IpAddr,
    /// One for each host that measures.
    pub sessions: Vec<Uuid>,
}

/// What a host's guard is told, and the answer to what its agent asked for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardOrder {
    /// This host's uid, by which the others know its guard.
    pub host: Uuid,
    pub voters: VoterDecision,
    /// The host's epoch, and the question that it is the answer to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joined: Option<Joined>,
    /// Return the lease, and ask for none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub release: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    pub question: Uuid,
    pub epoch: u64,
}

/// How fast a move may go. The host reads the time of day from its own clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pace {
    /// Of [`Carry`].
    pub session: Uuid,
    /// At its source and at its target: the lower counts.
    pub shares: Vec<Share>,
}

/// The encrypted way to the hosts of other datacentres.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tunnel {
    /// This host's address in it.
    pub address: Ipv6Addr,
    pub peers: Vec<TunnelPeer>,
}

/// One host of another datacentre.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelPeer {
    pub host: Name,
    pub public_key: PublicKey,
    pub endpoint: SocketAddr,
    /// The only one that it may send from.
    pub address: Ipv6Addr,
}

/// One VM that this host has something to do with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmAssignment {
    pub name: Name,
    pub uid: Uuid,
    /// The ownership this is about. An agent durably remembers the highest it acted on and refuses lower ones.
    pub epoch: u64,
    pub role: Role,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "kebab-case")]
pub enum Role {
    /// This host owns the VM under `epoch`.
    Owner(Box<Owner>),
    /// Take in a migration: start a paused QEMU that listens. `epoch` is the one it will own if it succeeds.
    Incoming {
        migration: Name,
        machine: Box<Machine>,
        listen: IpAddr,
        /// Absent: one QEMU calls the other, and no disk goes along.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        carry: Option<Carry>,
        /// One QEMU calls the other with so many connections beside the first. Absent: with one, in clear.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        channels: Option<u8>,
        /// Those are not encrypted.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        in_clear: bool,
        /// As [`Owner::host_epoch`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host_epoch: Option<u64>,
    },
    /// This host does not own the VM: end and reap whatever is left of it here.
    Release,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    pub machine: Machine,
    pub power: Power,
    pub reset_request: u64,
    pub shutdown_timeout: Span,
    /// Present: continue the copy that this migration left here, and never start a new process under this epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continues: Option<Name>,
    /// Present: the copy that is here under this epoch goes on as it is, under the order's. Only said to a host that held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopts: Option<u64>,
    /// Present: send this VM's memory away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outgoing: Option<Outgoing>,
    /// The epoch of the host's lease that a copy is to live and die with: a new one is started under it or not at all, one that
    /// runs comes under it. Absent: a new one is under none, and one that runs stays as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_epoch: Option<u64>,
    /// Present: a copy that ends without being asked may be started again here under the same epoch, before anybody is
    /// asked; the number is that of the restarts in a row before this epoch. Absent: the server decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_here: Option<u32>,
    /// What the host does by itself for a guest that fails. Absent: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthOrder>,
}

/// As the VM's spec has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HealthOrder {
    pub on_panic: OnFault,
    pub on_hang: OnFault,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<HealthCheck>,
    /// Counts start and stop requests of people: a later one lifts a quarantine.
    pub power_request: u64,
}

/// An order to the source of a migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outgoing {
    pub migration: Name,
    /// `ADDRESS:PORT` of the listening target.
    pub to: SocketAddr,
    /// Absent: one QEMU calls the other, and no disk goes along.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carry: Option<Carry>,
    /// As the target said it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<Line>,
    pub max_downtime: Span,
    /// Stop it while that is possible.
    pub cancel: bool,
    /// The disks alone: the guest stays.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub seed: bool,
}

impl Outgoing {
    /// Present: its disks go straight to the target's QEMU, like its memory. A target that laid no line for them has the
    /// mover: its agent knows of nothing else.
    #[must_use]
    pub fn straight_disks(&self) -> Option<(&[usize], &DiskLine)> {
        let carry = self.carry.as_ref().filter(|carry| carry.straight && !self.seed)?;
        Some((&carry.disks[..], self.line.as_ref()?.disks.as_ref()?))
    }

    /// The mover takes it.
    #[must_use]
    pub fn is_carried(&self) -> bool {
        self.carry.is_some() && self.straight_disks().is_none()
    }
}

/// What goes with a VM from one host to the other, and who takes it: the mover, unless it goes straight.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carry {
    /// Names the session on both sides; nobody else knows it.
    pub session: Uuid,
    /// The target host, whose certificate the source must meet.
    pub peer: Name,
    /// Of `machine.disks`, those whose content goes as well.
    pub disks: Vec<usize>,
    /// One QEMU calls the other, and writes those disks there itself. An agent that does not know of this has the mover.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub straight: bool,
    /// For the target: VMs that it runs whose memory resembles what comes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub siblings: Vec<Uuid>,
}

/// What QEMU is started with; the same on both sides of a migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    pub hardware: Hardware,
    /// In the order of `hardware.volumes`.
    pub disks: Vec<Disk>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_init: Option<CloudInit>,
}

/// A volume as a VM opens it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    pub volume: Name,
    pub uid: Uuid,
    pub pool: Name,
    pub format: Format,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageRef>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkAssignment {
    pub name: Name,
    pub kind: NetworkKind,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum NetworkKind {
    Overlay {
        vni: u32,
        cidr: Cidr,
        /// This host's own address on the segment.
        host_address: Ipv4Addr,
        /// Underlay addresses of the *other* hosts on the segment in the same datacentre; never this host's own (a host
        /// that is in its own flood list learns its own guest behind itself).
        peers: Vec<IpAddr>,
        /// Addresses in the tunnel of the hosts in other datacentres.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        far: Vec<Ipv6Addr>,
        /// For the VMs that this host owns or takes in.
        leases: Vec<Lease>,
    },
    Bridge {
        bridge: String,
        vlan: Option<u16>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    pub mac: Mac,
    pub address: Ipv4Addr,
    pub hostname: Name,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolAssignment {
    pub name: Name,
    pub kind: PoolKind,
    /// `nbd`: where the pool's host serves it; absent while that is not known yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<SocketAddr>,
    /// `nbd`, on the pool's own host: the exports that must be there, and no others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exports: Vec<Export>,
}

/// One volume made reachable for one VM under one epoch; its name is [`export_name`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    pub volume: Name,
    pub uid: Uuid,
    pub format: Format,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageRef>,
    pub vm: Uuid,
    pub epoch: u64,
}

/// The name of an `nbd` pool's export: revoked with the epoch that it was made for.
#[must_use]
pub fn export_name(volume: Uuid, vm: Uuid, epoch: u64) -> String {
    format!("{volume}.{vm}.{epoch}")
}

/// A volume that this host makes, grows, shelves or removes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeAssignment {
    pub name: Name,
    pub uid: Uuid,
    pub pool: Name,
    pub format: Format,
    pub size: Bytes,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageRef>,
    /// The VM that runs with it here, if any: a grow must go through its QEMU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_use_by: Option<Uuid>,
    pub purpose: Purpose,
}

/// What a host is to do with a volume in one of its pools.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// It lives here: made where it is not there, grown where it is too small.
    Keep,
    /// A move fills it: as [`Purpose::Keep`], but what an earlier move left of it here is taken as the start.
    Arrive,
    /// It moved away: what is left of it is put where no VM opens it, for the way back. Nothing is reported.
    Shelve,
    /// Nothing of it is to stay here.
    Remove,
}
