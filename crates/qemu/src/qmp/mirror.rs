//! Copying the disk of a running guest to another place, while it writes.
//!
//! ```text
//!   add_nbd_node ─► mirror ──► READY ──► finish_mirror ─► COMPLETED: both alike, the guest stays on its own disk
//!                     │          └─────► abort_mirror ──► CANCELLED: the target is worth nothing
//!                     └── on_*_error: report ──► ERROR, COMPLETED with an error
//! ```
//!
//! Facts a caller needs: a mirror must have ended before its disk is given up at a switchover, or QEMU dies of an
//! assertion; one whose target does not answer can be finished by nobody; after its end the target's node is still
//! there. An event can be lost with a connection: [`Client::query_block_jobs`] is what counts, and a job with
//! `auto_dismiss: false` stays in it, with its error, until it is dismissed.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::export::NbdAddress;
use super::{Client, Error, Schema};

/// Opening a disk of somebody else and starting to write to it both contain a handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(60);

/// An export of another process, as a disk that a mirror can write to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NbdNode {
    /// At most 31 characters.
    pub node: String,
    pub at: NbdAddress,
    pub export: String,
    /// Requests wait this long for a lost server to come back, in whole seconds; zero = they fail at once. So does the
    /// request with which QEMU closes the node, and all of QEMU waits with it: anything but zero only for a server that
    /// is sure to return.
    pub reconnect_delay: Duration,
    /// To open it may take this long, in whole seconds, while all of QEMU waits; zero = as long as the server lets it.
    pub open_timeout: Duration,
}

impl NbdNode {
    /// Without discarding: a mirror would else begin by making all of its target zero, also what is the same already.
    fn blockdev(&self) -> Value {
        let server = match &self.at {
            NbdAddress::Unix(path) => json!({ "type": "unix", "path": path }),
            NbdAddress::Tcp { at, .. } => {
                json!({ "type": "inet", "host": at.ip().to_string(), "port": at.port().to_string() })
            }
        };
        let mut file = json!({
            "driver": "nbd",
            "server": server,
            "export": self.export,
            "reconnect-delay": self.reconnect_delay.as_secs(),
            "open-timeout": self.open_timeout.as_secs(),
            "read-only": false,
            "auto-read-only": false,
            "discard": "ignore",
        });
        if let NbdAddress::Tcp { tls_creds: Some(credentials), .. } = &self.at {
            file["tls-creds"] = json!(credentials);
        }
        json!({
            "driver": "raw",
            "node-name": self.node,
            "read-only": false,
            "auto-read-only": false,
            "discard": "ignore",
            "file": file,
        })
    }
}

/// What is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Depth {
    /// Everything that the guest sees.
    Full,
    /// What is in the topmost image; the target must show what is below already.
    Top,
}

/// What a guest's write waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CopyMode {
    /// Its own disk; a guest that writes fast may keep ahead for ever.
    Background,
    /// Both places; what is behind only shrinks.
    WriteBlocking,
}

/// What a job does when a request fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// It ends with that error.
    Report,
    /// It waits until it is told to go on.
    Stop,
    /// It goes on; at the source that means that the target differs.
    Ignore,
}

/// How a disk is mirrored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Mirror {
    /// The name that the job gets.
    #[serde(rename = "job-id")]
    pub job: String,
    /// The guest's disk, by its node.
    #[serde(rename = "device")]
    pub node: String,
    /// Another node, no smaller.
    pub target: String,
    #[serde(rename = "sync")]
    pub depth: Depth,
    pub copy_mode: CopyMode,
    /// Bytes in flight; QEMU's own choice is 16 MiB.
    #[serde(rename = "buf-size", skip_serializing_if = "Option::is_none")]
    pub buffer: Option<u64>,
    /// Bytes that count as one, a power of two from 512 to 64 MiB; QEMU's own choice is 64 KiB for most targets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub granularity: Option<u32>,
    pub on_source_error: OnError,
    pub on_target_error: OnError,
    /// Otherwise it waits for [`Client::finalize_job`] once all is copied.
    pub auto_finalize: bool,
    /// Otherwise it is kept when it has ended, until [`Client::dismiss_job`].
    pub auto_dismiss: bool,
}

