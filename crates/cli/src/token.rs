//! Who may talk to the API.

use clap::Subcommand;
use sterna_client::token::Token;
use sterna_model::meta::Name;
use sterna_model::token::Role;

use crate::Format;
use crate::ask::{Yes, confirm};
use crate::crud;
use crate::exit::Result;
use crate::output::Listed;
use crate::readable::age;
use crate::session::Session;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make a token; its secret is shown this once
    Create {
        name: Name,
        /// What it may do
        #[arg(long, value_enum, default_value_t = May::Viewer)]
        role: May,
    },
    /// List tokens
    List,
    /// Take tokens away; whoever uses one is shut out at once
    Delete {
        #[arg(required = true, value_name = "NAME")]
        names: Vec<Name>,
        #[command(flatten)]
        yes: Yes,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum May {
    /// Everything
    Admin,
    /// Only reading
    Viewer,
}

impl Listed for Token {
    const WORDS: &'static str = "tokens";
    const HEAD: &'static [&'static str] = &["name", "role", "age"];

    fn row(&self) -> Vec<String> {
        let role = match self.spec.role {
            Role::Admin => "admin",
            Role::Viewer => "viewer",
        };
        vec![self.meta.name.to_string(), role.to_owned(), age(self.meta.created)]
    }
}

pub async fn run(session: &Session, verb: Verb) -> Result<()> {
    match verb {
        Verb::Create { name, role } => {
            let role = match role {
                May::Admin => Role::Admin,
                May::Viewer => Role::Viewer,
            };
            let made = session.client.tokens().create(&name, role).await?;
            if session.format != Format::Table {
                return session.value(&made);
            }
            session.talk(&format!("token {name}: the secret is shown this once"));
            session.terminal.data(&format!("{}\n", made.secret))
        }
        Verb::List => session.list(&session.client.tokens().list().await?),
        Verb::Delete { names, yes } => {
            let shown: Vec<_> = names.iter().map(Name::as_str).collect();
            confirm(&session.terminal, yes, &format!("delete token {}?", shown.join(", ")))?;
            crud::each(session, &names, async |name| {
                session.client.tokens().delete(name).await?;
                session.talk(&format!("token {name}: deleted"));
                Ok(())
            })
            .await
        }
    }
}
