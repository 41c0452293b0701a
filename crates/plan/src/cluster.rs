//! Keeps each cluster's CPU baseline: the CPU model and machine version that every host of it can run.
//!
//! A change reaches a VM at its next start; what runs keeps the hardware it was started with.

use sterna_base::clock::Timestamp;
use sterna_model::cluster::{ClusterDecision, ClusterSpec};
use sterna_model::cpu;
use sterna_model::key::{Key, Kind};
use sterna_model::meta::Name;

use crate::action::Action;
use crate::view::View;

#[must_use]
pub fn plan(view: &View, now: Timestamp) -> Vec<Action> {
    view.clusters
        .iter()
        .filter(|(name, _)| !view.is_broken(Kind::Cluster, name))
        .filter_map(|(name, entry)| {
            let spec = &entry.spec.as_ref()?.value.spec;
            let has = entry.decision.as_ref().map(|row| &*row.value);
            // What a host that cannot be read can run is not known: it must not lose its VMs to a baseline without it.
            let mut known = has.into_iter().flat_map(|decision| &decision.hosts);
            if known.any(|host| view.is_broken(Kind::Host, host)) {
                return None;
            }
            let wanted = decide(view, name, spec)?;
            if has == Some(&wanted) {
                return None;
            }
            let key = Key::decision(Kind::Cluster, name);
            let baseline = &wanted.baseline;
            let why = format!(
                "{} and {} run on all {} hosts",
                baseline.cpu_model,
                baseline.machine,
                wanted.hosts.len()
            );
            Some(Action::new(now, &key, "baseline", why).put(view, key, &wanted))
        })
        .collect()
}

fn decide(view: &View, name: &Name, spec: &ClusterSpec) -> Option<ClusterDecision> {
    let hosts: Vec<_> =
        view.hosts().filter(|host| host.spec.cluster == *name && host.report.is_some()).collect();
    let reports = hosts.iter().filter_map(|host| host.report).map(|report| (report.accel, &report.cpu));
    let mut baseline = cpu::baseline(reports).ok()?;
    if let Some(model) = &spec.cpu_model {
        baseline.cpu_model.clone_from(model);
    }
    Some(ClusterDecision { baseline, hosts: hosts.iter().map(|host| host.name.clone()).collect() })
}
