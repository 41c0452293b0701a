//! Moves, step by step, and what goes wrong in between.

mod world;

use std::time::Duration;

use sterna_base::units::Bytes;
use sterna_model::host::LinkState;
use sterna_model::migration::{Outcome, Phase, SideState};
use sterna_model::vm::{CopyState, Exit, Power};
use sterna_plan::assignment::assignment;
use sterna_wire::assignment::Role;
use world::{World, name};

fn paused() -> CopyState {
    CopyState::Paused { why: "sent away".into() }
}

fn gone(exit: Exit) -> CopyState {
    CopyState::Stopped { exit }
}

fn crash() -> CopyState {
    gone(Exit::Crashed { why: "signal 9".into() })
}

fn listening() -> Option<(&'static str, SideState)> {
    Some(("m", SideState::Listening { at: "10.0.0.12:4000".into(), line: None }))
}

fn released() -> Option<(&'static str, SideState)> {
    Some(("m", SideState::Released { outcome: Outcome::default() }))
}

/// `web` runs on a1 and is asked to move to a2.
fn asked() -> World {
    let mut world =
        World::new().host("a1", Bytes::gib(8)).host("a2", Bytes::gib(4)).vm("web", Bytes::mib(64));
    world.all_run();
    assert_eq!(world.owner("web"), ("a1".into(), 1));
    world.migrate("m", "web", Some("a2"));
    world.settle();
    world
}

fn copying() -> World {
    let mut world = asked();
    world.report_side("web", "a2", 2, CopyState::Incoming, listening());
    world.settle();
    assert_eq!(world.phase("m"), Phase::Copying { listen: "10.0.0.12:4000".into(), line: None });
    world.report_side("web", "a1", 1, CopyState::Running, Some(("m", SideState::Sending)));
    world.settle();
    world
}

fn resuming() -> World {
    let mut world = copying();
    world.report_side("web", "a1", 1, paused(), released());
    world.settle();
    assert_eq!(world.phase("m"), Phase::Resuming { epoch: 2 });
    world
}

fn role(world: &World, host: &str) -> Option<(u64, Role)> {
    let found = assignment(&world.view, &name(host)).vms.into_iter().find(|vm| vm.name == name("web"))?;
    Some((found.epoch, found.role))
}

#[test]
fn the_owner_changes_only_after_the_source_let_go() {
    let world = copying();
    assert_eq!(world.owner("web"), ("a1".into(), 1));
    let mut world = resuming();
    assert_eq!(world.owner("web"), ("a2".into(), 2));
    assert!(role(&world, "a1").is_none(), "the source keeps its paused copy");
    let Some((2, Role::Owner(owner))) = role(&world, "a2") else { panic!("{:?}", role(&world, "a2")) };
    assert_eq!(owner.continues, Some(name("m")));
    world.report_side(
        "web",
        "a2",
        2,
        CopyState::Running,
        Some(("m", SideState::Continued { loading: None, answered: None })),
    );
    world.settle();
    assert_eq!(world.phase("m"), Phase::Finishing { epoch: 2 });
    assert_eq!(role(&world, "a1"), Some((1, Role::Release)));
    world.report("web", "a1", 1, gone(Exit::Released));
    world.settle();
    assert_eq!(world.phase("m"), Phase::Succeeded);
    assert!(role(&world, "a1").is_none());
}

#[test]
fn a_target_that_cannot_start_leaves_the_vm_where_it_is() {
    let mut world = asked();
    assert!(matches!(role(&world, "a2"), Some((2, Role::Incoming { .. }))));
    world.report("web", "a2", 2, gone(Exit::StartFailed { why: "no tap".into() }));
    world.settle();
    assert!(matches!(world.phase("m"), Phase::Failed { .. }), "{:?}", world.phase("m"));
    assert_eq!(world.owner("web"), ("a1".into(), 1));
}

#[test]
fn a_target_that_never_listens_is_given_up() {
    let mut world = asked();
    world.now = world.now + std::time::Duration::from_secs(31);
    world.settle();
    assert!(matches!(world.phase("m"), Phase::Failed { .. }), "{:?}", world.phase("m"));
}

#[test]
fn a_source_that_kept_the_guest_undoes_the_target() {
    let mut world = copying();
    let kept = SideState::Kept { why: "no progress for 30 s".into() };
    world.report_side("web", "a1", 1, CopyState::Running, Some(("m", kept)));
    world.settle();
    assert!(matches!(world.phase("m"), Phase::Undoing { .. }));
    assert_eq!(role(&world, "a2"), Some((2, Role::Release)));
    world.report("web", "a2", 2, gone(Exit::Released));
    world.settle();
    assert!(matches!(world.phase("m"), Phase::Failed { .. }));
    assert_eq!(world.owner("web"), ("a1".into(), 1));
}

