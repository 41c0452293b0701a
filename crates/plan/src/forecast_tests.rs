//! Forecasts of guests and lines that are known.

use sterna_model::migration::Via;

use super::*;

fn line(mb_per_s: f64) -> Line {
    Line {
        bytes_per_s: mb_per_s * 1e6,
        overhead: Duration::from_millis(500),
        is_measured: true,
        basis: "test".into(),
        ..Line::assumed(Via::Direct, false)
    }
}

/// The reference case: 80 Mbit/s and 80 ms.
fn far(via: Via) -> Line {
    Line {
        bytes_per_s: 10e6,
        round_trip: Duration::from_millis(80),
        overhead: Duration::from_millis(500),
        ..Line::assumed(via, true)
    }
}

/// Writes so much in a second, and in proportion in longer windows.
fn load(used_mib: u64, mb_per_s: u64) -> LoadSample {
    let one =
        |seconds| Written { window: Span::from_secs(seconds), bytes: Bytes(mb_per_s * seconds * 1_000_000) };
    LoadSample { used: Bytes::mib(used_mib), written: [1, 3, 10].map(one).to_vec(), cpu_milli: 0 }
}

/// Writes all over so much memory within a second, and nowhere else.
fn busy(used_mib: u64, hot_mib: u64) -> LoadSample {
    let one = |seconds| Written { window: Span::from_secs(seconds), bytes: Bytes::mib(hot_mib) };
    LoadSample { used: Bytes::mib(used_mib), written: [1, 3, 10].map(one).to_vec(), cpu_milli: 0 }
}

const PAUSE: Duration = Duration::from_millis(300);

#[test]
fn an_idle_guest_takes_one_pass() {
    let forecast = forecast(&load(256, 0), &line(100.0), PAUSE);
    assert_eq!((forecast.verdict, forecast.advice.as_str()), (Verdict::Fits, ""));
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
    assert_eq!(hopeless.verdict, Verdict::WillNotConverge, "{hopeless:?}");
    assert!(hopeless.advice.contains("faster line"), "{hopeless:?}");
}

#[test]
fn more_writes_never_make_a_move_shorter() {
    let totals: Vec<_> =
        [0, 5, 20, 50, 80].map(|mb| forecast(&load(1024, mb), &line(125.0), PAUSE).total).to_vec();
    assert!(totals.is_sorted(), "{totals:?}");
}

#[test]
fn a_small_hot_pool_asks_for_the_pause_that_it_takes_to_send() {
    // 20 MiB at 10 MB/s are 2.1 s; the state of devices alone takes longer than what is asked for.
    let asked = Duration::from_millis(20);
    let forecast = forecast(&busy(1024, 20), &line(10.0), asked);
    assert_eq!(forecast.verdict, Verdict::NeedsLongerPause, "{forecast:?}");
    assert!((2000..2300).contains(&forecast.downtime.as_millis()), "{forecast:?}");
    let named: Vec<_> =
        forecast.advice.split([' ', ',']).filter_map(|word| word.parse::<Span>().ok()).collect();
    let [named] = named[..] else { panic!("{}", forecast.advice) };
    assert!(named >= forecast.downtime, "{forecast:?}");
    let allowed = super::forecast(&busy(1024, 20), &line(10.0), named.0);
    assert_eq!(allowed.verdict, Verdict::Fits, "what is advised is enough: {allowed:?}");
}

#[test]
fn the_pause_is_never_said_to_fit_when_it_is_longer_than_asked() {
    for ms in [1, 10, 20, 60, 150, 300, 1000] {
        for guest in [load(256, 0), load(1024, 8), busy(512, 64)] {
            for line in [line(100.0), far(Via::Direct), far(Via::Mover)] {
                let forecast = forecast(&guest, &line, Duration::from_millis(ms));
                let fits = matches!(forecast.verdict, Verdict::Fits | Verdict::NeedsThrottling);
                assert!(!fits || forecast.downtime.as_millis() <= ms, "{ms} ms: {forecast:?}");
            }
        }
    }
}

