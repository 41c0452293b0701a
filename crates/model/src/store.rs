//! The store as an object of its own: which life of it this is, how it came back, and when it was last copied.
//!
//! There is one, called [`MAIN`]. A store that was restored from a backup is in recovery mode until its decision says that
//! this incarnation has recovered: see docs/flows/server-restore.md.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use sterna_base::clock::Timestamp;
use sterna_base::units::Span;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::meta::Name;

/// The name of the one object of its kind.
pub const MAIN: &str = "main";
/// The most VMs without an object that are remembered as given up.
pub const RELEASED_MAX: usize = 10_000;
/// The most findings that are kept; the rest is counted.
pub const FINDINGS_MAX: usize = 1000;

/// By so much revisions, hosts' lease epochs and versions of voters jump when a store is restored: more than are given between two
/// backups, at a thousand commits a second for eleven days. None from before comes again, so that neither an `If-Match` nor
/// a proof about one is taken for one about another.
pub const SKIPPED_BY_RESTORE: u64 = 1_000_000_000;

/// Written when the store is made and when it is restored; people add hosts that are not waited for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoreSpec {
    /// Another one after each restore: what was told to an earlier one is no word to this one.
    pub incarnation: Uuid,
    /// Absent: this store is as it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<Restored>,
    /// Hosts that a person said are not waited for.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub without: BTreeSet<Name>,
    /// VMs that the store does not know and that a person gave up: what hosts have of them is ended.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub released: BTreeSet<Uuid>,
}

impl StoreSpec {
    /// Of a store that begins.
    #[must_use]
    pub fn new(incarnation: Uuid) -> Self {
        Self { incarnation, restored: None, without: BTreeSet::new(), released: BTreeSet::new() }
    }
}

/// From what the store came back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Restored {
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// When the backup was taken.
    #[schema(value_type = String, format = DateTime)]
    pub taken: Timestamp,
    /// The revision that the backup shows.
    pub revision: u64,
    /// The incarnation that it was taken from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<Uuid>,
}

/// How a recovery went; written by control.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoreDecision {
    /// The one that this is about.
    pub incarnation: Uuid,
    /// When every host had told, or was not waited for.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// Absent: VMs are being settled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub ended: Option<Timestamp>,
    /// What the store said and the hosts did not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
    /// Findings that are not kept.
    #[serde(default)]
    pub more: usize,
}

/// One difference between the store and the hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Finding {
    pub vm: Name,
    /// What the store said.
    pub stored: String,
    pub found: String,
    pub done: String,
}

/// How the server's backups are; written by the server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoreReport {
    /// The newest backup; absent: there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<Backup>,
    /// How often one is taken; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub every: Option<Span>,
    /// Since when this is asked of the server.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// Why the last try made none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// One backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Backup {
    #[schema(value_type = String, format = DateTime)]
    pub taken: Timestamp,
    pub file: String,
    pub bytes: u64,
}
