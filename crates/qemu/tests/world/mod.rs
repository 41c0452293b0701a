//! Real QEMU processes for tests: started, talked to, and ended with the test.
#![allow(clippy::unwrap_used, dead_code)]

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sterna_qemu::config::{Accel, Config, Cpu, Disk, Format, Monitor, Place, Serial, Source};
use sterna_qemu::qmp::{Client, Options};
use sterna_qemu::version::{MachineType, Version};

/// Two of them, between which a disk moves.
pub mod disks;

/// Number under which QEMU finds its end of the QMP socketpair.
const QMP_FD: i32 = 3;

/// A QEMU that is installed for tests.
#[derive(Debug, Clone)]
pub struct Binary {
    pub path: PathBuf,
    pub version: Version,
}

impl Binary {
    /// The newest machine type of its version, and so one that both sides of a migration know.
    pub fn machine(&self) -> MachineType {
        MachineType::parse(&format!("pc-q35-{}.{}", self.version.major, self.version.minor)).unwrap()
    }
}

/// The QEMU of a major version, or `None` after a line that says so. With `STERNA_REQUIRE_QEMU=1` a missing
/// one fails the test.
pub fn qemu(major: u16) -> Option<Binary> {
    let variable = match major {
        7 => "STERNA_QEMU_72",
        _ => "STERNA_QEMU_100",
    };
    let path = std::env::var_os(variable).map_or_else(|| PathBuf::from("qemu-system-x86_64"), PathBuf::from);
    let found = Command::new(&path).arg("--version").output().ok();
    let version = found.and_then(|output| Version::from_banner(&String::from_utf8_lossy(&output.stdout)));
    match version {
        Some(version) if version.major == major => Some(Binary { path, version }),
        other => {
            let is = other.map_or_else(|| "missing".to_owned(), |version| version.to_string());
            let line = format!("needs QEMU {major}.x, but {} is {is}; set {variable}", path.display());
            assert!(std::env::var_os("STERNA_REQUIRE_QEMU").is_none_or(|value| value != "1"), "{line}");
            eprintln!("not run: {line}");
            None
        }
    }
}

/// Waits until the condition holds; tests never sleep for a fixed time.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition().await {
        assert!(Instant::now() < deadline, "not within 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A folder for sockets and disks, short enough for socket addresses.
pub fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("sq-").tempdir_in("/var/tmp").unwrap()
}

/// A small machine that boots `disk`.
pub fn machine(binary: &Binary, folder: &Path, name: &str, disk: &Path) -> Config {
    Config {
        name: name.into(),
        uuid: "0191d5b2-6f3a-7c11-9d55-8f0c2b7f9a01".into(),
        machine: binary.machine(),
        accel: Accel::Tcg,
        cpu: Cpu { model: "qemu64".into(), features: vec![], enforce: false },
        vcpus: 1,
        // Not a multiple of 256 KiB: right on every version.
        memory_kib: 16_376,
        tcg_buffer_mib: Some(32),
        disks: vec![Disk {
            id: "root".into(),
            node: "root-node".into(),
            format: Format::Raw,
            source: Source::File { path: disk.to_owned() },
            backing: vec![],
            serial: None,
            read_only: false,
            place: Place::Slot(0),
            boot_index: Some(0),
        }],
        seed: None,
        nics: vec![],
        hot_ports: 0,
        monitor: Monitor::Fd(QMP_FD),
        serial: Some(Serial {
            socket: folder.join(format!("{name}.serial")),
            log: Some(folder.join(format!("{name}.log"))),
        }),
        vnc: None,
        guest_agent: None,
        watchdog: false,
        paused: false,
        incoming: false,
    }
}

/// A running QEMU and its QMP connection.
pub struct Qemu {
    pub child: Child,
    pub qmp: Client,
    pub log: PathBuf,
}

impl Qemu {
    /// Starts it; fails with what QEMU printed when it does not come up.
    pub async fn start(binary: &Binary, config: &Config) -> Result<Self, String> {
        Self::start_as(binary, config, None, &[]).await
    }

    /// As an unprivileged user if one is given; inherits `fds` under their own numbers.
    pub async fn start_as(
        binary: &Binary,
        config: &Config,
        uid: Option<u32>,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Self, String> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut command = Command::new(&binary.path);
        command
            .args(config.argv().unwrap())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        if let Some(uid) = uid {
            command.uid(uid).gid(uid);
        }
        pass_as(&mut command, theirs.into(), QMP_FD);
        for fd in fds {
            let (kept, number) = (fd.try_clone_to_owned().unwrap(), fd.as_raw_fd());
            pass_as(&mut command, kept, number);
        }
        let mut child = command.spawn().unwrap();
        drop(command);
        ours.set_nonblocking(true).unwrap();
        let stream = tokio::net::UnixStream::from_std(ours).unwrap();
        match Client::connect(stream, Options::default()).await {
            Ok(qmp) => {
                let log = config.serial.as_ref().and_then(|serial| serial.log.clone()).unwrap_or_default();
                Ok(Self { child, qmp, log })
            }
            Err(error) => {
                let _ = child.kill();
                let printed = child.wait_with_output().unwrap();
                Err(format!("{error}: {}", String::from_utf8_lossy(&printed.stderr)))
            }
        }
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).unwrap();
    }

    /// Kills and reaps: only then its locks are free.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// How many signs of life the guest has printed.
    pub fn printed(&self) -> u64 {
        std::fs::metadata(&self.log).map_or(0, |log| log.len())
    }

    /// Waits for more signs of life.
    pub async fn lives(&self) {
        let before = self.printed();
        eventually("guest prints", || async { self.printed() > before }).await;
    }

    pub async fn is_running(&self) -> bool {
        self.qmp.query_status().await.unwrap().is_running
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Lets the child inherit `fd` under this number.
fn pass_as(command: &mut Command, fd: OwnedFd, number: i32) {
    // SAFETY: only async-signal-safe calls between fork and exec.
    unsafe {
        command.pre_exec(move || {
            let mut target = std::mem::ManuallyDrop::new(std::os::fd::FromRawFd::from_raw_fd(number));
            if fd.as_raw_fd() == number {
                let fd: &OwnedFd = &fd;
                return Ok(rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?);
            }
            Ok(rustix::io::dup2(&fd, &mut target)?)
        });
    }
}
