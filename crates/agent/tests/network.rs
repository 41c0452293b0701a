//! Overlay segments on real devices: three hosts and their guests as network namespaces.

#![allow(clippy::unwrap_used)]

mod network {
    pub mod place;
}

use std::time::{Duration, Instant};

use network::place::{Place, eventually, lease, overlay};
use sterna_wire::assignment::{NetworkAssignment, NetworkKind};
use uuid::Uuid;

fn bridge(name: &str, bridge: &str, vlan: Option<u16>) -> Vec<NetworkAssignment> {
    let kind = NetworkKind::Bridge { bridge: bridge.to_owned(), vlan };
    vec![NetworkAssignment { name: name.parse().unwrap(), kind }]
}

#[test]
fn guests_get_their_address_and_reach_each_other_and_the_world() {
    let place = Place::new("na", 2);
    let (web, db) = (lease("5a:00:00:00:00:01", 50, "web"), lease("5a:00:00:00:00:02", 51, "db"));
    place.hosts[0].ensure(overlay(&place, 0, std::slice::from_ref(&web)));
    place.hosts[1].ensure(overlay(&place, 1, std::slice::from_ref(&db)));
    let (web, db) = (place.guest(0, &web), place.guest(1, &db));
    let said = web.dhcp(5);
    assert_eq!(said.as_deref(), Some("bound 10.64.0.50 10.64.0.1 1350"));
    assert!(db.dhcp(5).is_some());
    for to in ["10.64.0.51", "10.64.0.1", "10.64.0.2", "10.64.0.3"] {
        assert!(web.pings(to), "{to}");
    }
    assert!(web.pings("10.77.0.254"), "the world outside, through the gateway");
    // A full-size packet crosses whole.
    assert!(web.pings_with("10.64.0.51", &["-s", "1322"]));
}

#[test]
fn another_hosts_guest_gets_no_address_across_the_overlay() {
    let place = Place::new("nb", 2);
    let web = lease("5a:00:00:00:00:01", 50, "web");
    place.hosts[0].ensure(overlay(&place, 0, &[]));
    place.hosts[1].ensure(overlay(&place, 1, std::slice::from_ref(&web)));
    let guest = place.guest(0, &web);
    assert_eq!(guest.dhcp(2), None);
    place.hosts[0].ensure(overlay(&place, 0, &[web]));
    assert!(guest.dhcp(5).is_some(), "a lease added later is served without a restart");
    place.hosts[0].ensure(overlay(&place, 0, &[]));
    assert_eq!(guest.dhcp(2), None, "a lease taken away is not served");
}

#[test]
fn an_announcement_after_a_move_re_teaches_every_host() {
    let place = Place::new("nc", 3);
    let web = lease("5a:00:00:00:00:01", 50, "web");
    for host in 0..3 {
        place.hosts[host].ensure(overlay(&place, host, std::slice::from_ref(&web)));
    }
    let guest = place.guest(0, &web);
    guest.also_at(&place, 1);
    assert!(place.hosts[2].pings("10.64.0.50"));
    let seen = place.hosts[0].forwarding_of("5a:00:00:00:00:01");
    assert!(seen.iter().all(|device| device.starts_with('g')), "its own port: {seen:?}");
    // One datagram each 2 ms from the third host; the guest notes when they come.
    let arrivals = guest.listen();
    let sender = place.hosts[2].send_steadily("10.64.0.50");
    eventually("datagrams arrive", || arrivals.count() > 50);
    let moved = Instant::now();
    guest.move_to_second();
    let took = moved.elapsed();
    let before = arrivals.count();
    eventually("datagrams arrive again", || arrivals.count() > before + 50);
    drop(sender);
    let gap = arrivals.longest_silence();
    println!("gap of the stream {gap:?}, of it the commands that move the guest {took:?}");
    assert!(gap < took + Duration::from_millis(50), "{gap:?}, commands {took:?}");
    // The old host knows where it went although the port is still there and up.
    let port = place.hosts[0].sh("ip -br link show up master sterna-b64 | grep ^g");
    assert!(port.contains(" UP "), "{port}");
    let seen = place.hosts[0].forwarding_of("5a:00:00:00:00:01");
    assert_eq!(seen, ["sterna-x64"]);
}

