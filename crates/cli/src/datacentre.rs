//! Sites with their own failure domain.

use clap::{Args, Subcommand};
use sterna_client::datacentre::{Datacentre, Datacentres};
use sterna_model::datacentre::DatacentreSpec;
use sterna_model::meta::Name;

use crate::crud::{self, About, Delete};
use crate::exit::Result;
use crate::output::Listed;
use crate::select::Selector;
use crate::session::Session;
use crate::wait::Wait;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make a datacentre
    Create(Create),
    /// List datacentres
    List(Selector),
    /// Show one datacentre
    Show { name: Name },
    /// Delete datacentres without hosts
    Delete(Delete),
}

#[derive(Debug, Args)]
pub struct Create {
    name: Name,
    /// Where it is, for people
    #[arg(long, value_name = "TEXT")]
    location: Option<String>,
    #[command(flatten)]
    about: About,
}

impl Listed for Datacentre {
    const WORDS: &'static str = "datacentres";
    const HEAD: &'static [&'static str] = &["name", "location"];

    fn row(&self) -> Vec<String> {
        vec![self.meta.name.to_string(), self.spec.location.clone().unwrap_or_default()]
    }
}

pub async fn run(session: &Session, verb: Verb) -> Result<()> {
    match verb {
        Verb::Create(Create { name, location, about }) => {
            let new = about.new_object(name, DatacentreSpec { location });
            crud::create::<Datacentres, _>(session, &new, Wait::ALWAYS).await
        }
        Verb::List(selector) => crud::list::<Datacentres>(session, &selector).await,
        Verb::Show { name } => crud::show::<Datacentres>(session, &name).await,
        Verb::Delete(args) => crud::delete::<Datacentres>(session, &args, "").await,
    }
}
