//! Keeps a decoded view of the store up to date, and shares it with readers.
//!
//! Readers get a pointer to an immutable view. The follower changes it in place while nobody holds it and copies it
//! (one pointer a row) when somebody does. Never writes to the store.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use sterna_plan::View;
use sterna_store::{Batch, Error, Revision, Store};
use tokio::sync::watch;

/// How long a request waits to see its own write. The watch tells within milliseconds; past this the answer may be old.
const PATIENCE: Duration = Duration::from_secs(2);
/// Pause before the store is read again after a failure.
const RETRY: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub struct Follower {
    view: RwLock<Arc<View>>,
    revision: watch::Sender<Revision>,
}

impl Follower {
    /// Reads the whole store once; [`Follower::follow`] keeps it fresh from there.
    pub async fn open(store: &dyn Store) -> Result<Self, Error> {
        let view = load(store).await?;
        Ok(Self { revision: watch::Sender::new(view.revision), view: RwLock::new(Arc::new(view)) })
    }

    /// The newest view. Cheap; keep it only as long as one request needs it.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Told after each change of the view.
    #[must_use]
    pub fn revisions(&self) -> watch::Receiver<Revision> {
        self.revision.subscribe()
    }

    /// Waits until the view shows `revision`, so that a caller sees its own write.
    pub async fn reached(&self, revision: Revision) {
        let mut revisions = self.revision.subscribe();
        let reached = revisions.wait_for(|now| *now >= revision);
        if tokio::time::timeout(PATIENCE, reached).await.is_err() {
            tracing::warn!(revision, "the view lags behind the store");
        }
    }

    /// Applies changes as they happen until the store is closed.
    pub async fn follow(&self, store: &dyn Store) {
        loop {
            match self.apply_all(store).await {
                Error::Closed { reason } => {
                    tracing::error!(reason, "the store is closed");
                    return;
                }
                error => tracing::warn!(%error, "reading the store anew"),
            }
            tokio::time::sleep(RETRY).await;
            match load(store).await {
                Ok(view) => self.replace(view),
                Err(error) => tracing::warn!(%error, "cannot read the store"),
            }
        }
    }

    async fn apply_all(&self, store: &dyn Store) -> Error {
        let from = *self.revision.borrow() + 1;
        let mut watch = match store.watch("", from).await {
            Ok(watch) => watch,
            Err(error) => return error,
        };
        loop {
            match watch.next().await {
                Ok(batch) => self.apply(&batch),
                Err(error) => return error,
            }
        }
    }

    fn apply(&self, batch: &Batch) {
        {
            let mut shared = self.view.write().unwrap_or_else(PoisonError::into_inner);
            let view = Arc::make_mut(&mut shared);
            for change in &batch.changes {
                view.apply(&change.key, change.value.as_deref(), batch.revision);
            }
            view.revision = view.revision.max(batch.revision);
        }
        self.revision.send_replace(batch.revision);
    }

    fn replace(&self, view: View) {
        let revision = view.revision;
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(view);
        self.revision.send_replace(revision);
    }
}

async fn load(store: &dyn Store) -> Result<View, Error> {
    let snapshot = store.range("", None).await?;
    let mut view = View::default();
    for entry in &snapshot.entries {
        view.apply(&entry.key, Some(&entry.value), entry.modified);
    }
    view.revision = snapshot.revision;
    Ok(view)
}
