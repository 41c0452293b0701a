//! Who grants the leases of a datacentre.
//!
//! Reads: hosts whose agents speak of a guard, what the leader knows of its own machine. Decides: voters, fencers, profile and
//! everybody's keys, one change at a time. While a change is under way both sets count (`docs/flows/host-lease.md`).

use std::collections::{BTreeMap, BTreeSet};

use sterna_base::clock::Timestamp;
use sterna_model::ha::{FormerVoters, HaState, Peer, VOTERS_MAX, VOTERS_MIN, VoterDecision};
use sterna_model::key::{Key, Kind};
use sterna_model::meta::Name;
use uuid::Uuid;

use crate::action::Action;
use crate::view::{Host, View};

/// The leader's own machine, which no host reports on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Asks voters and fences hosts.
    pub fencer: (Uuid, Peer),
    /// The guard beside it: a voter without VMs.
    pub witness: Option<(Uuid, Peer)>,
}

#[must_use]
pub fn plan(view: &View, server: &Server, now: Timestamp) -> Vec<Action> {
    view.datacentres
        .iter()
        .filter(|(name, entry)| entry.spec.is_some() && !view.is_broken(Kind::Datacentre, name))
        .filter_map(|(name, _)| Site::of(view, server, name).step(now))
        .collect()
}

/// How many voters a datacentre has or could have; fewer than [`VOTERS_MIN`]: none of its hosts gets a lease.
#[must_use]
pub fn count(view: &View, datacentre: &Name) -> usize {
    let decision = view.datacentres.get(datacentre).and_then(|entry| entry.decision.as_ref());
    let running = || guards(view, datacentre).filter(|(host, _)| has_guard_running(host)).count();
    decision.map_or_else(running, |row| row.voters.len())
}

/// Where a host was joined and nobody has started its guard, a vote would be lost from the beginning.
fn has_guard_running(host: &Host<'_>) -> bool {
    let guard = host.report.and_then(|report| report.guard.as_ref());
    guard.is_some_and(|guard| {
        guard.trouble.is_none() || guard.configuration.is_some() || guard.watchdog != "none"
    })
}

fn guards<'a>(view: &'a View, datacentre: &'a Name) -> impl Iterator<Item = (Host<'a>, Peer)> {
    let inside = view.hosts().filter(move |host| host.spec.datacentre == *datacentre);
    inside.filter_map(|host| {
        let guard = host.report?.guard.as_ref().filter(|guard| !guard.addresses.is_empty())?;
        let peer =
            Peer { name: host.name.to_string(), key: guard.key.clone(), addresses: guard.addresses.clone() };
        Some((host, peer))
    })
}

/// One datacentre in one round.
struct Site<'a> {
    view: &'a View,
    server: &'a Server,
    name: &'a Name,
    hosts: Vec<(Host<'a>, Peer)>,
}

impl<'a> Site<'a> {
    fn of(view: &'a View, server: &'a Server, name: &'a Name) -> Self {
        Self { view, server, name, hosts: guards(view, name).collect() }
    }

    fn step(&self, now: Timestamp) -> Option<Action> {
        let entry = self.view.datacentres.get(self.name)?;
        let profile = entry.spec.as_ref()?.value.spec.ha.profile;
        let Some(row) = &entry.decision else {
            let voters = self.first_voters();
            let fencers = BTreeSet::from([self.server.fencer.0]);
            let first = VoterDecision {
                version: 1,
                voters,
                fencers,
                profile,
                former: None,
                peers: self.peers(),
                since: now,
            };
            let is_enough = first.voters.len() >= VOTERS_MIN;
            return is_enough.then(|| self.write(&first, self.words(&first.voters), now));
        };
        let before = &*row.value;
        if before.former.is_some() {
            return self.end(before, now).or_else(|| self.tell_keys(before, now));
        }
        let mut fencers = before.fencers.clone();
        fencers.insert(self.server.fencer.0);
        let voters = self.next_voters(&before.voters);
        let is_same = voters == before.voters && profile == before.profile && fencers == before.fencers;
        if is_same {
            return self.tell_keys(before, now);
        }
        let former = Some(FormerVoters { voters: before.voters.clone(), profile: before.profile });
        let version = before.version + 1;
        let why = format!("{}; profile {}", self.words(&voters), profile.as_str());
        let after =
            VoterDecision { version, voters, fencers, profile, former, peers: self.peers(), since: now };
        Some(self.write(&after, why, now))
    }

