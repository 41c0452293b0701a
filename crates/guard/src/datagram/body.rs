//! A message as bytes: a kind, then its fields in order. One length for each kind, and nothing behind it.

use std::time::Duration;

use uuid::Uuid;

use crate::core::id::{Epoch, HostId};
use crate::core::message::Message;
use crate::core::time::BootInstant;

/// The longest body: kind, host, three numbers.
pub const BODY_MAX: usize = 1 + 16 + 3 * 8;

const RENEW: u8 = 1;
const RENEW_ACK: u8 = 2;
const RENEW_NACK: u8 = 3;
const RELEASE: u8 = 4;
const FENCE: u8 = 5;
const FENCE_ACK: u8 = 6;
const QUERY: u8 = 7;
const LAST_SEEN: u8 = 8;

pub fn write(message: &Message, out: &mut Vec<u8>) {
    match *message {
        Message::Renew { epoch, seq, promise } => put(out, RENEW, None, &[epoch.0, seq, nanos(promise)]),
        Message::RenewAck { epoch, seq } => put(out, RENEW_ACK, None, &[epoch.0, seq]),
        Message::RenewNack { epoch, seq, fenced } => put(out, RENEW_NACK, None, &[epoch.0, seq, fenced.0]),
        Message::Release { epoch } => put(out, RELEASE, None, &[epoch.0]),
        Message::Fence { host, epoch, tau } => put(out, FENCE, Some(host), &[epoch.0, tau.0]),
        Message::FenceAck { host, epoch, tau } => put(out, FENCE_ACK, Some(host), &[epoch.0, tau.0]),
        Message::Query { host, tau } => put(out, QUERY, Some(host), &[tau.0]),
        Message::LastSeen { host, tau, epoch, age } => {
            put(out, LAST_SEEN, Some(host), &[tau.0, epoch.0, nanos(age)]);
        }
    }
}

/// None for whatever `write` would not have written.
pub fn read(bytes: &[u8]) -> Option<Message> {
    let (kind, mut rest) = bytes.split_first()?;
    let rest = &mut rest;
    let message = match *kind {
        RENEW => {
            let (epoch, seq) = (epoch(rest)?, number(rest)?);
            Message::Renew { epoch, seq, promise: duration(rest)? }
        }
        RENEW_ACK => Message::RenewAck { epoch: epoch(rest)?, seq: number(rest)? },
        RENEW_NACK => {
            let (held, seq) = (epoch(rest)?, number(rest)?);
            Message::RenewNack { epoch: held, seq, fenced: epoch(rest)? }
        }
        RELEASE => Message::Release { epoch: epoch(rest)? },
        FENCE => Message::Fence { host: host(rest)?, epoch: epoch(rest)?, tau: instant(rest)? },
        FENCE_ACK => Message::FenceAck { host: host(rest)?, epoch: epoch(rest)?, tau: instant(rest)? },
        QUERY => Message::Query { host: host(rest)?, tau: instant(rest)? },
        LAST_SEEN => {
            let (host, tau, epoch) = (host(rest)?, instant(rest)?, epoch(rest)?);
            Message::LastSeen { host, tau, epoch, age: duration(rest)? }
        }
        _ => return None,
    };
    rest.is_empty().then_some(message)
}

fn put(out: &mut Vec<u8>, kind: u8, host: Option<HostId>, numbers: &[u64]) {
    out.push(kind);
    if let Some(host) = host {
        out.extend_from_slice(host.0.as_bytes());
    }
    for number in numbers {
        out.extend_from_slice(&number.to_be_bytes());
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, left) = rest.split_first_chunk::<N>()?;
    *rest = left;
    Some(*taken)
}

fn number(rest: &mut &[u8]) -> Option<u64> {
    take(rest).map(u64::from_be_bytes)
}

fn epoch(rest: &mut &[u8]) -> Option<Epoch> {
    number(rest).map(Epoch)
}

fn instant(rest: &mut &[u8]) -> Option<BootInstant> {
    number(rest).map(BootInstant)
}

fn duration(rest: &mut &[u8]) -> Option<Duration> {
    number(rest).map(Duration::from_nanos)
}

fn host(rest: &mut &[u8]) -> Option<HostId> {
    take(rest).map(|bytes| HostId(Uuid::from_bytes(bytes)))
}