#[test]
fn a_source_that_dies_while_copying_is_restarted_cold_under_a_fresh_epoch() {
    let mut world = copying();
    world.report("web", "a1", 1, crash());
    world.settle();
    let (host, epoch) = world.owner("web");
    assert_eq!((host.as_str(), epoch), ("a1", 3), "epoch 2 belonged to the target's copy");
    assert!(matches!(role(&world, "a2"), Some((2, Role::Release))));
    world.forget("web", "a2");
    world.settle();
    assert!(matches!(world.phase("m"), Phase::Failed { .. }));
}

#[test]
fn a_target_that_dies_before_the_guest_ran_gives_the_vm_back() {
    let mut world = resuming();
    world.report("web", "a2", 2, crash());
    world.settle();
    assert!(matches!(world.phase("m"), Phase::Returning { epoch: 3, .. }), "{:?}", world.phase("m"));
    assert_eq!(world.owner("web"), ("a1".into(), 3));
    let Some((3, Role::Owner(owner))) = role(&world, "a1") else { panic!("{:?}", role(&world, "a1")) };
    assert_eq!(owner.continues, Some(name("m")));
    world.report_side("web", "a1", 3, CopyState::Running, released());
    world.settle();
    assert!(matches!(world.phase("m"), Phase::Failed { .. }), "{:?}", world.phase("m"));
}

#[test]
fn both_copies_lost_in_the_handover_end_in_one_cold_start() {
    let mut world = resuming();
    world.report("web", "a1", 1, crash());
    world.report("web", "a2", 2, crash());
    world.settle();
    assert!(matches!(world.phase("m"), Phase::Failed { .. }), "{:?}", world.phase("m"));
    // The host that owned it last has answered for an older epoch only: it is asked, and says that nothing is left.
    let (host, epoch) = world.owner("web");
    world.report("web", &host, epoch, gone(Exit::Lost));
    world.settle();
    let (_, fresh) = world.owner("web");
    assert!(fresh > epoch);
    assert!(world.view.vms[&name("web")].decision.as_ref().unwrap().continues.is_none());
}

#[test]
fn a_source_that_dies_after_the_handover_changes_nothing() {
    let mut world = resuming();
    world.report("web", "a1", 1, crash());
    world.settle();
    assert_eq!(world.phase("m"), Phase::Resuming { epoch: 2 });
    world.report_side(
        "web",
        "a2",
        2,
        CopyState::Running,
        Some(("m", SideState::Continued { loading: None, answered: None })),
    );
    world.settle();
    assert_eq!(world.phase("m"), Phase::Succeeded);
    assert_eq!(world.owner("web"), ("a2".into(), 2));
}

#[test]
fn a_silent_target_does_not_keep_a_failed_move_open() {
    let mut world = copying();
    world.report_host("a2", |report| report.link = LinkState::Silent);
    let kept = SideState::Kept { why: "connection reset".into() };
    world.report_side("web", "a1", 1, CopyState::Running, Some(("m", kept)));
    world.settle();
    assert!(matches!(world.phase("m"), Phase::Failed { .. }));
    assert_eq!(role(&world, "a2"), Some((2, Role::Release)), "its leftover goes when it is back");
}

#[test]
fn cancel_reaches_the_source_as_an_order_and_ends_with_its_answer() {
    let mut world = copying();
    world.cancel("m");
    world.settle();
    let Some((1, Role::Owner(owner))) = role(&world, "a1") else { panic!() };
    assert!(owner.outgoing.unwrap().cancel);
    world.report_side(
        "web",
        "a1",
        1,
        CopyState::Running,
        Some(("m", SideState::Kept { why: "cancelled".into() })),
    );
    world.forget("web", "a2");
    world.settle();
    assert_eq!(world.phase("m"), Phase::Cancelled);
}

#[test]
fn a_cancel_that_comes_too_late_does_not_stop_the_handover() {
    let mut world = copying();
    world.cancel("m");
    world.report_side("web", "a1", 1, paused(), released());
    world.settle();
    assert_eq!(world.phase("m"), Phase::Resuming { epoch: 2 });
}

