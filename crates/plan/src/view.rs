//! A read-consistent copy of the store, decoded, with the revision of every column.
//!
//! Tables are shared until they change, so a clone costs a few pointers. A row that cannot be decoded makes its object
//! broken: it is named in [`View::broken`], shown to people, and no planner touches it.

mod index;
mod object;
mod table;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use sterna_model::alert::{AlertDecision, AlertReport, AlertSpec};
use sterna_model::cluster::{ClusterDecision, ClusterSpec};
use sterna_model::datacentre::DatacentreSpec;
use sterna_model::ha::{HostDecision, VoterDecision};
use sterna_model::host::{HostReport, HostSpec};
use sterna_model::image::{ImageReport, ImageSpec};
use sterna_model::key::{Column, Key, Kind};
use sterna_model::meta::{Meta, Name, Object};
use sterna_model::migration::{MigrationDecision, MigrationSpec, Phase};
use sterna_model::network::{NetworkDecision, NetworkSpec};
use sterna_model::operation::{OperationDecision, OperationSpec};
use sterna_model::pool::PoolSpec;
use sterna_model::store::{StoreDecision, StoreReport, StoreSpec};
use sterna_model::token::{JoinTokenSpec, TokenSpec};
use sterna_model::vm::{VmDecision, VmReport, VmSpec};
use sterna_model::volume::{VolumeDecision, VolumeReport, VolumeSpec};

pub(crate) use index::Index;
use index::{MigrationFacts, VmFacts, VolumeFacts};
use object::Whole;
pub use object::{Host, OwnerCopy, Vm};
pub use table::{Iter, Table};

/// The revision of a row that an action of this round has written and the store has not.
pub const PROVISIONAL: u64 = u64::MAX;

/// One decoded column.
#[derive(Debug)]
pub struct Row<T> {
    pub value: Arc<T>,
    /// Store revision of the last change.
    pub revision: u64,
}

impl<T> Clone for Row<T> {
    fn clone(&self) -> Self {
        Self { value: Arc::clone(&self.value), revision: self.revision }
    }
}

impl<T> std::ops::Deref for Row<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// All columns of one object. `()` stands for a column that a kind does not have.
#[derive(Debug)]
pub struct Entry<S, D, R> {
    pub spec: Option<Row<Object<S>>>,
    pub decision: Option<Row<D>>,
    pub report: Option<Row<R>>,
    /// By host.
    pub reports: BTreeMap<Name, Row<R>>,
}

impl<S, D, R> Clone for Entry<S, D, R> {
    fn clone(&self) -> Self {
        let Self { spec, decision, report, reports } = self;
        Self {
            spec: spec.clone(),
            decision: decision.clone(),
            report: report.clone(),
            reports: reports.clone(),
        }
    }
}

impl<S, D, R> Default for Entry<S, D, R> {
    fn default() -> Self {
        Self { spec: None, decision: None, report: None, reports: BTreeMap::new() }
    }
}

impl<S, D, R> Entry<S, D, R> {
    fn is_empty(&self) -> bool {
        self.spec.is_none() && self.decision.is_none() && self.report.is_none() && self.reports.is_empty()
    }

    /// The revision of a column, 0 when it is absent: what a transaction compares.
    #[must_use]
    pub fn revision(&self, column: &Column) -> u64 {
        match column {
            Column::Spec => self.spec.as_ref().map_or(0, |row| row.revision),
            Column::Decision => self.decision.as_ref().map_or(0, |row| row.revision),
            Column::Report => self.report.as_ref().map_or(0, |row| row.revision),
            Column::ReportOf(host) => self.reports.get(host).map_or(0, |row| row.revision),
        }
    }

    #[must_use]
    pub fn meta(&self) -> Option<&Meta> {
        self.spec.as_ref().map(|row| &row.value.meta)
    }
}

pub type VmEntry = Entry<VmSpec, VmDecision, VmReport>;
pub type HostEntry = Entry<HostSpec, HostDecision, HostReport>;
pub type VolumeEntry = Entry<VolumeSpec, VolumeDecision, VolumeReport>;
pub type AlertEntry = Entry<AlertSpec, AlertDecision, AlertReport>;
pub type MigrationEntry = Entry<MigrationSpec, MigrationDecision, ()>;

