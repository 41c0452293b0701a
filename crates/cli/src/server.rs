//! Is the server there?

use clap::Subcommand;

use crate::Format;
use crate::exit::Result;
use crate::machine::{InitArgs, RunArgs};
use crate::output::pairs;
use crate::session::Session;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Say whether the server answers, and how fast
    Status,
    /// Run the server in the foreground
    Run(RunArgs),
    /// Set up the server on this machine, and this machine as the first host
    Init(Box<InitArgs>),
}

pub async fn run(session: &Session, verb: Verb) -> Result<()> {
    // `run` and `init` act on this machine and never come here.
    let Verb::Status = verb else { return Ok(()) };
    let health = session.client.health().await?;
    if session.format == Format::Table {
        session.talk(&format!("{} answers in {} ms", health.server, health.round_trip_ms));
        return session.terminal.data(&pairs(&health.says)?);
    }
    session.value(&health)
}
