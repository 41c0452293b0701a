//! What people ask for, written to the store as the API writes it: specs only, each change against what was read.

use serde::Serialize;
use serde::de::DeserializeOwned;
use sterna_base::clock::Clock;
use sterna_base::units::{Bytes, Span};
use sterna_model::ha::ConfirmedDead;
use sterna_model::host::HostSpec;
use sterna_model::key::{Key, Kind};
use sterna_model::meta::{Labels, Meta, Name, Object};
use sterna_model::migration::{MigrationSpec, Phase};
use sterna_model::vm::{Power, VmSpec};
use sterna_model::volume::VolumeSpec;
use sterna_plan::drain::free_name;
use sterna_store::{Store, Txn};
use uuid::Uuid;

use crate::fault::Act;
use crate::store::at_once;
use crate::world::{World, host_name};

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).expect("scenarios use names")
}

fn bytes(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain data")
}

impl World {
    pub(crate) fn meta(&self, name: Name) -> Meta {
        let uid = {
            let mut state = self.lock();
            let (high, low) = (state.random.word(), state.random.word());
            Uuid::from_u64_pair(high, low)
        };
        Meta { name, uid, created: self.now(), labels: Labels::new(), notes: String::new(), deleting: None }
    }

    pub(crate) fn put_new<S: Serialize>(&self, txn: Txn, kind: Kind, of: &str, spec: S) -> Txn {
        let key = Key::spec(kind, &name(of)).to_string();
        let object = Object { meta: self.meta(name(of)), spec };
        txn.absent(key.clone()).put(key, bytes(&object))
    }

    pub(crate) fn submit(&self, txn: Txn) -> bool {
        let committed = at_once(self.store.commit(txn)).is_ok();
        if committed {
            self.on_commit();
        }
        committed
    }

    /// Changes a spec, if it is there and not being deleted.
    fn modify<S: Serialize + DeserializeOwned>(
        &self,
        kind: Kind,
        of: &str,
        change: impl FnOnce(&mut Object<S>),
    ) -> bool {
        let key = Key::spec(kind, &name(of)).to_string();
        let Ok(Some(entry)) = at_once(self.store.get(&key)) else { return false };
        let Ok(mut object) = serde_json::from_slice::<Object<S>>(&entry.value) else { return false };
        if object.meta.deleting.is_some() {
            return false;
        }
        change(&mut object);
        self.submit(Txn::new().require(&key, entry.modified).put(&key, bytes(&object)))
    }

    /// Does what a person asked for, or refuses it as the API would.
    pub fn order(&self, order: &Act) {
        self.say(format!("person: {order}"));
        let power = |vm: &str, power: Power| {
            self.modify(Kind::Vm, vm, |object: &mut Object<VmSpec>| {
                object.spec.power = power;
                object.spec.power_request += 1;
            })
        };
        let drain = |host: usize, draining: bool| {
            self.modify(Kind::Host, host_name(host).as_str(), |object: &mut Object<HostSpec>| {
                object.spec.draining = draining;
            })
        };
        let is_done = match order {
            Act::Create(vm) => self.create(vm),
            Act::Start(vm) => power(vm, Power::Running),
            Act::Stop(vm) => power(vm, Power::Stopped),
            Act::Off(vm) => power(vm, Power::Off),
            Act::Pause(vm) => power(vm, Power::Paused),
            Act::Reset(vm) => self.modify(Kind::Vm, vm, |object: &mut Object<VmSpec>| {
                object.spec.reset_request += 1;
            }),
            Act::Delete(vm) => {
                let now = self.now();
                self.modify(Kind::Vm, vm, |object: &mut Object<VmSpec>| object.meta.deleting = Some(now))
            }
            Act::Migrate { vm, to } => self.ask_to_migrate(vm, *to, false),
            Act::Preseed { vm, to } => self.ask_to_migrate(vm, Some(*to), true),
            Act::Cancel(vm) => self.cancel(vm),
            Act::ConfirmDead(host) => self.confirm_dead(*host),
            Act::Drain(host) => drain(*host, true),
            Act::Undrain(host) => drain(*host, false),
            _ => false,
        };
        if !is_done {
            self.say("refused");
        }
    }

