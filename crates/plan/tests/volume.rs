//! Where volumes go, and where networks and clusters stand when VMs come.

mod world;

use sterna_base::units::Bytes;
use sterna_model::cluster::ClusterSpec;
use sterna_model::host::{LinkState, PoolSeen};
use sterna_model::image::{Format, ImageReport};
use sterna_model::key::{Key, Kind};
use sterna_model::network::{NetworkKind, NetworkSpec};
use sterna_model::volume::{VolumeDecision, VolumeReport, VolumeSpec};
use sterna_plan::status;
use world::{World, name};

fn blank(pool: Option<&str>, size: Option<Bytes>) -> VolumeSpec {
    VolumeSpec { pool: pool.map(name), size, image: None, vm: None }
}

fn decision(world: &World, volume: &str) -> VolumeDecision {
    (*world.view.volumes[&name(volume)].decision.as_ref().expect("it was decided").value).clone()
}

fn two() -> World {
    World::new().host("a1", Bytes::gib(8)).host("a2", Bytes::gib(4))
}

#[test]
fn a_volume_goes_to_the_pool_asked_for_else_to_a_default_one() {
    let mut world = two();
    world.spec(Kind::Volume, "plain", blank(None, None));
    world.spec(Kind::Volume, "near", blank(Some("local"), Some(Bytes::gib(3))));
    world.settle();
    let plain = decision(&world, "plain");
    assert_eq!((plain.pool, plain.size, plain.format), (name("shared"), Bytes::gib(1), Format::Qcow2));
    let near = decision(&world, "near");
    assert_eq!((near.pool, near.host, near.size), (name("local"), name("a1"), Bytes::gib(3)));
}

#[test]
fn a_served_pool_makes_its_volumes_itself() {
    let mut world = two();
    world.change_host("a1", |spec| spec.cordoned = true);
    world.spec(Kind::Volume, "lun", blank(Some("san"), None));
    world.settle();
    assert_eq!(decision(&world, "lun").host, name("a1"), "a2 takes VMs; the files are on a1");
}

#[test]
fn a_volume_waits_while_no_host_can_make_it() {
    let mut world = two();
    for host in ["a1", "a2"] {
        world.report_host(host, |report| {
            report.pools.insert(name("local"), PoolSeen::Failed { why: "read-only".into() });
        });
    }
    world.spec(Kind::Volume, "near", blank(Some("local"), None));
    world.settle();
    assert!(world.view.volumes[&name("near")].decision.is_none());
    world.report_host("a2", |report| {
        report.pools.insert(
            name("local"),
            PoolSeen::Ready { capacity: Bytes::gib(1), port: None, used_percent: None },
        );
    });
    world.settle();
    assert_eq!(decision(&world, "near").host, name("a2"));
}

#[test]
fn a_clone_is_as_large_as_its_image_or_larger() {
    let mut world = two();
    for (volume, size) in
        [("same", None), ("smaller", Some(Bytes::mib(1))), ("larger", Some(Bytes::mib(100)))]
    {
        world.spec(Kind::Volume, volume, VolumeSpec { image: Some(name("tiny")), ..blank(None, size) });
    }
    world.settle();
    let size = |volume| decision(&world, volume).size;
    assert_eq!(["same", "smaller", "larger"].map(size), [Bytes::mib(64), Bytes::mib(64), Bytes::mib(100)]);
    assert_eq!(decision(&world, "same").image.unwrap().sha256, "0".repeat(64));
}

#[test]
fn each_lack_of_an_image_has_its_reason() {
    let mut world = two().vm("web", Bytes::mib(64));
    let message = |world: &World| status::vm(&world.view, &name("web"), world.now).unwrap().message;
    let key = Key::report(Kind::Image, &name("tiny"));
    for (report, why) in [
        (ImageReport::Waiting, "image tiny has not arrived yet"),
        (ImageReport::Failed { why: "404".into() }, "image tiny is not usable: 404"),
    ] {
        world.put(key.clone(), &report);
        world.settle();
        assert_eq!(message(&world), why);
    }
}

#[test]
fn a_volume_only_grows() {
    let mut world = two();
    world.spec(Kind::Volume, "data", blank(None, Some(Bytes::gib(2))));
    world.settle();
    for (asked, has) in [(Bytes::gib(1), Bytes::gib(2)), (Bytes::gib(5), Bytes::gib(5))] {
        let mut object = (*world.view.volumes[&name("data")].spec.as_ref().unwrap().value).clone();
        object.spec.size = Some(asked);
        world.put(Key::spec(Kind::Volume, &name("data")), &object);
        world.settle();
        assert_eq!(decision(&world, "data").size, has);
    }
}

#[test]
fn a_volume_that_could_not_be_made_keeps_its_vm_from_being_started_for_nothing() {
    let mut world = two().vm("web", Bytes::mib(64));
    world.settle();
    let key = Key::report(Kind::Volume, &name("web-boot"));
    world.put(key.clone(), &VolumeReport::Failed { why: "disk full".into() });
    let exit = sterna_model::vm::Exit::StartFailed { why: "no disk".into() };
    world.report("web", "a1", 1, sterna_model::vm::CopyState::Stopped { exit });
    world.settle();
    assert_eq!(world.owner("web").1, 1);
    let message = status::vm(&world.view, &name("web"), world.now).unwrap().message;
    let expected =
        "could not be started: no disk; not started again: volume web-boot could not be made: disk full";
    assert_eq!(message, expected);
    // The host goes on trying; once it could, the VM starts.
    world.put(key, &VolumeReport::Ready { size: Bytes::mib(64) });
    world.settle();
    assert_eq!(world.owner("web").1, 2);
}

