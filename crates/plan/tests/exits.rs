//! Every state has an exit: what would otherwise wait for something that never comes.

mod world;

use std::time::Duration;

use sterna_base::units::Bytes;
use sterna_model::health::HealthReport;
use sterna_model::key::{Key, Kind};
use sterna_model::vm::{Exit, RestartPolicy};
use sterna_plan::{capacity, round};
use world::scene::{crash, message, running, stopped};
use world::{World, name};

#[test]
fn a_vm_crashes_on_a_full_host_and_starts_again_in_its_own_place() {
    let mut world = World::new().host("a1", Bytes::gib(2)).vm("big", Bytes::mib(1400));
    world.all_run();
    world.report("big", "a1", 1, crash());
    world.settle();
    assert_eq!(world.owner("big").1, 2);
}

#[test]
fn a_guest_that_shut_itself_down_holds_no_memory() {
    let mut world = World::new().host("a1", Bytes::gib(2)).vm("big", Bytes::mib(1400));
    world.all_run();
    world.report("big", "a1", 1, stopped(Exit::GuestShutdown));
    assert_eq!(capacity::taken_memory(&world.view, &name("a1")), Bytes(0));
    world = world.vm("next", Bytes::mib(1400));
    world.settle();
    assert_eq!(world.owner("next").0, "a1");
    world.change_vm("big", |object| object.spec.power_request += 1);
    world.settle();
    assert_eq!(message(&world, "big"), "no host fits (a1: 1496 MiB of memory needed, 40 MiB free)");
}

#[test]
fn a_vm_that_cannot_be_read_still_holds_its_memory() {
    let mut world = World::new().host("a1", Bytes::gib(2)).vm("big", Bytes::mib(1400));
    world.all_run();
    world.commit(&Key::spec(Kind::Vm, &name("big")).to_string(), Some("{\"torn".into()));
    assert_eq!(capacity::taken_memory(&world.view, &name("a1")), capacity::needed(Bytes::mib(1400)));
    assert!(world.view.vms.contains_key("big"));
}

#[test]
fn an_object_of_which_nothing_can_be_read_is_there_all_the_same() {
    let mut world = World::new();
    let key = Key::spec(Kind::Vm, &name("web")).to_string();
    world.commit(&key, Some("{\"torn".into()));
    assert!(
        world.view.vms.contains_key("web"),
        "or its name, and what runs of it, would be taken for nobody's"
    );
    world.commit(&key, None);
    assert!(world.view.vms.is_empty() && world.view.broken.is_empty());
}

#[test]
fn a_host_that_fails_to_start_a_vm_is_left_for_another() {
    let mut world = running();
    let fail = || stopped(Exit::StartFailed { why: "no tap".into() });
    world.report("web", "a1", 1, fail());
    world.settle();
    assert_eq!(world.owner("web"), ("a1".into(), 2));
    world.report("web", "a1", 2, fail());
    world.now = world.now + Duration::from_secs(1);
    world.settle();
    assert_eq!(world.owner("web"), ("a2".into(), 3));
}

#[test]
fn what_its_host_restarted_often_enough_starts_elsewhere_at_once_and_counts_on() {
    let mut world = running();
    let health = HealthReport { restarts: 3, recent: 3, ..HealthReport::default() };
    world.report("web", "a1", 1, crash());
    let mut report = (*world.view.vms[&name("web")].reports[&name("a1")].value).clone();
    report.health = health;
    world.put(Key::report_of(Kind::Vm, &name("web"), &name("a1")), &report);
    world.settle();
    assert_eq!(world.owner("web"), ("a2".into(), 2));
    let decision = world.view.vm(&name("web")).unwrap().decision().unwrap();
    assert_eq!(decision.restarts, 4, "its own, and those of the host");
}

#[test]
fn a_start_that_failed_is_tried_again_whatever_the_restart_policy() {
    let mut world = running();
    world.change_vm("web", |object| object.spec.restart = RestartPolicy::Never);
    world.report("web", "a1", 1, stopped(Exit::StartFailed { why: "no tap".into() }));
    world.settle();
    assert_eq!(world.owner("web").1, 2);
    world.report("web", "a1", 2, crash());
    world.now = world.now + Duration::from_secs(3600);
    world.settle();
    assert_eq!(world.owner("web").1, 2, "but a guest that ended stays ended");
}

#[test]
fn the_clock_of_a_host_keeps_nothing_waiting() {
    let mut world = running();
    for epoch in 1..4 {
        world.now = world.now + Duration::from_secs(61);
        let real = world.now;
        world.now = real + Duration::from_secs(86_400);
        world.report("web", "a1", epoch, crash());
        world.now = real;
        world.settle();
        assert_eq!(world.owner("web").1, epoch + 1);
    }
}

#[test]
fn a_vm_that_cannot_be_started_again_says_why() {
    let mut world = running();
    world.change_host("a1", |spec| spec.cordoned = true);
    world.change_host("a2", |spec| spec.cordoned = true);
    world.report("web", "a1", 1, crash());
    world.settle();
    let expected =
        "qemu ended: signal 9; not started again: no host fits (a1: it is cordoned; a2: it is cordoned)";
    assert_eq!(message(&world, "web"), expected);
}

#[test]
fn an_image_deleted_while_it_is_cloned_makes_the_decision_fail_and_not_the_volume() {
    let mut world = World::new().host("a1", Bytes::gib(8));
    world.settle();
    world = world.vm("web", Bytes::mib(64));
    let actions = round(&world.view, world.now);
    let placed = actions.iter().find(|action| action.event.what == "placed").unwrap();
    let image = Key::spec(Kind::Image, &name("tiny"));
    assert!(placed.compares.iter().any(|(key, _)| *key == image), "{:?}", placed.compares);
    world.remove(image);
    world.remove(Key::report(Kind::Image, &name("tiny")));
    world.settle();
    assert!(world.view.vms[&name("web")].decision.is_none());
    assert_eq!(message(&world, "web"), "image tiny does not exist");
}
