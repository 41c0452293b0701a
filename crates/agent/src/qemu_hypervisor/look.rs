//! What is there of a VM: run records, processes, sockets.

use std::path::Path;
use std::time::Duration;

use serde::de::DeserializeOwned;
use sterna_base::file::{read_if_there, write_atomically};
use sterna_qemu::qmp::{Client, Greeting, Options};
use sterna_wire::shim::{EXIT_RECORD, ExitRecord, RUN_RECORD, RunRecord, SOCKET, Status};
use tokio::net::UnixStream;
use uuid::Uuid;

use super::guest::{self, QemuGuest};
use crate::carrier::Carriers;
use crate::hypervisor::Look;
use crate::process::{self, Process};

/// A shim answers in a millisecond. One that does not is unknown, not dead.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// QEMU is killed by the kernel when its shim ends.
const ORPHAN_PATIENCE: Duration = Duration::from_secs(1);
/// Of QEMU's answers. It reads nothing for a while at the end of a migration.
const QMP_TIMEOUT: Duration = Duration::from_secs(5);
const SIGKILL: i32 = 9;

pub async fn look(run_dir: &Path, uid: Uuid, carriers: &Carriers) -> Look<QemuGuest> {
    let directory = super::directory(run_dir, uid);
    let (run, exit) = match records(&directory) {
        Ok(records) => records,
        Err(why) => return Look::Unknown { why },
    };
    let Some(run) = run else { return without_record(run_dir, uid, exit) };
    if let Some(exit) = exit {
        return Look::Ended(exit);
    }
    if process::boot_id().is_ok_and(|boot| boot != run.boot_id) {
        return Look::Absent;
    }
    if shim_of(&run).is_alive() {
        return match connect(&directory, run.qemu_pid, (uid, carriers.clone())).await {
            Ok((guest, happenings, epoch)) => Look::Alive { guest, happenings, epoch },
            Err(why) => just_ended(&directory).unwrap_or(Look::Unknown { why }),
        };
    }
    // Between our two looks it may have ended in good order.
    match just_ended(&directory) {
        Some(ended) => ended,
        None => orphaned(&directory, &run).await,
    }
}

type Records = (Option<RunRecord>, Option<ExitRecord>);

fn records(directory: &Path) -> Result<Records, String> {
    Ok((read(&directory.join(RUN_RECORD))?, read(&directory.join(EXIT_RECORD))?))
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, String> {
    let name = || path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let Some(bytes) = read_if_there(path).map_err(|error| format!("{}: {error}", name()))? else {
        return Ok(None);
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| format!("{}: {error}", name()))
}

fn just_ended(directory: &Path) -> Option<Look<QemuGuest>> {
    read(&directory.join(EXIT_RECORD)).ok().flatten().map(Look::Ended)
}

/// A shim that has not come so far as to write a record is still a process.
fn without_record(run_dir: &Path, uid: Uuid, exit: Option<ExitRecord>) -> Look<QemuGuest> {
    match process::of_vms(&run_dir.join("vm")) {
        Err(error) => Look::Unknown { why: format!("/proc: {error}") },
        Ok(found) if found.iter().any(|(vm, pid)| *vm == uid && *pid != std::process::id()) => {
            Look::Unknown { why: "a process without a record".to_owned() }
        }
        Ok(_) => exit.map_or(Look::Absent, Look::Ended),
    }
}

fn shim_of(run: &RunRecord) -> Process {
    Process { pid: run.shim_pid, started: run.shim_started }
}

fn qemu_of(run: &RunRecord) -> Process {
    Process { pid: run.qemu_pid, started: run.qemu_started }
}

/// The shim is gone without a word: QEMU goes with it, and the record is ours to write.
async fn orphaned(directory: &Path, run: &RunRecord) -> Look<QemuGuest> {
    let qemu = qemu_of(run);
    let begun = tokio::time::Instant::now();
    while qemu.is_alive() {
        if begun.elapsed() > ORPHAN_PATIENCE {
            qemu.kill();
            return Look::Unknown { why: "qemu outlives its shim".to_owned() };
        }
        tokio::time::sleep(super::POLL).await;
    }
    let record = ExitRecord {
        epoch: run.epoch,
        code: None,
        signal: Some(SIGKILL),
        shutdown_reason: None,
        last_words: "its shim was killed".to_owned(),
    };
    match serde_json::to_vec(&record).map(|text| write_atomically(&directory.join(EXIT_RECORD), &text, 0o600))
    {
        Ok(Ok(())) => Look::Ended(record),
        _ => Look::Unknown { why: "the exit record could not be written".to_owned() },
    }
}

async fn client(directory: &Path) -> Result<Client, String> {
    let socket = directory.join(SOCKET);
    let connected = tokio::time::timeout(ANSWER_WITHIN, UnixStream::connect(&socket)).await;
    let stream = connected
        .map_err(|_| "the shim does not accept".to_owned())?
        .map_err(|error| format!("shim socket: {error}"))?;
    let options = Options { greeting: Greeting::Absent, timeout: QMP_TIMEOUT, ..Options::default() };
    Client::connect(stream, options).await.map_err(|error| error.to_string())
}

async fn connect(
    directory: &Path,
    qemu_pid: u32,
    whose: (Uuid, Carriers),
) -> Result<(QemuGuest, crate::hypervisor::Happenings, u64), String> {
    let client = client(directory).await?;
    let (guest, happenings) = guest::attach(client.clone(), qemu_pid, directory.join(super::QEMU_DIR), whose);
    let asked = client.execute_within::<Status>("shim-status", serde_json::Value::Null, ANSWER_WITHIN).await;
    let status = asked.map_err(|error| format!("shim: {error}"))?;
    guest.end_orphan().await.map_err(|error| format!("qemu: {error}"))?;
    Ok((guest, happenings, status.epoch))
}

/// Asks a shim that we are not connected with.
pub async fn ask_to_kill(directory: &Path) {
    if let Ok(client) = client(directory).await {
        // Its answer may not come: the shim ends with it.
        let _ = client
            .execute_within::<serde_json::Value>("shim-kill", serde_json::Value::Null, ANSWER_WITHIN)
            .await;
    }
}

/// The QEMU that the VM has here, if it lives.
pub fn process_of(run_dir: &Path, uid: Uuid) -> Option<Process> {
    let run: RunRecord = read(&super::directory(run_dir, uid).join(RUN_RECORD)).ok().flatten()?;
    Some(qemu_of(&run)).filter(|process| process.is_alive())
}

/// Every process of the VM that still lives. QEMU before its shim; without a record, whatever names its directory.
pub fn processes(run_dir: &Path, uid: Uuid) -> Vec<Process> {
    let directory = super::directory(run_dir, uid);
    let run: Option<RunRecord> = read(&directory.join(RUN_RECORD)).ok().flatten();
    let known = match run {
        Some(run) => vec![qemu_of(&run), shim_of(&run)],
        None => without_records(run_dir, uid),
    };
    known.into_iter().filter(|process| process.is_alive()).collect()
}

fn without_records(run_dir: &Path, uid: Uuid) -> Vec<Process> {
    let found = process::of_vms(&run_dir.join("vm")).unwrap_or_default();
    let ours = found.into_iter().filter(|(vm, pid)| *vm == uid && *pid != std::process::id());
    ours.filter_map(|(_, pid)| Process::of(pid)).collect()
}
