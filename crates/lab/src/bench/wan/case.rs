//! Reference case R and its way back: bytes, time and gap beside QEMU by hand, plain and compressed.
//!
//! The disk is in a folder that both datacentres see, for everybody: what is compared is memory.

use std::time::Duration;

use anyhow::Result;

use super::load::Load;
use super::rig::{MEMORY, PATIENCE, Path, Rig, Sample};
use crate::bench::plain::Style;
use crate::bench::table::{Bar, Table, median};

/// 64 MiB that compress, 32 MiB that do not, and a working set of 64 MiB, half of it random, of which 2,000 pages a
/// second get one word changed.
pub const LOAD: Load<'static> = &[
    "/fill?mib=64&kind=text",
    "/fill?mib=32&kind=random",
    "/dirty?pages_per_s=2000&mib=64&random_percent=50",
];
/// What the guest of the way back did on the other side.
const AWAY: Duration = Duration::from_secs(20);
pub const MB: f64 = 1e6;

/// One number of a move.
type Field = fn(&Sample) -> f64;

/// The three ways that are compared.
#[derive(Default)]
pub struct Sides {
    sterna: Vec<Sample>,
    plain: Vec<Sample>,
    multifd: Vec<Sample>,
}

impl Sides {
    /// By hand twice, after somebody moved such a guest by Sterna.
    pub async fn add(&mut self, rig: &Rig<'_>, load: Load<'_>, sterna: Sample) -> Result<()> {
        let number = self.sterna.len();
        self.sterna.push(sterna);
        tell("Sterna", number, self.sterna.last());
        self.plain.push(by_hand(rig, (Path::R, load), Style::Plain).await?);
        tell("plain QEMU", number, self.plain.last());
        self.multifd.push(by_hand(rig, (Path::R, load), Style::MultifdZstd).await?);
        tell("multifd and zstd", number, self.multifd.last());
        Ok(())
    }

    /// Bars are for wire bytes, total time and gap, in this order, beside plain and beside multifd.
    pub fn compare(&self, table: &mut Table, what: &str, bars: Option<[[f64; 3]; 2]>) {
        let [plain, multifd] = bars.map_or([None, None], |bars| bars.map(Some));
        compare(table, (what, "plain", plain), &self.sterna, &self.plain);
        compare(table, (what, "multifd+zstd", multifd), &self.sterna, &self.multifd);
        let pause = mid(&self.sterna, |s| s.pause_ms);
        table.info(&format!("{what}: pause, as the mover measured it"), pause, "ms", None);
    }
}

pub async fn case_r(rig: &Rig<'_>, repeats: usize) -> Result<Table> {
    let mut sides = Sides::default();
    for _ in 0..repeats {
        let sterna = cold(rig, Path::R, LOAD).await?;
        sides.add(rig, LOAD, sterna).await?;
    }
    let mut table = Table::default();
    table.note("case R: 512 MiB guest, 80 Mbit/s, 80 ms round trip, 2,000 sparse page writes a second, pause of 300 ms allowed");
    sides.compare(&mut table, "case R", Some([[0.22, 0.24, 0.50], [0.75, 0.82, 0.30]]));
    Ok(table)
}

/// A guest that the other side has not seen goes there.
pub async fn cold(rig: &Rig<'_>, path: Path, load: Load<'_>) -> Result<Sample> {
    let guest = rig.guest("cold", MEMORY).await?;
    rig.load(&guest, load).await?;
    rig.path(path)?;
    let sample = rig.by_sterna(&guest, rig.away).await?;
    rig.clear().await?;
    Ok(sample)
}

pub async fn by_hand(rig: &Rig<'_>, (path, load): (Path, Load<'_>), style: Style) -> Result<Sample> {
    let mut by_hand = rig.by_hand("by-hand", MEMORY).await?;
    rig.load(&by_hand.guest, load).await?;
    rig.path(path)?;
    let sample = rig.move_by_hand(&mut by_hand, style).await?;
    rig.fast()?;
    rig.end(by_hand).await?;
    rig.clear().await?;
    Ok(sample)
}

/// There, a while, and back.
pub async fn way_back(rig: &Rig<'_>, repeats: usize) -> Result<Table> {
    let (mut there, mut back, mut plain) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..repeats {
        let guest = rig.guest("returns", MEMORY).await?;
        rig.load(&guest, LOAD).await?;
        rig.path(Path::R)?;
        there.push(rig.by_sterna(&guest, rig.away).await?);
        tell("there", number, there.last());
        tokio::time::sleep(AWAY).await;
        back.push(rig.by_sterna(&guest, rig.home).await?);
        tell("back", number, back.last());
        rig.clear().await?;
        plain.push(by_hand(rig, (Path::R, LOAD), Style::Plain).await?);
        tell("plain QEMU", number, plain.last());
    }
    let mut table = Table::default();
    let [ours, base] = [&back, &plain].map(|side| mid(side, |s| s.bytes));
    note_unfinished(&mut table, "plain", &plain);
    table.bar("return after 20 s: wire bytes / plain", ours / base, "x", Bar::AtMost(0.02), Some(1.0));
    table.info("return: wire bytes", ours / MB, "MB", Some(base / MB));
    table.info("there: wire bytes", mid(&there, |s| s.bytes) / MB, "MB", Some(base / MB));
    let [ours, base] = [&back, &plain].map(|side| mid(side, |s| s.seconds));
    table.info("return: total time", ours, "s", Some(base));
    let [ours, base] = [&back, &plain].map(|side| mid(side, |s| s.gap_ms));
    table.info("return: gap", ours, "ms", finite(base));
    Ok(table)
}

