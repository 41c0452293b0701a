//! What a planner wants written, what it was computed from, and why.

use serde::Serialize;
use sterna_base::clock::Timestamp;
use sterna_model::event::Event;
use sterna_model::key::Key;

use crate::view::{PROVISIONAL, View};

/// One transaction. Commits only if every compared row still has the revision it was computed from.
#[derive(Debug, Clone, PartialEq)]
pub struct Action {
    pub compares: Vec<(Key, u64)>,
    pub puts: Vec<(Key, serde_json::Value)>,
    pub deletes: Vec<Key>,
    pub event: Event,
}

impl Action {
    #[must_use]
    pub fn new(now: Timestamp, about: &Key, what: &str, why: impl Into<String>) -> Self {
        let event = Event {
            time: now,
            kind: about.kind.as_str().to_owned(),
            name: about.name.to_string(),
            what: what.to_owned(),
            why: why.into(),
        };
        Self { compares: Vec::new(), puts: Vec::new(), deletes: Vec::new(), event }
    }

    /// The row was read: it must not have changed.
    #[must_use]
    pub fn compare(mut self, view: &View, key: Key) -> Self {
        if !self.compares.iter().any(|(known, _)| *known == key) {
            self.compares.push((key.clone(), view.revision_of(&key)));
        }
        self
    }

    /// Writes a row, comparing what it replaces.
    ///
    /// # Panics
    /// When a model type cannot be written as JSON, which its derived serialiser rules out.
    #[must_use]
    pub fn put(self, view: &View, key: Key, value: &impl Serialize) -> Self {
        let value = serde_json::to_value(value).expect("model types are plain data");
        let mut action = self.compare(view, key.clone());
        action.puts.push((key, value));
        action
    }

    #[must_use]
    pub fn delete(self, view: &View, key: Key) -> Self {
        let mut action = self.compare(view, key.clone());
        action.deletes.push(key);
        action
    }

    /// Rests on rows that this round has written and the store has not: it has to wait for the next round.
    #[must_use]
    pub fn is_provisional(&self) -> bool {
        self.compares.iter().any(|(_, revision)| *revision == PROVISIONAL)
    }

    /// Shows later planners what this one decided.
    pub fn apply(&self, view: &mut View) {
        for (key, value) in &self.puts {
            view.apply(&key.to_string(), Some(value.to_string().as_bytes()), PROVISIONAL);
        }
        for key in &self.deletes {
            view.apply(&key.to_string(), None, PROVISIONAL);
        }
    }
}
