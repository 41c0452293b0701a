//! Network cards, and where devices sit on the PCI bus.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Config, Refused, all_different, range, text};
use crate::version::MachineType;

/// Where a disk or a NIC sits. Fixed for the life of a process: the target of a migration must put it at
/// the same place, and guests name their interfaces after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// The n-th slot kept for devices of this kind; cannot be unplugged from a running guest.
    Slot(u8),
    /// The n-th of the [`Config::hot_ports`].
    HotPort(u8),
}

// The bus `pcie.0`: 0x00 host bridge, 0x1f the chipset's own; ours lie between and never move.
pub(super) const SLOT_DISPLAY: u8 = 0x01;
pub(super) const SLOT_SERIAL: u8 = 0x02;
pub(super) const SLOT_RNG: u8 = 0x03;
pub(super) const SLOT_SEED: u8 = 0x04;
const SLOT_NICS: u8 = 0x05;
pub(super) const SLOT_DISKS: u8 = 0x0d;
pub(super) const SLOT_HOT_PORTS: u8 = 0x1c;
pub(super) const SLOT_WATCHDOG: u8 = 0x1d;

/// Slots kept for NICs, and so the number of [`Place::Slot`]s for them.
pub const NIC_SLOTS: u8 = SLOT_DISKS - SLOT_NICS;
/// Slots kept for disks.
pub const DISK_SLOTS: u8 = SLOT_HOT_PORTS - SLOT_DISKS;

impl Place {
    pub(super) fn put_disk(self, device: &mut Value) {
        self.put(SLOT_DISKS, device);
    }

    fn put(self, first_slot: u8, device: &mut Value) {
        match self {
            Self::Slot(slot) => put_at(device, first_slot + slot),
            Self::HotPort(port) => device["bus"] = json!(hot_port_id(port)),
        }
    }
}

pub(super) fn hot_port_id(port: u8) -> String {
    format!("hot{port}")
}

pub(super) fn put_at(device: &mut Value, slot: u8) {
    device["bus"] = json!("pcie.0");
    device["addr"] = json!(format!("{slot:#04x}"));
}

/// A network card at a tap device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    pub id: String,
    /// An open tap with `IFF_VNET_HDR`, inherited under this number.
    pub tap_fd: i32,
    /// An open `/dev/vhost-net`, inherited under this number; without it QEMU itself copies the frames.
    #[serde(default)]
    pub vhost_fd: Option<i32>,
    pub mac: String,
    /// What the guest is told, so that it is the same on every host.
    pub mtu: u16,
    pub place: Place,
}

impl Nic {
    /// The value of `-netdev`, and the arguments of `netdev_add`.
    pub fn netdev(&self) -> Value {
        let mut netdev = json!({ "type": "tap", "id": self.netdev_id(), "fd": self.tap_fd.to_string() });
        match self.vhost_fd {
            Some(fd) => {
                netdev["vhost"] = json!(true);
                netdev["vhostfd"] = json!(fd.to_string());
            }
            None => netdev["vhost"] = json!(false),
        }
        netdev
    }

    pub fn netdev_id(&self) -> String {
        format!("net-{}", self.id)
    }

    /// The value of `-device`, and the arguments of `device_add`.
    ///
    /// What depends on the host's kernel is pinned: UDP and tunnel offloads exist in some kernels only, and a
    /// guest that negotiated one could not arrive at a host without it. The TCP offloads are in every kernel
    /// that has taps with `IFF_VNET_HDR`. The boot ROM is left out: its size is part of the migrated state.
    pub fn device(&self, machine: &MachineType) -> Value {
        let mut device = json!({
            "driver": "virtio-net-pci",
            "id": self.id,
            "netdev": self.netdev_id(),
            "mac": self.mac,
            "host_mtu": self.mtu,
            "romfile": "",
            "mq": false,
            "guest_ufo": false,
            "host_ufo": false,
        });
        for feature in
            ["csum", "gso", "guest_csum", "guest_tso4", "guest_tso6", "guest_ecn", "host_tso4", "host_tso6"]
        {
            device[feature] = json!(true);
        }
        device["host_ecn"] = json!(true);
        device["mrg_rxbuf"] = json!(true);
        device["guest_announce"] = json!(true);
        // Older machine types have these off already, and older QEMU does not know the names.
        if machine.version() >= (8, 2) {
            for feature in ["guest_uso4", "guest_uso6", "host_uso"] {
                device[feature] = json!(false);
            }
        }
        if machine.version() >= (10, 2) {
            for feature in ["host_tunnel", "host_tunnel_csum", "guest_tunnel", "guest_tunnel_csum"] {
                device[feature] = json!(false);
            }
        }
        self.place.put(SLOT_NICS, &mut device);
        device
    }
}

pub(super) fn check(nics: &[Nic]) -> Result<(), Refused> {
    for nic in nics {
        text("NIC id", &nic.id, "._-", 31)?;
        check_mac(&nic.mac)?;
        // 68 is the least that IPv4 allows; virtio-net knows no more than 65535.
        range("mtu", nic.mtu.into(), 68, 65_535)?;
        for fd in [Some(nic.tap_fd), nic.vhost_fd].into_iter().flatten() {
            range("fd", u64::try_from(fd).unwrap_or(u64::MAX), 3, 1 << 20)?;
        }
    }
    all_different("NIC id", nics.iter().map(|nic| nic.id.as_str()))?;
    all_different("MAC address", nics.iter().map(|nic| nic.mac.as_str()))
}

fn check_mac(mac: &str) -> Result<(), Refused> {
    let refuse = || Refused::Mac { mac: mac.to_owned() };
    let bytes: Vec<&str> = mac.split(':').collect();
    let is_byte = |text: &&str| text.len() == 2 && text.chars().all(|c| c.is_ascii_hexdigit());
    if bytes.len() != 6 || !bytes.iter().all(is_byte) {
        return Err(refuse());
    }
    let first = u8::from_str_radix(bytes[0], 16).map_err(|_| refuse())?;
    if first & 1 == 1 { Err(refuse()) } else { Ok(()) }
}

/// Each device has a slot that exists, and to itself.
pub(super) fn check_places(config: &Config) -> Result<(), Refused> {
    let mut taken = std::collections::BTreeSet::new();
    let disks = config.disks.iter().map(|disk| (disk.place, "disk slot", DISK_SLOTS));
    let nics = config.nics.iter().map(|nic| (nic.place, "NIC slot", NIC_SLOTS));
    for (place, what, slots) in disks.chain(nics) {
        let (name, number, end) = match place {
            Place::Slot(slot) => (what, slot, slots),
            Place::HotPort(port) => ("hot port", port, config.hot_ports),
        };
        if number >= end {
            let (value, max) = (number.into(), u64::from(end).saturating_sub(1));
            return Err(Refused::Range { field: name, value, min: 0, max });
        }
        if !taken.insert((name, number)) {
            return Err(Refused::Twice { what: name, value: number.to_string() });
        }
    }
    Ok(())
}
