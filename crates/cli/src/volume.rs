//! Virtual disks.

use clap::{Args, Subcommand};
use sterna_base::units::Bytes;
use sterna_client::volume::{Volume, Volumes};
use sterna_model::meta::Name;
use sterna_model::volume::{VolumeReport, VolumeSpec};

use crate::crud::{self, About, Delete};
use crate::exit::Result;
use crate::output::Listed;
use crate::readable::size;
use crate::select::Selector;
use crate::session::Session;
use crate::wait::Wait;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make a volume, blank or a thin clone of an image
    Create(Create),
    /// List volumes
    List(Selector),
    /// Show one volume
    Show { name: Name },
    /// Make a volume larger, also while its VM runs
    Grow {
        name: Name,
        /// The new size, such as 20GiB
        size: Bytes,
        #[command(flatten)]
        wait: Wait,
    },
    /// Delete volumes and what is on them
    Delete(Delete),
}

#[derive(Debug, Args)]
pub struct Create {
    name: Name,
    /// Size, such as 10GiB [default: the image's]
    #[arg(long, required_unless_present = "image", value_name = "SIZE")]
    size: Option<Bytes>,
    /// Clone this image
    #[arg(long, value_name = "NAME")]
    image: Option<Name>,
    /// Pool that holds it [default: a default pool]
    #[arg(long, value_name = "NAME")]
    pool: Option<Name>,
    #[command(flatten)]
    about: About,
    #[command(flatten)]
    wait: Wait,
}

impl Listed for Volume {
    const WORDS: &'static str = "volumes";
    const HEAD: &'static [&'static str] = &["name", "state", "size", "pool", "host", "image", "vm"];

    fn row(&self) -> Vec<String> {
        let state = match &self.report {
            _ if self.meta.deleting.is_some() => "deleting".to_owned(),
            None => "waiting".to_owned(),
            Some(VolumeReport::Making { percent }) => format!("making {percent} %"),
            Some(VolumeReport::Ready { .. }) => "ready".to_owned(),
            Some(VolumeReport::Failed { why }) => format!("failed: {why}"),
            Some(VolumeReport::Gone) => "gone".to_owned(),
        };
        let known = match &self.report {
            Some(VolumeReport::Ready { size }) => Some(*size),
            _ => self.decision.as_ref().map(|decision| decision.size).or(self.spec.size),
        };
        let text = |name: Option<&Name>| name.map(Name::to_string).unwrap_or_default();
        let pool = self.decision.as_ref().map(|decision| &decision.pool).or(self.spec.pool.as_ref());
        let host = self.decision.as_ref().map(|decision| &decision.host);
        let size = known.map(size).unwrap_or_default();
        let (image, vm) = (text(self.spec.image.as_ref()), text(self.spec.vm.as_ref()));
        vec![self.meta.name.to_string(), state, size, text(pool), text(host), image, vm]
    }
}

pub async fn run(session: &Session, verb: Verb) -> Result<()> {
    match verb {
        Verb::Create(Create { name, size, image, pool, about, wait }) => {
            let new = about.new_object(name, VolumeSpec { pool, size, image, vm: None });
            crud::create::<Volumes, _>(session, &new, wait).await
        }
        Verb::List(selector) => crud::list::<Volumes>(session, &selector).await,
        Verb::Show { name } => crud::show::<Volumes>(session, &name).await,
        Verb::Grow { name, size, wait } => {
            let answer = session.client.volumes().grow(&name, size).await?;
            crud::finish(session, wait, &format!("volume {name}"), &format!("has {size}"), answer).await
        }
        Verb::Delete(args) => crud::delete::<Volumes>(session, &args, " What is on them is lost.").await,
    }
}
