//! What a host's silence leads to, and what ends it.
//!
//! Reads: what the fencer hears from voters (`control/fencer`), a person's word. Decides: a host's way from Up to Fenced.
//! Never moves a VM (`recover`), and never rests on the silence of an agent: only voters and people count.

use std::collections::BTreeMap;
use std::time::Duration;

use sterna_base::clock::Timestamp;
use sterna_model::ha::{Fenced, HaState, HostDecision, Profile, Proof, VoterDecision};
use sterna_model::key::{Key, Kind};
use sterna_model::meta::Name;

use crate::action::Action;
use crate::ha::lease::voters_of;
use crate::view::{Host, View};

/// Hosts that fall silent within this of each other do so together.
const TOGETHER: Duration = Duration::from_secs(60);
/// Lost so often within an hour, it is not trusted for two.
const LOSSES_MAX: usize = 3;
const LOSSES_WITHIN: Duration = Duration::from_secs(3600);
const QUARANTINE: Duration = Duration::from_secs(2 * 3600);

/// What the voters of its datacentre say of a host, as the fencer has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sight {
    /// Of the host, that this is about.
    pub epoch: u64,
    pub heard: Heard,
    /// Complete, and by the voters of the configuration that it names.
    pub proof: Option<Proof>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// Too few voters have answered.
    Unknown,
    /// Some voter has heard a renewal of this epoch of late.
    Alive,
    /// Two voters have heard none, and nobody has.
    Silent {
        /// By the fencer's own clock, which also passes while the machine sleeps.
        for_so_long: Duration,
        /// A renewal of this epoch was heard before.
        was_alive: bool,
    },
}

pub type Sights = BTreeMap<Name, Sight>;

#[must_use]
pub fn plan(view: &View, sights: &Sights, now: Timestamp) -> Vec<Action> {
    let hosts = view.hosts().filter_map(|host| Some((sights.get(host.name)?, host)));
    hosts
        .filter(|(sight, host)| sight.epoch == host.epoch())
        .filter_map(|(sight, host)| step(view, &host, sight, now))
        .collect()
}

fn step(view: &View, host: &Host<'_>, sight: &Sight, now: Timestamp) -> Option<Action> {
    let before = host.decision?;
    let lease = voters_of(view, host).map_or(Profile::default(), |row| longest(row));
    match (before.state, sight.heard) {
        (HaState::Up, Heard::Silent { for_so_long, was_alive }) => {
            // Its first lease may take as long as a lease lasts.
            let is_due = was_alive || for_so_long >= first_lease(lease);
            let after = HostDecision {
                state: HaState::Suspect,
                since: now,
                silent_since: Some(now),
                ..before.clone()
            };
            is_due
                .then(|| change(view, host, &after, ("suspect", "two voters do not hear it".to_owned()), now))
        }
        (HaState::Suspect, Heard::Alive) => {
            let after = HostDecision { state: HaState::Up, since: now, silent_since: None, ..before.clone() };
            Some(change(view, host, &after, ("heard", "a voter hears it again".to_owned()), now))
        }
        (HaState::Suspect, Heard::Silent { for_so_long, .. }) => {
            let is_due = for_so_long >= suspected_for(lease) && brake(view, host).is_none();
            let after = HostDecision { state: HaState::Fencing, since: now, ..before.clone() };
            let why = format!("no voter has heard it; epoch {} is never renewed again", before.epoch);
            is_due.then(|| change(view, host, &after, ("fencing", why), now))
        }
        (HaState::Fencing, _) => fenced(view, host, before, sight.proof.as_ref()?, now),
        _ => None,
    }
}

/// Suspected for so long until it is fenced: until the lease has run out without us. As long as it lasts a renewal may come,
/// and a fence would end VMs of a host that a short cut has not; once it is over nothing is lost by the fence. Nor is time:
/// the proof waits for the watchdog as well.
#[must_use]
pub fn suspected_for(profile: Profile) -> Duration {
    let (renew, lease) = spans(profile);
    // Silence begins when one and a half renewals were missed.
    lease.saturating_sub(renew * 3 / 2)
}

/// While the profile changes a host renews by either.
fn longest(voters: &VoterDecision) -> Profile {
    let former = voters.former.iter().map(|former| former.profile);
    former.chain([voters.profile]).max_by_key(|profile| spans(*profile)).unwrap_or_default()
}

/// As long as a lease of the profile, and a second more.
fn first_lease(profile: Profile) -> Duration {
    spans(profile).1 + Duration::from_secs(1)
}

/// Between two renewals, and of the lease that each is for.
fn spans(profile: Profile) -> (Duration, Duration) {
    let (renew, lease) = match profile {
        Profile::Fast => (500, 2_000),
        Profile::Quick => (1_000, 4_000),
        Profile::Standard => (1_000, 10_000),
        Profile::Patient => (5_000, 20_000),
    };
    (Duration::from_millis(renew), Duration::from_millis(lease))
}

