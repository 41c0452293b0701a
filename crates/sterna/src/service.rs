//! Starting and stopping the services: under systemd where it runs this machine, else under `sterna supervise`.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use sterna_base::file;

/// One of the services of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// `server`, `agent` or `guard`.
    pub role: &'static str,
    pub settings: PathBuf,
    /// Where pid file and log lie without systemd.
    pub run_dir: PathBuf,
}

/// How it was started, for the one who asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Started {
    Systemd {
        unit: String,
    },
    Supervised {
        log: PathBuf,
    },
    /// It ran already.
    Before,
}

impl std::fmt::Display for Started {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Started::Systemd { unit } => write!(f, "started by systemd as {unit}, also after a reboot"),
            Started::Supervised { log } => write!(
                f,
                "started under `sterna supervise`, because systemd does not run this machine; not after a reboot; log in {}",
                log.display()
            ),
            Started::Before => f.write_str("runs already"),
        }
    }
}

const UNITS: &str = "/etc/systemd/system";
/// The supervisor ends its command first, which may have requests to finish.
const END_PATIENCE: Duration = Duration::from_secs(15);

fn systemd_runs() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

impl Service {
    fn unit(&self) -> String {
        format!("sterna-{}.service", self.role)
    }

    fn unit_path(&self) -> PathBuf {
        Path::new(UNITS).join(self.unit())
    }

    fn pid_path(&self) -> PathBuf {
        self.run_dir.join(format!("{}.pid", self.role))
    }

    fn log_path(&self) -> PathBuf {
        self.run_dir.join(format!("{}.log", self.role))
    }

    /// Starts it now and, where systemd can, after every boot.
    pub fn start(&self) -> Result<Started> {
        let binary = std::env::current_exe().context("find this program")?;
        if systemd_runs() { self.start_with_systemd(&binary) } else { self.start_supervised(&binary) }
    }

    fn start_with_systemd(&self, binary: &Path) -> Result<Started> {
        let text = unit(self.role, binary, &self.settings);
        let path = self.unit_path();
        file::write_durably(&path, text.as_bytes(), 0o644)
            .with_context(|| format!("write {}", path.display()))?;
        systemctl(&["daemon-reload"])?;
        systemctl(&["enable", "--now", &self.unit()])?;
        Ok(Started::Systemd { unit: self.unit() })
    }

    fn start_supervised(&self, binary: &Path) -> Result<Started> {
        if self.supervisor()?.is_some() {
            return Ok(Started::Before);
        }
        std::fs::create_dir_all(&self.run_dir).with_context(|| format!("make {}", self.run_dir.display()))?;
        let log = self.log_path();
        let mut command = Command::new(binary);
        command.args(["supervise", "--log"]).arg(&log).arg("--").arg(binary);
        command.args(words(self.role)).arg(&self.settings);
        // Its own process group: what is typed at this terminal is not for it.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().context("start the supervisor")?;
        let pid = child.id().to_string();
        file::write_atomically(&self.pid_path(), pid.as_bytes(), 0o644).context("write the pid file")?;
        Ok(Started::Supervised { log })
    }

    /// Stops it and takes away what starts it. VMs run on: they are not its children.
    pub fn remove(&self) -> Result<()> {
        if systemd_runs() && self.unit_path().exists() {
            systemctl(&["disable", "--now", &self.unit()])?;
            file::remove_if_there(&self.unit_path()).context("remove the unit file")?;
            systemctl(&["daemon-reload"])?;
        }
        if let Some(pid) = self.supervisor()? {
            end(pid).with_context(|| format!("stop the {} (process {})", self.role, pid.as_raw_nonzero()))?;
        }
        for path in [self.pid_path(), self.log_path()] {
            file::remove_if_there(&path).with_context(|| format!("remove {}", path.display()))?;
        }
        Ok(())
    }

