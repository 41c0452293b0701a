//! An overlay segment: a bridge, its VXLAN devices (RFC 7348) with unicast flood lists, and the gateway. One device
//! is for the hosts of this datacentre; the other sends through the tunnel to those of other datacentres.
//!
//! Forwarding entries for guests are learned, never written: the announcement that QEMU broadcasts after a move
//! (RARP) re-teaches every host at once, and removing the port on the old host makes that one forget as well.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::Deserialize;
use sterna_model::network::{Cidr, OVERLAY_MTU};

use super::world::{Link, World};
use super::{Error, forwarding, name, tool};

/// The port assigned to VXLAN.
const PORT: u16 = 4789;
/// Inside the tunnel another one: so a device for each can stand side by side whatever the underlay's family, and a
/// packet that strays from the tunnel is known by it.
pub(super) const FAR_PORT: u16 = 14_789;
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
    /// Of bridge and neighbours. More than a guest is given while one is here that was given more.
    pub mtu: u32,
    /// This host's end of the tunnel, if it has one and anybody is at another.
    pub far: Option<Far>,
}

/// An end of the tunnel between datacentres.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Far {
    pub device: String,
    pub address: Ipv6Addr,
}

/// One VXLAN device of a segment.
struct Way {
    device: String,
    local: IpAddr,
    port: u16,
    mtu: u32,
    /// The device that everything leaves by; `None`: as the routes say.
    through: Option<String>,
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
        lines.extend(self.vxlans(world)?);
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

    fn near(&self) -> Way {
        let (device, local) = (name::vxlan(self.vni), self.underlay);
        Way { device, local, port: PORT, mtu: self.mtu, through: None }
    }

    fn far(&self) -> Option<Way> {
        let Far { device, address } = self.far.clone()?;
        let (local, through) = (address.into(), Some(device));
        // More does not fit through the tunnel.
        Some(Way { device: name::far(self.vni), local, port: FAR_PORT, mtu: OVERLAY_MTU, through })
    }

    fn vxlans(&self, world: &World) -> Result<Vec<String>, Error> {
        let mut lines = self.vxlan(world, &self.near())?;
        match self.far() {
            Some(far) => lines.extend(self.vxlan(world, &far)?),
            None => {
                let device = name::far(self.vni);
                let stray = existing(world, &device, "vxlan")?;
                lines.extend(stray.map(|_| format!("link del dev {device}")));
            }
        }
        Ok(lines)
    }

    fn vxlan(&self, world: &World, way: &Way) -> Result<Vec<String>, Error> {
        let Way { device, local, port, mtu, through } = way;
        let mut lines = Vec::new();
        let mut link = existing(world, device, "vxlan")?;
        if link.is_some_and(|link| !self.is_same_way(link, way)) {
            lines.push(format!("link del dev {device}"));
            link = None;
        }
        if link.is_none() {
            let through = through.as_ref().map(|through| format!(" dev {through}")).unwrap_or_default();
            lines.push(format!(
                "link add name {device} mtu {mtu} type vxlan id {} local {local}{through} dstport {port} learning",
                self.vni
            ));
        }
        lines.extend(self.port(device, link, *mtu, ""));
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
        lines.extend(self.port(&port, link, mtu, " learning off"));
        if end.is_none_or(|end| end.mtu != mtu || end.address != mac || !end.is_up()) {
            lines.push(format!("link set dev {device} address {mac} mtu {mtu} addrgenmode none up"));
        }
        lines.extend(addresses(&device, end, (IpAddr::V4(self.cidr.gateway()), 32)));
        Ok(lines)
    }

    /// Puts a device on the bridge. Isolated ports exchange nothing with each other: neither ARP for the gateway nor
    /// its frames cross to other hosts.
    fn port(&self, device: &str, link: Option<&Link>, mtu: u32, options: &str) -> Vec<String> {
        let bridge = name::bridge(self.vni);
        let is_isolated = |link: &Link| link.info.port["isolated"].as_bool() == Some(true);
        let is_right = |link: &Link| {
            link.mtu == mtu && link.master.as_deref() == Some(&bridge) && link.is_up() && is_isolated(link)
        };
        if link.is_some_and(is_right) {
            return Vec::new();
        }
        vec![
            format!("link set dev {device} mtu {mtu} addrgenmode none master {bridge}"),
            format!("link set dev {device} type bridge_slave isolated on{options}"),
            format!("link set dev {device} up"),
        ]
    }

