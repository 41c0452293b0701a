//! Opens existing tap devices.

use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, ensure};

/// From `linux/if_tun.h`.
const TUNSETIFF: rustix::ioctl::Opcode = 0x4004_54ca;
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const IFNAMSIZ: usize = 16;

/// `struct ifreq` as far as TUNSETIFF reads it, at its full size.
#[repr(C)]
struct Request {
    name: [u8; IFNAMSIZ],
    flags: u16,
    rest: [u8; 22],
}

/// Opens the queue of a persistent tap that somebody else made.
pub fn open(name: &str) -> anyhow::Result<OwnedFd> {
    let is_name = !name.is_empty() && name.len() < IFNAMSIZ && !name.contains(['/', '\0']);
    ensure!(is_name, "{name:?} is no name of a network device");
    // The kernel would make a device that does not exist, and nobody would have attached it to a network.
    ensure!(Path::new("/sys/class/net").join(name).exists(), "tap {name} does not exist");
    let tun = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .context("open /dev/net/tun")?;
    let mut request =
        Request { name: [0; IFNAMSIZ], flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, rest: [0; 22] };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: TUNSETIFF reads a `struct ifreq`, whose layout and size `Request` has.
    unsafe { rustix::ioctl::ioctl(&tun, rustix::ioctl::Updater::<TUNSETIFF, Request>::new(&mut request)) }
        .with_context(|| format!("attach to tap {name}"))?;
    Ok(tun.into())
}
