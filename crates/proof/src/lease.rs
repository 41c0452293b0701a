//! The lease protocol, searched whole: host A with a guard and a VM, and two more voters, one of them on the host that takes
//! over (`docs/flows/host-lease.md`).
//!
//! Real: the guards (lease, VMs, voter), the fencer, their pages. Small: time, which passes in ticks of a fifth of a promise;
//! within a tick guards are stepped at every instant that they ask for, while messages, faults and orders come at ticks. Host
//! B starts the VM in the very instant that there is a proof: no real host would be that quick. All clocks run alike; what
//! rates do is the simulation's (`sterna-sim`).

mod bounds;
mod model;
mod world;

use std::num::NonZeroUsize;
use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model};
use sterna_guard::core::mutation::{Mutation, Mutations};

use bounds::Bounds;
use model::LeaseModel;

/// States of one search and the names of what was found.
struct Found {
    states: usize,
    wrong: Option<String>,
    missing: Vec<&'static str>,
}

fn search(bounds: Bounds, mutations: Mutations, until: HasDiscoveries) -> Found {
    let began = Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let checker =
        LeaseModel { bounds, mutations }.checker().threads(threads).finish_when(until).spawn_bfs().join();
    let wrong = model::SAFE.iter().find_map(|name| {
        let path = checker.discovery(name)?;
        let steps = path.into_actions();
        Some(format!("{name}, after {} steps: {steps:?}", steps.len()))
    });
    let missing = model::POSSIBLE.iter().copied().filter(|name| checker.discovery(name).is_none()).collect();
    let states = checker.unique_state_count();
    println!("{}: {states} states in {:.1} s", bounds.name, began.elapsed().as_secs_f64());
    Found { states, wrong, missing }
}

fn hold(all: &[Bounds]) {
    let mut possible = Vec::from(model::POSSIBLE);
    for bounds in all {
        let found = search(*bounds, Mutations::default(), HasDiscoveries::AllFailures);
        assert_eq!(found.wrong, None, "{}", bounds.name);
        assert!(found.states > 1000, "{}: a world of {} states", bounds.name, found.states);
        possible.retain(|name| found.missing.contains(name));
    }
    assert!(possible.is_empty(), "never happened under any bounds: {possible:?}");
}

#[test]
fn no_order_of_events_makes_two_copies_run() {
    hold(&bounds::ALL);
}

#[test]
#[ignore = "hours: bounds for the night"]
fn no_order_of_events_makes_two_copies_run_nightly() {
    hold(&bounds::NIGHTLY);
}

/// Each line of the proof is needed: without it there is an order of events that makes two copies run.
#[test]
fn every_mutation_is_caught() {
    assert_eq!(bounds::CAUGHT_BY.map(|(mutation, _)| mutation), Mutation::ALL);
    let mut missed = Vec::new();
    for (mutation, bounds) in bounds::CAUGHT_BY {
        let found = search(bounds, Mutations::only(mutation), HasDiscoveries::AnyFailures);
        println!("{mutation:?} under {}: {:?}", bounds.name, found.wrong);
        missed.extend(found.wrong.is_none().then_some(mutation));
    }
    assert!(missed.is_empty(), "not caught: {missed:?}");
}
