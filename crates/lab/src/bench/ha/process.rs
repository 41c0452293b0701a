//! One process of a host is killed: the guest's QEMU, which must run again at once, or the agent, which nobody may notice.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use sterna_client::vm::Vm;
use sterna_model::ha::Profile;
use tokio::time::sleep;

use super::referee::Referee;
use super::rig::{Guest, PATIENCE, Pace, Rig};
use super::tally::{Tally, spread};
use crate::bench::table::{Bar, Table, percentile};
use crate::bench::world::Process;
use crate::place::Host;

const GUEST_CODE_AGAIN: f64 = 1.0;
const ADOPTED: f64 = 2.0;

/// Guest code ran again after so long.
struct Again {
    time: Duration,
    doubles: u64,
}

pub async fn qemu(rig: &Rig<'_>, row: &str, runs: usize) -> Result<Table> {
    rig.protect(Profile::Quick).await?;
    let host = rig.hosts[0];
    let guest = rig.guest("crashes", Pace::Close, Some(host)).await?;
    let mut tally = Tally::default();
    for _ in 0..runs {
        let run = crash(rig, &guest).await;
        tally.add(run, |run| format!("guest code again after {:.2} s", run.time.as_secs_f64()));
    }
    let mut table = Table::default();
    tally.note(&mut table, row);
    let times = tally.each(|run| run.time.as_secs_f64());
    let bar = Bar::AtMost(GUEST_CODE_AGAIN);
    table.bar(&format!("{row}: guest code again, p99"), percentile(&times, 0.99), "s", bar, None);
    let doubles = tally.sum(|run| run.doubles);
    table.bar(&format!("{row}: double writers"), doubles as f64, "", Bar::AtMost(0.0), None);
    spread(&mut table, &format!("{row}: guest code again"), &times);
    Ok(table)
}

async fn crash(rig: &Rig<'_>, guest: &Guest) -> Result<Again> {
    rest(rig, guest).await?;
    let referee = Referee::watch(&[&guest.volume])?;
    let (host, _) = rig.ready(Profile::Quick, guest, &referee).await?;
    let known = referee.judge(0)?.boots.len();
    let copy = rig.copy(host, &guest.vm)?;
    let began = Instant::now();
    copy.signal(Signal::KILL);
    let boot = referee.next_boot(0, known, PATIENCE).await.context("after its QEMU was killed")?;
    referee.marks_on(0, PATIENCE).await?;
    let judge = referee.finish()?.into_iter().next().context("one guest")?;
    ensure!(judge.boots.len() == known + 1, "it booted {} times", judge.boots.len() - known);
    Ok(Again { time: boot.first - began, doubles: judge.doubles() })
}

/// Restarts in a row come later and later: after a start that was asked for the next crash is the first again.
async fn rest(rig: &Rig<'_>, guest: &Guest) -> Result<()> {
    let (user, name) = (&rig.world.user, guest.name());
    user.running(name).await?;
    user.done(&user.client.vms().stop(name, true).await?).await?;
    user.done(&user.client.vms().start(name).await?).await?;
    user.running(name).await.map(drop)
}

/// What became of a VM whose host's agent was killed.
struct Adopted {
    /// Until another agent had its QEMU in hand.
    time: Duration,
    is_touched: bool,
    doubles: u64,
}

pub async fn agent(rig: &Rig<'_>, row: &str, runs: usize) -> Result<Table> {
    rig.protect(Profile::Quick).await?;
    let guest = rig.guest("stays", Pace::Close, Some(rig.hosts[0])).await?;
    let mut tally = Tally::default();
    for _ in 0..runs {
        tally.add(orphan(rig, &guest).await, |run| {
            let touched = if run.is_touched { ", TOUCHED" } else { "" };
            format!("adopted after {:.2} s{touched}", run.time.as_secs_f64())
        });
    }
    let mut table = Table::default();
    tally.note(&mut table, row);
    let touched = tally.sum(|run| u64::from(run.is_touched));
    table.bar(&format!("{row}: VMs lost or restarted"), touched as f64, "", Bar::AtMost(0.0), None);
    let times = tally.each(|run| run.time.as_secs_f64());
    let longest = percentile(&times, 1.0);
    table.bar(&format!("{row}: adopted, longest"), longest, "s", Bar::AtMost(ADOPTED), None);
    let doubles = tally.sum(|run| run.doubles);
    table.bar(&format!("{row}: double writers"), doubles as f64, "", Bar::AtMost(0.0), None);
    spread(&mut table, &format!("{row}: adopted"), &times);
    Ok(table)
}

async fn orphan(rig: &Rig<'_>, guest: &Guest) -> Result<Adopted> {
    let referee = Referee::watch(&[&guest.volume])?;
    // Also keeps each agent alive for longer than its supervisor calls short.
    let (host, _) = rig.ready(Profile::Quick, guest, &referee).await?;
    let before = referee.judge(0)?.boots.len();
    let copy = rig.copy(host, &guest.vm)?;
    let hands = Hands::of(rig, host, &guest.vm)?;
    let had = hands.held()?;
    ensure!(!had.is_empty(), "no agent has the VM in hand");
    let agent = rig.world.find(Process::Agent(host))?;
    let began = Instant::now();
    agent.signal(Signal::KILL);
    let time = loop {
        if hands.held()?.difference(&had).next().is_some() {
            break began.elapsed();
        }
        ensure!(began.elapsed() < PATIENCE, "no other agent took the VM in hand");
        sleep(Duration::from_millis(2)).await;
    };
    // What it would do to the VM it does soon after.
    rig.protected(Profile::Quick).await?;
    rig.world.user.running(guest.name()).await?;
    referee.marks_on(0, PATIENCE).await?;
    let judge = referee.finish()?.into_iter().next().context("one guest")?;
    let is_same = rig.copy(host, &guest.vm)?.pid == copy.pid;
    Ok(Adopted { time, is_touched: !is_same || judge.boots.len() > before, doubles: judge.doubles() })
}

/// Who has a VM in hand: whoever is connected to its shim, as the kernel has it.
struct Hands {
    /// In the host's network namespace, in which its unix sockets are listed.
    table: String,
    socket: String,
}

impl Hands {
    fn of(rig: &Rig<'_>, host: Host, vm: &Vm) -> Result<Self> {
        let table = format!("/proc/{}/net/unix", rig.world.find(Process::Shim(host))?.pid);
        Ok(Self { table, socket: format!("{}/shim.sock", vm.meta.uid) })
    }

    /// Each connection has a number of its own.
    fn held(&self) -> Result<BTreeSet<u64>> {
        let table = std::fs::read_to_string(&self.table).context("list the unix sockets of the host")?;
        Ok(connections(&table, &self.socket))
    }
}

/// Of `/proc/net/unix`: inodes of connected sockets (state 03) that were accepted at this socket.
fn connections(table: &str, socket: &str) -> BTreeSet<u64> {
    let fields = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    fields
        .filter_map(|fields| match fields[..] {
            [_, _, _, _, _, "03", inode, path] if path.ends_with(socket) => inode.parse().ok(),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_connections_to_this_shim_count() {
        let table = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 11 /run/x/vm/7/shim.sock\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 12 /run/x/vm/7/shim.sock\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 13 /run/x/vm/8/shim.sock\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 14\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 15 /run/x/vm/7/serial.sock\n";
        assert_eq!(connections(table, "7/shim.sock"), BTreeSet::from([12]));
    }
}
