//! What a host gets told.

mod world;

use sterna_base::units::Bytes;
use sterna_model::key::{Key, Kind};
use sterna_model::meta::Name;
use sterna_model::migration::SideState;
use sterna_model::network::{NetworkKind as Kinds, NetworkSpec};
use sterna_model::vm::{CopyState, Exit, Power, RestartPolicy};
use sterna_plan::assignment::assignment;
use sterna_wire::assignment::{Assignment, NetworkKind, Purpose, Role};
use world::{World, name, scene};

fn told(world: &World, host: &str) -> Assignment {
    assignment(&world.view, &name(host))
}

fn three() -> World {
    World::new().host("a1", Bytes::gib(8)).host("a2", Bytes::gib(4)).host("a3", Bytes::gib(2))
}

fn role(world: &World, host: &str) -> Option<Role> {
    told(world, host).vms.into_iter().next().map(|vm| vm.role)
}

#[test]
fn a_host_that_has_not_joined_is_told_nothing() {
    let world = three().vm("web", Bytes::mib(64));
    let told = told(&world, "a9");
    assert!(
        told.vms.is_empty() && told.networks.is_empty() && told.pools.is_empty() && told.volumes.is_empty()
    );
}

#[test]
fn each_host_hears_of_its_own_vms_only() {
    let mut world = three().vm("v1", Bytes::mib(64)).vm("v2", Bytes::gib(4));
    world.all_run();
    let names = |host| told(&world, host).vms.into_iter().map(|vm| vm.name.to_string()).collect::<Vec<_>>();
    let (first, second) = (world.owner("v1").0, world.owner("v2").0);
    for host in ["a1", "a2", "a3"] {
        let expected: Vec<_> = [("v1", &first), ("v2", &second)]
            .into_iter()
            .filter(|(_, owner)| *owner == host)
            .map(|(vm, _)| vm)
            .collect();
        assert_eq!(names(host), expected, "{host}");
    }
}

#[test]
fn the_machine_has_its_disks_in_order_and_its_lease() {
    let mut world = three().vm("web", Bytes::mib(64));
    world.all_run();
    let told = told(&world, "a1");
    let Role::Owner(owner) = &told.vms[0].role else { panic!("{told:?}") };
    let disks: Vec<_> = owner.machine.disks.iter().map(|disk| disk.volume.as_str()).collect();
    assert_eq!(disks, ["web-boot"]);
    assert_eq!(owner.machine.disks[0].image.as_ref().unwrap().name, name("tiny"));
    let nic = &owner.machine.hardware.nics[0];
    let NetworkKind::Overlay { leases, .. } = &told.networks[0].kind else { panic!() };
    assert_eq!(
        leases.iter().map(|lease| (lease.mac, Some(lease.address))).collect::<Vec<_>>(),
        [(nic.mac, nic.address)]
    );
    assert_eq!(leases[0].hostname, name("web"));
}

#[test]
fn leases_are_at_both_ends_of_a_move_and_nowhere_else() {
    let mut world = three().vm("web", Bytes::mib(64));
    world.all_run();
    let leases = |world: &World, host| match &told(world, host).networks[0].kind {
        NetworkKind::Overlay { leases, .. } => leases.len(),
        NetworkKind::Bridge { .. } => panic!("an overlay"),
    };
    assert_eq!(["a1", "a2", "a3"].map(|host| leases(&world, host)), [1, 0, 0]);
    world.migrate("m", "web", Some("a2"));
    world.settle();
    assert_eq!(["a1", "a2", "a3"].map(|host| leases(&world, host)), [1, 1, 0]);
    world.cancel("m");
    world.report("web", "a2", 2, CopyState::Incoming);
    world.settle();
    assert_eq!(role(&world, "a2"), Some(Role::Release));
    assert_eq!(["a1", "a2", "a3"].map(|host| leases(&world, host)), [1, 0, 0]);
}

