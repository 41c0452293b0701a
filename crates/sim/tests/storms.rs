//! Random seeds: faults and orders at random, each run judged by the checker.
//!
//! `STERNA_SIM_SEEDS=N` runs more of them, `STERNA_SIM_SEED=S` replays one and prints its trace.

#![allow(clippy::unwrap_used)]

mod seeds;

use seeds::{assert_replays, failures, firsts, number};
use sterna_sim::scenario::{Outcome, restored, storm};
use sterna_sim::world::Config;

fn run(seed: u64) -> Outcome {
    storm(Config::calm(seed, 2))
}

#[test]
fn nothing_breaks_in_any_storm() {
    if let Some(seed) = number("STERNA_SIM_SEED") {
        let outcome = run(seed);
        println!("{}", outcome.trace);
        assert!(outcome.wrong.is_empty(), "{:#?}", outcome.wrong);
        return;
    }
    let seeds = number("STERNA_SIM_SEEDS").unwrap_or(2000);
    let failed = failures(0..seeds, run);
    let Some((seed, outcome)) = failed.first() else { return };
    let is_same = run(*seed).hash == outcome.hash && run(*seed).hash == outcome.hash;
    panic!(
        "{} of {seeds} seeds failed:\n{}\n\nseed {seed}: {:#?}\n{}\nsame when run again: {is_same}\nreplay: STERNA_SIM_SEED={seed} cargo test -p sterna-sim --test storms",
        failed.len(),
        firsts(&failed, 30),
        outcome.wrong,
        outcome.tail,
    );
}

#[test]
fn the_same_seed_is_the_same_run() {
    assert_replays(0..40, run);
}

/// A store that is older than what happened since: whatever that was, every VM is what it was, once.
///
/// `STERNA_SIM_RESTORE_SEED=S` replays one.
#[test]
fn a_restored_store_breaks_nothing_in_any_storm() {
    let run = |seed| restored(Config::calm(seed, 2));
    if let Some(seed) = number("STERNA_SIM_RESTORE_SEED") {
        let outcome = run(seed);
        println!("{}", outcome.trace);
        assert!(outcome.wrong.is_empty(), "{:#?}", outcome.wrong);
        return;
    }
    let seeds = number("STERNA_SIM_SEEDS").unwrap_or(600);
    let failed = failures(0..seeds, run);
    assert!(failed.is_empty(), "{} of {seeds} seeds failed:\n{}", failed.len(), firsts(&failed, 30));
}
