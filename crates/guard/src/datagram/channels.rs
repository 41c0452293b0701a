//! All peers: sealing what goes to them, opening what comes from them.
//!
//! A datagram that is not genuine costs one look into a table, and one MAC where it names a peer; it changes nothing.

use std::collections::BTreeMap;

use aws_lc_rs::hmac;
use uuid::Uuid;

use crate::core::id::HostId;
use crate::core::message::Message;
use crate::datagram::key::{BadKey, HostKey, PublicKey};
use crate::datagram::replay::Replay;
use crate::datagram::{DATAGRAM_MAX, body};

const VERSION: u8 = 1;
const MAC_LEN: usize = 16;
const HEADER_LEN: usize = 1 + 16 + 16 + 8 + 8;

const _: () = assert!(HEADER_LEN + body::BODY_MAX + MAC_LEN <= DATAGRAM_MAX);

/// The bytes of one datagram.
pub type Sealed = Vec<u8>;

/// Why a datagram was dropped. For counters: nobody is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Refused {
    #[error("not a datagram of this version")]
    Form,
    #[error("for another host")]
    NotForUs,
    #[error("from nobody we know")]
    Stranger,
    #[error("not made by the one it names")]
    Forged,
    #[error("came before, or too late to tell")]
    Repeated,
    #[error("genuine, and says nothing we understand")]
    Body,
}

#[derive(Debug)]
pub struct Channels {
    me: HostId,
    key: HostKey,
    /// Of this process: another one of the same host has another.
    session: u64,
    next_seq: u64,
    peers: BTreeMap<HostId, Peer>,
}

#[derive(Debug)]
struct Peer {
    public: PublicKey,
    to: hmac::Key,
    from: hmac::Key,
    replay: Replay,
}

impl Channels {
    /// `session`: random, so that peers can tell this process from its predecessors.
    #[must_use]
    pub fn new(me: HostId, key: HostKey, session: u64) -> Self {
        Self { me, key, session, next_seq: 1, peers: BTreeMap::new() }
    }

    /// These peers and no others. One whose key stays keeps its window.
    pub fn set_peers(&mut self, peers: &BTreeMap<HostId, PublicKey>) -> Result<(), BadKey> {
        self.peers.retain(|host, peer| peers.get(host) == Some(&peer.public));
        for (host, public) in peers {
            if *host != self.me && !self.peers.contains_key(host) {
                let (to, from) = self.key.pair(self.me, *host, *public)?;
                self.peers.insert(*host, Peer { public: *public, to, from, replay: Replay::default() });
            }
        }
        Ok(())
    }

    /// None when the receiver's key is not known. One that goes over several paths is sealed once.
    pub fn seal(&mut self, to: HostId, message: &Message) -> Option<Sealed> {
        let peer = self.peers.get(&to)?;
        let mut bytes = Vec::with_capacity(DATAGRAM_MAX);
        bytes.push(VERSION);
        bytes.extend_from_slice(self.me.0.as_bytes());
        bytes.extend_from_slice(to.0.as_bytes());
        bytes.extend_from_slice(&self.session.to_be_bytes());
        bytes.extend_from_slice(&self.next_seq.to_be_bytes());
        self.next_seq += 1;
        body::write(message, &mut bytes);
        let tag = hmac::sign(&peer.to, &bytes);
        bytes.extend_from_slice(&tag.as_ref()[..MAC_LEN]);
        Some(bytes)
    }

    /// Who said what. Never panics, whatever came.
    pub fn open(&mut self, datagram: &[u8]) -> Result<(HostId, Message), Refused> {
        if datagram.len() > DATAGRAM_MAX || datagram.first() != Some(&VERSION) {
            return Err(Refused::Form);
        }
        let (signed, tag) = datagram.split_last_chunk::<MAC_LEN>().ok_or(Refused::Form)?;
        let (header, body) = signed.split_first_chunk::<HEADER_LEN>().ok_or(Refused::Form)?;
        if host_at(header, 17) != self.me {
            return Err(Refused::NotForUs);
        }
        let from = host_at(header, 1);
        let peer = self.peers.get_mut(&from).ok_or(Refused::Stranger)?;
        let expected = hmac::sign(&peer.from, signed);
        aws_lc_rs::constant_time::verify_slices_are_equal(&expected.as_ref()[..MAC_LEN], tag)
            .map_err(|_| Refused::Forged)?;
        if !peer.replay.accept(number_at(header, 33), number_at(header, 41)) {
            return Err(Refused::Repeated);
        }
        let message = body::read(body).ok_or(Refused::Body)?;
        Ok((from, message))
    }
}

fn host_at(header: &[u8; HEADER_LEN], at: usize) -> HostId {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&header[at..at + 16]);
    HostId(Uuid::from_bytes(bytes))
}

fn number_at(header: &[u8; HEADER_LEN], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&header[at..at + 8]);
    u64::from_be_bytes(bytes)
}