#[test]
fn overlay_peers_are_the_others() {
    let mut world = three();
    world.settle();
    let address = |host: &str| world.view.host(&name(host)).unwrap().spec.addresses.management;
    let mut own = Vec::new();
    for host in ["a1", "a2", "a3"] {
        let told = told(&world, host);
        let NetworkKind::Overlay { peers, host_address, .. } = &told.networks[0].kind else { panic!() };
        let others: Vec<_> =
            ["a1", "a2", "a3"].into_iter().filter(|other| *other != host).map(address).collect();
        assert_eq!(*peers, others);
        own.push(host_address.to_string());
    }
    assert_eq!(own, ["10.100.0.254", "10.100.0.253", "10.100.0.252"]);
}

#[test]
fn a_bridge_is_passed_on_as_it_was_asked_for() {
    let mut world = three();
    let kind = Kinds::Bridge { bridge: "br0".into(), vlan: Some(7) };
    world.spec(Kind::Network, "lan", NetworkSpec { kind, default: false });
    world.settle();
    let lan = told(&world, "a1").networks.into_iter().find(|network| network.name == name("lan")).unwrap();
    assert_eq!(lan.kind, NetworkKind::Bridge { bridge: "br0".into(), vlan: Some(7) });
}

#[test]
fn only_the_pools_own_host_exports_and_all_learn_where() {
    let mut world = three();
    world.add_vm("web", Bytes::mib(64), Some("san"));
    world.all_run();
    world.migrate("m", "web", Some("a2"));
    world.settle();
    let san = |world: &World, host| {
        told(world, host).pools.into_iter().find(|pool| pool.name == name("san")).unwrap()
    };
    let vm = world.view.vms[&name("web")].meta().unwrap().uid;
    let volume = world.view.volumes[&name("web-boot")].meta().unwrap().uid;
    let served: Vec<_> = san(&world, "a1")
        .exports
        .iter()
        .map(|export| (export.volume.clone(), export.uid, export.vm, export.epoch))
        .collect();
    assert_eq!(served, [(name("web-boot"), volume, vm, 1), (name("web-boot"), volume, vm, 2)]);
    assert!(san(&world, "a2").exports.is_empty());
    let storage = world.view.host(&name("a1")).unwrap().spec.addresses.for_storage();
    assert_eq!(san(&world, "a3").server, Some(std::net::SocketAddr::new(storage, 10809)));
    world.report("web", "a2", 2, CopyState::Stopped { exit: Exit::StartFailed { why: "no tap".into() } });
    world.settle();
    assert_eq!(san(&world, "a1").exports.len(), 1, "the target's right ends with the move");
    world.change_vm("web", |object| object.spec.power = Power::Stopped);
    assert_eq!(san(&world, "a1").exports.len(), 1, "it still runs");
    world.report("web", "a1", 1, CopyState::Stopped { exit: Exit::Requested { forced: false } });
    assert!(san(&world, "a1").exports.is_empty(), "a stopped VM has no right to its disks");
}

#[test]
fn pools_of_other_datacentres_are_not_told() {
    let mut world = three();
    let mut object = (*world.view.pools[&name("local")].spec.as_ref().unwrap().value).clone();
    object.spec.datacentre = Some(name("elsewhere"));
    world.put(Key::spec(Kind::Pool, &name("local")), &object);
    let pools: Vec<Name> = told(&world, "a1").pools.into_iter().map(|pool| pool.name).collect();
    assert_eq!(pools, [name("san"), name("shared")]);
}

#[test]
fn a_volume_is_told_to_its_maker_with_who_has_it_open_there() {
    let mut world = three().vm("web", Bytes::mib(64));
    world.settle();
    let volume = |world: &World| told(world, "a1").volumes.into_iter().next().unwrap();
    assert_eq!(
        (volume(&world).name, volume(&world).in_use_by, volume(&world).purpose),
        (name("web-boot"), None, Purpose::Keep)
    );
    assert!(told(&world, "a2").volumes.is_empty());
    world.report("web", "a1", 1, CopyState::Running);
    assert_eq!(volume(&world).in_use_by, world.view.vms[&name("web")].meta().map(|meta| meta.uid));
    world.report("web", "a1", 1, CopyState::Stopped { exit: Exit::GuestShutdown });
    assert_eq!(volume(&world).in_use_by, None);
    let mut object = (*world.view.volumes[&name("web-boot")].spec.as_ref().unwrap().value).clone();
    object.meta.deleting = Some(world.now);
    world.put(Key::spec(Kind::Volume, &name("web-boot")), &object);
    assert_eq!(volume(&world).purpose, Purpose::Remove);
}

