//! The guest of case R with a disk of its own, on hosts that share nothing: Sterna beside libvirt.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sterna_base::units::Bytes;
use sterna_client::object::New;
use sterna_model::error::Code;
use sterna_model::meta::Name;
use sterna_model::pool::{PoolKind, PoolSpec};
use tokio::time::sleep;

use super::case::{LOAD, MB, finite, mid, tell};
use super::disk::{IMAGE, Template};
use super::rig::{MEMORY, Path, Rig, SETTLE, Sample};
use crate::bench::libvirt::Pair;
use crate::bench::table::{Bar, Table};

const DISK: Bytes = Bytes::gib(1);
/// On each host's own disk.
const POOL: &str = "own";
/// Memory and disk one after the other: it gets twice as long as who moves memory alone.
const PATIENCE: Duration = Duration::from_secs(300);

pub async fn libvirt(rig: &Rig<'_>, repeats: usize) -> Result<Table> {
    let rig = rig.with_disks_of(DISK);
    let template = Template::make(&rig).await?;
    make_pool(&rig).await?;
    let (mut ours, mut theirs, mut version) = (Vec::new(), Vec::new(), String::new());
    for number in 0..repeats {
        ours.push(by_sterna(&rig).await?);
        tell("Sterna", number, ours.last());
        theirs.push(by_libvirt(&rig, &mut version).await?);
        tell("libvirt", number, theirs.last());
    }
    let mut table = Table::default();
    let (limit, unfinished) = (PATIENCE.as_secs(), theirs.iter().filter(|sample| !sample.is_done).count());
    table.note(format!(
        "libvirt {version}: guest and line of case R, local disk of 1 GiB with {:.0} MB in it, live, p2p, copy-storage-all; {unfinished} of {repeats} not done in {limit} s",
        template.allocated as f64 / MB
    ));
    let [value, base] = [&ours, &theirs].map(|side| mid(side, |s| s.seconds));
    table.bar("with its disk: total time / libvirt", value / base, "x", Bar::AtMost(0.35), Some(1.0));
    table.info("with its disk: total time, beside libvirt", value, "s", Some(base));
    let [value, base] = [&ours, &theirs].map(|side| mid(side, |s| s.bytes) / MB);
    table.info("with its disk: wire bytes, beside libvirt", value, "MB", Some(base));
    let [value, base] = [&ours, &theirs].map(|side| mid(side, |s| s.gap_ms));
    table.info("with its disk: gap, beside libvirt", value, "ms", finite(base));
    Ok(table)
}

async fn make_pool(rig: &Rig<'_>) -> Result<()> {
    let spec =
        PoolSpec { kind: PoolKind::Dir { path: "pools/own".to_owned() }, datacentre: None, default: false };
    match rig.user().client.pools().create(&New::named(Name::new(POOL)?, spec)).await {
        Err(error) if !error.is(Code::AlreadyExists) => Err(error.into()),
        _ => Ok(()),
    }
}

async fn by_sterna(rig: &Rig<'_>) -> Result<Sample> {
    let guest = rig.guest_of("cold", MEMORY, (IMAGE, Some(POOL))).await?;
    rig.load(&guest, LOAD).await?;
    rig.path(Path::R)?;
    let sample = rig.by_sterna(&guest, rig.away).await?;
    rig.clear().await?;
    Ok(sample)
}

async fn by_libvirt(rig: &Rig<'_>, version: &mut String) -> Result<Sample> {
    let (guest, machine, places) = rig.twin("by-libvirt", MEMORY, IMAGE).await?;
    let pair = Pair::start(&rig.world.lab.dir.join("libvirt"), places).await?;
    *version = pair.version().await?;
    let moved = async {
        pair.boot(&machine, DISK.as_u64()).await?;
        rig.world.guest_answers(rig.client, guest.address).await?;
        rig.load(&guest, LOAD).await?;
        rig.path(Path::R)?;
        let probes = rig.world.probes(rig.client, guest.address, false).await?;
        let (before, began) = (rig.bytes()?, Instant::now());
        let is_done = pair.migrate(PATIENCE).await?;
        let (seconds, bytes) = (began.elapsed().as_secs_f64(), rig.bytes()? - before);
        sleep(SETTLE).await;
        let seen = tokio::task::spawn_blocking(move || probes.finish()).await??;
        let gap_ms = if is_done { seen.udp.context("no echo")?.gap_ms } else { f64::NAN };
        anyhow::Ok(Sample { seconds, gap_ms, pause_ms: f64::NAN, bytes, is_done })
    };
    // Also when it failed: nothing of it stays.
    let moved = moved.await;
    rig.fast()?;
    pair.end().await?;
    rig.clear().await?;
    moved
}
