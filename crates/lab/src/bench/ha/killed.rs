//! A host is killed, all its processes at once: when does guest code of its VM run elsewhere, and when does its service
//! answer there?
//!
//! The first is seen on the guest's disk, of a guest that marks it at its first instructions; the second by a client in
//! another datacentre, of a guest that boots an operating system first.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sterna_client::vm::Vm;
use sterna_model::ha::Profile;

use super::referee::Referee;
use super::rig::{Guest, PATIENCE, Pace, Rig};
use super::tally::{Tally, spread};
use crate::bench::table::{Bar, Table, percentile};
use crate::probe::http;
use crate::user;

/// What is expected of a profile.
#[derive(Debug, Clone, Copy)]
pub struct Bars {
    pub profile: Profile,
    /// Until guest code runs elsewhere, in seconds: half of the runs, where that is asked for, and all of them.
    pub p50: Option<f64>,
    pub longest: f64,
}

pub const QUICK: Bars = Bars { profile: Profile::Quick, p50: Some(8.0), longest: 9.5 };
pub const FAST: Bars = Bars { profile: Profile::Fast, p50: None, longest: 5.0 };
pub const STANDARD: Bars = Bars { profile: Profile::Standard, p50: None, longest: 18.0 };

/// For one run with a service there are so many without.
const SERVICE_OF: usize = 10;

struct Run {
    /// From the first signal until guest code ran elsewhere.
    ran: Duration,
    doubles: u64,
}

pub async fn killed(rig: &Rig<'_>, row: &str, bars: Bars, runs: usize) -> Result<Table> {
    rig.protect(bars.profile).await?;
    let guest = rig.guest("killed", Pace::Close, Some(rig.hosts[0])).await?;
    let mut tally = Tally::default();
    for _ in 0..runs {
        let run = once(rig, &guest, bars.profile).await;
        tally.add(run, |run| format!("guest code elsewhere after {:.2} s", run.ran.as_secs_f64()));
    }
    rig.world.user.remove(guest.name()).await?;
    let served = if bars.profile == Profile::Quick { runs.div_ceil(SERVICE_OF) } else { 0 };
    let services = services(rig, bars.profile, served).await?;
    Ok(table(row, bars, &tally, &services))
}

async fn once(rig: &Rig<'_>, guest: &Guest, profile: Profile) -> Result<Run> {
    let referee = Referee::watch(&[&guest.volume])?;
    let (host, other) = rig.ready(profile, guest, &referee).await?;
    rig.is_only_on(&guest.vm, host, other)?;
    let known = referee.judge(0)?.boots.len();
    let began = Instant::now();
    rig.kill(host).await?;
    let boot = referee.next_boot(0, known, PATIENCE).await;
    // Whatever became of the guest: the next run needs the host.
    let on_other = rig.is_only_on(&guest.vm, other, host);
    rig.start(host).await?;
    let boot = boot.context("after its host was killed")?;
    on_other?;
    // Looked at until the host has a lease again: what was there must not come back with it.
    rig.protected(profile).await?;
    let judges = referee.finish()?;
    Ok(Run { ran: boot.first - began, doubles: judges.first().context("one guest")?.doubles() })
}

/// When a VM's service answered after its host was killed, and datagrams that two of it answered then.
struct Service {
    answered: Duration,
    doubles: u64,
}

async fn services(rig: &Rig<'_>, profile: Profile, runs: usize) -> Result<Tally<Service>> {
    let mut tally = Tally::default();
    if runs == 0 {
        return Ok(tally);
    }
    let vm = rig.service("served", rig.hosts[0]).await?;
    for _ in 0..runs {
        let run = service(rig, &vm, profile).await;
        tally.add(run, |run| format!("its service answers after {:.2} s", run.answered.as_secs_f64()));
    }
    rig.world.user.remove(vm.name()).await?;
    Ok(tally)
}

async fn service(rig: &Rig<'_>, vm: &Vm, profile: Profile) -> Result<Service> {
    let (host, _) = rig.steady(profile, vm.name()).await?;
    let (guest, space) = (user::address(vm)?, rig.world.space(rig.client));
    rig.world.guest_answers(rig.client, guest).await?;
    let probes = rig.world.probes(rig.client, guest, false).await?;
    let began = Instant::now();
    rig.kill(host).await?;
    let first = move || http::first_answer(&space, guest, "/healthz", began + PATIENCE);
    let answered = tokio::task::spawn_blocking(first).await?;
    rig.start(host).await?;
    rig.protected(profile).await?;
    let seen = tokio::task::spawn_blocking(move || probes.finish()).await??;
    let doubles = seen.udp.context("no echo")?.doubled;
    Ok(Service { answered: answered? - began, doubles })
}

fn table(row: &str, bars: Bars, tally: &Tally<Run>, services: &Tally<Service>) -> Table {
    let mut table = Table::default();
    tally.note(&mut table, row);
    let ran = tally.each(|run| run.ran.as_secs_f64());
    let what = format!("{row}: guest code elsewhere");
    if let Some(p50) = bars.p50 {
        table.bar(&format!("{what}, p50"), percentile(&ran, 0.5), "s", Bar::AtMost(p50), None);
    }
    table.bar(&format!("{what}, longest"), percentile(&ran, 1.0), "s", Bar::AtMost(bars.longest), None);
    table.info(&format!("{what}, shortest"), percentile(&ran, 0.0), "s", None);
    table.info(&format!("{what}, p99"), percentile(&ran, 0.99), "s", None);
    let doubles = tally.sum(|run| run.doubles) + services.sum(|run| run.doubles);
    table.bar(&format!("{row}: double writers"), doubles as f64, "", Bar::AtMost(0.0), None);
    if services.count() > 0 {
        services.note(&mut table, &format!("{row}, with a service"));
        let answered = services.each(|run| run.answered.as_secs_f64());
        spread(&mut table, &format!("{row}: its service answers"), &answered);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(seconds: &[f64], doubles: u64) -> Tally<Run> {
        let mut tally = Tally::default();
        for ran in seconds {
            let run = Run { ran: Duration::from_secs_f64(*ran), doubles };
            tally.add(Ok(run), |_| String::new());
        }
        tally
    }

    #[test]
    fn half_and_all_of_the_runs_have_bars_of_their_own_and_one_double_writer_misses() {
        let holds = |bars, tally: &Tally<Run>| table("row", bars, tally, &Tally::default()).all_hold();
        assert!(holds(QUICK, &tally(&[7.5, 7.9, 9.4], 0)));
        assert!(!holds(QUICK, &tally(&[7.5, 8.1, 8.2], 0)), "the half is late");
        assert!(!holds(QUICK, &tally(&[7.5, 7.6, 9.6], 0)), "one is late");
        assert!(!holds(QUICK, &tally(&[7.5], 1)), "a double writer");
        assert!(!holds(QUICK, &tally(&[], 0)), "nothing was measured");
        assert!(holds(STANDARD, &tally(&[17.0], 0)), "no bar for the half");
    }
}
