//! Moves that meet trouble: each has an end, and the guest one owner.

mod world;

use std::time::Duration;

use sterna_base::units::Bytes;
use sterna_model::host::LinkState;
use sterna_model::key::{Key, Kind};
use sterna_model::migration::{Outcome, Phase, SideState};
use sterna_model::vm::{CopyState, Exit, Power};
use sterna_plan::assignment::assignment;
use sterna_wire::assignment::Role;
use world::scene::{copying, crash, preparing, remove_host, resuming, running, silence, stopped};
use world::{World, name};

#[test]
fn a_move_of_a_vm_that_cannot_be_read_waits_until_it_can() {
    let mut world = copying();
    let key = Key::decision(Kind::Vm, &name("web"));
    let good = serde_json::to_string(&*world.view.vms[&name("web")].decision.as_ref().unwrap().value);
    world.commit(&key.to_string(), Some("{\"torn".into()));
    assert!(world.settle().is_empty());
    world.commit(&key.to_string(), Some(good.unwrap()));
    world.settle();
    assert!(matches!(world.phase("m"), Phase::Copying { .. }));
}

#[test]
fn a_vm_deleted_while_its_target_prepares_is_undone_and_goes() {
    let mut world = preparing();
    let now = world.now;
    world.change_vm("web", |object| object.meta.deleting = Some(now));
    world.settle();
    assert_eq!(world.phase("m"), Phase::Cancelled);
    world.report("web", "a1", 1, stopped(Exit::Requested { forced: true }));
    world.settle();
    assert!(world.view.vms.is_empty());
}

#[test]
fn an_epoch_that_a_silent_target_may_have_taken_is_never_given_again() {
    let mut world = preparing();
    world.cancel("m");
    world.settle();
    assert_eq!(world.phase("m"), Phase::Cancelled);
    world.report("web", "a1", 1, crash());
    world.settle();
    assert_eq!(world.owner("web").1, 3, "2 was the target's, which has not said yet that it took it");
}

#[test]
fn a_removed_target_never_keeps_a_move_open() {
    let mut world = preparing();
    remove_host(&mut world, "a2");
    world.now = world.now + Duration::from_secs(31);
    world.settle();
    assert!(matches!(world.phase("m"), Phase::Failed { .. }), "{:?}", world.phase("m"));

    let mut world = resuming();
    remove_host(&mut world, "a2");
    world.report("web", "a1", 1, stopped(Exit::Released));
    world.settle();
    assert_eq!(world.phase("m"), Phase::Succeeded);
    assert_eq!(world.owner("web"), ("a1".into(), 3), "a cold start: the guest may have run on the target");
    assert!(world.view.vms[&name("web")].decision.as_ref().unwrap().continues.is_none());
}

#[test]
fn a_removed_source_ends_a_move() {
    let mut world = copying();
    remove_host(&mut world, "a1");
    let (host, epoch) = world.owner("web");
    assert_eq!((host.as_str(), epoch), ("a2", 3));
    // What was prepared under epoch 2 is in the way of what starts under epoch 3, and is replaced by it.
    world.report("web", "a2", 3, CopyState::Running);
    world.settle();
    assert!(matches!(world.phase("m"), Phase::Failed { .. }), "{:?}", world.phase("m"));
}

#[test]
fn a_guest_that_ran_on_the_target_is_never_continued_from_older_memory() {
    for exit in [Exit::Crashed { why: "signal 9".into() }, Exit::Lost] {
        let mut world = resuming();
        let side =
            (exit != Exit::Lost).then_some(("m", SideState::Continued { loading: None, answered: None }));
        world.report_side("web", "a2", 2, stopped(exit), side);
        world.settle();
        assert!(matches!(world.phase("m"), Phase::Finishing { .. }), "{:?}", world.phase("m"));
        let told = assignment(&world.view, &name("a1")).vms;
        assert!(!told.iter().any(|vm| matches!(&vm.role, Role::Owner(owner) if owner.continues.is_some())));
    }
}

#[test]
fn a_vm_that_starts_again_on_the_source_does_not_keep_the_move_open() {
    let mut world = resuming();
    world.report_side(
        "web",
        "a2",
        2,
        CopyState::Running,
        Some(("m", SideState::Continued { loading: None, answered: None })),
    );
    world.settle();
    assert!(matches!(world.phase("m"), Phase::Finishing { .. }));
    world.change_host("a2", |spec| spec.cordoned = true);
    world.report("web", "a2", 2, crash());
    world.settle();
    assert_eq!(world.owner("web"), ("a1".into(), 3));
    world.report("web", "a1", 3, CopyState::Running);
    world.settle();
    assert_eq!(world.phase("m"), Phase::Succeeded);
}

#[test]
fn a_source_that_falls_silent_after_its_word_does_not_keep_the_move_open() {
    let mut world = resuming();
    world.report_side(
        "web",
        "a2",
        2,
        CopyState::Running,
        Some(("m", SideState::Continued { loading: None, answered: None })),
    );
    silence(&mut world, "a1");
    assert_eq!(world.phase("m"), Phase::Succeeded);
    let told = assignment(&world.view, &name("a1")).vms;
    assert_eq!(told.iter().map(|vm| (&vm.role, vm.epoch)).collect::<Vec<_>>(), [(&Role::Release, 1)]);
    // It is back, and gets the VM back: first the old copy goes.
    world.report_host("a1", |report| report.link = LinkState::Connected);
    world.migrate("back", "web", Some("a1"));
    world.settle();
    assert_eq!(world.phase("back"), Phase::Preparing);
    let role = |world: &World| assignment(&world.view, &name("a1")).vms[0].role.clone();
    assert_eq!(role(&world), Role::Release);
    world.report("web", "a1", 1, stopped(Exit::Released));
    assert!(matches!(role(&world), Role::Incoming { .. }));
}

