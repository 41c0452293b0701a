//! `vm create`: an image and a name are enough.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args};
use sterna_base::units::{Bytes, Span};
use sterna_client::vm::{Ask, Boot};
use sterna_model::ha::{Ha, Isolation};
use sterna_model::health::HealthCheck;
use sterna_model::meta::Name;
use sterna_model::network::Mac;
use sterna_model::vm::{CPUS_MAX, CloudInit, NicSpec, Place, Power, Priority, RestartPolicy};

use crate::crud::{self, About};
use crate::exit::{Failure, Result};
use crate::session::Session;
use crate::vm::check::{Fault, check};
use crate::wait::Wait;

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("source").required(true).multiple(true).args(["image", "volumes"]))]
pub struct Create {
    /// Names of the VMs
    #[arg(required = true, value_name = "NAME")]
    names: Vec<Name>,
    /// Boot from a clone of this image
    #[arg(long, value_name = "NAME")]
    image: Option<Name>,
    /// Volume to attach; several may be given, the first one boots without --image
    #[arg(long = "volume", value_name = "NAME")]
    volumes: Vec<Name>,
    /// Size of the boot volume [default: the image's]
    #[arg(long, value_name = "SIZE", requires = "image")]
    disk: Option<Bytes>,
    /// Pool of the boot volume [default: a default pool]
    #[arg(long, value_name = "NAME", requires = "image")]
    pool: Option<Name>,
    /// Virtual CPUs [default: 1]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=i64::from(CPUS_MAX)))]
    cpus: Option<u32>,
    /// Memory, such as 2GiB [default: 256MiB]
    #[arg(long, value_name = "SIZE")]
    memory: Option<Bytes>,
    /// NIC as NETWORK[,address=IP][,mac=MAC]; several may be given [default: one on the default network]
    #[arg(long = "nic", value_name = "NIC", value_parser = nic)]
    nics: Vec<NicSpec>,
    /// Only on this host
    #[arg(long, value_name = "NAME")]
    host: Option<Name>,
    /// Only in this datacentre
    #[arg(long, value_name = "NAME")]
    datacentre: Option<Name>,
    /// Only in this cluster
    #[arg(long, value_name = "NAME")]
    cluster: Option<Name>,
    /// File with cloud-init user data for the guest
    #[arg(long, value_name = "FILE")]
    user_data: Option<PathBuf>,
    /// File with cloud-init network configuration for the guest
    #[arg(long, value_name = "FILE")]
    network_config: Option<PathBuf>,
    /// How long the guest may take to shut down before it is switched off [default: 30s]
    #[arg(long, value_name = "DURATION")]
    shutdown_timeout: Option<Span>,
    /// When the guest ends without being asked to [default: on-failure]
    #[arg(long, value_enum, value_name = "WHEN")]
    restart: Option<Restart>,
    /// When the guest says that it crashed [default: restart]
    #[arg(long, value_enum, value_name = "WHAT")]
    on_panic: Option<Fault>,
    /// When the guest hangs [default: restart]
    #[arg(long, value_enum, value_name = "WHAT")]
    on_hang: Option<Fault>,
    /// Give the guest a watchdog (i6300esb) to feed
    #[arg(long)]
    watchdog: bool,
    /// Ask whether it works: http:PORT[/PATH], tcp:PORT or exec:/PROGRAM, then any of ,interval=10s ,timeout=3s
    /// ,failures=3 ,expect=2xx ,action=restart; several may be given
    #[arg(long = "check", value_name = "CHECK", value_parser = check)]
    checks: Vec<HealthCheck>,
    /// Who starts first where room is short [default: normal]
    #[arg(long, value_enum, value_name = "PRIORITY")]
    priority: Option<Urgency>,
    /// Start it elsewhere when its host is lost [default: on where it could run elsewhere]
    #[arg(long, value_enum, value_name = "ON|OFF")]
    ha: Option<OnLoss>,
    /// What becomes of it when its host has lost its lease [default: keep where a fence device with its own power switches the host off, else kill]
    #[arg(long, value_enum, value_name = "WHAT")]
    isolation: Option<WhenIsolated>,
    /// Make it and leave it off
    #[arg(long)]
    stopped: bool,
    #[command(flatten)]
    about: About,
    #[command(flatten)]
    wait: Wait,
}

/// When a guest is started again without being asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Restart {
    /// After a crash
    OnFailure,
    Never,
}

impl From<Restart> for RestartPolicy {
    fn from(restart: Restart) -> Self {
        match restart {
            Restart::OnFailure => RestartPolicy::OnFailure,
            Restart::Never => RestartPolicy::Never,
        }
    }
}

