//! Inside a datacentre whose hosts have only disks of their own: what the guest's writes wait for while its disk goes to
//! the other host, and how long that takes beside QEMU's own way (`crates/lab/src/bench/plain/mirror.rs`).
//!
//! Each repetition has an image of its own, with content that no host has seen, and two new guests of it, one for Sterna
//! and one by hand; who goes first changes. Both are timed from the decision until the target runs and the source is
//! gone, the start of the target's process and the making of its disk included.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sterna_client::object::Filter;
use sterna_model::pool::PoolKind;
use tokio::time::sleep;

use super::case::MB;
use super::disk::{self, Template, qemu_img, write_p99};
use super::load::Load;
use super::rig::{ByHand, Guest, MEMORY, PAUSE, Rig};
use crate::bench::migration::warm_memory;
use crate::bench::plain::{self, Hand};
use crate::bench::table::{Bar, Table, median};

/// On each host's own disk.
const POOL: &str = "own";
/// Memory that is not all zero, and a disk that is written to through all caches.
const LOAD: Load<'static> = &["/fill?mib=64&kind=text", "/fill?mib=32&kind=random", "/counter/start?hz=50"];
/// What is compared with is this much of the guest's life before its move.
const BEFORE: Duration = Duration::from_secs(10);

/// One move. The guest's synchronous writes in milliseconds, slowest hundredth.
#[derive(Debug, Clone, Copy)]
struct Sample {
    seconds: f64,
    before: f64,
    during: f64,
    gap_ms: f64,
}

pub async fn local(rig: &Rig<'_>, repeats: usize) -> Result<Table> {
    rig.ensure_pool(POOL, PoolKind::Dir { path: "pools/own".to_owned() }).await?;
    let rig = within(rig);
    let (mut samples, mut method, mut allocated) = ([Vec::new(), Vec::new()], String::new(), 0);
    for number in 0..repeats {
        let image = format!("local-{number}");
        let template = Template::make_new(&rig, &image).await?;
        allocated = template.allocated;
        let order = if number % 2 == 0 { [0, 1] } else { [1, 0] };
        for side in order {
            let sample = match side {
                0 => by_sterna(&rig, &image, &mut method).await.context("by Sterna")?,
                _ => by_hand(&rig, &image, template.size).await.context("by hand")?,
            };
            tell(["Sterna", "by hand"][side], number, sample);
            samples[side].push(sample);
        }
        disk::forget(&rig, &image).await?;
    }
    let mut table = table_of(&samples);
    table.note(format!(
        "local: 512 MiB guest, {:.0} MB in its disk on its host's own, to the other host of its datacentre, no delay; a new image for each repetition; Sterna: {method}",
        allocated as f64 / MB
    ));
    table.note("local: by hand: blockdev-mirror, write-blocking, over NBD to the target's QEMU, then live migration, in clear");
    Ok(table)
}

fn table_of([ours, base]: &[Vec<Sample>; 2]) -> Table {
    let of = |samples: &[Sample], field: fn(&Sample) -> f64| {
        median(&samples.iter().map(field).collect::<Vec<_>>())
    };
    let mut table = Table::default();
    let [slower, by_hand] = [ours, base].map(|side| of(side, |s| s.during / s.before));
    let name = "local disk: guest's synchronous write, p99 during the move / before";
    table.bar(name, slower, "x", Bar::AtMost(1.5), Some(by_hand));
    let [during, by_hand] = [ours, base].map(|side| of(side, |s| s.during));
    table.info("local disk: guest's synchronous write, p99 during the move", during, "ms", Some(by_hand));
    let [before, by_hand] = [ours, base].map(|side| of(side, |s| s.before));
    table.info("local disk: guest's synchronous write, p99 before", before, "ms", Some(by_hand));
    let [total, by_hand] = [ours, base].map(|side| of(side, |s| s.seconds));
    let name = "local disk: total time / mirror and migration by hand";
    table.bar(name, total / by_hand, "x", Bar::AtMost(1.05), Some(1.0));
    table.info("local disk: total time", total, "s", Some(by_hand));
    let [gap, by_hand] = [ours, base].map(|side| of(side, |s| s.gap_ms));
    table.info("local disk: gap", gap, "ms", Some(by_hand));
    table
}

