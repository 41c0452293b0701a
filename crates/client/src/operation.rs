//! Long work, and waiting for it.

use std::time::Duration;

use serde_json::Value;
use sterna_base::units::Span;
use sterna_model::meta::Name;
use sterna_model::operation::{OperationDecision, OperationSpec, OperationState};

use crate::Client;
use crate::error::Result;
use crate::object::{Api, Object, Resource};

/// Long work that a user can wait for.
#[derive(Debug)]
pub struct Operations;

impl Resource for Operations {
    const PATH: &'static str = "operations";
    const KIND: &'static str = "operation";
    type Spec = OperationSpec;
    type Decision = OperationDecision;
    type Report = Value;
    type Status = OperationState;
}

pub type Operation = Object<OperationSpec, OperationDecision, Value, OperationState>;

impl Client {
    #[must_use]
    pub fn operations(&self) -> Api<'_, Operations> {
        Api::new(self)
    }
}

/// How long one long poll lasts; the server answers earlier when the operation ends.
const POLL: Span = Span::from_secs(30);
/// What an answer may take beyond the poll's own time.
const SLACK: Duration = Duration::from_secs(15);

impl Api<'_, Operations> {
    /// Waits until the operation has ended, however long that takes. Drop the future to stop waiting.
    pub async fn wait(&self, name: &Name) -> Result<Operation> {
        loop {
            let query = [("wait", POLL.to_string())];
            let operation: Operation =
                self.client.get_within(&Self::path(name), &query, POLL.0 + SLACK).await?;
            if has_ended(&operation) {
                return Ok(operation);
            }
        }
    }
}

/// The state: from the status, or from the decision once it ended.
#[must_use]
pub fn state(operation: &Operation) -> Option<&OperationState> {
    operation.status.as_ref().or(operation.decision.as_ref().map(|decision| &decision.state))
}

#[must_use]
pub fn has_ended(operation: &Operation) -> bool {
    matches!(state(operation), Some(OperationState::Succeeded { .. } | OperationState::Failed { .. }))
}
