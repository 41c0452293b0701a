//! The highest rate of sparse page writes at which a move still pauses the guest for a second only, within 100 s.

use std::time::Duration;

use anyhow::Result;
use tokio::time::timeout;

use super::case::{self, tell};
use super::rig::{Path, Rig, Sample};
use crate::bench::plain::Style;
use crate::bench::table::{Bar, Table};

const TIME_MAX: Duration = Duration::from_secs(100);
const GAP_MAX_MS: f64 = 1000.0;
/// Set-up, boot and filling of a guest come before the move, and are not part of it.
const TRIAL_MAX: Duration = Duration::from_secs(400);
/// Where the doubling begins and ends: an emulated guest writes no faster.
const FIRST: u64 = 1000;
const LAST: u64 = 64_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Sterna,
    Plain,
}

pub async fn rate(rig: &Rig<'_>) -> Result<Table> {
    let plain = highest(rig, Who::Plain).await?;
    let ours = highest(rig, Who::Sterna).await?;
    let mut table = Table::default();
    table.note(format!(
        "rate: doubled from {FIRST} to {LAST} sparse pages a second until a move takes more than {} s or a gap of 1 s",
        TIME_MAX.as_secs()
    ));
    let [value, base] = [ours, plain].map(|rate| rate as f64);
    // Where plain QEMU meets it at no rate tried, it is counted as if it had at the lowest.
    let counted = base.max(FIRST as f64);
    let name = "highest sparse dirty rate / plain";
    table.bar(name, value / counted, "x", Bar::AtLeast(5.0), Some(1.0));
    table.info("highest sparse dirty rate", value, "pages/s", Some(base));
    Ok(table)
}

/// 0: not even the first.
async fn highest(rig: &Rig<'_>, who: Who) -> Result<u64> {
    let (mut rate, mut met) = (FIRST, 0);
    while rate <= LAST && trial(rig, who, rate).await? {
        met = rate;
        rate *= 2;
    }
    Ok(met)
}

async fn trial(rig: &Rig<'_>, who: Who, rate: u64) -> Result<bool> {
    let dirty = format!("/dirty?pages_per_s={rate}&mib=64&random_percent=50");
    let load = ["/fill?mib=64&kind=text", "/fill?mib=32&kind=random", &dirty];
    let moved = async {
        match who {
            Who::Sterna => case::cold(rig, Path::R, &load).await,
            Who::Plain => case::by_hand(rig, (Path::R, &load), Style::Plain).await,
        }
    };
    let moved = timeout(TRIAL_MAX, moved).await;
    let is_met = match &moved {
        Ok(Ok(sample)) => {
            tell(&format!("{who:?}, {rate} pages/s"), 0, Some(sample));
            meets(sample)
        }
        Ok(Err(error)) => {
            println!("  {who:?}, {rate} pages/s: {error:#}");
            false
        }
        Err(_) => {
            println!("  {who:?}, {rate} pages/s: not done");
            false
        }
    };
    rig.clear().await?;
    Ok(is_met)
}

/// The guest is a round trip farther from its client than before.
fn meets(sample: &Sample) -> bool {
    let gap_max = GAP_MAX_MS + Path::R.rtt_ms as f64;
    sample.is_done && sample.seconds <= TIME_MAX.as_secs_f64() && sample.gap_ms <= gap_max
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_move_meets_it_in_time_with_a_short_gap_or_not_at_all() {
        let sample = Sample { seconds: 99.0, gap_ms: 1079.0, pause_ms: 1.0, bytes: 1.0, is_done: true };
        assert!(meets(&sample));
        assert!(!meets(&Sample { is_done: false, ..sample }));
        assert!(!meets(&Sample { seconds: 101.0, ..sample }));
        assert!(!meets(&Sample { gap_ms: 1081.0, ..sample }));
        assert!(!meets(&Sample { gap_ms: f64::NAN, ..sample }));
    }
}
