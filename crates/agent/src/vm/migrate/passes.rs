//! When a transfer gets no nearer to its end: told by what is left after each pass, never by how long it has taken.
//!
//! A guest that writes as fast as the line carries leaves as much after each pass as after the one before. QEMU slows it
//! then, step by step; once it is slowed no further and still as much is left, it would run slowed for ever.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use sterna_base::units::{Bytes, Span};
use sterna_model::forecast::enough;
use sterna_model::migration::Progress;
use tokio::time::Instant;

/// What the last passes left is judged once so many have ended, over so long: one burst of writes is no verdict, and on a
/// fast line, where passes are short, neither is a minute's work of the guest.
const NO_PROGRESS_PASSES: usize = 5;
const NO_PROGRESS_TIME: Duration = Duration::from_secs(60);
/// By less than this share it does not shrink: from half a window to the next, half of it would last some forty passes.
const SHRINKS_BY: f64 = 0.05;
/// A pass that takes just as long as the pause is as likely to miss it.
const MARGIN: f64 = 1.1;
/// Nobody may ask for a longer pause.
const PAUSE_MAX: Span = Span::from_secs(60);

/// Why a move cannot meet the pause that it was given, and which one would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hopeless {
    pub allowed: Span,
    pub left: Bytes,
    /// Bytes of memory a second, as the guest writes them: on the line they may be fewer.
    pub rate: Bytes,
    pub pause: Span,
}

impl fmt::Display for Hopeless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: Bytes| bytes.as_u64() as f64 / f64::from(1 << 20);
        let (allowed, left, rate) = (self.allowed, mib(self.left), mib(self.rate));
        write!(
            f,
            "cannot meet a pause of {allowed}: {left:.0} MiB were left after every pass at {rate:.1} MiB/s; "
        )?;
        if self.pause > PAUSE_MAX {
            return write!(f, "move it when it writes less or over a faster line, or stop it for the move");
        }
        let pause = self.pause;
        write!(f, "a pause of about {pause} would do: `--max-downtime {pause}`")
    }
}

/// The end of a pass, as it was seen.
#[derive(Debug, Clone, Copy)]
struct Ended {
    at: Instant,
    round: u64,
    /// What the guest had written meanwhile: all that the next pass has to carry.
    left: u64,
}

/// The last passes of one transfer, under one slowing of the guest.
#[derive(Debug, Default)]
pub struct Passes {
    ended: VecDeque<Ended>,
    throttle: u8,
}

impl Passes {
    /// Takes in a sample of a transfer that may pause its guest for so long.
    pub fn judge(&mut self, seen: &Progress, allowed: Span, now: Instant) -> Option<Hopeless> {
        // What is slowed anew gets its chance. QEMU slows further as long as that helps nothing, up to its limit.
        if seen.throttle != self.throttle {
            self.throttle = seen.throttle;
            self.ended.clear();
        }
        self.note(seen, now);
        self.is_told().then(|| self.hopeless(allowed)).flatten()
    }

    fn note(&mut self, seen: &Progress, now: Instant) {
        // QEMU counts a pass when it begins: before the second one there is no end of one.
        let newest = self.ended.back().map_or(1, |last| last.round);
        if seen.rounds < newest {
            // These were of another transfer.
            self.ended.clear();
        }
        if seen.rounds < 2 || seen.rounds == newest {
            return;
        }
        self.ended.push_back(Ended { at: now, round: seen.rounds, left: seen.remaining.as_u64() });
        while self.ended.len() > NO_PROGRESS_PASSES + 1 && self.lasts_from(1) {
            self.ended.pop_front();
        }
    }

    fn lasts_from(&self, nth: usize) -> bool {
        let (first, last) = (self.ended.get(nth), self.ended.back());
        first.zip(last).is_some_and(|(first, last)| last.at - first.at >= NO_PROGRESS_TIME)
    }

    fn is_told(&self) -> bool {
        self.ended.len() > NO_PROGRESS_PASSES && self.lasts_from(0)
    }

    /// The later half beside the earlier one, each by its median: neither one burst nor one idle moment decides.
    fn hopeless(&self, allowed: Span) -> Option<Hopeless> {
        let half = self.ended.len() / 2;
        let earlier = median(self.ended.iter().take(half));
        let left = median(self.ended.iter().skip(self.ended.len() - half));
        // What a burst of writes or a line that was gone left behind is being caught up with.
        let is_falling =
            (1..3).all(|nth| shrinks(self.left_in_nth_last(nth), self.left_in_nth_last(nth - 1)));
        if shrinks(earlier, left) || is_falling {
            return None;
        }
        let takes = self.pass()?;
        let needs = Span(takes.mul_f64(MARGIN));
        // Less than what is allowed was not to be had: the way and the loading at the other end take the rest of that.
        let pause = if needs <= allowed { Span(needs.0 + allowed.0) } else { needs };
        let rate = Bytes((left as f64 / takes.as_secs_f64().max(0.001)) as u64);
        Some(Hopeless { allowed, left: Bytes(left), rate, pause: enough(pause) })
    }

