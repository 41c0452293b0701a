//! Lines between three datacentres: each has its own ways, and an unlimited one is no bottleneck.
#![allow(clippy::unwrap_used)]

mod world;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use sterna_lab::netns;
use sterna_lab::probe::Probes;
use world::{World, eventually, host};

/// A machine that is busy with other things spoils a measurement: the best of some counts.
const TRIES: usize = 5;
const TOLERANCE: f64 = 0.1;

fn nearest(expected: f64, measure: impl Fn() -> f64) -> f64 {
    let is_near = |measured: &f64| (measured / expected - 1.0).abs() < TOLERANCE / 2.0;
    let mut all = Vec::new();
    for _ in 0..TRIES {
        all.push(measure());
        if all.last().is_some_and(is_near) {
            break;
        }
    }
    let off = |measured: &f64| (measured - expected).abs();
    all.into_iter().min_by(|one, other| off(one).total_cmp(&off(other))).unwrap()
}

fn is_near(measured: f64, expected: f64) -> bool {
    (measured / expected - 1.0).abs() <= TOLERANCE
}

/// Median of a second of echoes, between hosts of two datacentres.
fn round_trip_ms(world: &World, from: &str, to: &str) -> f64 {
    let lab = world.lab();
    let echo = world.echo(host(to));
    let probes =
        Probes::start(Some(&lab.host_space(host(from))), Some(lab.host_address(host(to))), None).unwrap();
    eventually("echoes", || probes.echoed() > Some(100));
    let seen = probes.finish().unwrap().udp.unwrap();
    drop(echo);
    seen.round_trip_median_ms
}

/// What a TCP connection gets through in `time` once it has warmed up, as payload.
fn tcp_mbit_s(world: &World, from: &str, to: &str, time: Duration) -> f64 {
    let lab = world.lab();
    let (sender, receiver) = (lab.host_space(host(from)), lab.host_space(host(to)));
    let address = lab.host_address(host(to));
    let bound = netns::inside(Some(&receiver), || Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, 9001))?));
    let listener = bound.unwrap().join().unwrap().unwrap();
    let sending = netns::inside(Some(&sender), move || {
        let mut stream = TcpStream::connect((address, 9001))?;
        // Until the receiver has seen enough and closes.
        while stream.write_all(&[0; 1 << 16]).is_ok() {}
        Ok(())
    });
    let (mut stream, _) = listener.accept().unwrap();
    let mut buffer = vec![0; 1 << 18];
    let warm = Instant::now();
    while warm.elapsed() < time / 2 {
        assert!(stream.read(&mut buffer).unwrap() > 0);
    }
    let (began, mut bytes) = (Instant::now(), 0);
    while began.elapsed() < time {
        bytes += stream.read(&mut buffer).unwrap();
    }
    let rate = bytes as f64 * 8.0 / began.elapsed().as_secs_f64() / 1e6;
    drop(stream);
    sending.unwrap().join().unwrap().unwrap();
    rate
}

/// Payload of full frames, timestamps on, in each 1514 bytes.
const TCP_SHARE: f64 = 1448.0 / 1514.0;

#[test]
fn three_datacentres_have_a_line_each_two_with_its_own_ways() {
    let world = World::up_with('k', 210, &["--datacentres", "a,b,c"]);
    let lines = [("a-b", 20), ("a-c", 60), ("b-c", 100)];
    for (line, rtt_ms) in lines {
        world.expect(&["link", line, "--rtt", &format!("{rtt_ms}ms"), "--rate", "none"]);
    }
    for (line, rtt_ms) in lines {
        let (from, to) = line.split_once('-').unwrap();
        let (from, to) = (format!("{from}1"), format!("{to}2"));
        let expected = f64::from(rtt_ms);
        let measured = nearest(expected, || round_trip_ms(&world, &from, &to));
        println!("{line}: round trip {measured:.2} ms of {expected}");
        assert!(is_near(measured, expected), "{line}: {measured} ms");
    }
    world.expect(&["link", "b-c", "--rate", "10mbit", "--loss", "0.1%", "--queue", "64KiB"]);
    let status = world.json(&["status"]);
    let settings = |line: &str| status["lines"][line]["settings"].clone();
    assert_eq!(settings("b-c")["rate_bits"], 10_000_000);
    assert_eq!((&settings("b-c")["loss"], &settings("b-c")["queue_bytes"]), (&0.001.into(), &65536.into()));
    assert_eq!(
        (&settings("a-c")["rate_bits"], &settings("a-c")["loss"]),
        (&serde_json::Value::Null, &0.0.into())
    );
}

