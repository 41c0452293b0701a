//! Whether the guest is alive: what its agent says, and what its disks and ports do.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sterna_base::file::read_if_there;
use sterna_qemu::guest_agent::{Channel, Ended, Error};
use sterna_wire::shim::{LAUNCH, Launch};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::QemuGuest;
use crate::hypervisor::{FailedDisk, GuestError};
use crate::qemu_hypervisor::AGENT_SOCKET;

/// The channel of one guest, connected while it works.
#[derive(Clone, Default)]
pub struct Agent(Arc<Mutex<Option<Channel>>>);

/// Marks are told apart across channels and agents of this process.
static MARK: AtomicU32 = AtomicU32::new(1);

impl From<Error> for GuestError {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused(_) => Self::Refused(error.to_string()),
            other => Self::Unclear(other.to_string()),
        }
    }
}

impl QemuGuest {
    pub(super) async fn ping_agent(&self, within: Duration) -> Result<(), GuestError> {
        self.with_agent(within, async |channel, until| channel.ping(until).await).await
    }

    pub(super) async fn execute_in_guest(
        &self,
        program: &str,
        args: &[String],
        within: Duration,
    ) -> Result<(), GuestError> {
        let ended =
            self.with_agent(within, async |channel, until| channel.run(program, args, until).await).await?;
        match ended {
            Ended::Code(0) => Ok(()),
            Ended::Code(code) => Err(GuestError::Refused(format!("{program} ended with {code}"))),
            Ended::Signal(signal) => {
                Err(GuestError::Refused(format!("{program} was ended by signal {signal}")))
            }
        }
    }

    /// One question to the agent. A channel is used again only if the last question was answered.
    async fn with_agent<T>(
        &self,
        within: Duration,
        ask: impl AsyncFnOnce(&mut Channel, Instant) -> Result<T, Error>,
    ) -> Result<T, GuestError> {
        let until = Instant::now() + within;
        let locked = tokio::time::timeout_at(until, self.agent.0.lock()).await;
        let mut kept = locked.map_err(|_| GuestError::from(Error::Silent))?;
        let mut channel = match kept.take() {
            Some(channel) => channel,
            None => {
                let mark = MARK.fetch_add(1, Ordering::Relaxed);
                Channel::open(&self.directory.join(AGENT_SOCKET), mark, until).await?
            }
        };
        let answer = ask(&mut channel, until).await;
        if matches!(answer, Ok(_) | Err(Error::Refused(_))) {
            *kept = Some(channel);
        }
        Ok(answer?)
    }

    /// Finished operations of its disks, and packets that came out of its ports.
    pub(super) async fn count_activity(&self) -> Result<u64, GuestError> {
        let mut count = self.packets()?;
        for disk in self.client.query_block_stats().await? {
            let stats = disk.stats;
            for operations in [stats.rd_operations, stats.wr_operations, stats.flush_operations] {
                count = count.wrapping_add(operations);
            }
        }
        Ok(count)
    }

    pub(super) async fn failed_disks(&self) -> Result<Vec<FailedDisk>, GuestError> {
        let disks = self.client.query_block().await?;
        let failed = disks.iter().filter_map(|disk| {
            let status = disk.io_status.as_deref().filter(|status| *status != "ok")?;
            let index = disk.id()?.strip_prefix("disk")?.parse().ok()?;
            Some(FailedDisk { index, is_full: status == "nospace" })
        });
        Ok(failed.collect())
    }

    fn packets(&self) -> Result<u64, GuestError> {
        let unclear = |error: std::io::Error| GuestError::Unclear(error.to_string());
        let launch = read_if_there(&self.directory.with_file_name(LAUNCH)).map_err(unclear)?;
        let launch = launch.and_then(|text| serde_json::from_slice::<Launch>(&text).ok());
        let launch =
            launch.ok_or_else(|| GuestError::Unclear("its launch record cannot be read".to_owned()))?;
        if launch.taps.is_empty() {
            return Ok(0);
        }
        // Of this process's network namespace, unlike /sys.
        let devices = std::fs::read_to_string("/proc/self/net/dev").map_err(unclear)?;
        Ok(launch.taps.iter().filter_map(|tap| received(&devices, tap)).fold(0, u64::wrapping_add))
    }
}

/// Packets that the host received from this device: those that the guest sent.
fn received(devices: &str, device: &str) -> Option<u64> {
    let (_, counters) =
        devices.lines().filter_map(|line| line.split_once(':')).find(|(name, _)| name.trim() == device)?;
    counters.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_of_one_device_are_found() {
        let text = "Inter-|   Receive\n face |bytes    packets errs\n    lo: 10 2 0 0 0 0 0 0 10 2\n  st1a:  998   17    0\n";
        assert_eq!(received(text, "st1a"), Some(17));
        assert_eq!(received(text, "st1"), None);
    }
}
