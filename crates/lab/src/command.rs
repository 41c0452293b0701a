//! The ordinary commands of the binary, as a user would type them. All that the lab assumes of them is in here.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::place::{Host, Lab, Pair, Site};
use crate::{fence, netns, watchdog};

/// Names the CLI's context file.
const CONTEXT: &str = "STERNA_CONFIG";

/// What a host of the lab shows of the machine, instead of all of it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Share {
    pub cpus: Option<f64>,
    pub memory_mib: Option<u64>,
}

#[must_use]
pub fn server_settings(lab: &Lab) -> PathBuf {
    lab.dir.join("server.toml")
}

#[must_use]
pub fn agent_settings(lab: &Lab, host: Host) -> PathBuf {
    lab.host_dir(host).join("agent.toml")
}

/// The settings of a host's guard.
#[must_use]
pub fn guard_settings(lab: &Lab, host: Host) -> PathBuf {
    lab.host_dir(host).join("guard.toml")
}

/// The settings of the guard beside the server.
#[must_use]
pub fn witness_settings(lab: &Lab) -> PathBuf {
    lab.dir.join("guard.toml")
}

/// The role of a host's guard.
#[must_use]
pub fn guard_role(host: Host) -> String {
    format!("{}-guard", host.name())
}

/// The role of the guard beside the server.
pub const WITNESS: &str = "witness";

/// The words that run a guard.
#[must_use]
pub fn guard_run(settings: &Path) -> Vec<String> {
    words(&["guard", "--config", &text(settings)])
}

/// The words that run what plays a host's watchdog.
#[must_use]
pub fn watchdog_run(lab: &Lab, host: Host) -> Vec<String> {
    words(&["lab", "watchdog", "--dir", &text(&lab.dir), "--host", &host.name()])
}

/// The words that run the server.
#[must_use]
pub fn server_run(lab: &Lab) -> Vec<String> {
    words(&["server", "run", "--settings", &text(&server_settings(lab))])
}

/// The words that run a host's agent.
#[must_use]
pub fn agent_run(lab: &Lab, host: Host) -> Vec<String> {
    words(&["agent", "run", "--settings", &text(&agent_settings(lab, host))])
}

/// The words that run a line's relay.
#[must_use]
pub fn wan_relay(lab: &Lab, pair: Pair) -> Vec<String> {
    words(&["lab", "wan-relay", "--dir", &text(&lab.dir), "--line", &pair.to_string()])
}

pub fn init_server(lab: &Lab) -> Result<()> {
    let reached = format!("{}:{}", lab.root_address(), lab.port);
    let listen = format!("127.0.0.1:{},{reached}", lab.port);
    let (data, settings) = (text(&lab.dir.join("server")), text(&server_settings(lab)));
    let home = lab.home().letter().to_string();
    let run = text(&lab.run_root().join("server"));
    let args = [
        "server",
        "init",
        "--server-only",
        "--no-start",
        "--datacentre",
        &home,
        "--listen",
        &listen,
        "--advertise",
        &reached,
        "--data-dir",
        &data,
        "--config-out",
        &settings,
        "--run-dir",
        &run,
    ];
    sterna(lab, None, &args).context("set up the server")?;
    name_agents(lab).context("name the lab's fence agents")
}

/// The server of a lab runs no fence agent but the lab's own.
fn name_agents(lab: &Lab) -> Result<()> {
    fence::install(lab)?;
    let path = server_settings(lab);
    let text = std::fs::read_to_string(&path).context("read the server's settings")?;
    let named = format!("[fencing]\nagents = {:?}\n", fence::agents(lab));
    let text = text.replacen("[fencing]\n", &named, 1);
    sterna_base::file::write_durably(&path, text.as_bytes(), 0o600).context("write the server's settings")
}

/// Whether the server answers.
#[must_use]
pub fn server_answers(lab: &Lab) -> bool {
    sterna(lab, None, &["server", "status"]).is_ok()
}

/// The other datacentres, the folder that the hosts of each datacentre share, and the local pool that every installation begins
/// with, moved into each host's folder.
pub fn apply_objects(lab: &Lab) -> Result<()> {
    let pool = |site: Site| {
        let kind = json!({ "type": "shared-dir", "path": lab.shared(site) });
        json!({ "kind": "pool", "name": format!("shared-{}", site.letter()),
                "spec": { "kind": kind, "datacentre": site.letter().to_string(), "default": true } })
    };
    // Below each host's own folder: hosts of one machine share no disk either.
    let local = json!({ "type": "dir", "path": "local" });
    let local = json!({ "kind": "pool", "name": "default", "spec": { "kind": local, "default": false } });
    let others = lab.datacentres.iter().filter(|site| **site != lab.home());
    let others =
        others.map(|site| json!({ "kind": "datacentre", "name": site.letter().to_string(), "spec": {} }));
    let pools = lab.datacentres.iter().map(|site| pool(*site));
    let text: Vec<_> = others.chain(pools).chain([local]).map(|document| document.to_string()).collect();
    sterna_with(lab, None, &["apply", "-f", "-"], &text.join("\n---\n")).context("describe the lab").map(drop)
}