/// The same with the other host of the first datacentre as the place where guests go.
fn within<'a>(rig: &Rig<'a>) -> Rig<'a> {
    let mut within = *rig;
    within.away = rig.client;
    within
}

fn tell(who: &str, number: usize, Sample { seconds, before, during, gap_ms }: Sample) {
    println!(
        "  {} {who}: {seconds:.1} s, gap {gap_ms:.0} ms, write p99 {during:.1} ms, before {before:.1} ms",
        number + 1
    );
}

async fn by_sterna(rig: &Rig<'_>, image: &str, method: &mut String) -> Result<Sample> {
    let guest = rig.guest_of("local", MEMORY, (image, Some(POOL))).await?;
    let arrives = async { rig.arrive(&guest, rig.away).await.map(drop) };
    let sample = measure(rig, &guest, arrives).await?;
    *method = how(rig).await?;
    rig.clear().await?;
    Ok(sample)
}

async fn by_hand(rig: &Rig<'_>, image: &str, size: u64) -> Result<Sample> {
    let made = rig.guest_of("by-hand", MEMORY, (image, Some(super::rig::POOL))).await?;
    rig.user().done(&rig.user().client.vms().stop(made.name(), true).await?).await?;
    let (machine, places) = plain::twin(rig.world, &made.vm, &rig.pool(), [rig.home, rig.away]).await?;
    let mut hand = Hand::boot(machine, places).await?;
    rig.world.guest_answers(rig.client, made.address).await?;
    let disk = rig.world.lab.dir.join("local.qcow2");
    let arrives = async {
        let (file, size) = (disk.to_string_lossy(), size.to_string());
        qemu_img(&["create", "-q", "-f", "qcow2", &file, &size]).await?;
        hand.migrate_with(&disk, PAUSE.0).await.map(drop)
    };
    let sample = measure(rig, &made, arrives).await;
    // Also when it failed: nothing of it stays.
    rig.end(ByHand { guest: made, hand }).await?;
    sterna_base::file::remove_if_there(&disk).context("remove the disk")?;
    rig.clear().await?;
    sample
}

/// Lets the guest work, and looks at it while it moves.
async fn measure(rig: &Rig<'_>, guest: &Guest, arrives: impl Future<Output = Result<()>>) -> Result<Sample> {
    rig.load(guest, LOAD).await?;
    warm_memory().await?;
    write_p99(rig, guest).await?;
    sleep(BEFORE).await;
    let before = write_p99(rig, guest).await?;
    let moving = async {
        let began = Instant::now();
        arrives.await?;
        let seconds = began.elapsed().as_secs_f64();
        // At once: what the guest writes afterwards is not asked for.
        Ok((seconds, write_p99(rig, guest).await?))
    };
    let ((seconds, during), seen) = rig.watched(guest.address, moving).await?;
    Ok(Sample { seconds, before, during, gap_ms: seen.gap_ms })
}

/// How Sterna moved it, and why this way, in its own words.
pub async fn how(rig: &Rig<'_>) -> Result<String> {
    let moves = rig.world.user.client.migrations().list(&Filter::default()).await?;
    let decided = moves.into_iter().filter_map(|migration| migration.decision);
    let newest = decided.max_by_key(|decision| decision.started).context("nothing was moved")?;
    Ok(newest.method)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALM: Sample = Sample { seconds: 10.0, before: 4.0, during: 5.0, gap_ms: 50.0 };

    #[test]
    fn slower_writes_or_a_longer_move_miss_their_bars() {
        let holds = |ours: Sample| table_of(&[vec![ours; 3], vec![CALM; 3]]).all_hold();
        assert!(holds(CALM));
        assert!(!holds(Sample { during: 6.1, ..CALM }));
        assert!(!holds(Sample { seconds: 10.6, ..CALM }));
        assert!(!holds(Sample { before: f64::NAN, ..CALM }));
    }
}
