//! Connected or silent: what the host row says of the line to its agent.
//!
//! Silence says nothing about a host's VMs; nothing but people and patience may follow from it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use sterna_model::event::Event;
use sterna_model::host::{HostReport, LinkState};
use sterna_model::key::{Key, Kind};
use sterna_model::meta::Name;
use sterna_store::Txn;

use crate::app::App;
use crate::error::Answer;
use crate::write;

/// An agent that restarts is back within this.
pub const SILENT_AFTER: Duration = Duration::from_secs(3);
/// After a start of the server agents get this long to dial again.
const AFTER_START: Duration = Duration::from_secs(5);

/// Marks the host silent if no agent of it is connected `after` this time.
pub fn watch_silence(app: &App, host: &Name, after: Duration) {
    let (app, host) = (App::clone(app), host.clone());
    tokio::spawn(async move {
        tokio::time::sleep(after).await;
        if let Err(error) = silence(&app, &host).await {
            tracing::warn!(%host, error = %error.0, "the host was not marked silent");
        }
    });
}

/// After a start every host that was connected before has to show itself again.
pub fn watch_all(app: &App) {
    for host in app.view().hosts.keys() {
        watch_silence(app, host, AFTER_START);
    }
}

async fn silence(app: &App, host: &Name) -> Answer<()> {
    let line = app.gateway.line(host);
    let _order = line.order.lock().await;
    if line.is_connected() {
        return Ok(());
    }
    line.inventory.store(false, Ordering::Release);
    let view = app.view();
    let Some(entry) = view.hosts.get(host) else {
        app.gateway.forget(host);
        return Ok(());
    };
    let Some(report) = entry.report.as_ref().filter(|row| row.link == LinkState::Connected) else {
        return Ok(());
    };
    let silent = HostReport { link: LinkState::Silent, since: app.now(), ..(*report.value).clone() };
    let key = Key::report(Kind::Host, host);
    let spec = Key::spec(Kind::Host, host);
    let txn = Txn::new()
        .require(spec.to_string(), view.revision_of(&spec))
        .put(key.to_string(), write::bytes(&silent)?);
    app.commit(txn).await?;
    record(app, host, "silent", "no word from its agent; nothing is known of its VMs");
    Ok(())
}

pub fn record(app: &App, host: &Name, what: &str, why: &str) {
    app.record(&Event {
        time: app.now(),
        kind: Kind::Host.as_str().to_owned(),
        name: host.to_string(),
        what: what.to_owned(),
        why: why.to_owned(),
    });
}
