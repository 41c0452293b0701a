//! Random seeds: faults and orders at random, each run judged by the checker.
//!
//! `STERNA_SIM_SEEDS=N` runs more of them, `STERNA_SIM_SEED=S` replays one and prints its trace.

use sterna_sim::scenario::{Outcome, restored, storm};
use sterna_sim::world::Config;

fn run(seed: u64) -> Outcome {
    storm(Config::calm(seed, 2))
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs seeds on all processors; answers those that went wrong, lowest first.
fn failures(seeds: u64) -> Vec<(u64, Outcome)> {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let mut failed: Vec<_> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|worker| {
                scope.spawn(move || {
                    let mine = (0..seeds).filter(move |seed| seed % threads == worker);
                    mine.map(|seed| (seed, run(seed)))
                        .filter(|(_, outcome)| !outcome.wrong.is_empty())
                        .collect()
                })
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap_or_else(|_| Vec::new())).collect()
    });
    failed.sort_by_key(|(seed, _)| *seed);
    failed
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
    let failed = failures(seeds);
    let Some((seed, outcome)) = failed.first() else { return };
    let all: Vec<_> = failed.iter().map(|(seed, outcome)| format!("{seed}: {}", outcome.wrong[0])).collect();
    let is_same = run(*seed).hash == outcome.hash && run(*seed).hash == outcome.hash;
    panic!(
        "{} of {seeds} seeds failed:\n{}\n\nseed {seed}: {:#?}\n{}\nsame when run again: {is_same}\nreplay: STERNA_SIM_SEED={seed} cargo test -p sterna-sim --test storms",
        failed.len(),
        all[..all.len().min(30)].join("\n"),
        outcome.wrong,
        outcome.tail,
    );
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..40 {
        let (first, second) = (run(seed), run(seed));
        if first.hash != second.hash {
            let differ = first.trace.lines().zip(second.trace.lines()).find(|(a, b)| a != b);
            panic!("seed {seed} ran differently: {differ:?}");
        }
    }
}

/// A store that is older than what happened since: whatever that was, every VM is what it was, once.
///
/// `STERNA_SIM_RESTORE_SEED=S` replays one.
#[test]
fn a_restored_store_breaks_nothing_in_any_storm() {
    if let Some(seed) = number("STERNA_SIM_RESTORE_SEED") {
        let outcome = restored(Config::calm(seed, 2));
        println!("{}", outcome.trace);
        assert!(outcome.wrong.is_empty(), "{:#?}", outcome.wrong);
        return;
    }
    let seeds = number("STERNA_SIM_SEEDS").unwrap_or(600);
    let mut failed = Vec::new();
    for seed in 0..seeds {
        let outcome = restored(Config::calm(seed, 2));
        failed.extend(outcome.wrong.first().map(|wrong| format!("{seed}: {wrong}")));
    }
    assert!(
        failed.is_empty(),
        "{} of {seeds} seeds failed:\n{}",
        failed.len(),
        failed[..failed.len().min(30)].join("\n")
    );
}
