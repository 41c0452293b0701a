//! Which address of this machine others reach, and what it is called.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};

use anyhow::{Context, Result};
use sterna_model::meta::Name;

/// The host name's first label as a name.
pub fn name() -> Result<Name> {
    let uname = rustix::system::uname();
    let text = uname.nodename().to_string_lossy().to_ascii_lowercase();
    let label = text.split('.').next().unwrap_or_default();
    Name::new(label)
        .with_context(|| format!("the host name {label:?} cannot name a host; give one with --host"))
}

/// The address that packets to `peer` leave from. A UDP socket is only connected: nothing is sent.
pub fn address_towards(peer: SocketAddr) -> Result<IpAddr> {
    let any: SocketAddr = if peer.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).context("open a socket")?;
    socket.connect(peer).with_context(|| format!("find a way to {peer}"))?;
    Ok(socket.local_addr().context("read the own address")?.ip())
}

/// The address that this machine uses towards the rest of the world: documentation addresses (RFC 5737) follow the
/// default route and belong to nobody.
pub fn address() -> Result<IpAddr> {
    address_towards(([192, 0, 2, 1], 9).into())
        .context("this machine has no default route; say with --advertise how the others reach it")
}

/// The first address that `HOST:PORT` stands for.
pub fn resolve(server: &str) -> Result<SocketAddr> {
    let mut found = server.to_socket_addrs().with_context(|| format!("look up {server}"))?;
    found.next().with_context(|| format!("{server} has no address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_to_loopback_leave_from_loopback() {
        let peer = resolve("127.0.0.1:7443").unwrap();
        assert_eq!(address_towards(peer).unwrap(), IpAddr::from([127, 0, 0, 1]));
    }
}
