//! Where VMs go, and why.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

mod world;

use sterna_base::units::Bytes;
use sterna_model::host::LinkState;
use sterna_model::key::{Key, Kind};
use sterna_model::migration::MigrationDecision;
use sterna_model::vm::{CopyState, Exit, Power};
use sterna_model::volume::{Location, VolumeReport};
use sterna_plan::{placement, status};
use world::{World, name};

#[test]
fn a_vm_goes_where_most_memory_is_free_and_says_so() {
    let mut world =
        World::new().host("a1", Bytes::gib(4)).host("a2", Bytes::gib(8)).vm("web", Bytes::mib(256));
    let log = world.settle();
    assert_eq!(world.owner("web"), ("a2".into(), 1));
    assert!(
        log.contains(&"web placed: host a2 has the most free memory of 2 that fit".to_owned()),
        "{log:#?}"
    );
}

#[test]
fn each_refusal_has_its_reason() {
    let mut world = World::new()
        .host("a1", Bytes::gib(8))
        .host("a2", Bytes::gib(8))
        .host("a3", Bytes::gib(1))
        .vm("big", Bytes::gib(2));
    world.change_host("a1", |spec| spec.cordoned = true);
    world.report_host("a2", |report| report.link = LinkState::Silent);
    world.settle();
    let status = status::vm(&world.view, &name("big"), world.now).unwrap();
    assert_eq!(
        status.message,
        "no host fits (a1: it is cordoned; a2: its agent is silent; a3: 2144 MiB of memory needed, 512 MiB free)"
    );
}

#[test]
fn many_vms_at_once_never_take_more_memory_than_there_is() {
    let mut world = World::new().host("a1", Bytes::gib(2)).host("a2", Bytes::gib(2));
    for n in 0..12 {
        world = world.vm(&format!("v{n}"), Bytes::mib(512));
    }
    world.settle();
    for host in ["a1", "a2"] {
        let taken = sterna_plan::capacity::taken_memory(&world.view, &name(host));
        assert!(taken <= Bytes(Bytes::gib(2).as_u64() - Bytes::mib(512).as_u64()), "{host}: {taken}");
    }
    let placed = world.view.vms().filter(|vm| vm.decision().is_some()).count();
    assert_eq!(placed, 4, "two of 608 MiB fit beside the host's own 512 MiB, on each host");
}

#[test]
fn addresses_are_never_given_twice_and_stay_with_the_vm() {
    let mut world = World::new().host("a1", Bytes::gib(8)).vm("v1", Bytes::mib(64)).vm("v2", Bytes::mib(64));
    world.all_run();
    let address =
        |world: &World, vm| world.view.vms[&name(vm)].decision.as_ref().unwrap().hardware.nics[0].address;
    let (first, second) = (address(&world, "v1"), address(&world, "v2"));
    assert_ne!(first, second);
    world.change_vm("v1", |object| object.spec.power = Power::Stopped);
    world.report("v1", "a1", 1, CopyState::Stopped { exit: Exit::Requested { forced: false } });
    world.settle();
    world = world.vm("v3", Bytes::mib(64));
    world.settle();
    assert!(![first, second].contains(&address(&world, "v3")), "a stopped VM keeps its address");
    world.change_vm("v1", |object| {
        object.spec.power = Power::Running;
        object.spec.power_request = 2;
    });
    world.settle();
    assert_eq!((address(&world, "v1"), world.owner("v1").1), (first, 2));
}

#[test]
fn a_vm_with_a_local_volume_starts_only_where_the_volume_is() {
    let mut world = World::new().host("a1", Bytes::gib(8)).vm("db", Bytes::mib(64));
    let mut volume = (*world.view.volumes[&name("db-boot")].spec.as_ref().unwrap().value).clone();
    volume.spec.pool = Some(name("local"));
    world.put(Key::spec(Kind::Volume, &name("db-boot")), &volume);
    world.all_run();
    world = world.host("a2", Bytes::gib(64));
    world.change_vm("db", |object| object.spec.power = Power::Stopped);
    world.report("db", "a1", 1, CopyState::Stopped { exit: Exit::GuestShutdown });
    world.change_vm("db", |object| {
        object.spec.power = Power::Running;
        object.spec.power_request = 2;
    });
    world.settle();
    assert_eq!(world.owner("db"), ("a1".into(), 2));
}