#[test]
fn a_move_that_still_copies_when_it_should_have_ended_is_called_off_and_the_vm_runs_on() {
    let mut world = copying();
    let by = world.now + Duration::from_secs(60);
    world.finish_by("m", by);
    world.settle();
    let order = |world: &World| match role(world, "a1") {
        Some((1, Role::Owner(owner))) => owner.outgoing.map(|outgoing| outgoing.cancel),
        other => panic!("{other:?}"),
    };
    assert_eq!(order(&world), Some(false), "there is time left");
    world.now = by;
    world.settle();
    assert_eq!(order(&world), Some(true));
    assert!(matches!(world.phase("m"), Phase::Copying { .. }), "the source's answer decides");
    let kept = SideState::Kept { why: "cancelled".into() };
    world.report_side("web", "a1", 1, CopyState::Running, Some(("m", kept)));
    world.report("web", "a2", 2, gone(Exit::Released));
    world.settle();
    let Phase::Failed { why } = world.phase("m") else { panic!("{:?}", world.phase("m")) };
    assert_eq!(why, format!("not finished by {by}, as was asked for"));
    assert_eq!(world.owner("web"), ("a1".into(), 1));
}

#[test]
fn a_source_that_let_go_in_time_is_not_called_back() {
    let mut world = copying();
    let by = world.now;
    world.finish_by("m", by);
    world.report_side("web", "a1", 1, paused(), released());
    world.settle();
    assert_eq!(world.phase("m"), Phase::Resuming { epoch: 2 });
    world.now = by + Duration::from_secs(3600);
    world.settle();
    assert_eq!(world.phase("m"), Phase::Resuming { epoch: 2 }, "past the switchover it goes on");
}

#[test]
fn a_move_that_has_no_time_left_ends_before_anything_is_sent() {
    let mut world = asked();
    let by = world.now;
    world.finish_by("m", by);
    world.settle();
    let Phase::Failed { why } = world.phase("m") else { panic!("{:?}", world.phase("m")) };
    assert!(why.contains("not finished by"), "{why}");
    assert_eq!(world.owner("web"), ("a1".into(), 1));
}

#[test]
fn stopping_a_vm_on_the_move_calls_the_move_off_first() {
    let mut world = copying();
    world.change_vm("web", |object| object.spec.power = Power::Stopped);
    world.settle();
    let Some((1, Role::Owner(owner))) = role(&world, "a1") else { panic!() };
    assert!(owner.outgoing.as_ref().unwrap().cancel);
    assert_eq!(owner.power, Power::Running);
}

#[test]
fn no_more_than_two_leave_a_host_at_a_time() {
    let mut world = World::new().host("a1", Bytes::gib(8)).host("a2", Bytes::gib(1));
    for n in 0..4 {
        world = world.vm(&format!("v{n}"), Bytes::mib(64));
    }
    world.all_run();
    world.report_host("a2", |report| report.memory = Bytes::gib(8));
    for n in 0..4 {
        world.migrate(&format!("m{n}"), &format!("v{n}"), Some("a2"));
    }
    world.settle();
    let preparing = (0..4).filter(|n| world.phase(&format!("m{n}")) == Phase::Preparing).count();
    assert_eq!(preparing, 2);
}

#[test]
fn what_cannot_move_is_refused_with_every_reason() {
    let mut world =
        World::new().host("a1", Bytes::gib(8)).host("a2", Bytes::gib(4)).vm("web", Bytes::mib(64));
    world.all_run();
    world.report_host("a2", |report| {
        report.cpu.machines.clear();
        report.cpu.machines.insert("pc-q35-7.2".into());
    });
    world.migrate("m", "web", Some("a2"));
    world.settle();
    let Phase::Failed { why } = world.phase("m") else { panic!("{:?}", world.phase("m")) };
    assert_eq!(why, "host a2: its QEMU 10.0.2 does not know machine pc-q35-10.0");
}

#[test]
fn a_drain_moves_everything_that_can_move_and_names_what_cannot() {
    let mut world =
        World::new().host("a1", Bytes::gib(8)).host("a2", Bytes::gib(1)).vm("web", Bytes::mib(64));
    world.all_run();
    world.report_host("a2", |report| report.memory = Bytes::gib(8));
    world.change_host("a1", |spec| spec.draining = true);
    world.settle();
    assert_eq!(world.phase("web-1"), Phase::Preparing);
    world.report_host("a2", |report| report.memory = Bytes::mib(600));
    let host = world.view.host(&name("a1")).unwrap();
    let blockers = sterna_plan::drain::blockers(&world.view, &host);
    assert!(blockers[0].1.contains("memory needed"), "{blockers:?}");
}