fn fenced(
    view: &View,
    host: &Host<'_>,
    before: &HostDecision,
    proof: &Proof,
    now: Timestamp,
) -> Option<Action> {
    let Proof::F3 { configuration, acks, .. } = proof else { return None };
    let voters = voters_of(view, host)?;
    // Collected from other voters: worth nothing.
    if *configuration != voters.version {
        return None;
    }
    let why = format!(
        "{} of {} voters say that lease and watchdog of epoch {} have run out",
        acks.len(),
        voters.voters.len(),
        before.epoch
    );
    let after = end(view, host, before, proof.clone(), now);
    let action = change(view, host, &after, ("fenced", why), now);
    Some(action.compare(view, Key::decision(Kind::Datacentre, &host.spec.datacentre)))
}

/// A person's word, and its end when the host is back.
#[must_use]
pub fn plan_confirmed(view: &View, now: Timestamp) -> Vec<Action> {
    view.hosts().filter_map(|host| confirm(view, &host, now).or_else(|| is_back(view, &host, now))).collect()
}

fn confirm(view: &View, host: &Host<'_>, now: Timestamp) -> Option<Action> {
    let word = host.spec.confirmed_dead.as_ref().filter(|word| word.epoch == host.epoch())?;
    // It was back in between: somebody would have to look again.
    if word.silent_since != host.report.map(|report| report.since) {
        return None;
    }
    let before = host.decision.cloned().unwrap_or_default();
    let is_known = before.state == HaState::Fenced
        && before
            .fenced
            .as_ref()
            .is_some_and(|known| known.epoch == word.epoch && matches!(known.proof, Proof::F5 { .. }));
    if is_known || host.is_connected() {
        return None;
    }
    let after = end(view, host, &before, Proof::F5 { by: word.by.clone() }, now);
    let why = format!("{} looked and says that it is dead", word.by);
    let action = change(view, host, &after, ("fenced", why), now);
    Some(
        action
            .compare(view, Key::spec(Kind::Host, host.name))
            .compare(view, Key::report(Kind::Host, host.name)),
    )
}

/// A person's word is for what was there before the host came back, and for nothing since.
fn is_back(view: &View, host: &Host<'_>, now: Timestamp) -> Option<Action> {
    let before = host.decision.filter(|decision| decision.state == HaState::Fenced)?;
    let by_person = before.fenced.as_ref().is_some_and(|known| matches!(known.proof, Proof::F5 { .. }));
    if !by_person || !host.is_connected() {
        return None;
    }
    let after = HostDecision { epoch: before.epoch + 1, state: HaState::Left, since: now, ..before.clone() };
    let action = change(view, host, &after, ("back", "it is connected again".to_owned()), now);
    Some(action.compare(view, Key::report(Kind::Host, host.name)))
}

/// The decision once it is proven that this epoch is over.
pub(super) fn end(
    view: &View,
    host: &Host<'_>,
    before: &HostDecision,
    proof: Proof,
    now: Timestamp,
) -> HostDecision {
    let mut fenced_at: Vec<_> =
        before.fenced_at.iter().copied().filter(|at| now.since(*at) < LOSSES_WITHIN).collect();
    if view.index.load(host.name).owned > 0 {
        fenced_at.push(now);
    }
    let is_unsteady = fenced_at.len() >= LOSSES_MAX && may_quarantine(view, host);
    if fenced_at.len() > LOSSES_MAX {
        fenced_at.remove(0);
    }
    HostDecision {
        state: HaState::Fenced,
        since: now,
        fenced: Some(Fenced { epoch: before.epoch, proof, at: now }),
        fenced_at,
        quarantined_until: if is_unsteady { Some(now + QUARANTINE) } else { before.quarantined_until },
        ..before.clone()
    }
}

/// At most a quarter of a datacentre's hosts: the others have to carry it.
fn may_quarantine(view: &View, host: &Host<'_>) -> bool {
    let inside = || view.hosts().filter(|other| other.spec.datacentre == host.spec.datacentre);
    let are = inside().filter(|other| other.decision.is_some_and(|it| it.quarantined_until.is_some()));
    (are.count() + 1) * 4 <= inside().count()
}

/// Why nothing may follow from the voters' silence about this host alone: too many fell silent together.
#[must_use]
pub fn brake(view: &View, host: &Host<'_>) -> Option<String> {
    let since = host.decision?.silent_since?;
    let inside = || view.hosts().filter(|other| other.spec.datacentre == host.spec.datacentre);
    let together = inside().filter(|other| {
        let Some(decision) = other.decision else { return false };
        let is_lost = matches!(decision.state, HaState::Suspect | HaState::Fencing | HaState::Fenced);
        let apart = |at: Timestamp| now_apart(at, since);
        is_lost && decision.silent_since.is_some_and(|at| apart(at) < TOGETHER)
    });
    let (lost, all) = (together.count(), inside().count());
    let most = (all * 3 / 10).max(2);
    (lost > most).then(|| {
        format!(
            "{lost} of {all} hosts of datacentre {} fell silent together: it may be the network. `sterna host confirm-dead {}` \
             once somebody has looked",
            host.spec.datacentre, host.name
        )
    })
}

fn now_apart(one: Timestamp, other: Timestamp) -> Duration {
    one.since(other).max(other.since(one))
}

pub(super) fn change(
    view: &View,
    host: &Host<'_>,
    after: &HostDecision,
    (what, why): (&str, String),
    now: Timestamp,
) -> Action {
    let key = Key::decision(Kind::Host, host.name);
    Action::new(now, &key, what, why).put(view, key, after)
}
