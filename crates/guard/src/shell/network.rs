//! One or two UDP sockets. What is said goes out on every path; what comes in on either counts.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};

use anyhow::Context;

use crate::core::id::HostId;
use crate::core::message::Message;
use crate::datagram::{Channels, DATAGRAM_MAX, HostKey, PublicKey, Refused};

/// Datagrams that one turn reads from a socket: a flood may not keep the guard from its clock.
const READS_MAX: usize = 64;

pub struct Network {
    sockets: Vec<UdpSocket>,
    channels: Channels,
    /// Where each peer is reached, path by path.
    addresses: BTreeMap<HostId, Vec<SocketAddr>>,
    /// What was dropped, by the reason, for `status`.
    refused: BTreeMap<Refused, u64>,
    unsent: u64,
}

impl Network {
    pub fn open(me: HostId, key: HostKey, listen: &[SocketAddr]) -> anyhow::Result<Self> {
        let mut session = [0; 8];
        aws_lc_rs::rand::fill(&mut session).context("draw a session number")?;
        let channels = Channels::new(me, key, u64::from_be_bytes(session));
        let sockets = listen.iter().map(|address| bind(*address)).collect::<anyhow::Result<_>>()?;
        Ok(Self { sockets, channels, addresses: BTreeMap::new(), refused: BTreeMap::new(), unsent: 0 })
    }

    pub fn set_peers(
        &mut self,
        keys: &BTreeMap<HostId, PublicKey>,
        addresses: BTreeMap<HostId, Vec<SocketAddr>>,
    ) -> anyhow::Result<()> {
        self.channels.set_peers(keys)?;
        self.addresses = addresses;
        Ok(())
    }

    /// Best effort on every path: the protocol expects every datagram to be lost.
    pub fn send(&mut self, to: HostId, message: &Message) {
        let (Some(datagram), Some(addresses)) = (self.channels.seal(to, message), self.addresses.get(&to))
        else {
            self.unsent += 1;
            return;
        };
        for (socket, address) in self.sockets.iter().zip(addresses) {
            if socket.send_to(&datagram, address).is_err() {
                self.unsent += 1;
            }
        }
    }

    /// What has come, each once, whichever path brought it first.
    pub fn receive(&mut self) -> Vec<(HostId, Message)> {
        let mut messages = Vec::new();
        // One byte more, so that what is too long shows.
        let mut bytes = [0; DATAGRAM_MAX + 1];
        for socket in &self.sockets {
            for _ in 0..READS_MAX {
                let Ok((length, _)) = socket.recv_from(&mut bytes) else { break };
                match self.channels.open(&bytes[..length]) {
                    Ok(said) => messages.push(said),
                    Err(refused) => *self.refused.entry(refused).or_default() += 1,
                }
            }
        }
        messages
    }

    pub fn sockets(&self) -> &[UdpSocket] {
        &self.sockets
    }

    /// Dropped datagrams that were not merely the second copy.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.iter().filter(|(why, _)| **why != Refused::Repeated).map(|(_, count)| count).sum()
    }

    #[must_use]
    pub fn unsent(&self) -> u64 {
        self.unsent
    }
}

fn bind(address: SocketAddr) -> anyhow::Result<UdpSocket> {
    let socket = UdpSocket::bind(address).with_context(|| format!("listen at {address}"))?;
    socket.set_nonblocking(true).context("prepare the socket")?;
    Ok(socket)
}
