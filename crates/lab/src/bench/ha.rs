//! `sterna bench ha`: hosts, servers, agents and QEMUs are lost, and the time until guest code runs again.
//!
//! What runs is what guests themselves mark on their disks (`referee.rs`), never what Sterna says. Rows are kept as they are
//! finished (`rows.rs`).

/// Hosts that are cut off for a while.
pub mod cut;
/// A guest's mark on its disk.
pub mod disk;
/// Hosts that are killed.
pub mod killed;
/// A QEMU, or an agent.
pub mod process;
/// Who runs, and whether two do.
pub mod referee;
/// Hosts, guests, leases.
pub mod rig;
/// No server.
pub mod server;
/// What runs came to.
pub mod tally;

use std::time::Duration;

use anyhow::{Result, bail};

use self::rig::Rig;
use super::rows::{self, Wish};
use super::table::Table;
use super::world::World;

/// In the order in which they run.
pub const ROWS: &[&str] = &[
    "killed-quick",
    "killed-fast",
    "killed-standard",
    "cut-2s",
    "cut-10s",
    "cut-8s-standard",
    "qemu-killed",
    "agent-killed",
    "server-dead",
];

pub async fn run(world: &World, wish: &Wish) -> Result<Table> {
    let rig = Rig::set_up(world).await?;
    let table = rows::run(world, wish, ROWS, async |name| {
        rig.clear().await?;
        row(&rig, name, wish).await
    })
    .await?;
    rig.clear().await?;
    Ok(table)
}

async fn row(rig: &Rig<'_>, name: &str, wish: &Wish) -> Result<Table> {
    let runs = |quick: usize, whole: usize| wish.runs.unwrap_or(if wish.quick { quick } else { whole });
    match name {
        "killed-quick" => killed::killed(rig, name, killed::QUICK, runs(30, 100)).await,
        "killed-fast" => killed::killed(rig, name, killed::FAST, runs(10, 30)).await,
        "killed-standard" => killed::killed(rig, name, killed::STANDARD, runs(10, 30)).await,
        "cut-2s" => cut::kept(rig, name, cut::SHORT, runs(10, 30)).await,
        "cut-10s" => cut::lost(rig, name, cut::LONG, runs(5, 20)).await,
        "cut-8s-standard" => cut::kept(rig, name, cut::SHORT_STANDARD, runs(5, 20)).await,
        "qemu-killed" => process::qemu(rig, name, runs(30, 100)).await,
        "agent-killed" => process::agent(rig, name, runs(30, 100)).await,
        "server-dead" => {
            let time = Duration::from_secs(if wish.quick { 60 } else { 600 });
            server::dead(rig, name, time).await
        }
        _ => bail!("there is no row `{name}`"),
    }
}
