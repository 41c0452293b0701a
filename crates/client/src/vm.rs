//! Virtual servers: calls, verbs, console.

use serde::{Deserialize, Serialize};
use serde_json::json;
use sterna_base::units::{Bytes, Span};
use sterna_model::event::Event;
use sterna_model::forecast::{Forecast, Past};
use sterna_model::ha::{Ha, Isolation};
use sterna_model::health::{HealthCheck, OnFault};
use sterna_model::meta::Name;
use sterna_model::status::VmStatus;
use sterna_model::vm::{
    CloudInit, NicSpec, Place, Power, Priority, RestartPolicy, VmDecision, VmReport, VmSpec,
};

use crate::Client;
use crate::error::Result;
use crate::migration::Migration;
use crate::object::{Answer, Api, New, Object, Resource, all};

#[derive(Debug)]
pub struct Vms;

impl Resource for Vms {
    const PATH: &'static str = "vms";
    const KIND: &'static str = "vm";
    type Spec = VmSpec;
    type Decision = VmDecision;
    type Report = VmReport;
    type Status = VmStatus;
}

pub type Vm = Object<VmSpec, VmDecision, VmReport, VmStatus>;

impl Client {
    #[must_use]
    pub fn vms(&self) -> Api<'_, Vms> {
        Api::new(self)
    }
}

/// What is asked of a VM; what is absent takes its default at creation and stays as it is in a change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Ask {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<Name>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volumes: Option<Vec<Name>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nics: Option<Vec<NicSpec>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power: Option<Power>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cloud_init: Option<CloudInit>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shutdown_timeout: Option<Span>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart: Option<RestartPolicy>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_panic: Option<OnFault>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_hang: Option<OnFault>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watchdog: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checks: Option<Vec<HealthCheck>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ha: Option<Ha>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Isolation>,
}

/// How the boot volume of a VM with an image is made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Boot {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<Name>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<Bytes>,
}

/// The answer to "why is this VM here?".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Why {
    pub status: VmStatus,
    /// The host that owns it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<Name>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What happened to it, the newest last.
    #[serde(default)]
    pub events: Vec<Event>,
}

/// Where a VM should move to, and how long its guest may pause.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Move {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Name>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to_datacentre: Option<Name>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_downtime: Option<Span>,
    /// A duration from now, or a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finish_by: Option<String>,
}

/// What a move would take, or why it cannot be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outlook {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Name>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forecast: Option<Forecast>,
    /// Reasons against the move; empty: it may go.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
    /// How far off earlier forecasts of this VM were, the latest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub past: Vec<Past>,
}

impl Api<'_, Vms> {
    /// Makes a VM whose boot volume is made in a certain way.
    pub async fn create_with(&self, new: &New<Ask>, boot: &Boot) -> Result<Answer<Vm>> {
        let is_plain = *boot == Boot::default();
        let mut body = json!(new);
        if !is_plain {
            body["boot"] = json!(boot);
        }
        self.client.post("/v1/vms", &body).await
    }

    pub async fn start(&self, name: &Name) -> Result<Answer<Vm>> {
        self.ask(name, "start", &json!({})).await
    }

    /// Asks the guest to shut down; `force` switches it off at once.
    pub async fn stop(&self, name: &Name, force: bool) -> Result<Answer<Vm>> {
        self.ask(name, "stop", &json!({ "force": force })).await
    }

    pub async fn pause(&self, name: &Name) -> Result<Answer<Vm>> {
        self.ask(name, "pause", &json!({})).await
    }

    pub async fn resume(&self, name: &Name) -> Result<Answer<Vm>> {
        self.ask(name, "resume", &json!({})).await
    }

    pub async fn reset(&self, name: &Name) -> Result<Answer<Vm>> {
        self.ask(name, "reset", &json!({})).await
    }

    /// Copies volumes to where the VM is to move; `order` names the place alone.
    pub async fn preseed(&self, name: &Name, order: &Move) -> Result<Answer<Vm>> {
        self.ask(name, "preseed", order).await
    }

    pub async fn migrate(&self, name: &Name, order: &Move) -> Result<Answer<Vm>> {
        self.ask(name, "migrate", order).await
    }

    pub async fn add_nic(&self, name: &Name, nic: &NicSpec) -> Result<Answer<Vm>> {
        self.ask(name, "nics", nic).await
    }

    /// What such a move would take now.
    pub async fn forecast(&self, name: &Name, order: &Move) -> Result<Outlook> {
        let query: Vec<_> = [
            ("to", order.to.as_ref().map(Name::to_string)),
            ("to_datacentre", order.to_datacentre.as_ref().map(Name::to_string)),
            ("max_downtime", order.max_downtime.map(|span| span.to_string())),
            ("finish_by", order.finish_by.clone()),
        ]
        .into_iter()
        .filter_map(|(word, value)| Some((word, value?)))
        .collect();
        self.client.get(&Self::verb(name, "forecast"), &query).await
    }

    /// Why it is where it is, and why it does what it does.
    pub async fn why(&self, name: &Name) -> Result<Why> {
        self.client.get(&Self::verb(name, "why"), &[]).await
    }

    /// Its past moves, the latest first.
    pub async fn ledger(&self, name: &Name) -> Result<Vec<Migration>> {
        all(self.client, &Self::verb(name, "ledger"), Vec::new()).await
    }

    /// The serial console as raw bytes in both directions.
    pub async fn console(&self, name: &Name) -> Result<reqwest::Upgraded> {
        self.client.upgrade(&Self::verb(name, "console"), "sterna-stream").await
    }
}
