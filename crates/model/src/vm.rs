//! Virtual servers: what may be asked of one, what control chose, what a host saw.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use sterna_base::clock::Timestamp;
use sterna_base::units::{Bytes, Span};
use utoipa::ToSchema;

use crate::cpu::Accel;
use crate::ha::{Ha, Isolation, Takeover};
use crate::health::{HealthCheck, HealthReport, OnFault};
use crate::meta::Name;
use crate::migration::MigrationReport;
use crate::network::Mac;

/// What a user asks of a VM. Written by the API only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// Boot image; a volume cloned from it is made together with the VM. Absent: boots from `volumes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Name>,
    /// Virtual CPUs, 1 to 64. A change applies at the next start.
    #[serde(default = "one")]
    pub cpus: u32,
    /// Memory, 16 MiB to 1 TiB. A change applies at the next start.
    #[serde(default = "default_memory")]
    #[schema(value_type = String, example = "512MiB")]
    pub memory: Bytes,
    /// Volumes in boot order. The API puts the boot volume made from `image` first.
    #[serde(default)]
    pub volumes: Vec<Name>,
    /// NICs in order. Absent at creation: one on the default network.
    #[serde(default)]
    pub nics: Vec<NicSpec>,
    #[serde(default)]
    pub power: Power,
    /// Counts start and stop requests, so that starting a VM that stopped itself is a change.
    #[serde(default)]
    pub power_request: u64,
    /// Counts reset requests.
    #[serde(default)]
    pub reset_request: u64,
    #[serde(default)]
    pub place: Place,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_init: Option<CloudInit>,
    /// How long a guest may take to shut down before it is switched off.
    #[serde(default = "default_shutdown")]
    #[schema(value_type = String, example = "30s")]
    pub shutdown_timeout: Span,
    #[serde(default)]
    pub restart: RestartPolicy,
    /// What its host does when the guest says that it crashed.
    #[serde(default)]
    pub on_panic: OnFault,
    /// What its host does when the guest does not feed its watchdog, or answered its agent's host before and then neither
    /// does so nor uses disk or network.
    #[serde(default)]
    pub on_hang: OnFault,
    /// The guest has a watchdog (i6300esb) to feed. A change applies at the next start.
    #[serde(default)]
    pub watchdog: bool,
    /// Whether what the VM is for works; asked by the host that it runs on. At most 8.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<HealthCheck>,
    /// Who starts first where room is short.
    #[serde(default, skip_serializing_if = "Priority::is_default")]
    pub priority: Priority,
    /// Whether it is started elsewhere when its host is lost. Absent: where it could run elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ha: Option<Ha>,
    /// What becomes of it when its host has lost its lease. Absent: it is kept where a fence device with power of its own
    /// tells whether the host is off, and killed everywhere else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Isolation>,
}

/// The limits the API holds a VM to.
pub const CPUS_MAX: u32 = 64;
pub const MEMORY_MIN: Bytes = Bytes::mib(16);
pub const MEMORY_MAX: Bytes = Bytes::gib(1024);
pub const VOLUMES_MAX: usize = 15;
pub const NICS_MAX: usize = 8;

fn one() -> u32 {
    1
}

fn default_memory() -> Bytes {
    Bytes::mib(256)
}

fn default_shutdown() -> Span {
    Span::from_secs(30)
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NicSpec {
    pub network: Name,
    /// Absent: derived from the VM's uid. Fixed for the VM's life either way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// Absent: the lowest free one of the network. Only on an overlay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address: Option<Ipv4Addr>,
}

/// What the user wants the VM to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Power {
    #[default]
    Running,
    /// Guest CPUs stopped, memory kept.
    Paused,
    Stopped,
    /// Stopped without asking the guest.
    Off,
}

impl Power {
    /// A QEMU process should exist.
    #[must_use]
    pub fn wants_process(self) -> bool {
        matches!(self, Power::Running | Power::Paused)
    }
}

/// Where the user wants the VM. Empty: anywhere.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Place {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub datacentre: Option<Name>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<Name>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<Name>,
}

/// NoCloud data for cloud-init, given to the guest on a read-only disk labelled `cidata`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CloudInit {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_config: Option<String>,
}

