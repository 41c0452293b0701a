//! Long work that a user can wait for. An operation records a goal; whether it is reached is computed from the objects.

use serde::{Deserialize, Serialize};
use sterna_base::clock::Timestamp;
use utoipa::ToSchema;

use crate::meta::Name;

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OperationSpec {
    pub goal: Goal,
    #[schema(value_type = String, format = DateTime)]
    pub started: Timestamp,
    /// Who asked.
    pub actor: String,
}

/// When an operation is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "goal", rename_all = "kebab-case")]
pub enum Goal {
    /// The VM has answered this start or stop request.
    VmPower {
        vm: Name,
        request: u64,
    },
    /// The guest stands still because it was asked to.
    VmPaused {
        vm: Name,
    },
    /// The guest runs on after a pause.
    VmResumed {
        vm: Name,
    },
    /// The VM was reset.
    VmReset {
        vm: Name,
        request: u64,
    },
    VmGone {
        vm: Name,
    },
    MigrationEnds {
        migration: Name,
    },
    ImageReady {
        image: Name,
    },
    VolumeReady {
        volume: Name,
    },
    /// The volume has at least this size, in bytes.
    VolumeSize {
        volume: Name,
        bytes: u64,
    },
    VolumeGone {
        volume: Name,
    },
    HostEmpty {
        host: Name,
    },
}

impl Goal {
    /// Kind and name of the object it is about.
    #[must_use]
    pub fn target(&self) -> (&'static str, &Name) {
        match self {
            Goal::VmPower { vm, .. }
            | Goal::VmPaused { vm }
            | Goal::VmResumed { vm }
            | Goal::VmReset { vm, .. }
            | Goal::VmGone { vm } => ("vm", vm),
            Goal::MigrationEnds { migration } => ("migration", migration),
            Goal::ImageReady { image } => ("image", image),
            Goal::VolumeReady { volume } | Goal::VolumeSize { volume, .. } | Goal::VolumeGone { volume } => {
                ("volume", volume)
            }
            Goal::HostEmpty { host } => ("host", host),
        }
    }
}

/// Computed from the objects; written to history when it ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum OperationState {
    Running { message: String },
    Succeeded { message: String },
    Failed { message: String },
}

/// The decision column: set once, when control saw the end. A finished operation stays readable for an hour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OperationDecision {
    pub state: OperationState,
    #[schema(value_type = String, format = DateTime)]
    pub ended: Timestamp,
}
