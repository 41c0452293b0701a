//! Entering network namespaces made by `ip netns`.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

#[must_use]
pub fn path(space: &str) -> PathBuf {
    Path::new("/run/netns").join(space)
}

#[must_use]
pub fn exists(space: &str) -> bool {
    path(space).exists()
}

/// Runs `work` on a thread of its own inside the namespace: sockets made there stay in it. `None`: where we are.
pub fn inside<T: Send + 'static>(
    space: Option<&str>,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<thread::JoinHandle<Result<T>>> {
    let file = space.map(open).transpose()?;
    Ok(thread::spawn(move || {
        if let Some(file) = file {
            enter(&file).context("enter the namespace")?;
        }
        work()
    }))
}

pub(crate) fn open(space: &str) -> Result<File> {
    File::open(path(space)).with_context(|| format!("open network namespace {space}"))
}

pub(crate) fn enter(file: &File) -> std::io::Result<()> {
    Ok(move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?)
}

/// Applies lines of `ip -batch` in a namespace (`None`: the root's), in order.
pub fn ip_batch(space: Option<&str>, lines: &[String]) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let mut command = Command::new("ip");
    if let Some(space) = space {
        command.args(["-n", space]);
    }
    run(command.args(["-batch", "-"]), &(lines.join("\n") + "\n"))
        .with_context(|| format!("configure {}: {}", space.unwrap_or("the machine"), lines.join("; ")))
        .map(drop)
}

/// Runs a command to its end; its standard output, or an error with what it said.
pub fn run(command: &mut Command, input: &str) -> Result<String> {
    let what = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {what}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A command that refuses early does not read on: what it says counts.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().with_context(|| format!("wait for {what}"))?;
    if !output.status.success() {
        bail!("{what} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
