//! Round trip and packet size to the other hosts, by ICMP echo (RFC 792, RFC 4443): no program of ours need run there.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};

use super::{Finding, within};

const ANSWER_DEADLINE: Duration = Duration::from_secs(1);
const TRIES: u16 = 3;

/// All tries at all sizes, none of them answered.
const DEADLINE: Duration = Duration::from_secs(20);

/// Sizes of whole IP packets, largest first; the second leaves guests on an overlay 1500 bytes.
const SIZES: [u16; 6] = [9000, 1550, 1500, 1450, 1400, 1280];
/// What an ordinary network carries.
const SIZE_USUAL: u16 = 1500;
/// VXLAN over IPv4 takes 50 bytes of each packet.
const VXLAN_BYTES: u16 = 50;

/// Between hosts of one site; more is no fault, but another datacentre.
const ROUND_TRIP_NEAR: Duration = Duration::from_millis(10);

/// What was measured to one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Measured {
    round_trip: Duration,
    /// The largest packet that arrived whole; `None`: only a small one did.
    size: Option<u16>,
}

pub async fn check(peers: &[IpAddr]) -> Vec<Finding> {
    let measured = peers.iter().map(|peer| async move {
        let peer = *peer;
        let answer = within(DEADLINE, move || measure(peer)).await;
        judge(peer, answer.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into())))
    });
    futures_util::future::join_all(measured).await.into_iter().flatten().collect()
}

fn judge(peer: IpAddr, measured: io::Result<Measured>) -> Vec<Finding> {
    let what = format!("host {peer}");
    let measured = match measured {
        Ok(measured) => measured,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return vec![Finding::warn(what, "could not be asked", "run it as root")];
        }
        Err(error) => {
            let fix = "check address, cable and routes, and that its firewall answers pings";
            return vec![Finding::refuse(what, format!("does not answer ({error})"), fix)];
        }
    };
    let ms = measured.round_trip.as_secs_f64() * 1000.0;
    let near = measured.round_trip <= ROUND_TRIP_NEAR;
    let distance = if near { "" } else { ", as far as another datacentre" };
    vec![
        Finding::ok(what.clone(), format!("answers after {ms:.2} ms{distance}")),
        judge_size(what, measured.size),
    ]
}

fn judge_size(what: String, size: Option<u16>) -> Finding {
    match size {
        Some(size) if size >= SIZE_USUAL => {
            let guests = (size - VXLAN_BYTES).min(SIZE_USUAL);
            Finding::ok(what, format!("takes packets of {size} bytes; guests on an overlay send {guests}"))
        }
        Some(size) => Finding::warn(
            what,
            format!("takes packets of {size} bytes; guests on an overlay send {}", size - VXLAN_BYTES),
            "raise the MTU on both hosts and all switches between them to 1500, better 1550",
        ),
        None => Finding::refuse(
            what,
            format!("loses packets of {} bytes", SIZES[SIZES.len() - 1]),
            "set the same MTU on both hosts and allow ICMP `fragmentation needed` between them",
        ),
    }
}

fn measure(peer: IpAddr) -> io::Result<Measured> {
    let socket = open(peer)?;
    let echo = Echo { socket, peer, id: (std::process::id() & 0xffff) as u16 };
    let mut best: Option<Duration> = None;
    for sequence in 0..TRIES {
        if let Some(time) = echo.ask(64, sequence)? {
            best = Some(best.map_or(time, |best| best.min(time)));
        }
    }
    let round_trip =
        best.ok_or_else(|| io::Error::new(io::ErrorKind::TimedOut, "no answer to three pings"))?;
    let mut sequence = TRIES;
    for size in SIZES {
        // Asked twice: one lost packet is not a small MTU.
        for _ in 0..2 {
            sequence += 1;
            if echo.ask(size, sequence)?.is_some() {
                return Ok(Measured { round_trip, size: Some(size) });
            }
        }
    }
    Ok(Measured { round_trip, size: None })
}

/// A raw socket, dressed as a datagram socket for its timeouts. Never fragments, and does not believe what an earlier
/// packet learned.
fn open(peer: IpAddr) -> io::Result<UdpSocket> {
    let (family, protocol) = match peer {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
    };
    let fd = socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol))?;
    match peer {
        IpAddr::V4(_) => set_ip_mtu_discover(&fd, Ipv4PathMtuDiscovery::PROBE)?,
        IpAddr::V6(_) => set_ipv6_mtu_discover(&fd, Ipv6PathMtuDiscovery::PROBE)?,
    }
    let socket = UdpSocket::from(fd);
    socket.connect(SocketAddr::new(peer, 0))?;
    Ok(socket)
}

