//! What runs on a host: it converges the machine on its assignment and tells the server what it sees.
//!
//! ```text
//! link ── assignment ──► vm (one task a VM) ──► hypervisor ──► shim ──► QEMU
//!   ▲                     │     converge ──► network, storage
//!   └───── reports ◄──────┘
//! ```
//!
//! An agent may crash or be replaced at any time with no effect on the guests: each lives under its own shim.

/// Carries guests to and from other hosts through the mover.
pub mod carrier;
/// `sterna host check`: can this machine be a host?
pub mod check;
/// `agent.toml`.
pub mod config;
/// Serial ports and screens for people.
mod console;
/// Networks, pools and volumes as the assignment says.
mod converge;
/// This host's guard: the lease, and what lives under it.
pub mod guard;
/// What this machine is.
pub mod host;
/// The port between the task that owns a VM and what runs it.
pub mod hypervisor;
/// The line to the server.
pub mod link;
/// What a copy is built from on the real machine.
mod machine;
/// What an agent does to its machine's network.
pub mod network;
/// Processes, as `/proc` shows them.
pub mod process;
/// The real hypervisor: a shim and a QEMU per VM.
pub mod qemu_hypervisor;
/// The port to what a copy is built from.
pub mod resources;
mod run;
/// Pools, images, volumes and seeds.
pub mod storage;
/// One task owns one VM.
pub mod vm;

pub use run::{run, run_with};