    fn is_same_way(&self, link: &Link, way: &Way) -> bool {
        let data = &link.info.data;
        let local = data["local"].as_str().or(data["local6"].as_str()).and_then(|text| text.parse().ok());
        data["id"].as_u64() == Some(self.vni.into())
            && local == Some(way.local)
            && data["port"].as_u64() == Some(way.port.into())
            && data["link"].as_str() == way.through.as_deref()
    }

    /// The flood lists: where frames for unknown and all addresses go. Never this host itself: it would learn its own
    /// guests behind itself.
    pub(super) async fn ensure_peers(&self, near: &[IpAddr], far: &[Ipv6Addr]) -> Result<(), Error> {
        let near = near.iter().copied().filter(|peer| *peer != self.underlay).collect();
        ensure_flood_list(&name::vxlan(self.vni), &near).await?;
        let Some(own) = &self.far else { return Ok(()) };
        let far = far.iter().copied().filter(|peer| *peer != own.address).map(IpAddr::V6).collect();
        ensure_flood_list(&name::far(self.vni), &far).await
    }
}

async fn ensure_flood_list(device: &str, want: &BTreeSet<IpAddr>) -> Result<(), Error> {
    let text = tool::run("bridge", &["-json", "fdb", "show", "dev", device], "").await?;
    let have = flood_list(&text)?;
    let line =
        |verb: &str, peer: &IpAddr| format!("fdb {verb} {FLOOD} dev {device} dst {peer} self permanent");
    let gone = have.difference(want).map(|peer| line("del", peer));
    let new = want.difference(&have).map(|peer| line("append", peer));
    tool::bridge_batch(&gone.chain(new).collect::<Vec<_>>()).await
}

/// A device of our name that is of another kind is not ours to change.
fn existing<'a>(world: &'a World, device: &str, kind: &str) -> Result<Option<&'a Link>, Error> {
    match world.link(device) {
        Some(link) if link.info.kind != kind => Err(Error::Foreign { device: device.to_owned() }),
        link => Ok(link),
    }
}

/// The one address that our device has.
pub(super) fn addresses(device: &str, link: Option<&Link>, own: (IpAddr, u8)) -> Vec<String> {
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
            mtu: 1350,
            far: None,
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
            r#"[{"ifname":"sterna-x64","mtu":1350,"flags":["UP"],"master":"sterna-b64","linkinfo":
            {"info_kind":"vxlan","info_data":{"id":100,"local":"10.77.0.9","port":4789}}}]"#,
        );
        let lines = overlay().vxlans(&world.unwrap()).unwrap();
        assert_eq!(lines[0], "link del dev sterna-x64");
        assert!(lines[1].starts_with("link add name sterna-x64"));
    }

    fn far_overlay() -> Overlay {
        let far = Far { device: "sterna-w0000001".to_owned(), address: "fd53::1".parse().unwrap() };
        Overlay { far: Some(far), ..overlay() }
    }

    #[test]
    fn the_way_to_other_datacentres_is_bound_to_the_tunnel() {
        let lines = far_overlay().lines(&World::parse("[]").unwrap()).unwrap();
        let wanted = "type vxlan id 100 local fd53::1 dev sterna-w0000001 dstport 14789 learning";
        assert!(lines.iter().any(|line| line.contains(wanted)), "{lines:#?}");
        // Frames from a neighbour do not go on to other datacentres: it sends them there itself.
        assert!(lines.contains(&"link set dev sterna-f64 type bridge_slave isolated on".to_owned()));
    }

    #[test]
    fn without_the_tunnel_its_device_goes() {
        let text = |through: &str| {
            format!(
                r#"[{{"ifname":"sterna-f64","mtu":1350,"flags":["UP"],"master":"sterna-b64","linkinfo":{{
                "info_kind":"vxlan","info_slave_data":{{"isolated":true}},"info_data":
                {{"id":100,"local6":"fd53::1","port":14789,"link":"{through}"}}}}}}]"#
            )
        };
        let world = World::parse(&text("sterna-w0000001")).unwrap();
        let about_far =
            |lines: Vec<String>| lines.into_iter().filter(|line| line.contains("sterna-f64")).collect();
        let none: Vec<String> = about_far(far_overlay().vxlans(&world).unwrap());
        assert_eq!(none, Vec::<String>::new());
        let gone: Vec<String> = about_far(overlay().vxlans(&world).unwrap());
        assert_eq!(gone, ["link del dev sterna-f64"]);
        let another = World::parse(&text("eth0")).unwrap();
        assert_eq!(
            far_overlay().vxlans(&another).unwrap().iter().filter(|l| l.contains("link del")).count(),
            1
        );
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
