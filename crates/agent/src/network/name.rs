//! How devices are called, and which are ours. Names fit the kernel's 15 characters.

use std::net::{Ipv4Addr, Ipv6Addr};

use uuid::Uuid;

use super::world::World;

/// Every device of a segment starts with this.
pub const PREFIX: &str = "sterna-";
const TUNNEL: &str = "sterna-w";
/// The alias of a VM's port starts with this; its uid and the number of the NIC follow.
pub const TAP_MARK: &str = "sterna-vm:";

/// The bridge of an overlay.
#[must_use]
pub fn bridge(vni: u32) -> String {
    format!("{PREFIX}b{vni:x}")
}

/// Its way to the other hosts.
#[must_use]
pub fn vxlan(vni: u32) -> String {
    format!("{PREFIX}x{vni:x}")
}

/// Its way to the hosts of other datacentres.
#[must_use]
pub fn far(vni: u32) -> String {
    format!("{PREFIX}f{vni:x}")
}

/// This host's end of the tunnel between datacentres. Userspace WireGuard has a socket of this name for all network
/// namespaces of a machine, so that it must be this host's alone: the low bits of the address are random.
#[must_use]
pub fn tunnel(address: Ipv6Addr) -> String {
    format!("{TUNNEL}{:07x}", address.to_bits() & 0x0fff_ffff)
}

/// Whether a device is an end of a tunnel.
pub(super) fn is_tunnel(device: &str) -> bool {
    let digits = device.strip_prefix(TUNNEL).filter(|digits| digits.len() == 7);
    digits.is_some_and(|digits| u32::from_str_radix(digits, 16).is_ok())
}

/// The bridge's port towards the gateway.
#[must_use]
pub fn gateway_port(vni: u32) -> String {
    format!("{PREFIX}h{vni:x}")
}

/// The gateway's end.
#[must_use]
pub fn gateway(vni: u32) -> String {
    format!("{PREFIX}g{vni:x}")
}

/// In the order of removal; the gateway goes with its port.
pub(super) fn of(vni: u32) -> [String; 4] {
    [vxlan(vni), far(vni), gateway_port(vni), bridge(vni)]
}

/// The segment of a bridge, if it is one of ours.
pub(super) fn vni_of_bridge(device: &str) -> Option<u32> {
    let vni = u32::from_str_radix(device.strip_prefix(PREFIX)?.strip_prefix('b')?, 16).ok()?;
    (bridge(vni) == device).then_some(vni)
}

/// Our segment devices on this machine, such that each can be deleted in turn.
pub(super) fn ours(world: &World) -> impl Iterator<Item = String> {
    let is_ours = |name: &str| {
        let digits = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix(['b', 'x', 'f', 'h']));
        digits.is_some_and(|digits| u32::from_str_radix(digits, 16).is_ok())
    };
    world.names().filter(move |name| is_ours(name)).map(str::to_owned)
}

/// The port of NIC `index` of a VM. The low bits of a uid are its random ones; the high ones are a time.
#[must_use]
pub fn tap(vm: Uuid, index: usize) -> String {
    format!("t{:08x}-{index}", vm.as_u128() as u32)
}

/// The MAC of the gateway: one per segment, the same on every host.
pub(super) fn gateway_mac(vni: u32) -> String {
    let [_, a, b, c] = vni.to_be_bytes();
    format!("5e:00:00:{a:02x}:{b:02x}:{c:02x}")
}

/// The MAC of a host on a segment: fixed, so that a new port does not change it (a bridge takes its lowest port's).
pub(super) fn host_mac(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("5e:01:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

#[cfg(test)]
mod tests {
    use sterna_model::network::Mac;

    use super::*;

    #[test]
    fn names_fit_the_kernel_and_read_back() {
        let largest = (1 << 24) - 1;
        assert!(
            [bridge(largest), vxlan(largest), tap(Uuid::from_u128(7), 9999)].iter().all(|n| n.len() <= 15)
        );
        assert_eq!(vni_of_bridge(&bridge(largest)), Some(largest));
        for foreign in ["sterna-b", "sterna-b007", "sterna-bridge", "br0", "sterna-x64"] {
            assert_eq!(vni_of_bridge(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn an_end_of_a_tunnel_is_known_by_its_name_and_is_no_segment() {
        let device = tunnel("fd53::8123:4567:89ab:cdef".parse().unwrap());
        assert_eq!((device.as_str(), is_tunnel(&device)), ("sterna-w9abcdef", true));
        let world = World::parse(&format!(r#"[{{"ifname":"{device}","mtu":1420}}]"#)).unwrap();
        assert_eq!(ours(&world).count(), 0);
        assert!(!is_tunnel("sterna-w1") && !is_tunnel("sterna-wireless"));
    }

    #[test]
    fn ports_of_vms_made_in_the_same_minute_differ() {
        let (a, b) = (Uuid::from_u128(0xaaaa_0000 << 96 | 1), Uuid::from_u128(0xaaaa_0000 << 96 | 2));
        assert_ne!(tap(a, 0), tap(b, 0));
    }

    #[test]
    fn macs_of_hosts_and_gateways_are_unicast_and_never_a_vms() {
        for mac in [gateway_mac(0x00ff_ffff), host_mac(Ipv4Addr::new(10, 64, 0, 2))] {
            assert!(mac.parse::<Mac>().is_ok(), "{mac}");
            assert!(!mac.starts_with(&Mac::of(Uuid::from_u128(1), 0).to_string()[..2]));
        }
    }
}
