//! Tells people of alerts. One task a receiver: it gathers what is due, sends it as one message, and notes in the alerts'
//! report what the receiver knows, so that a server that starts anew tells nothing twice.
//!
//! Decides nothing about alerts: `plan::alert` does.

/// What a receiver has yet to be told.
mod due;
/// Mail.
mod mail;
/// One message about several alerts.
mod message;
/// Lines for a log host.
mod syslog;
/// HTTP POST.
mod webhook;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use sterna_base::backoff::Backoff;
use sterna_base::clock::Timestamp;
use sterna_model::alert::{Severity, Told};
use sterna_model::key::{Key, Kind};
use sterna_model::meta::Name;
use sterna_store::Txn;
use tokio::task::JoinSet;
use utoipa::ToSchema;

use crate::app::App;
use crate::config;
use crate::error::Answer;
use crate::write;
use due::{Due, due};
use message::Message;

/// Silences end and repetitions come due without a change of the store.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// A receiver that takes longer is not there.
const PATIENCE: Duration = Duration::from_secs(30);
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(300);
/// Alerts in one message; the rest follows in the next.
const TOGETHER_MAX: usize = 100;
/// Notes of one transaction.
const NOTES_MAX: usize = 100;

/// Who is told, by name such as `mail/ops`.
#[derive(Debug, Default)]
pub struct Receivers(BTreeMap<String, Arc<Receiver>>);

#[derive(Debug)]
struct Receiver {
    name: String,
    least: Severity,
    way: Way,
    last: Mutex<Last>,
}

/// How the last deliveries went.
#[derive(Debug, Default, Clone)]
struct Last {
    delivered: Option<Timestamp>,
    failed: Option<(Timestamp, String)>,
}

#[derive(Debug)]
enum Way {
    Mail(mail::Mail),
    Webhook(webhook::Webhook),
    Syslog(syslog::Syslog),
}

/// A receiver, and how the last delivery went.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReceiverShown {
    /// As `mail/NAME`, `webhook/NAME` or `syslog/NAME`.
    receiver: String,
    /// The least severe alerts that it is told of.
    least: Severity,
    /// The last delivery since this server started.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    delivered: Option<Timestamp>,
    /// When the last try failed, if it came after that.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    failed: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl Receivers {
    /// Reads the settings; what cannot work is refused here and not when the first alert is lost.
    pub fn new(config: &config::Alerts) -> anyhow::Result<Self> {
        let mut all = BTreeMap::new();
        let mut add = |kind: &str, name: &Name, least: config::Least, way: Way| {
            let name = format!("{kind}/{name}");
            let receiver = Receiver { name: name.clone(), least: least.0, way, last: Mutex::default() };
            all.insert(name, Arc::new(receiver));
        };
        for (name, mail) in &config.mail {
            add("mail", name, mail.least, Way::Mail(mail::Mail::new(mail)?));
        }
        for (name, webhook) in &config.webhook {
            add("webhook", name, webhook.least, Way::Webhook(webhook::Webhook::new(webhook)?));
        }
        for (name, syslog) in &config.syslog {
            add("syslog", name, syslog.least, Way::Syslog(syslog::Syslog::new(syslog)?));
        }
        Ok(Self(all))
    }

    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    #[must_use]
    pub fn show(&self) -> Vec<ReceiverShown> {
        let shown = self.0.values().map(|receiver| {
            let last = receiver.last();
            let (failed, error) = last.failed.unzip();
            let (receiver, least) = (receiver.name.clone(), receiver.least);
            ReceiverShown { receiver, least, delivered: last.delivered, failed, error }
        });
        shown.collect()
    }
}

impl Receiver {
    fn last(&self) -> Last {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends one message, and remembers how that went.
    async fn send(&self, message: &Message, now: Timestamp) -> Result<(), String> {
        let sending = async {
            match &self.way {
                Way::Mail(mail) => mail.send(message).await,
                Way::Webhook(webhook) => webhook.send(message).await,
                Way::Syslog(syslog) => syslog.send(message).await,
            }
        };
        let sent = tokio::time::timeout(PATIENCE, sending).await;
        let sent = sent.unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs())));
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match &sent {
            Ok(()) => *last = Last { delivered: Some(now), failed: None },
            Err(why) => last.failed = Some((now, why.clone())),
        }
        sent
    }
}

