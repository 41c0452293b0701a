//! Limits of lines between datacentres: which moves share them, and what a forecast makes of them.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

mod world;

use sterna_base::units::Bytes;
use sterna_model::bandwidth::Share;
use sterna_model::datacentre::DatacentreSpec;
use sterna_model::key::Kind;
use sterna_model::meta::Name;
use sterna_model::migration::{Outcome, Phase, SideState};
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
