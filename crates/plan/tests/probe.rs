//! Lines between datacentres: who measures them and when, and what a forecast makes of what was measured.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

mod world;

use std::net::SocketAddr;
use std::time::Duration;

use sterna_base::units::{Bytes, Rate, Span};
use sterna_model::bandwidth::Share;
use sterna_model::datacentre::DatacentreSpec;
use sterna_model::forecast::{Confidence, LoadSample};
use sterna_model::host::LinkState;
use sterna_model::key::{Key, Kind};
use sterna_model::migration::{MigrationDecision, Phase};
use sterna_model::probe::LineProbe;
use sterna_plan::assignment::assignment;
use sterna_plan::forecast::{Line, forecast};
use sterna_wire::assignment::{Probe, Probed};
use world::{World, name};

/// `web` runs in `dc`, on a host's own disk. Every host answers probes that is told to.
fn sites() -> World {
    let mut world = World::new();
    for (datacentre, hosts) in [("dc", ["a1", "a2"]), ("far", ["b1", "b2"]), ("isle", ["c1", "c2"])] {
        world.spec(Kind::Datacentre, datacentre, DatacentreSpec::default());
        for host in hosts {
            world.add_host(host, Bytes::gib(8));
            world.change_host(host, |spec| spec.datacentre = name(datacentre));
            world.report_host(host, |report| report.mover = Some(mover(host)));
        }
    }
    world.add_vm("web", Bytes::mib(64), Some("local"));
    world.all_run();
    assert!(world.owner("web").0.starts_with('a'));
    world
}

fn mover(host: &str) -> SocketAddr {
    format!("10.0.0.1:{}", 4000 + u16::from(host.as_bytes()[0]) * 10 + u16::from(host.as_bytes()[1]))
        .parse()
        .unwrap()
}

fn silent(world: &mut World, host: &str) {
    world.report_host(host, |report| report.link = LinkState::Silent);
}

fn probes(world: &World, host: &str) -> Vec<Probe> {
    assignment(&world.view, &name(host)).probes
}

fn probed(world: &World, host: &str) -> Option<Probed> {
    assignment(&world.view, &name(host)).probed
}

fn peers(world: &World, host: &str) -> Vec<String> {
    probes(world, host).iter().map(|probe| probe.peer.to_string()).collect()
}

#[test]
fn the_first_connected_host_of_each_datacentre_measures_the_lines_to_the_first_of_the_others() {
    let mut world = sites();
    assert_eq!(peers(&world, "a1"), ["b1", "c1"]);
    assert_eq!(peers(&world, "b1"), ["a1", "c1"]);
    assert!(probes(&world, "a2").is_empty() && probed(&world, "a2").is_none());
    let to = probes(&world, "a1").remove(0);
    assert_eq!((to.datacentre, to.at, to.shares), (name("far"), mover("b1"), vec![]));
    let waits = probed(&world, "b1").unwrap();
    assert_eq!(waits.listen, world.view.host(&name("b1")).unwrap().spec.addresses.management);
    assert!(waits.sessions.contains(&to.session) && waits.sessions.len() == 2, "{waits:?}");
    let back = probes(&world, "b1").remove(0);
    assert_ne!(to.session, back.session, "each direction is a link of its own");
    // Others take their part, at either end.
    silent(&mut world, "a1");
    assert!(probes(&world, "a1").is_empty() && probed(&world, "a1").is_none());
    assert_eq!(
        (peers(&world, "a2"), peers(&world, "b1")),
        (vec!["b1".into(), "c1".into()], vec!["a2".into(), "c1".into()])
    );
    silent(&mut world, "b1");
    silent(&mut world, "b2");
    assert_eq!(peers(&world, "a2"), ["c1"]);
}

#[test]
fn a_host_is_measured_once_it_says_where_it_answers() {
    let mut world = sites();
    world.report_host("b1", |report| report.mover = None);
    assert_eq!(peers(&world, "a1"), ["c1"]);
    assert!(probed(&world, "b1").is_some(), "it is told to");
}

