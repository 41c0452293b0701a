//! What is deleted goes, and a removed host keeps nothing and nobody.

mod world;

use sterna_base::units::Bytes;
use sterna_model::key::{Key, Kind};
use sterna_model::migration::{Outcome, Phase, SideState};
use sterna_model::vm::{CopyState, Exit, Power};
use sterna_plan::assignment::assignment;
use sterna_plan::status;
use sterna_wire::assignment::Role;
use world::scene::{copying, message, remove_host, running, silence, stopped};
use world::{World, name};

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
fn what_a_removed_host_said_is_forgotten_when_nothing_rests_on_it() {
    let mut world = running();
    world.report("web", "a2", 1, stopped(Exit::Released));
    world.change_vm("web", |object| object.spec.power = Power::Stopped);
    world.report("web", "a1", 1, stopped(Exit::Requested { forced: false }));
    remove_host(&mut world, "a1");
    remove_host(&mut world, "a2");
    assert!(world.view.vms[&name("web")].reports.is_empty());
    let status = status::vm(&world.view, &name("web"), world.now).expect("the VM is there");
    assert_eq!(
        (status.state.word(), status.message.as_str()),
        ("stopped", "the host that had it was removed")
    );
}

#[test]
fn how_a_guest_ended_is_not_forgotten_with_its_host() {
    let mut world = running();
    world.report("web", "a1", 1, stopped(Exit::GuestShutdown));
    remove_host(&mut world, "a1");
    assert_eq!(world.owner("web"), ("a1".into(), 1), "a guest that shut itself down was started");
    assert!(world.view.vms[&name("web")].reports.contains_key(&name("a1")));
}

#[test]
fn a_row_that_a_move_rests_on_outlives_its_host() {
    let mut world = copying();
    let released = SideState::Released { outcome: Outcome::default() };
    world.remove(Key::spec(Kind::Host, &name("a1")));
    world.remove(Key::report(Kind::Host, &name("a1")));
    world.report_side("web", "a1", 1, CopyState::Paused { why: "sent".into() }, Some(("m", released)));
    world.settle();
    assert_eq!(world.phase("m"), Phase::Resuming { epoch: 2 });
}

#[test]
fn a_host_that_joins_again_starts_nothing_under_an_epoch_of_the_earlier_one() {
    let mut world = running();
    world.change_host("a2", |spec| spec.cordoned = true);
    world.change_vm("web", |object| object.spec.power = Power::Stopped);
    world.report("web", "a1", 1, stopped(Exit::Requested { forced: false }));
    remove_host(&mut world, "a1");
    world.change_vm("web", |object| {
        object.spec.power = Power::Running;
        object.spec.power_request += 1;
    });
    world.settle();
    assert_eq!(world.owner("web"), ("a1".into(), 1), "no host takes it");
    world.add_host("a1", Bytes::gib(8));
    let told = assignment(&world.view, &name("a1"));
    let Role::Owner(owner) = &told.vms[0].role else { panic!("{told:?}") };
    assert_eq!((told.vms[0].epoch, owner.power), (1, Power::Off));
    // The new machine has nothing of it, and says so.
    world.report("web", "a1", 1, stopped(Exit::Requested { forced: false }));
    world.settle();
    assert_eq!(world.owner("web"), ("a1".into(), 2));
}
