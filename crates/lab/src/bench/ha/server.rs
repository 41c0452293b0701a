//! Every server is dead for a while, and whatever would start it again: nobody may notice but who asks it.

use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, ensure};
use rustix::process::Signal;
use sterna_client::object::Filter;
use sterna_model::ha::Profile;
use sterna_model::status::VmState;
use tokio::time::sleep;

use super::referee::{Judge, Referee};
use super::rig::{Guest, PATIENCE, Pace, Rig};
use crate::bench::table::{Bar, Table};
use crate::bench::world::until;
use crate::{member, up, user};

const GUESTS: usize = 20;
/// One of them crashes meanwhile.
const CRASHED: usize = 0;
/// After the servers are back and everything is quiet, before it is said that nothing was restarted for nothing.
const WATCHED: Duration = Duration::from_secs(20);
/// Long rows are not silent.
const TELL: Duration = Duration::from_secs(60);

/// How often each guest had booted, and how often it had marked.
type Counts = Vec<(usize, u32)>;

fn counts(judges: &[Judge]) -> Counts {
    judges.iter().map(|judge| (judge.boots.len(), judge.marks())).collect()
}

/// Guests that did not simply go on: another boot of them runs, or their last one stands still.
fn touched(before: &Counts, after: &Counts, leave_out: Option<usize>) -> usize {
    let pairs = before.iter().zip(after).enumerate().filter(|(guest, _)| Some(*guest) != leave_out);
    pairs.filter(|(_, (before, after))| before.0 != after.0 || before.1 >= after.1).count()
}

struct Seen {
    dead_for: Duration,
    /// Of all but the one that crashed, while no server lived.
    touched: usize,
    /// Until guest code of the one that crashed ran again.
    back: Duration,
    /// From the start of the server until all is known again and as it was.
    converged: Duration,
    /// Once the server was back.
    restarted: usize,
    doubles: u64,
    /// The longest pause of a guest that was left alone.
    pause: Duration,
}

pub async fn dead(rig: &Rig<'_>, row: &str, time: Duration) -> Result<Table> {
    rig.protect(Profile::Quick).await?;
    let mut guests = Vec::new();
    for number in 0..GUESTS {
        guests.push(rig.guest(&format!("calm-{number}"), Pace::Calm, None).await?);
    }
    let volumes: Vec<_> = guests.iter().map(|guest| &guest.volume).collect();
    let referee = Referee::watch(&volumes)?;
    for guest in 0..GUESTS {
        referee.marks_on(guest, PATIENCE).await?;
    }
    until(PATIENCE, "everything to be known", async || is_whole(rig).await).await?;
    println!("  {GUESTS} guests run; the server dies for {} s", time.as_secs());
    let seen = outage(rig, &guests, referee, time).await?;
    Ok(table(row, &seen))
}

async fn outage(rig: &Rig<'_>, guests: &[Guest], referee: Referee, time: Duration) -> Result<Seen> {
    let lab = &rig.world.lab;
    let before = counts(&referee.judges()?);
    ensure!(member::kill_role(lab, up::SERVER)? > 1, "no server ran under a supervisor");
    let died = Instant::now();
    wait(time / 2).await;
    let back = crash(rig, &guests[CRASHED], &referee).await?;
    println!("  a QEMU was killed; guest code again after {:.2} s", back.as_secs_f64());
    wait(time.saturating_sub(died.elapsed())).await;
    let judges = referee.judges()?;
    let left_alone = judges.iter().enumerate().filter(|(guest, _)| *guest != CRASHED);
    let boots = left_alone.filter_map(|(_, judge)| judge.boots.last());
    let pause = boots.map(|boot| boot.pause).max().unwrap_or_default();
    let dead = counts(&judges);
    let dead_for = died.elapsed();
    let began = Instant::now();
    up::start_server(lab)?;
    let is_known =
        async || Ok::<_, Error>(is_whole(rig).await? && is_crash_known(rig, &guests[CRASHED]).await?);
    until(PATIENCE, "everything to be known again", async || Ok(is_known().await.unwrap_or(false))).await?;
    let converged = began.elapsed();
    println!("  the server is back; all is known again after {:.1} s", converged.as_secs_f64());
    sleep(WATCHED).await;
    ensure!(is_whole(rig).await?, "what had converged did not stay so");
    let judges = referee.finish()?;
    Ok(Seen {
        dead_for,
        touched: touched(&before, &dead, Some(CRASHED)),
        back,
        converged,
        restarted: touched(&dead, &counts(&judges), None),
        doubles: judges.iter().map(Judge::doubles).sum(),
        pause,
    })
}