#[derive(Debug, Clone, Default)]
pub struct View {
    /// The store revision that it shows.
    pub revision: u64,
    pub datacentres: Table<DatacentreSpec, VoterDecision, ()>,
    pub clusters: Table<ClusterSpec, ClusterDecision, ()>,
    pub hosts: Table<HostSpec, HostDecision, HostReport>,
    pub pools: Table<PoolSpec, (), ()>,
    pub images: Table<ImageSpec, (), ImageReport>,
    pub networks: Table<NetworkSpec, NetworkDecision, ()>,
    pub volumes: Table<VolumeSpec, VolumeDecision, VolumeReport>,
    pub vms: Table<VmSpec, VmDecision, VmReport>,
    pub migrations: Table<MigrationSpec, MigrationDecision, ()>,
    pub operations: Table<OperationSpec, OperationDecision, ()>,
    pub tokens: Table<TokenSpec, (), ()>,
    pub join_tokens: Table<JoinTokenSpec, (), ()>,
    /// One object, `store::MAIN`.
    pub stores: Table<StoreSpec, StoreDecision, StoreReport>,
    pub alerts: Table<AlertSpec, AlertDecision, AlertReport>,
    /// Key -> what is wrong with its value.
    pub broken: BTreeMap<String, String>,
    /// How many rows of an object are broken.
    broken_objects: BTreeMap<Kind, BTreeMap<Name, usize>>,
    pub(crate) index: Index,
}

/// Calls `$run` with the table of `$kind`: the one place that knows which field holds which kind.
macro_rules! with_table {
    ($view:expr, $kind:expr, $table:ident => $run:expr) => {
        match $kind {
            Kind::Datacentre => {
                let $table = &mut $view.datacentres;
                $run
            }
            Kind::Cluster => {
                let $table = &mut $view.clusters;
                $run
            }
            Kind::Host => {
                let $table = &mut $view.hosts;
                $run
            }
            Kind::Pool => {
                let $table = &mut $view.pools;
                $run
            }
            Kind::Image => {
                let $table = &mut $view.images;
                $run
            }
            Kind::Network => {
                let $table = &mut $view.networks;
                $run
            }
            Kind::Volume => {
                let $table = &mut $view.volumes;
                $run
            }
            Kind::Vm => {
                let $table = &mut $view.vms;
                $run
            }
            Kind::Migration => {
                let $table = &mut $view.migrations;
                $run
            }
            Kind::Operation => {
                let $table = &mut $view.operations;
                $run
            }
            Kind::Token => {
                let $table = &mut $view.tokens;
                $run
            }
            Kind::JoinToken => {
                let $table = &mut $view.join_tokens;
                $run
            }
            Kind::Store => {
                let $table = &mut $view.stores;
                $run
            }
            Kind::Alert => {
                let $table = &mut $view.alerts;
                $run
            }
        }
    };
}

impl View {
    /// Takes over one change of the store; `None` is a deletion. Foreign keys (leases) change nothing but the revision.
    pub fn apply(&mut self, key: &str, value: Option<&[u8]>, revision: u64) {
        if revision != PROVISIONAL {
            self.revision = self.revision.max(revision);
        }
        let Some(parsed) = Key::parse(key) else { return };
        let was_broken = self.broken.contains_key(key);
        let others_broken = self.broken_rows(parsed.kind, &parsed.name) > usize::from(was_broken);
        let result = self.set(&parsed, value, revision, others_broken);
        match (&result, was_broken) {
            (Err(_), false) => {
                let objects = self.broken_objects.entry(parsed.kind).or_default();
                *objects.entry(parsed.name).or_default() += 1;
            }
            (Ok(()), true) => self.mend(parsed.kind, &parsed.name),
            _ => {}
        }
        match result {
            Ok(()) => self.broken.remove(key),
            Err(why) => self.broken.insert(key.to_owned(), why),
        };
    }

