//! Three datacentres work as two do: a VM goes round with its disk, over a line for each pair.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

mod lab_world;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab_world::{Plot, name, ok, running_on, until};
use serde_json::Value;
use sterna_base::units::Span;
use sterna_lab::bench::world::World;
use sterna_lab::user;

const PLOT: Plot = Plot { name: "e2e-three", net: "10.93.0.0/16", port: 7749, datacentres: "a,b,c" };

/// By now the first host of each has measured its lines, although nothing has gone over them.
async fn all_lines_are_probed(world: &World) -> Result<()> {
    until(Duration::from_secs(60), "every line to be probed", async || {
        let mut seen = 0;
        for from in ["a", "b", "c"] {
            let shown: Value =
                serde_json::from_str(&ok(world, &format!("datacentre show {from} -o json"))?.data)?;
            let lines = shown["status"]["lines"].as_object().context("no lines are shown")?;
            let by_its_first = |line: &Value| line["host"] == format!("{from}1") && line["rate"].is_string();
            seen += lines.values().filter(|line| by_its_first(line)).count();
        }
        Ok(seen == 6)
    })
    .await?;
    let host = ok(world, "host show a1")?.data;
    ensure!(host.contains("round_trip") && host.contains("mover"), "{host}");
    let forecast = ok(world, "vm forecast round --to b1 -o json")?.data;
    ensure!(forecast.contains("MB/s, as host a1 probed the line to host b1 at 2"), "{forecast}");
    ensure!(forecast.contains("round trip, as host a1 probed it"), "{forecast}");
    Ok(())
}

#[test]
fn a_vm_goes_from_the_first_to_the_second_to_the_third_and_home_again() -> Result<()> {
    lab_world::run(&PLOT, async |world| {
        let host = |text: &str| world.lab.host(text).with_context(|| format!("no host {text}"));
        world.user.ensure_image(&name("tiny"), &lab_world::image()?).await?;
        let vm = running_on(world, "round", host("a1")?).await?;
        let address = user::address(&vm)?;
        world.guest_answers(host("a1")?, address).await?;
        all_lines_are_probed(world).await?;
        let mut sent = Vec::new();
        for to in ["b1", "c1", "a1"] {
            let ended = world.user.move_to(&name("round"), &name(to), Span::from_millis(1000)).await?;
            let outcome =
                ended.decision.and_then(|decision| decision.outcome).context("nothing was measured")?;
            sent.push((to, outcome.bytes));
            let volume = world.user.client.volumes().get(&name("round-boot")).await?;
            let decision = volume.decision.context("the volume has no place")?;
            ensure!(decision.host.as_str() == to && !decision.is_moving(), "{decision:?}");
            // From a host of each datacentre it is still the same guest at the same address.
            for from in ["a2", "b2", "c2"] {
                world.guest_answers(host(from)?, address).await.with_context(|| format!("from {from}"))?;
            }
        }
        println!("{sent:?}");
        ensure!(world.copies(&vm) == 1);
        let (there, home) = (sent[0].1, sent[2].1);
        ensure!(home < there, "its disk was at home before: {home} of {there}");
        Ok(())
    })
}
