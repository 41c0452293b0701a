//! The encrypted tunnel between datacentres, on real devices: two hosts here, one there.

#![allow(clippy::unwrap_used)]

mod network {
    pub mod place;
}

use std::net::Ipv6Addr;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use network::place::{Place, eventually, lease, overlay_with};
use sterna_model::tunnel::{Carrier, TunnelSeen, address_of};
use sterna_wire::assignment::{NetworkAssignment, NetworkKind, Tunnel, TunnelPeer};
use uuid::Uuid;

/// Hosts 0 and 1 are in one datacentre, 2 in another.
const HOSTS: usize = 3;
const FAR: usize = 2;

fn is_near(one: usize, other: usize) -> bool {
    (one == FAR) == (other == FAR)
}

/// The device of a host is named by its address, and the names of all hosts of a machine differ.
fn inner(place: &Place, host: usize) -> Ipv6Addr {
    let place = place.prefix.bytes().fold(0_u128, |sum, byte| sum.wrapping_mul(31) + u128::from(byte));
    address_of(Uuid::from_u128(place << 2 | host as u128))
}

/// What host number `host` is told.
fn told(place: &Place, host: usize) -> (Vec<NetworkAssignment>, Tunnel) {
    let others = || (0..HOSTS).filter(move |other| *other != host);
    let near: Vec<_> = others().filter(|other| is_near(host, *other)).collect();
    let near: Vec<_> = near.iter().map(|other| place.hosts[*other].address.to_string()).collect();
    let mut wanted = overlay_with(&near.iter().map(String::as_str).collect::<Vec<_>>(), host as u8 + 2);
    let away: Vec<_> = others().filter(|other| !is_near(host, *other)).collect();
    if let NetworkKind::Overlay { far, .. } = &mut wanted[0].kind {
        *far = away.iter().map(|other| inner(place, *other)).collect();
    }
    let peers = away.iter().map(|other| {
        let TunnelSeen::Ready { public_key, endpoint, .. } = place.hosts[*other].tunnel() else {
            panic!("{:?}", place.hosts[*other].tunnel());
        };
        let host = format!("h{other}").parse().unwrap();
        TunnelPeer { host, public_key, endpoint, address: inner(place, *other) }
    });
    (wanted, Tunnel { address: inner(place, host), peers: peers.collect() })
}

fn two_datacentres(name: &str) -> Place {
    let place = Place::new(name, HOSTS as u8);
    ensure_all(&place);
    place
}

fn ensure_all(place: &Place) {
    for host in 0..HOSTS {
        let (wanted, tunnel) = told(place, host);
        place.hosts[host].ensure_far(wanted, tunnel);
    }
}

/// Counts what crosses the switch between the datacentres: VXLAN in clear on any of its ports, and the tunnel.
const COUNTERS: &str = r#"nft -f - <<'END'
table bridge crossing {
  counter clear {}
  counter tunnel {}
  chain forward {
    type filter hook forward priority 0;
    ip saddr != 10.77.0.3 ip daddr != 10.77.0.3 accept
    udp dport { 4789, 14789 } counter name clear
    udp dport 51830 counter name tunnel
  }
}
END"#;

fn crossed(place: &Place, counter: &str) -> u64 {
    let text = place.at_switch(&format!("nft list counter bridge crossing {counter}"));
    let words: Vec<_> = text.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "packets").unwrap();
    words[at + 1].parse().unwrap()
}

