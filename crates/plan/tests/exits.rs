//! Every state has an exit: what would otherwise wait for something that never comes.

mod world;

use std::time::Duration;

use sterna_base::units::Bytes;
use sterna_model::host::LinkState;
use sterna_model::key::{Column, Key, Kind};
use sterna_model::migration::{Outcome, Phase, SideState};
use sterna_model::vm::{CopyState, Exit, NicSpec, Power, RestartPolicy};
use sterna_plan::assignment::assignment;
use sterna_plan::{capacity, round, status};
use sterna_wire::assignment::Role;
use world::{World, name};

fn stopped(exit: Exit) -> CopyState {
    CopyState::Stopped { exit }
}

fn crash() -> CopyState {
    stopped(Exit::Crashed { why: "signal 9".into() })
}

fn message(world: &World, vm: &str) -> String {
    status::vm(&world.view, &name(vm), world.now).expect("the VM is there").message
}

/// `web` runs on a1; a2 is smaller.
fn running() -> World {
    let mut world =
        World::new().host("a1", Bytes::gib(8)).host("a2", Bytes::gib(4)).vm("web", Bytes::mib(64));
    world.all_run();
    assert_eq!(world.owner("web"), ("a1".into(), 1));
    world
}

fn preparing() -> World {
    let mut world = running();
    world.migrate("m", "web", Some("a2"));
    world.settle();
    assert_eq!(world.phase("m"), Phase::Preparing);
    world
}

fn copying() -> World {
    let mut world = preparing();
    let listening = SideState::Listening { at: "10.0.0.12:4000".into() };
    world.report_side("web", "a2", 2, CopyState::Incoming, Some(("m", listening)));
    world.settle();
    world.report_side("web", "a1", 1, CopyState::Running, Some(("m", SideState::Sending)));
    world.settle();
    world
}

fn resuming() -> World {
    let mut world = copying();
    let released = SideState::Released { outcome: Outcome::default() };
    world.report_side("web", "a1", 1, CopyState::Paused { why: "sent".into() }, Some(("m", released)));
    world.settle();
    assert_eq!(world.phase("m"), Phase::Resuming { epoch: 2 });
    world
}

fn remove_host(world: &mut World, host: &str) {
    world.remove(Key::spec(Kind::Host, &name(host)));
    world.remove(Key::report(Kind::Host, &name(host)));
    world.settle();
}

fn silence(world: &mut World, host: &str) {
    world.report_host(host, |report| report.link = LinkState::Silent);
    world.settle();
}

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
fn a_deleted_vm_says_whom_it_waits_for() {
    let mut world = running();
    let now = world.now;
    world.change_vm("web", |object| object.meta.deleting = Some(now));
    silence(&mut world, "a1");
    assert_eq!(message(&world, "web"), "being deleted; waits for host a1, which is silent");
    assert!(world.view.vms.contains_key("web"), "silence is never consent");
    remove_host(&mut world, "a1");
    assert!(world.view.vms.is_empty());
}

#[test]
fn vms_of_a_removed_host_start_elsewhere() {
    let mut world = running();
    remove_host(&mut world, "a1");
    assert_eq!(world.owner("web"), ("a2".into(), 2));
}

#[test]
fn a_stopped_vm_of_a_removed_host_can_be_started_though_its_row_is_gone() {
    let mut world = running();
    world.change_vm("web", |object| object.spec.power = Power::Stopped);
    world.report("web", "a1", 1, stopped(Exit::Requested { forced: false }));
    world.forget("web", "a1");
    remove_host(&mut world, "a1");
    world.change_vm("web", |object| {
        object.spec.power = Power::Running;
        object.spec.power_request += 1;
    });
    world.settle();
    assert_eq!(world.owner("web"), ("a2".into(), 2));
}

#[test]
fn a_volume_outlives_the_host_that_cared_for_it() {
    let mut world = running();
    let maker = |world: &World| world.view.volumes[&name("web-boot")].decision.as_ref().unwrap().host.clone();
    assert_eq!(maker(&world), name("a1"));
    remove_host(&mut world, "a1");
    assert_eq!(maker(&world), name("a2"));
}

