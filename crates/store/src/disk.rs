//! What the store and the history share: one SQLite file that belongs to one process.

/// Makes sure that one process at a time owns a file, and remembers what was acknowledged.
pub(crate) mod lock;
/// Opens a file after making sure that it is ours, whole and of a version we know.
pub(crate) mod open;
/// Read connections, each in a thread.
pub(crate) mod readers;
/// The one thread that writes.
pub(crate) mod writer;
