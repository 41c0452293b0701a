//! Addresses on overlays, each given once.

mod world;

use sterna_base::units::Bytes;
use sterna_model::key::{Column, Key, Kind};
use sterna_model::vm::NicSpec;
use world::scene::{crash, message};
use world::{World, name};

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
