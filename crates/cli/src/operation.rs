//! Long work.

use clap::Subcommand;
use sterna_client::Filter;
use sterna_client::operation::{Operation, state};
use sterna_model::meta::Name;
use sterna_model::operation::OperationState;

use crate::exit::Result;
use crate::output::Listed;
use crate::readable::age;
use crate::session::Session;
use crate::wait::{self, Wait};

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List operations; those that ended are kept for an hour
    List,
    /// Show one operation
    Show {
        name: Name,
        /// Wait until it has ended
        #[arg(long)]
        wait: bool,
    },
}

impl Listed for Operation {
    const WORDS: &'static str = "operations";
    const HEAD: &'static [&'static str] = &["name", "state", "object", "by", "age", "message"];

    fn row(&self) -> Vec<String> {
        let word = match state(self) {
            Some(OperationState::Succeeded { .. }) => "succeeded",
            Some(OperationState::Failed { .. }) => "failed",
            _ => "running",
        };
        let (kind, name) = self.spec.goal.target();
        vec![
            self.meta.name.to_string(),
            word.to_owned(),
            format!("{kind}/{name}"),
            self.spec.actor.clone(),
            age(self.spec.started),
            wait::message(self),
        ]
    }
}

pub async fn run(session: &Session, verb: Verb) -> Result<()> {
    let operations = session.client.operations();
    match verb {
        Verb::List => session.list(&operations.list(&Filter::default()).await?),
        Verb::Show { name, wait } => {
            let mut operation = operations.get(&name).await?;
            if wait {
                let (kind, target) = operation.spec.goal.target();
                let what = format!("{kind} {target}");
                operation = wait::follow(session, Wait::ALWAYS, &what, operation).await?;
            }
            session.object(&operation)
        }
    }
}
