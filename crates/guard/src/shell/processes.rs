//! The processes of VMs: found by their run records, frozen, killed, and seen to be gone.
//!
//! "Gone" is what the kernel says of each process, never what somebody wrote down: a process that hangs in the kernel has
//! its files open still, and what it has given to the disk may yet be written.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::time::Timespec;
use sterna_base::file::read_if_there;
use sterna_wire::shim::{KEPT_STILL, LAUNCH_LOCK, RUN_RECORD, RunRecord};
use uuid::Uuid;

use crate::core::id::VmId;
use crate::shell::cgroup::Cgroup;

pub struct Processes {
    /// Of all VMs: one directory each, named by its uid.
    directory: PathBuf,
    boot: Uuid,
    /// Those that are being killed, with what is still to be seen to end.
    dying: BTreeMap<VmId, Vec<OwnedFd>>,
}

/// What there is of a VM at an instant.
#[derive(Debug)]
enum Found {
    /// No process, and no shim that could yet start one.
    Nothing,
    /// A shim that has not said yet what it started.
    Starting,
    Running {
        qemu: Option<Living>,
        shim: Option<Living>,
        cgroup: Option<Cgroup>,
    },
}

/// A process that a run record means: not another one that has got its number.
#[derive(Debug)]
struct Living(OwnedFd);

impl Processes {
    #[must_use]
    pub fn new(run_dir: &Path, boot: Uuid) -> Self {
        Self { directory: run_dir.join("vm"), boot, dying: BTreeMap::new() }
    }

    /// Stops a VM where it stands. Of the shim nothing is stopped: it writes to no disk, and is needed to reap.
    pub fn freeze(&self, vm: VmId) -> io::Result<()> {
        self.halt(vm, Signal::STOP, Cgroup::freeze)
    }

    /// But for one that the agent keeps still: its guest may run elsewhere by now.
    pub fn thaw(&self, vm: VmId) -> io::Result<()> {
        if self.is_kept_still(vm)? {
            return Ok(());
        }
        self.halt(vm, Signal::CONT, Cgroup::thaw)
    }

    fn is_kept_still(&self, vm: VmId) -> io::Result<bool> {
        let directory = self.directory.join(vm.0.to_string());
        let Some(kept) = read_if_there(&directory.join(KEPT_STILL))? else { return Ok(false) };
        let Some(text) = read_if_there(&directory.join(RUN_RECORD))? else { return Ok(false) };
        let record: RunRecord = serde_json::from_slice(&text)?;
        // Of an earlier process it says nothing.
        Ok(String::from_utf8_lossy(&kept).trim() == record.qemu_pid.to_string())
    }

    fn halt(&self, vm: VmId, signal: Signal, all: impl Fn(&Cgroup) -> io::Result<()>) -> io::Result<()> {
        let Found::Running { qemu, cgroup, .. } = self.find(vm)? else { return Ok(()) };
        if let Some(cgroup) = cgroup
            && all(&cgroup).is_ok()
        {
            return Ok(());
        }
        qemu.map_or(Ok(()), |qemu| qemu.signal(signal))
    }

    /// Kills it now, and as often as `reap` finds something of it.
    pub fn kill(&mut self, vm: VmId) {
        let left = self.kill_what_is_left(vm).unwrap_or_else(|error| {
            tracing::error!(%vm, %error, "cannot kill");
            Vec::new()
        });
        self.dying.insert(vm, left);
    }

    /// Those of the dying that are gone. What is left of the others is killed once more.
    pub fn reap(&mut self) -> Vec<VmId> {
        let dying: Vec<VmId> = self.dying.keys().copied().collect();
        let mut gone = Vec::new();
        for vm in dying {
            match self.kill_what_is_left(vm) {
                Ok(left) if left.is_empty() && self.is_gone(vm) => {
                    self.dying.remove(&vm);
                    gone.push(vm);
                }
                Ok(left) => {
                    self.dying.insert(vm, left);
                }
                Err(error) => tracing::error!(%vm, %error, "cannot kill"),
            }
        }
        gone
    }

