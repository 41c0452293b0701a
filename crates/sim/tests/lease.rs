//! The lease protocol under drawn and aimed faults, and the test of that test: every defect of the core is caught.
//!
//! `STERNA_LEASE_SEEDS=N` runs so many seeds of the storm, `STERNA_LEASE_SEED=S` replays one with its trace (of another
//! script with `STERNA_LEASE_SCRIPT=StaleFenceAcks`), `STERNA_NIGHTLY=1` runs 200,000.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use sterna_guard::core::mutation::{Mutation, Mutations};
use sterna_sim::lease::plan::Script;
use sterna_sim::lease::{Outcome, replay, run};

/// A minute on one core in the development profile.
const SEEDS: u64 = 20_000;
const SEEDS_NIGHTLY: u64 = 200_000;
/// A defect may take so many to show.
const MUTATION_SEEDS: u64 = 2000;
const AIMED_SEEDS: u64 = 100;

const CAUGHT_BY: [(Mutation, Script); 13] = [
    (Mutation::DeadlineFromReceiveTime, Script::SlowAcks),
    (Mutation::NoVoterQuarantine, Script::ForgetfulVoter),
    (Mutation::PromiseForgetsTheWatchdog, Script::HungVm),
    (Mutation::StartsUnderAnyEpoch, Script::LateOrders),
    (Mutation::FeedsTheWatchdogAlways, Script::HungVm),
    (Mutation::OneVoterIsEnough, Script::PartialCuts),
    (Mutation::LateAckRevives, Script::AcksAtTheDeadline),
    (Mutation::FencedIsForgotten, Script::ChangingSides),
    (Mutation::CandidateLivesForEver, Script::NeverLeased),
    (Mutation::StaleFenceAcksCount, Script::StaleFenceAcks),
    (Mutation::UnreapedCountsAsGone, Script::HungVm),
    (Mutation::StartUnderWayIsIgnored, Script::SlowStarts),
    (Mutation::NoJointChange, Script::NewVoters),
];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn script() -> Script {
    let name = std::env::var("STERNA_LEASE_SCRIPT").unwrap_or_else(|_| "Storm".to_owned());
    let known = [Script::WrongClocks, Script::DeadWatchdogs].into_iter().chain(Script::SOUND);
    known.into_iter().find(|script| format!("{script:?}") == name).unwrap()
}

fn seeds() -> u64 {
    let nightly = std::env::var_os("STERNA_NIGHTLY").map(|_| SEEDS_NIGHTLY);
    number("STERNA_LEASE_SEEDS").or(nightly).unwrap_or(SEEDS)
}

fn mutation_seeds() -> u64 {
    number("STERNA_LEASE_SEEDS").unwrap_or(MUTATION_SEEDS).min(MUTATION_SEEDS)
}

/// The lowest seed that is unsafe, and what was.
fn first_unsafe(script: Script, mutations: Mutations) -> Option<(u64, String)> {
    (0..mutation_seeds()).find_map(|seed| {
        let outcome = run(script, seed, mutations);
        Some((seed, outcome.wrong.filter(|_| outcome.is_unsafe)?))
    })
}

fn fail(script: Script, seed: u64) -> ! {
    let (outcome, tail) = replay(script, seed, Mutations::default(), 80);
    panic!(
        "{script:?}, seed {seed}: {}\n{tail}\nreplay: STERNA_LEASE_SCRIPT={script:?} STERNA_LEASE_SEED={seed} cargo \
         test -p sterna-sim --test lease storm -- --nocapture",
        outcome.wrong.unwrap_or_default()
    );
}

fn print_rate(script: Script, outcomes: &[Outcome], took: Duration) {
    let events: u64 = outcomes.iter().map(|outcome| outcome.events).sum();
    let hours = outcomes.iter().map(|outcome| outcome.simulated_ms).sum::<u64>() as f64 / 3_600_000.0;
    let rate = outcomes.len() as f64 / took.as_secs_f64();
    println!(
        "{script:?}: {} seeds, {rate:.0} a second, {events} events, {hours:.1} simulated hours",
        outcomes.len()
    );
}

#[test]
fn no_storm_of_faults_makes_two_copies_run_or_leaves_a_vm_behind() {
    let script = script();
    if let Some(seed) = number("STERNA_LEASE_SEED") {
        let (outcome, trace) = replay(script, seed, Mutations::default(), usize::MAX);
        println!("{trace}");
        assert_eq!(outcome.wrong, None);
        return;
    }
    let began = Instant::now();
    let outcomes: Vec<_> = (0..seeds())
        .map(|seed| {
            let outcome = run(script, seed, Mutations::default());
            if outcome.wrong.is_some() {
                fail(script, seed);
            }
            outcome
        })
        .collect();
    print_rate(script, &outcomes, began.elapsed());
}

#[test]
fn nothing_goes_wrong_under_the_faults_that_catch_defects() {
    for script in Script::SOUND {
        let wrong = (0..seeds().min(AIMED_SEEDS))
            .find(|seed| run(script, *seed, Mutations::default()).wrong.is_some());
        if let Some(seed) = wrong {
            fail(script, seed);
        }
    }
}

#[test]
fn every_mutation_is_caught() {
    assert_eq!(CAUGHT_BY.map(|(mutation, _)| mutation), Mutation::ALL);
    let mut missed = Vec::new();
    for (mutation, script) in CAUGHT_BY {
        let caught = first_unsafe(script, Mutations::only(mutation));
        println!("{mutation:?} under {script:?}: {caught:?}");
        missed.extend(caught.is_none().then_some(mutation));
    }
    assert!(missed.is_empty(), "not caught: {missed:?}");
}

#[test]
fn what_the_assumptions_exclude_goes_wrong() {
    for script in [Script::WrongClocks, Script::DeadWatchdogs] {
        let wrong = first_unsafe(script, Mutations::default());
        println!("{script:?}: {wrong:?}");
        assert!(wrong.is_some(), "{script:?}");
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..20 {
        let runs = [(); 2].map(|()| run(Script::Storm, seed, Mutations::default()).hash);
        let read = replay(Script::Storm, seed, Mutations::default(), 1).0.hash;
        assert_eq!(runs, [read; 2], "seed {seed}");
    }
    assert_ne!(
        run(Script::Storm, 0, Mutations::default()).hash,
        run(Script::Storm, 1, Mutations::default()).hash
    );
}
