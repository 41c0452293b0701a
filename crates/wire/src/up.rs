//! Messages from agent to server.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sterna_base::units::Bytes;
use sterna_model::forecast::LoadSample;
use sterna_model::host::HostReport;
use sterna_model::meta::Name;
use sterna_model::migration::Progress;
use sterna_model::vm::VmReport;
use sterna_model::volume::VolumeReport;
use uuid::Uuid;

/// One element of a report.
#[allow(
    clippy::large_enum_variant,
    reason = "what VMs say is most of what is said: a box for each would cost more"
)]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Up {
    /// First after every connect, and when something of it changes.
    Host(Box<HostReport>),
    /// After every connect: everything this host has. `complete` only when run records, processes and sockets were all
    /// read without error; the server treats an absent VM as gone only then.
    Inventory {
        complete: bool,
        vms: Vec<VmSeen>,
        volumes: Vec<VolumeSeen>,
        /// The incarnation whose `Hold` came before: no order from before it is carried out any more.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        held: Option<Uuid>,
    },
    /// One VM changed. `report: null`: nothing of it is left here.
    Vm(VmSeen),
    Volume(VolumeSeen),
    /// Something an operator should know that is no state, such as an image checksum that did not match.
    Event {
        kind: String,
        name: Name,
        what: String,
        why: String,
    },
    /// Measurements; never stored.
    Samples(Samples),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSeen {
    pub name: Name,
    pub uid: Uuid,
    pub report: Option<VmReport>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSeen {
    pub name: Name,
    pub uid: Uuid,
    pub report: VolumeReport,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Samples {
    /// By VM name.
    #[serde(default)]
    pub vms: BTreeMap<Name, LoadSample>,
    /// By migration name; from the source.
    #[serde(default)]
    pub migrations: BTreeMap<Name, Progress>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostSample>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostSample {
    /// CPU in use, in thousandths of one CPU.
    pub cpu_milli: u32,
    pub memory_used: Bytes,
    /// Free bytes by pool.
    pub pool_free: BTreeMap<Name, Bytes>,
}
