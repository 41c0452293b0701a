//! Errors: one variant per decision that a caller can take.

use std::path::PathBuf;

use crate::store::Revision;

/// Why a call on an open store was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A compared key changed. Read again and decide again. Revision 0 means "absent". Nothing was written.
    #[error("{key} is at revision {found}, not {expected}")]
    Conflict { key: String, expected: Revision, found: Revision },
    /// The lease was lost, resigned or taken over. Stop leading. Nothing was written.
    #[error("lease {name} is no longer held in epoch {epoch}")]
    Deposed { name: String, epoch: Revision },
    /// Another holds the lease. Try again later.
    #[error("lease {name} is held by {holder} in epoch {epoch}")]
    Held { name: String, holder: String, epoch: Revision },
    /// The past that was asked for is gone. Read the present and watch from there.
    #[error("revisions before {oldest} are compacted")]
    Compacted { oldest: Revision },
    /// The revision that was asked for does not exist yet.
    #[error("revision {requested} is not reached yet, the store is at {revision}")]
    Future { requested: Revision, revision: Revision },
    /// The request breaks a rule or limit of [`crate::txn`]. Asking again is useless.
    #[error("{reason}")]
    Invalid { reason: String },
    /// No space left. Nothing was written; asking again works once there is space.
    #[error("no space left for the store")]
    Full,
    /// A stored row does not match its checksum. The other rows are still served.
    #[error("stored value of {key} at revision {revision} is damaged")]
    Damaged { key: String, revision: Revision },
    /// The call failed and changed nothing; the store goes on.
    #[error("store failed: {reason}")]
    Failed { reason: String },
    /// The store ended. What was in flight may or may not have happened: open the store again to know.
    #[error("store is closed: {reason}")]
    Closed { reason: String },
}

/// Why a file could not be opened as a store or a history.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("{} is open in process {pid}", path.display())]
    Locked { path: PathBuf, pid: u32 },
    /// The file is something else. It was not touched.
    #[error("{} is not a file of this kind made by Sterna", path.display())]
    Foreign { path: PathBuf },
    /// A newer Sterna wrote it. It was not touched.
    #[error("{} has stored format {found}, this version knows formats up to {known}", path.display())]
    Newer { path: PathBuf, found: u32, known: u32 },
    /// Its structure is broken.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged { path: PathBuf, reason: String },
    /// It lacks commits that were answered as durable: a damaged log, or an older copy put in place.
    #[error(
        "{} ends at revision {found}, but revision {acknowledged} was acknowledged; \
         after restoring a backup on purpose, remove {}.lock",
        path.display(), path.display()
    )]
    Behind { path: PathBuf, found: Revision, acknowledged: Revision },
    #[error("cannot use {}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("cannot use the database {}", path.display())]
    Database { path: PathBuf, source: rusqlite::Error },
}
