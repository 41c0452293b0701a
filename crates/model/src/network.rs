//! L2 segments, their addresses, and MAC addresses.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::meta::Name;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkSpec {
    pub kind: NetworkKind,
    /// NICs that name no network go to a default one.
    #[serde(default)]
    pub default: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum NetworkKind {
    /// A VXLAN segment (RFC 7348) between the hosts; Sterna hands out the addresses.
    Overlay {
        /// Addresses for hosts and guests, prefix length 8 to 29.
        cidr: Cidr,
    },
    /// An existing bridge (or VLAN on it) of the same name on each host; addresses come from outside.
    Bridge {
        bridge: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        vlan: Option<u16>,
    },
}

/// The largest packet on an overlay network, the same on every host and in every datacentre, so that no move changes it.
/// A frame to another datacentre must fit the usual 1500 bytes: less 80 for WireGuard over IPv6 (40 IPv6, 8 UDP, 32 its
/// own) and 70 for VXLAN over IPv6 inside it (40 IPv6, 8 UDP, 8 VXLAN, 14 Ethernet).
pub const OVERLAY_MTU: u32 = 1500 - 80 - 70;

/// What control chose for an overlay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetworkDecision {
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// The address that each host has on the segment, so that it can hand out leases and reach its guests.
    #[schema(value_type = BTreeMap<String, String>)]
    pub hosts: BTreeMap<Name, Ipv4Addr>,
}

/// An IPv4 network such as `10.100.0.0/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cidr {
    base: Ipv4Addr,
    prefix: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an IPv4 network such as 10.100.0.0/24, with a prefix of 8 to 29 and no host bits")]
pub struct NotACidr(String);

impl Cidr {
    #[must_use]
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The first usable address: the gateway's.
    #[must_use]
    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base.to_bits() + 1)
    }

    /// Addresses that may be handed out: all but network, gateway and broadcast.
    pub fn usable(self) -> impl DoubleEndedIterator<Item = Ipv4Addr> {
        let size = 1u32 << (32 - u32::from(self.prefix));
        (self.base.to_bits() + 2..self.base.to_bits() + size - 1).map(Ipv4Addr::from_bits)
    }

    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        let mask = u32::MAX << (32 - u32::from(self.prefix));
        address.to_bits() & mask == self.base.to_bits()
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = NotACidr;

    fn from_str(text: &str) -> Result<Self, NotACidr> {
        let wrong = || NotACidr(text.chars().take(40).collect());
        let (base, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let cidr =
            Cidr { base: base.parse().map_err(|_| wrong())?, prefix: prefix.parse().map_err(|_| wrong())? };
        let fits = (8..=29).contains(&cidr.prefix) && cidr.contains(cidr.base);
        if fits { Ok(cidr) } else { Err(wrong()) }
    }
}

/// A locally administered unicast MAC address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac([u8; 6]);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a unicast MAC address such as 52:54:00:12:34:56")]
pub struct NotAMac(String);

impl Mac {
    /// The MAC of NIC `index` of a VM: a function of its uid, so that it is fixed for the VM's life.
    /// FNV-1a over uid and index (the 40 low bits), behind the prefix 0x5a: local, unicast.
    #[must_use]
    pub fn of(vm: Uuid, index: usize) -> Self {
        let bytes = vm.as_bytes().iter().copied().chain(index.to_le_bytes());
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let [.., b1, b2, b3, b4, b5] = hash.to_be_bytes();
        Self([0x5a, b1, b2, b3, b4, b5])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = NotAMac;

    fn from_str(text: &str) -> Result<Self, NotAMac> {
        let wrong = || NotAMac(text.chars().take(40).collect());
        let parts: Vec<_> = text.split(':').collect();
        let mut bytes = [0; 6];
        if parts.len() != 6 || parts.iter().any(|part| part.len() != 2) {
            return Err(wrong());
        }
        for (byte, part) in bytes.iter_mut().zip(parts) {
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        // The lowest bit of the first byte marks a multicast address.
        if bytes[0] & 1 == 1 || bytes == [0; 6] { Err(wrong()) } else { Ok(Self(bytes)) }
    }
}

macro_rules! text_form {
    ($type:ty, $example:literal) => {
        impl utoipa::PartialSchema for $type {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                let text = utoipa::openapi::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::schema::Type::String)
                    .examples([$example]);
                utoipa::openapi::RefOr::T(text.into())
            }
        }

        impl ToSchema for $type {}

        impl Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

text_form!(Cidr, "10.100.0.0/24");
text_form!(Mac, "52:54:00:12:34:56");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cidr_has_no_host_bits_and_a_sane_size() {
        assert_eq!("10.100.0.0/24".parse::<Cidr>().unwrap().usable().count(), 253);
        for bad in ["10.100.0.1/24", "10.0.0.0/7", "10.0.0.0/30", "10.0.0.0", "x/24", "10.0.0.0/99"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_vms_mac_is_fixed_and_differs_by_nic() {
        let vm = Uuid::from_u128(7);
        assert_eq!(Mac::of(vm, 0), Mac::of(vm, 0));
        assert_ne!(Mac::of(vm, 0), Mac::of(vm, 1));
        let text = Mac::of(vm, 0).to_string();
        assert_eq!(text.parse::<Mac>().unwrap(), Mac::of(vm, 0));
    }

    #[test]
    fn multicast_and_broken_macs_are_refused() {
        for bad in [
            "ff:ff:ff:ff:ff:ff",
            "01:00:5e:00:00:01",
            "52:54:00:12:34",
            "52:54:00:12:34:5g",
            "00:00:00:00:00:00",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }
}
