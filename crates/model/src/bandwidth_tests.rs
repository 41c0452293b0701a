//! Limits by the time of day: what they say, when they hold, what is refused.

use super::*;

fn limit(text: &str) -> BandwidthLimit {
    text.parse().unwrap()
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn share(moves: u32, limits: &[&str]) -> Share {
    Share { limits: limits.iter().map(|text| limit(text)).collect(), moves }
}

/// 2026-11-23 is a Monday.
#[test]
fn a_limit_holds_on_its_days_from_its_first_minute_until_before_its_last() {
    let office = limit("mon-fri 08:00-18:00 20Mbit/s");
    for (time, holds) in [
        ("2026-11-23T07:59:59.999Z", false),
        ("2026-11-23T08:00:00Z", true),
        ("2026-11-27T17:59:59Z", true),
        ("2026-11-27T18:00:00Z", false),
        ("2026-11-28T12:00:00Z", false),
        ("2026-11-29T12:00:00Z", false),
    ] {
        assert_eq!(office.holds_at(at(time)), holds, "{time}");
    }
}

#[test]
fn a_night_belongs_to_the_day_on_which_it_begins() {
    let night = limit("fri 22:00-06:00 1Gbit/s");
    for (time, holds) in [
        ("2026-11-27T05:00:00Z", false),
        ("2026-11-27T22:00:00Z", true),
        ("2026-11-28T05:59:00Z", true),
        ("2026-11-28T06:00:00Z", false),
        ("2026-11-28T23:00:00Z", false),
    ] {
        assert_eq!(night.holds_at(at(time)), holds, "{time}");
    }
}

#[test]
fn times_are_those_of_the_clocks_there() {
    let there = limit("mon 00:00-01:00 +05:30 1Mbit/s");
    assert!(there.holds_at(at("2026-11-22T18:30:00Z")));
    assert!(!there.holds_at(at("2026-11-22T18:29:00Z")));
    assert!(!there.holds_at(at("2026-11-22T19:30:00Z")));
    let west = limit("sun 23:00-24:00 -08:00 1Mbit/s");
    assert!(west.holds_at(at("2026-11-23T07:30:00Z")));
    assert!(!west.holds_at(at("2026-11-23T08:00:00Z")));
}

#[test]
fn the_lowest_limit_counts_and_moves_share_it() {
    let now = at("2026-11-23T12:00:00Z");
    let source = share(1, &["100Mbit/s", "mon 08:00-18:00 40Mbit/s", "sun 10Mbit/s"]);
    assert_eq!(rate_at(std::slice::from_ref(&source), now), Some(5_000_000));
    let target = share(5, &["mon-fri 80Mbit/s"]);
    assert_eq!(rate_at(&[source, target], now), Some(2_000_000));
    assert_eq!(rate_at(&[share(3, &["tue 10Mbit/s"])], now), None);
    assert_eq!(rate_at(&[], now), None);
}

#[test]
fn the_week_ahead_is_told_in_the_order_of_its_changes() {
    let now = at("2026-11-27T17:00:00Z");
    let ahead = rates_from(&[share(1, &["mon-fri 08:00-18:00 8Mbit/s", "sat 10:00-11:00 80Mbit/s"])], now);
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    let expected = [
        (hours(0), Some(1_000_000)),
        (hours(1), None),
        (hours(17), Some(10_000_000)),
        (hours(18), None),
        (hours(63), Some(1_000_000)),
        (hours(73), None),
    ];
    assert_eq!(ahead[..6], expected);
    assert_eq!(rates_from(&[], now), [(Duration::ZERO, None)]);
    // One day runs into the next without a change between them.
    assert_eq!(rates_from(&[share(1, &["8Mbit/s"])], now), [(Duration::ZERO, Some(1_000_000))]);
}

#[test]
fn a_limit_survives_its_text_and_its_stored_form() {
    for text in [
        "mon-fri 08:00-18:00 20Mbit/s",
        "22:00-06:00 1Gbit/s",
        "mon,wed-thu,sun 00:00-24:00 -03:30 100kbit/s",
        "sat-sun 00:00-24:00 +01:00 20Mbit/s",
    ] {
        let limit = limit(text);
        assert_eq!(limit.to_string(), text);
        let stored = serde_json::to_string(&limit).unwrap();
        assert_eq!(serde_json::from_str::<BandwidthLimit>(&stored).unwrap(), limit, "{stored}");
    }
    assert_eq!(limit("sat-mon 1Mbit/s").days, limit("mon,sat,sun 1Mbit/s").days, "over the week's end");
    let short: BandwidthLimit = serde_json::from_str(r#"{"limit": "20Mbit/s"}"#).unwrap();
    assert_eq!(short, limit("20Mbit/s"));
}

#[test]
fn what_is_wrong_is_named() {
    for (text, word) in [
        ("mon-fry 08:00-18:00 20Mbit/s", "`mon-fry` are no days"),
        ("8:00-18:00 20Mbit/s", "`8:00` is no time of day"),
        ("08:00-24:01 20Mbit/s", "`24:01` is no time of day"),
        ("08:60-18:00 20Mbit/s", "`08:60` is no time of day"),
        ("08:00-08:00 20Mbit/s", "begins and ends at 08:00"),
        ("24:00-08:00 20Mbit/s", "begins at 24:00"),
        ("08:00-18:00 +15:00 20Mbit/s", "`+15:00` is no offset from UTC"),
        ("08:00-18:00 20MB/s", "`20MB/s` is not a rate"),
        ("08:00-18:00 99kbit/s", "lets nothing through"),
        ("08:00-18:00", "`08:00-18:00` is no limit"),
        ("08:00-18:00 20Mbit/s please", "is no limit"),
        ("", "is no limit"),
    ] {
        let error = text.parse::<BandwidthLimit>().unwrap_err().to_string();
        assert!(error.contains(word), "{text}: {error}");
    }
}
