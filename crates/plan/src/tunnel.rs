//! Who reaches whom through the encrypted tunnel: each host every host of the other datacentres, straight.
//!
//! Reads: datacentres of hosts, what they report of their end. Never decides anything: keys and endpoints are the
//! hosts' word, addresses follow from their uids.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use sterna_model::network::NetworkDecision;
use sterna_model::tunnel::{PublicKey, TunnelSeen, address_of};
use sterna_wire::assignment::{Tunnel, TunnelPeer};

use crate::view::{Host, View};

/// `None`: this host has no end of the tunnel, or there is nobody at another.
pub(crate) fn of(view: &View, host: &Host<'_>) -> Option<Tunnel> {
    end_of(host)?;
    let others = view.hosts().filter(|other| !is_near(host, other));
    let peers = others.filter_map(|other| {
        let (public_key, endpoint) = end_of(&other)?;
        let (public_key, address) = (public_key.clone(), address_of(other.meta.uid));
        Some(TunnelPeer { host: other.name.clone(), public_key, endpoint, address })
    });
    let peers: Vec<_> = peers.collect();
    (!peers.is_empty()).then(|| Tunnel { address: address_of(host.meta.uid), peers })
}

/// The other hosts of a segment: those of the same datacentre by their own addresses, the others by the tunnel's or
/// not at all. What leaves a datacentre never goes in clear.
pub(crate) fn peers(
    view: &View,
    host: &Host<'_>,
    segment: &NetworkDecision,
    tunnel: Option<&Tunnel>,
) -> (Vec<IpAddr>, Vec<Ipv6Addr>) {
    let others =
        segment.hosts.keys().filter(|other| *other != host.name).filter_map(|other| view.host(other));
    let near = others.filter(|other| is_near(host, other)).map(|other| other.spec.addresses.management);
    let through = tunnel.into_iter().flat_map(|tunnel| &tunnel.peers);
    let far = through.filter(|peer| segment.hosts.contains_key(&peer.host)).map(|peer| peer.address);
    (near.collect(), far.collect())
}

fn is_near(host: &Host<'_>, other: &Host<'_>) -> bool {
    host.spec.datacentre == other.spec.datacentre
}

fn end_of<'a>(host: &Host<'a>) -> Option<(&'a PublicKey, SocketAddr)> {
    match host.report?.tunnel.as_ref()? {
        TunnelSeen::Ready { public_key, endpoint, .. } => Some((public_key, *endpoint)),
        TunnelSeen::Unavailable { .. } => None,
    }
}