    /// The supervisor that the pid file names, if that process still is one: ids are used again.
    fn supervisor(&self) -> Result<Option<Pid>> {
        let Some(text) = file::read_if_there(&self.pid_path()).context("read the pid file")? else {
            return Ok(None);
        };
        let pid = String::from_utf8_lossy(&text).trim().parse().ok().and_then(Pid::from_raw);
        let Some(pid) = pid else { return Ok(None) };
        let line = file::read_if_there(Path::new(&format!("/proc/{}/cmdline", pid.as_raw_nonzero())))
            .context("read a command line")?
            .unwrap_or_default();
        let words: Vec<_> = line.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        let settings = self.settings.to_string_lossy();
        let is_ours = words.iter().any(|word| word == "supervise") && words.contains(&settings);
        Ok(is_ours.then_some(pid))
    }
}

/// SIGTERM, and waits until the process has ended.
fn end(pid: Pid) -> Result<()> {
    let handle = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(handle) => handle,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    pidfd_send_signal(&handle, Signal::TERM)?;
    let limit = Timespec { tv_sec: END_PATIENCE.as_secs().try_into()?, tv_nsec: 0 };
    let mut ended = [PollFd::new(&handle, PollFlags::IN)];
    let count = poll(&mut ended, Some(&limit))?;
    ensure!(count > 0, "it did not end within {} s", END_PATIENCE.as_secs());
    Ok(())
}

fn systemctl(args: &[&str]) -> Result<()> {
    let output = Command::new("systemctl").args(args).output().context("run systemctl")?;
    if !output.status.success() {
        bail!("systemctl {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// What this binary is told, but for the settings file.
fn words(role: &str) -> Vec<&str> {
    if role == "guard" { vec![role, "--config"] } else { vec![role, "run", "--settings"] }
}

/// The unit file of a service.
fn unit(role: &str, binary: &Path, settings: &Path) -> String {
    let (what, more) = match role {
        // VMs are in the agent's cgroup but are not its business when it ends: `process` leaves them alone, and
        // delegation lets it order them below itself.
        "agent" => ("host agent", "KillMode=process\nDelegate=yes\nOOMScoreAdjust=-900\nTasksMax=infinity\n"),
        // It takes what it needs by itself: locked memory, first in line for a processor, last to be killed.
        "guard" => ("guard", "LimitMEMLOCK=infinity\nLimitRTPRIO=99\n"),
        _ => ("server", "OOMScoreAdjust=-500\n"),
    };
    format!(
        "[Unit]\nDescription=Sterna {what}\nAfter=network-online.target\nWants=network-online.target\n\
         StartLimitIntervalSec=0\n\n\
         [Service]\nExecStart={} {} {}\nRestart=always\nRestartSec=200ms\n{more}\
         LimitNOFILE=1048576\n\n\
         [Install]\nWantedBy=multi-user.target\n",
        binary.display(),
        words(role).join(" "),
        settings.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stopping_the_agent_leaves_vms_alone() {
        let text = unit("agent", Path::new("/usr/bin/sterna"), Path::new("/etc/sterna/agent.toml"));
        assert!(text.contains("KillMode=process\n") && text.contains("Delegate=yes\n"), "{text}");
        assert!(
            text.contains("ExecStart=/usr/bin/sterna agent run --settings /etc/sterna/agent.toml\n"),
            "{text}"
        );
        let guard = unit("guard", Path::new("/usr/bin/sterna"), Path::new("/etc/sterna/guard.toml"));
        assert!(
            guard.contains("ExecStart=/usr/bin/sterna guard --config /etc/sterna/guard.toml\n"),
            "{guard}"
        );
        let server = unit("server", Path::new("/usr/bin/sterna"), Path::new("/etc/sterna/server.toml"));
        assert!(!server.contains("KillMode"), "{server}");
    }

    #[test]
    fn a_pid_that_is_another_process_now_is_not_ours() {
        let dir = tempfile::tempdir().unwrap();
        let service =
            Service { role: "agent", settings: "/x/agent.toml".into(), run_dir: dir.path().to_owned() };
        assert_eq!(service.supervisor().unwrap(), None);
        std::fs::write(service.pid_path(), std::process::id().to_string()).unwrap();
        assert_eq!(service.supervisor().unwrap(), None);
        std::fs::write(service.pid_path(), "rubbish").unwrap();
        assert_eq!(service.supervisor().unwrap(), None);
    }
}
