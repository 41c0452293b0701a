//! Where Sterna keeps what it knows: keys and bytes under one revision counter, and a history for people.
//!
//! The store knows nothing of hosts or virtual machines. It promises four things: a commit that was answered
//! survives any crash; commits have one order, the revision; a transaction happens whole or not at all, and
//! only if what it was computed from still holds; a watch tells every change in order, without gap or repeat.
//!
//! Never decodes a value, never retries a conflict, never talks to another machine.

/// A suite that every back end must pass: call [`conformance::all`] from its tests.
pub mod conformance;
/// Copies of files in use, and stores that go on from one.
pub mod copy;
mod disk;
/// What a call may answer instead of what was asked, one variant per decision of the caller.
pub mod error;
/// Events and the audit record: an append-only local file outside the store.
pub mod history;
/// Leadership: a time-bound right with an epoch that grows with every new holder.
pub mod lease;
/// The fake store for simulation and tests, with faults of watches on demand.
pub mod memory;
/// The embedded store: one SQLite file, one server.
pub mod sqlite;
/// The port: what every back end offers.
pub mod store;
/// A transaction: what must hold and what to write, with limits.
pub mod txn;
/// Brings an older stored format to the one this version writes.
pub mod upgrade;
/// Changes told in order, from a revision on.
pub mod watch;

pub use error::{Error, OpenError};
pub use history::History;
pub use lease::{Clock, Lease};
pub use memory::Memory;
pub use sqlite::Sqlite;
pub use store::{BoxFuture, Entry, Revision, Snapshot, Store};
pub use txn::{Compare, Txn, Write};
pub use watch::{Batch, Change, Watch};
