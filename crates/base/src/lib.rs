//! What every layer needs and no layer owns: time, sizes, files, back-off, logs, task scopes.
//!
//! Nothing in here knows a word of the domain.

/// When to try again, with a ceiling and without randomness of its own.
pub mod backoff;
/// Wall-clock timestamps, and the port through which time enters.
pub mod clock;
/// Files that are either wholly there or not there at all.
pub mod file;
/// Log set-up for every role of the binary.
pub mod log;
/// Tasks that end together.
pub mod scope;
/// Sizes and durations as people write them.
pub mod units;
