//! Who did what.

use clap::Subcommand;
use serde_json::Value;

use crate::exit::Result;
use crate::output::plain;
use crate::session::Session;
use crate::{Format, output};

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List the latest requests that changed something or were refused
    List {
        /// How many
        #[arg(long, default_value_t = 50, value_name = "NUMBER")]
        limit: usize,
    },
}

pub async fn run(session: &Session, verb: Verb) -> Result<()> {
    let Verb::List { limit } = verb;
    let lines = session.client.audit(limit).await?;
    if session.format != Format::Table {
        return session.value(&lines);
    }
    let head = ["time", "actor", "source", "method", "path", "outcome"];
    let cell = |line: &Value, field: &str| line.get(field).map(plain).unwrap_or_default();
    let rows = lines.iter().map(|line| head.iter().map(|field| cell(line, field)).collect()).collect();
    session.terminal.data(&output::table(&head, rows, session.terminal.width))
}
