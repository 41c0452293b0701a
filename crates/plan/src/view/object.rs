//! Objects that can be planned for, with what is asked of them everywhere.

use sterna_model::ha::{HaState, HostDecision};
use sterna_model::host::{HostReport, HostSpec, LinkState};
use sterna_model::key::{Column, Key, Kind};
use sterna_model::meta::{Meta, Name};
use sterna_model::vm::{CopyState, Exit, VmDecision, VmReport, VmSpec};

use super::{Row, View, VmEntry};

/// A VM that can be planned for.
#[derive(Debug, Clone, Copy)]
pub struct Vm<'a> {
    pub name: &'a Name,
    pub entry: &'a VmEntry,
    pub meta: &'a Meta,
    pub spec: &'a VmSpec,
    pub(super) view: Whole<'a>,
}

/// The view that something was read from.
#[derive(Clone, Copy)]
pub(super) struct Whole<'a>(pub(super) &'a View);

impl std::fmt::Debug for Whole<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "view of revision {}", self.0.revision)
    }
}

impl<'a> Vm<'a> {
    #[must_use]
    pub fn decision(&self) -> Option<&'a VmDecision> {
        self.entry.decision.as_ref().map(|row| &*row.value)
    }

    /// What the owner says of the copy it owns; `None` also when its row is about another epoch.
    #[must_use]
    pub fn owner_report(&self) -> Option<&'a Row<VmReport>> {
        let owner = &self.decision()?.owner;
        self.entry.reports.get(&owner.host).filter(|row| row.epoch == owner.epoch)
    }

    /// Should have a process.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.meta.deleting.is_none() && self.spec.power.wants_process()
    }

    /// The owner's copy: what is known of it now.
    #[must_use]
    pub fn owner_copy(&self) -> OwnerCopy<'a> {
        let Some(decision) = self.decision() else { return OwnerCopy::NeverStarted };
        match self.owner_report().map(|row| &row.value.state) {
            Some(CopyState::Stopped { exit }) => OwnerCopy::Ended(exit),
            _ if self.view.0.is_removed(&decision.owner.host) => OwnerCopy::Removed,
            None => OwnerCopy::Unheard,
            Some(_) => OwnerCopy::Alive,
        }
    }

    /// An epoch that no host has seen for this VM. A target may have taken its epoch without having said so yet, so
    /// what was promised to migrations counts, also to those that have ended.
    #[must_use]
    pub fn next_epoch(&self) -> u64 {
        let owned = self.decision().map_or(0, |decision| decision.owner.epoch);
        let seen = self.entry.reports.values().map(|row| row.epoch).max().unwrap_or(0);
        let migrations = self.view.0.index.migrations_by_vm.of(self.name);
        let decided = migrations.filter_map(|name| self.view.0.migrations.get(name)?.decision.as_ref());
        let promised = decided.map(|decision| decision.next_epoch).max().unwrap_or(0);
        owned.max(seen).max(promised) + 1
    }

    #[must_use]
    pub fn key(&self, column: Column) -> Key {
        Key::new(Kind::Vm, self.name, column)
    }
}

/// What is known of the copy that the owner has under its epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnerCopy<'a> {
    NeverStarted,
    /// Ordered; its host has not answered.
    Unheard,
    Alive,
    Ended(&'a Exit),
    /// Gone with its host.
    Removed,
}

/// A host that has joined.
#[derive(Debug, Clone, Copy)]
pub struct Host<'a> {
    pub name: &'a Name,
    pub meta: &'a Meta,
    pub spec: &'a HostSpec,
    pub decision: Option<&'a HostDecision>,
    pub report: Option<&'a HostReport>,
}

impl Host<'_> {
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.report.is_some_and(|report| report.link == LinkState::Connected)
    }

    /// Where its lease stands.
    #[must_use]
    pub fn ha(&self) -> HaState {
        self.decision.map_or(HaState::Left, |decision| decision.state)
    }

    /// Of its lease; 0: it never had one.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.decision.map_or(0, |decision| decision.epoch)
    }

    /// May get VMs that it does not have.
    #[must_use]
    pub fn takes_vms(&self) -> bool {
        self.is_connected() && !self.spec.cordoned && !self.spec.draining && self.meta.deleting.is_none()
    }
}
