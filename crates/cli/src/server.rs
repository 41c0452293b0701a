//! Is the server there, and is its store what the hosts have seen?

use clap::Subcommand;

use crate::Format;
use crate::ask::{Yes, confirm};
use crate::exit::Result;
use crate::machine::{InitArgs, RunArgs};
use crate::output::pairs;
use crate::session::Session;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Say whether the server answers, and how fast
    Status,
    /// End the VMs that hosts have and the store does not know
    ///
    /// After the store was restored from an older copy, VMs that are younger than the copy are unknown to it. They are
    /// held and go on running until this is said.
    AcceptStore(Yes),
    /// Run the server in the foreground
    Run(RunArgs),
    /// Set up the server on this machine, and this machine as the first host
    Init(Box<InitArgs>),
}

pub async fn run(session: &Session, verb: Verb) -> Result<()> {
    // `run` and `init` act on this machine and never come here.
    match verb {
        Verb::Status => status(session).await,
        Verb::AcceptStore(yes) => accept_store(session, yes).await,
        Verb::Run(_) | Verb::Init(_) => Ok(()),
    }
}

async fn accept_store(session: &Session, yes: Yes) -> Result<()> {
    let question = "end every VM that the store does not know? Their disks stay, their memory is lost";
    confirm(&session.terminal, yes, question)?;
    let accepted = session.client.accept_store().await?;
    if session.format != Format::Table {
        return session.value(&accepted);
    }
    if accepted.released.is_empty() {
        session.talk("the store knows every VM; nothing was ended");
    }
    for released in &accepted.released {
        session.talk(&format!("vm {} on host {}: is being ended", released.vm, released.host));
    }
    Ok(())
}

async fn status(session: &Session) -> Result<()> {
    let health = session.client.health().await?;
    if session.format == Format::Table {
        session.talk(&format!("{} answers in {} ms", health.server, health.round_trip_ms));
        return session.terminal.data(&pairs(&health.says)?);
    }
    session.value(&health)
}
