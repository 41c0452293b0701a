//! Machines that run VMs, and the tokens that make one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sterna_base::clock::Timestamp;
use sterna_base::units::Bytes;
use sterna_model::fence::{PowerState, Secret};
use sterna_model::host::{HostReport, HostSpec};
use sterna_model::loss::Loss;
use sterna_model::meta::Name;

use crate::Client;
use crate::error::Result;
use crate::object::{Answer, Api, Object, Resource};

#[derive(Debug)]
pub struct Hosts;

impl Resource for Hosts {
    const PATH: &'static str = "hosts";
    const KIND: &'static str = "host";
    type Spec = HostSpec;
    type Decision = Value;
    type Report = HostReport;
    type Status = HostStatus;
}

pub type Host = Object<HostSpec, Value, HostReport, HostStatus>;

impl Client {
    #[must_use]
    pub fn hosts(&self) -> Api<'_, Hosts> {
        Api::new(self)
    }
}

/// A host in one word, one sentence and what it has to give.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStatus {
    /// Such as `ready`, `cordoned`, `draining` or `silent`.
    pub state: String,
    pub message: String,
    /// VMs that it owns.
    #[serde(default)]
    pub vms: usize,
    /// Memory that VMs may still take.
    #[serde(default)]
    pub memory_free: Bytes,
    /// Where its lease stands: `up`, `suspect`, `fencing`, `fenced`, `quarantined`, or `-`.
    #[serde(default)]
    pub ha: String,
    /// How it would be known that its VMs may be started elsewhere.
    #[serde(default)]
    pub protected_by: Vec<String>,
    #[serde(flatten)]
    pub more: serde_json::Map<String, Value>,
}

/// A single-use right to join one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostToken {
    /// `HOST:PORT/SECRET/PIN`, shown this once.
    pub token: String,
    pub expires: Timestamp,
}

/// A fence device as it is to be. Secrets are sent and never come back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct NewFence {
    pub agent: String,
    pub options: BTreeMap<String, String>,
    pub secrets: BTreeMap<String, Secret>,
}

/// What a device said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceTested {
    pub host: Name,
    pub agent: String,
    pub power: PowerState,
}

impl Client {
    /// Makes a token that one machine can join with.
    pub async fn host_token(&self, host: Option<&Name>) -> Result<HostToken> {
        self.post("/v1/host-tokens", &host.map_or_else(|| json!({}), |host| json!({ "host": host }))).await
    }
}

impl Api<'_, Hosts> {
    /// Moves every VM away, one by one; no new ones arrive.
    pub async fn drain(&self, name: &Name) -> Result<Answer<Host>> {
        self.ask(name, "drain", &json!({})).await
    }

    /// What a loss of the host would do to its VMs. Changes nothing.
    pub async fn loss(&self, name: &Name) -> Result<Loss> {
        self.client.get(&format!("/v1/hosts/{name}/loss"), &[]).await
    }

    /// A person has looked: nothing runs on it any more.
    pub async fn confirm_dead(&self, name: &Name, typed: &Name) -> Result<Answer<Host>> {
        self.ask(name, "confirm-dead", &json!({ "host": typed })).await
    }

    /// Sets what switches the host off when it is lost; refused when it does not answer.
    pub async fn set_fence(&self, name: &Name, device: &NewFence) -> Result<Answer<Host>> {
        self.ask(name, "fence", device).await
    }

    /// Asks the host's device whether the host is on. Switches nothing.
    pub async fn test_fence(&self, name: &Name) -> Result<FenceTested> {
        self.client.post(&format!("/v1/hosts/{name}/fence/test"), &json!({})).await
    }

    /// Takes the host's device away.
    pub async fn remove_fence(&self, name: &Name) -> Result<Answer<Host>> {
        self.client.delete(&format!("/v1/hosts/{name}/fence"), &[]).await
    }

    pub async fn undrain(&self, name: &Name) -> Result<Answer<Host>> {
        self.ask(name, "undrain", &json!({})).await
    }
}
