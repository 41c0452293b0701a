//! How long a move will take: rounds of precopy over a line, from what was measured of the guest and the line.
//!
//! The model is the classic one of precopy: the first pass carries the memory in use, each further pass what was written
//! during the one before, until the rest fits the pause. What is written in a time is [`pools`]' matter; what carries it,
//! and what a page costs on the way, is [`line`]'s. Passes are in bytes on the line:
//!
//! ```text
//! first = used * c0        next = U(pass / B) * cd        pause = stop + (queue + last + devices) / B + RTT/2 + load
//! ```
//!
//! B is what the line carries or, when that is less, the limit that holds at that time of the move.

use std::time::Duration;

use sterna_base::units::{Bytes, Span};
use sterna_model::forecast::{Confidence, Forecast, LoadSample, Verdict, Written, enough};

pub mod line;
pub mod past;
pub mod pools;

pub use line::Line;
use pools::Pools;

/// QEMU's own share of the pause: stopping CPUs, loading device state, starting CPUs. Measured at 5-20 ms in all for small
/// guests.
const STOP: Duration = Duration::from_millis(5);
const LOAD: Duration = Duration::from_millis(5);
const CONT: Duration = Duration::from_millis(5);
/// Device state and its description, measured at 78 KB for a q35 machine.
const DEVICE_STATE: f64 = 80_000.0;
/// The throttle takes at most this share of the guest's CPU time away: the agent allows QEMU no more.
const THROTTLE_MAX: f64 = 0.80;
const ROUNDS_MAX: usize = 200;
/// A last pass of more than this share of all that a pass can have is no convergence.
const WHOLE: f64 = 0.9;
/// Nobody accepts a longer pause: the longest that can be asked for.
const PAUSE_MAX: Duration = Duration::from_secs(60);

#[must_use]
pub fn forecast(load: &LoadSample, line: &Line, max_downtime: Duration) -> Forecast {
    let guest = Guest { used: load.used.as_u64() as f64, pools: Pools::fit(&load.written, load.used) };
    let freely = rounds(&guest, line, max_downtime, 1.0);
    let throttled = || rounds(&guest, line, max_downtime, 1.0 - THROTTLE_MAX);
    let (verdict, run) = match freely {
        Some(run) => (Verdict::Fits, run),
        None => match throttled() {
            Some(run) => (Verdict::NeedsThrottling, run),
            None => steady(&guest, line),
        },
    };
    let downtime = pause(line, &run);
    Forecast {
        total: whole_ms(line.overhead + Duration::from_secs_f64(run.stops) + downtime),
        downtime: whole_ms(downtime),
        bytes: Bytes(run.bytes as u64 + line.volumes.as_u64()),
        verdict,
        advice: advice(verdict, &guest, line),
        confidence: confidence(load, line),
        basis: basis(load, line),
    }
}

struct Guest {
    used: f64,
    pools: Pools,
}

impl Guest {
    /// What a pass of so many seconds leaves for the next one, on the line. `speed`: the share of its CPU time that the
    /// guest keeps.
    fn after(&self, pass: f64, line: &Line, speed: f64) -> f64 {
        self.pools.written(pass * speed) * line.cost_again
    }
}

/// Bytes in all, and in the last pass, which is the pause; seconds after the first byte until the guest stops.
struct Run {
    bytes: f64,
    last: f64,
    stops: f64,
}

/// The pause if nothing at all were left to send, so many seconds after the first byte.
fn least_pause(line: &Line, at: f64) -> Duration {
    let sent = (line.queue.as_u64() as f64 + DEVICE_STATE) / line.speed(at);
    STOP + LOAD + CONT + line.commit + line.round_trip / 2 + Duration::from_secs_f64(sent)
}

fn pause(line: &Line, run: &Run) -> Duration {
    least_pause(line, run.stops) + Duration::from_secs_f64(run.last / line.speed(run.stops))
}

/// What may be left for the pause; `None`: it is too short for what is in it in any case.
fn room(line: &Line, max_downtime: Duration, at: f64) -> Option<f64> {
    Some(max_downtime.checked_sub(least_pause(line, at))?.as_secs_f64() * line.speed(at))
}

/// When memory begins: volumes go first, and then it is their writes that go beside it.
fn first_page(line: &Line) -> f64 {
    line.takes(line.volumes.as_u64() as f64 + DEVICE_STATE, 0.0)
}