    #[must_use]
    pub fn any_dying(&self) -> bool {
        !self.dying.is_empty()
    }

    /// Readable when it is time to reap.
    pub fn dying(&self) -> impl Iterator<Item = &OwnedFd> {
        self.dying.values().flatten()
    }

    fn is_gone(&self, vm: VmId) -> bool {
        matches!(self.find(vm), Ok(Found::Nothing))
    }

    /// Returns what has not ended by the time the signals are sent.
    fn kill_what_is_left(&self, vm: VmId) -> io::Result<Vec<OwnedFd>> {
        let Found::Running { qemu, shim, cgroup } = self.find(vm)? else { return Ok(Vec::new()) };
        let by_cgroup = cgroup.as_ref().is_some_and(|cgroup| cgroup.kill().unwrap_or(false));
        // The shim goes as well: one that hangs would keep QEMU's end from being seen, and could be asked for nothing.
        for process in [&qemu, &shim].into_iter().flatten().filter(|_| !by_cgroup) {
            process.signal(Signal::KILL)?;
        }
        if let Some(cgroup @ Cgroup::V1(_)) = &cgroup {
            // Only now do the signals reach them.
            cgroup.thaw()?;
        }
        Ok([qemu, shim].into_iter().flatten().filter(|process| !process.has_ended()).map(|it| it.0).collect())
    }

    fn find(&self, vm: VmId) -> io::Result<Found> {
        let directory = self.directory.join(vm.0.to_string());
        let Some(text) = read_if_there(&directory.join(RUN_RECORD))? else {
            let starts = is_held(&directory.join(LAUNCH_LOCK))?;
            return Ok(if starts { Found::Starting } else { Found::Nothing });
        };
        let record: RunRecord = serde_json::from_slice(&text)?;
        if record.boot_id.parse() != Ok(self.boot) {
            return Ok(Found::Nothing);
        }
        let cgroup = Cgroup::of(record.qemu_pid, vm);
        let qemu = Living::find(record.qemu_pid, record.qemu_started)?;
        let shim = Living::find(record.shim_pid, record.shim_started)?;
        let has_others = cgroup.as_ref().map_or(Ok(false), Cgroup::has_processes)?;
        if qemu.is_none() && shim.is_none() && !has_others {
            return Ok(Found::Nothing);
        }
        Ok(Found::Running { qemu, shim, cgroup })
    }
}

impl Living {
    /// None when that process has ended.
    fn find(pid: u32, started: u64) -> io::Result<Option<Self>> {
        let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        let fd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Read after the descriptor was opened: from here on the number cannot become another's.
        let is_it = started_at(pid)? == Some(started);
        let process = Self(fd);
        Ok((is_it && !process.has_ended()).then_some(process))
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.0, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// All its threads have ended and its files are closed; whether its parent has asked for the outcome does not matter.
    fn has_ended(&self) -> bool {
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        matches!(poll(&mut fds, Some(&at_once)), Ok(1))
    }
}

/// Field 22 of `/proc/PID/stat`, counted from behind the name, which may hold anything. None when there is no process.
fn started_at(pid: Pid) -> io::Result<Option<u64>> {
    let path = format!("/proc/{}/stat", pid.as_raw_nonzero());
    let Some(text) = read_if_there(Path::new(&path)).or_else(ended_while_read)? else { return Ok(None) };
    let text = String::from_utf8_lossy(&text);
    let fields = text.rsplit_once(')').map(|(_, rest)| rest.split_whitespace());
    Ok(fields.and_then(|mut fields| fields.nth(19)?.parse().ok()))
}

fn ended_while_read(error: io::Error) -> io::Result<Option<Vec<u8>>> {
    if error.raw_os_error() == Some(libc::ESRCH) { Ok(None) } else { Err(error) }
}

/// Whether a shim holds the lock that each holds while it lives.
fn is_held(lock: &Path) -> io::Result<bool> {
    let file = match File::open(lock) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        // Let go of again as the file is closed.
        Ok(()) => Ok(false),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests;
