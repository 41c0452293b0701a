//! A view in a few lines: the builder that the planners' tests share.

#![allow(clippy::unwrap_used, clippy::too_many_arguments, reason = "tests")]
#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod scene;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use serde::Serialize;
use sterna_base::clock::Timestamp;
use sterna_base::units::{Bytes, Span};
use sterna_model::cluster::ClusterSpec;
use sterna_model::cpu::{Accel, CpuReport};
use sterna_model::health::HealthReport;
use sterna_model::host::{Addresses, HostReport, HostSpec, LinkState, PoolSeen};
use sterna_model::image::{Format, ImageReport, ImageSpec};
use sterna_model::key::{Column, Key, Kind};
use sterna_model::meta::{Labels, Meta, Name, Object};
use sterna_model::migration::{MigrationReport, MigrationSpec, Phase, SideState};
use sterna_model::network::{NetworkKind, NetworkSpec};
use sterna_model::pool::{PoolKind, PoolSpec};
use sterna_model::vm::{CopyState, NicSpec, VmReport, VmSpec};
use sterna_model::volume::{VolumeReport, VolumeSpec};
use sterna_plan::{View, round};
use uuid::Uuid;

pub fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub struct World {
    pub view: View,
    pub now: Timestamp,
    /// Every change in order: key and value, of the revision that is its place plus one.
    pub changes: Vec<(String, Option<String>)>,
    uids: u128,
}

impl World {
    /// One datacentre, one cluster, an overlay, a shared default pool, the image `tiny`.
    pub fn new() -> Self {
        let now = Timestamp::from_millis(1_000_000);
        let mut world = Self { view: View::default(), now, changes: Vec::new(), uids: 0 };
        world.spec(Kind::Datacentre, "dc", sterna_model::datacentre::DatacentreSpec::default());
        // Full hosts are what most tests are about.
        let cluster = ClusterSpec { datacentre: name("dc"), cpu_model: None, reserve: Some(0) };
        world.spec(Kind::Cluster, "dc", cluster);
        let kind = NetworkKind::Overlay { cidr: "10.100.0.0/24".parse().unwrap() };
        world.spec(Kind::Network, "default", NetworkSpec { kind, default: true });
        let kind = PoolKind::SharedDir { path: "/srv".into() };
        world.spec(Kind::Pool, "shared", PoolSpec { kind, datacentre: None, default: true });
        world.spec(
            Kind::Pool,
            "local",
            PoolSpec { kind: PoolKind::Dir { path: "/local".into() }, datacentre: None, default: false },
        );
        let kind = PoolKind::Nbd { host: name("a1"), path: "/san".into() };
        world.spec(Kind::Pool, "san", PoolSpec { kind, datacentre: None, default: false });
        world.spec(Kind::Image, "tiny", ImageSpec { source: "upload".into(), sha256: None });
        world.put(
            Key::report(Kind::Image, &name("tiny")),
            &ImageReport::Ready {
                sha256: "0".repeat(64),
                format: Format::Qcow2,
                size: Bytes::mib(20),
                virtual_size: Bytes::mib(64),
            },
        );
        world
    }

    /// One commit of the store.
    pub fn commit(&mut self, key: &str, value: Option<String>) {
        let revision = self.view.revision + 1;
        self.view.apply(key, value.as_ref().map(String::as_bytes), revision);
        self.changes.push((key.to_owned(), value));
        assert_eq!(self.changes.len() as u64, revision);
    }

    pub fn put(&mut self, key: Key, value: &impl Serialize) {
        self.commit(&key.to_string(), Some(serde_json::to_string(value).unwrap()));
    }

    pub fn remove(&mut self, key: Key) {
        self.commit(&key.to_string(), None);
    }

    pub fn spec(&mut self, kind: Kind, text: &str, spec: impl Serialize) {
        self.uids += 1;
        let meta = Meta {
            name: name(text),
            uid: Uuid::from_u128(self.uids),
            created: self.now,
            labels: Labels::new(),
            notes: String::new(),
            deleting: None,
        };
        self.put(Key::spec(kind, &name(text)), &Object { meta, spec });
    }

