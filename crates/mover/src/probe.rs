//! Measures a line with a link of its own: how long the way is, and how much gets through.
//!
//! ```text
//! source: echo, wait for it, again; then noise while it may; leaves when the other side took all of it
//! target: gives echoes back, counts noise and drops it; leaves when the source does, or goes on for too long
//! ```
//!
//! The rate is that of the second half of the noise: connections begin slowly. A line that is both long and fast, such as
//! one of 1 Gbit/s and 30 ms, is not filled by as little as this, and is then said to be slower than it is.

use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::frame::Kind;
use crate::link::{Ended, Link};

/// Noise at most, and how long it may begin to go. What is under way then still arrives.
pub const BYTES_MAX: usize = 8 << 20;
pub const TIME_MAX: Duration = Duration::from_secs(1);
/// Small against what goes in the time, also under the lowest limit of bandwidth.
const NOISE_BYTES: usize = 8 << 10;
/// Under way before the first of it has arrived, and beside what arrived lately: a slow line is not filled for long, and
/// connections that overtake each other do not make the last of it look fast.
const UNDER_WAY: usize = 64 << 10;
/// In round trips, with a floor for short lines.
const LATELY_ROUND_TRIPS: u32 = 2;
const LATELY_MIN: Duration = Duration::from_millis(50);
/// What a limit lets through in such a time may wait for it, beside what is on its way.
const UNDER_LIMIT: Duration = Duration::from_millis(250);
/// An odd number has a middle.
const ECHOES: usize = 9;
/// What a target takes of one source, and how long.
const ECHOES_MAX: usize = 64;
const ECHO_BYTES_MAX: usize = 16;
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// For the goodbye; nothing depends on it.
const PART_WITHIN: Duration = Duration::from_secs(2);

/// What a line was found to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measured {
    pub round_trip: Duration,
    pub bytes_per_s: u64,
}

/// The side that called. How long it may take in all is the caller's business. `limit`: what the link's pace lets through,
/// in bytes a second.
pub async fn measure(mut link: Link, limit: Option<u64>) -> Result<Measured, Ended> {
    let mut took = Vec::with_capacity(ECHOES);
    for number in 0..ECHOES {
        took.push(echo(&mut link, number as u64).await?);
    }
    took.sort_unstable();
    let round_trip = took[ECHOES / 2];
    let bytes_per_s = rate(&send_noise(&link, round_trip, limit).await?);
    let _ = tokio::time::timeout(PART_WITHIN, link.sender.finish()).await;
    Ok(Measured { round_trip, bytes_per_s })
}

async fn echo(link: &mut Link, number: u64) -> Result<Duration, Ended> {
    let payload = Bytes::copy_from_slice(&number.to_be_bytes());
    let sent = Instant::now();
    link.sender.send(Kind::Message, payload.clone()).await?;
    // Each is waited for, so that another one can only come from somebody who makes them up.
    while link.urgent.recv().await?.payload != payload {}
    Ok(sent.elapsed())
}

/// Since the beginning, and what the other side had taken by then.
type Taken = (Duration, usize);

async fn send_noise(link: &Link, round_trip: Duration, limit: Option<u64>) -> Result<Vec<Taken>, Ended> {
    let lately = (round_trip * LATELY_ROUND_TRIPS).max(LATELY_MIN);
    let patience = (round_trip + UNDER_LIMIT).as_secs_f64();
    let most = limit.map_or(usize::MAX, |limit| (limit as f64 * patience) as usize).max(NOISE_BYTES);
    let mut progress = link.progress();
    let before = progress.borrow_and_update().acked_bytes;
    let (begun, mut noise) = (tokio::time::Instant::now(), Noise::new());
    let (mut sent, mut taken, mut next) = (0, vec![(Duration::ZERO, 0)], noise.next());
    loop {
        let had = taken.last().map_or(0, |(_, bytes)| *bytes);
        let may_go = sent < BYTES_MAX && begun.elapsed() < TIME_MAX;
        if !may_go && had >= sent {
            return Ok(taken);
        }
        // More with each round trip, until no more arrives.
        let under_way = most.min(UNDER_WAY + since(&taken, begun.elapsed().saturating_sub(lately)));
        let has_room = sent + next.len() <= had + under_way;
        tokio::select! {
            biased; // What has arrived makes room.
            changed = progress.changed() => {
                changed.map_err(|_| Ended::Stopped)?;
                let bytes = (progress.borrow_and_update().acked_bytes - before) as usize;
                if bytes > had {
                    taken.push((begun.elapsed(), bytes));
                }
            }
            went = link.sender.send(Kind::Probe, next.clone()), if may_go && has_room => {
                went?;
                sent += next.len();
                next = noise.next();
            }
            () = tokio::time::sleep_until(begun + TIME_MAX), if may_go => {}
        }
    }
}

