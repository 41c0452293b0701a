//! Drains: what they order, and what they take back.

mod world;

use std::time::Duration;

use sterna_base::units::Bytes;
use sterna_model::migration::{Phase, SideState};
use sterna_model::vm::{CopyState, Exit};
use world::scene::{running, stopped};
use world::{World, name};

#[test]
fn a_drain_that_is_taken_back_orders_nothing_more() {
    let mut world = World::new().host("a1", Bytes::gib(8)).host("a2", Bytes::gib(1));
    for n in 0..4 {
        world = world.vm(&format!("v{n}"), Bytes::mib(64));
    }
    world.all_run();
    world.report_host("a2", |report| report.memory = Bytes::gib(8));
    world.change_host("a1", |spec| spec.draining = true);
    world.settle();
    let ordered = world.view.migrations.len();
    assert_eq!(ordered, 2);
    world.change_host("a1", |spec| spec.draining = false);
    for vm in ["v0", "v1"] {
        let (_, epoch) = world.owner(vm);
        world.report(vm, "a2", epoch + 1, stopped(Exit::StartFailed { why: "no tap".into() }));
    }
    world.settle();
    assert_eq!(world.view.migrations.len(), ordered);
    assert!(world.view.active_migrations().next().is_none());
}

#[test]
fn a_drain_whose_moves_fail_waits_longer_each_time() {
    let mut world = running();
    world.change_host("a1", |spec| spec.draining = true);
    world.settle();
    let fail = |world: &mut World, epoch| {
        world.report("web", "a2", epoch, stopped(Exit::StartFailed { why: "no tap".into() }));
        world.settle();
    };
    fail(&mut world, 2);
    assert_eq!(world.view.migrations.len(), 1, "not again at once");
    world.now = world.now + Duration::from_secs(5);
    world.settle();
    assert_eq!(world.view.migrations.len(), 2);
    fail(&mut world, 3);
    world.now = world.now + Duration::from_secs(6);
    world.settle();
    assert_eq!(world.view.migrations.len(), 2);
    world.now = world.now + Duration::from_secs(25);
    world.settle();
    assert_eq!(world.view.migrations.len(), 3);
}

#[test]
fn a_drain_that_is_taken_back_cancels_what_it_asked_for_and_has_not_begun_to_copy() {
    let mut world = World::new().host("a1", Bytes::gib(8)).host("a2", Bytes::gib(1));
    for n in 0..4 {
        world = world.vm(&format!("v{n}"), Bytes::mib(64));
    }
    world.all_run();
    world.report_host("a2", |report| report.memory = Bytes::gib(8));
    world.migrate("by-hand", "v3", Some("a2"));
    world.change_host("a1", |spec| spec.draining = true);
    world.settle();
    let migrations: Vec<_> = world.view.migrations.keys().map(ToString::to_string).collect();
    assert_eq!(migrations, ["by-hand", "v0-1"], "two may leave at a time");
    world.change_host("a1", |spec| spec.draining = false);
    let log = world.settle();
    assert!(log.contains(&"v0 not to be moved: the drain of host a1 was taken back".to_owned()), "{log:?}");
    assert!(!world.view.migrations[&name("by-hand")].spec.as_ref().unwrap().spec.cancel);
    world.report("v0", "a2", 2, stopped(Exit::Released));
    world.settle();
    assert_eq!((world.phase("v0-1"), world.phase("by-hand")), (Phase::Cancelled, Phase::Preparing));
}

#[test]
fn a_move_that_copies_goes_on_when_its_drain_is_taken_back() {
    let mut world = running();
    world.change_host("a1", |spec| spec.draining = true);
    world.settle();
    let listening = SideState::Listening { at: "10.0.0.12:4000".into(), line: None };
    world.report_side("web", "a2", 2, CopyState::Incoming, Some(("web-1", listening)));
    world.settle();
    world.change_host("a1", |spec| spec.draining = false);
    world.settle();
    assert!(matches!(world.phase("web-1"), Phase::Copying { .. }));
    assert!(!world.view.migrations[&name("web-1")].spec.as_ref().unwrap().spec.cancel);
}
