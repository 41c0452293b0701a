//! A bridge that the operator made: looked at, never changed.

use super::world::World;
use super::{Error, Ready};

pub(super) fn check(world: &World, bridge: &str, vlan: Option<u16>) -> Result<Ready, Error> {
    let name = bridge.to_owned();
    let link = world.link(bridge).ok_or_else(|| Error::NoBridge { bridge: name.clone() })?;
    if link.info.kind != "bridge" {
        let kind = if link.info.kind.is_empty() { "physical" } else { &link.info.kind };
        return Err(Error::NotABridge { bridge: name, kind: kind.to_owned() });
    }
    let filters = link.info.data["vlan_filtering"].as_u64() == Some(1);
    match vlan {
        Some(vlan) if !filters => Err(Error::NoVlans { bridge: name, vlan }),
        vlan => Ok(Ready { bridge: name, mtu: link.mtu, vlan }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world() -> World {
        World::parse(
            r#"[{"ifname":"br0","mtu":9000,"linkinfo":{"info_kind":"bridge","info_data":{"vlan_filtering":1}}},
                {"ifname":"br1","mtu":1500,"linkinfo":{"info_kind":"bridge","info_data":{"vlan_filtering":0}}},
                {"ifname":"eth0","mtu":1500}]"#,
        )
        .unwrap()
    }

    #[test]
    fn a_bridge_gives_its_own_mtu() {
        let ready = Ready { bridge: "br0".to_owned(), mtu: 9000, vlan: Some(12) };
        assert_eq!(check(&world(), "br0", Some(12)).unwrap(), ready);
    }

    #[test]
    fn what_is_wrong_is_said_precisely() {
        let why = |bridge: &str, vlan| check(&world(), bridge, vlan).unwrap_err().to_string();
        assert!(why("br9", None).contains("no bridge `br9`"));
        assert!(why("eth0", None).contains("`physical`, not a bridge"));
        assert!(why("br1", Some(12)).contains("ip link set br1 type bridge vlan_filtering 1"));
        assert!(check(&world(), "br1", None).is_ok(), "without a VLAN it needs no filtering");
    }
}
