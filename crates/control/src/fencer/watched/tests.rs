//! One host between Up and a proof.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;

use sterna_base::clock::Timestamp;
use sterna_model::ha::{FormerVoters, Profile as Named};

use super::*;

const HOST: Uuid = Uuid::from_u128(1);
const SECOND: u64 = 1_000_000_000;

fn at(seconds: u64) -> BootInstant {
    BootInstant(seconds * SECOND)
}

fn uids(numbers: &[u128]) -> BTreeSet<Uuid> {
    numbers.iter().copied().map(Uuid::from_u128).collect()
}

fn voters(version: u64, current: &[u128], former: Option<&[u128]>) -> VoterDecision {
    VoterDecision {
        version,
        voters: uids(current),
        fencers: BTreeSet::new(),
        profile: Named::Quick,
        former: former.map(|it| FormerVoters { voters: uids(it), profile: Named::Quick }),
        peers: Default::default(),
        since: Timestamp::default(),
    }
}

fn host(state: HaState) -> HostDecision {
    HostDecision { epoch: 3, state, ..HostDecision::default() }
}

fn watched() -> Watched {
    Watched::of(Name::new("dc").unwrap(), HOST, Profile::QUICK)
}

fn voter(number: u128) -> HostId {
    HostId(Uuid::from_u128(number))
}

/// It last heard the host so long ago.
fn heard(watched: &mut Watched, from: u128, age: u64, now: BootInstant) -> bool {
    let age = Duration::from_secs(age);
    let said = Message::LastSeen { host: watched.id, tau: now, epoch: Epoch(3), age };
    watched.on_message(voter(from), &said, now)
}

/// Asks every voter, of whom these answer.
fn ask(watched: &mut Watched, answering: &[u128], now: BootInstant) -> (BTreeSet<HostId>, bool) {
    let asked = watched.fence_if_due(now);
    let mut is_proven = false;
    for (to, question) in &asked {
        let Message::Fence { host, epoch, tau } = *question else { panic!("{question:?}") };
        if answering.iter().any(|it| voter(*it) == *to) {
            is_proven |= watched.on_message(*to, &Message::FenceAck { host, epoch, tau }, now);
        }
    }
    (asked.into_iter().map(|(to, _)| to).collect(), is_proven)
}

#[test]
fn two_voters_have_to_miss_a_host_and_one_that_hears_it_is_enough() {
    let mut watched = watched();
    watched.learn(HOST, &host(HaState::Up), &voters(1, &[1, 2, 3], None), at(0));
    heard(&mut watched, 2, 0, at(10));
    assert_eq!(watched.sight(at(10)).heard, Heard::Alive);
    heard(&mut watched, 2, 5, at(15));
    assert_eq!(watched.sight(at(15)).heard, Heard::Unknown, "one alone may be the one that is cut off");
    assert!(heard(&mut watched, 3, 5, at(15)), "something may follow from it");
    heard(&mut watched, 2, 7, at(17));
    heard(&mut watched, 3, 7, at(17));
    let silent = Heard::Silent { for_so_long: Duration::from_secs(2), was_alive: true };
    assert_eq!(watched.sight(at(17)).heard, silent);
    assert!(heard(&mut watched, 3, 0, at(18)));
    assert_eq!(watched.sight(at(18)).heard, Heard::Alive);
}

#[test]
fn nobody_is_asked_for_a_fence_before_the_store_says_so() {
    let mut watched = watched();
    for state in [HaState::Left, HaState::Up, HaState::Suspect, HaState::Fenced] {
        watched.learn(HOST, &host(state), &voters(1, &[1, 2, 3], None), at(1));
        assert!(watched.fence_if_due(at(1)).is_empty(), "{state:?}");
    }
}

#[test]
fn while_voters_change_a_proof_takes_a_majority_of_both() {
    let mut watched = watched();
    let joint = voters(2, &[2, 3, 4], Some(&[1, 2, 3]));
    watched.learn(HOST, &host(HaState::Fencing), &joint, at(0));
    let (asked, is_proven) = ask(&mut watched, &[3, 4], at(1));
    assert_eq!(asked.len(), 4);
    assert!(!is_proven, "3 and 4 are a majority of the new alone");
    let (_, is_proven) = ask(&mut watched, &[2, 3], at(2));
    assert!(is_proven);
    let Some(Proof::F3 { configuration, acks, .. }) = watched.sight(at(2)).proof else { panic!() };
    assert_eq!((configuration, acks.len()), (2, 3), "4 said so a moment ago");
    assert!(watched.fence_if_due(at(3)).is_empty(), "it is proven");
    // Another version: it has to be proven anew.
    watched.learn(HOST, &host(HaState::Fencing), &voters(3, &[2, 3, 4], None), at(3));
    assert_eq!(watched.sight(at(3)).proof, None);
}

#[test]
fn nothing_that_was_heard_of_one_epoch_counts_for_the_next() {
    let mut watched = watched();
    let known = voters(1, &[1, 2, 3], None);
    watched.learn(HOST, &host(HaState::Fencing), &known, at(0));
    ask(&mut watched, &[2, 3], at(1));
    assert!(watched.sight(at(1)).proof.is_some());
    let next = HostDecision { epoch: 4, ..host(HaState::Up) };
    watched.learn(HOST, &next, &known, at(2));
    let sight = watched.sight(at(2));
    assert_eq!((sight.epoch, sight.heard, sight.proof), (4, Heard::Unknown, None));
}

#[test]
fn a_host_is_fenced_after_its_lease_and_before_the_promises_are_over() {
    for named in [Named::Fast, Named::Quick, Named::Standard, Named::Patient] {
        let profile = Profile::named(named.as_str()).unwrap();
        let silent = profile.suspect_after() + sterna_plan::ha::fence::suspected_for(named);
        assert!(profile.lease <= silent && silent < profile.promise(), "{named:?}: {silent:?}");
    }
}
