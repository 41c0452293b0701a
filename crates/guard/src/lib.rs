//! The one process of a host that its guests' data depend on: it holds the host's lease, and ends what may not outlive it.
//!
//! It renews the lease with a majority of voters, is itself a voter for other hosts, freezes and kills VMs that could be
//! restarted elsewhere when the lease runs out, and feeds the watchdog only while all is well. `docs/flows/host-lease.md`
//! has the diagram and the table.
//!
//! [`core`] decides and does nothing; [`shell`] does and decides nothing.

/// The protocol: values in, values out. No clock, no I/O, no randomness.
pub mod core;
/// What goes over the network, and nobody else can make.
pub mod datagram;
/// One thread around the core: sockets, clock, processes, watchdog.
pub mod shell;

pub use shell::config::Config;
pub use shell::run;