async fn wait(time: Duration) {
    let mut left = time;
    while !left.is_zero() {
        println!("  ... {:.0} s", left.as_secs_f64());
        let now = left.min(TELL);
        sleep(now).await;
        left -= now;
    }
}

/// Its QEMU dies; from then until guest code runs again.
async fn crash(rig: &Rig<'_>, guest: &Guest, referee: &Referee) -> Result<Duration> {
    let host = rig.world.host_of(user::owner(&guest.vm)?)?;
    let copy = rig.copy(host, &guest.vm)?;
    let known = referee.judge(CRASHED)?.boots.len();
    let began = Instant::now();
    copy.signal(Signal::KILL);
    let boot = referee.next_boot(CRASHED, known, PATIENCE).await.context("after its QEMU was killed")?;
    Ok(boot.first - began)
}

/// The server knows of every host and of every VM that it runs, and hosts hold leases again.
async fn is_whole(rig: &Rig<'_>) -> Result<bool> {
    let client = &rig.world.user.client;
    let hosts = client.hosts().list(&Filter::default()).await?;
    let is_ready = |host: &sterna_client::host::Host| {
        host.status.as_ref().is_some_and(|status| status.state == "ready" && status.protected_by == ["F3"])
    };
    let vms = client.vms().list(&Filter::default()).await?;
    let runs = |vm: &sterna_client::vm::Vm| {
        vm.status.as_ref().is_some_and(|status| status.state == VmState::Running)
    };
    let is_all = hosts.len() == rig.world.lab.hosts().count() && vms.len() == GUESTS;
    Ok(is_all && hosts.iter().all(is_ready) && vms.iter().all(runs))
}

/// The server knows what happened while it was dead: what it says is not only what it had stored.
async fn is_crash_known(rig: &Rig<'_>, guest: &Guest) -> Result<bool> {
    let vm = rig.world.user.client.vms().get(guest.name()).await?;
    Ok(vm.reports.values().any(|report| report.health.restarts > 0))
}

fn table(row: &str, seen: &Seen) -> Table {
    let mut table = Table::default();
    let time = seen.dead_for.as_secs_f64();
    table.note(format!("{row}: {GUESTS} guests of 16 MiB on all hosts, no server for {time:.0} s; the guard beside it lives on"));
    let mut bar = |what: &str, value: f64, unit: &str, limit: f64| {
        table.bar(&format!("{row}: {what}"), value, unit, Bar::AtMost(limit), None);
    };
    bar("guests touched", seen.touched as f64, "", 0.0);
    bar("a QEMU killed meanwhile: guest code again", seen.back.as_secs_f64(), "s", 2.0);
    bar("converged after the server's return", seen.converged.as_secs_f64(), "s", 10.0);
    bar("guests restarted for nothing after it", seen.restarted as f64, "", 0.0);
    bar("double writers", seen.doubles as f64, "", 0.0);
    // Each marks once a second.
    let pause = seen.pause.as_secs_f64();
    table.info(&format!("{row}: longest between two marks of a guest"), pause, "s", None);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_touched_that_booted_again_or_stands_still() {
        let before = vec![(1, 10), (1, 10), (1, 10), (1, 10)];
        let after = vec![(2, 3), (1, 20), (2, 12), (1, 10)];
        assert_eq!(touched(&before, &after, Some(0)), 2);
        assert_eq!(touched(&before, &after, None), 3);
        assert_eq!(touched(&after, &after, None), 4, "nobody marked on");
    }

    #[test]
    fn each_of_the_figures_can_miss() {
        let good = || Seen {
            dead_for: Duration::from_secs(600),
            touched: 0,
            back: Duration::from_secs(1),
            converged: Duration::from_secs(3),
            restarted: 0,
            doubles: 0,
            pause: Duration::from_secs(1),
        };
        assert!(table("row", &good()).all_hold());
        let bad = [
            Seen { touched: 1, ..good() },
            Seen { back: Duration::from_millis(2001), ..good() },
            Seen { converged: Duration::from_secs(11), ..good() },
            Seen { restarted: 1, ..good() },
            Seen { doubles: 1, ..good() },
        ];
        assert!(bad.iter().all(|seen| !table("row", seen).all_hold()));
    }
}
