//! What happens to VMs when hosts fail.

use clap::Subcommand;
use sterna_model::loss::{Fate, VmLoss};
use sterna_model::meta::Name;

use crate::Format;
use crate::exit::Result;
use crate::output::Listed;
use crate::readable::size;
use crate::session::Session;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Say which VMs would start where after a loss, and which not and why; nothing is done
    Simulate {
        /// What is lost
        #[arg(value_enum)]
        what: Lost,
        name: Name,
    },
}

/// What may be taken to be lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Lost {
    Host,
}

impl Listed for VmLoss {
    const WORDS: &'static str = "VMs on it";
    const HEAD: &'static [&'static str] = &["vm", "priority", "memory", "after the loss", "host", "why"];

    fn row(&self) -> Vec<String> {
        let host = match &self.fate {
            Fate::Restarts { host, .. } => host.to_string(),
            Fate::LacksRoom { .. } | Fate::Stays { .. } => String::new(),
        };
        let word = self.fate.word().to_owned();
        let (priority, memory) = (self.priority.word().to_owned(), size(self.memory));
        vec![self.vm.to_string(), priority, memory, word, host, self.fate.why().to_owned()]
    }
}

pub async fn run(session: &Session, verb: Verb) -> Result<()> {
    let Verb::Simulate { what: Lost::Host, name } = verb;
    let loss = session.client.hosts().loss(&name).await?;
    if session.format != Format::Table {
        return session.value(&loss);
    }
    session.list(&loss.vms)?;
    for reserve in &loss.reserves {
        let plural = if reserve.losses == 1 { "" } else { "s" };
        session.talk(&format!(
            "cluster {} keeps room for {} lost host{plural}",
            reserve.cluster, reserve.losses
        ));
    }
    Ok(())
}