/// How much was taken since then.
fn since(taken: &[Taken], then: Duration) -> usize {
    let by_then = taken.partition_point(|(at, _)| *at <= then).checked_sub(1).map_or(0, |last| taken[last].1);
    taken.last().map_or(0, |(_, all)| all - by_then)
}

/// Bytes a second of the second half, or of all when there is no telling.
fn rate(taken: &[Taken]) -> u64 {
    let Some((end, all)) = taken.last() else { return 0 };
    let half =
        taken.iter().find(|(_, bytes)| bytes * 2 >= *all).filter(|(at, bytes)| at < end && bytes < all);
    let (from, had) = half.copied().unwrap_or_default();
    ((all - had) as f64 / (*end - from).as_secs_f64().max(f64::MIN_POSITIVE)) as u64
}

/// Bytes that nothing on the way makes fewer of.
struct Noise(blake3::OutputReader);

impl Noise {
    fn new() -> Self {
        let mut hasher = blake3::Hasher::new();
        // No secret: two probes only must not be alike.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        hasher.update(&now.as_nanos().to_be_bytes()).update(&std::process::id().to_be_bytes());
        Self(hasher.finalize_xof())
    }

    fn next(&mut self) -> Bytes {
        let mut bytes = vec![0; NOISE_BYTES];
        self.0.fill(&mut bytes);
        Bytes::from(bytes)
    }
}

/// The side that was called: waits for somebody to come, and ends when he leaves or is lost: what is left of a probe is
/// no use. Whoever wants more than a probe is left.
pub async fn answer(mut link: Link) {
    let mut progress = link.progress();
    if progress.wait_for(|progress| progress.connected > 0).await.is_err() {
        return;
    }
    tokio::select! {
        () = serve(&mut link) => {}
        _ = progress.wait_for(|progress| progress.connected == 0) => {}
        () = tokio::time::sleep(ANSWER_WITHIN) => {}
    }
}

async fn serve(link: &mut Link) {
    let (mut echoes, mut noise) = (0, 0);
    loop {
        tokio::select! {
            frame = link.urgent.recv() => {
                let Ok(frame) = frame else { return };
                echoes += 1;
                if echoes > ECHOES_MAX
                    || frame.payload.len() > ECHO_BYTES_MAX
                    || link.sender.send(Kind::Message, frame.payload).await.is_err()
                {
                    return;
                }
            }
            frame = link.data.recv() => {
                let Ok(frame) = frame else { return };
                noise += frame.payload.len();
                if frame.kind != Kind::Probe || noise > BYTES_MAX {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(ms_and_kib: &[(u64, usize)]) -> Vec<Taken> {
        ms_and_kib.iter().map(|(ms, kib)| (Duration::from_millis(*ms), kib << 10)).collect()
    }

    #[test]
    fn a_slow_beginning_does_not_count() {
        // 4 KiB, 8 KiB, ... with each 100 ms, and then 100 KiB.
        let all = taken(&[(0, 0), (100, 4), (200, 12), (300, 28), (400, 128), (500, 228), (600, 328)]);
        assert_eq!(rate(&all), 1000 << 10);
    }

    #[test]
    fn what_arrived_lately_is_what_came_after_then() {
        let all = taken(&[(0, 0), (100, 4), (200, 12), (300, 28)]);
        let kib = |ms| since(&all, Duration::from_millis(ms)) >> 10;
        assert_eq!([kib(0), kib(99), kib(100), kib(250), kib(300), kib(900)], [28, 28, 24, 16, 0, 0]);
    }

    #[test]
    fn a_rate_is_told_of_little_too() {
        assert_eq!(rate(&taken(&[(0, 0), (500, 10)])), 20 << 10);
        assert_eq!(rate(&taken(&[(0, 0)])), 0);
        assert_eq!(rate(&[]), 0);
    }

    #[test]
    fn noise_is_not_alike() {
        let (mut one, mut other) = (Noise::new(), Noise::new());
        let parts = [one.next(), one.next(), other.next()];
        assert!(parts[0] != parts[1] && parts[0] != parts[2]);
        let packed = zstd::bulk::compress(&parts.concat(), 3).unwrap();
        assert!(packed.len() >= 3 * NOISE_BYTES, "{}", packed.len());
    }
}
