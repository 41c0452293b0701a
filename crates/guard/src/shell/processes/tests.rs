//! Real processes, with run records as a shim writes them.

use std::process::{Child, Command};

use super::*;

const VM: VmId = VmId::from_u128(7);
const BOOT: Uuid = Uuid::from_u128(1);

struct World {
    run_dir: tempfile::TempDir,
    processes: Processes,
}

impl World {
    fn new() -> Self {
        let run_dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(run_dir.path().join("vm").join(VM.to_string())).unwrap();
        let processes = Processes::new(run_dir.path(), BOOT);
        Self { run_dir, processes }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.run_dir.path().join("vm").join(VM.to_string()).join(name)
    }

    fn record(&self, qemu: u32, shim: u32, boot: Uuid) {
        let started = |pid: u32| started_at(Pid::from_raw(pid as i32).unwrap()).unwrap().unwrap();
        let record = serde_json::json!({
            "vm": "web-1", "uid": VM.0, "epoch": 3, "boot_id": boot.to_string(),
            "shim_pid": shim, "shim_started": started(shim), "qemu_pid": qemu, "qemu_started": started(qemu),
        });
        std::fs::write(self.file(RUN_RECORD), record.to_string()).unwrap();
    }
}

fn sleeper() -> Child {
    Command::new("sleep").arg("600").spawn().unwrap()
}

/// Waits for the kernel, not for time: the descriptors say when there is something to see.
fn reap_all(processes: &mut Processes) -> Vec<VmId> {
    loop {
        let gone = processes.reap();
        if !gone.is_empty() {
            return gone;
        }
        let mut fds: Vec<_> = processes.dying().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        poll(&mut fds, None).unwrap();
    }
}

fn state_of(child: &Child) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
    stat.rsplit_once(')').unwrap().1.trim().chars().next().unwrap()
}

#[test]
fn a_killed_vm_is_gone_once_qemu_and_shim_have_ended() {
    let mut world = World::new();
    let (mut qemu, mut shim) = (sleeper(), sleeper());
    world.record(qemu.id(), shim.id(), BOOT);
    world.processes.kill(VM);
    assert!(world.processes.any_dying());
    assert_eq!(reap_all(&mut world.processes), [VM]);
    assert!(!world.processes.any_dying());
    // They had ended before anybody asked for their outcome.
    assert!(!qemu.wait().unwrap().success());
    assert!(!shim.wait().unwrap().success());
}

#[test]
fn a_frozen_vm_stands_and_is_killed_all_the_same() {
    let mut world = World::new();
    let (mut qemu, mut shim) = (sleeper(), sleeper());
    world.record(qemu.id(), shim.id(), BOOT);
    world.processes.freeze(VM).unwrap();
    while state_of(&qemu) != 'T' {}
    world.processes.thaw(VM).unwrap();
    while state_of(&qemu) == 'T' {}
    world.processes.freeze(VM).unwrap();
    world.processes.kill(VM);
    assert_eq!(reap_all(&mut world.processes), [VM]);
    qemu.wait().unwrap();
    shim.wait().unwrap();
}

#[test]
fn what_the_agent_keeps_still_is_not_thawed() {
    let mut world = World::new();
    let (mut qemu, mut shim) = (sleeper(), sleeper());
    world.record(qemu.id(), shim.id(), BOOT);
    std::fs::write(world.file(KEPT_STILL), qemu.id().to_string()).unwrap();
    world.processes.freeze(VM).unwrap();
    while state_of(&qemu) != 'T' {}
    world.processes.thaw(VM).unwrap();
    assert_eq!(state_of(&qemu), 'T');
    // Left by another process.
    std::fs::write(world.file(KEPT_STILL), shim.id().to_string()).unwrap();
    world.processes.thaw(VM).unwrap();
    while state_of(&qemu) == 'T' {}
    world.processes.kill(VM);
    assert_eq!(reap_all(&mut world.processes), [VM]);
    qemu.wait().unwrap();
    shim.wait().unwrap();
}

#[test]
fn a_vm_without_processes_is_gone_at_once() {
    let mut world = World::new();
    world.processes.kill(VM);
    assert_eq!(world.processes.reap(), [VM]);
}

#[test]
fn a_process_that_only_has_the_number_of_an_old_one_is_left_alone() {
    let mut world = World::new();
    let mut other = sleeper();
    world.record(other.id(), other.id(), BOOT);
    let text = std::fs::read_to_string(world.file(RUN_RECORD)).unwrap();
    let mut record: serde_json::Value = serde_json::from_str(&text).unwrap();
    for field in ["qemu_started", "shim_started"] {
        record[field] = 1.into();
    }
    std::fs::write(world.file(RUN_RECORD), record.to_string()).unwrap();
    world.processes.kill(VM);
    assert_eq!(world.processes.reap(), [VM]);
    world.record(other.id(), other.id(), Uuid::from_u128(2));
    world.processes.kill(VM);
    assert_eq!(world.processes.reap(), [VM], "of another boot");
    assert!(other.try_wait().unwrap().is_none(), "it lives");
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn a_shim_that_is_still_starting_keeps_a_vm_from_being_gone() {
    let mut world = World::new();
    let lock = File::create(world.file(LAUNCH_LOCK)).unwrap();
    flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    world.processes.kill(VM);
    assert!(world.processes.reap().is_empty());
    drop(lock);
    assert_eq!(world.processes.reap(), [VM]);
}

#[test]
fn a_record_that_cannot_be_read_is_not_taken_for_none() {
    let mut world = World::new();
    std::fs::write(world.file(RUN_RECORD), "{").unwrap();
    world.processes.kill(VM);
    assert!(world.processes.reap().is_empty());
    assert!(world.processes.any_dying());
}