    fn set(&mut self, key: &Key, value: Option<&[u8]>, revision: u64, keep: bool) -> Result<(), String> {
        macro_rules! indexed {
            ($table:ident, $facts:ident, $move:ident) => {{
                let before = $facts::of(self.$table.get(&key.name));
                let result = set(&mut self.$table, key, value, revision, keep);
                self.index.$move(&key.name, &before, &$facts::of(self.$table.get(&key.name)));
                result
            }};
        }
        match key.kind {
            Kind::Vm => indexed!(vms, VmFacts, move_vm),
            Kind::Volume => indexed!(volumes, VolumeFacts, move_volume),
            Kind::Migration => indexed!(migrations, MigrationFacts, move_migration),
            kind => with_table!(self, kind, table => set(table, key, value, revision, keep)),
        }
    }

    fn broken_rows(&self, kind: Kind, name: &Name) -> usize {
        self.broken_objects.get(&kind).and_then(|objects| objects.get(name)).copied().unwrap_or(0)
    }

    fn mend(&mut self, kind: Kind, name: &Name) {
        let Some(objects) = self.broken_objects.get_mut(&kind) else { return };
        if let Some(rows) = objects.get_mut(name) {
            *rows -= 1;
            if *rows == 0 {
                objects.remove(name);
            }
        }
        if objects.is_empty() {
            self.broken_objects.remove(&kind);
        }
    }

    /// The revision of a key's row, 0 when absent.
    #[must_use]
    pub fn revision_of(&self, key: &Key) -> u64 {
        macro_rules! look {
            ($table:expr) => {
                $table.get(&key.name).map_or(0, |entry| entry.revision(&key.column))
            };
        }
        match key.kind {
            Kind::Datacentre => look!(self.datacentres),
            Kind::Cluster => look!(self.clusters),
            Kind::Host => look!(self.hosts),
            Kind::Pool => look!(self.pools),
            Kind::Image => look!(self.images),
            Kind::Network => look!(self.networks),
            Kind::Volume => look!(self.volumes),
            Kind::Vm => look!(self.vms),
            Kind::Migration => look!(self.migrations),
            Kind::Operation => look!(self.operations),
            Kind::Token => look!(self.tokens),
            Kind::JoinToken => look!(self.join_tokens),
            Kind::Store => look!(self.stores),
            Kind::Alert => look!(self.alerts),
        }
    }

    /// No planner may touch it: a part of it cannot be read.
    #[must_use]
    pub fn is_broken(&self, kind: Kind, name: &Name) -> bool {
        self.broken_rows(kind, name) > 0
    }