pub fn join_host(lab: &Lab, host: Host, share: Share) -> Result<()> {
    let (name, space, site) = (host.name(), lab.host_space(host), host.site.letter().to_string());
    let answer =
        sterna(lab, None, &["host", "token", &name, "-o", "json"]).context("ask for a join token")?;
    let token = join_token(&answer)?;
    let (address, data) = (lab.host_address(host).to_string(), text(&lab.host_dir(host).join("data")));
    let (run, settings) = (text(&lab.run_dir(host)), text(&agent_settings(lab, host)));
    let new = format!("{settings}.new");
    let args = [
        "agent",
        "join",
        &token,
        "--no-start",
        "--host",
        &name,
        "--datacentre",
        &site,
        "--address",
        &address,
        "--agent-data-dir",
        &data,
        "--run-dir",
        &run,
        "--agent-config-out",
        &new,
    ];
    sterna(lab, Some(&space), &args).with_context(|| format!("join {name}"))?;
    append(Path::new(&new), &share_settings(share)).context("set the host's share of the machine")?;
    append(Path::new(&new), SHARED_DISK).context("say that the host's disk is shared")?;
    let watchdog = format!("watchdog = {{ fake = {:?} }}\n", watchdog::socket(lab, host));
    append(&guard_settings(lab, host), &watchdog).context("name the host's watchdog")?;
    // Only now is it joined: a crash before leads to a new token.
    std::fs::rename(new, settings).context("keep the agent's settings")
}

/// Hosts whose agents are connected.
pub fn connected_hosts(lab: &Lab) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Hosts {
        items: Vec<Value>,
    }
    let answer = sterna(lab, None, &["host", "list", "-o", "json"])?;
    let hosts = serde_json::from_str::<Vec<Value>>(&answer)
        .or_else(|_| serde_json::from_str::<Hosts>(&answer).map(|hosts| hosts.items))
        .context("understand the list of hosts")?;
    let connected = hosts.iter().filter(|host| host["report"]["link"] == "connected");
    Ok(connected.filter_map(|host| host["meta"]["name"].as_str().map(str::to_owned)).collect())
}

fn join_token(answer: &str) -> Result<String> {
    let value: Value = serde_json::from_str(answer).context("understand the join token")?;
    let token = value["token"].as_str().or(value.as_str());
    token.map(str::to_owned).context("find the join token in the answer")
}

/// The hosts of a lab have their pools on one disk, which others fill: how full it is says nothing about a host.
const SHARED_DISK: &str = "former_free_percent = 0\n";

fn share_settings(share: Share) -> String {
    let cpus = share.cpus.map(|cpus| format!("cpus = {}\n", cpus.ceil().max(1.0)));
    let memory = share.memory_mib.map(|mib| format!("memory = \"{mib}MiB\"\n"));
    cpus.into_iter().chain(memory).collect()
}

fn append(path: &Path, lines: &str) -> std::io::Result<()> {
    let before = std::fs::read_to_string(path)?;
    // Keys of the top level stand before the first table.
    std::fs::write(path, format!("{lines}{before}"))
}

/// Runs this binary with the lab's context; its standard output.
fn sterna(lab: &Lab, space: Option<&str>, args: &[&str]) -> Result<String> {
    sterna_with(lab, space, args, "")
}

fn sterna_with(lab: &Lab, space: Option<&str>, args: &[&str], input: &str) -> Result<String> {
    let binary = std::env::current_exe().context("find this program")?;
    let mut command = match space {
        Some(space) => {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", space]).arg(binary);
            command
        }
        None => Command::new(binary),
    };
    netns::run(command.args(args).env(CONTEXT, lab.cli_config()), input)
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_written_in_the_agents_words() {
        let share = Share { cpus: Some(0.5), memory_mib: Some(2048) };
        assert_eq!(share_settings(share), "cpus = 1\nmemory = \"2048MiB\"\n");
        assert_eq!(share_settings(Share::default()), "");
    }
}