#[test]
fn a_second_agent_changes_nothing_and_adopts_what_serves_addresses() {
    let mut place = Place::new("nd", 1);
    let web = lease("5a:00:00:00:00:01", 50, "web");
    let wanted = overlay(&place, 0, &[web]);
    place.hosts[0].ensure(wanted.clone());
    eventually("dnsmasq runs", || place.hosts[0].servers().len() == 1);
    let before = (place.hosts[0].links(), place.hosts[0].servers());
    place.hosts[0].restart_agent();
    place.hosts[0].ensure(wanted);
    assert_eq!(before, (place.hosts[0].links(), place.hosts[0].servers()));
    let first = before.1[0];
    network::place::kill(first);
    eventually("another dnsmasq runs", || {
        let servers = place.hosts[0].servers();
        servers.len() == 1 && servers[0] != first
    });
}

#[test]
fn leaving_removes_what_was_made_and_nothing_else() {
    let place = Place::new("ne", 1);
    let host = &place.hosts[0];
    host.sh("ip link add sterna-mine type bridge; ip tuntap add tap0 mode tap; nft add table inet mine");
    let (before, rules) = (host.links(), host.sh("nft list ruleset"));
    host.ensure(overlay(&place, 0, &[]));
    let vm = Uuid::from_u128(0xabcd);
    let name = host.tap(vm, 0, "lan").unwrap();
    assert_eq!(host.tap(vm, 0, "lan").unwrap(), name, "the same port again is no error");
    assert_eq!(host.taps().iter().map(|tap| (tap.vm, tap.index)).collect::<Vec<_>>(), [(vm, 0)]);
    assert!(host.sh(&format!("ip -d link show {name}")).contains("user 64711"));
    host.ensure(Vec::new());
    assert!(host.links().contains("sterna-b64"), "a network with a port is kept");
    host.remove_tap(&name);
    host.remove_tap(&name);
    host.recheck(Vec::new());
    assert!(!host.links().contains("sterna-b64"), "without one it goes");
    host.ensure(overlay(&place, 0, &[]));
    host.tap(vm, 1, "lan").unwrap();
    host.leave();
    assert_eq!((before, rules), (host.links(), host.sh("nft list ruleset")));
    assert_eq!(host.sh("cat /proc/sys/net/ipv4/ip_forward").trim(), "0");
    assert!(host.servers().is_empty());
}

#[test]
fn a_changed_assignment_changes_the_devices() {
    let place = Place::new("nf", 1);
    let host = &place.hosts[0];
    host.ensure(network::place::overlay_with(&["10.77.0.2", "10.77.0.3"], 2));
    host.ensure(network::place::overlay_with(&["10.77.0.3", "10.77.0.1"], 9));
    let flood = host.sh("bridge fdb show dev sterna-x64 | grep ^00:00");
    assert!(flood.contains("10.77.0.3") && !flood.contains("10.77.0.2"), "{flood}");
    assert!(!flood.contains("10.77.0.1 "), "never the host itself: {flood}");
    let addresses = host.sh("ip -o -4 address show dev sterna-b64");
    assert!(addresses.contains("10.64.0.9/24") && !addresses.contains("10.64.0.2/24"), "{addresses}");
    // What someone else changed is put right at the next look.
    host.sh("ip link del sterna-x64; ip link set sterna-b64 down");
    host.recheck(network::place::overlay_with(&["10.77.0.3"], 9));
    assert!(host.sh("bridge fdb show dev sterna-x64").contains("10.77.0.3"));
    assert!(host.sh("ip link show sterna-b64").contains(",UP"));
}

#[test]
fn a_missing_bridge_is_named_and_does_not_stop_the_others() {
    let place = Place::new("ng", 1);
    let mut wanted = overlay(&place, 0, &[]);
    wanted.extend(bridge("office", "br7", None));
    let failed = place.hosts[0].try_ensure(wanted);
    assert_eq!(failed.len(), 1);
    assert!(failed["office"].contains("no bridge `br7`"), "{failed:?}");
    let why = place.hosts[0].tap(Uuid::from_u128(1), 0, "office").unwrap_err();
    assert!(why.contains("no bridge `br7`"), "{why}");
    assert!(place.hosts[0].tap(Uuid::from_u128(1), 0, "lan").is_ok());
    place.hosts[0].sh("ip link add br7 type bridge; ip link set br7 mtu 1400 up");
    assert!(place.hosts[0].try_ensure(bridge("office", "br7", None)).is_empty());
    let name = place.hosts[0].tap(Uuid::from_u128(2), 0, "office").unwrap();
    let link = place.hosts[0].sh(&format!("ip link show {name}"));
    assert!(link.contains("master br7") && link.contains("mtu 1400"), "{link}");
    let failed = place.hosts[0].try_ensure(bridge("office", "br7", Some(12)));
    assert!(failed["office"].contains("vlan_filtering 1"), "{failed:?}");
}
