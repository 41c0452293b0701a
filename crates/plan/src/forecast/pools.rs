//! How much of its memory a guest writes to within a time: two pools, fitted to a few windows that were measured.
//!
//! Distinct bytes written within `t` follow `U(t) = sum over two pools of W (1 - exp(-r t / W))`: a small pool that is
//! written again and again, and a large one that is written here and there. `W` is a pool's size, `r` its write rate.

use std::collections::BTreeMap;

use sterna_base::units::{Bytes, Span};
use sterna_model::forecast::Written;

/// QEMU tells whole MiB a second: so far off is a figure for its rounding alone.
const ROUNDING_PER_S: f64 = (1 << 19) as f64;
/// A figure comes from a few hundred sampled pages: so far off it may be by chance.
const CHANCE: f64 = 0.1;
/// Fits that differ by less than a fifth of that are as good as each other.
const AS_GOOD: f64 = 0.04;
/// What the windows do not tell apart is judged by what it says of this long a pass.
const HORIZON_S: f64 = 100.0;
/// Speeds of a pool, as the share of it written a second: from none in hours to all in milliseconds.
const SPEED_MIN: f64 = 1e-4;
const SPEEDS_PER_DECADE: i32 = 12;
const SPEED_DECADES: i32 = 7;

/// A part of memory.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Pool {
    bytes: f64,
    /// The share of it written in a second, if no page were written twice: `r / W`.
    speed: f64,
}

impl Pool {
    fn written(self, seconds: f64) -> f64 {
        self.bytes * self.share(seconds)
    }

    fn share(self, seconds: f64) -> f64 {
        -(-self.speed * seconds).exp_m1()
    }
}

/// A guest's writes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pools {
    often: Pool,
    seldom: Pool,
}

/// A window and what was written within it.
type Point = (f64, f64);

impl Pools {
    /// The best two pools for what was measured; of those as good as each other the ones that write most, so that what
    /// was not measured is not hoped for. Nothing measured: nothing written.
    #[must_use]
    pub fn fit(written: &[Written], used: Bytes) -> Self {
        let used = used.as_u64() as f64;
        let points = steady(written, used);
        if points.is_empty() || used <= 0.0 {
            return Self::default();
        }
        let speeds: Vec<f64> = (0..=SPEEDS_PER_DECADE * SPEED_DECADES)
            .map(|step| SPEED_MIN * 10f64.powf(f64::from(step) / f64::from(SPEEDS_PER_DECADE)))
            .collect();
        let mut fits = Vec::new();
        for (nth, often) in speeds.iter().enumerate() {
            fits.extend(speeds[..nth].iter().map(|seldom| sizes(&points, *often, *seldom, used)));
        }
        let best = fits.iter().map(|(error, _)| *error).fold(f64::INFINITY, f64::min);
        let enough = best + AS_GOOD * points.len() as f64;
        let good = fits.into_iter().filter(|(error, _)| *error <= enough).map(|(_, pools)| pools);
        good.max_by(|a, b| a.written(HORIZON_S).total_cmp(&b.written(HORIZON_S))).unwrap_or_default()
    }

    /// Distinct bytes written within so long: `U(t)`.
    #[must_use]
    pub fn written(&self, seconds: f64) -> f64 {
        self.often.written(seconds) + self.seldom.written(seconds)
    }
}

/// Windows, the shortest first: the median of each, no longer one ever with less in it than a shorter one.
fn steady(written: &[Written], used: f64) -> Vec<Point> {
    let mut by_window = BTreeMap::<Span, Vec<Bytes>>::new();
    for one in written.iter().filter(|one| !one.window.0.is_zero()) {
        by_window.entry(one.window).or_default().push(one.bytes);
    }
    let mut least = 0.0;
    let median = |(window, mut bytes): (Span, Vec<Bytes>)| {
        bytes.sort_unstable();
        least = (bytes[bytes.len() / 2].as_u64() as f64).clamp(least, used.max(least));
        (window.0.as_secs_f64(), least)
    };
    by_window.into_iter().map(median).collect()
}

/// The sizes of two pools of these speeds that come closest: none negative, together no more than the memory in use.
/// Linear least squares: the best is inside those bounds or on one of them.
fn sizes(points: &[Point], often: f64, seldom: f64, used: f64) -> (f64, Pools) {
    let (mut aa, mut ab, mut bb, mut au, mut bu) = (0.0, 0.0, 0.0, 0.0, 0.0);
    let shares = |seconds: f64| {
        let share = |speed| Pool { bytes: 0.0, speed }.share(seconds);
        (share(often), share(seldom))
    };
    for (seconds, bytes) in points {
        let (a, b) = shares(*seconds);
        let weight = weight(*seconds, *bytes);
        aa += weight * a * a;
        ab += weight * a * b;
        bb += weight * b * b;
        au += weight * a * bytes;
        bu += weight * b * bytes;
    }
    let determinant = aa * bb - ab * ab;
    let inside = ((bb * au - ab * bu) / determinant, (aa * bu - ab * au) / determinant);
    // All of memory in the two: the first is what the second does not have.
    let full = ((au - bu - used * (ab - bb)) / (aa - 2.0 * ab + bb)).clamp(0.0, used);
    let edges = [((au / aa).clamp(0.0, used), 0.0), (0.0, (bu / bb).clamp(0.0, used)), (full, used - full)];
    let is_allowed = |(a, b): &(f64, f64)| *a >= 0.0 && *b >= 0.0 && a + b <= used * (1.0 + 1e-9);
    let with_error = |(a, b): (f64, f64)| {
        let pools =
            Pools { often: Pool { bytes: a, speed: often }, seldom: Pool { bytes: b, speed: seldom } };
        (error(points, &pools), pools)
    };
    edges
        .into_iter()
        .chain([inside])
        .filter(is_allowed)
        .map(with_error)
        .min_by(|(a, _), (b, _)| a.total_cmp(b))
        .unwrap_or_default()
}

