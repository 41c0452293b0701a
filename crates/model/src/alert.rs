//! Facts that need a person: what fires, who has seen it, and who was told.
//!
//! Control derives them in every round (`plan::alert`), people acknowledge and silence them, the server tells receivers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sterna_base::clock::Timestamp;
use utoipa::ToSchema;

/// What people did about an alert.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AlertSpec {
    /// Somebody cares for it. Counts for the firing that it was said of, not for a later one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acknowledged: Option<Acknowledged>,
    /// Nobody is told of it until then, however often it fires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub silenced_until: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Acknowledged {
    pub by: String,
    /// `since` of the firing that it is about.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
}

/// What fires, or fired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AlertDecision {
    /// The rule that it comes from, such as `host-unreachable`.
    pub rule: String,
    pub severity: Severity,
    /// What it is about, as `KIND/NAME`.
    pub object: String,
    /// What is wrong, and what it means.
    pub text: String,
    /// When it began to fire.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// What it is about is well again since then; it is over when that lasts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub ceased: Option<Timestamp>,
    /// When it was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub resolved: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something to look at when there is time.
    Warning,
    /// Something does not run, or will not come back by itself.
    Critical,
}

impl Severity {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        }
    }
}

/// Who was told of it, by receiver.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AlertReport {
    #[serde(default)]
    pub told: BTreeMap<String, Told>,
}

/// What one receiver knows of an alert.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Told {
    /// `since` of the firing that was last told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub firing: Option<Timestamp>,
    /// It was also told that it is over.
    #[serde(default)]
    pub is_resolved: bool,
    /// The last delivery that succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub delivered: Option<Timestamp>,
    /// Why the last try failed; absent after a success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// An alert in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum AlertState {
    Firing,
    /// Somebody cares for it.
    Acknowledged,
    Silenced,
    Resolved,
}

impl AlertState {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            AlertState::Firing => "firing",
            AlertState::Acknowledged => "acknowledged",
            AlertState::Silenced => "silenced",
            AlertState::Resolved => "resolved",
        }
    }
}

/// What an alert is, computed from what fires and what people said.
#[must_use]
pub fn state(spec: &AlertSpec, decision: &AlertDecision, now: Timestamp) -> AlertState {
    if decision.resolved.is_some() {
        AlertState::Resolved
    } else if spec.silenced_until.is_some_and(|until| now < until) {
        AlertState::Silenced
    } else if spec.acknowledged.as_ref().is_some_and(|said| said.since == decision.since) {
        AlertState::Acknowledged
    } else {
        AlertState::Firing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    #[test]
    fn what_people_said_counts_for_the_firing_it_was_said_of() {
        let mut decision = AlertDecision {
            rule: "host-unreachable".into(),
            severity: Severity::Critical,
            object: "host/a1".into(),
            text: String::new(),
            since: at(10),
            ceased: None,
            resolved: None,
        };
        let mut spec = AlertSpec::default();
        assert_eq!(state(&spec, &decision, at(20)), AlertState::Firing);
        spec.acknowledged = Some(Acknowledged { by: "ann".into(), since: at(10) });
        assert_eq!(state(&spec, &decision, at(20)), AlertState::Acknowledged);
        decision.resolved = Some(at(30));
        assert_eq!(state(&spec, &decision, at(40)), AlertState::Resolved);
        (decision.since, decision.resolved) = (at(50), None);
        assert_eq!(state(&spec, &decision, at(60)), AlertState::Firing);
        spec.silenced_until = Some(at(70));
        assert_eq!(state(&spec, &decision, at(60)), AlertState::Silenced);
        assert_eq!(state(&spec, &decision, at(70)), AlertState::Firing);
    }
}
