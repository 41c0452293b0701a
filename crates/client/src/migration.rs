//! Moving a running VM: progress, result, cancel.

use serde_json::{Value, json};
use sterna_model::meta::Name;
use sterna_model::migration::{MigrationDecision, MigrationSpec, Progress};

use crate::Client;
use crate::error::Result;
use crate::object::{Answer, Api, Object, Resource};

#[derive(Debug)]
pub struct Migrations;

impl Resource for Migrations {
    const PATH: &'static str = "migrations";
    const KIND: &'static str = "migration";
    type Spec = MigrationSpec;
    type Decision = MigrationDecision;
    type Report = Value;
    type Status = Value;
}

pub type Migration = Object<MigrationSpec, MigrationDecision, Value, Value>;

impl Client {
    #[must_use]
    pub fn migrations(&self) -> Api<'_, Migrations> {
        Api::new(self)
    }
}

impl Api<'_, Migrations> {
    pub async fn cancel(&self, name: &Name) -> Result<Answer<Migration>> {
        self.ask(name, "cancel", &json!({})).await
    }
}

/// The numbers of a transfer that runs now.
#[must_use]
pub fn progress(migration: &Migration) -> Option<Progress> {
    serde_json::from_value(migration.more.get("progress")?.clone()).ok()
}

#[must_use]
pub fn has_ended(migration: &Migration) -> bool {
    migration.decision.as_ref().is_some_and(|decision| decision.phase.has_ended())
}
