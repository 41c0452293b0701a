//! A device whose frames a program reads and writes (`/dev/net/tun`).

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, Result, ensure};
use rustix::ioctl::{IntegerSetter, Setter, ioctl, opcode};

use crate::netns;

const IFF_TAP: u16 = 0x0002;
/// Plain frames, without a header of the driver's.
const IFF_NO_PI: u16 = 0x1000;
/// But with virtio's, which says what segments a large frame consists of.
const IFF_VNET_HDR: u16 = 0x4000;
const SET_INTERFACE: rustix::ioctl::Opcode = opcode::write::<i32>(b'T', 202);
const SET_OFFLOAD: rustix::ioctl::Opcode = opcode::write::<u32>(b'T', 208);
/// Checksums not yet computed, and TCP segments of both families in one frame.
const OFFLOAD_ALL: usize = 0x1 | 0x2 | 0x4;

/// `struct ifreq` as TUNSETIFF reads it.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// Attaches to the persistent tap `device` in a namespace. Reads do not block; frames have virtio's header.
pub fn open(space: &str, device: &str) -> Result<File> {
    ensure!(device.len() < 16, "`{device}` is too long for a device");
    let device = device.to_owned();
    let attached = netns::inside(Some(space), move || attach(&device))?;
    attached.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Whether the kernel may hand over TCP segments together.
pub fn set_offload(tap: &File, on: bool) -> Result<()> {
    let flags = if on { OFFLOAD_ALL } else { 0 };
    // SAFETY: TUNSETOFFLOAD takes a number.
    unsafe { ioctl(tap, IntegerSetter::<SET_OFFLOAD>::new_usize(flags)) }
        .context("set what the tap hands over")
}

fn attach(device: &str) -> Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
        .open("/dev/net/tun")
        .context("open /dev/net/tun")?;
    let mut request = Request { name: [0; 16], flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, rest: [0; 22] };
    request.name[..device.len()].copy_from_slice(device.as_bytes());
    // SAFETY: TUNSETIFF reads one `struct ifreq`, 40 bytes, which `Request` is; the name ends with a zero.
    unsafe { ioctl(&file, Setter::<SET_INTERFACE, Request>::new(request)) }
        .with_context(|| format!("attach to {device}"))?;
    Ok(file)
}
