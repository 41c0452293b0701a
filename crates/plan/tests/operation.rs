//! When operations are done.

mod world;

use sterna_base::units::Bytes;
use sterna_model::health::HealthReport;
use sterna_model::host::LinkState;
use sterna_model::image::ImageReport;
use sterna_model::key::{Key, Kind};
use sterna_model::migration::{MigrationDecision, Phase};
use sterna_model::operation::{Goal, OperationSpec, OperationState};
use sterna_model::vm::{CopyState, Exit, Power, VmReport};
use sterna_model::volume::VolumeReport;
use sterna_plan::operation;
use world::{World, name};

/// `ok TEXT`, `no TEXT` or `.. TEXT`.
fn state(world: &World, goal: Goal) -> String {
    let spec = OperationSpec { goal, started: world.now, actor: "person".into() };
    match operation::state(&world.view, &spec, world.now) {
        OperationState::Running { message } => format!(".. {message}"),
        OperationState::Succeeded { message } => format!("ok {message}"),
        OperationState::Failed { message } => format!("no {message}"),
    }
}

fn one() -> World {
    World::new().host("a1", Bytes::gib(8)).vm("web", Bytes::mib(64))
}

fn power(request: u64) -> Goal {
    Goal::VmPower { vm: name("web"), request }
}

fn ask(world: &mut World, power: Power) {
    world.change_vm("web", |object| {
        object.spec.power = power;
        object.spec.power_request += 1;
    });
}

#[test]
fn a_start_is_done_when_the_guest_runs() {
    let mut world = World::new().vm("web", Bytes::mib(64));
    assert_eq!(state(&world, power(1)), ".. no host fits (no host has joined)");
    world.add_host("a1", Bytes::gib(8));
    world.settle();
    assert_eq!(state(&world, power(1)), ".. ordered from host a1");
    world.report("web", "a1", 1, CopyState::Starting { step: "waits for disks".into() });
    assert_eq!(state(&world, power(1)), ".. waits for disks on host a1");
    world.report("web", "a1", 1, CopyState::Running);
    assert_eq!(state(&world, power(1)), "ok on host a1");
    world.report("web", "a1", 1, CopyState::Paused { why: "as asked".into() });
    assert_eq!(state(&world, power(1)), "ok as asked");
}

#[test]
fn a_start_that_failed_is_told_at_once_and_tried_again_all_the_same() {
    let mut world = one();
    world.settle();
    world.report("web", "a1", 1, CopyState::Stopped { exit: Exit::StartFailed { why: "no tap".into() } });
    assert_eq!(state(&world, power(1)), "no could not be started: no tap");
    world.settle();
    assert_eq!(world.owner("web").1, 2);
}

#[test]
fn a_stop_is_done_when_no_process_is_left() {
    let mut world = one();
    world.all_run();
    ask(&mut world, Power::Stopped);
    assert_eq!(state(&world, power(1)), "no replaced by a later request");
    assert_eq!(state(&world, power(2)), ".. about to be stopped");
    world.report("web", "a1", 1, CopyState::ShuttingDown);
    assert_eq!(state(&world, power(2)), ".. the guest was asked to shut down");
    world.report_host("a1", |report| report.link = LinkState::Silent);
    assert_eq!(state(&world, power(2)), ".. host a1 is silent");
    world.report_host("a1", |report| report.link = LinkState::Connected);
    world.report("web", "a1", 1, CopyState::Stopped { exit: Exit::Requested { forced: false } });
    assert_eq!(state(&world, power(2)), "ok stopped as asked");
}

#[test]
fn a_pause_is_done_when_the_host_says_that_the_guest_stands_still_and_a_resume_when_it_runs() {
    let mut world = one();
    world.all_run();
    let paused = || Goal::VmPaused { vm: name("web") };
    let resumed = || Goal::VmResumed { vm: name("web") };
    let stands = || CopyState::Paused { why: "as asked".into() };
    world.change_vm("web", |object| object.spec.power = Power::Paused);
    assert_eq!(state(&world, paused()), ".. asked for; on host a1");
    assert_eq!(state(&world, resumed()), "no replaced by a later request");
    world.report("web", "a1", 1, stands());
    assert_eq!(state(&world, paused()), "ok as asked");
    world.report_host("a1", |report| report.link = LinkState::Silent);
    assert_eq!(state(&world, paused()), ".. host a1 is silent");
    world.report_host("a1", |report| report.link = LinkState::Connected);
    world.change_vm("web", |object| object.spec.power = Power::Running);
    assert_eq!(state(&world, resumed()), ".. asked for; as asked");
    assert_eq!(state(&world, paused()), "no replaced by a later request");
    world.report("web", "a1", 1, CopyState::Running);
    assert_eq!(state(&world, resumed()), "ok the guest runs");
    world.report("web", "a1", 1, CopyState::Stopped { exit: Exit::GuestShutdown });
    assert_eq!(state(&world, resumed()), "no the VM is not running");
}

