//! From a machine of the assignment to QEMU's command line.

use std::path::Path;

use sterna_model::cpu::Accel;
use sterna_qemu::config::{self, Config, Cpu, Disk, Monitor, Nic, Place, Serial};
use sterna_qemu::version::{MachineType, Version};

use super::{AGENT_SOCKET, SERIAL_LOG, SERIAL_SOCKET, VNC_SOCKET};
use crate::hypervisor::{Blueprint, SpawnFailed};

/// Numbers that no argument holds by chance, in the place of descriptors that the shim will open.
const QMP_FD: i32 = 900_000;
const TAP_FD: i32 = 900_001;

/// Translated code is limited to this; QEMU would reserve 1 GiB for each guest.
const TCG_BUFFER_MIB: u32 = 128;

/// The arguments, with the shim's placeholders.
pub fn arguments(
    blueprint: &Blueprint,
    sockets: &Path,
    version: Version,
) -> Result<Vec<String>, SpawnFailed> {
    let failed = |why: String| SpawnFailed { why };
    let config = config(blueprint, sockets)?;
    config.check_ram(version, config.accel).map_err(|unsafe_ram| failed(unsafe_ram.to_string()))?;
    let args = config.argv().map_err(|refused| failed(refused.to_string()))?;
    args.into_iter()
        .map(|arg| arg.into_string().map_err(|_| failed("an argument is not UTF-8".to_owned())))
        .map(|arg| arg.map(|arg| with_placeholders(arg, blueprint.parts.taps.len())))
        .collect()
}

fn with_placeholders(arg: String, taps: usize) -> String {
    if arg == format!("socket,id=qmp,fd={QMP_FD},server=off") {
        return arg.replace(&QMP_FD.to_string(), "{qmp-fd}");
    }
    let is_tap = arg.starts_with('{') && arg.contains(r#""type":"tap""#);
    let mut filled = arg;
    for index in (0..taps).filter(|_| is_tap) {
        let number = TAP_FD + i32::try_from(index).unwrap_or(0);
        filled = filled.replace(&format!(r#""fd":"{number}""#), &format!(r#""fd":"{{tap-fd:{index}}}""#));
    }
    filled
}

fn config(blueprint: &Blueprint, sockets: &Path) -> Result<Config, SpawnFailed> {
    let hardware = &blueprint.machine.hardware;
    let machine =
        MachineType::parse(&hardware.machine).map_err(|refused| SpawnFailed { why: refused.to_string() })?;
    let is_tcg = hardware.accel == Accel::Tcg;
    Ok(Config {
        name: blueprint.name.to_string(),
        uuid: blueprint.uid.to_string(),
        machine,
        accel: if is_tcg { config::Accel::Tcg } else { config::Accel::Kvm },
        // Emulation leaves out what it cannot do; a processor that misses a feature must refuse.
        cpu: Cpu { model: hardware.cpu_model.clone(), features: vec![], enforce: !is_tcg },
        vcpus: hardware.cpus,
        memory_kib: hardware.memory.as_u64() / 1024,
        tcg_buffer_mib: is_tcg.then_some(TCG_BUFFER_MIB),
        disks: disks(blueprint),
        seed: blueprint.parts.seed.clone(),
        nics: nics(blueprint),
        hot_ports: 0,
        monitor: Monitor::Fd(QMP_FD),
        serial: Some(Serial { socket: sockets.join(SERIAL_SOCKET), log: Some(sockets.join(SERIAL_LOG)) }),
        vnc: Some(sockets.join(VNC_SOCKET)),
        guest_agent: Some(sockets.join(AGENT_SOCKET)),
        watchdog: hardware.watchdog,
        // Whose guest it is, is settled before it runs.
        paused: true,
        incoming: blueprint.incoming,
    })
}

/// Devices are called by their position, which is the same on both sides of a migration.
fn disks(blueprint: &Blueprint) -> Vec<Disk> {
    let opened = blueprint.parts.disks.iter().zip(&blueprint.machine.disks);
    opened
        .enumerate()
        .map(|(index, (opened, disk))| Disk {
            id: format!("disk{index}"),
            node: node_of(index),
            format: opened.format,
            source: opened.source.clone(),
            backing: opened.backing.clone(),
            // A virtio serial has 20 bytes.
            serial: Some(disk.uid.simple().to_string()[..20].to_owned()),
            read_only: false,
            place: Place::Slot(u8::try_from(index).unwrap_or(u8::MAX)),
            boot_index: u32::try_from(index).ok(),
        })
        .collect()
}

/// QEMU's name for the image of the n-th disk; what `block_resize` names.
#[must_use]
pub fn node_of(index: usize) -> String {
    format!("disk{index}-image")
}

fn nics(blueprint: &Blueprint) -> Vec<Nic> {
    let taps = blueprint.parts.taps.iter().zip(&blueprint.machine.hardware.nics);
    taps.enumerate()
        .map(|(index, (tap, nic))| Nic {
            id: format!("nic{index}"),
            tap_fd: TAP_FD + i32::try_from(index).unwrap_or(0),
            vhost_fd: None,
            mac: nic.mac.to_string(),
            mtu: tap.mtu,
            place: Place::Slot(u8::try_from(index).unwrap_or(u8::MAX)),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_descriptors_become_placeholders() {
        let qmp = format!("socket,id=qmp,fd={QMP_FD},server=off");
        assert_eq!(with_placeholders(qmp, 0), "socket,id=qmp,fd={qmp-fd},server=off");
        let tap = format!(r#"{{"fd":"{}","id":"net-nic1","type":"tap"}}"#, TAP_FD + 1);
        assert_eq!(with_placeholders(tap, 2), r#"{"fd":"{tap-fd:1}","id":"net-nic1","type":"tap"}"#);
        let other = format!("guest={QMP_FD}");
        assert_eq!(with_placeholders(other.clone(), 2), other);
    }
}
