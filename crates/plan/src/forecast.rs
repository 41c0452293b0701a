//! How long a move will take: rounds of precopy over a line, from what was measured of the guest and the line.
//!
//! The model is the classic one of precopy: the first pass carries the memory in use, each further pass what was written
//! during the one before, until the rest fits the pause. Distinct pages written in `t` follow
//! `U(t) = W (1 - exp(-r t / W))` with the write rate `r` and the working set `W`.

use std::time::Duration;

use sterna_base::units::{Bytes, Span};
use sterna_model::forecast::{Forecast, LoadSample, Verdict};

/// What carries the memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// Bytes a second that a migration gets through.
    pub bytes_per_s: f64,
    /// From the order to the first byte, plus from the last to the end.
    pub overhead: Duration,
    /// Where these come from, in words.
    pub basis: String,
}

/// QEMU's own share of the pause: stopping CPUs, device state, starting CPUs. Measured at 5-20 ms for small guests.
const STOP_AND_GO: Duration = Duration::from_millis(15);
/// Device state and its description, measured at 78 KB for a q35 machine.
const DEVICE_STATE: f64 = 80_000.0;
/// QEMU's throttle takes at most this share of the guest's CPU time away.
const THROTTLE_MAX: f64 = 0.99;
const ROUNDS_MAX: usize = 200;

#[must_use]
pub fn forecast(load: &LoadSample, line: &Line, max_downtime: Duration) -> Forecast {
    let plain = rounds(load, line, max_downtime, 1.0);
    let (verdict, run) = match plain {
        Some(run) => (Verdict::Fits, run),
        None => match rounds(load, line, max_downtime, 1.0 - THROTTLE_MAX) {
            Some(run) => (Verdict::NeedsThrottling, run),
            None => worst(load, line),
        },
    };
    let pause = STOP_AND_GO + Duration::from_secs_f64((run.last + DEVICE_STATE) / line.bytes_per_s);
    let total = line.overhead + Duration::from_secs_f64(run.bytes / line.bytes_per_s) + STOP_AND_GO;
    Forecast {
        total: whole_ms(total),
        downtime: whole_ms(pause),
        bytes: Bytes(run.bytes as u64),
        verdict,
        basis: basis(load, line),
    }
}

/// Bytes in all, and in the last pass, which is the pause.
struct Run {
    bytes: f64,
    last: f64,
}

/// `None`: does not converge to the pause. `speed`: the share of its CPU time that the guest keeps after the first pass.
fn rounds(load: &LoadSample, line: &Line, max_downtime: Duration, speed: f64) -> Option<Run> {
    let fits =
        (max_downtime.saturating_sub(STOP_AND_GO).as_secs_f64() * line.bytes_per_s - DEVICE_STATE).max(0.0);
    let mut pass = load.used.as_u64() as f64;
    let mut bytes = DEVICE_STATE;
    for round in 0..ROUNDS_MAX {
        bytes += pass;
        let speed = if round == 0 { 1.0 } else { speed };
        let next = written(load, pass / line.bytes_per_s * speed);
        if next <= fits {
            return Some(Run { bytes: bytes + next, last: next });
        }
        // The passes have stopped shrinking: the guest writes as fast as the line carries.
        if round > 0 && next >= pass * 0.999 && (speed - 1.0).abs() < f64::EPSILON {
            return None;
        }
        pass = next;
    }
    None
}

/// Neither as it is nor throttled: the pause is the working set over the line, if that is less than a whole pass.
fn worst(load: &LoadSample, line: &Line) -> (Verdict, Run) {
    let first = load.used.as_u64() as f64;
    let last = written(load, first / line.bytes_per_s).min(first);
    let verdict = if last < first * 0.9 { Verdict::NeedsLongerPause } else { Verdict::WillNotConverge };
    (verdict, Run { bytes: first + last, last })
}

/// Distinct bytes written in `seconds`. One sample gives the rate; the memory in use bounds the working set.
fn written(load: &LoadSample, seconds: f64) -> f64 {
    let window = load.dirty_window.0.as_secs_f64();
    let used = load.used.as_u64() as f64;
    if window <= 0.0 || used <= 0.0 {
        return 0.0;
    }
    let rate = load.dirty.as_u64() as f64 / window;
    used * (1.0 - (-rate * seconds / used).exp())
}

fn whole_ms(duration: Duration) -> Span {
    Span::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

fn basis(load: &LoadSample, line: &Line) -> String {
    let guest = if load.dirty_window.0.is_zero() {
        "the guest's writes have not been measured yet".to_owned()
    } else {
        let per_s = load.dirty.as_u64() as f64 / load.dirty_window.0.as_secs_f64() / 1e6;
        format!("{} MiB in use, {per_s:.1} MB/s written", load.used.as_u64() >> 20)
    };
    format!("{guest}; {}", line.basis)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(mb_per_s: f64) -> Line {
        Line { bytes_per_s: mb_per_s * 1e6, overhead: Duration::from_millis(500), basis: "test".into() }
    }

    fn load(used_mib: u64, dirty_mb_per_s: u64) -> LoadSample {
        LoadSample {
            used: Bytes::mib(used_mib),
            dirty: Bytes(dirty_mb_per_s * 1_000_000),
            dirty_window: Span::from_secs(1),
            cpu_milli: 0,
        }
    }

    const PAUSE: Duration = Duration::from_millis(300);

    #[test]
    fn an_idle_guest_takes_one_pass() {
        let forecast = forecast(&load(256, 0), &line(100.0), PAUSE);
        assert_eq!(forecast.verdict, Verdict::Fits);
        assert!((3000..3300).contains(&forecast.total.as_millis()), "{forecast:?}");
        assert!(forecast.downtime.as_millis() < 30, "{forecast:?}");
    }

    #[test]
    fn a_guest_that_writes_faster_than_the_line_is_named_so() {
        let slow = forecast(&load(4096, 5), &line(100.0), PAUSE);
        assert_eq!(slow.verdict, Verdict::Fits);
        let fast = forecast(&load(4096, 300), &line(100.0), PAUSE);
        assert_eq!(fast.verdict, Verdict::NeedsThrottling);
        let hopeless = forecast(&load(65536, 50_000), &line(10.0), Duration::from_millis(20));
        assert!(
            matches!(hopeless.verdict, Verdict::WillNotConverge | Verdict::NeedsLongerPause),
            "{hopeless:?}"
        );
    }

    #[test]
    fn more_writes_never_make_a_move_shorter() {
        let totals: Vec<_> =
            [0, 5, 20, 50, 80].map(|mb| forecast(&load(1024, mb), &line(125.0), PAUSE).total).to_vec();
        assert!(totals.is_sorted(), "{totals:?}");
    }
}
