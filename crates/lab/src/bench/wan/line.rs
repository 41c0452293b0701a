//! Lines that are cut, slow, long or lossy.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::time::sleep;

use super::case::{self, LOAD, MB, finite, mid, tell};
use super::load::Load;
use super::rig::{MEMORY, Path, Rig, Sample};
use crate::bench::plain::Style;
use crate::bench::table::{Bar, Table, median};

const CUT: Duration = Duration::from_secs(30);
/// The line is cut after this: no move of case R is through its first pass by then, or still before it.
const FIRST_BYTES: f64 = 30e6;
const SLOW: Path = Path { rtt_ms: 80, mbit_s: 16, loss: 0.0 };
const LONG_AND_LOSSY: Path = Path { rtt_ms: 300, mbit_s: 20, loss: 0.001 };
/// Of a fitted line's points.
const RTTS_MS: [u64; 4] = [0, 100, 200, 300];
/// Why the bar is where it is.
const LEAST: &str = "gap by round trip: a client in the datacentre that is left cannot see a slope below 1 RTT (half of it for the end of the memory to get there, half for the answer to come back), one where the guest arrives can see 0; the bar of 0.7 is on the mean of both, neither alone is held to it";
const IDLE: Load<'static> = &[];

/// The line is cut in the middle of a move, beside a move that nothing disturbs.
pub async fn outage(rig: &Rig<'_>, repeats: usize) -> Result<Table> {
    let (mut calm, mut cut) = (Vec::new(), Vec::new());
    for number in 0..repeats {
        calm.push(case::cold(rig, Path::R, LOAD).await?);
        tell("undisturbed", number, calm.last());
        cut.push(cut_in_the_middle(rig).await?);
        tell("cut for 30 s", number, cut.last());
    }
    let mut table = Table::default();
    let [ours, base] = [&cut, &calm].map(|side| mid(side, |s| s.bytes));
    let more = (ours / base - 1.0) * 100.0;
    // A move that failed, or was begun anew by somebody, has not come here.
    table.note("outage: the same move, in the same transfer, arrived each time");
    table.bar("30 s outage: extra bytes", more, "%", Bar::AtMost(5.0), None);
    table.info("30 s outage: wire bytes", ours / MB, "MB", Some(base / MB));
    let [ours, base] = [&cut, &calm].map(|side| mid(side, |s| s.seconds));
    table.info("30 s outage: total time", ours, "s", Some(base));
    let [ours, base] = [&cut, &calm].map(|side| mid(side, |s| s.gap_ms));
    table.info("30 s outage: gap", ours, "ms", Some(base));
    Ok(table)
}

async fn cut_in_the_middle(rig: &Rig<'_>) -> Result<Sample> {
    let guest = rig.guest("cut", MEMORY).await?;
    rig.load(&guest, LOAD).await?;
    rig.path(Path::R)?;
    let cut = async {
        let (before, until) = (rig.bytes()?, Instant::now() + CUT);
        while rig.bytes()? - before < FIRST_BYTES {
            ensure!(Instant::now() < until, "the move sends nothing");
            sleep(Duration::from_millis(50)).await;
        }
        rig.connect(false)?;
        sleep(CUT).await;
        rig.connect(true)
    };
    let sample = rig.by_sterna_while(&guest, rig.away, cut).await?;
    ensure!(sample.seconds > CUT.as_secs_f64(), "the move was over before the line was cut");
    rig.clear().await?;
    Ok(sample)
}

/// Case R at a fifth of its rate.
pub async fn slow(rig: &Rig<'_>, repeats: usize) -> Result<Table> {
    let (mut ours, mut plain) = (Vec::new(), Vec::new());
    for number in 0..repeats {
        ours.push(case::cold(rig, SLOW, LOAD).await?);
        tell("Sterna", number, ours.last());
        plain.push(case::by_hand(rig, (SLOW, LOAD), Style::Plain).await?);
        tell("plain QEMU", number, plain.last());
    }
    let mut table = Table::default();
    case::note_unfinished(&mut table, "16 Mbit/s: plain", &plain);
    let gaps = [&ours, &plain].map(|side| mid(side, |s| s.gap_ms));
    table.bar("16 Mbit/s: gap", gaps[0], "ms", Bar::AtMost(1100.0), finite(gaps[1]));
    let times = [&ours, &plain].map(|side| mid(side, |s| s.seconds));
    table.info("16 Mbit/s: total time", times[0], "s", Some(times[1]));
    let bytes = [&ours, &plain].map(|side| mid(side, |s| s.bytes) / MB);
    table.info("16 Mbit/s: wire bytes", bytes[0], "MB", Some(bytes[1]));
    table.info("16 Mbit/s: pause, as the mover measured it", mid(&ours, |s| s.pause_ms), "ms", None);
    Ok(table)
}

