//! An overlay segment: a bridge, its VXLAN device (RFC 7348) with a unicast flood list, and the gateway.
//!
//! Forwarding entries for guests are learned, never written: the announcement that QEMU broadcasts after a move
//! (RARP) re-teaches every host at once, and removing the port on the old host makes that one forget as well.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use serde::Deserialize;
use sterna_model::network::Cidr;

use super::world::{Link, World};
use super::{Error, forwarding, name, tool};

/// The port assigned to VXLAN.
const PORT: u16 = 4789;
const FLOOD: &str = "00:00:00:00:00:00";

/// What VXLAN adds to a packet: outer IP, UDP, VXLAN and inner Ethernet headers.
pub(super) fn overhead(underlay: IpAddr) -> u32 {
    match underlay {
        IpAddr::V4(_) => 20 + 8 + 8 + 14,
        IpAddr::V6(_) => 40 + 8 + 8 + 14,
    }
}

pub(super) struct Overlay {
    pub vni: u32,
    pub cidr: Cidr,
    pub host_address: Ipv4Addr,
    pub underlay: IpAddr,
    pub mtu: u32,
}

impl Overlay {
    pub(super) async fn ensure(&self, world: &World) -> Result<(), Error> {
        let lines = self.lines(world)?;
        if lines.is_empty() {
            return Ok(());
        }
        tool::ip_batch(&lines).await?;
        let port = name::gateway_port(self.vni);
        // A fixed place for the gateway's MAC: no guest that uses it can draw the others' traffic.
        let fixed = format!("fdb replace {} dev {port} master static", name::gateway_mac(self.vni));
        tool::bridge_batch(&[fixed]).await?;
        forwarding::ensure_device_settings(self.vni)
    }

    /// The commands that lead from `world` to this overlay; none when all is as it should be.
    fn lines(&self, world: &World) -> Result<Vec<String>, Error> {
        let mut lines = self.bridge(world)?;
        lines.extend(self.vxlan(world)?);
        lines.extend(self.gateway(world)?);
        Ok(lines)
    }

    fn bridge(&self, world: &World) -> Result<Vec<String>, Error> {
        let (device, mac) = (name::bridge(self.vni), name::host_mac(self.host_address));
        let own = (IpAddr::V4(self.host_address), self.cidr.prefix());
        let mut lines = Vec::new();
        let link = existing(world, &device, "bridge")?;
        if link.is_none() {
            lines.push(format!(
                "link add name {device} address {mac} mtu {} type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
                self.mtu
            ));
        }
        if link.is_none_or(|link| link.mtu != self.mtu || link.address != mac || !link.is_up()) {
            lines.push(format!("link set dev {device} address {mac} mtu {} addrgenmode none up", self.mtu));
        }
        lines.extend(addresses(&device, link, own));
        Ok(lines)
    }

    fn vxlan(&self, world: &World) -> Result<Vec<String>, Error> {
        let (device, bridge) = (name::vxlan(self.vni), name::bridge(self.vni));
        let mut lines = Vec::new();
        let mut link = existing(world, &device, "vxlan")?;
        if link.is_some_and(|link| !self.is_same_tunnel(link)) {
            lines.push(format!("link del dev {device}"));
            link = None;
        }
        if link.is_none() {
            lines.push(format!(
                "link add name {device} mtu {} type vxlan id {} local {} dstport {PORT} learning",
                self.mtu, self.vni, self.underlay
            ));
        }
        lines.extend(self.port(&device, &bridge, link, ""));
        Ok(lines)
    }

    fn gateway(&self, world: &World) -> Result<Vec<String>, Error> {
        let (port, device) = (name::gateway_port(self.vni), name::gateway(self.vni));
        let (mac, mtu) = (name::gateway_mac(self.vni), self.mtu);
        let link = existing(world, &port, "veth")?;
        let end = existing(world, &device, "veth")?;
        let mut lines = Vec::new();
        if link.is_none() {
            lines.push(format!(
                "link add name {port} mtu {mtu} type veth peer name {device} address {mac} mtu {mtu}"
            ));
        }
        // Learning is off there: the one address behind it is written.
        lines.extend(self.port(&port, &name::bridge(self.vni), link, " learning off"));
        if end.is_none_or(|end| end.mtu != mtu || end.address != mac || !end.is_up()) {
            lines.push(format!("link set dev {device} address {mac} mtu {mtu} addrgenmode none up"));
        }
        lines.extend(addresses(&device, end, (IpAddr::V4(self.cidr.gateway()), 32)));
        Ok(lines)
    }

    /// Puts a device on the bridge. Isolated ports exchange nothing with each other: neither ARP for the gateway nor
    /// its frames cross to other hosts.
    fn port(&self, device: &str, bridge: &str, link: Option<&Link>, options: &str) -> Vec<String> {
        let is_isolated = |link: &Link| link.info.port["isolated"].as_bool() == Some(true);
        let is_right = |link: &Link| {
            link.mtu == self.mtu
                && link.master.as_deref() == Some(bridge)
                && link.is_up()
                && is_isolated(link)
        };
        if link.is_some_and(is_right) {
            return Vec::new();
        }
        vec![
            format!("link set dev {device} mtu {} addrgenmode none master {bridge}", self.mtu),
            format!("link set dev {device} type bridge_slave isolated on{options}"),
            format!("link set dev {device} up"),
        ]
    }

