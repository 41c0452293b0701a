//! A host is cut off: its cable is out of the switch for a while, and everything on it runs on.
//!
//! A short cut must cost no VM. A long one must: the copy there ends before another begins.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sterna_model::ha::Profile;
use tokio::time::sleep;

use super::referee::Referee;
use super::rig::{Guest, PATIENCE, Pace, Rig};
use super::tally::{Tally, spread};
use crate::bench::table::{Bar, Table, percentile};
use crate::place::Host;

/// A cut that should be survived, or not.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    pub profile: Profile,
    pub length: Duration,
    /// As long as a lease lasts, and more: what a cut kills is dead by then.
    pub lease: Duration,
}

pub const SHORT: Cut =
    Cut { profile: Profile::Quick, length: Duration::from_secs(2), lease: Duration::from_secs(4) };
pub const SHORT_STANDARD: Cut =
    Cut { profile: Profile::Standard, length: Duration::from_secs(8), lease: Duration::from_secs(10) };
pub const LONG: Cut =
    Cut { profile: Profile::Quick, length: Duration::from_secs(10), lease: Duration::from_secs(4) };

/// Of a cut of [`LONG`]: from the cut until the copy on the cut side is gone, and until guest code runs elsewhere.
const DEAD: f64 = 4.5;
const ELSEWHERE: f64 = 9.5;
/// Longer than a lease lasts after it was renewed for the last time.
const MARGIN: Duration = Duration::from_secs(2);

/// What became of a VM in a cut that it should survive.
struct Kept {
    is_killed: bool,
    /// The longest that the guest stood still.
    pause: Duration,
    doubles: u64,
}

pub async fn kept(rig: &Rig<'_>, row: &str, cut: Cut, runs: usize) -> Result<Table> {
    rig.protect(cut.profile).await?;
    let guest = rig.guest("cut", Pace::Close, Some(rig.hosts[0])).await?;
    let mut tally = Tally::default();
    for _ in 0..runs {
        tally.add(survive(rig, &guest, cut).await, |run| {
            let fate = if run.is_killed { "KILLED" } else { "lives" };
            format!("{fate}, stood still for {:.2} s at most", run.pause.as_secs_f64())
        });
    }
    Ok(kept_table(row, &tally))
}

async fn survive(rig: &Rig<'_>, guest: &Guest, cut: Cut) -> Result<Kept> {
    let referee = Referee::watch(&[&guest.volume])?;
    let (host, other) = rig.ready(cut.profile, guest, &referee).await?;
    rig.is_only_on(&guest.vm, host, other)?;
    let copy = rig.copy(host, &guest.vm)?;
    let known = referee.judge(0)?.boots.len();
    unplugged(rig, host, cut.length).await?;
    let until = Instant::now() + cut.lease + MARGIN;
    let is_ended = tokio::task::spawn_blocking(move || copy.has_ended_by(until)).await?;
    // Also what was killed runs again before the next one.
    referee.marks_on(0, PATIENCE).await?;
    rig.protected(cut.profile).await?;
    let judge = referee.finish()?.into_iter().next().context("one guest")?;
    let is_killed = is_ended || judge.boots.len() > known;
    let pause = judge.boots.get(known - 1).map_or(Duration::ZERO, |boot| boot.pause);
    Ok(Kept { is_killed, pause, doubles: judge.doubles() })
}

/// For so long; it is plugged in again also when something fails meanwhile.
async fn unplugged(rig: &Rig<'_>, host: Host, length: Duration) -> Result<()> {
    rig.cable(host, false)?;
    sleep(length).await;
    rig.cable(host, true)
}

fn kept_table(row: &str, tally: &Tally<Kept>) -> Table {
    let mut table = Table::default();
    tally.note(&mut table, row);
    let killed = tally.sum(|run| u64::from(run.is_killed));
    table.bar(&format!("{row}: VMs killed"), killed as f64, "", Bar::AtMost(0.0), None);
    let doubles = tally.sum(|run| run.doubles);
    table.bar(&format!("{row}: double writers"), doubles as f64, "", Bar::AtMost(0.0), None);
    let pauses = tally.each(|run| run.pause.as_secs_f64());
    spread(&mut table, &format!("{row}: guest stood still"), &pauses);
    table
}

/// What became of a VM in a cut that it cannot survive.
struct Lost {
    /// From the cut until its process was gone.
    dead: Duration,
    /// From the cut until its last mark was seen.
    last: Duration,
    /// From the cut until guest code ran elsewhere.
    elsewhere: Duration,
    doubles: u64,
}