/// Tells everybody what is due, for ever.
pub(crate) async fn run(app: App) -> Infallible {
    let mut telling = JoinSet::new();
    for receiver in app.receivers.0.values() {
        telling.spawn(tell(App::clone(&app), Arc::clone(receiver)));
    }
    // They end with this server: dropping the set ends them.
    match telling.join_next().await {
        Some(Ok(never)) => match never {},
        Some(Err(error)) => {
            tracing::error!(%error, "a receiver of alerts is not told any more");
            std::future::pending().await
        }
        None => std::future::pending().await,
    }
}

async fn tell(app: App, receiver: Arc<Receiver>) -> Infallible {
    let mut revisions = app.follower.revisions();
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
    loop {
        revisions.mark_unchanged();
        if what_is_due(&app, &receiver).is_empty() {
            // Closed with the store, and then this task ends as well.
            let _ = tokio::time::timeout(LOOK_EVERY, revisions.changed()).await;
            continue;
        }
        // What goes wrong together is told together.
        tokio::time::sleep(app.config.alerts.group_for.0).await;
        let mut all = what_is_due(&app, &receiver);
        all.truncate(TOGETHER_MAX);
        if all.is_empty() {
            continue;
        }
        let now = app.now();
        let message = Message::about(&app.address.to_string(), now, &all);
        let sent = receiver.send(&message, now).await;
        note(&app, &receiver.name, &all, &sent, now).await;
        match sent {
            Ok(()) => backoff.reset(),
            Err(why) => {
                tracing::warn!(receiver = receiver.name, why, "alerts were not delivered");
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
    }
}

fn what_is_due(app: &App, receiver: &Receiver) -> Vec<Due> {
    let repeat = app.config.alerts.repeat_every.0;
    due(&app.view(), &receiver.name, receiver.least, repeat, app.now())
}

/// Writes down what the receiver knows now. What could not be written is told once more, which is better than never.
async fn note(app: &App, receiver: &str, all: &[Due], sent: &Result<(), String>, now: Timestamp) {
    for slice in all.chunks(NOTES_MAX) {
        if let Err(error) = note_some(app, receiver, slice, sent, now).await {
            tracing::warn!(receiver, error = %error.0, "what was told was not noted");
        }
    }
}

async fn note_some(
    app: &App,
    receiver: &str,
    all: &[Due],
    sent: &Result<(), String>,
    now: Timestamp,
) -> Answer<()> {
    let view = app.view();
    let mut txn = Txn::new();
    for due in all {
        let entry = view.alerts.get(&due.name).filter(|entry| entry.spec.is_some());
        let Some(entry) = entry else { continue };
        let mut report = entry.report.as_ref().map(|row| (*row.value).clone()).unwrap_or_default();
        let told = report.told.entry(receiver.to_owned()).or_default();
        *told = match sent {
            Ok(()) => Told {
                firing: Some(due.decision.since),
                is_resolved: due.what == due::What::Resolved,
                delivered: Some(now),
                failed: None,
            },
            Err(why) => Told { failed: Some(why.clone()), ..told.clone() },
        };
        // Receivers that the settings do not name any more know nothing.
        report.told.retain(|name, _| app.receivers.has(name));
        if entry.report.as_ref().is_some_and(|row| *row.value == report) {
            continue;
        }
        // Forgotten meanwhile, it must not come back as a report alone.
        let spec = Key::spec(Kind::Alert, &due.name);
        txn = txn.require(spec.to_string(), view.revision_of(&spec));
        txn = txn.put(Key::report(Kind::Alert, &due.name).to_string(), write::bytes(&report)?);
    }
    if !txn.writes.is_empty() {
        app.commit(txn).await?;
    }
    Ok(())
}

/// Sends a test message to one receiver or all, side by side.
pub(crate) async fn test(app: &App, wanted: Option<&str>) -> Vec<(String, Result<(), String>)> {
    let receivers = app.receivers.0.values().filter(|it| wanted.is_none_or(|wanted| wanted == it.name));
    let sending = receivers.map(|receiver| async {
        let now = app.now();
        let message = Message::test(&app.address.to_string(), now);
        (receiver.name.clone(), receiver.send(&message, now).await)
    });
    futures_util::future::join_all(sending).await
}

/// The whole chain in one line.
fn explain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = error.source();
    }
    text
}
