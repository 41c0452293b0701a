//! The guest of case R with a disk of its own, on hosts that share nothing: Sterna beside libvirt.
//!
//! libvirt copies everything each time. So that Sterna does, too, each repetition has an image of its own, with content
//! that no host has seen; after it the image is removed with its VMs, and so are libvirt's disks.

use std::time::Duration;

use anyhow::Result;
use sterna_base::units::Bytes;
use sterna_model::pool::PoolKind;

use super::case::{LOAD, MB, finite, mid, tell};
use super::disk::{self, CONTENT, Template};
use super::rig::{MEMORY, Path, Rig, Sample, Watched};
use crate::bench::libvirt::Pair;
use crate::bench::table::{Bar, Table};

const DISK: Bytes = Bytes::gib(1);
/// On each host's own disk.
const POOL: &str = "own";
/// Memory and disk one after the other: it gets twice as long as who moves memory alone.
const PATIENCE: Duration = Duration::from_secs(300);

pub async fn libvirt(rig: &Rig<'_>, repeats: usize) -> Result<Table> {
    let rig = rig.with_disks_of(DISK);
    rig.ensure_pool(POOL, PoolKind::Dir { path: "pools/own".to_owned() }).await?;
    let (mut ours, mut theirs, mut version, mut allocated) = (vec![], vec![], String::new(), 0);
    for number in 0..repeats {
        let image = format!("template-{number}");
        allocated = Template::make_new(&rig, &image).await?.allocated;
        ours.push(by_sterna(&rig, &image).await?);
        tell("Sterna", number, ours.last());
        theirs.push(by_libvirt(&rig, &image, &mut version).await?);
        tell("libvirt", number, theirs.last());
        disk::forget(&rig, &image).await?;
    }
    let mut table = Table::default();
    let (limit, unfinished) = (PATIENCE.as_secs(), theirs.iter().filter(|sample| !sample.is_done).count());
    table.note(format!(
        "libvirt {version}: guest and line of case R, local disk of 1 GiB with {:.0} MB in it, live, p2p, copy-storage-all; {unfinished} of {repeats} not done in {limit} s",
        allocated as f64 / MB
    ));
    table.note(format!(
        "libvirt: a new image for each repetition, of which {:.0} MB of random bytes are nowhere on the target before either move; only the guest's system in it is that of other images",
        CONTENT as f64 / MB
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

async fn by_sterna(rig: &Rig<'_>, image: &str) -> Result<Sample> {
    let guest = rig.guest_of("cold", MEMORY, (image, Some(POOL))).await?;
    rig.load(&guest, LOAD).await?;
    rig.path(Path::R)?;
    let sample = rig.by_sterna(&guest, rig.away).await?;
    rig.clear().await?;
    Ok(sample)
}

async fn by_libvirt(rig: &Rig<'_>, image: &str, version: &mut String) -> Result<Sample> {
    let (guest, machine, places) = rig.twin("by-libvirt", MEMORY, image).await?;
    let pair = Pair::start(&rig.world.lab.dir.join("libvirt"), places).await?;
    let moved = async {
        *version = pair.version().await?;
        pair.boot(&machine, DISK.as_u64()).await?;
        rig.world.guest_answers(rig.client, guest.address).await?;
        rig.load(&guest, LOAD).await?;
        rig.path(Path::R)?;
        let (is_done, Watched { seconds, bytes, gap_ms }) =
            rig.watched(guest.address, pair.migrate(PATIENCE)).await?;
        let gap_ms = if is_done { gap_ms } else { f64::NAN };
        anyhow::Ok(Sample { seconds, gap_ms, pause_ms: f64::NAN, bytes, is_done })
    };
    // Also when it failed: nothing of it stays.
    let moved = moved.await;
    rig.fast()?;
    pair.end().await?;
    rig.clear().await?;
    moved
}
