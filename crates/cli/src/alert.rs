//! Facts that need a person.

use clap::Subcommand;
use sterna_base::units::Span;
use sterna_client::alert::{Alert, Alerts, Receiver, Tested};
use sterna_client::object::Filter;
use sterna_model::alert::AlertState;
use sterna_model::meta::Name;

use crate::Format;
use crate::crud;
use crate::exit::{Failure, Result};
use crate::output::Listed;
use crate::session::Session;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List what needs a person
    List {
        /// Also what has been over for less than a week
        #[arg(long)]
        all: bool,
    },
    /// Show one alert, and who was told
    Show { name: Name },
    /// Say that you care for it: nobody is told again unless it ends and begins anew
    Ack { name: Name },
    /// Tell nobody of it for a while, however often it fires
    Silence {
        name: Name,
        /// For how long; 0s ends a silence
        #[arg(long = "for", default_value = "8h", value_name = "SPAN")]
        length: Span,
    },
    /// Send a test message, and say who took it
    Test {
        /// Such as mail/ops; all without it
        receiver: Option<String>,
    },
    /// List who is told, and how the last delivery went
    Receivers,
}

impl Listed for Alert {
    const WORDS: &'static str = "alerts";
    const HEAD: &'static [&'static str] = &["name", "state", "severity", "object", "since", "text"];

    fn row(&self) -> Vec<String> {
        let state = self.status.as_ref().map(|status| status.state.word().to_owned()).unwrap_or_default();
        let Some(decision) = &self.decision else { return vec![self.meta.name.to_string(), state] };
        vec![
            self.meta.name.to_string(),
            state,
            decision.severity.word().to_owned(),
            decision.object.clone(),
            decision.since.to_string(),
            decision.text.clone(),
        ]
    }
}

impl Listed for Receiver {
    const WORDS: &'static str = "receivers";
    const HEAD: &'static [&'static str] = &["receiver", "least", "delivered", "failed", "error"];

    fn row(&self) -> Vec<String> {
        let time =
            |at: Option<sterna_base::clock::Timestamp>| at.map(|at| at.to_string()).unwrap_or_default();
        vec![
            self.receiver.clone(),
            self.least.word().to_owned(),
            time(self.delivered),
            time(self.failed),
            self.error.clone().unwrap_or_default(),
        ]
    }
}

impl Listed for Tested {
    const WORDS: &'static str = "receivers";
    const HEAD: &'static [&'static str] = &["receiver", "delivered", "error"];

    fn row(&self) -> Vec<String> {
        let delivered = if self.delivered { "yes" } else { "no" };
        vec![self.receiver.clone(), delivered.to_owned(), self.error.clone().unwrap_or_default()]
    }
}

pub async fn run(session: &Session, verb: Verb) -> Result<()> {
    match verb {
        Verb::List { all } => list(session, all).await,
        Verb::Show { name } => crud::show::<Alerts>(session, &name).await,
        Verb::Ack { name } => changed(session, session.client.alerts().acknowledge(&name).await?),
        Verb::Silence { name, length } => {
            changed(session, session.client.alerts().silence(&name, length).await?)
        }
        Verb::Test { receiver } => test(session, receiver.as_deref()).await,
        Verb::Receivers => session.list(&session.client.alert_receivers().await?),
    }
}

async fn list(session: &Session, all: bool) -> Result<()> {
    let mut alerts = session.client.alerts().list(&Filter::default()).await?;
    alerts.retain(|alert| {
        all || alert.status.as_ref().is_none_or(|status| status.state != AlertState::Resolved)
    });
    // The gravest first, then the oldest.
    alerts.sort_by_key(|alert| {
        let decision = alert.decision.as_ref();
        (std::cmp::Reverse(decision.map(|it| it.severity)), decision.map(|it| it.since))
    });
    session.list(&alerts)
}

fn changed(session: &Session, alert: Alert) -> Result<()> {
    if session.format != Format::Table {
        return session.value(&alert);
    }
    let state = alert.status.as_ref().map_or("unknown", |status| status.state.word());
    session.talk(&format!("alert {}: {state}", alert.meta.name));
    Ok(())
}

async fn test(session: &Session, receiver: Option<&str>) -> Result<()> {
    let tested = session.client.test_alerts(receiver).await?;
    session.list(&tested)?;
    let failed = tested.iter().filter(|test| !test.delivered).count();
    if failed > 0 {
        return Err(Failure::failed(
            format!("{failed} of {} receivers did not take the message", tested.len()),
            "the settings of receivers are in server.toml, under [alerts]",
        ));
    }
    if tested.is_empty() {
        session.talk("nobody is told of alerts: add receivers to server.toml, under [alerts]");
    }
    Ok(())
}
