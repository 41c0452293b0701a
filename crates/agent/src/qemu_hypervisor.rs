//! The real hypervisor: a shim and a QEMU per VM.
//!
//! ```text
//! RUN_DIR/vm/UID/            root's: launch.json, run.json, exit.json, shim.sock, agent.json
//! RUN_DIR/vm/UID/q/          QEMU's user's: serial.sock, vnc.sock, agent.sock, serial.log
//! RUN_DIR/vm/UID/line/       root's, with what QEMU's user may read: the key of a move
//! ```

mod blueprint;
mod guest;
mod line;
mod look;

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use sterna_base::file::{read_if_there, remove_if_there, write_atomically};
use sterna_qemu::version::Version;
use sterna_wire::shim::{EXIT_RECORD, ExitRecord, LAUNCH, Launch, RUN_RECORD, SOCKET};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use uuid::Uuid;

use crate::carrier::Carriers;
use crate::hypervisor::{Blueprint, Happenings, Hypervisor, Look, SpawnFailed};
pub use blueprint::node_of;
pub use guest::QemuGuest;
pub use look::process_of;

/// The directory inside a VM's run directory that belongs to QEMU's user.
pub const QEMU_DIR: &str = "q";
/// Sockets in there.
pub const SERIAL_SOCKET: &str = "serial.sock";
pub const VNC_SOCKET: &str = "vnc.sock";
const AGENT_SOCKET: &str = "agent.sock";
pub const SERIAL_LOG: &str = "serial.log";
/// What the shim itself says.
const SHIM_LOG: &str = "shim.log";

/// Starting QEMU takes a fifth of a second on an idle host.
const START_DEADLINE: Duration = Duration::from_secs(20);
/// A shim that does not kill when told is helped after this.
const KILL_PATIENCE: Duration = Duration::from_secs(2);
const KILL_DEADLINE: Duration = Duration::from_secs(8);
const POLL: Duration = Duration::from_millis(5);

/// What is the same for every VM of this host.
#[derive(Debug, Clone)]
pub struct Settings {
    pub run_dir: PathBuf,
    /// Full path.
    pub qemu: PathBuf,
    pub version: Version,
    pub run_as_uid: u32,
    pub run_as_gid: u32,
    /// Supplementary groups of QEMU, such as the one that may open `/dev/kvm`.
    pub groups: Vec<u32>,
    /// Program and arguments in front of the launch file.
    pub shim: Vec<OsString>,
}

pub struct QemuHypervisor {
    settings: Settings,
    carriers: Carriers,
}

impl QemuHypervisor {
    #[must_use]
    pub fn new(settings: Settings, carriers: Carriers) -> Self {
        Self { settings, carriers }
    }

    fn directory(&self, uid: Uuid) -> PathBuf {
        directory(&self.settings.run_dir, uid)
    }

    /// Fresh directories, with the rights that QEMU's unprivileged user needs.
    fn make_directories(&self, directory: &Path) -> io::Result<()> {
        let make = |path: &Path, mode| std::fs::DirBuilder::new().recursive(true).mode(mode).create(path);
        make(directory, 0o711)?;
        for passed in [directory, &self.settings.run_dir.join("vm"), &self.settings.run_dir] {
            std::fs::set_permissions(passed, std::fs::Permissions::from_mode(0o711))?;
        }
        let theirs = directory.join(QEMU_DIR);
        make(&theirs, 0o700)?;
        if rustix::process::geteuid().is_root() {
            let uid = rustix::process::Uid::from_raw(self.settings.run_as_uid);
            let gid = rustix::process::Gid::from_raw(self.settings.run_as_gid);
            rustix::fs::chown(&theirs, Some(uid), Some(gid))?;
        }
        Ok(())
    }

    fn write_launch(&self, blueprint: &Blueprint) -> Result<PathBuf, SpawnFailed> {
        let directory = self.directory(blueprint.uid);
        let args = blueprint::arguments(blueprint, &directory.join(QEMU_DIR), self.settings.version)?;
        let launch = Launch {
            vm: blueprint.name.clone(),
            uid: blueprint.uid,
            epoch: blueprint.epoch,
            program: self.settings.qemu.to_string_lossy().into_owned(),
            args,
            taps: blueprint.parts.taps.iter().map(|tap| tap.device.clone()).collect(),
            run_as_uid: self.settings.run_as_uid,
            run_as_gid: self.settings.run_as_gid,
            groups: self.settings.groups.clone(),
        };
        let path = directory.join(LAUNCH);
        let written = self.make_directories(&directory).and_then(|()| {
            for old in [EXIT_RECORD, RUN_RECORD, SOCKET] {
                remove_if_there(&directory.join(old))?;
            }
            write_atomically(&path, &serde_json::to_vec(&launch)?, 0o600)
        });
        written.map_err(|error| SpawnFailed { why: format!("run directory: {error}") })?;
        Ok(path)
    }