/// Who starts first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Urgency {
    Low,
    Normal,
    High,
}

impl From<Urgency> for Priority {
    fn from(urgency: Urgency) -> Self {
        match urgency {
            Urgency::Low => Priority::Low,
            Urgency::Normal => Priority::Normal,
            Urgency::High => Priority::High,
        }
    }
}

/// Whether a VM is started elsewhere when its host is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum OnLoss {
    On,
    Off,
}

impl From<OnLoss> for Ha {
    fn from(ha: OnLoss) -> Self {
        match ha {
            OnLoss::On => Ha::On,
            OnLoss::Off => Ha::Off,
        }
    }
}

/// What becomes of a VM whose host has lost its lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum WhenIsolated {
    /// It is ended, so that it can be started elsewhere
    Kill,
    /// It runs on; only a person's word starts it elsewhere
    Keep,
}

impl From<WhenIsolated> for Isolation {
    fn from(what: WhenIsolated) -> Self {
        match what {
            WhenIsolated::Kill => Isolation::Kill,
            WhenIsolated::Keep => Isolation::Keep,
        }
    }
}

/// Reads `NETWORK[,address=IP][,mac=MAC]`.
pub fn nic(text: &str) -> std::result::Result<NicSpec, String> {
    let mut parts = text.split(',');
    let network = Name::new(parts.next().unwrap_or_default()).map_err(|error| error.to_string())?;
    let mut nic = NicSpec { network, mac: None, address: None };
    for part in parts {
        match part.split_once('=') {
            Some(("address", value)) => {
                let address: Ipv4Addr = value.parse().map_err(|_| format!("`{value}` is no IPv4 address"))?;
                nic.address = Some(address);
            }
            Some(("mac", value)) => nic.mac = Some(value.parse::<Mac>().map_err(|error| error.to_string())?),
            _ => return Err(format!("`{part}` is not understood; write NETWORK[,address=IP][,mac=MAC]")),
        }
    }
    Ok(nic)
}

fn read(path: Option<&Path>) -> Result<Option<String>> {
    let failed = |path: &Path, error| {
        Failure::usage(format!("read {}: {error}", path.display()), "it must be a text file on this machine")
    };
    path.map(|path| std::fs::read_to_string(path).map_err(|error| failed(path, error))).transpose()
}

fn ask(args: &Create) -> Result<Ask> {
    let some = |list: &[Name]| (!list.is_empty()).then(|| list.to_vec());
    let place =
        Place { datacentre: args.datacentre.clone(), cluster: args.cluster.clone(), host: args.host.clone() };
    let cloud_init = CloudInit {
        user_data: read(args.user_data.as_deref())?,
        network_config: read(args.network_config.as_deref())?,
    };
    Ok(Ask {
        image: args.image.clone(),
        cpus: args.cpus,
        memory: args.memory,
        volumes: some(&args.volumes),
        nics: (!args.nics.is_empty()).then(|| args.nics.clone()),
        power: args.stopped.then_some(Power::Stopped),
        place: (place != Place::default()).then_some(place),
        cloud_init: (cloud_init != CloudInit::default()).then_some(cloud_init),
        shutdown_timeout: args.shutdown_timeout,
        restart: args.restart.map(Into::into),
        on_panic: args.on_panic.map(Into::into),
        on_hang: args.on_hang.map(Into::into),
        watchdog: args.watchdog.then_some(true),
        checks: (!args.checks.is_empty()).then(|| args.checks.clone()),
        priority: args.priority.map(Into::into),
        ha: args.ha.map(Into::into),
        isolation: args.isolation.map(Into::into),
    })
}

pub async fn run(session: &Session, args: Create) -> Result<()> {
    let spec = ask(&args)?;
    let boot = Boot { pool: args.pool.clone(), size: args.disk };
    crud::each(session, &args.names, async |name| {
        let new = args.about.new_object(name.clone(), spec.clone());
        let answer = session.client.vms().create_with(&new, &boot).await?;
        crud::finish(session, args.wait, &format!("vm {name}"), "created", answer).await
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nic_is_a_network_with_what_is_fixed_about_it() {
        let read = nic("lan,address=10.100.0.9,mac=52:54:00:00:00:01").unwrap();
        assert_eq!((read.network.as_str(), read.address), ("lan", Some(Ipv4Addr::new(10, 100, 0, 9))));
        assert!(read.mac.is_some());
        for bad in ["", "lan,adress=1.2.3.4", "lan,address=1.2.3", "lan,mac=x"] {
            assert!(nic(bad).is_err(), "{bad}");
        }
    }
}
