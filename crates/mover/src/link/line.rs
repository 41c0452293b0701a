//! What the acknowledgements say about the line, and how much may be under way.
//!
//! QEMU decides when to stop the guest by how fast its socket takes bytes, so what waits inside the mover is downtime
//! that nobody foresaw. Under way may be what the line holds and a fifth more, but at least 1 MiB: less would make
//! short lines wait for acknowledgements.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

const WINDOW_MIN: f64 = (1 << 20) as f64;
/// 10 Gbit/s over 200 ms.
const WINDOW_MAX: f64 = (256 << 20) as f64;
const GAIN: f64 = 1.2;
/// A route may change: what was measured longer ago counts no more.
const ROUND_TRIP_KEPT: Duration = Duration::from_secs(10);
/// In round trips, with a floor for short lines.
const RATE_KEPT_ROUND_TRIPS: u32 = 10;
const RATE_KEPT_MIN: Duration = Duration::from_secs(2);

/// Best value of the last while; each entry is better than all newer ones.
#[derive(Debug, Default)]
struct Best(VecDeque<(Instant, f64)>);

impl Best {
    /// The largest is the best.
    fn add(&mut self, now: Instant, value: f64, kept: Duration) {
        while self.0.back().is_some_and(|(_, other)| *other <= value) {
            self.0.pop_back();
        }
        self.0.push_back((now, value));
        while self.0.len() > 1 && self.0.front().is_some_and(|(at, _)| now.duration_since(*at) > kept) {
            self.0.pop_front();
        }
    }

    fn get(&self) -> Option<f64> {
        self.0.front().map(|(_, value)| *value)
    }
}

#[derive(Debug, Default)]
pub(super) struct Line {
    /// Negative seconds: the shortest is the best.
    round_trip: Best,
    rate: Best,
}

impl Line {
    pub(super) fn on_round_trip(&mut self, now: Instant, took: Duration) {
        self.round_trip.add(now, -took.as_secs_f64(), ROUND_TRIP_KEPT);
    }

    pub(super) fn on_rate(&mut self, now: Instant, bytes_per_second: f64) {
        let kept = self.round_trip().unwrap_or_default() * RATE_KEPT_ROUND_TRIPS;
        self.rate.add(now, bytes_per_second, kept.max(RATE_KEPT_MIN));
    }

    pub(super) fn round_trip(&self) -> Option<Duration> {
        self.round_trip.get().map(|seconds| Duration::from_secs_f64(-seconds))
    }

    /// Bytes a second.
    pub(super) fn rate(&self) -> Option<f64> {
        self.rate.get()
    }

    pub(super) fn window(&self) -> usize {
        let holds = self.rate().zip(self.round_trip()).map_or(0.0, |(rate, took)| rate * took.as_secs_f64());
        (GAIN * holds).clamp(WINDOW_MIN, WINDOW_MAX) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_window_is_what_the_line_holds_and_a_fifth_but_at_least_a_mebibyte() {
        let (mut line, now) = (Line::default(), Instant::now());
        assert_eq!(line.window(), 1 << 20);
        line.on_round_trip(now, 80 * MS);
        line.on_rate(now, 10e6);
        assert_eq!(line.window(), 1 << 20);
        line.on_rate(now, 125e6);
        assert_eq!(line.window(), 12_000_000);
        line.on_rate(now, 1e15);
        assert_eq!(line.window(), 256 << 20);
    }

    #[test]
    fn queueing_does_not_lengthen_the_round_trip_but_a_new_route_does() {
        let (mut line, now) = (Line::default(), Instant::now());
        line.on_round_trip(now, 50 * MS);
        line.on_round_trip(now + 5000 * MS, 400 * MS);
        assert_eq!(line.round_trip(), Some(50 * MS));
        line.on_round_trip(now + 11_000 * MS, 120 * MS);
        assert_eq!(line.round_trip(), Some(120 * MS));
    }

    #[test]
    fn a_line_that_became_slow_is_believed_after_a_while() {
        let (mut line, now) = (Line::default(), Instant::now());
        line.on_rate(now, 9e6);
        line.on_rate(now + 1000 * MS, 1e6);
        assert_eq!(line.rate(), Some(9e6));
        line.on_rate(now + 2500 * MS, 1e6);
        assert_eq!(line.rate(), Some(1e6));
    }
}
