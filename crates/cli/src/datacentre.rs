//! Sites with their own failure domain.

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};
use sterna_client::datacentre::{Datacentre, Datacentres};
use sterna_client::object::Patch;
use sterna_model::bandwidth::BandwidthLimit;
use sterna_model::datacentre::DatacentreSpec;
use sterna_model::ha::Profile;
use sterna_model::meta::Name;

use crate::crud::{self, About, Delete};
use crate::exit::{Failure, Result};
use crate::output::Listed;
use crate::select::{Many, Selector};
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
    /// Change datacentres
    Set(Set),
    /// Delete datacentres without hosts
    Delete(Delete),
}

#[derive(Debug, Args)]
pub struct Create {
    name: Name,
    /// Where it is, for people
    #[arg(long, value_name = "TEXT")]
    location: Option<String>,
    /// What moves to and from other datacentres may take of its line, such as
    /// 'mon-fri 08:00-18:00 +01:00 20Mbit/s'; days, times and the offset from UTC
    /// may be left out; several may be given
    #[arg(long, value_name = "LIMIT")]
    bandwidth: Vec<BandwidthLimit>,
    #[command(flatten)]
    about: About,
}

#[derive(Debug, Args)]
pub struct Set {
    #[command(flatten)]
    many: Many,
    /// Where it is, for people
    #[arg(long, value_name = "TEXT")]
    location: Option<String>,
    /// What moves may take of its line, in place of all limits that it has
    #[arg(long, value_name = "LIMIT")]
    bandwidth: Vec<BandwidthLimit>,
    /// No limits: moves take what its line carries
    #[arg(long, conflicts_with = "bandwidth")]
    no_bandwidth: bool,
    /// How long its hosts' leases last: a short one starts VMs of a lost host
    /// sooner, and asks more of the network
    #[arg(long, value_enum, value_name = "PROFILE")]
    leases: Option<Leases>,
}

/// How long a lease lasts, with its watchdog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Leases {
    /// 2 s and 1 s; for labs
    Fast,
    /// 4 s and 3 s
    Quick,
    /// 10 s and 5 s
    Standard,
    /// 20 s and 10 s
    Patient,
}

impl From<Leases> for Profile {
    fn from(leases: Leases) -> Self {
        match leases {
            Leases::Fast => Profile::Fast,
            Leases::Quick => Profile::Quick,
            Leases::Standard => Profile::Standard,
            Leases::Patient => Profile::Patient,
        }
    }
}

/// What is to be changed, as a merge patch: limits are replaced as a whole.
fn changes(args: &Set) -> Map<String, Value> {
    let limits = &args.bandwidth;
    let location = args.location.as_ref().map(|location| ("location".to_owned(), json!(location)));
    let bandwidth =
        (args.no_bandwidth || !limits.is_empty()).then(|| ("bandwidth".to_owned(), json!(limits)));
    let profile = args.leases.map(Profile::from);
    let leases = profile.map(|profile| ("ha".to_owned(), json!({ "profile": profile })));
    location.into_iter().chain(bandwidth).chain(leases).collect()
}

async fn set(session: &Session, args: Set) -> Result<()> {
    let spec = changes(&args);
    if spec.is_empty() {
        let hint = "for example --bandwidth 'mon-fri 08:00-18:00 20Mbit/s', or --no-bandwidth";
        return Err(Failure::usage("nothing to change", hint));
    }
    let names = args.many.resolve::<Datacentres>(&session.client).await?;
    let datacentres = session.client.datacentres();
    crud::each(session, &names, async |name| {
        let answer = datacentres.patch(name, &Patch::of(&spec)).await?;
        session.done(&format!("datacentre {name}: changed"), &answer)
    })
    .await
}

impl Listed for Datacentre {
    const WORDS: &'static str = "datacentres";
    const HEAD: &'static [&'static str] = &["name", "location", "bandwidth"];

    fn row(&self) -> Vec<String> {
        let limits: Vec<_> = self.spec.bandwidth.iter().map(ToString::to_string).collect();
        vec![self.meta.name.to_string(), self.spec.location.clone().unwrap_or_default(), limits.join("; ")]
    }
}

pub async fn run(session: &Session, verb: Verb) -> Result<()> {
    match verb {
        Verb::Create(Create { name, location, bandwidth, about }) => {
            let spec = DatacentreSpec { location, bandwidth, ..DatacentreSpec::default() };
            let new = about.new_object(name, spec);
            crud::create::<Datacentres, _>(session, &new, Wait::ALWAYS).await
        }
        Verb::List(selector) => crud::list::<Datacentres>(session, &selector).await,
        Verb::Show { name } => crud::show::<Datacentres>(session, &name).await,
        Verb::Set(args) => set(session, args).await,
        Verb::Delete(args) => crud::delete::<Datacentres>(session, &args, "").await,
    }
}
