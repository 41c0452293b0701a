//! Whether the guest is alive: what its agent says, and what its disks and ports do.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use sterna_base::file::read_if_there;
use sterna_qemu::config::Source;
use sterna_qemu::guest_agent::{Channel, Ended, Error};
use sterna_qemu::qmp::client::Heard;
use sterna_qemu::qmp::event::Event;
use sterna_wire::assignment::Machine;
use sterna_wire::shim::{LAUNCH, Launch};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::QemuGuest;
use crate::hypervisor::{FailedDisk, GuestError, Parts};
use crate::qemu_hypervisor::{AGENT_SOCKET, blueprint};

/// The channel of one guest, connected while it works.
#[derive(Clone, Default)]
pub struct Agent(Arc<Mutex<Option<Channel>>>);

/// Disks whose storage failed since the guest last ran, and whether for want of room.
#[derive(Clone, Default)]
pub struct Failures(Arc<std::sync::Mutex<BTreeMap<usize, bool>>>);

impl Failures {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<usize, bool>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn on(&self, heard: &Heard) {
        let Heard::Event(stamped) = heard else { return };
        match &stamped.event {
            Event::Resume => self.lock().clear(),
            Event::BlockIoError(error) if error.action == "stop" => {
                let device =
                    error.qom_path.as_deref().and_then(|path| path.strip_prefix("/machine/peripheral/"));
                // Older versions tell the node alone.
                if let Some(index) = device.or(error.node_name.as_deref()).and_then(index_of) {
                    self.lock().insert(index, error.nospace);
                }
            }
            _ => {}
        }
    }

    fn disks(&self) -> Vec<FailedDisk> {
        self.lock().iter().map(|(index, is_full)| FailedDisk { index: *index, is_full: *is_full }).collect()
    }
}

/// Of a device or a node that is called by its position.
fn index_of(name: &str) -> Option<usize> {
    let rest = name.strip_prefix("disk")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

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

    /// As the events said; after a restart of the agent, as QEMU has it, which keeps the first failure of each disk.
    pub(super) async fn failed_disks(&self) -> Result<Vec<FailedDisk>, GuestError> {
        let heard = self.failures.disks();
        if !heard.is_empty() {
            return Ok(heard);
        }
        let disks = self.client.query_block().await?;
        let failed = disks.iter().filter_map(|disk| {
            let status = disk.io_status.as_deref().filter(|status| *status != "ok")?;
            Some(FailedDisk { index: index_of(disk.id()?)?, is_full: status == "nospace" })
        });
        Ok(failed.collect())
    }

    /// A file that is back is still open; a network block device that was lost is not.
    pub(super) async fn reopen_lost(
        &self,
        machine: &Machine,
        parts: &Parts,
        which: &[FailedDisk],
    ) -> Result<(), GuestError> {
        let disks = blueprint::disks(machine, parts);
        for disk in which.iter().filter_map(|failed| disks.get(failed.index)) {
            if !matches!(disk.source, Source::File { .. }) {
                tracing::info!(uid = %self.uid, disk = %disk.id, "a disk is opened anew");
                self.client.reopen_disk(disk).await?;
            }
        }
        Ok(())
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
    fn a_failed_disk_is_known_by_its_device_or_its_node_until_the_guest_runs() {
        let heard = |name: &str, data: serde_json::Value| {
            let message = serde_json::json!({ "event": name, "data": data });
            Heard::Event(sterna_qemu::qmp::Stamped::parse(message).unwrap())
        };
        let failures = Failures::default();
        failures.on(&heard("BLOCK_IO_ERROR", serde_json::json!({
            "device": "", "node-name": "disk1-image", "operation": "write", "action": "stop", "nospace": true,
        })));
        failures.on(&heard("BLOCK_IO_ERROR", serde_json::json!({
            "device": "", "qom-path": "/machine/peripheral/disk10/virtio-backend", "operation": "read", "action": "stop",
        })));
        failures.on(&heard(
            "BLOCK_IO_ERROR",
            serde_json::json!({
                "device": "", "node-name": "#block7", "operation": "read", "action": "stop",
            }),
        ));
        let failed = |index, is_full| FailedDisk { index, is_full };
        assert_eq!(failures.disks(), [failed(1, true), failed(10, false)]);
        failures.on(&heard("RESUME", serde_json::Value::Null));
        assert!(failures.disks().is_empty());
    }

    #[test]
    fn packets_of_one_device_are_found() {
        let text = "Inter-|   Receive\n face |bytes    packets errs\n    lo: 10 2 0 0 0 0 0 0 10 2\n  st1a:  998   17    0\n";
        assert_eq!(received(text, "st1a"), Some(17));
        assert_eq!(received(text, "st1"), None);
    }
}
