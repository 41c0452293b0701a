//! Clusters: hosts with one CPU baseline.

use clap::{Args, Subcommand};
use sterna_client::cluster::{Cluster, Clusters};
use sterna_model::cluster::{ClusterSpec, RESERVE_MAX};
use sterna_model::meta::Name;

use crate::crud::{self, About, Delete};
use crate::exit::Result;
use crate::output::Listed;
use crate::select::Selector;
use crate::session::Session;
use crate::wait::Wait;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make a cluster in a datacentre
    Create(Create),
    /// List clusters and the CPU that all their hosts can run
    List(Selector),
    /// Show one cluster
    Show { name: Name },
    /// Delete clusters without hosts
    Delete(Delete),
}

#[derive(Debug, Args)]
pub struct Create {
    name: Name,
    /// Datacentre that its hosts are in
    #[arg(long, value_name = "NAME")]
    datacentre: Name,
    /// QEMU's name of a CPU model, instead of the best one that all hosts can run
    #[arg(long, value_name = "MODEL")]
    cpu_model: Option<String>,
    /// How many hosts may be lost with room left for their VMs [default: 1 where hosts share a pool, else 0]
    #[arg(long, value_name = "HOSTS", value_parser = clap::value_parser!(u32).range(0..=i64::from(RESERVE_MAX)))]
    reserve: Option<u32>,
    #[command(flatten)]
    about: About,
}

impl Listed for Cluster {
    const WORDS: &'static str = "clusters";
    const HEAD: &'static [&'static str] = &["name", "datacentre", "hosts", "cpu", "machine"];

    fn row(&self) -> Vec<String> {
        let (hosts, cpu, machine) = match &self.decision {
            None => (String::new(), String::new(), String::new()),
            Some(decision) => {
                let baseline = &decision.baseline;
                (decision.hosts.len().to_string(), baseline.cpu_model.clone(), baseline.machine.clone())
            }
        };
        vec![self.meta.name.to_string(), self.spec.datacentre.to_string(), hosts, cpu, machine]
    }
}

pub async fn run(session: &Session, verb: Verb) -> Result<()> {
    match verb {
        Verb::Create(Create { name, datacentre, cpu_model, reserve, about }) => {
            let new = about.new_object(name, ClusterSpec { datacentre, cpu_model, reserve });
            crud::create::<Clusters, _>(session, &new, Wait::ALWAYS).await
        }
        Verb::List(selector) => crud::list::<Clusters>(session, &selector).await,
        Verb::Show { name } => crud::show::<Clusters>(session, &name).await,
        Verb::Delete(args) => crud::delete::<Clusters>(session, &args, "").await,
    }
}
