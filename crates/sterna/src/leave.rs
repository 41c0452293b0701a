//! `sterna host leave`: this machine stops being a host. What Sterna put on it goes, disks stay.
//!
//! Order matters: the server is asked first, because it knows what would be lost; only then is anything removed here, the
//! settings last, so that an interrupted `leave` can be repeated.

use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};
use sterna_agent::config::Config;
use sterna_agent::network::Networks;
use sterna_base::file;
use sterna_cli::ask::confirm;
use sterna_cli::exit::Failure;
use sterna_cli::machine::LeaveArgs;
use sterna_cli::{Global, Terminal};
use sterna_client::{Client, Context as ClientContext, Error};
use sterna_model::error::Code;
use sterna_wire::shim::LAUNCH_LOCK;

use crate::config;
use crate::service::Service;

pub async fn leave(args: &LeaveArgs, global: &Global, terminal: &Terminal) -> Result<()> {
    let settings = config::absolute(&args.settings)?;
    if !settings.exists() {
        let message = format!("this machine is no host: {} does not exist", settings.display());
        return Err(Failure::failed(message, "name the agent's settings file with --settings").into());
    }
    let agent = Config::read(&settings)?;
    refuse_while_vms_run(&agent)?;
    let question =
        format!("host {}: leave the cluster and remove what Sterna put on this machine?", agent.host);
    confirm(terminal, args.yes, &question)?;
    forget(&agent, global, terminal).await?;

    let service = Service { role: "agent", settings: settings.clone(), run_dir: agent.run_dir.clone() };
    service.remove()?;
    if let Some(settings) = agent.guard.clone() {
        crate::guard::release(&settings)?;
        Service { role: "guard", settings, run_dir: agent.run_dir.clone() }.remove()?;
    }
    // Between the first look and the agent's end a VM may have come.
    refuse_while_vms_run(&agent)?;
    sterna_agent::storage::end_daemons(&agent.run_dir).context("end the storage daemons")?;
    let any = IpAddr::from([0, 0, 0, 0]);
    Networks::new(&agent.run_dir, any, agent.run_as_uid)
        .leave()
        .await
        .context("remove the network devices")?;
    remove_files(&agent, &settings)?;
    terminal.talk(&format!(
        "host {}: left; removed the agent, its network devices and its certificate",
        agent.host
    ));
    let kept = agent.data_dir.join("pools");
    if kept.exists() {
        terminal.talk(&format!("kept: the disks in {}", kept.display()));
    }
    Ok(())
}

/// A shim holds its launch lock for as long as its VM exists here; no record can lie about that.
fn refuse_while_vms_run(agent: &Config) -> Result<()> {
    let running = running(&agent.run_dir.join("vm")).context("look for running VMs")?;
    if running == 0 {
        return Ok(());
    }
    let message = format!("{running} VMs run on this host");
    Err(Failure::failed(message, format!("`sterna host drain {}` moves them away first", agent.host)).into())
}

fn running(vms: &Path) -> std::io::Result<usize> {
    let entries = match std::fs::read_dir(vms) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        entries => entries?,
    };
    let mut count = 0;
    for entry in entries {
        let lock = match File::open(entry?.path().join(LAUNCH_LOCK)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            lock => lock?,
        };
        count += usize::from(flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err());
    }
    Ok(count)
}

/// Deletes the host object. The server refuses while something would be lost; without a server to ask, it is said how to
/// do it later.
async fn forget(agent: &Config, global: &Global, terminal: &Terminal) -> Result<()> {
    let path = global.config.clone().unwrap_or_else(ClientContext::default_path);
    let later = format!("say `sterna host delete {}` where there is a context for the server", agent.host);
    let client = match ClientContext::load(&path).and_then(|context| Client::new(&context)) {
        Ok(client) => client,
        Err(Error::Context { .. }) => {
            terminal.talk(&format!("the server was not told; {later}"));
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    match client.hosts().delete(&agent.host).await {
        Ok(_) => Ok(()),
        Err(error) if error.is(Code::NotFound) => Ok(()),
        Err(error @ (Error::Unreachable { .. } | Error::Untrusted { .. })) => {
            terminal.talk(&format!("the server was not told ({error}); {later}"));
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// Everything but disks. A server on the same machine keeps its files in the same run directory.
fn remove_files(agent: &Config, settings: &Path) -> Result<()> {
    let tree = |path: PathBuf| match std::fs::remove_dir_all(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    };
    for name in ["vm", "net", "nbd", "seed", "guard"] {
        tree(agent.run_dir.join(name))?;
    }
    tree(agent.data_dir.join("seen"))?;
    for kept in sterna_agent::carrier::FOLDERS {
        tree(agent.data_dir.join(kept))?;
    }
    let pools = agent.data_dir.join("pools");
    let probed = agent.data_dir.join(sterna_agent::host::CACHE);
    let assigned = agent.run_dir.join(sterna_agent::vm::record::ASSIGNMENT);
    let keys = [
        agent.certificate(),
        agent.key(),
        agent.ca(),
        agent.tunnel_key(),
        agent.data_dir.join(sterna_agent::carrier::KEY),
        agent.data_dir.join(crate::guard::KEY),
    ];
    let files = keys.into_iter().chain(agent.guard.clone()).chain([probed, assigned, settings.to_owned()]);
    for path in files.chain(notes_on(&pools)?) {
        file::remove_if_there(&path).with_context(|| format!("remove {}", path.display()))?;
    }
    // Gone when nothing else is in them; what is in them is not ours to remove.
    let above = [settings.parent(), agent.data_dir.parent()].into_iter().flatten();
    let ours = above.filter(|directory| directory.ends_with("sterna"));
    for directory in [&*agent.run_dir, &pools, &agent.data_dir].into_iter().chain(ours) {
        let _ = std::fs::remove_dir(directory);
    }
    Ok(())
}

/// What the agent remembers of pools stands beside their folders.
fn notes_on(pools: &Path) -> Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(pools) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.context("look for notes on pools")?,
    };
    let is_note = |path: &PathBuf| {
        let word = path.extension().and_then(|word| word.to_str());
        matches!(word, Some("port" | "json")) && path.is_file()
    };
    Ok(entries.flatten().map(|entry| entry.path()).filter(is_note).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_runs_as_long_as_its_shim_holds_its_lock() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(running(&dir.path().join("none")).unwrap(), 0);
        for name in ["a", "b", "c"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        File::create(dir.path().join("b").join(LAUNCH_LOCK)).unwrap();
        let held = File::create(dir.path().join("c").join(LAUNCH_LOCK)).unwrap();
        flock(&held, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert_eq!(running(dir.path()).unwrap(), 1);
        drop(held);
        assert_eq!(running(dir.path()).unwrap(), 0);
    }
}
