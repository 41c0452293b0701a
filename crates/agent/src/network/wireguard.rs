//! WireGuard's own tool: what `wg show DEVICE dump` says, and the words of `wg set` that lead to what is wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use sterna_model::tunnel::PublicKey;
use sterna_wire::assignment::TunnelPeer;

/// A device as it is.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Device {
    /// Absent: it has no key yet.
    pub public_key: Option<PublicKey>,
    pub port: Option<u16>,
    peers: BTreeMap<PublicKey, Peer>,
}

#[derive(Debug, PartialEq, Eq)]
struct Peer {
    endpoint: Option<SocketAddr>,
    /// Networks that it may send from, as the tool writes them.
    allowed: String,
}

impl Device {
    /// Lines of fields with tabs between them. The first is the device: private key, public key, port, mark. The others
    /// are peers: public key, preshared key, endpoint, networks, and figures.
    pub(super) fn parse(dump: &str) -> Self {
        let mut lines = dump.lines().map(|line| line.split('\t').collect::<Vec<_>>());
        let Some(device) = lines.next() else { return Self::default() };
        let field = |at: usize| device.get(at).copied().unwrap_or_default();
        let peers = lines.filter_map(|fields| {
            let endpoint = fields.get(2)?.parse().ok();
            Some((fields.first()?.parse().ok()?, Peer { endpoint, allowed: (*fields.get(3)?).to_owned() }))
        });
        Self { public_key: field(1).parse().ok(), port: field(2).parse().ok(), peers: peers.collect() }
    }
}

/// What to add to `wg set DEVICE` for these peers and no others; empty when all is so already.
pub(super) fn changes(have: &Device, want: &[TunnelPeer]) -> Vec<String> {
    let wanted: BTreeSet<_> = want.iter().map(|peer| &peer.public_key).collect();
    // First: a network moves to the peer that is given it last.
    let gone = have.peers.keys().filter(|key| !wanted.contains(key));
    let gone = gone.flat_map(|key| ["peer".to_owned(), key.to_string(), "remove".to_owned()]);
    let new = want.iter().filter(|peer| {
        let there = have.peers.get(&peer.public_key);
        there.is_none_or(|there| there.endpoint != Some(peer.endpoint) || there.allowed != network(peer))
    });
    let new = new.flat_map(|peer| {
        [
            "peer",
            &peer.public_key.to_string(),
            "endpoint",
            &peer.endpoint.to_string(),
            "allowed-ips",
            &network(peer),
        ]
        .map(str::to_owned)
    });
    gone.chain(new).collect()
}

fn network(peer: &TunnelPeer) -> String {
    format!("{}/128", peer.address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(letter: char) -> String {
        format!("{}A=", letter.to_string().repeat(42))
    }

    fn peer(letter: char, port: u16) -> TunnelPeer {
        TunnelPeer {
            host: "b1".parse().unwrap(),
            public_key: key(letter).parse().unwrap(),
            endpoint: ([192, 0, 2, 1], port).into(),
            address: "fd53::1".parse().unwrap(),
        }
    }

    fn device() -> Device {
        let dump = format!(
            "{}\t{}\t51830\toff\n{}\t(none)\t192.0.2.1:7\tfd53::1/128\t1700000000\t5\t6\toff\n",
            key('p'),
            key('q'),
            key('b')
        );
        Device::parse(&dump)
    }

    #[test]
    fn what_is_as_it_should_be_is_left_alone() {
        let have = device();
        assert_eq!((have.public_key.clone(), have.port), (Some(key('q').parse().unwrap()), Some(51830)));
        assert_eq!(changes(&have, &[peer('b', 7)]), Vec::<String>::new());
    }

    #[test]
    fn a_peer_that_differs_is_set_and_one_that_is_gone_is_removed_first() {
        let (b, c) = (key('b'), key('c'));
        let set =
            |key: &str, port: u16| format!("peer {key} endpoint 192.0.2.1:{port} allowed-ips fd53::1/128");
        assert_eq!(changes(&device(), &[peer('b', 8)]).join(" "), set(&b, 8));
        let told = changes(&device(), &[peer('c', 7)]).join(" ");
        assert_eq!(told, format!("peer {b} remove {}", set(&c, 7)));
        assert_eq!(changes(&device(), &[]).join(" "), format!("peer {b} remove"));
    }

    #[test]
    fn a_device_without_anything_is_understood() {
        let bare = Device::parse("(none)\t(none)\t0\toff\n");
        assert_eq!(bare, Device { port: Some(0), ..Device::default() });
        assert_eq!(Device::parse(""), Device::default());
    }
}
