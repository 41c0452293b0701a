//! What a QEMU binary on this host can do: asked, and tried.
//!
//! `/dev/kvm` proves nothing: there are hosts where it opens, accepts a machine, and then runs a guest forty
//! times slower than emulation does. So a small guest is run under both, and KVM is used only if it keeps up.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};

use crate::boot;
use crate::config::Accel;
use crate::qmp::machine::CpuDefinition;
use crate::qmp::{self, Client};
use crate::version::{MachineType, Version};

/// Starting QEMU and asking it everything takes a fifth of a second; a host may be busy.
const INSPECT_DEADLINE: Duration = Duration::from_secs(20);

/// Emulation runs the probe guest in 0.1 to 0.2 s on an idle host.
const TCG_DEADLINE: Duration = Duration::from_secs(20);

/// What KVM gets on top of three times the emulated time. A KVM that works needs a tenth of a second, the slow
/// one that is known needs two to four seconds: the limit has to lie well away from both, or hosts of one kind
/// choose differently and no VM can move between them.
const KVM_MARGIN: Duration = Duration::from_millis(300);

/// A busy moment must not cost a host its KVM until the agent's next start.
const KVM_TRIES: u32 = 2;

/// What a process that has failed gets to end.
const END_DEADLINE: Duration = Duration::from_secs(2);

/// What QEMU prints when it fails is worth reading only at its start.
const STDERR_MAX: u64 = 16 << 10;

/// What one binary can do under one accelerator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    pub version: Version,
    /// Versioned `pc-q35` types, oldest first.
    pub machines: Vec<MachineType>,
    /// With what this host lacks of each, under the accelerator asked for.
    pub cpus: Vec<CpuDefinition>,
}

impl Inspection {
    /// The newest machine type: what a VM that will stay among equal hosts should get.
    pub fn newest_machine(&self) -> Option<&MachineType> {
        self.machines.last()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot start {binary:?}")]
    NotStarted { binary: PathBuf, source: std::io::Error },
    #[error("{binary:?} failed: {printed}")]
    Failed { binary: PathBuf, printed: String },
    #[error("{binary:?} does not talk")]
    Qmp { binary: PathBuf, source: qmp::Error },
    #[error("{binary:?} did not finish within {after:?}")]
    TimedOut { binary: PathBuf, after: Duration },
}

/// Asks a binary for its version, machine types and processor models.
pub async fn inspect(binary: &Path, accel: Accel) -> Result<Inspection, Error> {
    let mut command = quiet(binary);
    command.args(["-machine", "none", "-S", "-accel", accel.as_str(), "-qmp", "stdio"]);
    let mut child = start(binary, command.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
    let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
        unreachable!("both ends were asked for as pipes");
    };
    let asked = ask(tokio::io::join(output, input));
    match tokio::time::timeout(INSPECT_DEADLINE, asked).await {
        Ok(Ok(inspection)) => Ok(inspection),
        // QEMU that cannot start closes the connection; what it printed says why.
        Ok(Err(qmp::Error::Closed)) => Err(failed(binary, &mut child).await),
        Ok(Err(source)) => Err(Error::Qmp { binary: binary.to_owned(), source }),
        Err(_) => Err(Error::TimedOut { binary: binary.to_owned(), after: INSPECT_DEADLINE }),
    }
}

async fn ask(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + 'static,
) -> Result<Inspection, qmp::Error> {
    let client = Client::connect(stream, qmp::Options::default()).await?;
    let version = client.query_version().await?;
    let machines = client.query_machine_types().await?;
    let cpus = client.query_cpu_definitions().await?;
    client.quit().await?;
    Ok(Inspection { version, machines, cpus })
}

/// Which accelerator to use, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    pub accel: Accel,
    /// One sentence for people.
    pub reason: String,
}

