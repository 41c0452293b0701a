//! Is the server there?

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sterna_base::clock::Timestamp;
use sterna_model::meta::Name;
pub use sterna_model::store::{Finding, Restored};

use crate::Client;
use crate::error::Result;

/// What the server says of itself, and how fast.
#[derive(Debug, Clone, Serialize)]
pub struct Health {
    pub server: String,
    pub round_trip_ms: u64,
    pub says: Value,
}

/// A VM that ran on a host and that the store does not know.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReleasedVm {
    pub host: Name,
    pub vm: Name,
    pub uid: String,
}

/// What became of VMs that the store does not know.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StoreAccepted {
    pub released: Vec<ReleasedVm>,
}

/// The server and its store.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServerShown {
    pub version: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<String>,
    /// `normal` or `recovering`.
    pub mode: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<Restored>,
    pub waits_for: Vec<Name>,
    pub without: Vec<Name>,
    pub findings: Vec<Finding>,
    #[serde(default)]
    pub more: usize,
    pub unsettled: Vec<Unsettled>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovered: Option<Timestamp>,
    /// How the backups are.
    pub backup: Value,
}

impl ServerShown {
    #[must_use]
    pub fn is_recovering(&self) -> bool {
        self.mode == "recovering"
    }
}

/// A VM that holds a recovery up.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Unsettled {
    pub vm: Name,
    pub why: String,
}

impl Client {
    pub async fn server_state(&self) -> Result<ServerShown> {
        self.get("/v1/server", &[]).await
    }

    /// Lets a recovery go on without hosts that do not answer.
    pub async fn recover_without(&self, hosts: &[Name]) -> Result<ServerShown> {
        self.post("/v1/server/recover", &json!({ "without": hosts })).await
    }

    /// Takes the store as it is: what hosts have and the store does not know is ended there.
    pub async fn accept_store(&self) -> Result<StoreAccepted> {
        self.post("/v1/server/accept-store", &json!({})).await
    }

    pub async fn health(&self) -> Result<Health> {
        let start = Instant::now();
        let says = self.get_within("/healthz", &[], Duration::from_secs(5)).await?;
        let round_trip_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(Health { server: self.server().to_owned(), round_trip_ms, says })
    }
}
