//! Keeps one command running: starts it again when it ends, within 0.2 s unless it ends again and again.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal as Number, kill_process};
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cgroup;

/// The usual pause before a restart.
const PAUSE: Duration = Duration::from_millis(100);
/// The pause grows to this once it ended [`SHORT_RUNS`] times within [`SHORT`] each.
const PAUSE_MAX: Duration = Duration::from_secs(2);
const SHORT: Duration = Duration::from_secs(1);
const SHORT_RUNS: u32 = 5;
/// A log that is full is kept as `.1` and begun again.
const LOG_BYTES_MAX: u64 = 16 << 20;
const LOG_CHECK: Duration = Duration::from_secs(10);

/// Start a command again whenever it ends
#[derive(Debug, Clone, clap::Args)]
pub struct Supervise {
    /// Where its output goes; begun again at 16 MiB [default: where this command's goes]
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Cgroup directory to run in
    #[arg(long, value_name = "DIR")]
    cgroup: Option<PathBuf>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Runs until SIGTERM or SIGINT, which end the command as well. Returns the exit code to end with.
pub fn run(args: &Supervise) -> Result<u8> {
    if let Some(dir) = &args.cgroup {
        cgroup::enter(dir)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start")?;
    // On a thread of its own: the caller may have a runtime already.
    let args = args.clone();
    let thread = std::thread::spawn(move || runtime.block_on(supervise(&args)));
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

async fn supervise(args: &Supervise) -> Result<u8> {
    let mut asked =
        Asked { term: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? };
    let program = args.command.join(" ");
    let mut short_runs = 0;
    loop {
        let began = Instant::now();
        match run_once(args, &mut asked).await {
            Ok(Ended::Asked(status)) => {
                tracing::info!(program, %status, "ended as asked");
                return Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(0));
            }
            Ok(Ended::Alone(status)) => tracing::warn!(program, %status, "ended; starting it again"),
            Err(error) => tracing::error!(program, error = format!("{error:#}"), "cannot run it"),
        }
        short_runs = if began.elapsed() < SHORT { short_runs + 1 } else { 0 };
        tokio::select! {
            () = asked.wait() => return Ok(0),
            () = tokio::time::sleep(pause(short_runs)) => {}
        }
    }
}

fn pause(short_runs: u32) -> Duration {
    let doublings = short_runs.saturating_sub(SHORT_RUNS - 1).min(8);
    (PAUSE * (1 << doublings)).min(PAUSE_MAX)
}

struct Asked {
    term: Signal,
    interrupt: Signal,
}

impl Asked {
    async fn wait(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

enum Ended {
    Alone(ExitStatus),
    Asked(ExitStatus),
}

async fn run_once(args: &Supervise, asked: &mut Asked) -> Result<Ended> {
    let mut child = spawn(args)?;
    let mut check = tokio::time::interval(LOG_CHECK);
    loop {
        tokio::select! {
            status = child.wait() => return Ok(Ended::Alone(status.context("wait for it")?)),
            () = asked.wait() => {
                pass_on(&child);
                return Ok(Ended::Asked(child.wait().await.context("wait for it")?));
            }
            _ = check.tick() => {
                if let Some(log) = &args.log {
                    cut(log, LOG_BYTES_MAX).unwrap_or_else(|error| tracing::warn!(%error, "cannot cut the log"));
                }
            }
        }
    }
}

fn spawn(args: &Supervise) -> Result<Child> {
    let mut command = Command::new(&args.command[0]);
    command.args(&args.command[1..]).stdin(Stdio::null()).process_group(0);
    if let Some(log) = &args.log {
        let file = OpenOptions::new().create(true).append(true).open(log).context("open the log")?;
        command.stdout(file.try_clone().context("open the log")?).stderr(file);
    }
    command.spawn().context("start it")
}

fn pass_on(child: &Child) {
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // Not reaped yet, so the number is still its own; one that has ended needs no signal.
        let _ = kill_process(pid, Number::TERM);
    }
}

/// The writer appends to the same open file, so it is copied and emptied, not renamed.
fn cut(log: &Path, bytes_max: u64) -> std::io::Result<()> {
    if std::fs::metadata(log)?.len() <= bytes_max {
        return Ok(());
    }
    let mut kept = log.as_os_str().to_owned();
    kept.push(".1");
    std::fs::copy(log, kept)?;
    OpenOptions::new().write(true).open(log)?.set_len(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_restarts_are_quick_and_the_pause_has_a_ceiling() {
        assert!((0..SHORT_RUNS).all(|runs| pause(runs) == PAUSE));
        assert_eq!(pause(SHORT_RUNS), PAUSE * 2);
        assert_eq!(pause(1_000_000), PAUSE_MAX);
    }

    #[test]
    fn a_full_log_is_kept_once_and_begun_again() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("a.log");
        std::fs::write(&log, "12345").unwrap();
        cut(&log, 5).unwrap();
        assert_eq!(std::fs::read(&log).unwrap(), b"12345");
        cut(&log, 4).unwrap();
        assert_eq!(std::fs::read(&log).unwrap(), b"");
        assert_eq!(std::fs::read(dir.path().join("a.log.1")).unwrap(), b"12345");
    }
}
