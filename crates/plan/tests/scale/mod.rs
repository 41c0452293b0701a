//! Large worlds, built as a server reads them.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(dead_code, reason = "shared by the test and the example")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Value, json};
use sterna_base::clock::Timestamp;
use sterna_base::units::Bytes;
use sterna_model::cpu::{Accel, CpuReport};
use sterna_model::host::{HostReport, LinkState, PoolSeen};
use sterna_model::key::{Key, Kind};
use sterna_model::meta::Name;
use sterna_plan::View;
use uuid::Uuid;

pub const NOW: Timestamp = Timestamp::from_millis(1_000_000_000);

pub fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// How large.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub vms: usize,
    pub hosts: usize,
    /// Migrations that have ended.
    pub ended: usize,
    /// VMs that wait for a host and find none.
    pub waiting: usize,
}

/// Every VM runs on an overlay from a shared pool; nothing is left to do for those.
pub fn settled(size: Size) -> View {
    let mut rows = Rows::default();
    rows.ground();
    (0..size.hosts).for_each(|host| rows.host(host));
    (0..size.vms).for_each(|vm| rows.vm(vm, vm % size.hosts));
    (0..size.ended).for_each(|number| rows.ended(number, number % size.vms, size.hosts));
    (0..size.waiting).for_each(|number| {
        let spec = json!({ "memory": "900GiB", "power_request": 1 });
        rows.spec(Kind::Vm, &format!("waiting-{number}"), &spec);
    });
    rows.view
}

#[derive(Default)]
struct Rows {
    view: View,
    uids: u128,
}

impl Rows {
    fn put(&mut self, key: &Key, value: &Value) {
        let revision = self.view.revision + 1;
        self.view.apply(&key.to_string(), Some(value.to_string().as_bytes()), revision);
        assert!(self.view.broken.is_empty(), "{:?}", self.view.broken);
    }

    fn spec(&mut self, kind: Kind, text: &str, spec: &Value) {
        self.uids += 1;
        let meta = json!({ "name": text, "uid": Uuid::from_u128(self.uids), "created": NOW });
        self.put(&Key::spec(kind, &name(text)), &json!({ "meta": meta, "spec": spec }));
    }

    fn ground(&mut self) {
        self.spec(Kind::Datacentre, "dc", &json!({}));
        self.spec(Kind::Cluster, "dc", &json!({ "datacentre": "dc" }));
        let overlay = json!({ "type": "overlay", "cidr": "10.64.0.0/16" });
        self.spec(Kind::Network, "default", &json!({ "kind": overlay, "default": true }));
        let pool = json!({ "type": "shared-dir", "path": "/srv" });
        self.spec(Kind::Pool, "shared", &json!({ "kind": pool, "default": true }));
    }

    /// With as many CPU models and machine versions as QEMU 10 has.
    fn host(&mut self, number: usize) {
        let text = format!("h{number:03}");
        let address = IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + u32::try_from(number).unwrap()));
        let spec = json!({ "datacentre": "dc", "cluster": "dc", "addresses": { "management": address } });
        self.spec(Kind::Host, &text, &spec);
        let models = (0..60).map(|model| (format!("model-{model}"), BTreeSet::from(["avx512f".to_owned()])));
        let report = HostReport {
            boot_id: "boot".into(),
            sterna_version: "0.1.0".into(),
            qemu_version: "10.0.2".into(),
            accel: Accel::Kvm,
            accel_why: "a guest ran".into(),
            cpus: 64,
            memory: Bytes::gib(64),
            cpu: CpuReport {
                models: models.chain([("Haswell".to_owned(), BTreeSet::new())]).collect(),
                machines: (4..30).map(|version| format!("pc-q35-{version}.0")).collect(),
            },
            pools: BTreeMap::from([(
                name("shared"),
                PoolSeen::Ready { capacity: Bytes::gib(9000), port: None, used_percent: None },
            )]),
            tunnel: None,
            mover: None,
            lines: BTreeMap::new(),
            guard: None,
            link: LinkState::Connected,
            since: NOW,
            told: None,
        };
        self.put(&Key::report(Kind::Host, &name(&text)), &serde_json::to_value(report).unwrap());
    }

    fn vm(&mut self, number: usize, host: usize) {
        let (text, host) = (format!("vm-{number:05}"), format!("h{host:03}"));
        let boot = format!("{text}-boot");
        self.spec(Kind::Volume, &boot, &json!({ "vm": text }));
        let volume = json!({ "pool": "shared", "host": host, "format": "qcow2", "size": "1GiB", "why": "x" });
        self.put(&Key::decision(Kind::Volume, &name(&boot)), &volume);
        self.put(&Key::report(Kind::Volume, &name(&boot)), &json!({ "state": "ready", "size": "1GiB" }));
        let nics = json!([{ "network": "default" }]);
        let spec = json!({ "memory": "512MiB", "volumes": [boot], "nics": nics, "power_request": 1 });
        self.spec(Kind::Vm, &text, &spec);
        let address = Ipv4Addr::from_bits(0x0a40_0002 + u32::try_from(number).unwrap());
        let mac = sterna_model::network::Mac::of(Uuid::from_u128(self.uids), 0);
        let hardware = json!({
            "machine": "pc-q35-29.0", "cpu_model": "Haswell", "accel": "kvm", "cpus": 1, "memory": "512MiB",
            "volumes": [boot], "nics": [{ "network": "default", "mac": mac, "address": address }],
        });
        let decision = json!({
            "owner": { "host": host, "epoch": 1 }, "hardware": hardware, "power_request": 1, "since": NOW, "why": "x",
        });
        self.put(&Key::decision(Kind::Vm, &name(&text)), &decision);
        let report = json!({ "epoch": 1, "state": { "state": "running" }, "since": NOW });
        self.put(&Key::report_of(Kind::Vm, &name(&text), &name(&host)), &report);
    }

    fn ended(&mut self, number: usize, vm: usize, hosts: usize) {
        let text = format!("vm-{vm:05}-{number}");
        self.spec(Kind::Migration, &text, &json!({ "vm": format!("vm-{vm:05}") }));
        let decision = json!({
            "phase": { "phase": "succeeded" }, "epoch": 0, "next_epoch": 1, "method": "x", "started": NOW, "since": NOW,
            "source": format!("h{:03}", (vm + 1) % hosts), "target": format!("h{:03}", vm % hosts),
        });
        self.put(&Key::decision(Kind::Migration, &name(&text)), &decision);
    }
}
