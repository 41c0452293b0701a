//! The protocols that must not fail, each in a small world that is searched whole: every order of events within bounds, where
//! a simulation draws some.
//!
//! The worlds hold the production code, not a picture of it: [`lease`] the guard's core, [`migration`] control's planners and
//! the agent's decisions. What is around them (clocks, networks, processes, QEMU, the store) is small enough to be all of a
//! state. Nothing but tests is built from here.

/// Guards, fencer, watchdog: whether two copies can run.
#[cfg(test)]
mod lease;

/// Control, agents, two copies: whether both can run, or none again.
#[cfg(test)]
mod migration;
