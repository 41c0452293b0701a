//! Either host of a move is lost, in every way, at every instant of it: the guest runs, once, and it is known where.

#![allow(clippy::unwrap_used)]

mod seeds;

use seeds::{in_parallel, number};
use sterna_sim::scenario::{Scenario, run};
use sterna_sim::world::Config;

/// Every instant that a move without trouble goes through.
const MOMENTS: [&str; 19] = [
    "web-1 is preparing",
    "b: noted the epoch",
    "b: spawned",
    "b: listens",
    "b: noted listening",
    "web-1 is copying",
    "a: noted sending",
    "a: copies",
    "a: stands still",
    "b: has everything",
    "a: completed",
    "b: completed",
    "a: noted released",
    "b: noted loaded",
    "web-1 is resuming",
    "b: noted continued",
    "b: runs",
    "web-1 is finishing",
    "a: killed",
];

const DEEDS: [&str; 10] = [
    "power off a",
    "power off b",
    "reboot a",
    "reboot b",
    "cut net a",
    "cut net b",
    "cut out b",
    "freeze a 30000",
    "freeze b 30000",
    "kill guard b",
];

/// How often the instant came, and what went wrong.
fn disturb(moment: &str, seeds: u64) -> (usize, Vec<String>) {
    let (mut came, mut failed) = (0, Vec::new());
    for deed in DEEDS {
        for seed in 0..seeds {
            let mut config = Config::calm(seed, 3);
            config.takes_disks_early = seed % 2 == 1;
            let outcome = run(&Scenario::lost(moment, deed), config);
            came += usize::from(outcome.missed.is_empty());
            if !outcome.wrong.is_empty() {
                failed.push(format!("{deed} when {moment} (seed {seed}): {:?}", outcome.wrong));
            }
        }
    }
    (came, failed)
}

#[test]
fn one_copy_runs_whichever_host_is_lost_at_any_instant_of_a_move() {
    let seeds = number("STERNA_SIM_SEEDS").unwrap_or(1);
    let results = in_parallel(&MOMENTS, |moment| disturb(moment, seeds));
    let never: Vec<_> = MOMENTS.iter().zip(&results).filter(|(_, (came, _))| *came == 0).collect();
    assert!(never.is_empty(), "never came: {never:?}");
    let failed: Vec<_> = results.into_iter().flat_map(|(_, failed)| failed).collect();
    assert!(failed.is_empty(), "{} failed\n{}", failed.len(), failed.join("\n"));
}
