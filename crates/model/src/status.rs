//! What users see of a VM, computed from the three columns and never stored.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::health::CheckState;
use crate::meta::{Meta, Name};
use crate::vm::{CopyState, Exit, Power, VmDecision, VmReport, VmSpec};

/// One word and one sentence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmStatus {
    pub state: VmState,
    /// What is going on, or why nothing is.
    pub message: String,
    /// Changes of the spec that wait for the next start, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pending: Vec<String>,
    /// What its checks say together; absent: it has none, or they are not asked now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<CheckState>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum VmState {
    /// Waits for a host or for its volumes.
    Placing,
    Starting,
    Running,
    Paused,
    Migrating,
    Stopping,
    Stopped,
    /// Ended without being asked and waits for its restart, or cannot be started.
    Failed,
    /// Its host is silent: nothing is known.
    Unknown,
    Deleting,
}

impl VmState {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            VmState::Placing => "placing",
            VmState::Starting => "starting",
            VmState::Running => "running",
            VmState::Paused => "paused",
            VmState::Migrating => "migrating",
            VmState::Stopping => "stopping",
            VmState::Stopped => "stopped",
            VmState::Failed => "failed",
            VmState::Unknown => "unknown",
            VmState::Deleting => "deleting",
        }
    }
}

/// Everything a VM's status is computed from.
#[derive(Debug, Clone, Copy)]
pub struct Columns<'a> {
    pub meta: &'a Meta,
    pub spec: &'a VmSpec,
    pub decision: Option<&'a VmDecision>,
    pub reports: &'a BTreeMap<Name, VmReport>,
    /// The owner host's agent is connected.
    pub owner_connected: bool,
    /// A migration of this VM has started and not ended.
    pub migrating: bool,
    /// Why no host was found, when none was.
    pub unplaced_why: Option<&'a str>,
}

/// The status of a VM: a pure function of its columns.
#[must_use]
pub fn status(columns: Columns<'_>) -> VmStatus {
    let (state, message) = state(columns);
    let pending = columns.decision.map(|decision| pending(columns.spec, decision)).unwrap_or_default();
    let health = if state == VmState::Running { health(columns) } else { None };
    VmStatus { state, message, pending, health }
}

/// The worst of its checks.
fn health(columns: Columns<'_>) -> Option<CheckState> {
    let owner = &columns.decision?.owner;
    let report = columns.reports.get(&owner.host).filter(|report| report.epoch == owner.epoch)?;
    let states = report.health.checks.iter().map(|check| check.state);
    states.max_by_key(|state| match state {
        CheckState::Healthy => 0,
        CheckState::Starting => 1,
        CheckState::Unhealthy => 2,
    })
}

fn state(columns: Columns<'_>) -> (VmState, String) {
    if columns.meta.deleting.is_some() {
        return (VmState::Deleting, "being deleted".to_owned());
    }
    let Some(decision) = columns.decision else {
        return before_first_start(columns);
    };
    let report =
        columns.reports.get(&decision.owner.host).filter(|report| report.epoch == decision.owner.epoch);
    // What has ended stays ended, also on a host that says nothing more.
    let may_change = report.is_none_or(|report| report.state.has_process());
    if !columns.owner_connected && may_change {
        return (VmState::Unknown, format!("host {} is silent", decision.owner.host));
    }
    let Some(report) = report else {
        let message = format!("ordered from host {}", decision.owner.host);
        let stopped = !columns.spec.power.wants_process();
        return (if stopped { VmState::Stopped } else { VmState::Starting }, message);
    };
    if columns.migrating && report.state.has_process() {
        return (VmState::Migrating, format!("on host {}", decision.owner.host));
    }
    of_copy(columns.spec, decision, report)
}

fn before_first_start(columns: Columns<'_>) -> (VmState, String) {
    if columns.spec.power.wants_process() {
        let why = columns.unplaced_why.unwrap_or("waits for a host");
        (VmState::Placing, why.to_owned())
    } else {
        (VmState::Stopped, "never started".to_owned())
    }
}

