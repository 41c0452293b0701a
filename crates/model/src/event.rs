//! Facts recorded for people, each with a reason.

use serde::{Deserialize, Serialize};
use sterna_base::clock::Timestamp;
use utoipa::ToSchema;

/// One line of history about one object: "why is this VM here?" is answered from these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    #[schema(value_type = String, format = DateTime)]
    pub time: Timestamp,
    /// Kind of the object, such as `vm`.
    pub kind: String,
    pub name: String,
    /// A short stable word such as `placed`, `migrated`, `restarted`.
    pub what: String,
    /// The reason, a sentence.
    pub why: String,
}
