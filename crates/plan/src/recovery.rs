//! Finds out who has each VM after the store came back from a backup, before anything else is decided.
//!
//! Reads: which hosts have told everything to this incarnation of the store, and their rows. Decides: owners as they are
//! found, the end of moves that went on without the store, and when recovery is over. The table is
//! docs/flows/server-restore.md.
//! Never starts, moves or ends anything: what was found to have ended is `ha`'s, afterwards.

mod found;
mod leases;
mod settle;

use std::collections::BTreeSet;

use sterna_base::clock::Timestamp;
use sterna_model::key::{Key, Kind};
use sterna_model::meta::Name;
use sterna_model::store::{FINDINGS_MAX, Finding, MAIN, StoreDecision, StoreSpec};
use uuid::Uuid;

use crate::action::Action;
use crate::view::{Row, View};

pub use settle::Step;

/// While it is, nothing is started, taken over, moved or deleted, and no host is told anything.
#[must_use]
pub fn is_on(view: &View) -> bool {
    // Nothing is concluded from what cannot be read.
    view.is_broken(Kind::Store, &main()) || Recovery::of(view).is_some_and(|recovery| !recovery.has_ended())
}

/// The hosts that have yet to tell what they have.
#[must_use]
pub fn waits_for(view: &View) -> Vec<Name> {
    Recovery::of(view).map(|recovery| recovery.waits_for()).unwrap_or_default()
}

/// What is known now to differ between the store and the hosts; on the way to [`StoreDecision::findings`].
#[must_use]
pub fn findings(view: &View, now: Timestamp) -> Vec<Finding> {
    let Some(recovery) = Recovery::of(view).filter(|recovery| !recovery.has_ended()) else {
        return Vec::new();
    };
    recovery.steps(now).into_iter().map(|step| step.finding).collect()
}

/// VMs that cannot be settled yet, with the reason.
#[must_use]
pub fn unsettled(view: &View, now: Timestamp) -> Vec<(Name, String)> {
    let Some(recovery) = Recovery::of(view).filter(|recovery| !recovery.has_ended()) else {
        return Vec::new();
    };
    recovery.open(now)
}

#[must_use]
pub fn plan(view: &View, now: Timestamp) -> Vec<Action> {
    let Some(recovery) = Recovery::of(view) else { return Vec::new() };
    if recovery.has_ended() || !recovery.waits_for().is_empty() {
        return Vec::new();
    }
    let steps = recovery.steps(now);
    match recovery.decision {
        None => vec![recovery.begin(steps, now)],
        Some(_) if !steps.is_empty() => steps.into_iter().map(|step| step.action).collect(),
        Some(decision) if recovery.open(now).is_empty() => vec![recovery.end(decision, now)],
        Some(_) => Vec::new(),
    }
}

fn main() -> Name {
    Name::new(MAIN).expect("the literal is a DNS label")
}

/// One restored store and what it knows of its hosts.
struct Recovery<'a> {
    view: &'a View,
    spec: &'a StoreSpec,
    /// About this incarnation.
    decision: Option<&'a StoreDecision>,
}

impl<'a> Recovery<'a> {
    /// `None`: the store was never restored.
    fn of(view: &'a View) -> Option<Self> {
        let entry = view.stores.get(MAIN)?;
        let spec = &entry.spec.as_ref()?.value.spec;
        spec.restored.as_ref()?;
        let decision = entry.decision.as_ref().map(|row| &*row.value);
        let decision = decision.filter(|decision| decision.incarnation == spec.incarnation);
        Some(Self { view, spec, decision })
    }

    fn has_ended(&self) -> bool {
        self.decision.is_some_and(|decision| decision.ended.is_some())
    }

    fn waits_for(&self) -> Vec<Name> {
        let known = self.view.hosts.iter().filter(|(name, entry)| {
            // A host that cannot be read exists all the same.
            entry.spec.is_some() || self.view.is_broken(Kind::Host, name)
        });
        let waited = known.map(|(name, _)| name);
        waited.filter(|name| !self.spec.without.contains(*name) && !self.has_told(name)).cloned().collect()
    }

    /// Its rows are what is there, and not what the backup remembers.
    fn has_told(&self, host: &Name) -> bool {
        let told: Option<Uuid> = self.view.host(host).and_then(|host| host.report?.told);
        told == Some(self.spec.incarnation)
    }

    /// Every known host has told: there is nowhere else to look.
    fn is_whole(&self) -> bool {
        self.view.hosts.iter().all(|(name, _)| self.has_told(name) || self.view.is_removed(name))
    }

    fn steps(&self, now: Timestamp) -> Vec<Step> {
        self.view.vms().filter_map(|vm| self.settle(&vm, now)?.ok()).collect()
    }

    fn open(&self, now: Timestamp) -> Vec<(Name, String)> {
        let open = self.view.vms().filter_map(|vm| match self.transfer_under_way(&vm) {
            Some(why) => Some((vm.name.clone(), why)),
            None => self.settle(&vm, now)?.err().map(|why| (vm.name.clone(), why)),
        });
        open.collect()
    }

    fn begin(&self, steps: Vec<Step>, now: Timestamp) -> Action {
        let mut findings: Vec<Finding> = steps.into_iter().map(|step| step.finding).collect();
        let more = findings.len().saturating_sub(FINDINGS_MAX);
        let (vms, differ) = (self.view.vms().count(), findings.len());
        findings.truncate(FINDINGS_MAX);
        let decision =
            StoreDecision { incarnation: self.spec.incarnation, since: now, ended: None, findings, more };
        let why = format!("of {vms} VMs the hosts have {differ} in another way than the store says");
        self.settle_leases(self.write(&decision, "found", why, now), now)
    }

    fn end(&self, decision: &StoreDecision, now: Timestamp) -> Action {
        let ended = StoreDecision { ended: Some(now), ..decision.clone() };
        let not: Vec<_> = self.spec.without.iter().map(ToString::to_string).collect();
        let without = if not.is_empty() { String::new() } else { format!(", but for {}", not.join(", ")) };
        let why = format!("every host told what it has{without}; the store is as the hosts are");
        self.write(&ended, "recovered", why, now)
    }

    fn write(&self, decision: &StoreDecision, what: &str, why: String, now: Timestamp) -> Action {
        let main = main();
        let spec = Key::spec(Kind::Store, &main);
        Action::new(now, &spec, what, why)
            .put(self.view, Key::decision(Kind::Store, &main), decision)
            .compare(self.view, spec)
    }
}

/// Hosts by name, once each.
fn unique<'a>(names: impl Iterator<Item = &'a Name>) -> BTreeSet<&'a Name> {
    names.collect()
}

type VmRow = Row<sterna_model::vm::VmReport>;
