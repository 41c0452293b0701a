//! The lease protocol in a world of its own: production guards, fencers and suspicion in one loop over one queue, with
//! everything around them that can fail: machines, processes, lines, clocks, VMs, the store.
//!
//! Same seed, same run. After every event: at most one copy of a VM runs, none is started without proof that its last
//! owner is out, and a host whose lease is over runs nothing once the watchdog has had its time. Within 120 s after the last
//! fault every VM runs and no host is suspected.
//!
//! Fake here: machines and their clocks ([`clock`]), processes ([`copies`]), the watchdog and the guard's shell
//! ([`machine`]), the agent ([`agent`]), the store ([`store`]), lines ([`network`]). A second is a thousand million units
//! of a `u64`; nothing waits in real time.

use sterna_guard::core::mutation::Mutations;

/// Joins, starts, reports.
pub mod agent;
/// What must hold.
pub mod check;
/// Each machine's own time.
pub mod clock;
/// Suspects, fences, places.
pub mod controller;
/// VMs' processes.
pub mod copies;
/// What may be done to the world.
pub mod fault;
/// What happened.
pub mod journal;
/// Guard, shell, watchdog.
pub mod machine;
/// Lines, and the weather on them.
pub mod network;
/// Which faults a seed brings.
pub mod plan;
/// What will happen.
pub mod queue;
/// Rows and compare-and-set.
pub mod store;
/// The loop.
pub mod world;

use plan::Script;
use world::World;

/// How a run ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub hash: u64,
    pub events: u64,
    pub simulated_ms: u64,
    /// What was wrong first.
    pub wrong: Option<String>,
    /// It was something that must never be, and not only something that did not come to be.
    pub is_unsafe: bool,
}

#[must_use]
pub fn run(script: Script, seed: u64, mutations: Mutations) -> Outcome {
    go(script, seed, mutations, false).0
}

/// The same run again, with its last lines.
#[must_use]
pub fn replay(script: Script, seed: u64, mutations: Mutations, lines: usize) -> (Outcome, String) {
    let (outcome, world) = go(script, seed, mutations, true);
    (outcome, world.journal.tail(lines))
}

fn go(script: Script, seed: u64, mutations: Mutations, is_read: bool) -> (Outcome, World) {
    let mut world = World::new(script.setup(seed, mutations), is_read);
    world.run();
    let outcome = Outcome {
        hash: world.journal.hash(),
        events: world.events,
        simulated_ms: world.now / 1_000_000,
        wrong: world.wrong.clone(),
        is_unsafe: world.is_unsafe,
    };
    (outcome, world)
}
