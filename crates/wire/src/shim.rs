//! The agent's conversation with a VM's shim, and the files both keep.
//!
//! The shim owns QEMU's one QMP connection and offers it on `shim.sock` as plain QMP lines without a greeting, so that
//! the ordinary QMP client works on it. Beside QEMU's commands it answers its own, whose names start with `shim-`:
//!
//! | command | answers |
//! |---|---|
//! | `shim-status` | [`Status`] |
//! | `shim-events` `{"from": SEQ}` | `{}`; then every kept event with `seq >= SEQ` is sent again, before newer ones |
//! | `shim-kill` | `{}`; then QEMU gets SIGKILL, is reaped, `exit.json` is written and the shim ends |
//!
//! Each event carries a `seq` beside QEMU's own fields. A new connection takes over from an older one.

use serde::{Deserialize, Serialize};
use sterna_model::meta::Name;
use uuid::Uuid;

/// File names inside a VM's run directory (`RUN_DIR/vm/UID/`, on tmpfs: it dies with the boot, as the processes do).
pub const SOCKET: &str = "shim.sock";
pub const RUN_RECORD: &str = "run.json";
pub const EXIT_RECORD: &str = "exit.json";
pub const LAUNCH: &str = "launch.json";
pub const LOG: &str = "qemu.log";
/// Names the QEMU process that the agent keeps stopped, because its guest may run elsewhere: nobody else lets it go on.
pub const KEPT_STILL: &str = "kept-still";
/// Held by the shim while it runs.
pub const LAUNCH_LOCK: &str = "launch.lock";

/// What the agent hands to `sterna shim` (`launch.json`): everything it needs, so that the shim knows nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    pub vm: Name,
    pub uid: Uuid,
    pub epoch: u64,
    /// QEMU binary and arguments. `{qmp-fd}` and `{tap-fd:N}` stand for descriptors that the shim opens.
    pub program: String,
    pub args: Vec<String>,
    /// Names of existing tap devices, in the order of their `{tap-fd:N}`.
    pub taps: Vec<String>,
    /// The unprivileged user that QEMU runs as.
    pub run_as_uid: u32,
    pub run_as_gid: u32,
    /// Supplementary groups, such as the one that may open `/dev/kvm`.
    #[serde(default)]
    pub groups: Vec<u32>,
}

/// Written by the shim before QEMU's first instruction; removed with the directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRecord {
    pub vm: Name,
    pub uid: Uuid,
    pub epoch: u64,
    pub boot_id: String,
    pub shim_pid: u32,
    /// Start time in clock ticks after boot, field 22 of `/proc/PID/stat`: tells a reused pid.
    pub shim_started: u64,
    pub qemu_pid: u32,
    pub qemu_started: u64,
}

/// Written by the shim when QEMU has ended and was reaped. Its presence proves that the copy will not run again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    pub epoch: u64,
    /// Exit code, when it ended by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// Signal number, when it was killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// `reason` of the last SHUTDOWN event, such as `guest-shutdown` or `host-qmp-quit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shutdown_reason: Option<String>,
    /// The last lines that QEMU wrote to stderr, at most 4 KiB.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub last_words: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub version: u32,
    pub epoch: u64,
    pub qemu_pid: u32,
    /// The next event gets this number.
    pub next_seq: u64,
}
