//! Facts recorded for people.

use clap::Subcommand;
use futures_util::StreamExt;
use sterna_base::clock::Timestamp;
use sterna_client::event::Which;
use sterna_client::watch::Event as Told;
use sterna_model::event::Event;

use crate::Format;
use crate::exit::{Failure, Result};
use crate::output::Listed;
use crate::session::Session;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List the latest events, the oldest first
    List {
        #[command(flatten)]
        about: About,
        /// Only events after this time, such as 2026-11-22T12:00:00Z
        #[arg(long, value_name = "TIME")]
        since: Option<Timestamp>,
        /// At most this many
        #[arg(long, default_value_t = 100, value_name = "NUMBER")]
        limit: usize,
    },
    /// Print events as they happen, until interrupted
    Follow {
        #[command(flatten)]
        about: About,
    },
}

#[derive(Debug, clap::Args)]
pub struct About {
    /// Only events about this object, such as vm/web
    #[arg(long, value_name = "KIND/NAME")]
    object: Option<String>,
}

impl Listed for Event {
    const WORDS: &'static str = "events";
    const HEAD: &'static [&'static str] = &["time", "object", "what", "why"];

    fn row(&self) -> Vec<String> {
        let object = format!("{}/{}", self.kind, self.name);
        vec![self.time.to_string(), object, self.what.clone(), self.why.clone()]
    }
}

pub async fn run(session: &Session, verb: Verb) -> Result<()> {
    match verb {
        Verb::List { about, since, limit } => {
            let which = Which { object: about.object, since, limit: Some(limit) };
            session.list(&session.client.events(&which).await?)
        }
        Verb::Follow { about } => follow(session, about.object).await,
    }
}

async fn follow(session: &Session, object: Option<String>) -> Result<()> {
    let told = session.client.watch(None, &["event"]).await?;
    tokio::pin!(told);
    session.talk("waiting for events; end with Ctrl-C");
    while let Some(event) = told.next().await {
        let Told::Fact(fact) = event? else { continue };
        if object.as_ref().is_none_or(|object| *object == format!("{}/{}", fact.kind, fact.name)) {
            print(session, &fact)?;
        }
    }
    Err(Failure::failed("the server ended the stream", "is it being restarted? try again"))
}

fn print(session: &Session, event: &Event) -> Result<()> {
    match session.format {
        Format::Table => session.terminal.data(&(event.row().join("  ") + "\n")),
        Format::Yaml => session.terminal.data(&format!("---\n{}", crate::output::text(Format::Yaml, event)?)),
        Format::Json => {
            let line = serde_json::to_string(event)
                .map_err(|error| Failure::Failed { message: error.to_string(), hint: None })?;
            session.terminal.data(&(line + "\n"))
        }
    }
}
