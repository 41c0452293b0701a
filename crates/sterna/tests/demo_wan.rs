//! `sterna lab demo wan --once`: to another datacentre and back, in a lab of its own that is gone afterwards.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

mod lab_world;

use std::process::Command;

use anyhow::{Result, ensure};
use lab_world::{Plot, image, ran, sterna_lab};
use sterna_lab::member;

const PLOT: Plot = Plot { name: "e2e-demow", net: "10.99.0.0/16", port: 7748, datacentres: "a,b" };

#[test]
fn the_demo_goes_to_the_other_datacentre_and_back_and_leaves_nothing_behind() -> Result<()> {
    // The lab's addresses are those it was begun with.
    let begun = sterna_lab(&PLOT, &format!("up --network-only --net {} --port {}", PLOT.net, PLOT.port));
    ensure!(begun.code == 0, "{}", begun.talk);
    let shown = sterna_lab(&PLOT, &format!("demo wan --once --image {}", image()?.display()));
    let spaces = ran(Command::new("ip").args(["netns", "list"])).data;
    let folder = std::path::PathBuf::from(format!("{}-{}", sterna_lab::place::DEFAULT_DIR, PLOT.name));
    let is_left = spaces.contains(PLOT.name) || folder.exists();
    // Also when it failed half-way.
    sterna_lab(&PLOT, "down");
    ensure!(shown.code == 0, "{}{}", shown.data, shown.talk);
    ensure!(!is_left && member::all(&folder).is_empty(), "something was left: {spaces}");
    let (_, ending) = shown.data.split_once("bytes on the line").unwrap_or_default();
    let megabytes: Vec<f64> = ending
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    // The way back takes a small part of the way there.
    ensure!(matches!(megabytes[..], [there, back] if there > 5.0 && back < there / 5.0), "{}", shown.data);
    ensure!(shown.data.matches(" / 0 lost").count() == 2, "{}", shown.data);
    Ok(())
}
