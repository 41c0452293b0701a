//! Asks a guest for a sign of life on its network: ICMP echo (RFC 792), from this host's own address on the segment.
//!
//! A guest that was moved here is asked every few milliseconds until it answers once. One that answers no echo, by its own
//! firewall or for want of an address that this host reaches, is asked for some seconds and then left alone.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto};

const EVERY: Duration = Duration::from_millis(5);
/// A guest under emulation that has just moved is slow for a while; one that is silent for so long is no measure any more.
const PATIENCE: Duration = Duration::from_secs(5);
const REQUEST: u8 = 8;
const REPLY: u8 = 0;
/// Room for the IPv4 header with options, which a raw socket sees, and the reply.
const REPLY_MAX: usize = 256;

/// How long it took until the first answer came, counted from the call.
pub async fn first_answer(at: Ipv4Addr) -> Option<Duration> {
    let asked = tokio::task::spawn_blocking(move || ask(at)).await.ok()?;
    asked
        .inspect_err(|error| tracing::debug!(%at, %error, "a guest cannot be asked whether it answers"))
        .ok()?
}

fn ask(at: Ipv4Addr) -> rustix::io::Result<Option<Duration>> {
    let begun = Instant::now();
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::RAW, flags, Some(ipproto::ICMP))?;
    // Only what this one guest says is delivered.
    rustix::net::connect(&socket, &SocketAddrV4::new(at, 0))?;
    // Told apart from others who ask the same guest; what the guest says back is compared as a whole.
    let mark = mark();
    while begun.elapsed() < PATIENCE {
        match rustix::net::send(&socket, &request(mark), SendFlags::empty()) {
            // Its hardware address is not known yet, or the way to it is not there yet.
            Ok(_)
            | Err(rustix::io::Errno::HOSTUNREACH | rustix::io::Errno::NOBUFS | rustix::io::Errno::AGAIN) => {}
            Err(error) => return Err(error),
        }
        if has_answered(&socket, mark)? {
            return Ok(Some(begun.elapsed()));
        }
    }
    Ok(None)
}

/// Waits for the time between two requests.
fn has_answered(socket: &OwnedFd, mark: u32) -> rustix::io::Result<bool> {
    let until = Instant::now() + EVERY;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: 0, tv_nsec: i64::from(left.subsec_nanos()) };
        let mut fds = [PollFd::new(socket, PollFlags::IN)];
        if poll(&mut fds, Some(&left))? == 0 {
            return Ok(false);
        }
        let mut buffer = [0; REPLY_MAX];
        match rustix::net::recv(socket, &mut buffer[..], RecvFlags::DONTWAIT) {
            Ok((length, _)) if is_reply(&buffer[..length.min(REPLY_MAX)], mark) => return Ok(true),
            Ok(_) => {}
            // "Host unreachable" comes this way as well, while the guest stands still.
            Err(_) if Instant::now() < until => {}
            Err(_) => return Ok(false),
        }
    }
}

fn mark() -> u32 {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(1);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    std::process::id().wrapping_mul(0x9e37_79b1) ^ number
}

/// An echo request whose identifier and sequence number are the two halves of the mark.
fn request(mark: u32) -> [u8; 8] {
    let [a, b, c, d] = mark.to_be_bytes();
    let mut packet = [REQUEST, 0, 0, 0, a, b, c, d];
    let [high, low] = checksum(&packet).to_be_bytes();
    packet[2] = high;
    packet[3] = low;
    packet
}

/// RFC 1071: the ones' complement of the sum of all 16-bit words.
fn checksum(packet: &[u8; 8]) -> u16 {
    let words = packet.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or(0)
}

/// `packet` begins with the IPv4 header. Nothing in it can be trusted.
fn is_reply(packet: &[u8], mark: u32) -> bool {
    let header = packet.first().map_or(0, |first| usize::from(first & 0x0f) * 4);
    let Some([kind, _, _, _, rest @ ..]) = packet.get(header..) else { return false };
    header >= 20 && *kind == REPLY && rest.starts_with(&mark.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_sums_up_to_nothing() {
        for mark in [0, 1, 0xffff_ffff, 0x1234_5678] {
            assert_eq!(checksum(&request(mark)), 0, "{mark:x}");
        }
    }

    #[test]
    fn only_the_answer_to_this_question_counts() {
        let packet = |kind: u8, mark: u32| {
            let mut packet = vec![0x45; 20];
            packet.extend([kind, 0, 0, 0]);
            packet.extend(mark.to_be_bytes());
            packet
        };
        assert!(is_reply(&packet(REPLY, 7), 7));
        assert!(!is_reply(&packet(REPLY, 8), 7), "of somebody else");
        assert!(!is_reply(&packet(REQUEST, 7), 7), "our own question");
        for length in 0..28 {
            assert!(!is_reply(&packet(REPLY, 7)[..length], 7), "{length} bytes");
        }
    }

    #[tokio::test]
    async fn whoever_is_there_answers_at_once() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let answered = first_answer(Ipv4Addr::LOCALHOST).await.unwrap();
        assert!(answered < PATIENCE, "{answered:?}");
    }
}