#[test]
fn a_probe_keeps_to_the_limits_at_both_ends() {
    let mut world = sites();
    let limited =
        |text: &str| DatacentreSpec { bandwidth: vec![text.parse().unwrap()], ..Default::default() };
    world.spec(Kind::Datacentre, "dc", limited("08:00-18:00 8Mbit/s"));
    world.spec(Kind::Datacentre, "far", limited("80Mbit/s"));
    let share = |text: &str| Share { limits: limited(text).bandwidth, moves: 1 };
    let shares: Vec<_> = probes(&world, "a1").into_iter().map(|probe| probe.shares).collect();
    let here = share("08:00-18:00 8Mbit/s");
    assert_eq!(shares, [vec![here.clone(), share("80Mbit/s")], vec![here]]);
}

#[test]
fn a_line_that_a_move_uses_is_not_measured_and_neither_is_one_that_shares_an_end_with_it() {
    let mut world = sites();
    assert_eq!(peers(&world, "c1"), ["a1", "b1"]);
    world.migrate("m", "web", Some("b2"));
    world.settle();
    assert!(matches!(world.phase("m"), Phase::Preparing), "{:?}", world.phase("m"));
    for host in ["a1", "b1", "c1"] {
        assert!(probes(&world, host).is_empty(), "{host}: {:?}", probes(&world, host));
    }
    assert!(probed(&world, "b1").is_some(), "what waits there costs the line nothing");
    end(&mut world, "m", "failed");
    assert_eq!(peers(&world, "c1"), ["a1", "b1"]);
}

#[test]
fn a_move_inside_a_datacentre_is_no_matter_of_its_lines() {
    let mut world = sites();
    let (from, _) = world.owner("web");
    world.migrate("m", "web", Some(if from == "a1" { "a2" } else { "a1" }));
    world.settle();
    assert_eq!(peers(&world, "a1"), ["b1", "c1"]);
}

/// A move to b1 ended like this, a minute after whatever was before. It sent 100 MB in 10 s and met a round trip of 20 ms.
fn end(world: &mut World, migration: &str, phase: &str) {
    if world.view.migrations.get(&name(migration)).is_none() {
        world.migrate(migration, "web", Some("b1"));
    }
    world.now = world.now + Duration::from_secs(60);
    let decision: MigrationDecision = serde_json::from_value(serde_json::json!({
        "phase": {"phase": phase, "why": "test"}, "epoch": 1, "next_epoch": 2, "source": "a1", "target": "b1",
        "via": "mover", "method": "test", "started": world.now, "since": world.now,
        "outcome": {"bytes": 100_000_000, "rounds": 1, "total": "10680ms", "round_trip": "20ms"},
    }))
    .unwrap();
    world.put(Key::decision(Kind::Migration, &name(migration)), &decision);
}

/// This host measured so much, a minute after whatever was before.
fn measure(world: &mut World, host: &str, to: &str, (rate, limit): (u64, Option<u64>)) {
    world.now = world.now + Duration::from_secs(60);
    let probe = LineProbe {
        peer: name("peer"),
        at: world.now,
        round_trip: Span::from_millis(80),
        rate: Rate::mbit(rate),
        limit: limit.map(Rate::mbit),
    };
    world.report_host(host, |report| drop(report.lines.insert(name(to), probe)));
}

/// Megabytes a second and milliseconds from `web` to b1.
fn line(world: &World) -> (u64, u128, Line) {
    let (vm, host) = (world.view.vm(&name("web")).unwrap(), world.view.host(&name("b1")).unwrap());
    let line = Line::to(&world.view, &vm, &host, Bytes::mib(64), world.now);
    ((line.bytes_per_s / 1e6).round() as u64, line.round_trip.as_millis(), line)
}

