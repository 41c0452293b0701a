//! A QEMU whose guest the mover carries: frozen, asked about and taken back.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use sterna_base::file::{remove_if_there, write_atomically};
use sterna_qemu::qmp::migration::Status;
use sterna_wire::shim::KEPT_STILL;

use super::QemuGuest;
use crate::carrier::{self, Stage};
use crate::hypervisor::{GuestError, Transfer};
use crate::process;

/// Threads that wait for a disk stop when it answers.
const FREEZE_WITHIN: Duration = Duration::from_secs(2);
const FREEZE_POLL: Duration = Duration::from_micros(200);
/// How long a guest that is this host's again may take to run: QEMU notices a closed socket at once.
const RESUME_WITHIN: Duration = Duration::from_secs(5);
const RESUME_POLL: Duration = Duration::from_millis(5);

impl From<carrier::Error> for GuestError {
    fn from(error: carrier::Error) -> Self {
        match error {
            carrier::Error::Qemu(error) => error.into(),
            // Nothing was begun.
            other => Self::Refused(other.explain()),
        }
    }
}

impl QemuGuest {
    fn signal(&self, signal: Signal) -> Result<(), GuestError> {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| GuestError::Unclear("qemu has no process number".to_owned()))?;
        rustix::process::kill_process(pid, signal)
            .map_err(|error| GuestError::Unclear(format!("signal qemu: {error}")))
    }

    /// Whether nobody but the agent may let this process go on.
    fn keep_still(&self, is_kept: bool) -> Result<(), GuestError> {
        let path = self.directory.join(KEPT_STILL);
        let done = if is_kept {
            write_atomically(&path, self.pid.to_string().as_bytes(), 0o600)
        } else {
            remove_if_there(&path)
        };
        done.map_err(|error| GuestError::Unclear(format!("{}: {error}", path.display())))
    }

    pub(super) fn is_frozen(&self) -> Result<bool, GuestError> {
        process::is_stopped(self.pid).map_err(|error| GuestError::Unclear(format!("/proc: {error}")))
    }

    /// What this agent's part of a transfer says comes first where it knows more than QEMU.
    pub(super) fn carried(&self, told: Transfer) -> Transfer {
        let outgoing = self.carriers.outgoing(self.uid).map(|outgoing| outgoing.stage());
        let stage = outgoing.or_else(|| self.carriers.direct(self.uid).map(|direct| direct.stage()));
        let Some(stage) = stage else { return told };
        match stage {
            Stage::Going => match told {
                // QEMU's own word is about an earlier transfer, or ends this one, which the agent's part will see as well.
                Transfer::None | Transfer::Failed { .. } | Transfer::Cancelled | Transfer::Completed => {
                    Transfer::Going
                }
                told => told,
            },
            Stage::Held | Stage::Granted => Transfer::Held,
            Stage::Failed { why } => Transfer::Failed { why },
            Stage::Seeded => Transfer::Seeded,
            Stage::Over => told,
        }
    }

    /// Every one of them, if the mover still holds the end of the stream.
    pub(super) async fn stop_threads(&self) -> Result<(), GuestError> {
        if let Some(outgoing) = self.carriers.outgoing(self.uid) {
            // Written first: this host's guard would wake what it finds stopped.
            self.keep_still(true)?;
            self.signal(Signal::STOP)?;
            // A thread stops where it next returns from the kernel.
            let begun = Instant::now();
            while !self.is_frozen()? {
                if begun.elapsed() > FREEZE_WITHIN {
                    self.keep_still(false)?;
                    self.signal(Signal::CONT)?;
                    return Err(GuestError::Refused("qemu could not be frozen".to_owned()));
                }
                tokio::time::sleep(FREEZE_POLL).await;
            }
            // It may have been resumed, and have run, before it was stopped.
            if outgoing.stage() != Stage::Held {
                self.keep_still(false)?;
                self.signal(Signal::CONT)?;
                return Err(GuestError::Refused("its stream has ended".to_owned()));
            }
        }
        Ok(())
    }

    /// After its memory was handed over, also straight: the guest runs here again.
    pub(super) async fn reclaim(&self) -> Result<(), GuestError> {
        self.keep_still(false)?;
        self.signal(Signal::CONT)?;
        if let Some(outgoing) = self.carriers.outgoing(self.uid)
            && let Err(why) = outgoing.reclaim().await
        {
            tracing::debug!(vm = %self.uid, %why, "nothing to reclaim");
        }
        self.carriers.forget(self.uid);
        // QEMU fails its migration when its socket closes, and resumes the guest by itself; one that completed does not.
        let begun = Instant::now();
        loop {
            match self.client.query_migrate().await?.status {
                Status::Device | Status::Active | Status::PreSwitchover
                    if begun.elapsed() < RESUME_WITHIN =>
                {
                    tokio::time::sleep(RESUME_POLL).await;
                }
                _ => break,
            }
        }
        Ok(self.client.cont().await?)
    }
}
