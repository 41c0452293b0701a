//! The words of Sterna as types: what users ask for, what control decides, what hosts report, and the pure functions
//! between them. No I/O, no clock, no randomness, no tokio.
//!
//! Each object has up to three columns in the store, each with one writer ([`key::Column`]):
//! spec (API), decision (control), report (gateway, from agents). What users see is computed by [`status`].

/// Facts that need a person.
pub mod alert;
/// How much of the line between datacentres moves may take, by the time of day.
pub mod bandwidth;
/// Clusters: hosts with one CPU baseline.
pub mod cluster;
/// CPU models that every host of a cluster can run.
pub mod cpu;
/// Sites with their own failure domain.
pub mod datacentre;
/// The one error type of the API: code, message, hint.
pub mod error;
/// Facts recorded for people, each with a reason.
pub mod event;
/// What switches a host off from outside.
pub mod fence;
/// What a live migration is expected to take.
pub mod forecast;
/// Who grants hosts their leases, and how it is known that one is over.
pub mod ha;
/// VMs that end, crash or hang: how often they are brought back, and what is told of it.
pub mod health;
/// Machines that run VMs.
pub mod host;
/// Immutable sources of boot disks.
pub mod image;
/// Where each column of each object lies in the store.
pub mod key;
/// The encrypted line from one QEMU to the other.
pub mod line;
/// What would become of VMs whose hosts are lost.
pub mod loss;
/// Names, labels and what every object carries.
pub mod meta;
/// Moving a running VM: the one transition table.
pub mod migration;
/// L2 segments, their addresses, and MAC addresses.
pub mod network;
/// Long work that a user can wait for.
pub mod operation;
/// Places that hold volumes.
pub mod pool;
/// What a host measured of the line to another datacentre.
pub mod probe;
/// What users see of a VM, computed from the three columns.
pub mod status;
/// The store as an object: its incarnation, its recovery, its backups.
pub mod store;
/// Who may talk to the API.
pub mod token;
/// The encrypted way between hosts of different datacentres.
pub mod tunnel;
/// Virtual servers.
pub mod vm;
/// Virtual disks.
pub mod volume;
