//! Changes told in order, from a revision on.

use std::sync::Arc;

use crate::error::Error;
use crate::store::{BoxFuture, Revision};

/// What one commit changed under the watched prefix. A commit is never split over two batches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    pub revision: Revision,
    /// In ascending order of the keys; never empty.
    pub changes: Vec<Change>,
}

/// A key with its new value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub key: String,
    /// `None`: the key was deleted.
    pub value: Option<Arc<[u8]>>,
    /// The commit that made the key exist; of a deleted key, the one that had made it.
    pub created: Revision,
}

/// A running watch. Dropping it ends it.
///
/// It holds no backlog: each wait reads on from the store's log, so a slow reader costs nothing, until
/// compaction overtakes it.
pub struct Watch {
    source: Box<dyn Source>,
}

/// What a back end implements for its watches.
pub trait Source: Send {
    /// See [`Watch::next`].
    fn next(&mut self) -> BoxFuture<'_, Result<Batch, Error>>;
}

impl Watch {
    pub fn new(source: impl Source + 'static) -> Self {
        Self { source: Box::new(source) }
    }

    /// Waits for the next batch. Dropping the future loses nothing, so it may stand in a `select!`.
    ///
    /// [`Error::Compacted`] says that the reader was too slow: read a snapshot and watch again. After
    /// [`Error::Closed`] nothing more comes.
    pub async fn next(&mut self) -> Result<Batch, Error> {
        self.source.next().await
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}
