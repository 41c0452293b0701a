//! The brain: pure functions from a view of the store to actions and assignments.
//!
//! No tokio, no I/O, no clock, no randomness: `now` is a parameter, and the round after a crash is the same round.

/// What a planner wants written, and why.
pub mod action;
/// Facts that need a person.
pub mod alert;
/// All that is decided about one host, as its agent gets it.
pub mod assignment;
/// What fits where: memory of hosts, taken and free.
pub mod capacity;
/// Pre-checks of a migration, each with a reason.
pub mod check;
/// Removes what was deleted, when its parts are gone.
pub mod cleanup;
/// Keeps each cluster's CPU baseline.
pub mod cluster;
/// Empties hosts that are to be serviced.
pub mod drain;
/// How long a move will take.
pub mod forecast;
/// Restarts what stopped without being asked.
pub mod ha;
/// Moves running VMs: reads reports, steps the transition table.
pub mod migration;
/// Network identifiers and the hosts' addresses on them.
pub mod network;
/// When operations are done.
pub mod operation;
/// How the limits of lines between datacentres are shared out.
mod pace;
/// Picks a host, and says why.
pub mod placement;
/// Who measures the lines between datacentres.
pub mod probe;
/// Who has each VM, after the store came back from a backup.
pub mod recovery;
/// Room for the VMs of hosts that may be lost.
pub mod reserve;
/// All planners in order.
pub mod round;
/// How a running VM gets to a host.
pub mod route;
/// Whose memory resembles whose.
pub mod sibling;
/// Turns a host and a VM into a start.
pub mod start;
/// What users see, from a view.
pub mod status;
/// The encrypted way between hosts of different datacentres.
mod tunnel;
/// The read-consistent copy of the store.
pub mod view;
/// Pools and hosts for volumes.
pub mod volume;

pub use action::Action;
pub use round::round;
pub use view::View;
