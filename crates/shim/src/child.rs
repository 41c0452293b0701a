//! Starts QEMU: descriptors, user, death signal.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{ChildStderr, Command, ExitStatus, Stdio};

use anyhow::Context;
use rustix::process::{Pid, PidfdFlags, Signal, getpid, getppid, pidfd_open};
use sterna_wire::shim::Launch;

use crate::tap;

/// A QEMU process with its one QMP connection.
pub struct Child {
    process: std::process::Child,
    pub qmp: UnixStream,
    pub stderr: ChildStderr,
    /// Readable once the process has ended.
    pub ended: OwnedFd,
}

/// Starts QEMU. Descriptors that it inherits keep their numbers, which are put into its arguments.
pub fn start(launch: &Launch) -> anyhow::Result<Child> {
    let (ours, theirs) = UnixStream::pair().context("make the QMP connection")?;
    let taps = launch.taps.iter().map(|name| tap::open(name)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut command = Command::new(&launch.program);
    command.args(launch.args.iter().map(|arg| filled_in(arg, theirs.as_raw_fd(), &taps)));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).current_dir("/");
    // QEMU needs nothing of our environment, and a guest that breaks out should find nothing in it.
    command.env_clear();
    let mut inherited: Vec<OwnedFd> = vec![theirs.into()];
    inherited.extend(taps);
    prepare(&mut command, launch, inherited);
    let mut process = command.spawn().with_context(|| format!("start {}", launch.program))?;
    // The agent and its shims are spared when memory runs out; a guest is not. It runs no worse if that fails.
    let _ = std::fs::write(format!("/proc/{}/oom_score_adj", process.id()), "0");
    // The parent's copies of what QEMU inherited: QMP must end when QEMU does.
    drop(command);
    let stderr = process.stderr.take().context("take QEMU's standard error")?;
    let ended = pidfd_open(Pid::from_child(&process), PidfdFlags::empty()).context("open a pidfd")?;
    ours.set_nonblocking(true).context("prepare the QMP connection")?;
    rustix::fs::fcntl_setfl(&stderr, rustix::fs::OFlags::NONBLOCK).context("prepare standard error")?;
    Ok(Child { process, qmp: ours, stderr, ended })
}

fn filled_in(arg: &str, qmp: i32, taps: &[OwnedFd]) -> String {
    let mut filled = arg.replace("{qmp-fd}", &qmp.to_string());
    for (index, tap) in taps.iter().enumerate() {
        filled = filled.replace(&format!("{{tap-fd:{index}}}"), &tap.as_raw_fd().to_string());
    }
    filled
}

fn prepare(command: &mut Command, launch: &Launch, inherited: Vec<OwnedFd>) {
    let parent = getpid();
    let uid = rustix::process::Uid::from_raw(launch.run_as_uid);
    let gid = rustix::process::Gid::from_raw(launch.run_as_gid);
    let groups: Vec<_> = launch.groups.iter().map(|group| rustix::process::Gid::from_raw(*group)).collect();
    let become_user = rustix::process::geteuid().is_root();
    let between = move || -> std::io::Result<()> {
        for fd in &inherited {
            rustix::io::fcntl_setfd(fd.as_fd(), rustix::io::FdFlags::empty())?;
        }
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            // SAFETY: back to the default disposition, in a process of one thread.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        // What serves guests may go before them; a guest goes before no other.
        if rustix::process::getpriority_process(None)? < 0 {
            rustix::process::setpriority_process(None, 0)?;
        }
        if become_user {
            rustix::thread::set_thread_groups(&groups)?;
            rustix::thread::set_thread_res_gid(gid, gid, gid)?;
            rustix::thread::set_thread_res_uid(uid, uid, uid)?;
        }
        rustix::thread::set_no_new_privs(true)?;
        // After the change of user, which clears it.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // The shim may have died before the line above: then no signal will come.
        if getppid() == Some(parent) { Ok(()) } else { Err(rustix::io::Errno::SRCH.into()) }
    };
    // SAFETY: system calls only; no allocation, no lock.
    unsafe { command.pre_exec(between) };
}

impl Child {
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// SIGKILL, then reaps it. A process that has ended already is only reaped.
    pub fn kill(&mut self) {
        // Fails only for one that is reaped.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Only asks the kernel to; its end is seen at `ended`.
    pub fn send_kill(&mut self) {
        let _ = self.process.kill();
    }

    /// Reaps it. Call when `ended` is readable.
    pub fn reap(&mut self) -> anyhow::Result<(Option<i32>, Option<i32>)> {
        let status: ExitStatus = self.process.wait().context("reap QEMU")?;
        Ok((status.code(), status.signal()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_get_the_numbers_of_their_descriptors() {
        let tap: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        let number = tap.as_raw_fd();
        assert_eq!(filled_in("socket,fd={qmp-fd}", 7, &[]), "socket,fd=7");
        assert_eq!(filled_in(r#"{"fd":"{tap-fd:0}"}"#, 7, &[tap]), format!(r#"{{"fd":"{number}"}}"#));
    }
}
