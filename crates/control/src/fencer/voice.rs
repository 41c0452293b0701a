//! How a fencer speaks to voters, and by what clock: UDP under the server's key, or what a simulation has for it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::Context;
use sterna_guard::core::id::HostId;
use sterna_guard::core::message::Message;
use sterna_guard::core::time::BootInstant;
use sterna_guard::datagram::{Channels, DATAGRAM_MAX, HostKey, PublicKey};
use sterna_guard::shell::clock;
use sterna_guard::shell::request;
use sterna_model::ha::Peer;
use sterna_store::BoxFuture;
use tokio::net::UdpSocket;

use super::witness::Teller;

/// Every message may be lost, late and out of order.
pub trait Voice: Send {
    /// `CLOCK_BOOTTIME` of this machine.
    fn now(&self) -> BootInstant;
    /// Whom to speak to from now on. Nobody else is heard.
    fn set_peers(&mut self, peers: &BTreeMap<HostId, Peer>);
    /// Best effort: the protocol expects every datagram to be lost.
    fn send(&mut self, to: HostId, message: &Message);
    /// The next that has come, from whoever has that peer's key.
    fn receive(&mut self) -> Option<(HostId, Message)>;
    /// Until something may have come, at the latest until then. May be dropped and called again.
    fn wait(&mut self, until: BootInstant) -> BoxFuture<'_, ()>;
    /// Tells the guard beside this server, if there is one, whom it speaks to.
    fn tell_witness(&mut self, settings: request::Settings);
}

/// The production voice.
pub struct Udp {
    socket: UdpSocket,
    channels: Channels,
    addresses: BTreeMap<HostId, Vec<SocketAddr>>,
    witness: Option<Teller>,
}

impl Udp {
    pub fn open(
        me: HostId,
        key: HostKey,
        listen: SocketAddr,
        witness: Option<Teller>,
    ) -> anyhow::Result<Self> {
        let mut session = [0; 8];
        aws_lc_rs::rand::fill(&mut session).context("draw a session number")?;
        let channels = Channels::new(me, key, u64::from_be_bytes(session));
        let socket =
            std::net::UdpSocket::bind(listen).with_context(|| format!("listen at {listen} for voters"))?;
        socket.set_nonblocking(true).context("prepare the voters' socket")?;
        let socket = UdpSocket::from_std(socket).context("watch the voters' socket")?;
        Ok(Self { socket, channels, addresses: BTreeMap::new(), witness })
    }
}

impl Voice for Udp {
    fn now(&self) -> BootInstant {
        clock::now()
    }

    fn set_peers(&mut self, peers: &BTreeMap<HostId, Peer>) {
        let mut keys = BTreeMap::new();
        self.addresses.clear();
        for (id, peer) in peers {
            match peer.key.as_str().parse::<PublicKey>() {
                Ok(key) => {
                    keys.insert(*id, key);
                    self.addresses.insert(*id, peer.addresses.clone());
                }
                Err(error) => tracing::warn!(peer = peer.name, %error, "a guard's key is of no use"),
            }
        }
        if let Err(error) = self.channels.set_peers(&keys) {
            tracing::error!(%error, "the voters cannot be spoken to");
        }
    }

    /// On every path.
    fn send(&mut self, to: HostId, message: &Message) {
        let (Some(datagram), Some(addresses)) = (self.channels.seal(to, message), self.addresses.get(&to))
        else {
            return;
        };
        for address in addresses {
            let _ = self.socket.try_send_to(&datagram, *address);
        }
    }

    fn receive(&mut self) -> Option<(HostId, Message)> {
        let mut bytes = [0; DATAGRAM_MAX + 1];
        // A flood of what nobody's key made may not keep the leader from its lease.
        for _ in 0..super::READS_MAX {
            let length = match self.socket.try_recv_from(&mut bytes) {
                Ok((length, _)) => length,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return None,
                // What an earlier datagram came to, such as a port where nobody listens.
                Err(_) => continue,
            };
            if let Ok(known) = self.channels.open(&bytes[..length]) {
                return Some(known);
            }
        }
        None
    }

    fn wait(&mut self, until: BootInstant) -> BoxFuture<'_, ()> {
        let wake = until.since(clock::now());
        Box::pin(async move {
            tokio::select! {
                // An error is that of a voter that is not there; the next question goes out all the same.
                _ = self.socket.readable() => {}
                () = tokio::time::sleep(wake) => {}
            }
        })
    }

    fn tell_witness(&mut self, settings: request::Settings) {
        if let Some(witness) = &self.witness {
            witness.tell(settings);
        }
    }
}