    /// VMs that can be planned for.
    pub fn vms(&self) -> impl Iterator<Item = Vm<'_>> {
        self.vms.iter().filter_map(|(name, entry)| self.readable_vm(name, entry))
    }

    /// Those of them that this host owns or has reported a copy of.
    pub fn vms_on(&self, host: &Name) -> impl Iterator<Item = Vm<'_>> {
        self.index.vms_by_host.of(host).filter_map(|name| self.vm(name))
    }

    #[must_use]
    pub fn vm(&self, name: &Name) -> Option<Vm<'_>> {
        let (name, entry) = self.vms.get_key_value(name)?;
        self.readable_vm(name, entry)
    }

    fn readable_vm<'a>(&'a self, name: &'a Name, entry: &'a VmEntry) -> Option<Vm<'a>> {
        let spec = entry.spec.as_ref()?;
        (!self.is_broken(Kind::Vm, name)).then_some(Vm {
            name,
            entry,
            meta: &spec.value.meta,
            spec: &spec.value.spec,
            view: Whole(self),
        })
    }

    /// Hosts that have joined.
    pub fn hosts(&self) -> impl Iterator<Item = Host<'_>> {
        self.hosts.iter().filter_map(|(name, entry)| self.readable_host(name, entry))
    }

    #[must_use]
    pub fn host(&self, name: &Name) -> Option<Host<'_>> {
        let (name, entry) = self.hosts.get_key_value(name)?;
        self.readable_host(name, entry)
    }

    fn readable_host<'a>(&self, name: &'a Name, entry: &'a HostEntry) -> Option<Host<'a>> {
        let spec = entry.spec.as_ref()?;
        (!self.is_broken(Kind::Host, name)).then_some(Host {
            name,
            meta: &spec.value.meta,
            spec: &spec.value.spec,
            decision: entry.decision.as_ref().map(|row| &*row.value),
            report: entry.report.as_ref().map(|row| &*row.value),
        })
    }

    /// A person removed it, who by that vouches that nothing runs there any more; its agent is not let in again.
    #[must_use]
    pub fn is_removed(&self, host: &Name) -> bool {
        self.hosts.get(host).is_none_or(|entry| entry.spec.is_none()) && !self.is_broken(Kind::Host, host)
    }

    /// Migrations that have begun to be planned and have not ended.
    pub fn active_migrations(
        &self,
    ) -> impl Iterator<Item = (&Name, &MigrationSpec, &Row<MigrationDecision>)> {
        self.index.open_migrations.iter().filter_map(|name| self.active_migration(name))
    }

    fn active_migration(&self, name: &Name) -> Option<(&Name, &MigrationSpec, &Row<MigrationDecision>)> {
        let (name, entry) = self.migrations.get_key_value(name)?;
        let spec = entry.spec.as_ref()?;
        let decision = entry.decision.as_ref()?;
        (!decision.phase.has_ended()).then_some((name, &spec.value.spec, decision))
    }

    /// Migrations from or to this host that have begun and not ended.
    pub fn migrations_on(
        &self,
        host: &Name,
    ) -> impl Iterator<Item = (&Name, &MigrationSpec, &Row<MigrationDecision>)> {
        self.index.migrations_by_host.of(host).filter_map(|name| self.active_migration(name))
    }

    /// The one active migration of a VM, if any. One that waits for a slot never hides one that has begun.
    #[must_use]
    pub fn migration_of(&self, vm: &Name) -> Option<(&Name, &MigrationSpec, &Row<MigrationDecision>)> {
        let active = self.index.migrations_by_vm.of(vm).filter_map(|name| self.active_migration(name));
        active.min_by_key(|(_, _, decision)| decision.phase == Phase::Pending)
    }

    /// A migration was asked for and has not ended, planned or not.
    #[must_use]
    pub fn is_migrating(&self, vm: &Name) -> bool {
        self.index.migrations_by_vm.of(vm).any(|name| self.index.open_migrations.contains(name))
    }
}

/// `keep`: other rows of the object are broken, so it exists though nothing of it can be read.
fn set<S, D, R>(
    table: &mut Table<S, D, R>,
    key: &Key,
    value: Option<&[u8]>,
    revision: u64,
    keep: bool,
) -> Result<(), String>
where
    S: DeserializeOwned,
    D: DeserializeOwned,
    R: DeserializeOwned,
{
    if value.is_none() && !table.contains_key(&key.name) {
        return Ok(());
    }
    table.change(&key.name, |entry| {
        let result = match &key.column {
            Column::Spec => replace(&mut entry.spec, value, revision),
            Column::Decision => replace(&mut entry.decision, value, revision),
            Column::Report => replace(&mut entry.report, value, revision),
            Column::ReportOf(host) => {
                let mut row = entry.reports.remove(host);
                let result = replace(&mut row, value, revision);
                if let Some(row) = row {
                    entry.reports.insert(host.clone(), row);
                }
                result
            }
        };
        let is_void = entry.is_empty() && !keep && result.is_ok();
        (result, is_void)
    })
}

/// What cannot be read is absent, not old: the view must not depend on what it showed before.
fn replace<T: DeserializeOwned>(
    column: &mut Option<Row<T>>,
    value: Option<&[u8]>,
    revision: u64,
) -> Result<(), String> {
    let decoded = decode(value, revision);
    let (row, result) = match decoded {
        Ok(row) => (row, Ok(())),
        Err(why) => (None, Err(why)),
    };
    *column = row;
    result
}

fn decode<T: DeserializeOwned>(value: Option<&[u8]>, revision: u64) -> Result<Option<Row<T>>, String> {
    value
        .map(|bytes| serde_json::from_slice(bytes).map(|value| Row { value: Arc::new(value), revision }))
        .transpose()
        .map_err(|error| error.to_string())
}
