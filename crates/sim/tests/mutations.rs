//! The test of the tests: each defect that is put in on purpose must be caught by the scenario that was written for it.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use sterna_guard::core::mutation::{Mutation as Defect, Mutations};
use sterna_sim::mutation::Mutation;
use sterna_sim::scenario::{Scenario, run};
use sterna_sim::world::Config;

/// Delays differ from seed to seed; a defect need not show in each.
const SEEDS: u64 = 8;

fn scenario(name: &str) -> Scenario {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios").join(name).with_extension("toml");
    toml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn with(mutation: Mutation, seed: u64) -> Config {
    Config { mutation: Some(mutation), ..Config::calm(seed, 2) }
}

#[test]
fn every_mutation_is_caught() {
    let mut missed = Vec::new();
    for (mutation, name) in Mutation::ALL {
        let scenario = scenario(name);
        let wrong = (0..SEEDS).find_map(|seed| run(&scenario, with(mutation, seed)).wrong.into_iter().next());
        println!("{mutation:?} in {name}: {wrong:?}");
        missed.extend(wrong.is_none().then_some(mutation));
    }
    assert!(missed.is_empty(), "not caught: {missed:?}");
}

/// Defects of the guards' core that this world is rough enough for; `tests/lease.rs` catches all of them.
const OF_GUARDS: [(Defect, &str); 4] = [
    (Defect::PromiseForgetsTheWatchdog, "loss/qemu-does-not-die"),
    (Defect::FeedsTheWatchdogAlways, "loss/qemu-does-not-die"),
    (Defect::UnreapedCountsAsGone, "loss/qemu-does-not-die"),
    (Defect::OneVoterIsEnough, "loss/host-is-cut-off"),
];

#[test]
fn defects_of_guards_are_caught() {
    let mut missed = Vec::new();
    for (defect, name) in OF_GUARDS {
        let scenario = scenario(name);
        let config = |seed| Config { guard_defect: Mutations::only(defect), ..Config::calm(seed, 2) };
        let wrong = (0..SEEDS).find_map(|seed| run(&scenario, config(seed)).wrong.into_iter().next());
        println!("{defect:?} in {name}: {wrong:?}");
        missed.extend(wrong.is_none().then_some(defect));
    }
    assert!(missed.is_empty(), "not caught: {missed:?}");
}
