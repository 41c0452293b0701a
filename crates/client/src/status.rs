//! Is the server there?

use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;

use crate::Client;
use crate::error::Result;

/// What the server says of itself, and how fast.
#[derive(Debug, Clone, Serialize)]
pub struct Health {
    pub server: String,
    pub round_trip_ms: u64,
    pub says: Value,
}

impl Client {
    pub async fn health(&self) -> Result<Health> {
        let start = Instant::now();
        let says = self.get_within("/healthz", &[], Duration::from_secs(5)).await?;
        let round_trip_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(Health { server: self.server().to_owned(), round_trip_ms, says })
    }
}
