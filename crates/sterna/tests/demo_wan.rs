//! `sterna lab demo wan --once`: to another datacentre and back, in a lab of its own that is gone afterwards.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

mod lab_world;

use anyhow::{Result, ensure};
use lab_world::{Plot, demo_once};

const PLOT: Plot = Plot { name: "e2e-demow", net: "10.99.0.0/16", port: 7748, datacentres: "a,b" };

#[test]
fn the_demo_goes_to_the_other_datacentre_and_back_and_leaves_nothing_behind() -> Result<()> {
    let shown = demo_once(&PLOT, "wan")?;
    let (_, ending) = shown.split_once("bytes on the line").unwrap_or_default();
    let megabytes: Vec<f64> = ending
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    // The way back takes a small part of the way there.
    ensure!(matches!(megabytes[..], [there, back] if there > 5.0 && back < there / 5.0), "{shown}");
    ensure!(shown.matches(" / 0 lost").count() == 2, "{shown}");
    Ok(())
}
