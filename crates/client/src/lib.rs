//! The typed client of the API: one module a resource, errors with hints, streams for watches and consoles.
//!
//! Never prints, never asks, never reads the command line: that is `cli`. Knows nothing of hosts' machines.

/// Facts that need a person.
pub mod alert;
/// Who did what.
pub mod audit;
/// Clusters: hosts with one CPU baseline.
pub mod cluster;
/// Where the server is and how to speak to it.
pub mod context;
/// Sites with their own failure domain.
pub mod datacentre;
/// What can go wrong, with a hint what to do.
pub mod error;
/// Facts recorded for people.
pub mod event;
/// Machines that run VMs, and the tokens that make one.
pub mod host;
/// Requests and answers, below every resource.
mod http;
/// Immutable sources of boot disks; sending their content.
pub mod image;
/// Moving a running VM: progress, result, cancel.
pub mod migration;
/// L2 segments.
pub mod network;
/// Lists, objects and the calls that every resource has.
pub mod object;
/// Long work, and waiting for it.
pub mod operation;
/// Places that hold volumes.
pub mod pool;
/// Is the server there?
pub mod status;
/// Which server certificate is believed.
pub mod tls;
/// Who may talk to the API.
pub mod token;
/// Virtual servers.
pub mod vm;
/// Virtual disks.
pub mod volume;
/// Every change as it happens.
pub mod watch;

pub use context::Context;
pub use error::Error;
pub use http::Client;
pub use object::{Api, Filter, Object};
/// Raw bytes in both directions.
pub use reqwest::Upgraded as Stream;
