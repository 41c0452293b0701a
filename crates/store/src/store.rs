//! The port: what every back end offers, and what its answers look like.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;
use crate::lease::Lease;
use crate::txn::Txn;
use crate::watch::Watch;

/// Counts the commits that changed something; 0 is the empty store.
pub type Revision = u64;

/// A future that makes [`Store`] usable as `dyn Store`.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A key with its value at some revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub value: Arc<[u8]>,
    /// The commit that made the key exist (again).
    pub created: Revision,
    /// The commit that wrote this value; what [`Txn::require`] compares.
    pub modified: Revision,
}

/// All entries under a prefix, as they were together at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    pub revision: Revision,
    /// In ascending order of the keys' bytes.
    pub entries: Vec<Entry>,
}

/// A linearizable map from keys to bytes with one revision counter.
///
/// Reads see every commit answered before they were asked. Dropping a future does not take its request back:
/// a dropped commit may still happen.
pub trait Store: Send + Sync + 'static {
    /// The present value of one key.
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, Error>>;

    /// All entries whose key starts with `prefix` (`""`: all), now or as they were `at` a revision.
    ///
    /// Answers [`Error::Compacted`] or [`Error::Future`] when that revision cannot be shown.
    fn range<'a>(&'a self, prefix: &'a str, at: Option<Revision>) -> BoxFuture<'a, Result<Snapshot, Error>>;

    /// Does all writes of the transaction if all its compares hold, else none; durable before it answers.
    ///
    /// Answers the revision of the commit, or the present one when there was nothing to change. A put counts as
    /// a change also when the bytes are the same; a delete of an absent key does not.
    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Revision, Error>>;

    /// Every change under `prefix` made at revision `from` or later, past ones first, then as they happen.
    ///
    /// To follow a snapshot without a gap, watch from `snapshot.revision + 1`.
    fn watch<'a>(&'a self, prefix: &'a str, from: Revision) -> BoxFuture<'a, Result<Watch, Error>>;

    /// Forgets what only revisions before `before` need: later reads at them, and watches from them, answer
    /// [`Error::Compacted`].
    fn compact(&self, before: Revision) -> BoxFuture<'_, Result<(), Error>>;

    /// The revision of the last commit.
    fn revision(&self) -> BoxFuture<'_, Result<Revision, Error>>;

    /// Takes the lease `name` for `ttl`, in a new epoch, unless another holder has it ([`Error::Held`]).
    ///
    /// The epoch is a revision of its own, so it is higher than that of any earlier holder and of any earlier
    /// commit. The same holder asking again deposes its former self. Count `ttl` from before the call.
    fn campaign<'a>(
        &'a self,
        name: &'a str,
        holder: &'a str,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Lease, Error>>;

    /// Starts the lease's time anew, or [`Error::Deposed`] once it ran out, even when nobody else took it.
    fn keep<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<(), Error>>;

    /// Gives the lease back, so that another need not wait for its end. Giving back a lost lease is fine.
    fn resign<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<(), Error>>;

    /// Who holds the lease now.
    fn leader<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Lease>, Error>>;
}
