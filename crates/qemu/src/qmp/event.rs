//! What QEMU tells unasked.
//!
//! An event with an unknown name or shape is kept as [`Event::Other`]: a newer QEMU must not make us deaf.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::migration::Status;

/// An event and when QEMU said it happened (wall clock of its host, since 1970).
#[derive(Debug, Clone, PartialEq)]
pub struct Stamped {
    pub at: Duration,
    pub event: Event,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    Stop,
    Resume,
    /// QEMU is about to exit, or would be without `-no-shutdown`.
    Shutdown(Cause),
    Reset(Cause),
    /// The guest was asked to power off.
    Powerdown,
    Suspend,
    Wakeup,
    GuestPanicked {
        action: String,
    },
    Watchdog {
        action: String,
    },
    BlockIoError(BlockIoError),
    BlockWriteThreshold {
        node: String,
        amount_exceeded: u64,
        write_threshold: u64,
    },
    BlockJobReady {
        job: String,
    },
    BlockJobCompleted {
        job: String,
        error: Option<String>,
    },
    BlockJobCancelled {
        job: String,
    },
    BlockJobError {
        job: String,
        operation: String,
        action: String,
    },
    /// A device is gone at last; `device_del` only asks the guest.
    DeviceDeleted {
        device: Option<String>,
        path: String,
    },
    /// The guest would not let the device go.
    DeviceUnplugRefused {
        device: Option<String>,
    },
    Migration {
        status: Status,
    },
    MigrationPass {
        pass: u64,
    },
    /// The guest's end of a channel was opened or closed.
    ChannelChanged {
        id: String,
        is_open: bool,
    },
    MemoryFailure {
        action: String,
    },
    Other {
        name: String,
        data: Value,
    },
}

/// Why the machine shut down or was reset.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Cause {
    /// The guest did it, not the host.
    pub guest: bool,
    /// QEMU's word for it: `guest-shutdown`, `host-qmp-quit`, `host-signal`, `guest-reset`, ...
    #[serde(default)]
    pub reason: String,
}

/// A disk request failed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockIoError {
    /// Empty for disks made with `-blockdev`; see `qom_path` and `node_name`.
    #[serde(default)]
    pub device: String,
    #[serde(default)]
    pub qom_path: Option<String>,
    #[serde(default)]
    pub node_name: Option<String>,
    /// `read` or `write`.
    pub operation: String,
    /// `stop`: the guest was paused; `report`: it saw the error; `ignore`.
    pub action: String,
    /// The pool is full, as far as QEMU can tell.
    #[serde(default)]
    pub nospace: bool,
    #[serde(default)]
    pub reason: String,
}

impl Stamped {
    /// `None` when the message is no event at all.
    pub fn parse(mut message: Value) -> Option<Self> {
        let name = message["event"].as_str()?.to_owned();
        let seconds = message["timestamp"]["seconds"].as_u64().unwrap_or(0);
        let microseconds = message["timestamp"]["microseconds"].as_u64().unwrap_or(0);
        let at = Duration::from_secs(seconds) + Duration::from_micros(microseconds);
        let data = message["data"].take();
        let event = parse(&name, &data).unwrap_or(Event::Other { name, data });
        Some(Self { at, event })
    }
}

fn parse(name: &str, data: &Value) -> Option<Event> {
    let text = |field: &str| data[field].as_str().map(str::to_owned);
    Some(match name {
        "STOP" => Event::Stop,
        "RESUME" => Event::Resume,
        "SHUTDOWN" => Event::Shutdown(cause(data)?),
        "RESET" => Event::Reset(cause(data)?),
        "POWERDOWN" => Event::Powerdown,
        "SUSPEND" => Event::Suspend,
        "WAKEUP" => Event::Wakeup,
        "GUEST_PANICKED" => Event::GuestPanicked { action: text("action")? },
        "WATCHDOG" => Event::Watchdog { action: text("action")? },
        "DEVICE_DELETED" => Event::DeviceDeleted { device: text("device"), path: text("path")? },
        "DEVICE_UNPLUG_GUEST_ERROR" => Event::DeviceUnplugRefused { device: text("device") },
        "MIGRATION" => Event::Migration { status: Status::from(text("status")?) },
        "MIGRATION_PASS" => Event::MigrationPass { pass: data["pass"].as_u64()? },
        "VSERPORT_CHANGE" => Event::ChannelChanged { id: text("id")?, is_open: data["open"].as_bool()? },
        "MEMORY_FAILURE" => Event::MemoryFailure { action: text("action")? },
        _ => return parse_block(name, data),
    })
}

fn parse_block(name: &str, data: &Value) -> Option<Event> {
    let text = |field: &str| data[field].as_str().map(str::to_owned);
    Some(match name {
        "BLOCK_IO_ERROR" => Event::BlockIoError(Deserialize::deserialize(data).ok()?),
        "BLOCK_WRITE_THRESHOLD" => Event::BlockWriteThreshold {
            node: text("node-name")?,
            amount_exceeded: data["amount-exceeded"].as_u64()?,
            write_threshold: data["write-threshold"].as_u64()?,
        },
        "BLOCK_JOB_READY" => Event::BlockJobReady { job: text("device")? },
        "BLOCK_JOB_COMPLETED" => Event::BlockJobCompleted { job: text("device")?, error: text("error") },
        "BLOCK_JOB_CANCELLED" => Event::BlockJobCancelled { job: text("device")? },
        "BLOCK_JOB_ERROR" => Event::BlockJobError {
            job: text("device")?,
            operation: text("operation")?,
            action: text("action")?,
        },
        _ => return None,
    })
}

fn cause(data: &Value) -> Option<Cause> {
    Deserialize::deserialize(data).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parsed(name: &str, data: Value) -> Event {
        let stamp = json!({ "seconds": 12, "microseconds": 500_000 });
        let stamped = Stamped::parse(json!({ "timestamp": stamp, "event": name, "data": data })).unwrap();
        assert_eq!(stamped.at, Duration::from_millis(12_500));
        stamped.event
    }

    #[test]
    fn known_events_are_typed() {
        let cause = Cause { guest: true, reason: "guest-shutdown".into() };
        let data = json!({ "guest": true, "reason": "guest-shutdown", "new-field": 1 });
        assert_eq!(parsed("SHUTDOWN", data), Event::Shutdown(cause));
        let status = Status::Other("postcopy-device".into());
        assert_eq!(parsed("MIGRATION", json!({ "status": "postcopy-device" })), Event::Migration { status });
        let Event::BlockIoError(error) = parsed(
            "BLOCK_IO_ERROR",
            json!({ "device": "", "node-name": "root", "operation": "write", "action": "stop", "nospace": true }),
        ) else {
            panic!("not typed")
        };
        assert!(error.nospace && error.node_name.as_deref() == Some("root"));
    }

    #[test]
    fn an_unknown_event_or_shape_is_kept() {
        for (name, data) in
            [("NEW_THING", json!({ "x": 1 })), ("SHUTDOWN", json!("soon")), ("WATCHDOG", Value::Null)]
        {
            assert_eq!(parsed(name, data.clone()), Event::Other { name: name.into(), data });
        }
        assert_eq!(Stamped::parse(json!({ "return": {} })), None);
    }
}
