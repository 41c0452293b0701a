//! Two more kinds of guest on the line of case R: a database that logs whole pages, and files that come into the page
//! cache and go. Half of what they write does not compress, and none of it is like what was there before: no copy of the
//! old helps. So there are no bars; the figures say what is to be had.

use anyhow::{Context, Result, ensure};
use sterna_base::units::Bytes;

use super::case::Sides;
use super::load::{Load, State};
use super::rig::{MEMORY, Path, Rig, Sample};
use crate::bench::table::{Bar, Table};

/// 250 pages of 8 KiB a second are 2 MB/s of memory, and as much again of log: a third of the line.
const DATABASE: Load<'static> = &["/fill?mib=64&kind=text", "/database?pages_per_s=250&mib=160"];
const DATABASE_DISK: Bytes = Bytes::mib(256);
/// Files of more than the guest's memory: those that are read push others out.
const CHURN: Load<'static> = &["/churn?mib_per_s=4"];
const CHURN_DISK: Bytes = Bytes::mib(768);

pub async fn database(rig: &Rig<'_>, repeats: usize) -> Result<Table> {
    let rig = rig.with_disks_of(DATABASE_DISK);
    let mut sides = Sides::default();
    for _ in 0..repeats {
        let (sterna, before, after) = cold(&rig, DATABASE).await?;
        let is_alive = after.database.replaced > before.database.replaced;
        ensure!(is_alive, "the database does not go on: {:?}", after.database.error);
        sides.add(&rig, DATABASE, sterna).await?;
    }
    let mut table = Table::default();
    table.note("database: 512 MiB guest, line of case R, 250 whole pages of 8 KiB a second in 160 MiB, each logged to the disk");
    sides.compare(&mut table, "database", None);
    Ok(table)
}

pub async fn page_cache(rig: &Rig<'_>, repeats: usize) -> Result<Table> {
    let rig = rig.with_disks_of(CHURN_DISK);
    let (mut sides, mut wrong) = (Sides::default(), 0);
    for _ in 0..repeats {
        let (sterna, before, after) = cold(&rig, CHURN).await?;
        ensure!(after.churn.read > before.churn.read, "no file is read any more: {:?}", after.churn.error);
        wrong += after.churn.wrong;
        sides.add(&rig, CHURN, sterna).await?;
    }
    let mut table = Table::default();
    table.note(
        "page cache: 512 MiB guest, line of case R, 4 MiB of files a second read or written, of 670 MiB",
    );
    sides.compare(&mut table, "page cache", None);
    table.bar("page cache: files read with wrong bytes", wrong as f64, "", Bar::AtMost(0.0), None);
    Ok(table)
}

/// Sterna moves such a guest; what it says of itself before and after.
async fn cold(rig: &Rig<'_>, load: Load<'_>) -> Result<(Sample, State, State)> {
    let guest = rig.guest("cold", MEMORY).await?;
    rig.load(&guest, load).await?;
    rig.path(Path::R)?;
    let before = rig.state(&guest).await?;
    let sample = rig.by_sterna(&guest, rig.away).await?;
    let after = rig.state(&guest).await.context("ask the guest that arrived")?;
    rig.clear().await?;
    Ok((sample, before, after))
}
