//! Run and exit records.

use std::path::Path;

use anyhow::Context;
use sterna_base::file::write_atomically;
use sterna_wire::shim::{EXIT_RECORD, ExitRecord, Launch, RUN_RECORD, RunRecord};

pub fn write_run(directory: &Path, launch: &Launch, qemu_pid: u32) -> anyhow::Result<()> {
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").context("read the boot id")?;
    let shim_pid = std::process::id();
    let record = RunRecord {
        vm: launch.vm.clone(),
        uid: launch.uid,
        epoch: launch.epoch,
        boot_id: boot_id.trim().to_owned(),
        shim_pid,
        shim_started: started(shim_pid)?,
        qemu_pid,
        qemu_started: started(qemu_pid)?,
    };
    // The directory dies with the boot, as the processes do: nothing to wait for.
    Ok(write_atomically(&directory.join(RUN_RECORD), &serde_json::to_vec(&record)?, 0o600)?)
}

pub fn write_exit(directory: &Path, record: &ExitRecord) -> anyhow::Result<()> {
    Ok(write_atomically(&directory.join(EXIT_RECORD), &serde_json::to_vec(record)?, 0o600)?)
}

/// Start time of a process in clock ticks after boot. A zombie still has one.
fn started(pid: u32) -> anyhow::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("read /proc/PID/stat")?;
    started_of(&stat).context("understand /proc/PID/stat")
}

/// Field 22. The command's name, field 2, may hold spaces and brackets: counted from the last bracket on.
fn started_of(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_found_behind_an_evil_name() {
        let stat = "7 (a) b) c) S 1 7 7 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 4711 9 10";
        assert_eq!(started_of(stat), Some(4711));
    }

    #[test]
    fn our_own_start_time_is_in_the_past() {
        assert!(started(std::process::id()).unwrap() > 0);
    }
}