#[test]
fn a_reset_is_done_when_the_host_counted_it() {
    let mut world = one();
    let goal = || Goal::VmReset { vm: name("web"), request: 1 };
    world.settle();
    assert_eq!(state(&world, goal()), ".. waits for the host");
    world.report("web", "a1", 1, CopyState::Running);
    assert_eq!(state(&world, goal()), ".. waits for the host");
    let report = VmReport {
        epoch: 1,
        state: CopyState::Running,
        migration: None,
        reset_request: 1,
        lease: None,
        since: world.now,
        health: HealthReport::default(),
    };
    world.put(Key::report_of(Kind::Vm, &name("web"), &name("a1")), &report);
    assert_eq!(state(&world, goal()), "ok the guest was reset");
    world.report("web", "a1", 1, CopyState::Stopped { exit: Exit::GuestShutdown });
    assert_eq!(state(&world, goal()), "no the VM is not running");
    let mut never = World::new().vm("web", Bytes::mib(64));
    ask(&mut never, Power::Stopped);
    assert_eq!(state(&never, goal()), "no the VM is not running");
}

#[test]
fn removed_objects_end_what_is_waited_for() {
    let world = World::new();
    assert_eq!(state(&world, power(1)), "no the VM was removed");
    assert_eq!(state(&world, Goal::VmReset { vm: name("web"), request: 1 }), "no the VM was removed");
    assert_eq!(state(&world, Goal::VmGone { vm: name("web") }), "ok gone");
    assert_eq!(state(&world, Goal::VolumeGone { volume: name("d") }), "ok gone");
    assert_eq!(state(&world, Goal::VolumeReady { volume: name("d") }), "no the volume was removed");
    assert_eq!(state(&world, Goal::ImageReady { image: name("i") }), "no the image was removed");
    assert_eq!(state(&world, Goal::HostEmpty { host: name("h") }), "no the host was removed");
    let migration = Goal::MigrationEnds { migration: name("m") };
    assert_eq!(state(&world, migration), "no the migration's record was removed");
}

#[test]
fn a_deletion_is_done_when_the_object_is_gone() {
    let mut world = one();
    world.all_run();
    let now = world.now;
    world.change_vm("web", |object| object.meta.deleting = Some(now));
    assert_eq!(state(&world, Goal::VmGone { vm: name("web") }), ".. being deleted; waits for host a1");
    assert_eq!(state(&world, Goal::VolumeGone { volume: name("web-boot") }), ".. being removed");
}

#[test]
fn a_migration_ends_as_its_phase_says() {
    let mut world = one().host("a2", Bytes::gib(4));
    world.all_run();
    world.migrate("m", "web", Some("a2"));
    let goal = || Goal::MigrationEnds { migration: name("m") };
    assert_eq!(state(&world, goal()), ".. asked for");
    world.settle();
    let decision = (*world.view.migrations[&name("m")].decision.as_ref().unwrap().value).clone();
    for (phase, expected) in [
        (Phase::Pending, ".. pending"),
        (Phase::Preparing, ".. preparing"),
        (Phase::Copying { listen: "10.0.0.2:1".into(), line: None }, ".. copying"),
        (Phase::Resuming { epoch: 2 }, ".. resuming"),
        (Phase::Returning { epoch: 3, why: "x".into() }, ".. returning"),
        (Phase::Finishing { epoch: 2 }, ".. finishing"),
        (Phase::Undoing { why: "x".into(), cancelled: false, seeded: false }, ".. undoing"),
        (Phase::Succeeded, "ok the guest runs on host a2"),
        (Phase::Failed { why: "no slot".into() }, "no no slot"),
        (Phase::Cancelled, "no cancelled"),
    ] {
        let decision = MigrationDecision { phase, ..decision.clone() };
        world.put(Key::decision(Kind::Migration, &name("m")), &decision);
        assert_eq!(state(&world, goal()), expected);
    }
}

