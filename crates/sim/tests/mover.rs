//! Moves through the mover: everything done at every instant of one, and a campaign of moves under drawn faults.
//!
//! `STERNA_SIM_SEEDS=N` makes the campaign longer, `STERNA_SIM_SEED=S` replays one of its runs and prints the trace.

#![allow(clippy::unwrap_used)]

mod seeds;

use seeds::{in_parallel, number};
use sterna_sim::campaign::{Injected, march};
use sterna_sim::scenario::{Outcome, Scenario, run};
use sterna_sim::site::Layout;
use sterna_sim::world::Config;

/// Every instant that such a move goes through without trouble.
const MOMENTS: [&str; 23] = [
    "web-1 is preparing",
    "b: noted the epoch",
    "b: spawned",
    "b: listens",
    "b: noted listening",
    "web-1 is copying",
    "a: noted sending",
    "a: sends",
    "a: copies",
    "a: stands still",
    "a: holds the end",
    "a: frozen",
    "a: noted released",
    "a: granted",
    "b: has the end",
    "b: completed",
    "b: noted loaded",
    "web-1 is resuming",
    "b: noted continued",
    "b: runs",
    "web-1 is finishing",
    "a: killed",
    "web-1 is succeeded",
];

const DEEDS: [&str; 13] = [
    "kill server",
    "kill agent a",
    "kill agent b",
    "kill shim a",
    "kill shim b",
    "kill qemu a",
    "kill qemu b",
    "reboot a",
    "reboot b",
    "cut line a",
    "cut line b",
    "cut data a",
    "cut data b",
];

/// To another datacentre; inside one, with its volume; both.
const LAYOUTS: [Layout; 3] = [
    Layout { is_far: true, is_local: false },
    Layout { is_far: false, is_local: true },
    Layout { is_far: true, is_local: true },
];

/// How often the instant came, and what went wrong.
fn disturb(moment: &str) -> (usize, Vec<String>) {
    let (mut came, mut failed) = (0, Vec::new());
    for deed in DEEDS {
        for (seed, layout) in (0..).zip(LAYOUTS) {
            let outcome = run(&Scenario::disturbed(layout, moment, deed), Config::calm(seed, 2));
            came += usize::from(outcome.missed.is_empty());
            if !outcome.wrong.is_empty() {
                failed.push(format!("{deed} when {moment} (seed {seed}): {:?}", outcome.wrong));
            }
        }
    }
    (came, failed)
}

#[test]
fn one_copy_runs_whatever_is_done_at_any_instant_of_a_carried_move() {
    let results = in_parallel(&MOMENTS, |moment| disturb(moment));
    let never: Vec<_> = MOMENTS.iter().zip(&results).filter(|(_, (came, _))| *came == 0).collect();
    assert!(never.is_empty(), "never came: {never:?}");
    let failed: Vec<_> = results.into_iter().flat_map(|(_, failed)| failed).collect();
    assert!(failed.is_empty(), "{} failed\n{}", failed.len(), failed.join("\n"));
}

fn campaign(seed: u64) -> Outcome {
    march(Config::calm(seed, 2))
}

/// A line for each fault, with how often it hit each phase.
fn table(injected: &Injected) -> String {
    let mut lines: std::collections::BTreeMap<&str, Vec<String>> = Default::default();
    for ((what, phase), count) in injected {
        lines.entry(what).or_default().push(format!("{phase} {count}"));
    }
    let lines = lines.iter().map(|(what, phases)| format!("{what}: {}", phases.join(", ")));
    lines.collect::<Vec<_>>().join("\n")
}

/// Runs of a campaign that is not told how many. Each puts three faults into moves, give or take: the rest fall beside them.
const SEEDS: u64 = 350;
/// Faults that such a campaign must have put into moves at least, whatever was drawn.
const FAULTS: u32 = 1000;
/// Phases that a campaign of any length must have disturbed, or it proves little.
const PHASES: [&str; 6] = ["preparing", "copying", "resuming", "returning", "finishing", "undoing"];

#[test]
fn no_drawn_fault_breaks_a_carried_move() {
    if let Some(seed) = number("STERNA_SIM_SEED") {
        let outcome = campaign(seed);
        println!("{}", outcome.trace);
        assert!(outcome.wrong.is_empty(), "{:#?}", outcome.wrong);
        return;
    }
    let seeds: Vec<u64> = (0..number("STERNA_SIM_SEEDS").unwrap_or(SEEDS)).collect();
    let outcomes = in_parallel(&seeds, |seed| {
        let outcome = campaign(*seed);
        (outcome.injected, outcome.wrong, outcome.tail)
    });
    let mut injected = Injected::new();
    for ((what, phase), count) in outcomes.iter().flat_map(|(injected, ..)| injected) {
        *injected.entry((what.clone(), phase)).or_default() += count;
    }
    let total: u32 = injected.values().sum();
    println!("{total} faults in {} runs\n{}", seeds.len(), table(&injected));
    let failed: Vec<_> = seeds.iter().zip(&outcomes).filter(|(_, (_, wrong, _))| !wrong.is_empty()).collect();
    if let Some((seed, (_, wrong, tail))) = failed.first() {
        let all: Vec<_> =
            failed.iter().map(|(seed, (_, wrong, _))| format!("{seed}: {}", wrong[0])).collect();
        let all = all[..all.len().min(30)].join("\n");
        panic!("{} failed:\n{all}\n\nseed {seed}: {wrong:#?}\n{tail}", failed.len());
    }
    let least = if seeds.len() as u64 >= SEEDS { FAULTS } else { 2 * seeds.len() as u32 };
    assert!(total >= least, "only {total} faults were injected, not {least}");
    let untouched: Vec<_> =
        PHASES.iter().filter(|phase| !injected.keys().any(|(_, of)| of == *phase)).collect();
    assert!(untouched.is_empty(), "no fault in {untouched:?}");
}

#[test]
fn the_same_march_is_the_same_run() {
    for seed in 0..10 {
        assert_eq!(campaign(seed).hash, campaign(seed).hash, "seed {seed} ran differently");
    }
}
