//! What every handler needs: the store, the newest view of it, the history, and what is kept in memory.

use std::sync::Arc;

use sterna_base::clock::{Clock, SystemClock, Timestamp};
use sterna_model::event::Event;
use sterna_plan::View;
use sterna_store::{History, Store, Txn};

use crate::alerts::Receivers;
use crate::auth::Strangers;
use crate::ca::Ca;
use crate::config::Config;
use crate::error::Answer;
use crate::follow::Follower;
use crate::gateway::Gateway;
use crate::importer::Importer;
use crate::samples::Samples;

/// Cheap to clone; all clones are the same server.
pub type App = Arc<Parts>;

pub struct Parts {
    pub config: Config,
    pub store: Arc<dyn Store>,
    pub history: Arc<History>,
    pub follower: Arc<Follower>,
    pub samples: Samples,
    pub gateway: Gateway,
    pub importer: Importer,
    pub ca: Ca,
    pub strangers: Strangers,
    pub receivers: Receivers,
    /// Where the first listener is bound.
    pub address: std::net::SocketAddr,
    /// The document that `GET /v1/openapi.json` answers.
    pub openapi: std::sync::OnceLock<String>,
}

impl Parts {
    #[must_use]
    pub fn now(&self) -> Timestamp {
        SystemClock.now()
    }

    #[must_use]
    pub fn view(&self) -> Arc<View> {
        self.follower.view()
    }

    /// Commits, and waits until readers of this server see it.
    pub async fn commit(&self, txn: Txn) -> Answer<u64> {
        let revision = self.store.commit(txn).await?;
        self.follower.reached(revision).await;
        Ok(revision)
    }

    /// Records a fact. Queued at once; a failing history is logged and never fails a request.
    pub fn record(self: &Arc<Self>, event: &Event) {
        let appended = self.history.append_event(sterna_store::history::Event {
            time_ms: event.time.as_millis(),
            kind: event.what.clone(),
            object_kind: event.kind.clone(),
            object: event.name.clone(),
            message: event.why.clone(),
            why: Some(event.why.clone()),
            operation: None,
        });
        tokio::spawn(async move {
            if let Err(error) = appended.await {
                tracing::warn!(%error, "an event was not recorded");
            }
        });
    }
}
