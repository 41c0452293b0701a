//! Backups of the server: one file with everything that a new server machine needs.
//!
//! ```text
//! STERNA BACKUP 1
//! {"format":1, "taken":..., "revision":..., "incarnation":..., "parts":[{"name":"store.db", "bytes":..., "sha256":...}, ...]}
//! SHA-256 of the line above
//! the parts, one after the other, each compressed (zstd)
//! ```
//!
//! The parts are a closed set ([`Part`]): no path is ever made from what a file says. Images are not in it: they are large, and
//! can be imported again.

mod container;
/// Which backups stay.
mod keep;
/// Puts one back.
pub mod restore;
/// Takes them while the server runs.
pub(crate) mod schedule;
/// Takes one.
pub mod take;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sterna_base::clock::Timestamp;
use uuid::Uuid;

pub use restore::{Asked, Restored, restore};
pub use take::{Taken, take};

/// The name of a backup taken then, as the schedule gives it.
#[must_use]
pub fn file_name(taken: Timestamp) -> String {
    keep::name(taken)
}

/// The format that this version writes, and the newest that it reads.
pub const FORMAT: u32 = 1;

/// What a backup holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Part {
    #[serde(rename = "store.db")]
    Store,
    #[serde(rename = "history.db")]
    History,
    #[serde(rename = "ca.pem")]
    CaCertificate,
    #[serde(rename = "ca.key")]
    CaKey,
    #[serde(rename = "server.toml")]
    Settings,
}

impl Part {
    /// Its file's name, in the data directory and in the manifest.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Part::Store => "store.db",
            Part::History => "history.db",
            Part::CaCertificate => "ca.pem",
            Part::CaKey => "ca.key",
            Part::Settings => "server.toml",
        }
    }

    /// Without these there is no server.
    const NEEDED: [Part; 4] = [Part::Store, Part::CaCertificate, Part::CaKey, Part::Settings];
}

/// What a backup says of itself, before its parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub format: u32,
    /// The version of Sterna that took it.
    pub sterna: String,
    pub taken: Timestamp,
    /// The store's revision that it shows.
    pub revision: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<Uuid>,
    pub parts: Vec<PartEntry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartEntry {
    pub name: Part,
    /// Of the part itself.
    pub bytes: u64,
    /// As it lies in the file.
    pub stored: u64,
    /// Of the part itself, lower-case hexadecimal.
    pub sha256: String,
}

/// Why a backup was not taken or not put back. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot use {}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{} exists already", path.display())]
    Exists { path: PathBuf },
    #[error("{} is not a backup of a Sterna server", path.display())]
    Foreign { path: PathBuf },
    #[error("{} has backup format {found}, this version knows formats up to {known}", path.display())]
    Newer { path: PathBuf, found: u32, known: u32 },
    #[error("{} is damaged: {why}", path.display())]
    Damaged { path: PathBuf, why: String },
    #[error("{} is cut off: {has} bytes of {needs} are there", path.display())]
    Truncated { path: PathBuf, has: u64, needs: u64 },
    /// A data directory with something in it is replaced only when told so.
    #[error("{} is not empty", path.display())]
    NotEmpty { path: PathBuf },
    #[error("cannot use the store")]
    Store(#[from] sterna_store::OpenError),
    #[error("cannot use the CA")]
    Ca(#[from] crate::ca::Error),
    #[error("the settings in {} cannot be used: {why}", path.display())]
    Settings { path: PathBuf, why: String },
}

impl Error {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Error::NotEmpty { .. } => {
                Some("look at what is there; with --replace it is put aside, and its images are kept")
            }
            Error::Damaged { .. } | Error::Truncated { .. } => {
                Some("take another backup file; nothing was changed")
            }
            Error::Newer { .. } => Some("use the version of sterna that took it, or a newer one"),
            Error::Store(sterna_store::OpenError::Locked { .. }) => {
                Some("end the server that runs on it first")
            }
            _ => None,
        }
    }
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Io { path, source }
}
