//! Room for what a loss leaves behind: who gets it, and what is said of those who do not.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

mod world;

use std::collections::BTreeSet;

use sterna_base::units::Bytes;
use sterna_model::cluster::ClusterSpec;
use sterna_model::key::Kind;
use sterna_model::loss::{Fate, Loss};
use sterna_model::vm::{CopyState, Exit, Power, Priority, RestartPolicy};
use sterna_plan::reserve;
use world::scene::{crash, message, remove_host};
use world::{World, name};

/// Hosts with room for two VMs of half a gibibyte each.
fn full(hosts: &[&str], losses: Option<u32>) -> World {
    let mut world = hosts.iter().fold(World::new(), |world, host| world.host(host, Bytes::gib(2)));
    keep(&mut world, losses);
    world
}

fn keep(world: &mut World, reserve: Option<u32>) {
    let spec = ClusterSpec { datacentre: name("dc"), cpu_model: None, reserve };
    world.spec(Kind::Cluster, "dc", spec);
    world.settle();
}

fn half(world: &mut World, vm: &str) {
    world.add_vm(vm, Bytes::mib(512), None);
    world.all_that_can_run();
}

fn lose(world: &World, hosts: &[&str]) -> Loss {
    let lost: BTreeSet<_> = hosts.iter().map(|host| name(host)).collect();
    reserve::after_loss(&world.view, &lost, world.now)
}

fn fates(loss: &Loss) -> Vec<(String, &'static str, String)> {
    let host = |fate: &Fate| match fate {
        Fate::Restarts { host, .. } => host.to_string(),
        _ => String::new(),
    };
    loss.vms.iter().map(|it| (it.vm.to_string(), it.fate.word(), host(&it.fate))).collect()
}

fn is_placed(world: &World, vm: &str) -> bool {
    world.view.vms[&name(vm)].decision.is_some()
}

#[test]
fn one_loss_is_reserved_for_where_two_hosts_share_a_pool_and_none_elsewhere() {
    let mut world = full(&["a1"], None);
    assert_eq!(reserve::losses(&world.view, &name("dc")), 0, "there is nobody to take over");
    world.add_host("a2", Bytes::gib(2));
    assert_eq!(reserve::losses(&world.view, &name("dc")), 1);
    world.report_host("a2", |report| report.pools.retain(|pool, _| *pool == name("local")));
    assert_eq!(reserve::losses(&world.view, &name("dc")), 0, "what a1 has a2 cannot open");
    keep(&mut world, Some(2));
    assert_eq!(reserve::losses(&world.view, &name("dc")), 2, "as was asked for");
    assert_eq!(reserve::losses(&world.view, &name("elsewhere")), 0);
}

#[test]
fn a_start_that_would_break_the_reserve_waits_and_says_why() {
    let mut world = full(&["a1", "a2"], None);
    for vm in ["v0", "v1"] {
        half(&mut world, vm);
        assert!(is_placed(&world, vm));
    }
    half(&mut world, "v2");
    assert!(!is_placed(&world, "v2"));
    assert_eq!(
        message(&world, "v2"),
        "no host fits (a1: after a loss of a1 VM v2 would have no room (no host fits (a2: 608 MiB of memory needed, \
         320 MiB free)); cluster dc keeps room for 1 lost host; a2: after a loss of a2 VM v2 would have no room (no host \
         fits (a1: 608 MiB of memory needed, 320 MiB free)); cluster dc keeps room for 1 lost host)"
    );
    world.add_host("a3", Bytes::gib(2));
    world.settle();
    assert_eq!(world.owner("v2").0, "a3", "room has come");
}

#[test]
fn without_a_reserve_hosts_are_filled() {
    let mut world = full(&["a1", "a2"], Some(0));
    for vm in ["v0", "v1", "v2", "v3"] {
        half(&mut world, vm);
        assert!(is_placed(&world, vm), "{vm}");
    }
    let words: Vec<_> = lose(&world, &["a1"]).vms.iter().map(|it| it.fate.word()).collect();
    assert_eq!(words, ["lacks room", "lacks room"]);
}

#[test]
fn two_losses_need_room_for_two() {
    let mut world = full(&["a1", "a2", "a3"], Some(2));
    for vm in ["v0", "v1"] {
        half(&mut world, vm);
        assert!(is_placed(&world, vm), "{vm}");
    }
    half(&mut world, "v2");
    assert!(!is_placed(&world, "v2"), "two hosts with two VMs leave one with room for one more");
    assert!(message(&world, "v2").contains("keeps room for 2 lost hosts"), "{}", message(&world, "v2"));
    keep(&mut world, Some(1));
    assert!(is_placed(&world, "v2"));
}