/// How the gap of an idle guest grows with the round trip.
///
/// It depends on where the client is:
///
/// ```text
///  one behind   last answer at once ......... | the end of its memory goes there: 1/2 | its answer comes back: 1/2 |
///  one ahead    last answer 1/2 late ........ | the end of its memory is there, and so is the answer
/// ```
///
/// So no move whatever can have less than one round trip for a client in the datacentre that is left, nor need it have any
/// for one in the datacentre where the guest arrives. A bar of 0.7 can only be meant for both together: it is on their mean,
/// whose least is 0.5. Both slopes are printed beside their least, and the worse of both once more.
pub async fn rtt(rig: &Rig<'_>, repeats: usize) -> Result<Table> {
    let (mut near, mut far) = (Vec::new(), Vec::new());
    let (mut pause, mut plain) = (Vec::new(), Vec::new());
    for rtt_ms in RTTS_MS {
        let path = Path { rtt_ms, ..Path::R };
        let mut sides = [Vec::new(), Vec::new(), Vec::new()];
        for number in 0..repeats {
            sides[0].push(case::cold(rig, path, IDLE).await?);
            tell(&format!("{rtt_ms} ms, client behind"), number, sides[0].last());
            sides[1].push(case::cold(&rig.seen_from_ahead()?, path, IDLE).await?);
            tell(&format!("{rtt_ms} ms, client ahead"), number, sides[1].last());
            sides[2].push(case::by_hand(rig, (path, IDLE), Style::Plain).await?);
            tell(&format!("{rtt_ms} ms, plain QEMU, client behind"), number, sides[2].last());
        }
        near.push(mid(&sides[0], |s| s.gap_ms));
        far.push(mid(&sides[1], |s| s.gap_ms));
        pause.push(median(&sides[..2].concat().iter().map(|s| s.pause_ms).collect::<Vec<_>>()));
        plain.push(mid(&sides[2], |s| s.gap_ms));
    }
    let mut table = Table::default();
    slopes(&mut table, [&near, &far, &pause, &plain])?;
    for (index, rtt_ms) in RTTS_MS.into_iter().enumerate() {
        let (name, base) = (format!("gap at {rtt_ms} ms, client behind"), finite(plain[index]));
        table.info(&name, near[index], "ms", base);
        table.info(&format!("gap at {rtt_ms} ms, client ahead"), far[index], "ms", None);
    }
    lossy(rig, &mut table).await?;
    Ok(table)
}

/// Of the gaps of clients behind and ahead, of the pause, and of the gap by hand.
fn slopes(table: &mut Table, [near, far, pause, plain]: [&[f64]; 4]) -> Result<()> {
    let both: Vec<f64> = near.iter().zip(far).map(|(near, far)| f64::midpoint(*near, *far)).collect();
    let of = |gaps: &[f64]| slope(gaps).context("no round trips");
    let (behind, ahead, base) = (of(near)?, of(far)?, of(plain)?);
    table.note(LEAST);
    let name = "gap by round trip, idle: slope, mean of a client behind and one ahead";
    table.bar(name, of(&both)?, "RTT", Bar::AtMost(0.7), None);
    table.info("gap by round trip: slope for a client behind (least possible: 1)", behind, "RTT", Some(base));
    table.info("gap by round trip: slope for a client ahead (least possible: 0)", ahead, "RTT", None);
    let worse = "gap by round trip: slope, the worse of both, more than its least";
    table.info(worse, (behind - 1.0).max(ahead), "RTT", None);
    table.info("pause by round trip, as the mover measured it", of(pause)?, "RTT", None);
    Ok(())
}

/// At 300 ms, 20 Mbit/s and 0.1 % loss a guest under load still gets there.
async fn lossy(rig: &Rig<'_>, table: &mut Table) -> Result<()> {
    let sample = case::cold(rig, LONG_AND_LOSSY, LOAD).await;
    if let Err(error) = &sample {
        table.note(format!("300 ms, 20 Mbit/s, 0.1 % loss: {error:#}"));
    }
    let arrived = f64::from(u8::from(sample.is_ok()));
    table.bar("300 ms, 20 Mbit/s, 0.1 % loss: arrived", arrived, "", Bar::AtLeast(1.0), None);
    if let Ok(sample) = sample {
        tell("300 ms, 20 Mbit/s, 0.1 % loss", 0, Some(&sample));
        table.info("300 ms, 20 Mbit/s, 0.1 % loss: total time", sample.seconds, "s", None);
        table.info("300 ms, 20 Mbit/s, 0.1 % loss: gap", sample.gap_ms, "ms", None);
    }
    Ok(())
}

/// Of the straight line that fits values at [`RTTS_MS`] best.
fn slope(values: &[f64]) -> Option<f64> {
    let rtts = RTTS_MS.map(|rtt| rtt as f64);
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (x, y) = (mean(&rtts), mean(values));
    let both = rtts.iter().zip(values);
    let (above, below) = both.fold((0.0, 0.0), |(above, below), (rtt, value)| {
        (above + (rtt - x) * (value - y), below + (rtt - x) * (rtt - x))
    });
    (values.len() == rtts.len() && below > 0.0).then(|| above / below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_straight_line_is_found_again() {
        let values = RTTS_MS.map(|rtt| 40.0 + 0.6 * rtt as f64);
        assert!((slope(&values).unwrap() - 0.6).abs() < 1e-9);
        assert_eq!(slope(&[5.0; 4]), Some(0.0));
        assert_eq!(slope(&[5.0]), None);
    }

    #[test]
    fn what_is_not_a_number_has_no_slope_that_holds() {
        let slope = slope(&[1.0, f64::NAN, 2.0, 3.0]).unwrap();
        assert!(slope.is_nan());
    }
}
