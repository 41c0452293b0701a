//! What tests over many seeds share.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::ops::Range;

use sterna_sim::scenario::Outcome;

/// A number that somebody set for this run.
pub fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Does something with each of these on all processors, in their order.
pub fn in_parallel<T: Sync, R: Send>(what: &[T], run: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let size = what.len().div_ceil(threads).max(1);
    let run = &run;
    std::thread::scope(|scope| {
        let parts: Vec<_> = what
            .chunks(size)
            .map(|part| scope.spawn(move || part.iter().map(run).collect::<Vec<_>>()))
            .collect();
        parts.into_iter().flat_map(|part| part.join().unwrap()).collect()
    })
}

/// Those that went wrong, lowest first.
pub fn failures(seeds: Range<u64>, run: impl Fn(u64) -> Outcome + Sync) -> Vec<(u64, Outcome)> {
    let seeds: Vec<u64> = seeds.collect();
    let failed = in_parallel(&seeds, |seed| {
        let outcome = run(*seed);
        (!outcome.wrong.is_empty()).then_some((*seed, outcome))
    });
    failed.into_iter().flatten().collect()
}

/// The first thing that went wrong in each, of so many.
pub fn firsts(failed: &[(u64, Outcome)], most: usize) -> String {
    let lines = failed.iter().take(most).map(|(seed, outcome)| format!("{seed}: {}", outcome.wrong[0]));
    lines.collect::<Vec<_>>().join("\n")
}

/// The same seed runs the same way twice.
pub fn assert_replays(seeds: Range<u64>, run: impl Fn(u64) -> Outcome) {
    for seed in seeds {
        let (first, second) = (run(seed), run(seed));
        if first.hash != second.hash {
            let differ = first.trace.lines().zip(second.trace.lines()).find(|(a, b)| a != b);
            panic!("seed {seed} ran differently: {differ:?}");
        }
    }
}