#[test]
fn an_image_is_ready_when_its_content_has_arrived() {
    let mut world = World::new();
    let goal = || Goal::ImageReady { image: name("tiny") };
    assert_eq!(state(&world, goal()), "ok ready");
    let key = Key::report(Kind::Image, &name("tiny"));
    world.put(key.clone(), &ImageReport::Waiting);
    assert_eq!(state(&world, goal()), ".. waits for its content");
    world.put(key.clone(), &ImageReport::Failed { why: "404".into() });
    assert_eq!(state(&world, goal()), "no 404");
    world.remove(key);
    assert_eq!(state(&world, goal()), ".. waits for its content");
}

#[test]
fn a_volume_is_ready_at_its_size() {
    let mut world = one();
    let ready = || Goal::VolumeReady { volume: name("web-boot") };
    let large = || Goal::VolumeSize { volume: name("web-boot"), bytes: Bytes::gib(2).as_u64() };
    assert_eq!(state(&world, ready()), ".. waits for a host");
    for (report, is_ready, is_large) in [
        (VolumeReport::Making { percent: 7 }, ".. being made, 7 %", ".. being made, 7 %"),
        (VolumeReport::Ready { size: Bytes::gib(1) }, "ok ready, 1GiB", ".. has 1GiB, to be grown"),
        (VolumeReport::Ready { size: Bytes::gib(2) }, "ok ready, 2GiB", "ok ready, 2GiB"),
        (VolumeReport::Failed { why: "disk full".into() }, "no disk full", "no disk full"),
        (VolumeReport::Gone, "no the volume was removed", "no the volume was removed"),
    ] {
        world.put(Key::report(Kind::Volume, &name("web-boot")), &report);
        assert_eq!((state(&world, ready()).as_str(), state(&world, large()).as_str()), (is_ready, is_large));
    }
}

#[test]
fn a_host_is_empty_when_nothing_is_on_it_or_on_its_way() {
    let mut world = one();
    let goal = || Goal::HostEmpty { host: name("a1") };
    world.settle();
    assert_eq!(state(&world, goal()), "no the drain was taken back");
    world.change_host("a1", |spec| spec.draining = true);
    assert_eq!(state(&world, goal()), ".. 1 VMs left, 0 on the move", "its start was ordered");
    world.report("web", "a1", 1, CopyState::Running);
    let expected = ".. 1 VMs left, 0 on the move; cannot move: web: no host fits (no host has joined)";
    assert_eq!(state(&world, goal()), expected);
    world.report("web", "a1", 1, CopyState::Stopped { exit: Exit::GuestShutdown });
    assert_eq!(state(&world, goal()), "ok no VM runs on it");
}

#[test]
fn an_end_is_recorded_once_and_forgotten_after_an_hour() {
    let mut world = World::new();
    world.settle();
    let spec =
        OperationSpec { goal: Goal::VmGone { vm: name("web") }, started: world.now, actor: "person".into() };
    world.spec(Kind::Operation, "o1", spec);
    assert_eq!(world.settle(), ["o1 succeeded: gone"]);
    world.now = world.now + std::time::Duration::from_secs(3601);
    world.settle();
    assert!(world.view.operations.is_empty());
}

#[test]
fn an_end_rests_on_what_is_stored_and_not_on_what_is_about_to_be() {
    let mut world = one();
    world.all_run();
    let now = world.now;
    world.change_vm("web", |object| object.meta.deleting = Some(now));
    world.report("web", "a1", 1, CopyState::Stopped { exit: Exit::Requested { forced: true } });
    let spec = OperationSpec { goal: Goal::VmGone { vm: name("web") }, started: now, actor: "person".into() };
    world.spec(Kind::Operation, "o1", spec);
    let events: Vec<_> =
        sterna_plan::round(&world.view, now).into_iter().map(|action| action.event.what).collect();
    assert_eq!(events, ["removed"], "the removal may still lose to another commit");
    let log = world.settle();
    assert!(log.contains(&"o1 succeeded: gone".to_owned()), "{log:?}");
}
