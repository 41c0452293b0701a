//! `sterna lab demo ha --once`: a host is killed and its VM answers from another, in a lab of its own that is gone afterwards.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

mod lab_world;

use anyhow::{Result, ensure};
use lab_world::{Plot, demo_once};

const PLOT: Plot = Plot { name: "e2e-demoh", net: "10.90.0.0/16", port: 7750, datacentres: "a,b" };

#[test]
fn the_demo_counts_until_the_vm_answers_elsewhere_and_leaves_nothing_behind() -> Result<()> {
    let shown = demo_once(&PLOT, "ha")?;
    let (before, after) = shown.split_once("web ANSWERS").unwrap_or_default();
    // Every second is counted, from the first on.
    for second in 1..=5 {
        ensure!(before.contains(&format!("\n{second:>4} s  ")), "{second}: {shown}");
    }
    for told in ["fenced", "its guest answers", "answered by two copies: 0"] {
        ensure!(after.contains(told), "{told}: {shown}");
    }
    Ok(())
}
