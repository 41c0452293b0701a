//! Places that hold volumes.

use clap::{Args, Subcommand};
use sterna_client::pool::{Pool, Pools};
use sterna_model::meta::Name;
use sterna_model::pool::{PoolKind, PoolSpec};

use crate::crud::{self, About, Delete};
use crate::exit::Result;
use crate::output::Listed;
use crate::select::Selector;
use crate::session::Session;
use crate::wait::Wait;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make a pool of a folder
    Create(Create),
    /// List pools
    List(Selector),
    /// Show one pool
    Show { name: Name },
    /// Delete empty pools; their folders stay
    Delete(Delete),
}

#[derive(Debug, Args)]
pub struct Create {
    name: Name,
    #[command(flatten)]
    kind: Kind,
    /// Only for hosts of this datacentre
    #[arg(long, value_name = "NAME")]
    datacentre: Option<Name>,
    /// Volumes that name no pool may go here
    #[arg(long)]
    default: bool,
    #[command(flatten)]
    about: About,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Kind {
    /// A folder on each host's own disk; its volumes stay on their host
    #[arg(long, value_name = "PATH")]
    dir: Option<String>,
    /// A folder that every host mounts, such as NFS
    #[arg(long, value_name = "PATH")]
    shared_dir: Option<String>,
    /// A folder on one host, served to the others
    #[arg(long, value_name = "HOST:PATH", value_parser = served)]
    nbd: Option<PoolKind>,
}

fn served(text: &str) -> std::result::Result<PoolKind, String> {
    let (host, path) = text.split_once(':').ok_or("write HOST:PATH")?;
    Ok(PoolKind::Nbd { host: Name::new(host).map_err(|error| error.to_string())?, path: path.to_owned() })
}

impl Listed for Pool {
    const WORDS: &'static str = "pools";
    const HEAD: &'static [&'static str] = &["name", "kind", "where", "datacentre", "default"];

    fn row(&self) -> Vec<String> {
        let (kind, place) = match &self.spec.kind {
            PoolKind::Dir { path } => ("dir", path.clone()),
            PoolKind::SharedDir { path } => ("shared-dir", path.clone()),
            PoolKind::Nbd { host, path } => ("nbd", format!("{host}:{path}")),
        };
        let datacentre = self.spec.datacentre.as_ref().map_or("all", Name::as_str);
        let default = if self.spec.default { "yes" } else { "no" };
        vec![self.meta.name.to_string(), kind.into(), place, datacentre.into(), default.into()]
    }
}

pub async fn run(session: &Session, verb: Verb) -> Result<()> {
    match verb {
        Verb::Create(Create { name, kind, datacentre, default, about }) => {
            let dir = kind.dir.map(|path| PoolKind::Dir { path });
            let shared = kind.shared_dir.map(|path| PoolKind::SharedDir { path });
            // The group takes exactly one of them.
            let Some(kind) = dir.or(shared).or(kind.nbd) else { return Ok(()) };
            let new = about.new_object(name, PoolSpec { kind, datacentre, default });
            crud::create::<Pools, _>(session, &new, Wait::ALWAYS).await
        }
        Verb::List(selector) => crud::list::<Pools>(session, &selector).await,
        Verb::Show { name } => crud::show::<Pools>(session, &name).await,
        Verb::Delete(args) => crud::delete::<Pools>(session, &args, "").await,
    }
}
