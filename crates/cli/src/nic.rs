//! A VM's ports on networks.

use clap::Subcommand;
use serde::Serialize;
use serde_json::json;
use sterna_client::Filter;
use sterna_client::object::Patch;
use sterna_client::vm::Vm;
use sterna_model::meta::Name;
use sterna_model::network::Mac;
use sterna_model::vm::NicSpec;

use crate::ask::{Yes, confirm};
use crate::crud;
use crate::exit::{Failure, Result};
use crate::output::Listed;
use crate::session::Session;
use crate::wait::Wait;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Give a VM a NIC, also while it runs
    Add {
        vm: Name,
        /// Network that it is on
        #[arg(long, value_name = "NAME")]
        network: Name,
        /// Address on an overlay [default: the lowest free one]
        #[arg(long, value_name = "IP")]
        address: Option<std::net::Ipv4Addr>,
        /// MAC address [default: one of its own]
        #[arg(long, value_name = "MAC")]
        mac: Option<Mac>,
    },
    /// Take a NIC away from a VM
    Remove {
        vm: Name,
        /// Its number, from 0, as `nic list` shows it
        index: usize,
        #[command(flatten)]
        yes: Yes,
    },
    /// List NICs, of one VM or of all
    List { vm: Option<Name> },
}

/// One NIC of one VM, as asked for and as it is.
#[derive(Debug, Serialize)]
struct Port {
    vm: Name,
    index: usize,
    network: Name,
    mac: Option<Mac>,
    address: Option<std::net::Ipv4Addr>,
    /// The running VM has it.
    present: bool,
}

impl Listed for Port {
    const WORDS: &'static str = "NICs";
    const HEAD: &'static [&'static str] = &["vm", "nic", "network", "mac", "address", "state"];

    fn row(&self) -> Vec<String> {
        let text = |value: Option<String>| value.unwrap_or_default();
        vec![
            self.vm.to_string(),
            self.index.to_string(),
            self.network.to_string(),
            text(self.mac.map(|mac| mac.to_string())),
            text(self.address.map(|address| address.to_string())),
            if self.present { "present" } else { "at next start" }.to_owned(),
        ]
    }
}

fn ports(vm: &Vm) -> Vec<Port> {
    let hardware = vm.decision.as_ref().map(|decision| &decision.hardware);
    let port = |(index, asked): (usize, &NicSpec)| {
        let has =
            hardware.and_then(|hardware| hardware.nics.get(index)).filter(|nic| nic.network == asked.network);
        Port {
            vm: vm.meta.name.clone(),
            index,
            network: asked.network.clone(),
            mac: has.map(|nic| nic.mac).or(asked.mac),
            address: has.and_then(|nic| nic.address).or(asked.address),
            present: has.is_some(),
        }
    };
    vm.spec.nics.iter().enumerate().map(port).collect()
}

pub async fn run(session: &Session, verb: Verb) -> Result<()> {
    let vms = session.client.vms();
    match verb {
        Verb::Add { vm, network, address, mac } => {
            let answer = vms.add_nic(&vm, &NicSpec { network, mac, address }).await?;
            let when = if answer.at_next_start.is_empty() {
                "has its new NIC"
            } else {
                "gets its NIC at the next start"
            };
            crud::finish(session, Wait::ALWAYS, &format!("vm {vm}"), when, answer).await
        }
        Verb::Remove { vm, index, yes } => remove(session, &vm, index, yes).await,
        Verb::List { vm: Some(vm) } => session.list(&ports(&vms.get(&vm).await?)),
        Verb::List { vm: None } => {
            let all: Vec<Port> = vms.list(&Filter::default()).await?.iter().flat_map(ports).collect();
            session.list(&all)
        }
    }
}

async fn remove(session: &Session, vm: &Name, index: usize, yes: Yes) -> Result<()> {
    let vms = session.client.vms();
    let object = vms.get(vm).await?;
    let mut nics = object.spec.nics;
    if index >= nics.len() {
        return Err(Failure::usage(format!("vm {vm} has no NIC {index}"), format!("`sterna nic list {vm}`")));
    }
    let gone = nics.remove(index);
    confirm(
        &session.terminal,
        yes,
        &format!("take NIC {index} on network {} away from vm {vm}?", gone.network),
    )?;
    // With the revision: the number means another NIC once somebody else changed the list.
    let patch = Patch { revision: Some(object.revision), ..Patch::of(json!({ "nics": nics })) };
    let answer = vms.patch(vm, &patch).await?;
    let when =
        if answer.at_next_start.is_empty() { "the NIC is gone" } else { "the NIC goes at the next start" };
    crud::finish(session, Wait::ALWAYS, &format!("vm {vm}"), when, answer).await
}