/// Squares of how far it is off, in what may be off by chance.
fn error(points: &[Point], pools: &Pools) -> f64 {
    let off = |(seconds, bytes): &Point| (pools.written(*seconds) - bytes).powi(2) * weight(*seconds, *bytes);
    points.iter().map(off).sum()
}

fn weight(seconds: f64, bytes: f64) -> f64 {
    (CHANCE * bytes + ROUNDING_PER_S * seconds).powi(-2)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: f64 = (1 << 20) as f64;
    const WINDOWS: [u64; 3] = [1, 3, 10];

    fn truth(often: (f64, f64), seldom: (f64, f64)) -> Pools {
        let pool = |(mib, speed): (f64, f64)| Pool { bytes: mib * MIB, speed };
        Pools { often: pool(often), seldom: pool(seldom) }
    }

    fn measured(of: &Pools, noise: [f64; 3]) -> Vec<Written> {
        let one = |(seconds, noise): (u64, f64)| Written {
            window: Span::from_secs(seconds),
            bytes: Bytes((of.written(seconds as f64) * noise) as u64),
        };
        WINDOWS.into_iter().zip(noise).map(one).collect()
    }

    fn guests() -> Vec<Pools> {
        vec![
            truth((64.0, 5.0), (0.0, 0.0)),
            truth((20.0, 3.0), (500.0, 0.02)),
            truth((100.0, 0.5), (900.0, 0.001)),
            truth((10.0, 50.0), (200.0, 0.1)),
        ]
    }

    #[test]
    fn what_lies_between_the_windows_is_found_again() {
        for guest in guests() {
            let fit = Pools::fit(&measured(&guest, [1.0; 3]), Bytes::mib(1024));
            for seconds in [1.0, 2.0, 3.0, 6.0, 10.0] {
                let (found, is) = (fit.written(seconds), guest.written(seconds));
                assert!((found - is).abs() < 0.12 * is + MIB, "{seconds} s: {found} for {is} of {guest:?}");
            }
        }
    }

    #[test]
    fn beyond_the_windows_it_errs_to_more_and_never_past_the_memory() {
        for guest in guests() {
            let fit = Pools::fit(&measured(&guest, [1.0; 3]), Bytes::mib(1024));
            for seconds in [20.0, 60.0, 600.0] {
                let (found, is) = (fit.written(seconds), guest.written(seconds));
                assert!(found > 0.9 * is && found <= 1024.1 * MIB, "{seconds} s: {found} for {is}");
            }
        }
    }

    #[test]
    fn noise_bends_it_no_further_than_the_noise() {
        for noise in [[1.15, 0.9, 1.1], [0.85, 1.15, 0.9], [1.2, 0.8, 1.0]] {
            for guest in guests() {
                let fit = Pools::fit(&measured(&guest, noise), Bytes::mib(1024));
                let curve: Vec<_> = (0..200).map(|tenth| fit.written(f64::from(tenth) / 10.0)).collect();
                assert!(curve.is_sorted() && curve[0] == 0.0, "{guest:?}");
                for seconds in [1.0, 3.0, 10.0] {
                    let (found, is) = (fit.written(seconds), guest.written(seconds));
                    assert!((found - is).abs() < 0.3 * is, "{seconds} s: {found} for {is} of {guest:?}");
                }
            }
        }
    }

    #[test]
    fn one_measurement_out_of_the_ordinary_is_outvoted() {
        let guest = truth((50.0, 1.0), (0.0, 0.0));
        let mut written = measured(&guest, [1.0; 3]);
        written.extend(measured(&guest, [9.0; 3]));
        written.extend(measured(&guest, [1.0; 3]));
        let without = Pools::fit(&measured(&guest, [1.0; 3]), Bytes::mib(1024));
        assert_eq!(Pools::fit(&written, Bytes::mib(1024)), without);
    }

    #[test]
    fn one_window_means_writes_all_over_the_memory() {
        let one = [Written { window: Span::from_secs(1), bytes: Bytes::mib(10) }];
        let fit = Pools::fit(&one, Bytes::mib(1000));
        let expected = 1000.0 * MIB * (1.0 - (-0.1f64).exp());
        assert!((fit.written(10.0) - expected).abs() < 0.1 * expected, "{fit:?}");
    }

    #[test]
    fn nothing_measured_and_nothing_written_are_no_writes() {
        let idle = [Written { window: Span::from_secs(1), bytes: Bytes(0) }];
        assert!(Pools::fit(&[], Bytes::mib(64)).written(100.0) == 0.0);
        assert!(Pools::fit(&idle, Bytes(0)).written(100.0) == 0.0);
        // Less than can be told from nothing.
        assert!(Pools::fit(&idle, Bytes::mib(64)).written(1.0) <= ROUNDING_PER_S);
    }
}