#[test]
fn a_cut_between_two_datacentres_is_theirs_alone() {
    let world = World::up_with('l', 211, &["--datacentres", "a,b,c"]);
    for line in ["a-b", "a-c", "b-c"] {
        world.expect(&["link", line, "--rtt", "2ms"]);
    }
    let echo = world.echo(host("c1"));
    let lab = world.lab();
    let from = |name: &str| {
        Probes::start(Some(&lab.host_space(host(name))), Some(lab.host_address(host("c1"))), None).unwrap()
    };
    let (cut_off, connected) = (from("a1"), from("b1"));
    eventually("echoes", || cut_off.echoed() > Some(20) && connected.echoed() > Some(20));
    world.expect(&["link", "c-a", "--down"]);
    let (seen, before) = (cut_off.echoed(), connected.echoed());
    let dropped = || world.json(&["link", "a-c"])["a_to_c"]["dropped_down"].as_u64().unwrap();
    let is_served = || connected.echoed() > before.map(|count| count + 50);
    eventually("one is cut off, the other is not", || dropped() > 20 && is_served());
    assert_eq!(cut_off.echoed(), seen);
    let other = world.json(&["link", "b-c"]);
    assert_eq!(other["b_to_c"]["dropped_down"], 0, "{other}");
    assert!(other["b_to_c"]["bytes"].as_u64().unwrap() > 1000, "{other}");
    world.expect(&["link", "a-c", "--up"]);
    eventually("the cut is mended", || cut_off.echoed() > seen.map(|count| count + 20));
    connected.finish().unwrap();
    cut_off.finish().unwrap();
    drop(echo);
}

#[test]
fn tcp_gets_the_rate_of_its_line_and_an_unlimited_one_is_no_bottleneck() {
    let world = World::up('m', 212);
    for mbit in [10, 100] {
        world.expect(&[
            "link",
            "a-b",
            "--rtt",
            "10ms",
            "--rate",
            &format!("{mbit}Mbit"),
            "--queue",
            "256KiB",
        ]);
        let expected = f64::from(mbit) * TCP_SHARE;
        let measured = nearest(expected, || tcp_mbit_s(&world, "a1", "b1", Duration::from_secs(2)));
        println!("TCP over {mbit} Mbit/s: {measured:.2} of {expected:.2}");
        assert!(is_near(measured, expected), "{measured} of {expected} Mbit/s");
    }
    world.expect(&["link", "a-b", "--rtt", "0ms", "--rate", "none"]);
    let measured = (0..TRIES).map(|_| tcp_mbit_s(&world, "a1", "b1", Duration::from_secs(1)));
    let best = measured.fold(0.0, f64::max);
    println!("TCP without a limit: {best:.0} Mbit/s");
    assert!(best > 1000.0, "{best} Mbit/s");
    let counted = world.json(&["link"])["a_to_b"].clone();
    let (packets, bytes) = (counted["packets"].as_f64().unwrap(), counted["bytes"].as_f64().unwrap());
    // What came together is counted as the frames that it would be on a real line.
    assert!(bytes / packets <= 1514.0 && bytes / packets > 1000.0, "{counted}");
}

#[test]
fn what_no_line_can_be_is_refused_and_changes_nothing() {
    let world = World::up_with('n', 213, &["--datacentres", "a,b,c"]);
    let settings = || ["a-b", "a-c", "b-c"].map(|line| world.json(&["link", line])["settings"].clone());
    let before = settings();
    for (args, why) in [
        (vec!["--rtt", "9ms"], "a-b, a-c, b-c"),
        (vec!["a-d", "--down"], "no line a-d"),
        (vec!["a-a", "--down"], "no line to itself"),
        (vec!["a-b", "--rtt", "90s"], "60 s"),
        (vec!["a-b", "--rtt", "9ms", "--delay", "9ms"], "cannot be used with"),
    ] {
        let output = world.run(&[&["link"], args.as_slice()].concat());
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && error.contains(why), "{args:?}: {error}");
    }
    let other = world.run(&["up", "--network-only", "--datacentres", "a,b"]);
    let error = String::from_utf8(other.stderr).unwrap();
    assert!(!other.status.success() && error.contains("datacentres a,b,c"), "{error}");
    assert_eq!(settings(), before);
}
