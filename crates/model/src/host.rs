//! Machines that run VMs.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use sterna_base::clock::Timestamp;
use sterna_base::units::Bytes;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::cpu::{Accel, CpuReport};
use crate::fence::FenceDevice;
use crate::ha::{ConfirmedDead, GuardSeen};
use crate::meta::Name;
use crate::probe::LineProbe;
use crate::tunnel::TunnelSeen;

/// Written when a host joins; people change the cordon and the labels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HostSpec {
    pub datacentre: Name,
    pub cluster: Name,
    pub addresses: Addresses,
    /// A cordoned host gets no new VMs; those on it stay.
    #[serde(default)]
    pub cordoned: bool,
    /// A draining host is emptied: its VMs move away one by one, and it gets no new ones.
    #[serde(default)]
    pub draining: bool,
    /// A person looked: of the host's lease of that epoch nothing runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed_dead: Option<ConfirmedDead>,
    /// What switches it off when it is lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<FenceDevice>,
}

/// Where a host is reached, by purpose. What has no address of its own uses `management`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Addresses {
    #[schema(value_type = String)]
    pub management: IpAddr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub migration: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub storage: Option<IpAddr>,
}

impl Addresses {
    #[must_use]
    pub fn for_migration(&self) -> IpAddr {
        self.migration.unwrap_or(self.management)
    }

    #[must_use]
    pub fn for_storage(&self) -> IpAddr {
        self.storage.unwrap_or(self.management)
    }
}

/// What the host itself saw; written by the gateway when something of it changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostReport {
    /// Changes with every boot: what was running before is gone.
    pub boot_id: String,
    pub sterna_version: String,
    pub qemu_version: String,
    pub accel: Accel,
    /// Why this accelerator: the result of running a small guest.
    pub accel_why: String,
    pub cpus: u32,
    #[schema(value_type = String)]
    pub memory: Bytes,
    pub cpu: CpuReport,
    /// Storage pools by name: reachable, or why not.
    #[serde(default)]
    pub pools: BTreeMap<Name, PoolSeen>,
    /// Absent: the agent is of a version without tunnels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<TunnelSeen>,
    /// Where it answers hosts of other datacentres that measure the line to here. Absent: it was not told to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub mover: Option<SocketAddr>,
    /// What it measured itself of the lines to other datacentres, by datacentre.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub lines: BTreeMap<Name, LineProbe>,
    /// Absent: this host has no guard, or its agent is of a version without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<GuardSeen>,
    #[serde(default)]
    pub link: LinkState,
    /// When `link` last changed.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// The incarnation of the store that it has told everything to; set by the gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub told: Option<Uuid>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum LinkState {
    /// The agent is connected and has reported a complete inventory.
    Connected,
    /// No word from the agent. Says nothing about its VMs.
    #[default]
    Silent,
}

/// A storage pool as one host sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum PoolSeen {
    Ready {
        #[schema(value_type = String)]
        capacity: Bytes,
        /// Port on which this host serves an `nbd` pool; only on the pool's own host.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        port: Option<u16>,
        /// How full it is, in steps, once that matters; absent below.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        used_percent: Option<u8>,
    },
    Failed {
        why: String,
    },
}
