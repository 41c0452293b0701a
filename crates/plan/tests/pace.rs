//! Limits of lines between datacentres: which moves share them, and what a forecast makes of them.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

mod world;

use sterna_base::units::Bytes;
use sterna_model::bandwidth::Share;
use sterna_model::datacentre::DatacentreSpec;
use sterna_model::key::{Key, Kind};
use sterna_model::meta::Name;
use sterna_model::migration::{MigrationDecision, Outcome, Phase, SideState};
use sterna_model::vm::CopyState;
use sterna_plan::assignment::assignment;
use sterna_plan::forecast::Line;
use sterna_wire::assignment::Pace;
use world::{World, name};

const DAY: &str = "08:00-18:00 8Mbit/s";
const ALWAYS: &str = "80Mbit/s";

fn limited(limits: &[&str]) -> DatacentreSpec {
    let bandwidth = limits.iter().map(|text| text.parse().unwrap()).collect();
    DatacentreSpec { bandwidth, ..DatacentreSpec::default() }
}

fn share(limit: &str, moves: u32) -> Share {
    Share { limits: limited(&[limit]).bandwidth, moves }
}

/// `web` and `db` run on a1 and a2 of `dc`, on the hosts' own disks; b1 and b2 are in `far`.
fn two_sites(here: &[&str], there: &[&str]) -> World {
    let mut world = World::new();
    world.spec(Kind::Datacentre, "dc", limited(here));
    world.spec(Kind::Datacentre, "far", limited(there));
    for host in ["a1", "a2", "b1", "b2"] {
        world.add_host(host, Bytes::gib(8));
        if host.starts_with('b') {
            world.change_host(host, |spec| spec.datacentre = name("far"));
        }
    }
    for vm in ["web", "db"] {
        world.add_vm(vm, Bytes::mib(64), Some("local"));
    }
    world.all_run();
    world
}

/// The VM is being sent to `to`.
fn send(world: &mut World, migration: &str, vm: &str, to: &str) -> String {
    let (from, epoch) = world.owner(vm);
    world.migrate(migration, vm, Some(to));
    world.settle();
    let listening = Some((migration, SideState::Listening { at: "10.0.0.12:4000".into(), line: None }));
    world.report_side(vm, to, epoch + 1, CopyState::Incoming, listening);
    world.settle();
    world.report_side(vm, &from, epoch, CopyState::Running, Some((migration, SideState::Sending)));
    world.settle();
    assert!(matches!(world.phase(migration), Phase::Copying { .. }));
    from
}

fn paces(world: &World, host: &str) -> Vec<Pace> {
    assignment(&world.view, &name(host)).paces
}

#[test]
fn a_move_between_datacentres_shares_what_leaves_the_one_and_what_arrives_at_the_other() {
    let mut world = two_sites(&[DAY], &[ALWAYS]);
    let from = send(&mut world, "m", "web", "b1");
    let session = world.view.migrations[&name("m")].meta().unwrap().uid;
    let alone = Pace { session, shares: vec![share(DAY, 1), share(ALWAYS, 1)] };
    assert_eq!(paces(&world, &from), [alone]);
    assert!(paces(&world, "b1").is_empty(), "the source keeps to it, for both");
    send(&mut world, "n", "db", "b2");
    let shared = paces(&world, &from).into_iter().find(|pace| pace.session == session).unwrap();
    assert_eq!(shared.shares, [share(DAY, 2), share(ALWAYS, 2)]);
}

#[test]
fn a_limit_changes_a_move_under_way_and_ends_with_it() {
    let mut world = two_sites(&[], &[]);
    let from = send(&mut world, "m", "web", "b1");
    assert!(paces(&world, &from).is_empty());
    world.spec(Kind::Datacentre, "far", limited(&[DAY]));
    assert_eq!(paces(&world, &from)[0].shares, [share(DAY, 1)]);
    let released = Some(("m", SideState::Released { outcome: Outcome::default() }));
    let (_, epoch) = world.owner("web");
    world.report_side("web", &from, epoch, CopyState::Paused { why: "sent".into() }, released);
    world.settle();
    assert!(matches!(world.phase("m"), Phase::Resuming { .. }));
    assert_eq!(paces(&world, &from).len(), 1, "the last of it is still on its way");
    let continued = Some(("m", SideState::Continued { loading: None, answered: None }));
    world.report_side("web", "b1", epoch + 1, CopyState::Running, continued);
    world.settle();
    assert!(paces(&world, &from).is_empty());
}