#[test]
fn a_deleted_volume_goes_when_its_file_is_gone_and_never_on_a_guess() {
    let mut world = two();
    world.spec(Kind::Volume, "data", blank(None, None));
    world.settle();
    let delete = |world: &mut World, volume: &str| {
        let mut object = (*world.view.volumes[&name(volume)].spec.as_ref().unwrap().value).clone();
        object.meta.deleting = Some(world.now);
        world.put(Key::spec(Kind::Volume, &name(volume)), &object);
        world.settle();
    };
    let decided = Key::decision(Kind::Volume, &name("data")).to_string();
    let good = serde_json::to_string(&decision(&world, "data")).unwrap();
    world.commit(&decided, Some("{\"torn".into()));
    delete(&mut world, "data");
    assert!(world.view.volumes.contains_key("data"), "whether it was made cannot be read");
    world.commit(&decided, Some(good));
    assert!(world.settle().is_empty());
    world.put(Key::report(Kind::Volume, &name("data")), &VolumeReport::Gone);
    world.settle();
    assert!(!world.view.volumes.contains_key("data"));
}

#[test]
fn networks_get_identifiers_of_their_own_and_hosts_the_highest_addresses() {
    let mut world = two();
    let kind = NetworkKind::Overlay { cidr: "10.9.0.0/29".parse().unwrap() };
    world.spec(Kind::Network, "tiny", NetworkSpec { kind, default: false });
    world.settle();
    let laid_out = |world: &World, network: &str| {
        let decision = world.view.networks[&name(network)].decision.as_ref().unwrap();
        let hosts: Vec<_> =
            decision.hosts.iter().map(|(host, address)| format!("{host} {address}")).collect();
        (decision.vni, hosts)
    };
    assert_eq!(laid_out(&world, "default").0, 4096);
    assert_eq!(laid_out(&world, "tiny"), (4097, vec!["a1 10.9.0.6".to_owned(), "a2 10.9.0.5".to_owned()]));
    // A host that falls silent or cannot be read keeps its address; a removed one does not.
    world.report_host("a1", |report| report.link = LinkState::Silent);
    world.commit(&Key::spec(Kind::Host, &name("a1")).to_string(), Some("{\"torn".into()));
    assert!(world.settle().is_empty());
    world.remove(Key::spec(Kind::Host, &name("a1")));
    world.settle();
    assert_eq!(laid_out(&world, "tiny").1, ["a2 10.9.0.5"]);
}

#[test]
fn a_network_that_runs_out_gives_no_address_twice() {
    let mut world = World::new();
    let kind = NetworkKind::Overlay { cidr: "10.9.0.0/29".parse().unwrap() };
    world.spec(Kind::Network, "tiny", NetworkSpec { kind, default: false });
    for host in 1..=7 {
        world.add_host(&format!("a{host}"), Bytes::gib(2));
    }
    world.settle();
    let decision = world.view.networks[&name("tiny")].decision.as_ref().unwrap();
    let addresses: std::collections::BTreeSet<_> = decision.hosts.values().collect();
    assert_eq!((decision.hosts.len(), addresses.len()), (5, 5));
}

#[test]
fn a_cluster_runs_what_all_its_hosts_run() {
    let mut world = two();
    world.settle();
    let baseline = |world: &World| {
        let decision = world.view.clusters[&name("dc")].decision.as_ref().unwrap();
        (decision.baseline.cpu_model.clone(), decision.baseline.machine.clone(), decision.hosts.len())
    };
    assert_eq!(baseline(&world), ("qemu64".into(), "pc-q35-10.0".into(), 2));
    world.report_host("a2", |report| {
        report.cpu.machines = ["pc-q35-7.2".to_owned()].into();
    });
    let before = baseline(&world);
    world.settle();
    assert_eq!(baseline(&world), before, "nothing in common: what there was stays");
    world.report_host("a1", |report| {
        report.cpu.machines.insert("pc-q35-7.2".to_owned());
    });
    world.settle();
    assert_eq!(baseline(&world), ("qemu64".into(), "pc-q35-7.2".into(), 2));
    let spec = ClusterSpec { datacentre: name("dc"), cpu_model: Some("Haswell".into()), reserve: None };
    world.spec(Kind::Cluster, "dc", spec);
    world.settle();
    assert_eq!(baseline(&world).0, "Haswell", "a person's word goes first");
}

#[test]
fn a_drain_names_each_vm_that_cannot_move_and_why() {
    let mut world = World::new().host("a1", Bytes::gib(8));
    for vm in ["pinned", "stopping", "large"] {
        world.add_vm(vm, if vm == "large" { Bytes::gib(5) } else { Bytes::mib(64) }, None);
    }
    world.all_run();
    world.add_host("a2", Bytes::gib(4));
    world.change_vm("pinned", |object| object.spec.place.host = Some(name("a1")));
    world.report("stopping", "a1", 1, sterna_model::vm::CopyState::ShuttingDown);
    world.change_host("a1", |spec| spec.draining = true);
    world.settle();
    let host = world.view.host(&name("a1")).unwrap();
    let blockers: Vec<_> = sterna_plan::drain::blockers(&world.view, &host)
        .into_iter()
        .map(|(vm, why)| format!("{vm}: {why}"))
        .collect();
    let expected = [
        "large: no host fits (a2: 5216 MiB of memory needed, 3584 MiB free)",
        "pinned: no host fits (a2: the VM is pinned to host a1)",
        "stopping: the VM is not running; a stopped VM starts where it fits",
    ];
    assert_eq!(blockers, expected);
}
