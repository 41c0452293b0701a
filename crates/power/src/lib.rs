//! Switches machines off through their fence devices, and asks whether they are off.
//!
//! A device is spoken to through a fence agent: a program that reads `key=value` lines from its standard input, `action` among them,
//! and tells by its exit status what came of it
//! (<https://github.com/ClusterLabs/fence-agents/blob/main/doc/FenceAgentAPI.md>). Debian's lie in `/usr/sbin`. Agents are other
//! people's programs that speak to slow machines: each is bounded in time and in what it may say, and is killed with its process group.
//!
//! Decides nothing: when a machine is to be off is for `plan::ha::power`.

mod run;
mod words;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sterna_model::fence::{FenceDevice, PowerState};

use run::Ended;

/// Where Debian's packages put them.
pub const AGENTS: &str = "/usr/sbin";
/// A controller may need some seconds to be spoken to at all.
pub const STATUS_WITHIN: Duration = Duration::from_secs(20);
/// One try to switch off, with the status that follows.
pub const OFF_WITHIN: Duration = Duration::from_secs(30);

/// By their conventions; a status alone does not tell, because shells and interpreters use the same numbers for "cannot run this".
const EXIT_ON: i32 = 0;
const EXIT_OFF: i32 = 2;

/// Why a device has not said what the machine does, in few words of its own, without secrets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Failed(pub String);

/// The agents of this machine.
#[derive(Debug, Clone)]
pub struct Agents {
    dir: PathBuf,
}

impl Agents {
    #[must_use]
    pub fn in_dir(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Whether the machine is on or off, as the device says.
    pub async fn status(&self, device: &FenceDevice, within: Duration) -> Result<PowerState, Failed> {
        let ended = self.run(device, "status", within).await.map_err(|failed| failed.after("status"))?;
        let said = |state: &str| {
            let mut lines = ended.output.lines().map(str::trim);
            lines.any(|line| line.eq_ignore_ascii_case(&format!("status: {state}")))
        };
        match (ended.code, said("on"), said("off")) {
            (Some(EXIT_ON), true, false) => Ok(PowerState::On),
            (Some(EXIT_OFF), false, true) => Ok(PowerState::Off),
            _ => Err(ended.failed(device).after("status")),
        }
    }

    /// Switches the machine off. `Ok(Off)` only when a status that was asked for afterwards said so: an agent's word that it has done
    /// it is not enough, and its word that it has failed is no harm where the machine was off before.
    pub async fn switch_off(&self, device: &FenceDevice, within: Duration) -> Result<PowerState, Failed> {
        let until = Instant::now() + within;
        let switched = match self.run(device, "off", within * 2 / 3).await {
            Ok(ended) if ended.code == Some(0) => Ok(()),
            Ok(ended) => Err(ended.failed(device).after("off")),
            Err(failed) => Err(failed.after("off")),
        };
        let left = until.saturating_duration_since(Instant::now());
        match (switched, self.status(device, left).await) {
            (_, Ok(PowerState::Off)) => Ok(PowerState::Off),
            (Ok(()), said) => said,
            (Err(off), Ok(PowerState::On)) => Err(off),
            (Err(off), Err(status)) => Err(Failed(format!("{off}; {status}"))),
        }
    }

    async fn run(&self, device: &FenceDevice, action: &str, within: Duration) -> Result<Ended, Failed> {
        let program = self.dir.join(&device.agent);
        if !is_program(&program) {
            let text =
                format!("there is no {} on the server: install the package of the agent", program.display());
            return Err(Failed(text));
        }
        let mut lines = format!("action={action}\n");
        for (key, value) in device.lines() {
            lines.extend([key, "=", value, "\n"]);
        }
        run::run(&program, &lines, within).await
    }
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

impl Failed {
    fn after(self, action: &str) -> Self {
        Self(format!("{action}: {}", self.0))
    }
}

impl Ended {
    fn failed(&self, device: &FenceDevice) -> Failed {
        let secrets: Vec<_> = device.secrets.values().map(|secret| secret.0.as_str()).collect();
        let said = words::short(&self.errors, &secrets)
            .or_else(|| words::short(&self.output, &secrets))
            .unwrap_or_else(|| "it said nothing".to_owned());
        let how = match self.code {
            Some(code) => format!("it ended with {code}"),
            None => "it was killed by a signal".to_owned(),
        };
        Failed(format!("{said} ({how})"))
    }
}
