//! The roles that run until they are told to end.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use sterna_base::clock::SystemClock;
use sterna_base::log;
use sterna_cli::machine::RunArgs;
use sterna_control::{Candidate, Sink};
use sterna_model::event::Event;
use sterna_server::Config;
use sterna_store::{History, Sqlite, Store};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{config, guard};

/// Opens what a server keeps: the store and the history.
pub fn open(config: &Config) -> Result<(Arc<dyn Store>, Arc<History>)> {
    sterna_server::init::folders(config)?;
    let store = Sqlite::open(&config.store_path())
        .context("open the store; is a server running on it already? `sterna server status`")?;
    let history = History::open(&config.history_path()).context("open the history")?;
    Ok((Arc::new(store), Arc::new(history)))
}

/// The API and control, side by side: each ends when the other does.
pub async fn server(args: &RunArgs) -> Result<()> {
    log::init(log::Format::Text);
    let path = args.settings.clone().unwrap_or_else(|| PathBuf::from(config::SERVER));
    let config = Config::read(&path)?;
    let (store, history) = open(&config)?;
    let cancel = cancelled_by_signals()?;
    serve(config, store, history, cancel).await
}

pub async fn serve(
    config: Config,
    store: Arc<dyn Store>,
    history: Arc<History>,
    cancel: CancellationToken,
) -> Result<()> {
    // What runs goes on running: without it hosts only get no new leases.
    let fencer = guard::fencer(&config).unwrap_or_else(|error| {
        tracing::error!(error = format!("{error:#}"), "guards are not spoken to: no host gets a lease");
        None
    });
    let deciding = sterna_control::run(
        Arc::clone(&store),
        Arc::new(SystemClock),
        Candidate { name: format!("server-{}", std::process::id()), fencer },
        sink(Arc::clone(&history)),
        cancel.clone(),
    );
    let serving = sterna_server::run(config, store, history, cancel.clone());
    let deciding = async {
        let ended = deciding.await.context("control");
        cancel.cancel();
        ended
    };
    let serving = async {
        let ended = serving.await.context("server");
        cancel.cancel();
        ended
    };
    let (decided, served) = tokio::join!(deciding, serving);
    served.and(decided)
}

/// Where the reasons of decisions go. Queued at once; a history that fails is logged and holds nothing up.
fn sink(history: Arc<History>) -> Sink {
    Arc::new(move |event: Event| {
        let appended = history.append_event(sterna_store::history::Event {
            time_ms: event.time.as_millis(),
            kind: event.what,
            object_kind: event.kind,
            object: event.name,
            message: event.why.clone(),
            why: Some(event.why),
            operation: None,
        });
        tokio::spawn(async move {
            if let Err(error) = appended.await {
                tracing::warn!(%error, "an event was not recorded");
            }
        });
    })
}

/// Cancelled by SIGTERM and SIGINT.
pub fn cancelled_by_signals() -> Result<CancellationToken> {
    let (mut term, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let cancel = CancellationToken::new();
    let told = cancel.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("asked to end");
        told.cancel();
    });
    Ok(cancel)
}

/// The agent, until it is told to end; VMs run on.
pub async fn agent(args: &RunArgs) -> Result<()> {
    log::init(log::Format::Text);
    let path = args.settings.clone().unwrap_or_else(|| PathBuf::from(config::AGENT));
    let config = sterna_agent::config::Config::read(&path)?;
    sterna_agent::run(config, cancelled_by_signals()?).await
}
