//! The longest silence of a guest, measured with a UDP echo every 5 ms.
//!
//! Each datagram carries its number and the time it was sent. The gap is how long nothing that was sent came back:
//! from the sending of the last datagram answered before the silence to the sending of the first one answered after
//! it. Datagrams held up on the way and answered late count as answered: their client waited, but lost nothing; how
//! long is `round_trip_max_ms`. A silence that had not ended when the probe stopped counts up to its last datagram.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use super::Stop;

/// The echo port of the guest images.
pub const PORT: u16 = 7;
const INTERVAL: Duration = Duration::from_millis(5);
/// Answers still wanted after the last datagram.
const LINGER: Duration = Duration::from_millis(500);
const DATAGRAM: usize = 16;

#[derive(Debug, Clone, Default)]
pub struct Live(Arc<AtomicU64>);

impl Live {
    #[must_use]
    pub fn echoed(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Outcome {
    pub sent: u64,
    pub received: u64,
    /// Datagrams answered more than once: two guests have the address.
    pub doubled: u64,
    /// The longest time in which nothing that was sent came back, less the interval.
    pub lost_gap_ms: f64,
    /// The longest time in which nothing arrived, less the interval: what a client that listens saw.
    pub gap_ms: f64,
    pub round_trip_median_ms: f64,
    pub round_trip_max_ms: f64,
}

/// Sends until stopped. The socket is that of the calling thread's namespace.
pub fn run(guest: Ipv4Addr, port: u16, stop: &Stop, live: &Live) -> Result<Outcome> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("open a socket")?;
    socket.connect((guest, port)).context("name the guest")?;
    let mut log = Log::new(Instant::now());
    while !stop.is_stopped() {
        let number = log.sent.len() as u64;
        let due = log.start + INTERVAL * u32::try_from(number).unwrap_or(u32::MAX);
        receive_until(&socket, due, &mut log, live)?;
        let mut datagram = [0; DATAGRAM];
        datagram[..8].copy_from_slice(&number.to_le_bytes());
        log.sent.push(Instant::now());
        // Refused while the guest's address is being resolved or its port is not open: that is a silence, too.
        let _ = socket.send(&datagram);
    }
    receive_until(&socket, Instant::now() + LINGER, &mut log, live)?;
    Ok(log.outcome())
}

fn receive_until(socket: &UdpSocket, due: Instant, log: &mut Log, live: &Live) -> Result<()> {
    loop {
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        socket.set_read_timeout(Some(left)).context("wait for an echo")?;
        let mut datagram = [0; DATAGRAM];
        if let Ok(DATAGRAM) = socket.recv(&mut datagram) {
            let mut number = [0; 8];
            number.copy_from_slice(&datagram[..8]);
            log.on_echo(u64::from_le_bytes(number), Instant::now());
            live.0.store(log.received.len() as u64, Ordering::Relaxed);
        }
    }
}

/// When each datagram went and came back.
struct Log {
    start: Instant,
    sent: Vec<Instant>,
    received: BTreeMap<u64, Instant>,
    doubled: u64,
}

impl Log {
    fn new(start: Instant) -> Self {
        Self { start, sent: Vec::new(), received: BTreeMap::new(), doubled: 0 }
    }

    /// A second copy of an answer is counted and changes nothing else.
    fn on_echo(&mut self, number: u64, now: Instant) {
        if number < self.sent.len() as u64 {
            match self.received.entry(number) {
                Entry::Vacant(first) => {
                    first.insert(now);
                }
                Entry::Occupied(_) => self.doubled += 1,
            }
        }
    }

    fn outcome(&self) -> Outcome {
        let sent_at = |number: &u64| self.sent[*number as usize];
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        let mut trips: Vec<_> = self.received.iter().map(|(number, at)| *at - sent_at(number)).collect();
        trips.sort_unstable();
        let mut arrivals: Vec<_> = self.received.values().copied().collect();
        arrivals.sort_unstable();
        let mut answered: Vec<_> = self.received.keys().map(sent_at).collect();
        // What was sent after the last answer was silence as well.
        if let Some(last) = self.sent.last().filter(|last| answered.last() < Some(last)) {
            answered.push(*last);
            arrivals.push(*last);
            arrivals.sort_unstable();
        }
        Outcome {
            sent: self.sent.len() as u64,
            received: self.received.len() as u64,
            doubled: self.doubled,
            lost_gap_ms: ms(longest(&answered)),
            gap_ms: ms(longest(&arrivals)),
            round_trip_median_ms: trips.get(trips.len() / 2).copied().map_or(0.0, ms),
            round_trip_max_ms: trips.last().copied().map_or(0.0, ms),
        }
    }
}

/// The longest distance between neighbours, less the usual one.
fn longest(times: &[Instant]) -> Duration {
    let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
    gaps.max().unwrap_or_default().saturating_sub(INTERVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Datagrams 5 ms apart; `echoes` are numbers with their round trip in milliseconds.
    fn outcome(sent: u32, echoes: &[(u64, u64)]) -> Outcome {
        let mut log = Log::new(Instant::now());
        log.sent = (0..sent).map(|number| log.start + INTERVAL * number).collect();
        for (number, trip) in echoes {
            log.on_echo(*number, log.sent[*number as usize] + Duration::from_millis(*trip));
        }
        log.outcome()
    }

    #[test]
    fn an_undisturbed_guest_has_no_gap() {
        let outcome = outcome(4, &[(0, 1), (1, 1), (2, 1), (3, 1)]);
        assert_eq!((outcome.gap_ms, outcome.lost_gap_ms, outcome.received), (0.0, 0.0, 4));
    }

    #[test]
    fn lost_datagrams_are_a_gap_in_both_senses() {
        let outcome = outcome(
            30,
            &[
                (0, 1),
                (1, 1),
                (21, 1),
                (22, 1),
                (23, 1),
                (24, 1),
                (25, 1),
                (26, 1),
                (27, 1),
                (28, 1),
                (29, 1),
            ],
        );
        assert_eq!((outcome.gap_ms, outcome.lost_gap_ms), (95.0, 95.0));
    }

    #[test]
    fn datagrams_answered_late_are_not_lost_but_the_client_waited() {
        // All of them were held for up to 50 ms and came back at once.
        let echoes: Vec<_> = (0..12)
            .map(|number| (number, if (2..11).contains(&number) { 60 - number * 5 } else { 1 }))
            .collect();
        let outcome = outcome(12, &echoes);
        assert_eq!(outcome.lost_gap_ms, 0.0);
        assert!(outcome.gap_ms > 40.0, "{outcome:?}");
        assert_eq!(outcome.round_trip_max_ms, 50.0);
    }

    #[test]
    fn a_silence_that_has_not_ended_counts() {
        let outcome = outcome(101, &[(0, 1), (1, 1)]);
        assert_eq!(outcome.lost_gap_ms, 490.0);
        assert_eq!(self::outcome(10, &[]).received, 0);
    }

    #[test]
    fn echoes_twice_or_never_sent_are_ignored() {
        assert_eq!(outcome(1, &[(0, 1), (0, 9)]).round_trip_max_ms, 1.0);
        let mut log = Log::new(Instant::now());
        log.on_echo(7, log.start);
        assert_eq!(log.outcome().received, 0);
    }
}