    /// Starts the shim in a session of its own and waits until QEMU answers.
    async fn run_shim(&self, launch: &Path, directory: &Path) -> Result<(), String> {
        let log = std::fs::File::create(directory.join(SHIM_LOG)).map_err(|error| error.to_string())?;
        let (program, args) = self.settings.shim.split_first().ok_or("no shim is configured")?;
        let mut command = Command::new(program);
        command.args(args).arg(launch).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        // SAFETY: one system call.
        unsafe { command.pre_exec(|| Ok(rustix::process::setsid().map(drop)?)) };
        let mut child = command.spawn().map_err(|error| format!("{}: {error}", program.to_string_lossy()))?;
        let out = child.stdout.take().ok_or("the shim has no output")?;
        // Reaped whenever it ends; it may well outlive us.
        tokio::spawn(async move { child.wait().await });
        let mut lines = BufReader::new(out).lines();
        let ready = async {
            while let Ok(Some(line)) = lines.next_line().await {
                if line.trim() == "ready" {
                    return true;
                }
            }
            false
        };
        match tokio::time::timeout(START_DEADLINE, ready).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(last_words(directory)),
            Err(_) => Err(format!("qemu did not come up within {} s", START_DEADLINE.as_secs())),
        }
    }
}

/// Where everything of one VM lies.
#[must_use]
pub fn directory(run_dir: &Path, uid: Uuid) -> PathBuf {
    run_dir.join("vm").join(uid.to_string())
}

/// Why nothing came up: QEMU's own words if it got that far, else the shim's.
fn last_words(directory: &Path) -> String {
    let record = read_if_there(&directory.join(EXIT_RECORD)).ok().flatten();
    let record = record.and_then(|bytes| serde_json::from_slice::<ExitRecord>(&bytes).ok());
    let said = match record {
        Some(record) => record.last_words,
        None => std::fs::read_to_string(directory.join(SHIM_LOG)).unwrap_or_default(),
    };
    let said = said.trim();
    if said.is_empty() { "qemu ended at once and said nothing".to_owned() } else { said.to_owned() }
}

impl Hypervisor for QemuHypervisor {
    type Guest = QemuGuest;

    async fn look(&self, uid: Uuid) -> Look<QemuGuest> {
        look::look(&self.settings.run_dir, uid, &self.carriers).await
    }

    async fn spawn(&self, blueprint: Blueprint) -> Result<(QemuGuest, Happenings), SpawnFailed> {
        let uid = blueprint.uid;
        self.carriers.forget(uid);
        let launch = self.write_launch(&blueprint)?;
        let failed = match self.run_shim(&launch, &self.directory(uid)).await {
            Ok(()) => match self.look(uid).await {
                Look::Alive { guest, happenings, .. } => return Ok((guest, happenings)),
                Look::Unknown { why } => why,
                Look::Ended(_) | Look::Absent => last_words(&self.directory(uid)),
            },
            Err(why) => why,
        };
        self.kill(uid, None).await;
        Err(SpawnFailed { why: failed })
    }

    async fn kill(&self, uid: Uuid, guest: Option<QemuGuest>) {
        let directory = self.directory(uid);
        self.carriers.finish(uid);
        if let Some(guest) = &guest {
            // Its answer may not come: the shim ends with it.
            let _ = guest.kill().await;
        } else {
            look::ask_to_kill(&directory).await;
        }
        let begun = tokio::time::Instant::now();
        while begun.elapsed() < KILL_DEADLINE {
            let alive = look::processes(&self.settings.run_dir, uid);
            if alive.is_empty() {
                return;
            }
            if begun.elapsed() > KILL_PATIENCE {
                alive.iter().for_each(|process| process.kill());
            }
            tokio::time::sleep(POLL).await;
        }
        tracing::error!(%uid, "a vm's processes do not end");
    }

    fn clear(&self, uid: Uuid) -> io::Result<()> {
        match std::fs::remove_dir_all(self.directory(uid)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}