    fn left_in_nth_last(&self, nth: usize) -> u64 {
        self.ended.iter().rev().nth(nth).map_or(0, |ended| ended.left)
    }

    /// How long one takes now: what it carries is what is left, at the rate at which it is really sent.
    fn pass(&self) -> Option<Duration> {
        let (first, last) = (self.ended.front()?, self.ended.back()?);
        let passes = u32::try_from(last.round.checked_sub(first.round)?).ok().filter(|passes| *passes > 0)?;
        Some((last.at - first.at) / passes)
    }
}

fn shrinks(from: u64, to: u64) -> bool {
    to as f64 <= from as f64 * (1.0 - SHRINKS_BY)
}

fn median<'a>(of: impl Iterator<Item = &'a Ended>) -> u64 {
    let mut left: Vec<_> = of.map(|ended| ended.left).collect();
    left.sort_unstable();
    left.get(left.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWED: Span = Span::from_millis(300);

    fn seen(rounds: u64, mib: u64, throttle: u8) -> Progress {
        Progress { rounds, remaining: Bytes::mib(mib), throttle, ..Progress::default() }
    }

    /// Passes of so many seconds that leave so many MiB each; when the verdict fell, counted in passes, and what it was.
    fn judged(seconds: f64, left: &[u64]) -> Option<(usize, Hopeless)> {
        let (mut passes, begun) = (Passes::default(), Instant::now());
        left.iter().enumerate().find_map(|(nth, mib)| {
            let at = begun + Duration::from_secs_f64(seconds * nth as f64);
            passes.judge(&seen(nth as u64 + 2, *mib, 80), ALLOWED, at).map(|hopeless| (nth, hopeless))
        })
    }

    #[test]
    fn the_verdict_is_one_of_progress_and_never_of_time_alone() {
        let shrinking: Vec<_> = (0..200).map(|nth| (100_000.0 * 0.97f64.powi(nth)) as u64).collect();
        let slowly: Vec<_> = (0..200).map(|nth| 100_000 - 10 * nth).collect();
        let burst = [100, 90, 81, 300, 66, 59, 53, 48, 43, 39];
        let outage = [10, 10, 300, 100, 30, 10, 10];
        let table: [(&str, f64, &[u64], Option<usize>); 8] = [
            ("as much after every pass", 20.0, &[40; 10], Some(5)),
            ("short passes are watched for a minute", 1.0, &[40; 100], Some(60)),
            ("five passes are not enough", 100.0, &[40; 5], None),
            ("by three percent each pass", 20.0, &shrinking, None),
            ("by next to nothing", 20.0, &slowly, Some(5)),
            ("one burst", 20.0, &burst, None),
            ("a line that was gone for a while", 20.0, &outage, None),
            ("it grows", 20.0, &[10, 20, 30, 40, 50, 60], Some(5)),
        ];
        for (what, seconds, left, expected) in table {
            assert_eq!(judged(seconds, left).map(|(nth, _)| nth), expected, "{what}");
        }
    }

    #[test]
    fn a_guest_that_has_just_been_slowed_further_gets_its_chance() {
        let (mut passes, begun) = (Passes::default(), Instant::now());
        for nth in 0..30 {
            let throttle = 20 + u8::try_from(nth / 5 * 10).unwrap();
            let at = begun + Duration::from_secs(20 * nth);
            assert_eq!(passes.judge(&seen(nth + 2, 40, throttle), ALLOWED, at), None, "pass {nth}");
        }
    }

    #[test]
    fn a_pass_that_lasts_is_no_lack_of_progress() {
        let (mut passes, begun) = (Passes::default(), Instant::now());
        for second in 0..7200 {
            let first = passes.judge(&seen(1, 1000, 0), ALLOWED, begun + Duration::from_secs(second));
            assert_eq!(first, None);
        }
    }

    #[test]
    fn the_reason_names_a_pause_that_would_do() {
        let (_, hopeless) = judged(20.0, &[40; 10]).unwrap();
        assert_eq!(
            hopeless.to_string(),
            "cannot meet a pause of 300ms: 40 MiB were left after every pass at 2.0 MiB/s; a pause of about 23s would do: \
             `--max-downtime 23s`"
        );
        let (_, hopeless) = judged(100.0, &[40; 10]).unwrap();
        assert!(hopeless.to_string().ends_with("or stop it for the move"), "{hopeless}");
        // Passes that fit, and yet it did not end: the way itself is what takes long.
        let (_, hopeless) = judged(0.25, &vec![2; 300]).unwrap();
        assert!(hopeless.to_string().ends_with("`--max-downtime 580ms`"), "{hopeless}");
    }
}
