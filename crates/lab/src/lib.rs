//! A small real world on one machine: datacentres whose hosts are network namespaces, a slow line between each two,
//! the server, and the production binary on every host. Two datacentres, unless told otherwise.
//!
//! ```text
//!   root namespace ─ 10.91.1.2 ┐                                       ┌ NAME-b1  10.91.2.11
//!   NAME-a1  10.91.1.11 ───────┤ NAME-sw-a ── relay: delay, rate, ──── NAME-sw-b ┤
//!   NAME-a2  10.91.1.12 ───────┘ 10.91.1.1     loss, up and down       10.91.2.1 └ NAME-b2  10.91.2.12
//! ```
//!
//! Every process of a lab carries a mark in its environment ([`member`]), so that all of them are found and ended
//! whatever became of the ones that started them. No file records a process.

/// Figures against bars.
pub mod bench;
/// CPU quotas of hosts.
pub mod cgroup;
/// The command line.
pub mod cli;
/// The ordinary commands of the binary, as the lab calls them.
pub mod command;
/// A VM that moves while it serves.
pub mod demo;
/// Removes a lab, whatever state it is in.
pub mod down;
/// What switches hosts of a lab off: a fake.
pub mod fence;
/// Processes that belong to a lab.
pub mod member;
/// Entering network namespaces.
pub mod netns;
/// Names and addresses of a lab.
pub mod place;
/// What a client on the network sees.
pub mod probe;
/// Says what is being done, so that nothing is silent for long.
pub mod say;
/// The command line of demo and benchmarks.
pub mod show;
/// Datacentres, lines and hosts.
pub mod site;
/// What runs.
pub mod status;
/// Restarts a process when it ends.
pub mod supervise;
/// Devices in user space.
pub mod tap;
/// Namespaces, devices and routes.
pub mod topology;
/// Builds a lab, or goes on where an interrupted start left it.
pub mod up;
/// The slow lines between the datacentres.
pub mod wan;
/// What resets a host of a lab: a fake.
pub mod watchdog;

/// What a user of a lab does through the API.
pub mod user;

pub use cli::cli;
