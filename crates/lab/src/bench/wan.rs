//! `sterna bench wan`: moves between datacentres over a slow line, each row beside its own baseline.
//!
//! Rows are kept as they are finished (`rows.rs`).

/// Reference case R, and the way back.
pub mod case;
/// Disks that go with their VMs.
pub mod disk;
/// A fault in every move.
pub mod faults;
/// Guests of other kinds.
pub mod kinds;
/// Inside a datacentre, beside QEMU's several connections.
pub mod lan;
/// Beside another manager.
pub mod libvirt;
/// Lines that are cut, slow, long or lossy.
pub mod line;
/// What guests do.
pub mod load;
/// Inside a datacentre, with a disk that is its host's own.
pub mod local;
/// A database that outlives a move.
pub mod postgres;
/// How fast a guest may write.
pub mod rate;
/// Line, guests, moves.
pub mod rig;
/// Where another guest of the same image runs.
pub mod sibling;
/// The same after use.
pub mod sibling_used;
/// Asking a database.
pub mod sql;
/// A connection that outlives a move.
pub mod tcp;

use anyhow::{Result, bail};

use self::rig::Rig;
use super::rows::{self, Wish};
use super::table::Table;
use super::world::World;

/// In the order in which they run.
pub const ROWS: &[&str] = &[
    "case-r",
    "return",
    "outage",
    "slow",
    "rtt",
    "rate",
    "disk",
    "tcp",
    "sibling",
    "sibling-used",
    "lan",
    "local",
    "database",
    "page-cache",
    "faults",
    "postgres",
    "libvirt",
];

pub async fn run(world: &World, wish: &Wish) -> Result<Table> {
    let rig = Rig::set_up(world).await?;
    let repeats = if wish.quick { 1 } else { 3 };
    let table = rows::run(world, wish, ROWS, async |name| {
        rig.clear().await?;
        row(&rig, name, repeats).await
    })
    .await?;
    rig.clear().await?;
    Ok(table)
}

async fn row(rig: &Rig<'_>, name: &str, repeats: usize) -> Result<Table> {
    match name {
        "case-r" => case::case_r(rig, repeats).await,
        "return" => case::way_back(rig, repeats).await,
        "outage" => line::outage(rig, repeats).await,
        "slow" => line::slow(rig, repeats).await,
        "rtt" => line::rtt(rig, repeats).await,
        "rate" => rate::rate(rig).await,
        "disk" => disk::disk(rig, repeats).await,
        "tcp" => tcp::tcp(rig, repeats).await,
        "sibling" => sibling::sibling(rig, repeats).await,
        "sibling-used" => {
            let time = if repeats == 1 { sibling_used::QUICK } else { sibling_used::WHOLE };
            sibling_used::sibling_used(rig, time).await
        }
        "lan" => lan::lan(rig, repeats).await,
        "local" => local::local(rig, repeats).await,
        "database" => kinds::database(rig, repeats).await,
        "page-cache" => kinds::page_cache(rig, repeats).await,
        "faults" => faults::faults(rig, if repeats == 1 { 10 } else { 200 }).await,
        "postgres" => postgres::postgres(rig, repeats).await,
        "libvirt" => libvirt::libvirt(rig, repeats).await,
        _ => bail!("there is no row `{name}`"),
    }
}
