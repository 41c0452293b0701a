//! Which VMs of the target an arriving one resembles.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

mod world;

use sterna_base::units::Bytes;
use sterna_model::key::{Key, Kind};
use sterna_model::migration::{Phase, SideState};
use sterna_model::vm::CopyState;
use sterna_model::volume::{Location, VolumeDecision};
use sterna_plan::assignment::assignment;
use sterna_wire::assignment::{Carry, Role};
use uuid::Uuid;
use world::{World, name};

/// `web` (512 MiB) runs on a1 from that host's own disk, of which a2 has a former copy; these run on a2.
fn beside(others: &[(&str, u64)]) -> World {
    let mut world = World::new().host("a1", Bytes::gib(8)).host("a2", Bytes::gib(16));
    for (vm, host, mib) in
        [("web", "a1", 512)].into_iter().chain(others.iter().map(|(vm, mib)| (*vm, "a2", *mib)))
    {
        world.add_vm(vm, Bytes::mib(mib), Some("local"));
        world.change_vm(vm, |object| object.spec.place.host = Some(name(host)));
    }
    world.all_run();
    for vm in world.view.vms.keys().cloned().collect::<Vec<_>>() {
        world.change_vm(vm.as_str(), |object| object.spec.place.host = None);
    }
    let disk = name("web-boot");
    let decision = (*world.view.volumes[&disk].decision.as_ref().unwrap().value).clone();
    let former = vec![Location { pool: name("local"), host: name("a2") }];
    world.put(Key::decision(Kind::Volume, &disk), &VolumeDecision { former, ..decision });
    world
}

fn carry_to(world: &World, host: &str) -> Carry {
    let told = assignment(&world.view, &name(host)).vms;
    let role = told.into_iter().find(|vm| vm.name == name("web")).unwrap().role;
    match role {
        Role::Incoming { carry, .. } => carry.unwrap(),
        Role::Owner(owner) => owner.outgoing.unwrap().carry.unwrap(),
        Role::Release => panic!("it is to be released"),
    }
}

fn siblings(world: &mut World) -> Vec<Uuid> {
    world.migrate("m", "web", Some("a2"));
    world.settle();
    assert_eq!(world.phase("m"), Phase::Preparing);
    carry_to(world, "a2").siblings
}

fn uids(world: &World, vms: &[&str]) -> Vec<Uuid> {
    vms.iter().map(|vm| world.view.vm(&name(vm)).unwrap().meta.uid).collect()
}

#[test]
fn a_target_is_told_of_two_vms_of_the_same_image_those_of_the_same_size_first() {
    let mut world = beside(&[("large", 4096), ("small", 64), ("twin", 512)]);
    let told = siblings(&mut world);
    assert_eq!(told, uids(&world, &["twin", "small"]));
    let listening = SideState::Listening { at: "10.0.0.12:4000".into(), line: None };
    world.report_side("web", "a2", 2, CopyState::Incoming, Some(("m", listening)));
    world.settle();
    assert!(carry_to(&world, "a1").siblings.is_empty(), "the source has no use for them");
    assert_eq!(carry_to(&world, "a2").siblings, told);
}

#[test]
fn a_vm_of_another_image_is_no_sibling() {
    let mut world = beside(&[("other", 512)]);
    let volume = name("other-boot");
    let mut decision = (*world.view.volumes[&volume].decision.as_ref().unwrap().value).clone();
    decision.image.as_mut().unwrap().sha256 = "1".repeat(64);
    world.put(Key::decision(Kind::Volume, &volume), &decision);
    assert!(siblings(&mut world).is_empty());
}

#[test]
fn a_vm_whose_guest_does_not_run_there_is_no_sibling() {
    let mut world = beside(&[("paused", 512), ("elsewhere", 512)]);
    let epoch = world.owner("paused").1;
    world.report("paused", "a2", epoch, CopyState::Paused { why: "asked".into() });
    // What a2 has of it is a copy that another host owns.
    let owned = world.owner("elsewhere").1;
    let mut decision = (*world.view.vms[&name("elsewhere")].decision.as_ref().unwrap().value).clone();
    decision.owner.host = name("a1");
    world.put(Key::decision(Kind::Vm, &name("elsewhere")), &decision);
    world.report("elsewhere", "a1", owned, CopyState::Running);
    assert!(siblings(&mut world).is_empty());
}