#[test]
fn power_is_what_was_asked_for_unless_the_vm_is_on_the_move_or_goes() {
    let mut world = three().vm("web", Bytes::mib(64));
    world.all_run();
    let power = |world: &World| match role(world, "a1") {
        Some(Role::Owner(owner)) => (owner.power, owner.outgoing.map(|outgoing| outgoing.cancel)),
        other => panic!("{other:?}"),
    };
    for asked in [Power::Paused, Power::Stopped, Power::Off, Power::Running] {
        world.change_vm("web", |object| object.spec.power = asked);
        assert_eq!(power(&world), (asked, None));
    }
    world.migrate("m", "web", Some("a2"));
    world.settle();
    let listening = SideState::Listening { at: "10.0.0.12:4000".into(), line: None };
    world.report_side("web", "a2", 2, CopyState::Incoming, Some(("m", listening)));
    world.settle();
    assert_eq!(power(&world), (Power::Running, Some(false)));
    let now = world.now;
    world.change_vm("web", |object| object.meta.deleting = Some(now));
    assert_eq!(power(&world), (Power::Running, Some(true)), "one side ends it: first the move is called off");
    let kept = SideState::Kept { why: "cancelled".into() };
    world.report_side("web", "a1", 1, CopyState::Running, Some(("m", kept)));
    world.settle();
    assert_eq!(power(&world), (Power::Off, None));
}

#[test]
fn a_stranger_with_a_process_is_released_under_its_own_epoch() {
    let mut world = three().vm("web", Bytes::mib(64));
    world.all_run();
    world.report("web", "a3", 1, CopyState::Running);
    let vms = told(&world, "a3").vms;
    assert_eq!(vms.iter().map(|vm| (vm.epoch, &vm.role)).collect::<Vec<_>>(), [(1, &Role::Release)]);
    world.report("web", "a3", 1, CopyState::Stopped { exit: Exit::Released });
    assert!(told(&world, "a3").vms.is_empty());
}

/// Whether the host may start a copy of `web` that ends unasked again, without asking.
fn restarts_here(world: &World, host: &str) -> Option<u32> {
    match role(world, host) {
        Some(Role::Owner(owner)) => owner.restart_here,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_host_may_restart_what_crashes_unless_something_newer_decides() {
    let mut world = scene::running();
    assert_eq!(restarts_here(&world, "a1"), Some(0));
    world.change_vm("web", |object| object.spec.restart = RestartPolicy::Never);
    assert_eq!(restarts_here(&world, "a1"), None);
    world.change_vm("web", |object| object.spec.restart = RestartPolicy::OnFailure);
    world.change_vm("web", |object| object.spec.power_request += 1);
    assert_eq!(restarts_here(&world, "a1"), None, "a later start was asked for");
    for power in [Power::Stopped, Power::Off] {
        let mut world = scene::running();
        world.change_vm("web", |object| object.spec.power = power);
        assert_eq!(restarts_here(&world, "a1"), None, "{power:?}");
    }
    assert_eq!(restarts_here(&scene::preparing(), "a1"), None);
    assert_eq!(restarts_here(&scene::copying(), "a1"), None);
    assert_eq!(restarts_here(&scene::resuming(), "a2"), None);
    let mut world = scene::running();
    world.report("web", "a1", 1, scene::crash());
    world.settle();
    assert_eq!((world.owner("web").1, restarts_here(&world, "a1")), (2, Some(1)), "it counts on");
}
