//! The store as a view, and the leader's transactions on it.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sterna_base::clock::Timestamp;
use sterna_model::key::{Column, Key, Kind};
use sterna_model::meta::Name;
use sterna_model::vm::VmReport;
use sterna_plan::{Action, View, round};

use super::world::Way;

pub const NOW: Timestamp = Timestamp::from_millis(1_000_000);
pub const HOSTS: [&str; 2] = ["a1", "b1"];
pub const VM: &str = "web";
pub const MOVE: &str = "m";

/// What tells no planner anything, and would make equal states differ.
const WORDS: [&str; 8] = ["why", "method", "since", "started", "outcome", "meta", "hardware", "restarts"];

pub fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

#[derive(Clone)]
pub struct Store {
    pub view: View,
    /// Rows that have changed since the beginning, without words.
    pub changed: BTreeMap<String, String>,
}

impl Store {
    /// Two hosts, a VM that runs on the first, and the wish to move it to the second.
    pub fn new(way: Way) -> Self {
        let mut store = Self { view: View::default(), changed: BTreeMap::new() };
        let sites = match way {
            Way::Direct => ["dc", "dc"],
            Way::Mover => ["dc", "far"],
        };
        for site in sites {
            store.object(Kind::Datacentre, site, &json!({}));
            store.object(Kind::Cluster, site, &json!({ "datacentre": site, "reserve": 0 }));
        }
        for (index, host) in HOSTS.into_iter().enumerate() {
            let address = format!("10.0.0.{}", index + 1);
            let site = sites[index];
            let spec = json!({ "datacentre": site, "cluster": site, "addresses": { "management": address } });
            store.object(Kind::Host, host, &spec);
            // The first is the larger one: the VM starts there.
            let gib = 8 - index;
            store.put(
                &Key::report(Kind::Host, &name(host)),
                &json!({
                    "boot_id": "boot", "sterna_version": "0", "qemu_version": "10.0.2", "accel": "tcg", "accel_why": "",
                    "cpus": 2, "memory": format!("{gib}GiB"),
                    "cpu": { "models": { "qemu64": [] }, "machines": ["pc-q35-10.0"] },
                    "link": "connected", "since": NOW,
                }),
            );
        }
        store.object(Kind::Vm, VM, &json!({ "memory": "64MiB", "power_request": 1 }));
        for _ in 0..4 {
            round(&store.view, NOW).iter().for_each(|action| store.write(action));
        }
        assert!(store.view.broken.is_empty(), "{:?}", store.view.broken);
        store.object(Kind::Migration, MOVE, &json!({ "vm": VM, "to": HOSTS[1] }));
        store.changed.clear();
        store
    }

    fn object(&mut self, kind: Kind, text: &str, spec: &Value) {
        let key = Key::spec(kind, &name(text));
        let uid = uuid::Uuid::from_u128(7 + u128::from(kind as u8));
        let meta = json!({ "name": text, "uid": uid, "created": NOW });
        self.put(&key, &json!({ "meta": meta, "spec": spec }));
    }

    pub fn put(&mut self, key: &Key, value: &Value) {
        let revision = self.view.revision + 1;
        self.view.apply(&key.to_string(), Some(value.to_string().as_bytes()), revision);
        self.changed.insert(key.to_string(), without_words(value).to_string());
    }

    fn delete(&mut self, key: &Key) {
        let revision = self.view.revision + 1;
        self.view.apply(&key.to_string(), None, revision);
        self.changed.insert(key.to_string(), String::new());
    }

    /// A row that says what it said is no change.
    pub fn put_report(&mut self, host: usize, report: Option<&VmReport>) {
        let key = Key::new(Kind::Vm, &name(VM), Column::ReportOf(name(HOSTS[host])));
        let vm = &self.view.vms[&name(VM)];
        let has = vm.reports.get(&name(HOSTS[host])).map(|row| &*row.value);
        match report {
            _ if has == report => {}
            Some(report) => self.put(&key, &serde_json::to_value(report).unwrap()),
            None => self.delete(&key),
        }
    }

    pub fn set_silent(&mut self, host: usize, is_silent: bool) {
        let name = name(HOSTS[host]);
        let report = self.view.host(&name).and_then(|host| host.report).unwrap();
        let mut value = serde_json::to_value(report).unwrap();
        value["link"] = json!(if is_silent { "silent" } else { "connected" });
        self.put(&Key::report(Kind::Host, &name), &value);
    }

    pub fn cancel(&mut self) {
        let key = Key::spec(Kind::Migration, &name(MOVE));
        let object = &self.view.migrations[&name(MOVE)].spec.as_ref().unwrap().value;
        let mut value = serde_json::to_value(&**object).unwrap();
        value["spec"]["cancel"] = json!(true);
        self.put(&key, &value);
    }

    /// What the leader would do now.
    pub fn plan(&self) -> Vec<Action> {
        round(&self.view, NOW)
    }

    #[must_use]
    pub fn still_holds(&self, action: &Action) -> bool {
        action.compares.iter().all(|(key, revision)| self.view.revision_of(key) == *revision)
    }

    pub fn write(&mut self, action: &Action) {
        for (key, value) in &action.puts {
            self.put(key, value);
        }
        for key in &action.deletes {
            self.delete(key);
        }
    }

    pub fn is_ended(&self) -> bool {
        let decision = self.view.migrations[&name(MOVE)].decision.as_ref();
        decision.is_some_and(|decision| decision.phase.has_ended())
    }

    pub fn phase(&self) -> &'static str {
        let decision = self.view.migrations[&name(MOVE)].decision.as_ref();
        decision.map_or("asked for", |decision| decision.phase.word())
    }
}

pub fn without_words(value: &Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(
            fields
                .iter()
                .filter(|(key, _)| !WORDS.contains(&key.as_str()))
                .map(|(key, value)| (key.clone(), without_words(value)))
                .collect(),
        ),
        Value::Array(all) => all.iter().map(without_words).collect(),
        other => other.clone(),
    }
}
