//! Storms in which hosts are lost, each run judged by the checker.
//!
//! `STERNA_SIM_SEEDS=N` runs more of them, `STERNA_SIM_SEED=S` replays one and prints its trace.

#![allow(clippy::unwrap_used)]

mod seeds;

use seeds::{assert_replays, failures, firsts, number};
use sterna_sim::gale::gale;
use sterna_sim::scenario::Outcome;
use sterna_sim::world::Config;

/// Of a test run that is not told how many: about a minute on two processors.
const SEEDS: u64 = 300;

fn run(seed: u64) -> Outcome {
    gale(Config::calm(seed, 3))
}

#[test]
fn no_loss_of_hosts_makes_two_copies_run_or_leaves_a_vm_behind() {
    if let Some(seed) = number("STERNA_SIM_SEED") {
        let outcome = run(seed);
        println!("{}", outcome.trace);
        assert!(outcome.wrong.is_empty(), "{:#?}", outcome.wrong);
        return;
    }
    let first = number("STERNA_SIM_FROM").unwrap_or(0);
    let seeds = number("STERNA_SIM_SEEDS").unwrap_or(SEEDS);
    let failed = failures(first..first + seeds, run);
    let Some((seed, outcome)) = failed.first() else { return };
    panic!(
        "{} of {seeds} seeds failed:\n{}\n\nseed {seed}: {:#?}\n{}\nreplay: STERNA_SIM_SEED={seed} cargo test -p \
         sterna-sim --test losses",
        failed.len(),
        firsts(&failed, 40),
        outcome.wrong,
        outcome.tail,
    );
}

#[test]
fn the_same_seed_is_the_same_run() {
    assert_replays(0..8, run);
}