type Compared<'a> = (&'a str, &'a str, Option<[f64; 3]>);

fn compare(table: &mut Table, (what, name, bars): Compared<'_>, ours: &[Sample], base: &[Sample]) {
    note_unfinished(table, &format!("{what}: {name}"), base);
    let fields: [(&str, &str, Field); 3] = [
        ("wire bytes", "MB", |s| s.bytes / MB),
        ("total time", "s", |s| s.seconds),
        ("gap", "ms", |s| s.gap_ms),
    ];
    for (index, (field, unit, of)) in fields.into_iter().enumerate() {
        let (value, base) = (mid(ours, of), reached(table, (what, name, field), base, of));
        table.info(&format!("{what}: {field}, beside {name}"), value, unit, finite(base));
        let (label, ratio) = (format!("{what}: {field} / {name}"), value / base);
        match bars {
            Some(bars) => table.bar(&label, ratio, "x", Bar::AtMost(bars[index]), Some(1.0)),
            None => table.info(&label, ratio, "x", Some(1.0)),
        }
    }
}

/// The baseline's own, or where too few of its moves were done for a median, that of those which were. None at all: not a
/// number, so that no bar holds; a note says which it is.
fn reached(table: &mut Table, (what, name, field): (&str, &str, &str), base: &[Sample], of: Field) -> f64 {
    let all = mid(base, of);
    if all.is_finite() {
        return all;
    }
    let done: Vec<f64> = base.iter().filter(|sample| sample.is_done).map(of).collect();
    let (count, all) = (done.len(), base.len());
    let why = match count {
        0 => "baseline not done: there is nothing to compare with, and no bar holds".to_owned(),
        _ => format!("the baseline's is that of the {count} of {all} moves that were done"),
    };
    table.note(format!("{what}: {field} / {name}: {why}"));
    median(&done)
}

/// What a move that was given up had sent and taken until then stands for what it would have.
pub fn note_unfinished(table: &mut Table, name: &str, samples: &[Sample]) {
    let unfinished = samples.iter().filter(|sample| !sample.is_done).count();
    if unfinished > 0 {
        let (all, limit) = (samples.len(), PATIENCE.as_secs());
        table.note(format!(
            "{name}: {unfinished} of {all} not done in {limit} s; its figures are those until then"
        ));
    }
}

pub fn mid(samples: &[Sample], field: Field) -> f64 {
    median(&samples.iter().map(field).collect::<Vec<_>>())
}

pub fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

/// Long rows are not silent.
pub fn tell(who: &str, number: usize, sample: Option<&Sample>) {
    if let Some(Sample { seconds, gap_ms, pause_ms, bytes, is_done }) = sample {
        let done = if *is_done { "" } else { ", not done" };
        println!(
            "  {} {who}: {:.1} MB, {seconds:.1} s, gap {gap_ms:.0} ms, pause {pause_ms:.0} ms{done}",
            number + 1,
            bytes / MB
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DONE: Sample = Sample { seconds: 10.0, gap_ms: 100.0, pause_ms: 90.0, bytes: 1e6, is_done: true };
    const GIVEN_UP: Sample =
        Sample { seconds: 150.0, gap_ms: f64::NAN, pause_ms: f64::NAN, bytes: 9e6, is_done: false };

    /// Of the gap, which only a move that was done has.
    fn compared(base: &[Sample]) -> (Table, Option<bool>) {
        let mut table = Table::default();
        compare(&mut table, ("R", "plain", Some([1.0; 3])), &[DONE], base);
        let holds = table.figures.iter().find(|figure| figure.name == "R: gap / plain").unwrap().holds;
        (table, holds)
    }

    #[test]
    fn a_bar_beside_a_baseline_that_was_never_done_is_there_and_does_not_hold() {
        let (table, holds) = compared(&[GIVEN_UP; 3]);
        assert_eq!(holds, Some(false));
        assert!(table.notes.iter().any(|note| note.contains("baseline not done")));
    }

    #[test]
    fn a_baseline_that_was_done_too_seldom_is_compared_by_those_that_were() {
        let (table, holds) = compared(&[GIVEN_UP, GIVEN_UP, DONE]);
        assert_eq!(holds, Some(true));
        assert!(table.notes.iter().any(|note| note.contains("1 of 3 moves that were done")));
        let (table, _) = compared(&[DONE; 3]);
        assert!(table.notes.is_empty());
    }
}
