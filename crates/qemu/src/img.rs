//! Makes and changes image files with `qemu-img`.
//!
//! Formats are always given and never guessed; a source is opened with its whole backing chain spelt out, so
//! that names inside images are not followed. The tool runs with little memory, a deadline, no standard
//! input and an empty environment: it parses what strangers wrote.
//!
//! Never asks whether an image is safe (`image` does) nor whether somebody uses it (QEMU's lock does).

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Resource, Rlimit};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::config::Format;

/// Addresses the tool may map. It needs 0.2 GiB for any image; what it would allocate for a made-up table
/// fails instead.
const ADDRESS_SPACE: u64 = 2 << 30;

/// For all that only touches metadata.
const METADATA_TIMEOUT: Duration = Duration::from_secs(60);

/// A file on this host and how its bytes are to be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFile {
    pub path: PathBuf,
    pub format: Format,
}

impl ImageFile {
    pub fn new(path: impl Into<PathBuf>, format: Format) -> Self {
        Self { path: path.into(), format }
    }
}

/// What `qemu-img info` says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Info {
    /// Bytes the guest sees.
    pub virtual_size: u64,
    /// Bytes taken in the pool.
    pub actual_size: u64,
    /// The name in the header; never followed.
    #[serde(default)]
    pub backing_filename: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot start {tool:?}")]
    NotStarted { tool: PathBuf, source: std::io::Error },
    #[error("path {path:?} must be absolute UTF-8 without control characters")]
    Path { path: PathBuf },
    /// Another process has the image open.
    #[error("an image is in use: {printed}")]
    InUse { printed: String },
    #[error("qemu-img {verb} failed: {printed}")]
    Failed { verb: &'static str, printed: String },
    #[error("qemu-img {verb} did not finish within {after:?} and was ended")]
    TimedOut { verb: &'static str, after: Duration },
    #[error("qemu-img {verb} answered in an unknown shape")]
    Shape { verb: &'static str, source: serde_json::Error },
}

/// The tool, and as whom it runs.
#[derive(Debug, Clone)]
pub struct Tool {
    binary: PathBuf,
    user: Option<(u32, u32)>,
}

impl Tool {
    pub fn new(binary: impl Into<PathBuf>) -> Self {
        Self { binary: binary.into(), user: None }
    }

    /// Runs it as this user and group, without other groups.
    pub fn run_as(mut self, uid: u32, gid: u32) -> Self {
        self.user = Some((uid, gid));
        self
    }

    /// An empty image. An existing file is overwritten.
    pub async fn create_blank(&self, image: &ImageFile, bytes: u64) -> Result<(), Error> {
        let path = checked(&image.path)?;
        let size = bytes.to_string();
        self.metadata("create", &["-q", "-f", image.format.as_str(), path, &size]).await
    }

    /// A thin qcow2 of `bytes` over another image, which is not opened and must never change again.
    pub async fn create_overlay(&self, path: &Path, below: &ImageFile, bytes: u64) -> Result<(), Error> {
        let (path, below_path, size) = (checked(path)?, checked(&below.path)?, bytes.to_string());
        let below_format = below.format.as_str();
        self.metadata(
            "create",
            &["-q", "-f", "qcow2", "-u", "-F", below_format, "-b", below_path, path, &size],
        )
        .await
    }

    /// Copies what a guest would see into a new image that stands alone. `chain` is the source and all below
    /// it. The deadline is the caller's, as only it knows the size; the target file is left as it is then.
    pub async fn convert(
        &self,
        chain: &[ImageFile],
        target: &ImageFile,
        timeout: Duration,
    ) -> Result<(), Error> {
        for image in chain {
            checked(&image.path)?;
        }
        let source = format!("json:{}", node(chain));
        let target_path = checked(&target.path)?;
        let arguments = ["-q", "-O", target.format.as_str(), &source, target_path];
        self.run("convert", &arguments, timeout).await.map(drop)
    }

    /// Grows an image that no guest uses; a smaller size is refused.
    pub async fn grow(&self, image: &ImageFile, bytes: u64) -> Result<(), Error> {
        let (path, size) = (checked(&image.path)?, bytes.to_string());
        self.metadata("resize", &["-q", "-f", image.format.as_str(), path, &size]).await
    }

    /// Sizes of an image. `is_in_use`: read it although a guest writes to it; sizes may then be a moment old.
    pub async fn info(&self, image: &ImageFile, is_in_use: bool) -> Result<Info, Error> {
        let path = checked(&image.path)?;
        let mut arguments = vec!["--output=json", "-f", image.format.as_str()];
        if is_in_use {
            arguments.push("-U");
        }
        arguments.push(path);
        let printed = self.run("info", &arguments, METADATA_TIMEOUT).await?;
        serde_json::from_slice(&printed).map_err(|source| Error::Shape { verb: "info", source })
    }

    async fn metadata(&self, verb: &'static str, arguments: &[&str]) -> Result<(), Error> {
        self.run(verb, arguments, METADATA_TIMEOUT).await.map(drop)
    }

    /// What it printed.
    async fn run(&self, verb: &'static str, arguments: &[&str], timeout: Duration) -> Result<Vec<u8>, Error> {
        let mut command = self.command(verb, arguments);
        let child =
            command.spawn().map_err(|source| Error::NotStarted { tool: self.binary.clone(), source })?;
        let Ok(output) = tokio::time::timeout(timeout, child.wait_with_output()).await else {
            return Err(Error::TimedOut { verb, after: timeout });
        };
        let output = output.map_err(|source| Error::NotStarted { tool: self.binary.clone(), source })?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let printed = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
        // The one cause a caller can wait for; QEMU has no code for it.
        if printed.contains("lock") && printed.contains("Failed to get") {
            return Err(Error::InUse { printed });
        }
        Err(Error::Failed { verb, printed: format!("{printed} ({})", output.status) })
    }

    fn command(&self, verb: &'static str, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg(verb).args(arguments).env_clear().kill_on_drop(true);
        // Only for tools named without a folder; it is the caller's own.
        command.env("PATH", std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/bin")));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        // SAFETY: one system call, nothing allocated, between fork and exec.
        unsafe {
            command.pre_exec(|| {
                let limit = Rlimit { current: Some(ADDRESS_SPACE), maximum: Some(ADDRESS_SPACE) };
                Ok(rustix::process::setrlimit(Resource::As, limit)?)
            });
        }
        command
    }
}

/// A format node with its chain below it, for a `json:` name.
fn node(chain: &[ImageFile]) -> Value {
    let Some((image, below)) = chain.split_first() else { return Value::Null };
    let mut node = json!({
        "driver": image.format.as_str(),
        "file": { "driver": "file", "filename": image.path, "locking": "on" },
    });
    if image.format == Format::Qcow2 {
        node["backing"] = node_below(below);
    }
    node
}

fn node_below(chain: &[ImageFile]) -> Value {
    if chain.is_empty() { Value::Null } else { node(chain) }
}

/// An absolute path cannot be taken for an option nor for an address.
fn checked(path: &Path) -> Result<&str, Error> {
    let text = OsStr::to_str(path.as_os_str());
    let is_plain = |text: &&str| path.is_absolute() && !text.chars().any(char::is_control);
    text.filter(is_plain).ok_or_else(|| Error::Path { path: path.to_owned() })
}
