//! Control: whoever leads turns views into rounds and rounds into commits.
//!
//! It writes decisions and nothing else, and calls nobody: what it decided reaches hosts through the store.

/// Asks voters about hosts, and collects proofs.
pub mod fencer;
/// Holds the control lease, or waits for it.
pub mod leader;
/// Turns of the loop, without time or tasks of their own: the simulation runs this.
pub mod turn;

mod runner;

pub use runner::{Candidate, Sink, run};
