//! Inside a datacentre, where nothing takes long: the way that Sterna chooses beside QEMU's several connections.
//!
//! Two alike guests of a shared pool, with the load of `sterna bench migration`, go to the other host of their datacentre
//! and back by turns, and so does who goes first. Both moves are timed as there: from the decision until the target runs
//! and the source is gone, the start of the target's process included. By hand it is multifd with the channels that QEMU
//! has by itself, without encryption: the fastest that QEMU offers.

use anyhow::Result;

use super::local::how;
use super::rig::Rig;
use crate::bench::migration::{LOAD, Pair, mid};
use crate::bench::plain::Style;
use crate::bench::table::{Bar, Table};

/// QEMU's own number.
const CHANNELS: u8 = 2;
/// Pairs for each repetition of other rows: these moves are short.
const PAIRS: usize = 3;

pub async fn lan(rig: &Rig<'_>, repeats: usize) -> Result<Table> {
    let mut pair = Pair::set_up(rig.world, Style::Multifd(CHANNELS)).await?;
    let moved = pair.alternate("lan", PAIRS * repeats, &LOAD).await;
    pair.end().await?;
    let [ours, base] = moved?;
    let mut table = Table::default();
    table.note(format!("lan: no delay, shared pool; Sterna: {}", how(rig).await?));
    table.note(format!("lan: by hand: multifd, {CHANNELS} channels, in clear"));
    let (total, by_hand) = (mid(&ours, |s| s.total), mid(&base, |s| s.total));
    table.info("lan: total time, median", total, "ms", Some(by_hand));
    table.bar("lan: total time / multifd", total / by_hand, "x", Bar::AtMost(1.05), Some(1.0));
    let (gap, by_hand) = (mid(&ours, |s| s.gap), mid(&base, |s| s.gap));
    table.bar("lan: gap p50", gap, "ms", Bar::AtMost(by_hand + 15.0), Some(by_hand));
    let (pause, by_hand) = (mid(&ours, |s| s.downtime), mid(&base, |s| s.downtime));
    table.info("lan: downtime p50", pause, "ms", Some(by_hand));
    let (bytes, by_hand) = (mid(&ours, |s| s.bytes), mid(&base, |s| s.bytes));
    table.info("lan: bytes sent, ratio", bytes / by_hand, "x", Some(1.0));
    Ok(table)
}