/// `None`: does not converge to the pause.
fn rounds(guest: &Guest, line: &Line, max_downtime: Duration, speed: f64) -> Option<Run> {
    let mut pass = guest.used * line.cost_first;
    let (mut bytes, mut at) = (DEVICE_STATE, first_page(line));
    for round in 0..ROUNDS_MAX {
        bytes += pass;
        let speed = if round == 0 { 1.0 } else { speed };
        let (begun, takes) = (at, line.takes(pass, at));
        let next = guest.after(takes, line, speed);
        at += takes;
        if next <= room(line, max_downtime, at)? {
            return Some(Run { bytes: bytes + next, last: next, stops: at });
        }
        // The passes have stopped shrinking: the guest writes as fast as the line carries. Not so when a limit began.
        let is_steady = next >= pass * 0.999 && line.speed(begun) <= line.speed(at);
        if round > 0 && is_steady && (speed - 1.0).abs() < f64::EPSILON {
            return None;
        }
        pass = next;
    }
    None
}

/// Neither as it is nor throttled: passes shrink to a size that they keep, which then is the pause.
fn steady(guest: &Guest, line: &Line) -> (Verdict, Run) {
    let mut pass = guest.used * line.cost_first;
    let (mut bytes, mut at) = (DEVICE_STATE, first_page(line));
    for _ in 0..ROUNDS_MAX {
        bytes += pass;
        let takes = line.takes(pass, at);
        let next = guest.after(takes, line, 1.0);
        let is_steady = next >= pass * 0.999 && line.speed(at) <= line.speed(at + takes);
        (pass, at) = (next, at + takes);
        if is_steady {
            break;
        }
    }
    let run = Run { bytes: bytes + pass, last: pass, stops: at };
    let is_whole = pass >= guest.used * line.cost_again * WHOLE || pause(line, &run) > PAUSE_MAX;
    let verdict = if is_whole { Verdict::WillNotConverge } else { Verdict::NeedsLongerPause };
    (verdict, run)
}

/// What would help.
fn advice(verdict: Verdict, guest: &Guest, line: &Line) -> String {
    let (unthrottled, run) = steady(guest, line);
    let enough = enough(whole_ms(pause(line, &run)));
    let allow = format!("allow a pause of {enough}");
    let is_in_reach = unthrottled == Verdict::NeedsLongerPause;
    match verdict {
        Verdict::Fits => String::new(),
        Verdict::NeedsThrottling if is_in_reach => {
            format!("the guest will be slowed; to keep its speed, {allow} or move it when it writes less")
        }
        Verdict::NeedsThrottling => {
            "the guest will be slowed for it; it keeps its speed only when it writes less".to_owned()
        }
        Verdict::NeedsLongerPause => format!("{allow}, or move it when it writes less"),
        Verdict::WillNotConverge => {
            "move it when it writes less or over a faster line, or stop it for the move".to_owned()
        }
    }
}

fn confidence(load: &LoadSample, line: &Line) -> Confidence {
    let several = load.written.iter().any(|one| one.window != load.written[0].window);
    match (load.written.is_empty() || !line.is_measured, several && line.is_cost_known) {
        (true, _) => Confidence::Low,
        (false, false) => Confidence::Fair,
        (false, true) => Confidence::Good,
    }
}

fn whole_ms(duration: Duration) -> Span {
    Span::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

fn basis(load: &LoadSample, line: &Line) -> String {
    let in_use = format!("{} MiB in use", load.used.as_u64() >> 20);
    let guest = if load.written.is_empty() {
        format!("{in_use}, the guest's writes have not been measured yet")
    } else {
        format!("{in_use}, written {}", windows(&load.written).join(", "))
    };
    format!("{guest}; {}", line.basis)
}

/// The newest of each window, the shortest first.
fn windows(written: &[Written]) -> Vec<String> {
    let newest: std::collections::BTreeMap<_, _> =
        written.iter().map(|one| (one.window, one.bytes)).collect();
    newest.iter().map(|(window, bytes)| format!("{} MiB in {window}", bytes.as_u64() >> 20)).collect()
}

#[cfg(test)]
#[path = "forecast_tests.rs"]
mod tests;
