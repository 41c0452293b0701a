//! Everything Sterna knows about QEMU, usable alone.
//!
//! A caller builds a [`config::Config`], starts QEMU with its argument list, and talks to it through a
//! [`qmp::Client`]. Nothing here knows a cluster, a VM's owner or a policy: those decide *what* to do, this
//! crate knows *how QEMU wants it* and what it gets wrong.

/// Guests of one boot sector, for probes and tests.
pub mod boot;
/// What one QEMU process is made of -> its command line.
pub mod config;
/// The guest agent: a sign of life, and programs run in the guest.
pub mod guest_agent;
/// Looks at images from strangers without letting QEMU open them.
pub mod image;
/// Makes and changes image files with qemu-img.
pub mod img;
/// What a QEMU binary can do here, and which accelerator runs.
pub mod probe;
/// QMP: a client, its events, and typed commands.
pub mod qmp;
/// RAM sizes that old QEMU migrates wrongly under TCG.
pub mod ram;
/// Versions of QEMU and of machine types.
pub mod version;