/// Where a job stands (`docs/interop` of QEMU: "Job states").
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
#[serde(from = "String")]
pub enum JobState {
    Created,
    Running,
    Paused,
    /// All was copied once; what the guest writes since is copied after it.
    Ready,
    /// Ready, and paused.
    Standby,
    Waiting,
    Pending,
    Aborting,
    /// Ended; waits to be dismissed.
    Concluded,
    Other(String),
}

impl From<String> for JobState {
    fn from(word: String) -> Self {
        match word.as_str() {
            "created" => Self::Created,
            "running" => Self::Running,
            "paused" => Self::Paused,
            "ready" => Self::Ready,
            "standby" => Self::Standby,
            "waiting" => Self::Waiting,
            "pending" => Self::Pending,
            "aborting" => Self::Aborting,
            "concluded" => Self::Concluded,
            _ => Self::Other(word),
        }
    }
}

/// One job of `query-block-jobs`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockJob {
    #[serde(rename = "device")]
    pub job: String,
    /// `mirror`, `commit`, `stream`, `backup`.
    #[serde(rename = "type")]
    pub kind: String,
    pub status: JobState,
    /// All was copied once: it can be finished.
    #[serde(rename = "ready")]
    pub is_ready: bool,
    /// Bytes copied, and bytes to copy in all. A guest that writes lets both grow.
    pub offset: u64,
    pub len: u64,
    #[serde(rename = "paused")]
    pub is_paused: bool,
    /// `ok`, `failed` or `nospace`: what a job that stopped met.
    pub io_status: String,
    #[serde(default)]
    pub error: Option<String>,
    /// Each write is at both places when the guest hears of it. Absent before 8.2.
    #[serde(default, rename = "actively-synced")]
    pub is_actively_synced: Option<bool>,
}

impl Client {
    /// Opens an export as a disk of its own, without a device. To be removed by [`Client::remove_node`].
    pub async fn add_nbd_node(&self, node: &NbdNode) -> Result<(), Error> {
        self.execute_within::<Value>("blockdev-add", node.blockdev(), HANDSHAKE_TIMEOUT).await.map(drop)
    }

    /// Starts to copy; `BLOCK_JOB_READY` tells when all was copied once.
    pub async fn mirror(&self, mirror: &Mirror) -> Result<(), Error> {
        let arguments = serde_json::to_value(mirror)
            .map_err(|source| Error::Shape { command: "blockdev-mirror".into(), source })?;
        self.execute_within::<Value>("blockdev-mirror", arguments, HANDSHAKE_TIMEOUT).await.map(drop)
    }

    /// Lets the guest's writes wait for the target from now on. `Ok(false)` = this QEMU cannot.
    pub async fn make_write_blocking(&self, schema: &Schema, job: &str) -> Result<bool, Error> {
        if !schema.has_command("block-job-change") {
            return Ok(false);
        }
        let arguments = json!({ "id": job, "type": "mirror", "copy-mode": CopyMode::WriteBlocking });
        self.done("block-job-change", arguments).await?;
        Ok(true)
    }

    pub async fn query_block_jobs(&self) -> Result<Vec<BlockJob>, Error> {
        self.execute("query-block-jobs", Value::Null).await
    }

    /// Ends a mirror that is ready once both sides are alike; the guest stays on its own disk. One that is not ready
    /// yet is aborted. Returns at once: `BLOCK_JOB_COMPLETED` or `BLOCK_JOB_CANCELLED` tells.
    pub async fn finish_mirror(&self, job: &str) -> Result<(), Error> {
        self.done("block-job-cancel", json!({ "device": job, "force": false })).await
    }

