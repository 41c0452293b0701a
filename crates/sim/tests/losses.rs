//! Storms in which hosts are lost, each run judged by the checker.
//!
//! `STERNA_SIM_SEEDS=N` runs more of them, `STERNA_SIM_SEED=S` replays one and prints its trace.

#![allow(clippy::unwrap_used)]

use sterna_sim::gale::gale;
use sterna_sim::scenario::Outcome;
use sterna_sim::world::Config;

/// Of a test run that is not told how many: about a minute on two processors.
const SEEDS: u64 = 300;

fn run(seed: u64) -> Outcome {
    gale(Config::calm(seed, 3))
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Those that went wrong, lowest first.
fn failures(seeds: std::ops::Range<u64>) -> Vec<(u64, Outcome)> {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let mut failed: Vec<_> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|worker| {
                let mine = seeds.clone().filter(move |seed| seed % threads == worker);
                scope.spawn(move || {
                    let outcomes = mine.map(|seed| (seed, run(seed)));
                    outcomes.filter(|(_, outcome)| !outcome.wrong.is_empty()).collect::<Vec<_>>()
                })
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    failed.sort_by_key(|(seed, _)| *seed);
    failed
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
    let failed = failures(first..first + seeds);
    let Some((seed, outcome)) = failed.first() else { return };
    let all: Vec<_> = failed.iter().map(|(seed, outcome)| format!("{seed}: {}", outcome.wrong[0])).collect();
    panic!(
        "{} of {seeds} seeds failed:\n{}\n\nseed {seed}: {:#?}\n{}\nreplay: STERNA_SIM_SEED={seed} cargo test -p \
         sterna-sim --test losses",
        failed.len(),
        all[..all.len().min(40)].join("\n"),
        outcome.wrong,
        outcome.tail,
    );
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..8 {
        let (first, second) = (run(seed), run(seed));
        if first.hash != second.hash {
            let differ = first.trace.lines().zip(second.trace.lines()).find(|(a, b)| a != b);
            panic!("seed {seed} ran differently: {differ:?}");
        }
    }
}
