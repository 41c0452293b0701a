//! The machine as a whole: run state, power, and what this QEMU could run.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Client, Error, Schema};
use crate::version::{MachineType, Version};

/// `query-status`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RunState {
    /// Processors execute guest code.
    #[serde(rename = "running")]
    pub is_running: bool,
    pub status: RunStatus,
}

/// QEMU's word for what the machine does.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum RunStatus {
    Running,
    Paused,
    /// Started with `-S` and never run.
    Prelaunch,
    /// A target that waits or loads.
    InMigrate,
    /// A source that stopped for its last pass.
    FinishMigrate,
    /// A source whose guest has left.
    PostMigrate,
    Shutdown,
    /// A disk failed or is full.
    IoError,
    GuestPanicked,
    InternalError,
    Suspended,
    Watchdog,
    Other(String),
}

impl RunStatus {
    const WORDS: [(&str, RunStatus); 12] = [
        ("running", RunStatus::Running),
        ("paused", RunStatus::Paused),
        ("prelaunch", RunStatus::Prelaunch),
        ("inmigrate", RunStatus::InMigrate),
        ("finish-migrate", RunStatus::FinishMigrate),
        ("postmigrate", RunStatus::PostMigrate),
        ("shutdown", RunStatus::Shutdown),
        ("io-error", RunStatus::IoError),
        ("guest-panicked", RunStatus::GuestPanicked),
        ("internal-error", RunStatus::InternalError),
        ("suspended", RunStatus::Suspended),
        ("watchdog", RunStatus::Watchdog),
    ];

    pub fn as_str(&self) -> &str {
        if let Self::Other(word) = self {
            return word;
        }
        Self::WORDS.iter().find(|(_, status)| status == self).map_or("", |(word, _)| word)
    }
}

impl From<String> for RunStatus {
    fn from(word: String) -> Self {
        let known = Self::WORDS.into_iter().find(|(known, _)| *known == word);
        known.map_or(Self::Other(word), |(_, status)| status)
    }
}

impl From<RunStatus> for String {
    fn from(status: RunStatus) -> Self {
        status.as_str().to_owned()
    }
}

/// One processor model of `query-cpu-definitions`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuDefinition {
    pub name: String,
    /// What this host lacks under this accelerator; empty = the model runs here. Absent = QEMU cannot tell.
    #[serde(default, rename = "unavailable-features")]
    pub unavailable_features: Option<Vec<String>>,
    /// Safe to migrate between QEMU versions under one machine type.
    #[serde(default, rename = "migration-safe")]
    pub is_migration_safe: Option<bool>,
    /// A model whose features change with the host, such as `host` and `max`.
    #[serde(default, rename = "static")]
    pub is_static: bool,
    #[serde(default, rename = "alias-of")]
    pub alias_of: Option<String>,
    #[serde(default, rename = "deprecated")]
    pub is_deprecated: bool,
}

/// One machine type of `query-machines`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineDefinition {
    pub name: String,
    #[serde(default)]
    pub alias: Option<String>,
    #[serde(default, rename = "deprecated")]
    pub is_deprecated: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct MemorySize {
    base_memory: u64,
}

impl Client {
    /// A command whose reply says nothing.
    pub(super) async fn done(&self, command: &str, arguments: Value) -> Result<(), Error> {
        self.execute::<Value>(command, arguments).await.map(drop)
    }

    pub async fn query_status(&self) -> Result<RunState, Error> {
        self.execute("query-status", Value::Null).await
    }

    /// Runs the guest. Only for the owner of the guest: on the source of a finished migration this would
    /// make a second copy.
    pub async fn cont(&self) -> Result<(), Error> {
        self.done("cont", Value::Null).await
    }

    pub async fn stop(&self) -> Result<(), Error> {
        self.done("stop", Value::Null).await
    }

    /// Ends the process without asking the guest.
    pub async fn quit(&self) -> Result<(), Error> {
        match self.done("quit", Value::Null).await {
            // QEMU may be gone before its answer has left.
            Err(Error::Closed) => Ok(()),
            other => other,
        }
    }

    /// Presses the power button; the guest may do nothing.
    pub async fn system_powerdown(&self) -> Result<(), Error> {
        self.done("system_powerdown", Value::Null).await
    }

    pub async fn system_reset(&self) -> Result<(), Error> {
        self.done("system_reset", Value::Null).await
    }

    /// Bytes of memory that the guest was started with.
    pub async fn query_memory_size(&self) -> Result<u64, Error> {
        let told: MemorySize = self.execute("query-memory-size-summary", Value::Null).await?;
        Ok(told.base_memory)
    }

    pub async fn query_version(&self) -> Result<Version, Error> {
        #[derive(Deserialize)]
        struct Reply {
            qemu: Version,
        }
        Ok(self.execute::<Reply>("query-version", Value::Null).await?.qemu)
    }

    pub async fn query_cpu_definitions(&self) -> Result<Vec<CpuDefinition>, Error> {
        self.execute("query-cpu-definitions", Value::Null).await
    }

    pub async fn query_machines(&self) -> Result<Vec<MachineDefinition>, Error> {
        self.execute("query-machines", Value::Null).await
    }

    /// The versioned machine types of our family, oldest first.
    pub async fn query_machine_types(&self) -> Result<Vec<MachineType>, Error> {
        let machines = self.query_machines().await?;
        let mut types: Vec<MachineType> =
            machines.iter().filter_map(|machine| MachineType::parse(&machine.name).ok()).collect();
        types.sort();
        Ok(types)
    }

    /// Writes `size` bytes of guest memory from physical address `from` into a file that QEMU creates. The
    /// guest should be paused; a GiB takes about two seconds.
    pub async fn pmemsave(&self, from: u64, size: u64, file: &Path) -> Result<(), Error> {
        let arguments = json!({ "val": from, "size": size, "filename": file });
        self.execute_within::<Value>("pmemsave", arguments, Duration::from_secs(120)).await.map(drop)
    }

    pub async fn query_schema(&self) -> Result<Schema, Error> {
        let entities = self.execute("query-qmp-schema", Value::Null).await?;
        Ok(Schema::new(entities))
    }
}
