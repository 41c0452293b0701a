//! What travels between server and agent, and between agent and shim. JSON everywhere; versioned and additive.
//!
//! Server and agent: the agent dials the server (mutual TLS, HTTP/2) and keeps two things going:
//!
//! - `GET  /agent/v1/assignment`: an endless NDJSON stream of [`down::Down`] lines;
//! - `POST /agent/v1/report`: a JSON array of [`up::Up`]; answered when the store has it for good.
//!
//! Joining is the one request without a client certificate: `POST /agent/v1/join` ([`join`]).

/// All that is decided about one host.
pub mod assignment;
/// Lines from server to agent.
pub mod down;
/// A machine becomes a host.
pub mod join;
/// The agent's conversation with a VM's shim, and the files both keep.
pub mod shim;
/// Messages from agent to server.
pub mod up;

/// Grows with every change that an older peer could not ignore.
pub const VERSION: u32 = 1;
