//! L2 segments.

use clap::{Args, Subcommand};
use sterna_client::network::{Network, Networks};
use sterna_model::meta::Name;
use sterna_model::network::{Cidr, NetworkKind, NetworkSpec};

use crate::crud::{self, About, Delete};
use crate::exit::Result;
use crate::output::Listed;
use crate::select::Selector;
use crate::session::Session;
use crate::wait::Wait;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make a network
    Create(Create),
    /// List networks
    List(Selector),
    /// Show one network
    Show { name: Name },
    /// Delete networks that no VM is on
    Delete(Delete),
}

#[derive(Debug, Args)]
pub struct Create {
    name: Name,
    #[command(flatten)]
    kind: Kind,
    /// VLAN on the bridge
    #[arg(long, requires = "bridge", value_parser = clap::value_parser!(u16).range(1..4095), value_name = "ID")]
    vlan: Option<u16>,
    /// NICs that name no network go here
    #[arg(long)]
    default: bool,
    #[command(flatten)]
    about: About,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Kind {
    /// A segment of its own between the hosts, with these addresses handed out by Sterna
    #[arg(long, value_name = "CIDR")]
    overlay: Option<Cidr>,
    /// An existing bridge of this name on every host
    #[arg(long, value_name = "BRIDGE")]
    bridge: Option<String>,
}

impl Listed for Network {
    const WORDS: &'static str = "networks";
    const HEAD: &'static [&'static str] = &["name", "kind", "addresses", "default"];

    fn row(&self) -> Vec<String> {
        let (kind, addresses) = match &self.spec.kind {
            NetworkKind::Overlay { cidr } => ("overlay".to_owned(), cidr.to_string()),
            NetworkKind::Bridge { bridge, vlan: None } => {
                (format!("bridge {bridge}"), "from outside".to_owned())
            }
            NetworkKind::Bridge { bridge, vlan: Some(vlan) } => {
                (format!("bridge {bridge}, VLAN {vlan}"), "from outside".to_owned())
            }
        };
        let default = if self.spec.default { "yes" } else { "no" };
        vec![self.meta.name.to_string(), kind, addresses, default.into()]
    }
}

pub async fn run(session: &Session, verb: Verb) -> Result<()> {
    match verb {
        Verb::Create(Create { name, kind, vlan, default, about }) => {
            let overlay = kind.overlay.map(|cidr| NetworkKind::Overlay { cidr });
            let bridge = kind.bridge.map(|bridge| NetworkKind::Bridge { bridge, vlan });
            // The group takes exactly one of them.
            let Some(kind) = overlay.or(bridge) else { return Ok(()) };
            let new = about.new_object(name, NetworkSpec { kind, default });
            crud::create::<Networks, _>(session, &new, Wait::ALWAYS).await
        }
        Verb::List(selector) => crud::list::<Networks>(session, &selector).await,
        Verb::Show { name } => crud::show::<Networks>(session, &name).await,
        Verb::Delete(args) => crud::delete::<Networks>(session, &args, "").await,
    }
}
