//! Plays the fence device of the lab's hosts, and is named so: no machine of a lab may be switched off.
//!
//! A program of the lab stands in its folder `agents` under the name `fence_fake`, where the lab's server looks for fence agents. Off
//! means what it means for a machine: every process of the host is killed at once, and nothing starts it but `sterna lab up`. It stands
//! outside the hosts' networks, as a network for management does.

use std::io::BufRead;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::member;
use crate::place::{Host, Lab};

/// What it is called as an agent.
pub const AGENT: &str = "fence_fake";
/// What a fence agent ends with when the machine is off.
const OFF: u8 = 2;

/// Where the lab's server looks for fence agents.
#[must_use]
pub fn agents(lab: &Lab) -> PathBuf {
    lab.dir.join("agents")
}

/// Writes the agent.
pub fn install(lab: &Lab) -> Result<()> {
    let binary = std::env::current_exe().context("find this program")?;
    let folder = agents(lab);
    std::fs::create_dir_all(&folder).context("make the folder of fence agents")?;
    let program = folder.join(AGENT);
    let quoted = |path: &std::path::Path| format!("'{}'", path.display().to_string().replace('\'', "'\\''"));
    let text = format!("#!/bin/sh\nexec {} lab fence-fake --dir {}\n", quoted(&binary), quoted(&lab.dir));
    std::fs::write(&program, text).context("write the fence agent")?;
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).context("let it be run")
}

/// Does what standard input says: `action`, and `plug` for the host.
pub fn run(lab: &Lab) -> Result<ExitCode> {
    let (mut action, mut plug) = (String::new(), String::new());
    for line in std::io::stdin().lock().lines() {
        let line = line.context("read what to do")?;
        match line.split_once('=') {
            Some(("action", value)) => value.clone_into(&mut action),
            Some(("plug", value)) => value.clone_into(&mut plug),
            _ => {}
        }
    }
    let host = lab.host(&plug).with_context(|| format!("no host is plugged in at {plug:?}"))?;
    match action.as_str() {
        "off" => {
            member::kill_host(lab, host)?;
            say("Success: Powered OFF");
            Ok(ExitCode::SUCCESS)
        }
        "status" => status(lab, host),
        other => bail!("{other:?} is nothing that this fake does"),
    }
}

fn status(lab: &Lab, host: Host) -> Result<ExitCode> {
    if member::on_host(lab, host)?.is_empty() {
        say("Status: OFF");
        return Ok(ExitCode::from(OFF));
    }
    say("Status: ON");
    Ok(ExitCode::SUCCESS)
}

fn say(line: &str) {
    use std::io::Write;
    // Nobody listening changes nothing.
    let _ = writeln!(std::io::stdout(), "{line}");
}