#[test]
fn before_the_first_move_a_forecast_takes_what_was_probed() {
    let mut world = sites();
    let (rate, round_trip, assumed) = line(&world);
    assert_eq!((rate, round_trip, assumed.is_measured), (11, 30, false));
    assert!(assumed.basis.contains("100 Mbit/s assumed; 30 ms round trip assumed"), "{}", assumed.basis);
    measure(&mut world, "a1", "isle", (800, None));
    assert_eq!(line(&world).2, assumed, "of another line");
    measure(&mut world, "a1", "far", (400, None));
    let (rate, round_trip, known) = line(&world);
    assert_eq!((rate, round_trip, known.is_measured), (50, 80, true));
    assert!(
        known.basis.contains("50.0 MB/s, as host a1 probed the line to host peer at 1970-"),
        "{}",
        known.basis
    );
    assert!(known.basis.contains("80ms round trip, as host a1 probed it"), "{}", known.basis);
    assert!(known.queue > assumed.queue && known.overhead > assumed.overhead);
    let idle = LoadSample { used: Bytes::mib(64), written: vec![], cpu_milli: 0 };
    let pause = Duration::from_millis(300);
    let (before, after) = (forecast(&idle, &assumed, pause), forecast(&idle, &known, pause));
    assert!(after.total < before.total, "{before:?} {after:?}");
    assert_eq!(before.confidence, Confidence::Low);
}

#[test]
fn the_younger_of_a_move_and_a_probe_counts() {
    let mut world = sites();
    measure(&mut world, "a1", "far", (400, None));
    end(&mut world, "m-1", "succeeded");
    let (rate, round_trip, moved) = line(&world);
    assert_eq!((rate, round_trip), (10, 20), "{}", moved.basis);
    assert!(moved.basis.contains("the fastest of 1 recent moves"), "{}", moved.basis);
    measure(&mut world, "a2", "far", (160, None));
    let (rate, round_trip, probed) = line(&world);
    assert_eq!((rate, round_trip), (20, 80), "{}", probed.basis);
    assert!(probed.basis.contains("as host a2 probed"), "{}", probed.basis);
    // One that failed tells how long the way is, not what it carries.
    end(&mut world, "m-2", "failed");
    let (rate, round_trip, both) = line(&world);
    assert_eq!((rate, round_trip), (20, 20), "{}", both.basis);
}

#[test]
fn a_line_that_carries_nothing_is_forecast_and_not_divided_by() {
    let mut world = sites();
    measure(&mut world, "a1", "far", (0, None));
    let (.., line) = line(&world);
    let idle = LoadSample { used: Bytes::mib(64), written: vec![], cpu_milli: 0 };
    let told = forecast(&idle, &line, Duration::from_millis(300));
    assert!(told.total.0 > Duration::from_secs(1000), "{told:?}");
}

#[test]
fn a_probe_in_the_other_direction_is_better_than_none() {
    let mut world = sites();
    measure(&mut world, "b1", "dc", (400, None));
    assert_eq!((line(&world).0, line(&world).1), (50, 80));
    measure(&mut world, "a1", "far", (160, None));
    measure(&mut world, "b1", "dc", (800, None));
    assert_eq!(line(&world).0, 20);
}

#[test]
fn a_probe_that_a_limit_held_back_tells_the_least_that_the_line_carries() {
    let mut world = sites();
    measure(&mut world, "a1", "far", (8, Some(8)));
    let (rate, round_trip, held) = line(&world);
    assert_eq!((rate, round_trip, held.is_measured), (11, 80, false));
    let said = "under a limit; 100 Mbit/s assumed without it";
    assert!(held.basis.contains("1.0 MB/s, as host a1") && held.basis.contains(said), "{}", held.basis);
    measure(&mut world, "a1", "far", (400, Some(400)));
    assert_eq!((line(&world).0, line(&world).2.is_measured), (50, true));
    // A move that was faster before tells more.
    end(&mut world, "m", "succeeded");
    measure(&mut world, "a1", "far", (8, Some(8)));
    assert_eq!((line(&world).0, line(&world).1), (10, 80), "{}", line(&world).2.basis);
}

#[test]
fn a_report_of_an_agent_that_knows_nothing_of_lines_is_read() {
    let mut world = sites();
    measure(&mut world, "a1", "far", (8, Some(8)));
    let report = world.view.host(&name("a1")).unwrap().report.unwrap();
    let mut old = serde_json::to_value(report).unwrap();
    old.as_object_mut().unwrap().retain(|field, _| !["mover", "lines"].contains(&field.as_str()));
    world.put(Key::report(Kind::Host, &name("a1")), &old);
    let report = world.view.host(&name("a1")).unwrap().report.unwrap();
    assert!(report.mover.is_none() && report.lines.is_empty());
}
