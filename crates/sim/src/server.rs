//! The server's process: production control and the gateway, killed and started again over the same store.

use std::sync::Arc;

use sterna_base::clock::Clock;
use sterna_base::scope::Scope;
use sterna_model::key::{Column, Key, Kind};
use sterna_model::meta::Object;
use sterna_model::migration::MigrationSpec;
use sterna_model::store::{MAIN, Restored, StoreSpec};
use sterna_model::vm::VmSpec;
use sterna_store::{Store, Txn};
use tokio::sync::mpsc;

use crate::gateway;
use crate::mutation::Mutation;
use crate::operator::name;
use crate::store::Reached;
use crate::store::at_once;
use crate::world::World;

impl World {
    pub fn start_server(&self) {
        let (sender, inbox) = mpsc::unbounded_channel();
        let scope = Scope::new();
        let life = {
            let mut state = self.lock();
            if state.server.is_up {
                return;
            }
            state.server.life += 1;
            state.server.is_up = true;
            state.server.inbox = Some(sender);
            state.server.scope = Some(scope.clone());
            state.server.life
        };
        self.say("server starts");
        scope.spawn(gateway::run(self.clone(), life, inbox));
        let store: Arc<dyn Store> = Arc::new(Reached { world: self.clone(), life, is_control: true });
        let (world, token) = (self.clone(), scope.token());
        scope.spawn(async move {
            let teller = world.clone();
            let sink: sterna_control::Sink = Arc::new(move |event| {
                if teller.is_server_alive(life) {
                    teller.say(format!("{} {}: {}: {}", event.kind, event.name, event.what, event.why));
                }
            });
            let clock = Arc::new(world.clone());
            let candidate = sterna_control::Candidate { name: "server".to_owned(), fencer: None };
            let ended = sterna_control::run(store, clock, candidate, sink, token).await;
            if let Err(error) = ended {
                world.violate(format!("control gave up: {error}"));
            }
        });
    }

    /// kill -9.
    pub fn kill_server(&self) {
        let (scope, lines) = {
            let mut state = self.lock();
            if !state.server.is_up {
                return;
            }
            state.server.is_up = false;
            state.server.inbox = None;
            let lines: Vec<_> = state.hosts.iter().filter_map(|host| host.connection.clone()).collect();
            (state.server.scope.take(), lines)
        };
        self.say("server is killed");
        if let Some(scope) = scope {
            scope.token().cancel();
        }
        for line in lines {
            // The kernel of a dead process closes its connections.
            self.later(1, 20, move |_| line.agent_sees_end.cancel());
        }
        self.later(50, 1000, World::start_server);
    }

    /// The server dies, and starts again over a store that was restored from a copy older than this VM.
    pub fn lose(&self, vm: &str) {
        self.kill_server();
        let snapshot = at_once(self.store.range("", None)).expect("the memory store reads");
        let mut txn = Txn::new();
        for entry in &snapshot.entries {
            let Some(key) = Key::parse(&entry.key) else { continue };
            let moves_it = || {
                let spec = serde_json::from_slice::<Object<MigrationSpec>>(&entry.value).ok();
                spec.is_some_and(|object| object.spec.vm.as_str() == vm)
            };
            if key.kind == Kind::Vm && key.name.as_str() == vm {
                if let (Column::Spec, Ok(object)) =
                    (&key.column, serde_json::from_slice::<Object<VmSpec>>(&entry.value))
                {
                    self.lock().lost.insert(object.meta.uid);
                }
                txn = txn.delete(&entry.key);
            } else if key.kind == Kind::Migration && moves_it() {
                let decision = Key::decision(Kind::Migration, &key.name).to_string();
                txn = txn.delete(&entry.key).delete(decision);
            }
        }
        self.moment("an older store is back");
        at_once(self.store.commit(txn)).expect("the memory store writes");
        self.on_commit();
    }

    /// Copies the store.
    pub fn back_up(&self) {
        let snapshot = at_once(self.store.range("", None)).expect("the memory store reads");
        self.say(format!("the store is copied at revision {}", snapshot.revision));
        self.lock().backup = Some(snapshot);
    }

    /// The server dies, and starts again over the last copy of its store, as `sterna server restore` leaves it.
    pub fn restore(&self) {
        self.kill_server();
        let Some(backup) = self.lock().backup.clone() else { return };
        let now = at_once(self.store.range("", None)).expect("the memory store reads");
        let mut txn = Txn::new();
        for entry in &now.entries {
            if !backup.entries.iter().any(|kept| kept.key == entry.key) {
                txn = txn.delete(&entry.key);
            }
        }
        let main = Key::spec(Kind::Store, &name(MAIN)).to_string();
        for entry in backup.entries.iter().filter(|entry| entry.key != main) {
            txn = txn.put(&entry.key, entry.value.clone());
        }
        let restored =
            Restored { at: self.now(), taken: self.now(), revision: backup.revision, incarnation: None };
        let meta = self.meta(name(MAIN));
        // Random, as the uid that was drawn with it.
        let spec = StoreSpec { restored: Some(restored), ..StoreSpec::new(meta.uid) };
        let spec =
            if self.mutates(Mutation::RecoversAtOnce) { StoreSpec { restored: None, ..spec } } else { spec };
        let value = serde_json::to_vec(&Object { meta, spec }).expect("plain data");
        txn = txn.put(main, value);
        {
            let mut state = self.lock();
            let known: Vec<_> = backup
                .entries
                .iter()
                .filter(|entry| Key::parse(&entry.key).is_some_and(|key| key.kind == Kind::Vm))
                .filter_map(|entry| serde_json::from_slice::<Object<VmSpec>>(&entry.value).ok())
                .map(|object| object.meta.uid)
                .collect();
            let younger: Vec<_> = state.checker.view.vms().map(|vm| vm.meta.uid).collect();
            state.lost.extend(younger.into_iter().filter(|uid| !known.contains(uid)));
            state.checker.forget();
        }
        at_once(self.store.commit(txn)).expect("the memory store writes");
        self.on_commit();
        self.moment("the store is restored");
    }

    /// Does something after a drawn time.
    pub fn later(&self, low: u64, high: u64, act: impl FnOnce(&World) + Send + 'static) {
        let world = self.clone();
        let delay = self.draw(low, high);
        tokio::spawn(async move {
            world.sleep(delay).await;
            act(&world);
        });
    }
}
