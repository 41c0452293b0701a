//! Lines from server to agent.

use serde::{Deserialize, Serialize};
use sterna_model::meta::Name;
use uuid::Uuid;

use crate::assignment::Assignment;

/// One NDJSON line. An agent ignores lines of a type it does not know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Down {
    /// Converge on this.
    Assignment(Box<Assignment>),
    /// Dial back `GET /agent/v1/attach/TICKET` with `Upgrade: sterna-stream` and connect it to this end of the VM.
    Attach { ticket: String, vm: Name, uid: Uuid, end: End },
    /// The store came back from a backup and does not know what is here: let go of every order, go on with what is here as it
    /// is, and tell all of it in an inventory that says so.
    Hold { incarnation: Uuid },
    /// Nothing to say; proves that the line is alive. Sent every 5 s.
    Alive,
}

/// What an attached stream is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// The serial console.
    Serial,
    /// The VNC server.
    Vnc,
}