#[test]
fn a_crash_is_restarted_at_once_and_then_ever_more_patiently() {
    let mut world = World::new().host("a1", Bytes::gib(8)).vm("web", Bytes::mib(64));
    world.all_run();
    let crash = || CopyState::Stopped { exit: Exit::Crashed { why: "signal 9".into() } };
    world.report("web", "a1", 1, crash());
    let log = world.settle();
    assert_eq!(world.owner("web").1, 2);
    assert!(log[0].contains("qemu ended: signal 9; again on host a1"), "{log:?}");
    world.report("web", "a1", 2, crash());
    assert!(world.settle().is_empty(), "the second waits a second");
    world.now = world.now + std::time::Duration::from_secs(1);
    world.settle();
    assert_eq!(world.owner("web").1, 3);
}

#[test]
fn silence_is_never_taken_for_a_stop() {
    let mut world =
        World::new().host("a1", Bytes::gib(8)).host("a2", Bytes::gib(4)).vm("web", Bytes::mib(64));
    world.all_run();
    world.report_host("a1", |report| report.link = LinkState::Silent);
    world.now = world.now + std::time::Duration::from_secs(86_400);
    world.settle();
    assert_eq!(world.owner("web"), ("a1".into(), 1));
}

#[test]
fn a_guest_that_shut_itself_down_stays_down_until_asked() {
    let mut world = World::new().host("a1", Bytes::gib(8)).vm("web", Bytes::mib(64));
    world.all_run();
    world.report("web", "a1", 1, CopyState::Stopped { exit: Exit::GuestShutdown });
    assert!(world.settle().is_empty());
    world.change_vm("web", |object| object.spec.power_request = 2);
    world.settle();
    assert_eq!(world.owner("web").1, 2);
}

#[test]
fn a_deleted_vm_goes_with_its_boot_volume_once_no_host_has_a_copy() {
    let mut world = World::new().host("a1", Bytes::gib(8)).vm("web", Bytes::mib(64));
    world.all_run();
    let now = world.now;
    world.change_vm("web", |object| object.meta.deleting = Some(now));
    assert!(world.settle().is_empty(), "it still runs");
    world.report("web", "a1", 1, CopyState::Stopped { exit: Exit::Requested { forced: true } });
    world.settle();
    assert!(world.view.vms.is_empty());
    assert!(world.view.volumes[&name("web-boot")].meta().unwrap().deleting.is_some());
    world.put(Key::report(Kind::Volume, &name("web-boot")), &VolumeReport::Gone);
    world.settle();
    assert!(world.view.volumes.is_empty());
}

#[test]
fn a_row_that_cannot_be_read_stops_planning_for_its_vm_only() {
    let mut world = World::new().host("a1", Bytes::gib(8)).vm("web", Bytes::mib(64)).vm("db", Bytes::mib(64));
    world.all_run();
    let key = Key::decision(Kind::Vm, &name("web")).to_string();
    let good =
        serde_json::to_string(&*world.view.vms[&name("web")].decision.as_ref().unwrap().value).unwrap();
    world.commit(&key, Some("{\"torn".into()));
    world.report("web", "a1", 1, CopyState::Stopped { exit: Exit::Lost });
    world.report("db", "a1", 1, CopyState::Stopped { exit: Exit::Lost });
    world.settle();
    assert!(world.view.broken.contains_key(&key));
    assert_eq!(world.owner("db").1, 2);
    world.commit(&key, Some(good));
    assert_eq!(world.owner("web").1, 1, "never guess");
}