/// The longest user data, in bytes.
pub const USER_DATA_MAX: usize = 256 * 1024;

/// What happens when a guest ends without having been asked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Restart after a crash; a guest that shut itself down stays down.
    #[default]
    OnFailure,
    Never,
}

/// Which VMs start first when several wait for room, and after a loss of hosts.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Priority {
    Low,
    #[default]
    Normal,
    High,
}

impl Priority {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Priority::Low => "low",
            Priority::Normal => "normal",
            Priority::High => "high",
        }
    }
}

/// Who may run the VM: the host, and the number that grows with every new owner and every new start.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub struct Owner {
    pub host: Name,
    pub epoch: u64,
}

/// What control chose. Changed only by transactions that compare it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmDecision {
    pub owner: Owner,
    /// The migration whose copy this ownership continues; absent: a fresh start. A host told to continue never starts
    /// a new process under this epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continues: Option<Name>,
    /// The epoch under which the copy opened its disks, when its host got the VM back under a later one: exports of
    /// network block devices are made for an epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opened: Option<u64>,
    /// A restored store found the copy running under this epoch: it goes on under the owner's, which no order from before has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopts: Option<u64>,
    /// The epoch of its host's lease that the copy lives and dies with. Absent: it lives by none, and is not started
    /// elsewhere without its host's word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_epoch: Option<u64>,
    /// It was taken over from a host that was lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub takeover: Option<Takeover>,
    pub hardware: Hardware,
    /// The `power_request` that led to this start.
    pub power_request: u64,
    /// Starts after crashes in a row, for the back-off; zero after a start that was asked for.
    #[serde(default)]
    pub restarts: u32,
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// Why it is on this host.
    pub why: String,
}

/// What QEMU is started with; equal on both sides of a migration. Changes of the spec reach it at the next start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Hardware {
    /// Versioned, such as `pc-q35-10.0`.
    pub machine: String,
    pub cpu_model: String,
    pub accel: Accel,
    pub cpus: u32,
    /// What QEMU gets. May be 4 KiB less than asked for where QEMU < 9.0 under TCG would lose dirty pages.
    #[schema(value_type = String)]
    pub memory: Bytes,
    pub volumes: Vec<Name>,
    pub nics: Vec<Nic>,
    /// A watchdog device.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub watchdog: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Nic {
    pub network: Name,
    pub mac: Mac,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address: Option<Ipv4Addr>,
}

/// What one host saw of the VM. One row for each host that has something of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmReport {
    /// The ownership that this copy was started or prepared under.
    pub epoch: u64,
    pub state: CopyState,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<MigrationReport>,
    /// The last reset that was carried out.
    #[serde(default)]
    pub reset_request: u64,
    /// The epoch of the host's lease under which the guard there has it: until it is gone the guard ends it with that lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<u64>,
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// What the host did for it by itself.
    #[serde(default, skip_serializing_if = "HealthReport::is_empty")]
    pub health: HealthReport,
}

/// One copy of a VM on one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum CopyState {
    /// Being prepared; `step` says what is waited for.
    Starting { step: String },
    /// Guest CPUs run.
    Running,
    /// Guest CPUs stopped by request, by a migration's end, or by an I/O error; `why` says which.
    Paused { why: String },
    /// The guest was asked to shut down.
    ShuttingDown,
    /// A target that takes in a migration; it has never run.
    Incoming,
    /// The process is gone and reaped; it will not run again under this epoch.
    Stopped { exit: Exit },
}

impl CopyState {
    #[must_use]
    pub fn has_process(&self) -> bool {
        !matches!(self, CopyState::Stopped { .. })
    }
}

/// Why a copy ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "exit", rename_all = "kebab-case")]
pub enum Exit {
    /// The guest switched itself off.
    GuestShutdown,
    /// Sterna stopped it as asked; `forced` when the guest did not answer in time.
    Requested { forced: bool },
    /// QEMU ended without being asked.
    Crashed { why: String },
    /// It could not be started.
    StartFailed { why: String },
    /// The host booted, or lost its run records: whatever ran under this epoch is gone.
    Lost,
    /// Given up because another host owns the VM now.
    Released,
}