struct Echo {
    socket: UdpSocket,
    peer: IpAddr,
    id: u16,
}

const HEADER: usize = 8;

impl Echo {
    /// Sends one packet of `size` bytes, IP header included; `None` when it does not fit or nothing came back.
    fn ask(&self, size: u16, sequence: u16) -> io::Result<Option<Duration>> {
        let ip_header = if self.peer.is_ipv4() { 20 } else { 40 };
        let packet = self.request(usize::from(size).saturating_sub(ip_header).max(HEADER), sequence);
        let started = Instant::now();
        match self.socket.send(&packet) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => return Ok(None),
            Err(error) => return Err(error),
        }
        let mut buffer = vec![0; usize::from(u16::MAX)];
        loop {
            let left = ANSWER_DEADLINE.saturating_sub(started.elapsed());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.set_read_timeout(Some(left))?;
            match self.socket.recv(&mut buffer) {
                Ok(count) if self.answers(&buffer[..count], sequence) => return Ok(Some(started.elapsed())),
                Ok(_) => {}
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                // "Fragmentation needed", told by a router on the way.
                Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    fn request(&self, length: usize, sequence: u16) -> Vec<u8> {
        let mut packet = vec![0; length];
        packet[0] = if self.peer.is_ipv4() { 8 } else { 128 };
        packet[4..6].copy_from_slice(&self.id.to_be_bytes());
        packet[6..8].copy_from_slice(&sequence.to_be_bytes());
        if self.peer.is_ipv4() {
            let sum = checksum(&packet);
            packet[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        // For version 6 the kernel fills in the sum: it covers addresses that only it knows.
        packet
    }

    fn answers(&self, received: &[u8], sequence: u16) -> bool {
        // Version 4 arrives with its IP header, whose length is in its first byte.
        let (skip, kind) = match (self.peer.is_ipv4(), received.first()) {
            (true, Some(first)) => (usize::from(first & 0xf) * 4, 0),
            _ => (0, 129),
        };
        let Some(message) = received.get(skip..).filter(|message| message.len() >= HEADER) else {
            return false;
        };
        message[0] == kind
            && message[4..6] == self.id.to_be_bytes()
            && message[6..8] == sequence.to_be_bytes()
    }
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::super::Level;
    use super::*;

    const PEER: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[test]
    fn packet_sizes_are_judged_by_what_is_left_for_guests() {
        let judged = |size| {
            let finding = judge_size("host".into(), size);
            (finding.level, finding.found)
        };
        assert_eq!(judged(Some(9000)).0, Level::Ok);
        assert!(judged(Some(9000)).1.ends_with("send 1500"));
        assert!(judged(Some(1500)).1.ends_with("send 1450"));
        assert_eq!(judged(Some(1400)).0, Level::Warn);
        assert_eq!(judged(None).0, Level::Refuse);
    }

    #[test]
    fn a_silent_host_is_refused() {
        assert_eq!(judge(PEER, Err(io::ErrorKind::TimedOut.into()))[0].level, Level::Refuse);
        assert_eq!(judge(PEER, Err(io::ErrorKind::PermissionDenied.into()))[0].level, Level::Warn);
    }

    #[test]
    fn the_checksum_of_a_packet_with_its_sum_is_zero() {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let packet = Echo { socket, peer: PEER, id: 7 }.request(65, 3);
        assert_eq!(checksum(&packet), 0);
    }

    #[test]
    fn this_host_answers_its_own_pings() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("not run: needs root");
            return;
        }
        for peer in [PEER, IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            match measure(peer) {
                Ok(measured) => assert_eq!(measured.size, Some(9000), "{peer}"),
                // A machine without IPv6.
                Err(error) => assert!(peer.is_ipv6(), "{peer}: {error}"),
            }
        }
    }
    #[test]
    fn a_narrow_line_is_measured() {
        let thread = std::thread::spawn(|| {
            // SAFETY: only this thread's network changes, and it ends with the test.
            if unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.is_err() {
                eprintln!("not run: needs root");
                return;
            }
            let narrowed = std::process::Command::new("ip")
                .args(["link", "set", "lo", "up", "mtu", "1410"])
                .status()
                .unwrap();
            assert!(narrowed.success());
            assert_eq!(measure(PEER).unwrap().size, Some(1400));
        });
        thread.join().unwrap();
    }
}
