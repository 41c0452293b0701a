//! Every scenario file, and every process killed at every instant of a move.
//!
//! A `.expect` file beside a scenario is its golden trace; `STERNA_SIM_BLESS=1` writes it anew.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use sterna_sim::scenario::{Outcome, Scenario, run};
use sterna_sim::site::Layout;
use sterna_sim::world::Config;

fn files() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut found = Vec::new();
    for area in std::fs::read_dir(root).unwrap() {
        for file in std::fs::read_dir(area.unwrap().path()).unwrap() {
            found.extend(
                Some(file.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == "toml")),
            );
        }
    }
    found.sort();
    found
}

fn read(path: &Path) -> Scenario {
    let text = std::fs::read_to_string(path).unwrap();
    toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The same script with other delays each time.
const SEEDS: std::ops::Range<u64> = 0..8;
/// Of those in which hosts are lost, which last minutes; storms have the same with other delays.
const SEEDS_OF_LOSS: std::ops::Range<u64> = 0..3;

#[test]
fn every_scenario_ends_as_it_says() {
    let only = std::env::var("STERNA_SIM_SCENARIO").ok();
    let mut failed = Vec::new();
    for path in files() {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let area = path.parent().and_then(Path::file_name).map(|area| area.to_string_lossy().into_owned());
        if only.as_ref().is_some_and(|only| *only != name && Some(only) != area.as_ref()) {
            continue;
        }
        let scenario = read(&path);
        let seeds = if scenario.guards { SEEDS_OF_LOSS } else { SEEDS };
        let outcomes: Vec<(u64, Outcome)> =
            seeds.map(|seed| (seed, run(&scenario, Config::calm(seed, 2)))).collect();
        if let Some((seed, outcome)) = outcomes.iter().find(|(_, outcome)| !outcome.wrong.is_empty()) {
            let trace = if only.as_ref() == Some(&name) { &outcome.trace } else { "" };
            failed.push(format!("{name} (seed {seed}): {:#?}\n{trace}", outcome.wrong));
        }
        // An instant that never comes tests nothing; a cancel may come before it in some runs, not in all.
        for when in &scenario.when {
            if outcomes.iter().all(|(_, outcome)| outcome.missed.contains(&when.moment)) {
                failed.push(format!("{name}: `{}` never came", when.moment));
            }
        }
    }
    assert!(
        failed.is_empty(),
        "{} failed; STERNA_SIM_SCENARIO=name shows one\n{}",
        failed.len(),
        failed.join("\n")
    );
}

#[test]
fn golden_traces_are_as_they_were() {
    let bless = std::env::var_os("STERNA_SIM_BLESS").is_some();
    let golden = files().into_iter().filter(|path| path.with_extension("expect").exists());
    let mut compared = 0;
    for path in golden {
        let outcome = run(&read(&path), Config::calm(1, 2));
        let expect = path.with_extension("expect");
        if bless {
            std::fs::write(&expect, &outcome.trace).unwrap();
        }
        let before = std::fs::read_to_string(&expect).unwrap();
        let differ = before.lines().zip(outcome.trace.lines()).find(|(a, b)| a != b);
        assert!(before == outcome.trace, "{} changed, first: {differ:?}", expect.display());
        compared += 1;
    }
    assert!(compared >= 4, "only {compared} golden traces");
}

/// Every instant that a move without trouble goes through.
const MOMENTS: [&str; 20] = [
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

const DEEDS: [&str; 11] = [
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
];

/// What went wrong at one instant, and how often the instant came.
fn disturb(moment: &str) -> (usize, Vec<String>) {
    let (mut came, mut failed) = (0, Vec::new());
    for deed in DEEDS {
        for seed in 0..3 {
            let mut config = Config::calm(seed, 2);
            config.takes_disks_early = seed % 2 == 1;
            let outcome = run(&Scenario::disturbed(Layout::default(), moment, deed), config);
            came += usize::from(outcome.missed.is_empty());
            if !outcome.wrong.is_empty() {
                failed.push(format!("{deed} when {moment} (seed {seed}): {:?}", outcome.wrong));
            }
        }
    }
    (came, failed)
}

#[test]
fn one_copy_runs_whatever_is_killed_at_any_instant_of_a_move() {
    let results: Vec<_> = std::thread::scope(|scope| {
        let halves: Vec<_> = MOMENTS
            .chunks(MOMENTS.len().div_ceil(2))
            .map(|half| {
                scope.spawn(|| half.iter().map(|moment| (moment, disturb(moment))).collect::<Vec<_>>())
            })
            .collect();
        halves.into_iter().flat_map(|half| half.join().unwrap()).collect()
    });
    let never: Vec<_> =
        results.iter().filter(|(_, (came, _))| *came == 0).map(|(moment, _)| moment).collect();
    assert!(never.is_empty(), "never came: {never:?}");
    let failed: Vec<_> = results.iter().flat_map(|(_, (_, failed))| failed).cloned().collect();
    assert!(failed.is_empty(), "{} failed\n{}", failed.len(), failed.join("\n"));
}
