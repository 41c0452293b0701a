//! Network identifiers and the hosts' addresses on them.
//!
//! Hosts take the highest addresses, guests the lowest free ones (`start`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use sterna_base::clock::Timestamp;
use sterna_model::key::{Key, Kind};
use sterna_model::meta::Name;
use sterna_model::network::{Cidr, NetworkDecision, NetworkKind};

use crate::action::Action;
use crate::start::taken_addresses;
use crate::view::View;

/// Identifiers below are left to people.
const FIRST_VNI: u32 = 4096;

#[must_use]
pub fn plan(view: &View, now: Timestamp) -> Vec<Action> {
    view.networks
        .iter()
        .filter(|(name, _)| !view.is_broken(Kind::Network, name))
        .filter_map(|(name, entry)| {
            let object = &entry.spec.as_ref()?.value;
            let NetworkKind::Overlay { cidr } = object.spec.kind else { return None };
            let has = entry.decision.as_ref().map(|row| &*row.value);
            let wanted = decide(view, name, cidr, has);
            if has == Some(&wanted) || object.meta.deleting.is_some() {
                return None;
            }
            let key = Key::decision(Kind::Network, name);
            let why = format!("identifier {}, {} hosts", wanted.vni, wanted.hosts.len());
            Some(Action::new(now, &key, "laid out", why).put(view, key, &wanted))
        })
        // One a round: two new networks must not choose the same identifier from the same view.
        .take(1)
        .collect()
}

fn decide(view: &View, name: &Name, cidr: Cidr, has: Option<&NetworkDecision>) -> NetworkDecision {
    let vni = has.map_or_else(|| free_vni(view), |decision| decision.vni);
    // A host that cannot be read exists all the same, and keeps what it has.
    let kept = has.into_iter().flat_map(|decision| &decision.hosts);
    let kept = kept.filter(|(host, address)| !view.is_removed(host) && cidr.contains(**address));
    let mut hosts: BTreeMap<_, _> = kept.map(|(host, address)| (host.clone(), *address)).collect();
    let new: Vec<_> = view.hosts().map(|host| host.name).filter(|host| !hosts.contains_key(*host)).collect();
    if !new.is_empty() {
        let taken = taken_addresses(view, name);
        let taken = |address: &Ipv4Addr| taken.contains(address);
        // From the top: `start` gives guests the lowest.
        let free = cidr.usable().rev().filter(|address| !taken(address));
        hosts.extend(new.into_iter().cloned().zip(free));
    }
    NetworkDecision { vni, hosts }
}

fn free_vni(view: &View) -> u32 {
    let taken: BTreeSet<u32> =
        view.networks.values().filter_map(|entry| entry.decision.as_ref()).map(|row| row.vni).collect();
    (FIRST_VNI..).find(|vni| !taken.contains(vni)).unwrap_or(FIRST_VNI)
}
