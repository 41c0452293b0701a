//! One direction of the line: a queue that drains at the line's rate, then a delay. Time is a parameter.

use std::time::{Duration, Instant};

use super::segment::Load;
use super::{Counters, Settings};

/// Randomness from outside: numbers evenly distributed over 0 to 1.
pub type Dice<'a> = &'a mut dyn FnMut() -> f64;

pub struct Line {
    /// When the last accepted frame has left the queue.
    free_at: Instant,
    /// When the last accepted frame comes out: none overtakes another.
    last_out: Instant,
    pub counters: Counters,
}

impl Line {
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { free_at: now, last_out: now, counters: Counters::default() }
    }

    /// When what arrives now comes out; `None`: it is lost.
    pub fn admit(&mut self, settings: &Settings, now: Instant, load: Load, dice: Dice) -> Option<Instant> {
        if !settings.up {
            self.counters.dropped_down += load.packets;
            return None;
        }
        let begins = self.free_at.max(now);
        if settings.rate_bits.is_some_and(|rate| !fits(begins - now, rate, settings.queue_bytes, load)) {
            self.counters.dropped_queue += load.packets;
            return None;
        }
        self.free_at = begins + settings.rate_bits.map_or(Duration::ZERO, |rate| time_for(load.bytes, rate));
        // A frame that is lost on its way was sent: it took its time on the line.
        if settings.loss > 0.0 && dice() < settings.loss {
            self.counters.dropped_loss += load.packets;
            return None;
        }
        let jitter = if settings.jitter_us > 0 { dice() * settings.jitter_us as f64 } else { 0.0 };
        let delay = Duration::from_micros(settings.delay_us + jitter as u64);
        self.last_out = self.last_out.max(self.free_at + delay);
        self.counters.packets += load.packets;
        self.counters.bytes += load.bytes;
        Some(self.last_out)
    }

    /// What was admitted did not come out all the same.
    pub fn take_back(&mut self, load: Load) {
        self.counters.packets -= load.packets;
        self.counters.bytes -= load.bytes;
        self.counters.dropped_down += load.packets;
    }
}

/// Whether the queue has room behind what takes it `busy` to send.
fn fits(busy: Duration, rate_bits: u64, queue_bytes: u64, load: Load) -> bool {
    busy.as_secs_f64() * rate_bits as f64 / 8.0 + load.bytes as f64 <= queue_bytes as f64
}

fn time_for(bytes: u64, rate_bits: u64) -> Duration {
    Duration::from_secs_f64(bytes as f64 * 8.0 / rate_bits.max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings { delay_us: 40_000, rate_bits: Some(8_000_000), queue_bytes: 10_000, ..Settings::default() }
    }

    /// Milliseconds until each of `count` frames of 1000 bytes comes out that arrive together.
    fn burst(settings: &Settings, count: usize, dice: Dice) -> (Line, Vec<Option<u128>>) {
        let now = Instant::now();
        let mut line = Line::new(now);
        let frame = Load { packets: 1, bytes: 1000 };
        let out = (0..count).map(|_| line.admit(settings, now, frame, dice).map(|at| (at - now).as_millis()));
        let out = out.collect();
        (line, out)
    }

    #[test]
    fn frames_leave_at_the_rate_and_arrive_after_the_delay() {
        let (line, out) = burst(&settings(), 3, &mut || 0.5);
        assert_eq!(out, [Some(41), Some(42), Some(43)]);
        assert_eq!((line.counters.packets, line.counters.bytes), (3, 3000));
    }

    #[test]
    fn what_does_not_fit_the_queue_is_dropped() {
        let (line, out) = burst(&settings(), 12, &mut || 0.5);
        assert_eq!(out.iter().flatten().count(), 10);
        assert_eq!(line.counters.dropped_queue, 2);
    }

    #[test]
    fn a_cut_line_carries_nothing() {
        let (line, out) = burst(&Settings { up: false, ..settings() }, 2, &mut || 0.5);
        assert_eq!(out, [None, None]);
        assert_eq!(line.counters.dropped_down, 2);
    }

    #[test]
    fn losses_follow_the_dice() {
        let mut rolls = [0.05, 0.5, 0.01].into_iter();
        let (line, out) = burst(&Settings { loss: 0.1, ..settings() }, 3, &mut || rolls.next().unwrap());
        assert_eq!(out, [None, Some(42), None]);
        assert_eq!(line.counters.dropped_loss, 2);
    }

    #[test]
    fn jitter_delays_but_never_reorders() {
        let mut rolls = [1.0, 0.0].into_iter();
        let jittery = Settings { jitter_us: 5_000, rate_bits: None, ..settings() };
        let (_, out) = burst(&jittery, 2, &mut || rolls.next().unwrap());
        assert_eq!(out, [Some(45), Some(45)]);
    }
}
