//! Processes that belong to a lab: each carries `STERNA_LAB_MEMBER=DIR:ROLE` in its environment, and so do its children
//! unless they were given an empty one.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::place::{Host, Lab};

const MARK: &str = "STERNA_LAB_MEMBER";

/// A running process of a lab.
#[derive(Debug)]
pub struct Member {
    pub pid: i32,
    /// `server`, `witness`, `wan-` and the name of a line, a host's name, and that with `-guard` or `-watchdog`.
    pub role: String,
    /// Its arguments, joined.
    pub line: String,
    handle: OwnedFd,
}

impl Member {
    fn open(pid: i32, dir: &str) -> Option<Self> {
        let handle = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        // Read after the handle was opened: all are about the same process. A QEMU gets no environment; its shim has one.
        let mark = mark(pid).or_else(|| mark(parent(pid)?))?;
        let role = mark.strip_prefix(dir)?.strip_prefix(':')?.to_owned();
        Some(Self { pid, role, line: command_line(pid), handle })
    }

    /// A process of a namespace of the lab that has lost its mark.
    fn unmarked(pid: i32) -> Option<Self> {
        let handle = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        Some(Self { pid, role: "namespace".to_owned(), line: command_line(pid), handle })
    }

    /// The one that restarts the others of its role.
    #[must_use]
    pub fn is_supervisor(&self) -> bool {
        self.line.split(' ').nth(1) == Some("supervise")
    }

    /// One that is gone already needs no signal.
    pub fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.handle, signal);
    }

    /// Waits for its end, until the deadline at the latest.
    #[must_use]
    pub fn has_ended_by(&self, deadline: Instant) -> bool {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout =
                Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
            match poll(&mut [PollFd::new(&self.handle, PollFlags::IN)], Some(&timeout)) {
                Err(rustix::io::Errno::INTR) => {}
                outcome => return outcome.is_ok_and(|ready| ready > 0),
            }
        }
    }
}

fn mark(pid: i32) -> Option<String> {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
    environment.split(|byte| *byte == 0).find_map(|pair| {
        std::str::from_utf8(pair).ok()?.strip_prefix(MARK)?.strip_prefix('=').map(str::to_owned)
    })
}

fn parent(pid: i32) -> Option<i32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok())
}

fn command_line(pid: i32) -> String {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<_> = bytes.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
    words.join(" ").trim_end().to_owned()
}

/// Every process of the lab in `dir`.
#[must_use]
pub fn all(dir: &Path) -> Vec<Member> {
    let dir = dir.to_string_lossy();
    let own = std::process::id().cast_signed();
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| *pid != own).filter_map(|pid| Member::open(pid, &dir)).collect()
}

/// Every process with this text in its command line: shims and QEMUs name their VM's run directory in theirs, and carry
/// no mark.
#[must_use]
pub fn naming(text: &str) -> Vec<Member> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(Member::unmarked).filter(|member| member.line.contains(text)).collect()
}

/// The process that keeps `role` running, if it runs.
#[must_use]
pub fn supervisor(dir: &Path, role: &str) -> Option<Member> {
    all(dir).into_iter().find(|member| member.role == role && member.is_supervisor())
}

/// Starts `words` (a command of this binary) under a supervisor, inside a namespace and a cgroup if they are given.
pub struct Start<'a> {
    pub role: &'a str,
    pub space: Option<&'a str>,
    pub cgroup: Option<&'a Path>,
    pub words: &'a [String],
}

/// Does nothing when the role has a supervisor already. Returns whether it started one.
pub fn ensure_running(lab: &Lab, start: &Start) -> Result<bool> {
    if supervisor(&lab.dir, start.role).is_some() {
        return Ok(false);
    }
    // What an ended supervisor left running would be there twice. VMs and what serves them stay: they are adopted.
    let left = all(&lab.dir)
        .into_iter()
        .filter(|member| member.role == start.role && member.line.ends_with(&start.words.join(" ")));
    end(left.collect(), Duration::from_secs(5))?;
    let binary = std::env::current_exe().context("find this program")?;
    let log = lab.log(start.role);
    std::fs::create_dir_all(lab.dir.join("log")).context("make the log folder")?;
    let mut command = Command::new(&binary);
    command.arg("supervise").arg("--log").arg(&log);
    if let Some(cgroup) = start.cgroup {
        command.arg("--cgroup").arg(cgroup);
    }
    command.arg("--");
    // The supervisor stays outside: `ip netns exec` mounts another /sys, where no cgroup can be entered.
    if let Some(space) = start.space {
        command.args(["ip", "netns", "exec", space]);
    }
    command.arg(&binary).args(start.words);
    command.env(MARK, format!("{}:{}", lab.dir.display(), start.role));
    let errors = OpenOptions::new().create(true).append(true).open(&log).context("open the log")?;
    // Its own session: neither Ctrl-C nor the end of this terminal is for it.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors).process_group(0).current_dir("/");
    let mut child = command.spawn().with_context(|| format!("start {}", start.role))?;
    wait_until_running(&mut child, lab, start.role)?;
    Ok(true)
}

