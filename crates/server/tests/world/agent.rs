//! An agent that is only its wire.

use std::time::Duration;

use futures_util::StreamExt;
use reqwest::StatusCode;
use serde_json::{Value, json};
use sterna_wire::join::{JoinAnswer, JoinToken};

use super::{World, client};

pub struct Agent {
    pub name: String,
    pub answer: JoinAnswer,
    pub key: String,
    pub http: reqwest::Client,
    pub base: String,
}

pub async fn join(world: &World, token: &str, name: &str) -> Result<Agent, (StatusCode, Value)> {
    let token: JoinToken = token.parse().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let body = json!({"version": 1, "token": token.secret, "host": name, "csr": csr,
        "addresses": {"management": "127.0.0.1"}});
    let response = world.http.post(world.url("/agent/v1/join")).json(&body).send().await.unwrap();
    let status = response.status();
    let body: Value = response.json().await.unwrap();
    if status != StatusCode::CREATED {
        return Err((status, body));
    }
    let answer: JoinAnswer = serde_json::from_value(body).unwrap();
    let key = key.serialize_pem();
    let http = client(&answer.ca, Some((&answer.certificate, &key)), true);
    Ok(Agent { name: name.to_owned(), http, answer, key, base: world.url("") })
}

/// A line-wise reader of the assignment stream.
pub struct Lines {
    stream: std::pin::Pin<Box<dyn futures_util::Stream<Item = reqwest::Result<bytes::Bytes>> + Send>>,
    rest: Vec<u8>,
}

impl Lines {
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let chunk = tokio::time::timeout(Duration::from_secs(15), self.stream.next())
                .await
                .expect("a line in time");
            self.rest.extend_from_slice(&chunk?.ok()?);
        }
    }

    /// The next line that satisfies `wanted`.
    pub async fn until(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        loop {
            let line = self.next().await.expect("the stream goes on");
            if wanted(&line) {
                return line;
            }
        }
    }
}

impl Agent {
    /// The same agent at another server.
    pub fn towards(self, world: &World) -> Self {
        Self { base: world.url(""), ..self }
    }

    pub async fn stream(&self) -> Lines {
        let response = self.http.get(format!("{}/agent/v1/assignment", self.base)).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        Lines { stream: Box::pin(response.bytes_stream()), rest: Vec::new() }
    }

    pub async fn report(&self, messages: Value) -> StatusCode {
        self.http
            .post(format!("{}/agent/v1/report", self.base))
            .json(&messages)
            .send()
            .await
            .unwrap()
            .status()
    }

    pub fn host(&self) -> Value {
        json!({"type": "host", "boot_id": "b", "sterna_version": "0.1.0", "qemu_version": "10.0.2", "accel": "tcg",
            "accel_why": "test", "cpus": 2, "memory": "8GiB", "cpu": {"models": {"qemu64": []}, "machines": ["pc-q35-10.0"]},
            "pools": {"default": {"state": "ready", "capacity": "10GiB"}}, "since": "2026-01-01T00:00:00Z"})
    }

    pub fn inventory(&self, vms: &[Value]) -> Value {
        json!({"type": "inventory", "complete": true, "vms": vms, "volumes": []})
    }
}

pub fn report(epoch: u64, state: &Value) -> Value {
    let mut report = json!({"epoch": epoch, "since": "2026-01-01T00:00:00Z"});
    report["state"] = state.clone();
    report
}

/// Stands in for control: makes `host` the owner of the VM.
pub async fn decide(world: &World, vm: &str, host: &str, epoch: u64) {
    let decision = json!({"owner": {"host": host, "epoch": epoch}, "power_request": 1, "since": "2026-01-01T00:00:00Z", "why": "test",
        "hardware": {"machine": "pc-q35-10.0", "cpu_model": "qemu64", "accel": "tcg", "cpus": 1, "memory": "256MiB",
            "volumes": [], "nics": []}});
    let txn =
        sterna_store::Txn::new().put(format!("vm/default/{vm}/decision"), decision.to_string().into_bytes());
    world.store.commit(txn).await.unwrap();
}
