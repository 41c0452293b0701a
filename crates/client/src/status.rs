//! Is the server there?

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sterna_model::meta::Name;

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

impl Client {
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
