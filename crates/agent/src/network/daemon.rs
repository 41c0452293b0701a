//! Programs that serve a network and outlive the agent. A new agent finds them by their arguments, which say whose
//! they are: nothing else has to be recorded, so there are never two of them, whenever the agent dies.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use sterna_base::backoff::Backoff;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::Command;

/// Long enough that a process that ends at once does not fill the log.
const RESTART: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// These programs end within milliseconds of SIGTERM.
const PATIENCE: Duration = Duration::from_secs(2);

/// One such program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Daemon {
    pub tool: &'static str,
    pub args: Vec<String>,
    pub log: PathBuf,
    /// What it serves, for our own log.
    pub device: String,
}

impl Daemon {
    /// Runs it for ever. `find` tells which processes there are of those that serve the same: one with the right
    /// arguments is adopted, the others end. `on_end` is called each time that it has ended.
    pub(super) async fn keep_running(self, find: impl Fn() -> Vec<Process>, on_end: impl Fn()) {
        let mut backoff = Backoff::new(RESTART.0, RESTART.1);
        let (tool, device) = (self.tool, &self.device);
        loop {
            match self.run_once(find()).await {
                Ok(ran) if ran > RESTART.1 => backoff.reset(),
                Ok(_) => {}
                Err(error) => tracing::warn!(device, %error, "cannot run {tool}"),
            }
            on_end();
            tokio::time::sleep(backoff.next_delay()).await;
            tracing::warn!(device, "{tool} ended; starting it again");
        }
    }

    /// Returns how long it ran from now on.
    async fn run_once(&self, there: Vec<Process>) -> std::io::Result<Duration> {
        let began = Instant::now();
        let mut adopted = None;
        for process in there {
            if adopted.is_none() && process.args.iter().skip(1).eq(&self.args) {
                adopted = Some(process);
            } else {
                process.end().await;
            }
        }
        match adopted {
            Some(process) => process.exited().await?,
            None => self.spawn()?.wait().await.map(drop)?,
        }
        Ok(began.elapsed())
    }

    fn spawn(&self) -> std::io::Result<tokio::process::Child> {
        if let Some(dir) = self.log.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let log = std::fs::OpenOptions::new().create(true).write(true).truncate(true).open(&self.log)?;
        // Its own process group: Ctrl-C at the agent's terminal is not for it. It stays when the agent ends.
        Command::new(self.tool)
            .args(&self.args)
            .process_group(0)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
    }
}

/// A running process; the handle is of this very one, whatever becomes of its number.
pub(super) struct Process {
    args: Vec<String>,
    handle: OwnedFd,
}

impl Process {
    fn open(pid: i32) -> Option<Self> {
        let handle = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        // Read after the handle was opened: both are about the same process.
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let args = line.split(|byte| *byte == 0).map(|arg| String::from_utf8_lossy(arg).into_owned());
        let mut args: Vec<_> = args.collect();
        args.pop();
        Some(Self { args, handle })
    }

    /// A process that is gone already needs no signal.
    pub(super) fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.handle, signal);
    }

    async fn exited(self) -> std::io::Result<()> {
        watch(self.handle)?.readable().await.map(drop)
    }

    pub(super) async fn end(self) {
        self.signal(Signal::TERM);
        let Ok(handle) = watch(self.handle) else { return };
        if tokio::time::timeout(PATIENCE, handle.readable()).await.is_err() {
            let _ = pidfd_send_signal(handle.get_ref(), Signal::KILL);
            let _ = handle.readable().await;
        }
    }
}

/// Becomes readable when the process has ended.
fn watch(handle: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor stays the same open one for as long as it lives.
    let registered = unsafe { AsyncFd::register_with_interest(handle, Interest::READABLE) };
    Ok(registered?)
}

/// Processes of `tool` whose arguments (its name not among them) are `ours`.
pub(super) fn find(tool: &str, ours: impl Fn(&[String]) -> bool) -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_ours = |process: &Process| {
        let (program, args) = process.args.split_first().map_or((None, &[][..]), |(p, rest)| (Some(p), rest));
        program.is_some_and(|program| program.ends_with(tool)) && ours(args)
    };
    pids.filter_map(Process::open).filter(is_ours).collect()
}

pub(super) fn is_installed(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(tool).is_file())
}