/// Runs a small guest under TCG and KVM and answers KVM only if that ran it about as fast.
///
/// Takes up to 0.5 s where KVM works or is absent, 1.5 s where it crawls. Fails only if the binary cannot even
/// emulate. The guest's user must be able to open `/dev/kvm` as well; this tries it as the caller.
pub async fn choose_accel(binary: &Path) -> Result<Choice, Error> {
    let tcg = run_guest(binary, Accel::Tcg, TCG_DEADLINE).await?;
    let device = Path::new("/dev/kvm");
    if let Err(error) = std::fs::OpenOptions::new().read(true).write(true).open(device) {
        let reason = format!("{} cannot be opened ({error}); guests are emulated", device.display());
        return Ok(Choice { accel: Accel::Tcg, reason });
    }
    let deadline = KVM_MARGIN + 3 * tcg;
    let emulated = format!("emulation ran it in {:.2} s", tcg.as_secs_f64());
    let mut kvm = run_guest(binary, Accel::Kvm, deadline).await;
    for _ in 1..KVM_TRIES {
        if matches!(kvm, Err(Error::TimedOut { .. })) {
            kvm = run_guest(binary, Accel::Kvm, deadline).await;
        }
    }
    Ok(match kvm {
        Ok(kvm) => {
            let reason = format!("KVM ran a small guest in {:.2} s, {emulated}", kvm.as_secs_f64());
            Choice { accel: Accel::Kvm, reason }
        }
        Err(Error::TimedOut { .. }) => {
            let seconds = deadline.as_secs_f64();
            let reason = format!("KVM did not finish a small guest within {seconds:.1} s, {emulated}");
            Choice { accel: Accel::Tcg, reason }
        }
        Err(error) => Choice { accel: Accel::Tcg, reason: format!("KVM runs no guest here: {error}") },
    })
}

/// Runs the guest of [`boot::exits`]; answers how long it took from start to end.
pub async fn run_guest(binary: &Path, accel: Accel, deadline: Duration) -> Result<Duration, Error> {
    let not_started = |source| Error::NotStarted { binary: binary.to_owned(), source };
    let disk = memory_file(&boot::exits()).map_err(|error| not_started(error.into()))?;
    let mut command = quiet(binary);
    command.args(["-machine", "q35,usb=off,smm=off,vmport=off", "-m", "size=16376k", "-no-reboot"]);
    command.args(["-accel", accel.as_str(), "-blockdev", &blockdev(&disk)]);
    command.args(["-device", r#"{"driver":"virtio-blk-pci","drive":"disk","bootindex":0}"#]);
    command.args([
        "-device",
        &format!(r#"{{"driver":"isa-debug-exit","iobase":{},"iosize":1}}"#, boot::EXIT_PORT),
    ]);
    let started = Instant::now();
    let mut child = start(binary, command.stdin(Stdio::null()).stdout(Stdio::null()))?;
    let Ok(waited) = tokio::time::timeout(deadline, child.wait()).await else {
        // Not left behind as a process that spins.
        let _ = child.kill().await;
        return Err(Error::TimedOut { binary: binary.to_owned(), after: deadline });
    };
    match waited.map_err(not_started)?.code() {
        Some(boot::EXIT_STATUS) => Ok(started.elapsed()),
        _ => Err(failed(binary, &mut child).await),
    }
}

/// A disk image that is in no folder. It lives as long as the answer, and the path names it for a child of
/// the same user without being inherited.
fn memory_file(sector: &boot::Sector) -> Result<std::fs::File, rustix::io::Errno> {
    let fd = rustix::fs::memfd_create("probe", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = std::fs::File::from(fd);
    let whole = file.write_all(sector).and_then(|()| file.set_len(1 << 20));
    whole.map_err(|error| rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO))?;
    Ok(file)
}

fn blockdev(disk: &std::fs::File) -> String {
    let path = format!("/proc/{}/fd/{}", std::process::id(), disk.as_raw_fd());
    json!({
        "driver": "raw",
        "node-name": "disk",
        "read-only": true,
        "file": { "driver": "file", "filename": path, "locking": "off", "read-only": true },
    })
    .to_string()
}

fn quiet(binary: &Path) -> Command {
    let mut command = Command::new(binary);
    command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
    command
}

fn start(binary: &Path, command: &mut Command) -> Result<Child, Error> {
    let started = command.stderr(Stdio::piped()).kill_on_drop(true).spawn();
    started.map_err(|source| Error::NotStarted { binary: binary.to_owned(), source })
}

/// What a process that has failed, or is about to, printed.
async fn failed(binary: &Path, child: &mut Child) -> Error {
    let mut printed = Vec::new();
    let read = async {
        if let Some(stderr) = child.stderr.take() {
            let _ = stderr.take(STDERR_MAX).read_to_end(&mut printed).await;
        }
        child.wait().await
    };
    let ended: Option<ExitStatus> = tokio::time::timeout(END_DEADLINE, read).await.ok().and_then(Result::ok);
    let mut printed = String::from_utf8_lossy(&printed).trim().replace('\n', "; ");
    if printed.is_empty() {
        printed = ended.map_or_else(|| "it said nothing".to_owned(), |status| status.to_string());
    }
    Error::Failed { binary: binary.to_owned(), printed }
}