#[test]
fn the_mover_makes_a_move_possible_that_the_line_alone_does_not() {
    // The reference case, writing 6000 sparse pages a second over 64 MiB.
    let guest = LoadSample { written: busy(328, 48).written, ..load(328, 0) };
    let plain = forecast(&guest, &far(Via::Direct), Duration::from_secs(1));
    let carried = forecast(&guest, &far(Via::Mover), Duration::from_secs(1));
    assert_ne!(plain.verdict, Verdict::Fits, "{plain:?}");
    assert_eq!(carried.verdict, Verdict::Fits, "{carried:?}");
    // A prototype took 17.8 s, sent 140.6 MB and paused the guest for 305 ms.
    let (total, pause) = (carried.total.as_millis(), carried.downtime.as_millis());
    assert!((14_000..20_000).contains(&total) && (150..450).contains(&pause), "{carried:?}");
}

#[test]
fn volumes_add_to_bytes_and_time() {
    let without = line(10.0);
    let with = Line { volumes: Bytes(100_000_000), ..without.clone() };
    let (without, with) = (forecast(&load(64, 0), &without, PAUSE), forecast(&load(64, 0), &with, PAUSE));
    assert_eq!(with.bytes.as_u64() - without.bytes.as_u64(), 100_000_000);
    assert_eq!(with.total.as_millis() - without.total.as_millis(), 10_000);
    assert_eq!(with.downtime, without.downtime);
}

#[test]
fn confidence_is_what_was_measured() {
    let unmeasured = LoadSample { written: Vec::new(), ..load(64, 0) };
    let once = LoadSample { written: load(64, 1).written[..1].to_vec(), ..load(64, 1) };
    let guess = Line { is_measured: false, ..line(10.0) };
    let of = |load: &LoadSample, line: &Line| forecast(load, line, PAUSE).confidence;
    assert_eq!(of(&unmeasured, &line(10.0)), Confidence::Low);
    assert_eq!(of(&load(64, 1), &guess), Confidence::Low);
    assert_eq!(of(&once, &line(10.0)), Confidence::Fair);
    assert_eq!(of(&load(64, 1), &line(10.0)), Confidence::Good);
    let carried = Line { is_cost_known: false, ..line(10.0) };
    assert_eq!(of(&load(64, 1), &carried), Confidence::Fair);
}

/// 8 MB/s now, and so much from then on.
fn limited(from_s: u64, mb_per_s: Option<u64>) -> Line {
    let later = (Duration::from_secs(from_s), mb_per_s.map(|mb| mb * 1_000_000));
    Line { limits: vec![(Duration::ZERO, Some(8_000_000)), later], ..line(100.0) }
}

#[test]
fn a_limit_slows_a_move_as_long_as_it_holds() {
    let total = |line: &Line| forecast(&load(256, 0), line, PAUSE).total.as_millis();
    // 268 MB at 8 MB/s.
    assert!((33_900..34_300).contains(&total(&limited(7200, None))), "{}", total(&limited(7200, None)));
    // Ten seconds of them, and the other 188 MB at 100 MB/s.
    assert!((12_300..12_600).contains(&total(&limited(10, None))), "{}", total(&limited(10, None)));
    // A limit is no speed: the line carries no more than it does.
    assert_eq!(total(&limited(0, Some(1000))), total(&line(100.0)));
}

#[test]
fn the_limit_that_holds_at_the_end_makes_the_pause() {
    let waiting =
        |line: Line| forecast(&load(256, 0), &Line { queue: Bytes::mib(1), ..line }, PAUSE).downtime;
    let (by_day, by_night) = (waiting(limited(7200, None)), waiting(limited(10, None)));
    assert!((130..160).contains(&by_day.as_millis()), "a MiB at 8 MB/s: {by_day}");
    assert!(by_night.as_millis() < 40, "{by_night}");
    let into_the_day = Line { limits: vec![(Duration::from_secs(1), Some(500_000))], ..line(100.0) };
    let late = forecast(&load(256, 3), &into_the_day, PAUSE);
    assert_ne!(late.verdict, Verdict::Fits, "it writes faster than the line may carry by then: {late:?}");
}
