//! What the machine's network looks like now: devices with their addresses, read in one go.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde::Deserialize;

use super::{Error, name, tool};

pub(super) struct World {
    links: Vec<Link>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Link {
    #[serde(rename = "ifname")]
    pub name: String,
    pub mtu: u32,
    #[serde(default)]
    pub address: String,
    #[serde(default)]
    pub flags: Vec<String>,
    #[serde(default)]
    pub master: Option<String>,
    #[serde(default, rename = "ifalias")]
    pub alias: Option<String>,
    #[serde(default, rename = "linkinfo")]
    pub info: Info,
    #[serde(default, rename = "addr_info")]
    pub addresses: Vec<Address>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Info {
    #[serde(default, rename = "info_kind")]
    pub kind: String,
    #[serde(default, rename = "info_data")]
    pub data: serde_json::Value,
    #[serde(default, rename = "info_slave_data")]
    pub port: serde_json::Value,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Address {
    pub local: Option<IpAddr>,
    #[serde(rename = "prefixlen")]
    pub prefix: u8,
}

impl World {
    pub(super) async fn observe() -> Result<Self, Error> {
        let text = tool::run("ip", &["-json", "-details", "address", "show"], "").await?;
        Self::parse(&text)
    }

    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        let links = serde_json::from_str(text).map_err(|error| Error::Io {
            action: "read the answer of ip".to_owned(),
            source: error.into(),
        })?;
        Ok(Self { links })
    }

    pub(super) fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    pub(super) fn links(&self) -> impl Iterator<Item = &Link> {
        self.links.iter()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.links.iter().map(|link| link.name.as_str())
    }

    /// The MTU of the device that has this host's address.
    pub(super) fn underlay_mtu(&self, address: IpAddr) -> Result<u32, Error> {
        let has = |link: &&Link| link.addresses.iter().any(|own| own.local == Some(address));
        self.links.iter().find(has).map(|link| link.mtu).ok_or(Error::NoUnderlay(address))
    }

    /// The segments that have a bridge here.
    pub(super) fn overlays(&self) -> BTreeSet<u32> {
        self.names().filter_map(name::vni_of_bridge).collect()
    }

    /// The largest MTU of a guest's port on a bridge.
    pub(super) fn largest_tap_on(&self, bridge: &str) -> Option<u32> {
        let is_tap = |link: &&Link| link.info.kind == "tun" && link.master.as_deref() == Some(bridge);
        self.links.iter().filter(is_tap).map(|link| link.mtu).max()
    }

    pub(super) fn has_taps_on(&self, bridge: &str) -> bool {
        self.largest_tap_on(bridge).is_some()
    }
}

impl Link {
    pub(super) fn is_up(&self) -> bool {
        self.flags.iter().any(|flag| flag == "UP")
    }
}