#[test]
fn a_volume_on_the_disk_of_a_removed_host_can_be_deleted() {
    let mut world = World::new().host("a1", Bytes::gib(8)).host("a2", Bytes::gib(4));
    world.add_vm("db", Bytes::mib(64), Some("local"));
    world.all_run();
    remove_host(&mut world, "a1");
    assert!(message(&world, "db").contains("was removed"), "{}", message(&world, "db"));
    let now = world.now;
    world.change_vm("db", |object| object.meta.deleting = Some(now));
    world.settle();
    assert!(world.view.vms.is_empty() && world.view.volumes.is_empty());
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
        let side = (exit != Exit::Lost).then_some(("m", SideState::Continued));
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
    world.report_side("web", "a2", 2, CopyState::Running, Some(("m", SideState::Continued)));
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
    world.report_side("web", "a2", 2, CopyState::Running, Some(("m", SideState::Continued)));
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
    let nowhere = SideState::Listening { at: "a2:4000".into() };
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
    let listening = SideState::Listening { at: "10.0.0.12:4000".into() };
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

#[test]
fn two_nics_on_one_network_have_two_addresses() {
    let mut world = World::new().host("a1", Bytes::gib(8)).vm("web", Bytes::mib(64));
    let nic = |address: Option<&str>| NicSpec {
        network: name("default"),
        mac: None,
        address: address.map(|text| text.parse().unwrap()),
    };
    world.change_vm("web", |object| object.spec.nics = vec![nic(None), nic(None)]);
    world.settle();
    let given = |world: &World| {
        let decision = world.view.vms[&name("web")].decision.as_ref().unwrap();
        decision.hardware.nics.iter().map(|nic| nic.address.unwrap().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(given(&world), ["10.100.0.2", "10.100.0.3"]);
    // One of them asks for what the other had.
    world.change_vm("web", |object| object.spec.nics = vec![nic(None), nic(Some("10.100.0.2"))]);
    world.report("web", "a1", 1, crash());
    world.settle();
    assert_eq!(
        message(&world, "web"),
        "qemu ended: signal 9; not started again: address 10.100.0.2 of network default belongs to another NIC of this VM"
    );
    world.change_vm("web", |object| object.spec.nics = vec![nic(Some("10.100.0.2")), nic(None)]);
    world.settle();
    assert_eq!(given(&world), ["10.100.0.2", "10.100.0.3"]);
}

#[test]
fn an_address_that_two_ask_for_is_the_firsts() {
    let mut world = World::new().host("a1", Bytes::gib(8)).vm("v1", Bytes::mib(64)).vm("v2", Bytes::mib(64));
    for vm in ["v1", "v2"] {
        world.change_vm(vm, |object| object.spec.nics[0].address = Some("10.100.0.9".parse().unwrap()));
    }
    world.settle();
    assert_eq!(world.owner("v1").1, 1);
    assert_eq!(message(&world, "v2"), "address 10.100.0.9 of network default belongs to VM v1");
}

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
fn a_name_that_a_host_still_speaks_of_is_not_used_again() {
    let mut world = running();
    let kept = SideState::Kept { why: "cancelled".into() };
    world.report_side("web", "a1", 1, CopyState::Running, Some(("web-1", kept)));
    let vm = world.view.vm(&name("web")).unwrap();
    assert_eq!(sterna_plan::drain::free_name(&world.view, &vm), Some(name("web-2")));
}

#[test]
fn a_full_network_keeps_vms_from_hosts_that_have_no_address_on_it() {
    let mut world = World::new().host("a1", Bytes::gib(4)).vm("web", Bytes::mib(64));
    world.settle();
    let key = Key::new(Kind::Network, &name("default"), Column::Decision);
    world.put(key, &serde_json::json!({ "vni": 4096, "hosts": {} }));
    world = world.host("a2", Bytes::gib(8));
    let host = world.view.host(&name("a2")).unwrap();
    let vm = world.view.vm(&name("web")).unwrap();
    let why = sterna_plan::check::may_run(&world.view, &host, &sterna_plan::check::Needs::of(&vm));
    assert_eq!(why.as_deref(), Some("network default has no free address for it"));
}