    fn confirm_dead(&self, host: usize) -> bool {
        let (now, name) = (self.now(), host_name(host));
        let seen = |state: &crate::world::State| {
            let host = state.checker.view.host(&name)?;
            Some((host.epoch(), host.report.map(|report| report.since)))
        };
        let (epoch, silent_since) = seen(&self.lock()).unwrap_or_default();
        let word = ConfirmedDead { epoch, silent_since, by: "person".to_owned(), at: now };
        self.modify(Kind::Host, name.as_str(), |object: &mut Object<HostSpec>| {
            object.spec.confirmed_dead = Some(word);
        })
    }

    fn create(&self, vm: &str) -> bool {
        let boot = format!("{vm}-boot");
        let (ha, isolation) = {
            let state = self.lock();
            (state.config.ha, state.config.isolation)
        };
        let is_taken = {
            let state = self.lock();
            let view = &state.checker.view;
            view.vms.contains_key(&name(vm)) || view.volumes.contains_key(&name(&boot))
        };
        if is_taken {
            return false;
        }
        let disk = VolumeSpec { pool: None, size: Some(Bytes::gib(1)), image: None, vm: Some(name(vm)) };
        let spec = VmSpec {
            image: None,
            cpus: 1,
            memory: Bytes::mib(256),
            volumes: vec![name(&boot)],
            nics: Vec::new(),
            power: Power::Running,
            power_request: 1,
            reset_request: 0,
            place: Default::default(),
            cloud_init: None,
            shutdown_timeout: Span::from_secs(10),
            restart: Default::default(),
            on_panic: Default::default(),
            on_hang: Default::default(),
            watchdog: false,
            checks: Vec::new(),
            priority: Default::default(),
            ha,
            isolation,
        };
        let txn = self.put_new(Txn::new(), Kind::Volume, &boot, disk);
        self.submit(self.put_new(txn, Kind::Vm, vm, spec))
    }

    fn ask_to_migrate(&self, vm: &str, to: Option<usize>, seed: bool) -> bool {
        let free = {
            let state = self.lock();
            let view = &state.checker.view;
            match view.vm(&name(vm)) {
                Some(found) if found.is_wanted() && !view.is_migrating(found.name) => free_name(view, &found),
                _ => None,
            }
        };
        let Some(free) = free else { return false };
        let spec = MigrationSpec {
            vm: name(vm),
            to: to.map(host_name),
            max_downtime: Span::from_millis(300),
            finish_by: None,
            cancel: false,
            seed,
            forecast: None,
            asked_by: "person".to_owned(),
        };
        self.submit(self.put_new(Txn::new(), Kind::Migration, free.as_str(), spec))
    }

    fn cancel(&self, vm: &str) -> bool {
        let open = {
            let state = self.lock();
            let migrations = state.checker.view.migrations.iter();
            let mut open = migrations.filter(|(_, entry)| {
                let is_of_vm = entry.spec.as_ref().is_some_and(|spec| spec.value.spec.vm == name(vm));
                is_of_vm && entry.decision.as_ref().is_none_or(|decision| decision.phase.may_cancel())
            });
            open.next().map(|(name, _)| name.clone())
        };
        open.is_some_and(|open| {
            self.modify(Kind::Migration, open.as_str(), |object: &mut Object<MigrationSpec>| {
                object.spec.cancel = true;
            })
        })
    }

    /// How the VM's last migration stands.
    #[must_use]
    pub fn last_phase(&self, vm: &str) -> Option<Phase> {
        let state = self.lock();
        let of_vm = state
            .checker
            .view
            .migrations
            .values()
            .filter(|entry| entry.spec.as_ref().is_some_and(|spec| spec.value.spec.vm == name(vm)));
        of_vm
            .filter_map(|entry| entry.decision.as_ref())
            .max_by_key(|row| row.started)
            .map(|row| row.phase.clone())
    }
}