#[test]
fn restarts_of_one_round_see_the_memory_that_the_others_took() {
    let mut world = World::new().host("a1", Bytes::gib(4)).host("a2", Bytes::gib(2));
    for vm in ["v1", "v2", "v3", "v4"] {
        world = world.vm(vm, Bytes::mib(700));
    }
    world.change_host("a2", |spec| spec.cordoned = true);
    world.all_run();
    world.change_host("a2", |spec| spec.cordoned = false);
    world.change_host("a1", |spec| spec.cordoned = true);
    for vm in ["v1", "v2", "v3", "v4"] {
        world.report(vm, "a1", 1, CopyState::Stopped { exit: Exit::Lost });
    }
    world.settle();
    let restarted =
        ["v1", "v2", "v3", "v4"].map(|vm| world.owner(vm).0).into_iter().filter(|host| host == "a2");
    assert_eq!(restarted.count(), 1, "one of 796 MiB fits beside the host's own 512 MiB");
}

/// Where a move of `web` would go, and why.
fn chosen(world: &World, datacentre: Option<&str>) -> (String, String) {
    let vm = world.view.vm(&name("web")).unwrap();
    let (host, why) = placement::choose_move(&world.view, &vm, datacentre.map(name).as_ref()).unwrap();
    (host.to_string(), why)
}

#[test]
fn a_move_goes_where_copies_of_the_volumes_lie_rather_than_where_most_memory_is_free() {
    let mut world = World::new().host("a1", Bytes::gib(64));
    world.add_vm("web", Bytes::mib(64), Some("local"));
    world.all_run();
    world = world.host("a2", Bytes::gib(4)).host("a3", Bytes::gib(32));
    world.settle();
    let (host, why) = chosen(&world, None);
    assert_eq!(host, "a3", "{why}");
    let mut volume = (*world.view.volumes[&name("web-boot")].decision.as_ref().unwrap().value).clone();
    volume.former = vec![Location { pool: name("local"), host: name("a2") }];
    world.put(Key::decision(Kind::Volume, &name("web-boot")), &volume);
    let (host, why) = chosen(&world, None);
    assert_eq!(host, "a2");
    assert!(why.contains("copies of its volumes are there"), "{why}");
    world.change_host("a2", |spec| spec.cordoned = true);
    assert_eq!(chosen(&world, None).0, "a3", "a copy makes no host fit");
}

/// `web` moved away from this host, once upon a time.
fn came_from(world: &mut World, migration: &str, (source, via, seed): (&str, &str, bool)) {
    if seed {
        world.preseed(migration, "web", "a1")
    } else {
        world.migrate(migration, "web", Some("a1"))
    }
    world.now = world.now + std::time::Duration::from_secs(60);
    let decision: MigrationDecision = serde_json::from_value(serde_json::json!({
        "phase": {"phase": "succeeded"}, "epoch": 1, "next_epoch": 2, "source": source, "target": "a1",
        "via": via, "method": "test", "started": world.now, "since": world.now,
    }))
    .unwrap();
    world.put(Key::decision(Kind::Migration, &name(migration)), &decision);
}

#[test]
fn without_volumes_to_carry_a_vm_goes_back_to_where_it_came_from_last_in_that_datacentre() {
    let mut world = World::new().host("a1", Bytes::gib(8)).vm("web", Bytes::mib(64));
    world.spec(Kind::Datacentre, "far", sterna_model::datacentre::DatacentreSpec::default());
    world.all_run();
    world = world.host("a2", Bytes::gib(64)).host("a3", Bytes::gib(4));
    for (host, memory) in [("b1", 4), ("b2", 64), ("b3", 4)] {
        world.add_host(host, Bytes::gib(memory));
        world.change_host(host, |spec| spec.datacentre = name("far"));
    }
    world.settle();
    assert_eq!(chosen(&world, Some("far")).0, "b2");
    came_from(&mut world, "m-1", ("b3", "mover", false));
    assert_eq!(chosen(&world, Some("far")).0, "b3");
    came_from(&mut world, "m-2", ("b1", "mover", false));
    let (host, why) = chosen(&world, Some("far"));
    assert_eq!(host, "b1");
    assert!(why.contains("it was there last"), "{why}");
    came_from(&mut world, "m-3", ("b3", "mover", true));
    assert_eq!(chosen(&world, Some("far")).0, "b1", "to copy volumes ahead leaves no memory behind");
    came_from(&mut world, "m-4", ("a3", "direct", false));
    assert_eq!(chosen(&world, None).0, "a2", "straight from host to host nothing is remembered");
}
