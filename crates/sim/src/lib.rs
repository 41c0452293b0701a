//! A whole datacentre in virtual time: production control, planners and agents over fake machines, lines and a store in
//! memory, with everything killed at any step.
//!
//! Same seed, same run. After every event the checker looks: at most one copy of a VM runs, one writes, memory never
//! goes back, no VM is forgotten, ownership only grows. After the last fault all must become as people asked for.
//!
//! Never talks to a real process, file or network, and never waits in real time.

/// An agent's process and its line to the server.
pub mod agent;
/// Moves through the mover under drawn faults, counted.
pub mod campaign;
/// The mover, as a fake: sessions that carry guests between hosts.
pub mod carrier;
/// What must hold, after every event and at the end.
pub mod check;
/// Datagrams between guards and fencers.
pub mod datagram;
/// Disks that go straight from one QEMU to the other.
pub mod direct;
/// What guests wrote.
pub mod disk;
/// What may be done to the world, and when.
pub mod fault;
/// Storms in which hosts are lost.
pub mod gale;
/// The server's side of the agents.
pub mod gateway;
/// A guard's process, and its line to the agent.
pub mod guard;
/// The agent's port to fake QEMUs.
pub mod hypervisor;
/// The lease protocol, in a world of its own.
pub mod lease;
/// What must hold of leases, proofs and takeovers.
pub mod loss;
/// Defects put in on purpose, to test the checker.
pub mod mutation;
/// Machines: power, clock, watchdog.
pub mod node;
/// What people ask for.
pub mod operator;
/// What must hold of volumes' places.
pub mod places;
/// Fake QEMUs and their shims.
pub mod qemu;
/// The one source of chance.
pub mod random;
/// What an agent keeps.
pub mod records;
/// What is done to machines and their network.
pub mod ruin;
/// Runs: directed ones and storms.
pub mod scenario;
/// The server's process.
pub mod server;
/// Datacentres, hosts, pools.
pub mod site;
/// The store, as the server reaches it.
pub mod store;
/// What happened.
pub mod trace;
/// How guest memory travels.
pub mod transfer;
/// How the fencer speaks to voters.
pub mod voice;
/// What everything stands on.
pub mod world;