#[test]
fn a_silent_source_is_not_asked_to_send() {
    let mut world = running();
    silence(&mut world, "a1");
    world.migrate("m", "web", Some("a2"));
    world.settle();
    let Phase::Failed { why } = world.phase("m") else { panic!("{:?}", world.phase("m")) };
    assert_eq!(why, "the agent of host a1, which has the VM, is silent");
}

#[test]
fn a_target_that_listens_nowhere_is_given_up() {
    let mut world = preparing();
    let nowhere = SideState::Listening { at: "a2:4000".into(), line: None };
    world.report_side("web", "a2", 2, CopyState::Incoming, Some(("m", nowhere)));
    world.settle();
    assert!(matches!(world.phase("m"), Phase::Undoing { .. }), "{:?}", world.phase("m"));
}

#[test]
fn a_power_request_while_resuming_is_served_after_the_handover() {
    let mut world = resuming();
    world.change_vm("web", |object| {
        object.spec.power = Power::Stopped;
        object.spec.power_request += 1;
    });
    world.settle();
    assert_eq!(world.phase("m"), Phase::Resuming { epoch: 2 });
    let told = assignment(&world.view, &name("a2")).vms;
    let Role::Owner(owner) = &told[0].role else { panic!("{told:?}") };
    assert_eq!((owner.continues.clone(), owner.power), (Some(name("m")), Power::Stopped));
    // Asked to run again, and the target lost meanwhile: the copy that is left is continued, nothing is started beside it.
    world.change_vm("web", |object| {
        object.spec.power = Power::Running;
        object.spec.power_request += 1;
    });
    world.report("web", "a2", 2, crash());
    world.settle();
    assert!(matches!(world.phase("m"), Phase::Returning { epoch: 3, .. }), "{:?}", world.phase("m"));
    assert_eq!(world.owner("web"), ("a1".into(), 3));
}

#[test]
fn a_copy_that_came_back_keeps_the_exports_it_has_open() {
    let mut world = World::new().host("a1", Bytes::gib(8)).host("a2", Bytes::gib(4));
    world.add_vm("web", Bytes::mib(64), Some("san"));
    world.all_run();
    let exports = |world: &World| {
        let pools = assignment(&world.view, &name("a1")).pools;
        let san = pools.into_iter().find(|pool| pool.name == name("san")).unwrap();
        san.exports.iter().map(|export| export.epoch).collect::<Vec<_>>()
    };
    assert_eq!(exports(&world), [1]);
    world.migrate("m", "web", Some("a2"));
    world.settle();
    assert_eq!(exports(&world), [1, 2], "both sides while the memory is copied");
    let listening = SideState::Listening { at: "10.0.0.12:4000".into(), line: None };
    world.report_side("web", "a2", 2, CopyState::Incoming, Some(("m", listening)));
    world.settle();
    let released = || Some(("m", SideState::Released { outcome: Outcome::default() }));
    world.report_side("web", "a1", 1, CopyState::Paused { why: "sent".into() }, released());
    world.settle();
    assert_eq!(exports(&world), [1, 2], "the source may get it back");
    world.report("web", "a2", 2, crash());
    world.settle();
    world.report("web", "a1", 3, CopyState::Running);
    world.settle();
    assert!(matches!(world.phase("m"), Phase::Failed { .. }));
    assert_eq!((world.owner("web").1, exports(&world)), (3, vec![1]), "it opened its disks under epoch 1");
    world.report("web", "a1", 3, crash());
    world.settle();
    assert_eq!((world.owner("web").1, exports(&world)), (4, vec![4]), "a fresh process opens them anew");
}

#[test]
fn of_several_moves_asked_for_at_once_one_is_made() {
    let mut world = World::new()
        .host("a1", Bytes::gib(8))
        .host("a2", Bytes::gib(4))
        .host("a3", Bytes::gib(4))
        .vm("web", Bytes::mib(64));
    world.all_run();
    world.migrate("m1", "web", Some("a2"));
    world.migrate("m2", "web", Some("a3"));
    world.migrate("m3", "web", Some("a2"));
    world.settle();
    assert_eq!(world.phase("m1"), Phase::Preparing);
    for other in ["m2", "m3"] {
        let why = "migration m1 of VM web is under way".to_owned();
        assert_eq!(world.phase(other), Phase::Failed { why });
    }
}

#[test]
fn a_move_of_a_vm_that_stops_before_it_begins_ends_at_once() {
    let mut world = running();
    world.report("web", "a1", 1, stopped(Exit::GuestShutdown));
    world.migrate("m", "web", Some("a2"));
    world.settle();
    assert!(matches!(world.phase("m"), Phase::Failed { .. }));
    let mut world = running();
    world.change_vm("web", |object| object.spec.power = Power::Stopped);
    world.migrate("m", "web", Some("a2"));
    world.settle();
    assert_eq!(world.phase("m"), Phase::Cancelled);
}

#[test]
fn a_name_that_a_host_still_speaks_of_is_not_used_again() {
    let mut world = running();
    let kept = SideState::Kept { why: "cancelled".into() };
    world.report_side("web", "a1", 1, CopyState::Running, Some(("web-1", kept)));
    let vm = world.view.vm(&name("web")).unwrap();
    assert_eq!(sterna_plan::drain::free_name(&world.view, &vm), Some(name("web-2")));
}
