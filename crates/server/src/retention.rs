//! Forgets old events, so that the history does not grow for ever. Never touches the audit record.

use std::convert::Infallible;
use std::time::Duration;

use sterna_store::history::Trim;
use tokio::time::MissedTickBehavior;

use crate::app::App;

/// Days are kept; an hour more does not matter, and each pass is small.
const EVERY: Duration = Duration::from_secs(3600);

/// Forgets once at the start and every hour after it.
pub async fn run(app: App) -> Infallible {
    let mut passes = tokio::time::interval(EVERY);
    passes.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        passes.tick().await;
        match app.history.trim(due(&app)).await {
            Ok(0) => {}
            Ok(events) => tracing::info!(events, "old events were forgotten"),
            Err(error) => tracing::warn!(%error, "old events were not forgotten"),
        }
    }
}

/// What is too old now. Events carry this server's clock.
fn due(app: &App) -> Trim {
    let kept = i64::try_from(app.config.events_kept.as_millis()).unwrap_or(i64::MAX);
    Trim { before_ms: Some(app.now().as_millis().saturating_sub(kept)), keep: None }
}