    /// A connected host with this much memory.
    pub fn host(mut self, text: &str, memory: Bytes) -> Self {
        self.add_host(text, memory);
        self
    }

    pub fn add_host(&mut self, text: &str, memory: Bytes) {
        let last = 11 + u8::try_from(self.changes.len() % 200).unwrap();
        let addresses = Addresses {
            management: IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)),
            migration: None,
            storage: None,
        };
        self.spec(
            Kind::Host,
            text,
            HostSpec {
                datacentre: name("dc"),
                cluster: name("dc"),
                addresses,
                cordoned: false,
                draining: false,
                confirmed_dead: None,
                fence: None,
            },
        );
        self.report_host(text, |report| report.memory = memory);
    }

    pub fn report_host(&mut self, text: &str, change: impl FnOnce(&mut HostReport)) {
        let ready = PoolSeen::Ready { capacity: Bytes::gib(100), port: None, used_percent: None };
        let served = PoolSeen::Ready { capacity: Bytes::gib(100), port: Some(10809), used_percent: None };
        let fresh = HostReport {
            boot_id: "boot".into(),
            sterna_version: "0.1.0".into(),
            qemu_version: "10.0.2".into(),
            accel: Accel::Tcg,
            accel_why: "test".into(),
            cpus: 4,
            memory: Bytes::gib(8),
            cpu: CpuReport {
                models: BTreeMap::from([("qemu64".to_owned(), BTreeSet::new())]),
                machines: BTreeSet::from(["pc-q35-10.0".to_owned()]),
            },
            pools: BTreeMap::from([
                (name("shared"), ready.clone()),
                (name("local"), ready.clone()),
                (name("san"), if text == "a1" { served } else { ready }),
            ]),
            tunnel: None,
            mover: None,
            lines: BTreeMap::new(),
            guard: None,
            link: LinkState::Connected,
            since: self.now,
            told: None,
        };
        let mut report = self
            .view
            .hosts
            .get(&name(text))
            .and_then(|entry| entry.report.as_ref())
            .map_or(fresh, |row| (*row.value).clone());
        change(&mut report);
        self.put(Key::report(Kind::Host, &name(text)), &report);
    }

    pub fn change_host(&mut self, text: &str, change: impl FnOnce(&mut HostSpec)) {
        let mut object = (*self.view.hosts[&name(text)].spec.as_ref().unwrap().value).clone();
        change(&mut object.spec);
        self.put(Key::spec(Kind::Host, &name(text)), &object);
    }

    /// A VM as the API makes it: with its boot volume and one NIC.
    pub fn vm(mut self, text: &str, memory: Bytes) -> Self {
        self.add_vm(text, memory, None);
        self
    }

    pub fn add_vm(&mut self, text: &str, memory: Bytes, pool: Option<&str>) {
        let boot = format!("{text}-boot");
        self.spec(
            Kind::Volume,
            &boot,
            VolumeSpec { pool: pool.map(name), size: None, image: Some(name("tiny")), vm: Some(name(text)) },
        );
        let spec: VmSpec = serde_json::from_value(serde_json::json!({
            "image": "tiny", "memory": memory, "volumes": [boot], "power_request": 1,
        }))
        .unwrap();
        let nics = vec![NicSpec { network: name("default"), mac: None, address: None }];
        self.spec(Kind::Vm, text, VmSpec { nics, ..spec });
    }

    pub fn change_vm(&mut self, text: &str, change: impl FnOnce(&mut Object<VmSpec>)) {
        let mut object = (*self.view.vms[&name(text)].spec.as_ref().unwrap().value).clone();
        change(&mut object);
        self.put(Key::spec(Kind::Vm, &name(text)), &object);
    }

    /// Runs rounds until nothing changes; gives the events' words and reasons.
    pub fn settle(&mut self) -> Vec<String> {
        let mut log = Vec::new();
        for _ in 0..20 {
            let actions = round(&self.view, self.now);
            if actions.is_empty() {
                return log;
            }
            for action in actions {
                let stands =
                    action.compares.iter().all(|(key, revision)| self.view.revision_of(key) == *revision);
                assert!(stands, "two actions of one round rest on the same row: {}", action.event.what);
                for (key, value) in &action.puts {
                    self.commit(&key.to_string(), Some(value.to_string()));
                }
                for key in &action.deletes {
                    self.commit(&key.to_string(), None);
                }
                // Alerts have tests of their own.
                if action.event.kind != Kind::Alert.as_str() {
                    log.push(format!("{} {}: {}", action.event.name, action.event.what, action.event.why));
                }
            }
        }
        panic!("rounds do not come to rest: {log:#?}");
    }

    pub fn owner(&self, vm: &str) -> (String, u64) {
        let decision = self.view.vms[&name(vm)].decision.as_ref().expect("the VM has an owner");
        (decision.owner.host.to_string(), decision.owner.epoch)
    }

    /// The host says this of its copy of the VM.
    pub fn report(&mut self, vm: &str, host: &str, epoch: u64, state: CopyState) {
        self.report_side(vm, host, epoch, state, None);
    }

    pub fn report_side(
        &mut self,
        vm: &str,
        host: &str,
        epoch: u64,
        state: CopyState,
        side: Option<(&str, SideState)>,
    ) {
        let migration = side.map(|(migration, side)| MigrationReport { migration: name(migration), side });
        let (health, lease, since) = (HealthReport::default(), None, self.now);
        let report = VmReport { epoch, state, migration, reset_request: 0, lease, since, health };
        self.put(Key::new(Kind::Vm, &name(vm), Column::ReportOf(name(host))), &report);
    }

    pub fn forget(&mut self, vm: &str, host: &str) {
        self.remove(Key::new(Kind::Vm, &name(vm), Column::ReportOf(name(host))));
    }

    /// Every volume that was decided is there, and every owner runs its VM.
    pub fn all_run(&mut self) {
        self.settle();
        let all_have = self.view.vms.values().all(|entry| entry.decision.is_some());
        assert!(all_have, "a VM has no host");
        self.all_that_can_run();
    }

    /// The same of the VMs that have a host.
    pub fn all_that_can_run(&mut self) {
        self.settle();
        let decided = self.view.volumes.iter().filter_map(|(name, entry)| {
            entry.decision.as_ref().map(|decision| (name.clone(), decision.size))
        });
        for (volume, size) in decided.collect::<Vec<_>>() {
            self.put(Key::report(Kind::Volume, &volume), &VolumeReport::Ready { size });
        }
        let owned = self.view.vms.iter().filter(|(_, entry)| entry.decision.is_some());
        let vms: Vec<_> = owned.map(|(name, _)| name.to_string()).collect();
        for vm in vms {
            let (host, epoch) = self.owner(&vm);
            self.report(&vm, &host, epoch, CopyState::Running);
        }
        self.settle();
    }

    pub fn migrate(&mut self, migration: &str, vm: &str, to: Option<&str>) {
        self.ask_to_migrate(migration, vm, to, false);
    }

    pub fn preseed(&mut self, migration: &str, vm: &str, to: &str) {
        self.ask_to_migrate(migration, vm, Some(to), true);
    }

    fn ask_to_migrate(&mut self, migration: &str, vm: &str, to: Option<&str>, seed: bool) {
        self.spec(
            Kind::Migration,
            migration,
            MigrationSpec {
                vm: name(vm),
                to: to.map(name),
                max_downtime: Span::from_millis(300),
                finish_by: None,
                cancel: false,
                seed,
                forecast: None,
                asked_by: "person".into(),
            },
        );
    }

    /// The move has until then.
    pub fn finish_by(&mut self, migration: &str, at: Timestamp) {
        let mut object = (*self.view.migrations[&name(migration)].spec.as_ref().unwrap().value).clone();
        object.spec.finish_by = Some(at);
        self.put(Key::spec(Kind::Migration, &name(migration)), &object);
    }

    pub fn cancel(&mut self, migration: &str) {
        let mut object = (*self.view.migrations[&name(migration)].spec.as_ref().unwrap().value).clone();
        object.spec.cancel = true;
        self.put(Key::spec(Kind::Migration, &name(migration)), &object);
    }

    pub fn phase(&self, migration: &str) -> Phase {
        self.view.migrations[&name(migration)].decision.as_ref().expect("it was planned").phase.clone()
    }
}
