//! Processes of this machine, as `/proc` shows them.

/// The memory that a QEMU gives to its guest.
pub mod memory;

use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use uuid::Uuid;

/// Clock ticks a second in `/proc`; the same on every Linux that runs on x86-64.
const USER_HZ: u64 = 100;

/// A process, told apart from a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    /// Clock ticks after boot.
    pub started: u64,
}

impl Process {
    /// The process that has this number now; `None` when none has.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(Self { pid, started: fields_of(&stat).get(19)?.parse().ok()? })
    }

    /// It can still do something; a zombie cannot.
    #[must_use]
    pub fn is_alive(self) -> bool {
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)) else { return false };
        let fields = fields_of(&stat);
        let state = fields.first().copied().unwrap_or("Z");
        let started = fields.get(19).and_then(|field| field.parse::<u64>().ok());
        started == Some(self.started) && !matches!(state, "Z" | "X" | "x")
    }

    /// SIGKILL for this process and no other.
    pub fn kill(self) {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else { return };
        // Opened first, compared then: the number cannot change hands in between.
        if let Ok(handle) = pidfd_open(pid, PidfdFlags::empty())
            && self.is_alive()
        {
            // It may have ended meanwhile, which is what we want.
            let _ = pidfd_send_signal(&handle, Signal::KILL);
        }
    }
}

/// Fields of `/proc/PID/stat` from the third on; the second one, a name, may hold anything.
fn fields_of(stat: &str) -> Vec<&str> {
    stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default()
}

/// Stopped by a signal, every thread of it: it does nothing, and answers nothing, until it is continued.
pub fn is_stopped(pid: u32) -> io::Result<bool> {
    // The first thread is cheap to ask, and rarely stopped.
    if !is_thread_stopped(&format!("/proc/{pid}/stat"))? {
        return Ok(false);
    }
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = thread?.path().join("stat");
        match is_thread_stopped(&stat.to_string_lossy()) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            // It ended meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

fn is_thread_stopped(stat: &str) -> io::Result<bool> {
    Ok(fields_of(&std::fs::read_to_string(stat)?).first() == Some(&"T"))
}

/// CPU time used so far, and bytes in memory.
pub fn usage(pid: u32) -> io::Result<(Duration, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = fields_of(&stat);
    let number = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    let used = number(11) + number(12);
    let pages = number(21);
    Ok((ticks(used), pages * rustix::param::page_size() as u64))
}

/// Resident bytes of the process's largest anonymous mapping: of a QEMU, the guest's memory, without QEMU's own.
pub fn largest_mapping(pid: u32) -> io::Result<u64> {
    Ok(largest_anonymous(&std::fs::read_to_string(format!("/proc/{pid}/smaps"))?))
}

/// The largest `Rss:` below a header line without a name (five words: range, rights, offset, device, inode).
fn largest_anonymous(smaps: &str) -> u64 {
    let mut is_anonymous = false;
    let mut largest_kib = 0;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("Rss:") if is_anonymous => {
                largest_kib = largest_kib.max(words.next().and_then(|kib| kib.parse().ok()).unwrap_or(0));
            }
            Some(first) if !first.ends_with(':') => is_anonymous = words.count() == 4,
            _ => {}
        }
    }
    largest_kib * 1024
}

/// A time that `/proc` gives in clock ticks.
#[must_use]
pub fn ticks(count: u64) -> Duration {
    Duration::from_millis(count * 1000 / USER_HZ)
}

/// Every process that has a path below one of our VMs' run directories in its command line.
pub fn of_vms(vms: &Path) -> io::Result<Vec<(Uuid, u32)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // It ended while we read.
        let Ok(line) = std::fs::read(entry.path().join("cmdline")) else { continue };
        found.extend(uid_in(&line, vms).map(|uid| (uid, pid)));
    }
    Ok(found)
}

/// The first directory name below `vms` in a command line that is a uid.
fn uid_in(line: &[u8], vms: &Path) -> Option<Uuid> {
    let mut prefix = vms.join("x").into_os_string().into_vec();
    prefix.pop();
    line.windows(prefix.len()).enumerate().filter(|(_, window)| *window == prefix).find_map(|(at, _)| {
        let from = at + prefix.len();
        let text = std::str::from_utf8(line.get(from..from + 36)?).ok()?;
        Uuid::try_parse(text).ok()
    })
}

/// This boot of this machine.
pub fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// The full path of a program, searched for in PATH like a shell does.
#[must_use]
pub fn find_program(program: &Path) -> PathBuf {
    if program.components().count() > 1 {
        return program.to_owned();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let candidates = std::env::split_paths(&path).map(|directory| directory.join(program));
    candidates.into_iter().find(|path| path.is_file()).unwrap_or_else(|| program.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_anonymous_mapping_is_found_among_heap_and_libraries() {
        let smaps = "5648d84b6000-5648da365000 rw-p 00000000 00:00 0   [heap]\nSize: 31420 kB\nRss: 930228 kB\n\
            7f5e5fe00000-7f5e6fe00000 rw-p 00000000 00:00 0 \nSize: 262144 kB\nRss:  104448 kB\nVmFlags: rd wr\n\
            7f5e7fe00000-7f5e7ff00000 rw-p 00000000 00:00 0 \nSize: 1024 kB\nRss: 8 kB\n\
            7f5e8fe00000-7f5e8ff00000 r-xp 00000000 fe:00 77 /usr/lib/x.so\nSize: 1024 kB\nRss: 999999 kB\n";
        assert_eq!(largest_anonymous(smaps), 104_448 * 1024);
    }

    #[test]
    fn we_are_alive_and_our_number_with_another_start_is_not_us() {
        let pid = std::process::id();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let started = fields_of(&stat)[19].parse().unwrap();
        assert!(Process { pid, started }.is_alive());
        assert!(!Process { pid, started: started + 1 }.is_alive());
    }

    #[test]
    fn a_vm_is_found_in_a_command_line_by_its_directory() {
        let uid = Uuid::from_u128(7);
        let vms = Path::new("/run/s/vm");
        let line = format!("qemu\0-chardev\0socket,path=/run/s/vm/{uid}/q/serial.sock\0");
        assert_eq!(uid_in(line.as_bytes(), vms), Some(uid));
        assert_eq!(uid_in(b"ls\0/run/s/vm/\0", vms), None);
        assert_eq!(uid_in(format!("x\0/run/t/vm/{uid}/").as_bytes(), vms), None);
    }

    #[test]
    fn the_time_of_a_busy_process_grows() {
        let (before, memory) = usage(std::process::id()).unwrap();
        assert!(memory > 0);
        let until = std::time::Instant::now() + Duration::from_secs(5);
        while usage(std::process::id()).unwrap().0 <= before {
            assert!(std::time::Instant::now() < until);
        }
    }
}