/// How many packets a host had to cut in pieces, of either family.
fn fragments(place: &Place, host: usize) -> String {
    let four =
        r#"awk '/^Ip:/ { if (c) print $c; else for (i = 1; i <= NF; i++) if ($i == "FragCreates") c = i }'"#;
    let six = "awk '/FragCreates/ { print $2 }' /proc/net/snmp6";
    let shown = place.hosts[host].sh(&format!("{four} /proc/net/snmp; {six}"));
    shown.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn datacentres_reach_each_other_through_the_tunnel_and_nothing_crosses_in_clear() {
    let place = Place::new("ta", HOSTS as u8);
    place.at_switch(COUNTERS);
    ensure_all(&place);
    let before = crossed(&place, "tunnel");
    for (from, to) in [(0, "10.64.0.4"), (1, "10.64.0.4"), (2, "10.64.0.2"), (0, "10.64.0.3")] {
        assert!(place.hosts[from].pings(to), "{from} to {to}");
    }
    // As large as a guest may send.
    assert!(place.hosts[0].pings_with("10.64.0.4", &["-s", "1322"]));
    assert_eq!(fragments(&place, 0), "0 0", "in pieces");
    assert!(crossed(&place, "tunnel") >= before + 24, "{before}, {}", crossed(&place, "tunnel"));
    assert_eq!(crossed(&place, "clear"), 0);
    // What would be in clear is seen, and what strays from the tunnel does not leave the host.
    for port in [4789, 14789] {
        place.hosts[0].sh(&format!("bash -c 'echo >/dev/udp/10.77.0.3/{port}' 2>/dev/null; true"));
    }
    assert_eq!(crossed(&place, "clear"), 1);
    let devices = place.hosts[0].sh("ip -br link | grep -c '^sterna-w'");
    assert_eq!(devices.trim(), "1");
}

#[test]
fn an_announcement_after_a_move_to_another_datacentre_re_teaches_every_host() {
    let place = two_datacentres("tb");
    let web = lease("5a:00:00:00:00:01", 50, "web");
    let guest = place.guest(0, &web);
    guest.also_at(&place, FAR);
    assert!(place.hosts[1].pings("10.64.0.50") && place.hosts[FAR].pings("10.64.0.50"));
    let arrivals = guest.listen();
    let sender = place.hosts[1].send_steadily("10.64.0.50");
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
    for host in [0, 1] {
        assert_eq!(place.hosts[host].forwarding_of("5a:00:00:00:00:01"), ["sterna-f64"], "host {host}");
    }
}

#[test]
fn an_agent_that_starts_again_disturbs_nothing_and_keeps_its_key() {
    let mut place = two_datacentres("tc");
    let key = place.hosts[0].dir.join("tunnel.key");
    assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(place.hosts[0].pings("10.64.0.4"));
    let (seen, before) = (place.hosts[0].tunnel(), place.hosts[0].links());
    let processes = place.hosts[0].processes("wireguard-go");
    place.hosts[0].restart_agent();
    let (wanted, tunnel) = told(&place, 0);
    place.hosts[0].ensure_far(wanted, tunnel);
    assert_eq!(place.hosts[0].tunnel(), seen);
    assert_eq!((place.hosts[0].links(), place.hosts[0].processes("wireguard-go")), (before, processes));
    assert!(place.hosts[0].pings("10.64.0.4"));
}

#[test]
fn a_tunnel_whose_process_ended_is_made_again() {
    let place = two_datacentres("td");
    let TunnelSeen::Ready { carrier, .. } = place.hosts[0].tunnel() else { panic!() };
    if carrier == Carrier::Kernel {
        println!("not run: the kernel has WireGuard, there is no process");
        return;
    }
    let [first] = place.hosts[0].processes("wireguard-go")[..] else { panic!() };
    network::place::kill(first);
    eventually("another process runs", || {
        place.hosts[0].processes("wireguard-go").iter().any(|other| *other != first)
    });
    eventually("it works again", || {
        let (wanted, tunnel) = told(&place, 0);
        place.hosts[0].ensure_far(wanted, tunnel);
        place.hosts[0].pings("10.64.0.4")
    });
}

#[test]
fn leaving_ends_the_tunnel_and_without_one_no_other_datacentre_is_reached() {
    let place = two_datacentres("te");
    let host = &place.hosts[0];
    assert!(host.pings("10.64.0.4"));
    host.ensure(told(&place, 0).0);
    assert!(!host.links().contains("sterna-w") && !host.links().contains("sterna-f"), "{}", host.links());
    assert!(!host.pings("10.64.0.4") && host.pings("10.64.0.3"));
    let (wanted, tunnel) = told(&place, 0);
    host.ensure_far(wanted, tunnel);
    assert!(host.pings("10.64.0.4"), "it is made again");
    host.leave();
    assert!(!host.links().contains("sterna-"), "{}", host.links());
    assert!(host.processes("wireguard-go").is_empty());
}

#[test]
fn a_host_whose_underlay_is_too_small_says_so() {
    let place = Place::new("tf", 1);
    place.hosts[0].sh("ip link set eth0 mtu 1450");
    let TunnelSeen::Unavailable { why } = place.hosts[0].tunnel() else { panic!() };
    assert!(why.contains("1450") && why.contains("1500"), "{why}");
    place.hosts[0].sh("ip link set eth0 mtu 1500");
    assert!(matches!(place.hosts[0].tunnel(), TunnelSeen::Ready { .. }), "it is looked at again");
}