fn of_copy(spec: &VmSpec, decision: &VmDecision, report: &VmReport) -> (VmState, String) {
    let host = &decision.owner.host;
    let wants = spec.power.wants_process();
    match &report.state {
        CopyState::Starting { step } => (VmState::Starting, format!("{step} on host {host}")),
        CopyState::Incoming => (VmState::Migrating, format!("arriving on host {host}")),
        CopyState::ShuttingDown => (VmState::Stopping, "the guest was asked to shut down".to_owned()),
        CopyState::Running | CopyState::Paused { .. } if !wants => {
            (VmState::Stopping, "about to be stopped".to_owned())
        }
        CopyState::Running => (VmState::Running, troubled(format!("on host {host}"), report)),
        CopyState::Paused { why } => (VmState::Paused, troubled(why.clone(), report)),
        CopyState::Stopped { exit } => of_exit(spec, decision, exit),
    }
}

/// What a person should know of a copy whose process is well.
fn troubled(message: String, report: &VmReport) -> String {
    let health = &report.health;
    if let Some(why) = &health.quarantine {
        return format!("{message}; quarantined: {why}; start or reset it to lift that");
    }
    let unhealthy = health.checks.iter().filter(|check| check.state == CheckState::Unhealthy);
    let unhealthy: Vec<_> = unhealthy
        .map(|check| format!("check {} fails: {}", check.check, check.why.as_deref().unwrap_or("no reason")))
        .collect();
    if unhealthy.is_empty() { message } else { format!("{message}; {}", unhealthy.join("; ")) }
}

fn of_exit(spec: &VmSpec, decision: &VmDecision, exit: &Exit) -> (VmState, String) {
    let asked_again = spec.power.wants_process() && spec.power_request > decision.power_request;
    if asked_again {
        return (VmState::Placing, "waits for a host".to_owned());
    }
    match exit {
        Exit::GuestShutdown => (VmState::Stopped, "the guest shut itself down".to_owned()),
        Exit::Requested { forced: false } => (VmState::Stopped, "stopped as asked".to_owned()),
        Exit::Requested { forced: true } => (VmState::Stopped, "switched off as asked".to_owned()),
        _ if !spec.power.wants_process() => (VmState::Stopped, exit_text(exit)),
        _ => (VmState::Failed, exit_text(exit)),
    }
}

fn exit_text(exit: &Exit) -> String {
    match exit {
        Exit::Crashed { why } => format!("qemu ended: {why}"),
        Exit::StartFailed { why } => format!("could not be started: {why}"),
        Exit::Lost => "its host restarted".to_owned(),
        Exit::Released => "another host owns it".to_owned(),
        Exit::GuestShutdown => "the guest shut itself down".to_owned(),
        Exit::Requested { .. } => "stopped as asked".to_owned(),
    }
}

/// Spec changes that the running hardware does not have yet.
#[must_use]
pub fn pending(spec: &VmSpec, decision: &VmDecision) -> Vec<String> {
    let hardware = &decision.hardware;
    let mut waiting = Vec::new();
    if spec.cpus != hardware.cpus {
        waiting.push(format!("cpus {} -> {}", hardware.cpus, spec.cpus));
    }
    // The difference of one page is Sterna's own adjustment, not a wish of the user.
    if spec.memory.as_u64().abs_diff(hardware.memory.as_u64()) > 4096 {
        waiting.push(format!("memory {} -> {}", hardware.memory, spec.memory));
    }
    if spec.watchdog != hardware.watchdog {
        waiting.push(format!("watchdog {} -> {}", on_off(hardware.watchdog), on_off(spec.watchdog)));
    }
    if spec.volumes != hardware.volumes {
        waiting.push("volumes changed".to_owned());
    }
    let same_nics = spec.nics.len() == hardware.nics.len()
        && spec.nics.iter().zip(&hardware.nics).all(|(asked, has)| asked.network == has.network);
    if !same_nics {
        waiting.push("nics changed".to_owned());
    }
    if spec.power == Power::Stopped || spec.power == Power::Off { Vec::new() } else { waiting }
}

fn on_off(is_on: bool) -> &'static str {
    if is_on { "on" } else { "off" }
}