pub async fn lost(rig: &Rig<'_>, row: &str, cut: Cut, runs: usize) -> Result<Table> {
    rig.protect(cut.profile).await?;
    let guest = rig.guest("cut", Pace::Close, Some(rig.hosts[0])).await?;
    let mut tally = Tally::default();
    for _ in 0..runs {
        tally.add(give_up(rig, &guest, cut).await, |run| {
            let [dead, elsewhere] = [run.dead, run.elsewhere].map(|time| time.as_secs_f64());
            format!("dead after {dead:.2} s, elsewhere after {elsewhere:.2} s")
        });
    }
    Ok(lost_table(row, &tally))
}

async fn give_up(rig: &Rig<'_>, guest: &Guest, cut: Cut) -> Result<Lost> {
    let referee = Referee::watch(&[&guest.volume])?;
    let (host, other) = rig.ready(cut.profile, guest, &referee).await?;
    rig.is_only_on(&guest.vm, host, other)?;
    let copy = rig.copy(host, &guest.vm)?;
    let known = referee.judge(0)?.boots.len();
    let began = Instant::now();
    rig.cable(host, false)?;
    let gone = tokio::task::spawn_blocking(move || copy.has_ended_by(began + PATIENCE).then(Instant::now));
    sleep(cut.length).await;
    rig.cable(host, true)?;
    let gone = gone.await?.context("the copy on the cut side never ended")?;
    let boot = referee.next_boot(0, known, PATIENCE).await.context("after its host was cut off")?;
    ensure!(
        gone < boot.first,
        "guest code ran elsewhere {:?} before the old copy was gone",
        gone - boot.first
    );
    rig.is_only_on(&guest.vm, other, host)?;
    rig.protected(cut.profile).await?;
    let judge = referee.finish()?.into_iter().next().context("one guest")?;
    let last = judge.boots.get(known - 1).context("the copy that was cut off")?.last;
    Ok(Lost {
        dead: gone - began,
        last: last - began,
        elsewhere: boot.first - began,
        doubles: judge.doubles(),
    })
}

fn lost_table(row: &str, tally: &Tally<Lost>) -> Table {
    let mut table = Table::default();
    tally.note(&mut table, row);
    let (dead, elsewhere) =
        (tally.each(|run| run.dead.as_secs_f64()), tally.each(|run| run.elsewhere.as_secs_f64()));
    let longest = |samples: &[f64]| percentile(samples, 1.0);
    table.bar(&format!("{row}: dead on the cut side, longest"), longest(&dead), "s", Bar::AtMost(DEAD), None);
    let what = format!("{row}: guest code elsewhere, longest");
    table.bar(&what, longest(&elsewhere), "s", Bar::AtMost(ELSEWHERE), None);
    let doubles = tally.sum(|run| run.doubles);
    table.bar(&format!("{row}: double writers"), doubles as f64, "", Bar::AtMost(0.0), None);
    table.info(&format!("{row}: dead on the cut side, p50"), percentile(&dead, 0.5), "s", None);
    table.info(&format!("{row}: guest code elsewhere, p50"), percentile(&elsewhere, 0.5), "s", None);
    let last = tally.each(|run| run.last.as_secs_f64());
    table.info(&format!("{row}: last mark on the cut side, longest"), longest(&last), "s", None);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept_of(is_killed: bool, doubles: u64) -> Table {
        let mut tally = Tally::default();
        let pause = Duration::from_millis(55);
        tally.add(Ok(Kept { is_killed, pause, doubles }), |_| String::new());
        kept_table("cut", &tally)
    }

    #[test]
    fn one_vm_that_a_short_cut_killed_misses() {
        assert!(kept_of(false, 0).all_hold());
        assert!(!kept_of(true, 0).all_hold() && !kept_of(false, 1).all_hold());
    }

    #[test]
    fn a_long_cut_has_a_bar_on_each_side() {
        let holds = |dead: u64, elsewhere: u64| {
            let [dead, elsewhere] = [dead, elsewhere].map(Duration::from_millis);
            let mut tally = Tally::default();
            tally.add(Ok(Lost { dead, last: dead, elsewhere, doubles: 0 }), |_| String::new());
            lost_table("cut", &tally).all_hold()
        };
        assert!(holds(4400, 9400));
        assert!(!holds(4600, 9400) && !holds(4400, 9600));
    }
}