    /// Ends a job as it is, also one that waits for a dead target. Returns at once: `BLOCK_JOB_CANCELLED` tells.
    pub async fn abort_mirror(&self, job: &str) -> Result<(), Error> {
        self.done("block-job-cancel", json!({ "device": job, "force": true })).await
    }

    /// Closes the connection of a network block node at once: requests that wait for an answer fail. Refused for a node
    /// that has none.
    pub async fn yank_node(&self, node: &str) -> Result<(), Error> {
        let instance = json!({ "type": "block-node", "node-name": node });
        self.done("yank", json!({ "instances": [instance] })).await
    }

    /// Lets a job end that was started without `auto_finalize` and is pending.
    pub async fn finalize_job(&self, job: &str) -> Result<(), Error> {
        self.done("job-finalize", json!({ "id": job })).await
    }

    /// Forgets a job that was started without `auto_dismiss` and has concluded.
    pub async fn dismiss_job(&self, job: &str) -> Result<(), Error> {
        self.done("job-dismiss", json!({ "id": job })).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(more: Value) -> BlockJob {
        let mut job = json!({
            "type": "mirror", "device": "m0", "len": 4096, "offset": 1024, "busy": true, "paused": false, "speed": 0,
            "io-status": "ok", "ready": false, "status": "running", "auto-finalize": true, "auto-dismiss": true,
        });
        job.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(job).unwrap()
    }

    #[test]
    fn a_job_is_read_from_old_and_new_qemu() {
        let old = job(json!({}));
        assert_eq!((old.status, old.is_actively_synced, old.error), (JobState::Running, None, None));
        let new = job(json!({ "actively-synced": true, "status": "ready", "ready": true }));
        assert_eq!((new.status, new.is_actively_synced), (JobState::Ready, Some(true)));
        let ended = job(json!({ "status": "concluded", "error": "Input/output error" }));
        assert_eq!((ended.status, ended.error.as_deref()), (JobState::Concluded, Some("Input/output error")));
    }

    #[test]
    fn a_far_export_is_called_as_its_server_wants() {
        let node = |at| NbdNode {
            node: "there".into(),
            at,
            export: "disk".into(),
            reconnect_delay: Duration::ZERO,
            open_timeout: Duration::from_secs(2),
        };
        let at = "[fd00::1]:10809".parse().unwrap();
        let clear = node(NbdAddress::Tcp { at, tls_creds: None }).blockdev();
        assert_eq!(clear["file"]["server"], json!({ "type": "inet", "host": "fd00::1", "port": "10809" }));
        assert_eq!((&clear["file"]["open-timeout"], clear["file"].get("tls-creds")), (&json!(2), None));
        let encrypted = node(NbdAddress::Tcp { at, tls_creds: Some("line".into()) }).blockdev();
        assert_eq!(encrypted["file"]["tls-creds"], json!("line"));
    }

    #[test]
    fn a_word_newer_than_this_crate_is_kept() {
        assert_eq!(job(json!({ "status": "resting" })).status, JobState::Other("resting".into()));
    }

    #[test]
    fn what_is_left_to_qemu_is_not_sent() {
        let mirror = Mirror {
            job: "m0".into(),
            node: "disk".into(),
            target: "there".into(),
            depth: Depth::Top,
            copy_mode: CopyMode::WriteBlocking,
            buffer: None,
            granularity: None,
            on_source_error: OnError::Report,
            on_target_error: OnError::Stop,
            auto_finalize: true,
            auto_dismiss: false,
        };
        let expected = json!({
            "job-id": "m0", "device": "disk", "target": "there", "sync": "top", "copy-mode": "write-blocking",
            "on-source-error": "report", "on-target-error": "stop", "auto-finalize": true, "auto-dismiss": false,
        });
        assert_eq!(serde_json::to_value(mirror).unwrap(), expected);
    }
}
