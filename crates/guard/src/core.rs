//! The lease protocol without I/O: time and events go in, effects come out, and the same input gives the same output.
//!
//! Nothing in here reads a clock, draws a number or waits. [`guard::Guard`] is what a host runs; [`fencer::Fencer`] and
//! [`suspicion::Suspicion`] are the other end of the protocol, for whoever wants to know that a host has stopped.

/// What happens to a guard, and what it wants done.
pub mod event;
/// Collects the proof that a host's lease is over.
pub mod fencer;
/// One host's guard: lease, VMs, votes and watchdog together.
pub mod guard;
/// Who speaks, which epoch, which VM.
pub mod id;
/// The client's half of the lease.
pub mod lease;
/// The configuration in force, and the one before it for as long as both are asked.
pub mod membership;
/// What travels between guards, and between a fencer and guards.
pub mod message;
/// Defects that the simulation puts in, to see that it finds them.
pub mod mutation;
/// What a guard leaves for its successor on the same boot.
pub mod page;
/// How long a lease lasts, how often it is renewed, how long everybody else waits.
pub mod profile;
/// Whether a host has gone silent, as its voters see it.
pub mod suspicion;
/// Instants of one host's `CLOCK_BOOTTIME`.
pub mod time;
/// The VMs that live and die with the lease.
pub mod vms;
/// The voter's half: promises, and the end of promises.
pub mod voter;
/// Who grants leases, and what a majority is.
pub mod voters;
