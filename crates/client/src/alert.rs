//! Facts that need a person.

use serde::{Deserialize, Serialize};
use serde_json::json;
use sterna_base::clock::Timestamp;
use sterna_base::units::Span;
use sterna_model::alert::{AlertDecision, AlertReport, AlertSpec, AlertState, Severity};
use sterna_model::meta::Name;

use crate::Client;
use crate::error::Result;
use crate::object::{Api, Object, Resource};

#[derive(Debug)]
pub struct Alerts;

impl Resource for Alerts {
    const PATH: &'static str = "alerts";
    const KIND: &'static str = "alert";
    type Spec = AlertSpec;
    type Decision = AlertDecision;
    type Report = AlertReport;
    type Status = AlertStatus;
}

/// An alert in one word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlertStatus {
    pub state: AlertState,
}

pub type Alert = Object<AlertSpec, AlertDecision, AlertReport, AlertStatus>;

/// Who is told, and how the last delivery went.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Receiver {
    /// As `mail/NAME`.
    pub receiver: String,
    pub least: Severity,
    #[serde(default)]
    pub delivered: Option<Timestamp>,
    #[serde(default)]
    pub failed: Option<Timestamp>,
    #[serde(default)]
    pub error: Option<String>,
}

/// How a test message went.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Tested {
    pub receiver: String,
    pub delivered: bool,
    #[serde(default)]
    pub error: Option<String>,
}

#[derive(Deserialize)]
struct Receivers {
    receivers: Vec<Receiver>,
}

#[derive(Deserialize)]
struct Tests {
    tests: Vec<Tested>,
}

impl Api<'_, Alerts> {
    /// Says that somebody cares for it.
    pub async fn acknowledge(&self, name: &Name) -> Result<Alert> {
        self.client.post(&Self::verb(name, "ack"), &json!({})).await
    }

    /// Nobody is told of it for this long.
    pub async fn silence(&self, name: &Name, length: Span) -> Result<Alert> {
        self.client.post(&Self::verb(name, "silence"), &json!({ "for": length })).await
    }
}

impl Client {
    #[must_use]
    pub fn alerts(&self) -> Api<'_, Alerts> {
        Api::new(self)
    }

    pub async fn alert_receivers(&self) -> Result<Vec<Receiver>> {
        let all: Receivers = self.get("/v1/alerts/receivers", &[]).await?;
        Ok(all.receivers)
    }

    /// Sends a test message to one receiver or all.
    pub async fn test_alerts(&self, receiver: Option<&str>) -> Result<Vec<Tested>> {
        let body = receiver.map_or_else(|| json!({}), |receiver| json!({ "receiver": receiver }));
        let tested: Tests = self.post("/v1/alerts/test", &body).await?;
        Ok(tested.tests)
    }
}
