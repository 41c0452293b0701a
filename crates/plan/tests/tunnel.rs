//! Hosts of different datacentres reach each other through the tunnel, or not at all.
#![allow(clippy::unwrap_used)]

mod world;

use std::net::{IpAddr, Ipv6Addr};

use sterna_base::units::Bytes;
use sterna_model::tunnel::{Carrier, TunnelSeen, address_of};
use sterna_plan::assignment::assignment;
use sterna_wire::assignment::{NetworkKind, Tunnel};
use world::{World, name};

/// Hosts `a1` and `a2` in one datacentre, `b1` in another, and a network that spans them.
fn two_datacentres() -> World {
    let eight = Bytes::gib(8);
    let mut world = World::new().host("a1", eight).host("a2", eight).host("b1", eight);
    world.change_host("b1", |spec| spec.datacentre = name("b"));
    world
}

fn offer(world: &mut World, host: &str, tunnel: TunnelSeen) {
    world.report_host(host, |report| report.tunnel = Some(tunnel));
}

fn ready(number: u8) -> TunnelSeen {
    TunnelSeen::Ready {
        public_key: format!("{}A=", char::from(b'a' + number).to_string().repeat(42)).parse().unwrap(),
        endpoint: ([10, 0, 0, number], 51830).into(),
        carrier: Carrier::Kernel,
        trouble: None,
    }
}

fn told(world: &World, host: &str) -> (Option<Tunnel>, Vec<IpAddr>, Vec<Ipv6Addr>) {
    let told = assignment(&world.view, &name(host));
    let NetworkKind::Overlay { peers, far, .. } = &told.networks[0].kind else { panic!() };
    (told.tunnel, peers.clone(), far.clone())
}

fn management(world: &World, host: &str) -> IpAddr {
    world.view.host(&name(host)).unwrap().spec.addresses.management
}

fn inner(world: &World, host: &str) -> Ipv6Addr {
    address_of(world.view.host(&name(host)).unwrap().meta.uid)
}

#[test]
fn each_host_has_the_hosts_of_other_datacentres_as_peers_and_its_neighbours_in_clear() {
    let mut world = two_datacentres();
    for (number, host) in ["a1", "a2", "b1"].into_iter().enumerate() {
        offer(&mut world, host, ready(number as u8));
    }
    world.settle();
    let (tunnel, near, far) = told(&world, "b1");
    let tunnel = tunnel.unwrap();
    assert_eq!(tunnel.address, inner(&world, "b1"));
    let peers: Vec<_> =
        tunnel.peers.iter().map(|peer| (peer.host.as_str(), peer.endpoint.to_string())).collect();
    assert_eq!(peers, [("a1", "10.0.0.0:51830".to_owned()), ("a2", "10.0.0.1:51830".to_owned())]);
    assert_eq!((near, far), (vec![], vec![inner(&world, "a1"), inner(&world, "a2")]));
    let (tunnel, near, far) = told(&world, "a1");
    assert_eq!(tunnel.unwrap().peers.len(), 1);
    assert_eq!((near, far), (vec![management(&world, "a2")], vec![inner(&world, "b1")]));
}

#[test]
fn a_host_without_a_tunnel_reaches_its_own_datacentre_only_and_never_another_in_clear() {
    let mut world = two_datacentres();
    offer(&mut world, "a1", TunnelSeen::Unavailable { why: "install wireguard-go".to_owned() });
    offer(&mut world, "b1", ready(1));
    world.settle();
    // `a2` says nothing of tunnels: an older version.
    for host in ["a1", "a2"] {
        let other = if host == "a1" { "a2" } else { "a1" };
        assert_eq!(told(&world, host), (None, vec![management(&world, other)], vec![]));
    }
    assert_eq!(told(&world, "b1"), (None, vec![], vec![]));
}

#[test]
fn within_one_datacentre_there_is_no_tunnel() {
    let mut world = two_datacentres();
    world.change_host("b1", |spec| spec.datacentre = name("dc"));
    for (number, host) in ["a1", "a2", "b1"].into_iter().enumerate() {
        offer(&mut world, host, ready(number as u8));
    }
    world.settle();
    let (tunnel, near, far) = told(&world, "a1");
    assert_eq!((tunnel, near.len(), far.len()), (None, 2, 0));
}