#[test]
fn a_move_inside_a_datacentre_has_no_limit() {
    let mut world = two_sites(&[DAY], &[ALWAYS]);
    let (from, _) = world.owner("web");
    let near = if from == "a1" { "a2" } else { "a1" };
    let from = send(&mut world, "m", "web", near);
    assert!(paces(&world, &from).is_empty());
}

/// A move between the two sites that ended so, with this round trip.
fn measured(world: &mut World, migration: &str, (phase, round_trip): (&str, Option<u64>)) {
    world.migrate(migration, "web", Some("b1"));
    world.now = world.now + std::time::Duration::from_secs(60);
    let mut outcome = serde_json::json!({"bytes": 0, "rounds": 1});
    if let Some(ms) = round_trip {
        outcome["round_trip"] = format!("{ms}ms").into();
    }
    let decision: MigrationDecision = serde_json::from_value(serde_json::json!({
        "phase": {"phase": phase, "why": "test"}, "epoch": 1, "next_epoch": 2, "source": "b1", "target": "a1",
        "via": "mover", "method": "test", "started": world.now, "since": world.now, "outcome": outcome,
    }))
    .unwrap();
    world.put(Key::decision(Kind::Migration, &name(migration)), &decision);
}

#[test]
fn a_forecast_takes_the_round_trip_that_the_latest_move_between_the_two_measured() {
    let mut world = two_sites(&[], &[]);
    let line = |world: &World, to: &str| {
        let (vm, host) = (world.view.vm(&name("web")).unwrap(), world.view.host(&name(to)).unwrap());
        Line::to(&world.view, &vm, &host, Bytes::mib(64), world.now)
    };
    let assumed = line(&world, "b1");
    assert!(assumed.basis.contains("30 ms round trip assumed"), "{}", assumed.basis);
    measured(&mut world, "m-1", ("succeeded", Some(20)));
    measured(&mut world, "m-2", ("failed", Some(150)));
    measured(&mut world, "m-3", ("succeeded", None));
    let known = line(&world, "b1");
    assert_eq!(known.round_trip.as_millis(), 150);
    assert!(known.basis.contains("150ms round trip, as move m-2 measured"), "{}", known.basis);
    assert!(known.overhead > assumed.overhead && known.queue > assumed.queue, "{known:?}");
    let (home, _) = world.owner("web");
    let near = line(&world, if home == "a1" { "a2" } else { "a1" });
    assert!(near.round_trip.is_zero() && !near.basis.contains("round trip"), "{}", near.basis);
}

#[test]
fn a_forecast_knows_the_limits_and_the_moves_that_share_them() {
    let mut world = two_sites(&[DAY], &[ALWAYS]);
    let noon = "2026-11-23T12:00:00Z".parse().unwrap();
    let line = |world: &World, vm: &str, to: &Name| {
        let (vm, host) = (world.view.vm(&name(vm)).unwrap(), world.view.host(to).unwrap());
        Line::to(&world.view, &vm, &host, Bytes::mib(64), noon)
    };
    let alone = line(&world, "web", &name("b1"));
    assert_eq!((alone.speed(0.0) as u64, alone.speed(6.0 * 3600.0) as u64), (1_000_000, 10_000_000));
    let said = "1.0 MB/s at the most now, 10.0 MB/s at the most from 2026-11-23T18:00:00.000Z on";
    assert!(alone.basis.contains(said), "{}", alone.basis);
    send(&mut world, "n", "db", "b2");
    assert_eq!(line(&world, "web", &name("b1")).speed(0.0) as u64, 500_000);
    let (home, _) = world.owner("web");
    let near = name(if home == "a1" { "a2" } else { "a1" });
    assert!(line(&world, "web", &near).limits.is_empty());
}
