//! `kill -9` of every process in every phase of a migration, each case once: the benchmark itself, in its short form.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

mod lab_world;

use anyhow::{Result, ensure};
use lab_world::Plot;
use sterna_lab::bench::chaos;

const PLOT: Plot = Plot { name: "e2e-chaos", net: "10.96.0.0/16", port: 7745, datacentres: "a,b" };

#[test]
fn a_process_killed_in_any_phase_leaves_exactly_one_running_copy() -> Result<()> {
    lab_world::run(&PLOT, async |world| {
        let table = chaos::run(world, 1).await?;
        println!("{}", table.render());
        ensure!(table.all_hold(), "{}", table.render());
        Ok(())
    })
}