#[test]
fn the_more_important_starts_first() {
    let mut world = full(&["a1", "a2"], None);
    half(&mut world, "v0");
    world.add_vm("a-first-by-name", Bytes::mib(512), None);
    world.add_vm("z-important", Bytes::mib(512), None);
    world.change_vm("z-important", |object| object.spec.priority = Priority::High);
    world.settle();
    assert!(is_placed(&world, "z-important"));
    assert!(!is_placed(&world, "a-first-by-name"));
}

#[test]
fn a_restart_may_use_what_is_reserved() {
    let mut world = full(&["a1", "a2"], Some(0));
    for vm in ["v0", "v1", "v2", "v3"] {
        half(&mut world, vm);
    }
    keep(&mut world, Some(1));
    let (host, epoch) = world.owner("v0");
    world.report("v0", &host, epoch, crash());
    world.settle();
    assert_eq!(world.owner("v0"), (host, epoch + 1));
}

#[test]
fn what_cannot_come_back_elsewhere_needs_no_room_there() {
    let mut world = full(&["a1", "a2"], None);
    for vm in ["v0", "v1", "v2", "v3"] {
        world.add_vm(vm, Bytes::mib(512), Some("local"));
        world.all_that_can_run();
        assert!(is_placed(&world, vm), "{vm}");
    }
}

#[test]
fn each_vm_of_a_lost_host_is_told_its_fate() {
    let mut world = World::new().host("a1", Bytes::gib(16));
    for (vm, pool) in [("disk", Some("local")), ("plain", None), ("served", Some("san")), ("once", None)] {
        world.add_vm(vm, Bytes::mib(512), pool);
    }
    world.add_vm("big", Bytes::gib(4), None);
    world.add_vm("dear", Bytes::mib(512), None);
    world.change_vm("dear", |object| object.spec.priority = Priority::High);
    world.change_vm("once", |object| object.spec.restart = RestartPolicy::Never);
    world.all_run();
    world.add_vm("off", Bytes::mib(512), None);
    world.change_vm("off", |object| object.spec.power = Power::Stopped);
    world.add_host("a2", Bytes::gib(2));
    world.settle();

    let loss = lose(&world, &["a1"]);
    let expected = [
        ("dear", "restarts", "a2"),
        ("big", "lacks room", ""),
        ("disk", "stays down", ""),
        ("once", "stays down", ""),
        ("plain", "restarts", "a2"),
        ("served", "stays down", ""),
    ];
    assert_eq!(fates(&loss), expected.map(|(vm, word, host)| (vm.to_owned(), word, host.to_owned())));
    let why = |vm: &str| loss.vms.iter().find(|it| it.vm == name(vm)).unwrap().fate.why();
    assert_eq!(why("disk"), "no host fits (a2: volume disk-boot is on the local disk of host a1)");
    assert_eq!(
        why("served"),
        "no host fits (a2: pool san is not usable there: host a1, which serves it, is lost)"
    );
    assert_eq!(why("once"), "it is not to be started again by itself (restart: never)");
    assert_eq!(why("big"), "no host fits (a2: 4192 MiB of memory needed, 928 MiB free)");
    assert_eq!(fates(&lose(&world, &["a2"])), []);
    let all = fates(&lose(&world, &["a1", "a2"]));
    assert!(all.iter().all(|(_, word, _)| *word == "stays down"), "{all:?}");
}

#[test]
fn what_is_foretold_is_what_then_happens() {
    let mut world =
        World::new().host("a1", Bytes::gib(4)).host("a2", Bytes::gib(4)).host("a3", Bytes::gib(4));
    for vm in ["v0", "v1", "v2", "v3", "v4", "v5"] {
        half(&mut world, vm);
    }
    let before = lose(&world, &["a1"]);
    assert!(!before.vms.is_empty());
    remove_host(&mut world, "a1");
    for it in &before.vms {
        let Fate::Restarts { host, .. } = &it.fate else { panic!("{it:?}") };
        assert_eq!(world.owner(it.vm.as_str()).0, host.to_string(), "{}", it.vm);
    }
}

#[test]
fn a_stopped_vm_frees_what_was_kept_for_it() {
    let mut world = full(&["a1", "a2"], None);
    for vm in ["v0", "v1", "v2"] {
        half(&mut world, vm);
    }
    assert!(!is_placed(&world, "v2"));
    let (host, epoch) = world.owner("v0");
    world.change_vm("v0", |object| object.spec.power = Power::Stopped);
    world.report("v0", &host, epoch, CopyState::Stopped { exit: Exit::Requested { forced: false } });
    world.settle();
    assert!(is_placed(&world, "v2"));
}
