//! Moves with disks that go straight: everything done at every instant of one. Drawn faults are `mover`'s, whose campaigns have
//! both ways in them.

#![allow(clippy::unwrap_used)]

use sterna_sim::scenario::{Scenario, run};
use sterna_sim::site::Layout;
use sterna_sim::world::Config;

/// Every instant that such a move goes through without trouble.
const MOMENTS: [&str; 20] = [
    "web-1 is preparing",
    "b: noted the epoch",
    "b: spawned",
    "b: listens",
    "b: noted listening",
    "web-1 is copying",
    "a: noted sending",
    "a: sends",
    "a: disks are alike",
    "a: copies",
    "a: stands still",
    "a: mirrors ended",
    "b: has everything",
    "a: completed",
    "b: completed",
    "a: noted released",
    "web-1 is resuming",
    "b: noted continued",
    "b: runs",
    "web-1 is finishing",
];

const DEEDS: [&str; 14] = [
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
    "cancel web",
];

const LAYOUT: Layout = Layout { is_far: false, is_local: true };
const SEEDS: u64 = 3;

#[test]
fn one_copy_runs_whatever_is_done_at_any_instant_of_a_straight_move_with_disks() {
    let (mut never, mut failed) = (Vec::new(), Vec::new());
    for moment in MOMENTS {
        let mut came = 0;
        for deed in DEEDS {
            let mut scenario = Scenario::disturbed(LAYOUT, moment, deed);
            scenario.expect.migration = Some("succeeded|failed|cancelled".to_owned());
            for seed in 0..SEEDS {
                let outcome = run(&scenario, Config::calm(seed, 2));
                came += usize::from(outcome.missed.is_empty());
                if !outcome.wrong.is_empty() {
                    failed.push(format!("{deed} when {moment} (seed {seed}): {:?}", outcome.wrong));
                }
            }
        }
        if came == 0 {
            never.push(moment);
        }
    }
    assert!(never.is_empty(), "never came: {never:?}");
    assert!(failed.is_empty(), "{} failed\n{}", failed.len(), failed.join("\n"));
}

#[test]
fn a_guest_whose_mirrors_nobody_ends_stands_still_no_longer_than_its_agent_is_away() {
    let scenario = Scenario::disturbed(LAYOUT, "a: stands still", "kill agent a");
    for seed in 0..SEEDS {
        let outcome = run(&scenario, Config::calm(seed, 2));
        assert_eq!(outcome.wrong, Vec::<String>::new(), "seed {seed}");
        let at = |what: &str| {
            let line = outcome.trace.lines().find(|line| line.ends_with(what));
            let line = line.unwrap_or_else(|| panic!("no {what:?} in\n{}", outcome.trace));
            line.split_whitespace().next().unwrap().parse::<f64>().unwrap()
        };
        let (still, ended) = (at("a: stands still"), at("a: transfer ended early"));
        assert!(ended > still && ended - still < 2.0, "{} s in\n{}", ended - still, outcome.trace);
    }
}