fn wait_until_running(child: &mut std::process::Child, lab: &Lab, role: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(5);
    while supervisor(&lab.dir, role).is_none() {
        let ended = child.try_wait().context("look after what was started")?;
        ensure!(ended.is_none(), "{role} ended at once; see {}", lab.log(role).display());
        ensure!(Instant::now() < deadline, "{role} did not start in 5 s; see {}", lab.log(role).display());
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Ends processes: asks first, then kills, and waits until they are gone.
pub fn end(members: Vec<Member>, patience: Duration) -> Result<()> {
    members.iter().for_each(|member| member.signal(Signal::TERM));
    let deadline = Instant::now() + patience;
    let stubborn: Vec<_> = members.into_iter().filter(|member| !member.has_ended_by(deadline)).collect();
    kill(stubborn)
}

/// Kills processes and waits until they are gone.
pub fn kill(members: Vec<Member>) -> Result<()> {
    members.iter().for_each(|member| member.signal(Signal::KILL));
    let deadline = Instant::now() + Duration::from_secs(10);
    let left: Vec<_> =
        members.iter().filter(|member| !member.has_ended_by(deadline)).map(|member| member.pid).collect();
    ensure!(left.is_empty(), "processes {left:?} do not end, not even killed");
    Ok(())
}

/// Kills all that belongs to a lab, also what is started meanwhile. Returns how many.
pub fn kill_all(lab: &Lab) -> Result<usize> {
    kill_until_none(|| Ok(with(all(&lab.dir), in_spaces(lab)?)))
}

/// Everything that runs on a host: agent, guard, guests, and what would start them again. Its watchdog stands outside.
pub fn on_host(lab: &Lab, host: Host) -> Result<Vec<Member>> {
    let (name, guard) = (host.name(), crate::command::guard_role(host));
    let is_inside = |member: &Member| member.role == name || member.role == guard;
    let members = all(&lab.dir).into_iter().filter(is_inside).collect();
    Ok(with(members, in_space(&lab.host_space(host))?))
}

/// Kills all that runs on a host at once, as the loss of its power would. Returns how many.
pub fn kill_host(lab: &Lab, host: Host) -> Result<usize> {
    kill_until_none(|| on_host(lab, host))
}

/// Kills what has this role, and what would start it again. Returns how many.
pub fn kill_role(lab: &Lab, role: &str) -> Result<usize> {
    kill_until_none(|| Ok(all(&lab.dir).into_iter().filter(|member| member.role == role).collect()))
}

/// Each once.
fn with(mut members: Vec<Member>, others: Vec<Member>) -> Vec<Member> {
    let known: BTreeSet<_> = members.iter().map(|member| member.pid).collect();
    members.extend(others.into_iter().filter(|member| !known.contains(&member.pid)));
    members
}

fn kill_until_none(find: impl Fn() -> Result<Vec<Member>>) -> Result<usize> {
    let mut killed = BTreeSet::new();
    loop {
        let mut members = find()?;
        if members.is_empty() {
            return Ok(killed.len());
        }
        // Supervisors first: they would start the others again.
        members.sort_by_key(|member| !member.is_supervisor());
        killed.extend(members.iter().map(|member| member.pid));
        kill(members)?;
    }
}

fn in_spaces(lab: &Lab) -> Result<Vec<Member>> {
    let mut members = Vec::new();
    for space in lab.spaces().iter().filter(|space| crate::netns::exists(space)) {
        members.extend(in_space(space)?);
    }
    Ok(members)
}

fn in_space(space: &str) -> Result<Vec<Member>> {
    let text = crate::netns::run(Command::new("ip").args(["netns", "pids", space]), "")?;
    let own = std::process::id().cast_signed();
    let pids = text.lines().filter_map(|line| line.trim().parse().ok()).filter(|pid| *pid != own);
    Ok(pids.filter_map(Member::unmarked).collect())
}