    /// Nothing rests on anybody's word yet: any set will do.
    fn first_voters(&self) -> BTreeSet<Uuid> {
        let hosts = self.hosts.iter().filter(|(host, _)| host.is_connected() && has_guard_running(host));
        let mut voters: BTreeSet<_> = hosts.map(|(host, _)| host.meta.uid).take(VOTERS_MAX).collect();
        if self.wants_witness(voters.len()) {
            voters.extend(self.server.witness.iter().map(|(uid, _)| *uid));
        }
        voters
    }

    /// Too few survive no loss, and of an even number no more than of one less.
    fn wants_witness(&self, hosts: usize) -> bool {
        hosts < VOTERS_MIN || hosts.is_multiple_of(2)
    }

    /// One voter more or less, or the same.
    fn next_voters(&self, before: &BTreeSet<Uuid>) -> BTreeSet<Uuid> {
        let mut next = before.clone();
        let witness = self.server.witness.as_ref().map(|(uid, _)| *uid);
        let hosts: BTreeSet<_> = self.hosts.iter().map(|(host, _)| host.meta.uid).collect();
        if let Some(gone) = before.iter().find(|uid| !hosts.contains(uid) && Some(**uid) != witness) {
            next.remove(gone);
            return next;
        }
        let is_up =
            |host: &Host<'_>| host.is_connected() && host.ha() != HaState::Fenced && has_guard_running(host);
        let spare = self.hosts.iter().find(|(host, _)| !before.contains(&host.meta.uid) && is_up(host));
        let dead = self
            .hosts
            .iter()
            .find(|(host, _)| before.contains(&host.meta.uid) && host.ha() == HaState::Fenced);
        let voting = before.iter().filter(|uid| hosts.contains(uid)).count();
        let is_full = voting >= VOTERS_MAX;
        match (spare, dead) {
            (Some((spare, _)), _) if !is_full => {
                next.insert(spare.meta.uid);
            }
            (Some(_), Some((dead, _))) => {
                next.remove(&dead.meta.uid);
            }
            _ => {
                let wants = self.wants_witness(voting) && voting < VOTERS_MAX;
                match witness {
                    Some(witness) if wants => drop(next.insert(witness)),
                    Some(witness) if next.len() > VOTERS_MIN => drop(next.remove(&witness)),
                    _ => {}
                }
            }
        }
        next
    }

    /// Every lease that there is rests on the new voters: the former count no more.
    fn end(&self, before: &VoterDecision, now: Timestamp) -> Option<Action> {
        let inside = self.view.hosts().filter(|host| host.spec.datacentre == *self.name);
        let mut rests = inside.filter(|host| !matches!(host.ha(), HaState::Left | HaState::Fenced));
        let all = rests.all(|host| host.decision.is_some_and(|it| it.confirmed >= before.version));
        // One of whose decision nothing can be read may rest on the former.
        let unread = self.view.hosts.keys().any(|name| self.view.is_broken(Kind::Host, name));
        (all && !unread).then(|| {
            let after = VoterDecision { former: None, since: now, ..before.clone() };
            let why = format!("every lease rests on version {}", before.version);
            self.write(&after, why, now)
        })
    }

    fn tell_keys(&self, before: &VoterDecision, now: Timestamp) -> Option<Action> {
        let mut peers = self.peers();
        // A voter that is spoken to until it is none.
        let former = before.former.iter().flat_map(|former| &former.voters);
        for uid in before.voters.iter().chain(former).chain(&before.fencers) {
            if let (false, Some(peer)) = (peers.contains_key(uid), before.peers.get(uid)) {
                peers.insert(*uid, peer.clone());
            }
        }
        (peers != before.peers).then(|| {
            let after = VoterDecision { peers, ..before.clone() };
            self.write(&after, "a guard is new, or has another key or address".to_owned(), now)
        })
    }

    fn peers(&self) -> BTreeMap<Uuid, Peer> {
        let hosts = self.hosts.iter().map(|(host, peer)| (host.meta.uid, peer.clone()));
        let server = std::iter::once(&self.server.fencer).chain(&self.server.witness).cloned();
        hosts.chain(server).collect()
    }

    fn words(&self, voters: &BTreeSet<Uuid>) -> String {
        let peers = self.peers();
        let name = |uid: &Uuid| peers.get(uid).map_or_else(|| uid.to_string(), |peer| peer.name.clone());
        let names: Vec<_> = voters.iter().map(name).collect();
        format!("leases are granted by {}", names.join(", "))
    }

    fn write(&self, after: &VoterDecision, why: String, now: Timestamp) -> Action {
        let key = Key::decision(Kind::Datacentre, self.name);
        Action::new(now, &key, "voters", why).put(self.view, key, after)
    }
}
