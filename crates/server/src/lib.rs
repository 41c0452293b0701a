//! The server: the API for people, the gateway for agents, the importer for images, one TLS port for all of it.
//!
//! ```text
//!  people ─► auth ─► routes ─► store (spec)            agents ─► gateway ─► store (report)
//!                      ▲                                  ▲
//!                      └──────── follower (view) ─────────┘
//! ```
//!
//! Never decides where a VM runs (`control` does) and never talks to a host other than over a line that the host opened.

/// Tells people of alerts: mail, webhooks, syslog.
pub mod alerts;
/// What every handler needs.
pub mod app;
/// Who may, and the record of what was asked.
pub mod auth;
/// Copies of the server's state, and putting one back.
pub mod backup;
/// Reads what a request carries, strictly.
pub mod body;
/// The cluster's own certificate authority.
pub mod ca;
/// `server.toml`.
pub mod config;
/// How a refusal leaves the server.
pub mod error;
/// A decoded view of the store, always fresh.
pub mod follow;
/// The agents' side.
pub mod gateway;
/// Takes in images.
pub mod importer;
/// Before the first start.
pub mod init;
/// Lists with filters and paging.
pub mod list;
/// The router and its document.
pub mod openapi;
/// The built-in live page.
pub mod page;
/// Forgets old events.
mod retention;
/// The API's paths.
pub mod routes;
/// Measurements, in memory.
pub mod samples;
/// Listens and serves.
pub mod serve;
/// Objects as the API shows them.
pub mod shown;
/// The accept loop.
pub mod tls;
/// Changing objects.
pub mod write;

pub use config::Config;
pub use init::{Ready, init};
pub use serve::{Server, run};
