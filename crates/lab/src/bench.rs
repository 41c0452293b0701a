//! `sterna bench NAME`: figures against bars, each beside its baseline in the same run.

/// Accepting and listing, at the API.
pub mod api;
/// Every process killed in every phase.
pub mod chaos;
/// Hosts, servers, agents and QEMUs that are lost.
pub mod ha;
/// Finished rows.
pub mod kept;
/// Another manager, as a baseline.
pub mod libvirt;
/// What a guest's memory holds, before and after.
pub mod memory;
/// Moves against plain QEMU driven by hand.
pub mod migration;
/// The baseline: two QEMU processes driven by hand.
pub mod plain;
/// Benchmarks of many rows.
pub mod rows;
/// Figures, bars, table and JSON.
pub mod table;
/// Moves between datacentres.
pub mod wan;
/// What the benchmarks share.
pub mod world;
