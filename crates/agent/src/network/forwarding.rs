//! Kernel settings of an overlay's devices, and IP forwarding for the gateways.

use std::fs;
use std::path::Path;

use super::{Error, name};

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";
/// Keeps what the machine had before.
const BEFORE: &str = "ip_forward.before";

pub(super) fn ensure_device_settings(vni: u32) -> Result<(), Error> {
    // The bridge answers ARP for its own address only: the gateway's has another MAC.
    write(&format!("/proc/sys/net/ipv4/conf/{}/arp_ignore", name::bridge(vni)), "1")?;
    // Guests' packets come in at the gateway; the way back to them is the bridge. 2: any way back will do.
    write(&format!("/proc/sys/net/ipv4/conf/{}/rp_filter", name::gateway(vni)), "2")
}

/// On one device, whatever the machine has otherwise.
pub(super) fn allow_ipv6(device: &str) -> Result<(), Error> {
    write(&format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6"), "0")
}

/// Turns forwarding on. What was there before is kept for [`restore`].
pub(super) fn ensure(dir: &Path) -> Result<(), Error> {
    let failed = |source| Error::Io { action: format!("read {FORWARDING}"), source };
    let now = fs::read_to_string(FORWARDING).map_err(failed)?;
    if now.trim() == "1" {
        return Ok(());
    }
    let kept = dir.join(BEFORE);
    fs::create_dir_all(dir)
        .and_then(|()| sterna_base::file::write_atomically(&kept, now.as_bytes(), 0o644))
        .map_err(|source| Error::Io { action: format!("write {}", kept.display()), source })?;
    write(FORWARDING, "1")
}

pub(super) fn restore(dir: &Path) -> Result<(), Error> {
    let kept = dir.join(BEFORE);
    let before = sterna_base::file::read_if_there(&kept)
        .map_err(|source| Error::Io { action: format!("read {}", kept.display()), source })?;
    match before {
        Some(before) => write(FORWARDING, String::from_utf8_lossy(&before).trim()),
        None => Ok(()),
    }
}

fn write(path: &str, value: &str) -> Result<(), Error> {
    fs::write(path, value).map_err(|source| Error::Io { action: format!("write {value} to {path}"), source })
}
