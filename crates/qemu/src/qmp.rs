//! QMP, the protocol by which QEMU is asked and tells.
//!
//! What a QEMU can do is read from its [`schema`]; replies may always hold more than we know.

/// Disks: state, counters, growing.
pub mod block;
/// One connection: requests, replies, events.
pub mod client;
/// What QEMU tells unasked.
pub mod event;
/// QEMU as a network block server.
pub mod export;
/// Plugging and unplugging devices.
pub mod hotplug;
/// The machine as a whole: run state, power, processors it could have.
pub mod machine;
/// Live migration and what forecasts it.
pub mod migration;
/// Copying disks while their guest writes.
pub mod mirror;
/// Which commands, arguments and events a QEMU knows.
pub mod schema;
/// A migration that QEMU encrypts.
pub mod tls;

pub use client::{Client, Error, Events, Greeting, Options};
pub use event::{Event, Stamped};
pub use schema::Schema;