    fn is_same_tunnel(&self, link: &Link) -> bool {
        let data = &link.info.data;
        let local = data["local"].as_str().or(data["local6"].as_str()).and_then(|text| text.parse().ok());
        data["id"].as_u64() == Some(self.vni.into())
            && local == Some(self.underlay)
            && data["port"].as_u64() == Some(PORT.into())
    }

    /// The flood list: where frames for unknown and all addresses go. Never this host itself: it would learn its own
    /// guests behind itself.
    pub(super) async fn ensure_peers(&self, peers: &[IpAddr]) -> Result<(), Error> {
        let device = name::vxlan(self.vni);
        let text = tool::run("bridge", &["-json", "fdb", "show", "dev", &device], "").await?;
        let have = flood_list(&text)?;
        let want: BTreeSet<IpAddr> = peers.iter().copied().filter(|peer| *peer != self.underlay).collect();
        let line =
            |verb: &str, peer: &IpAddr| format!("fdb {verb} {FLOOD} dev {device} dst {peer} self permanent");
        let gone = have.difference(&want).map(|peer| line("del", peer));
        let new = want.difference(&have).map(|peer| line("append", peer));
        tool::bridge_batch(&gone.chain(new).collect::<Vec<_>>()).await
    }
}

/// A device of our name that is of another kind is not ours to change.
fn existing<'a>(world: &'a World, device: &str, kind: &str) -> Result<Option<&'a Link>, Error> {
    match world.link(device) {
        Some(link) if link.info.kind != kind => Err(Error::Foreign { device: device.to_owned() }),
        link => Ok(link),
    }
}

/// The one address that our device has.
fn addresses(device: &str, link: Option<&Link>, own: (IpAddr, u8)) -> Vec<String> {
    let have = || link.into_iter().flat_map(|link| &link.addresses);
    let is_own = |(local, prefix): (IpAddr, u8)| (local, prefix) == own;
    let others =
        have().filter_map(|address| Some((address.local?, address.prefix))).filter(|at| !is_own(*at));
    let mut lines: Vec<_> =
        others.map(|(local, prefix)| format!("address del {local}/{prefix} dev {device}")).collect();
    if !have().any(|address| address.local.is_some_and(|local| is_own((local, address.prefix)))) {
        lines.push(format!("address add {}/{} dev {device}", own.0, own.1));
    }
    lines
}

fn flood_list(text: &str) -> Result<BTreeSet<IpAddr>, Error> {
    #[derive(Deserialize)]
    struct Entry {
        mac: String,
        dst: Option<IpAddr>,
    }
    let entries: Vec<Entry> = serde_json::from_str(text).map_err(|error| Error::Io {
        action: "read the answer of bridge".to_owned(),
        source: error.into(),
    })?;
    Ok(entries.into_iter().filter(|entry| entry.mac == FLOOD).filter_map(|entry| entry.dst).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlay() -> Overlay {
        Overlay {
            vni: 100,
            cidr: "10.64.0.0/24".parse().unwrap(),
            host_address: Ipv4Addr::new(10, 64, 0, 2),
            underlay: "10.77.0.1".parse().unwrap(),
            mtu: 1450,
        }
    }

    #[test]
    fn a_bare_machine_gets_every_device_once() {
        let lines = overlay().lines(&World::parse("[]").unwrap()).unwrap();
        let added: Vec<_> = lines.iter().filter(|line| line.starts_with("link add")).collect();
        assert_eq!(added.len(), 3, "{lines:#?}");
        assert!(
            lines.iter().any(|line| line.contains("type vxlan id 100 local 10.77.0.1 dstport 4789 learning"))
        );
        assert!(lines.contains(&"address add 10.64.0.2/24 dev sterna-b64".to_owned()));
        assert!(lines.contains(&"address add 10.64.0.1/32 dev sterna-g64".to_owned()));
    }

    #[test]
    fn a_tunnel_from_another_address_is_made_anew() {
        let world = World::parse(
            r#"[{"ifname":"sterna-x64","mtu":1450,"flags":["UP"],"master":"sterna-b64","linkinfo":
            {"info_kind":"vxlan","info_data":{"id":100,"local":"10.77.0.9","port":4789}}}]"#,
        );
        let lines = overlay().vxlan(&world.unwrap()).unwrap();
        assert_eq!(lines[0], "link del dev sterna-x64");
        assert!(lines[1].starts_with("link add name sterna-x64"));
    }

    #[test]
    fn a_device_of_another_kind_is_left_alone() {
        let world = World::parse(r#"[{"ifname":"sterna-b64","mtu":1500,"linkinfo":{"info_kind":"dummy"}}]"#);
        assert!(
            matches!(overlay().lines(&world.unwrap()), Err(Error::Foreign { device }) if device == "sterna-b64")
        );
    }

    #[test]
    fn learned_entries_are_not_the_flood_list() {
        let text = r#"[{"mac":"5e:01:0a:64:00:02","dst":"10.77.0.2","flags":["self"],"state":""},
            {"mac":"00:00:00:00:00:00","dst":"10.77.0.3","flags":["self"],"state":"permanent"},
            {"mac":"ae:23:fa:d6:39:88","flags":[],"state":"permanent"}]"#;
        assert_eq!(flood_list(text).unwrap(), BTreeSet::from(["10.77.0.3".parse().unwrap()]));
    }
}
