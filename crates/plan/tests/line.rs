//! The line from one QEMU to the other: when it is encrypted, and who is told its key.

mod world;

use sterna_base::units::Bytes;
use sterna_model::line::{Line, LineKey};
use sterna_model::migration::{Outcome, SideState};
use sterna_model::vm::CopyState;
use sterna_plan::assignment::assignment;
use sterna_wire::assignment::Role;
use world::{World, name};

fn role(world: &World, host: &str) -> Option<(u64, Role)> {
    let found = assignment(&world.view, &name(host)).vms.into_iter().find(|vm| vm.name == name("web"))?;
    Some((found.epoch, found.role))
}

fn channels(world: &World) -> (u8, bool, String) {
    let decision = world.view.migrations[&name("m")].decision.as_ref().expect("it is decided");
    (decision.channels, decision.in_clear, decision.method.clone())
}

/// `web` is asked to move from a1 to a2, which are so.
fn asked_between(hosts: [(u32, &str); 2]) -> World {
    let mut world =
        World::new().host("a1", Bytes::gib(8)).host("a2", Bytes::gib(4)).vm("web", Bytes::mib(64));
    for (host, (cpus, qemu)) in ["a1", "a2"].into_iter().zip(hosts) {
        world.report_host(host, |report| (report.cpus, report.qemu_version) = (cpus, qemu.into()));
    }
    world.all_run();
    world.migrate("m", "web", Some("a2"));
    world.settle();
    world
}

#[test]
fn a_line_has_as_many_connections_as_both_hosts_have_processors_for() {
    let modern = "10.0.2";
    for (hosts, expected, why) in [
        ([(2, modern), (64, modern)], 2, "in clear over 2 connections: the smaller host has 2 CPUs"),
        ([(64, modern), (3, modern)], 2, "the smaller host has 3 CPUs"),
        (
            [(4, modern), (64, modern)],
            2,
            "encrypted by QEMU over 2 connections: each host has 4 CPUs or more",
        ),
        ([(12, modern), (64, "11.1.0")], 6, "over 6 connections"),
        ([(512, modern), (64, modern)], 8, "over 8 connections"),
        ([(64, "7.2.22"), (64, modern)], 0, "QEMU 7.2.22 on host a1 is older than 10.0"),
        ([(64, modern), (64, "9.2.4")], 0, "QEMU 9.2.4 on host a2 is older than 10.0"),
        ([(64, modern), (64, "a fork")], 0, "QEMU a fork on host a2 is older than 10.0"),
    ] {
        let (channels, in_clear, method) = channels(&asked_between(hosts));
        assert_eq!(channels, expected, "{hosts:?}: {method}");
        assert!(method.contains(why), "{hosts:?}: {method}");
        assert_eq!(method.contains("in clear"), in_clear, "{hosts:?}: {method}");
    }
}

#[test]
fn a_small_host_is_not_told_to_encrypt() {
    let world = asked_between([(2, "10.0.2"), (2, "10.0.2")]);
    let Some((2, Role::Incoming { channels: Some(2), in_clear: true, .. })) = role(&world, "a2") else {
        panic!("{:?}", role(&world, "a2"))
    };
}

#[test]
fn the_source_is_told_the_line_that_the_target_laid() {
    let mut world = asked_between([(4, "10.0.2"), (4, "10.0.2")]);
    let Some((2, Role::Incoming { channels: Some(2), in_clear: false, carry: None, .. })) =
        role(&world, "a2")
    else {
        panic!("{:?}", role(&world, "a2"))
    };
    let line = Some(Line { key: Some(LineKey::new([7; 32])), channels: 2, disks: None });
    let listening = SideState::Listening { at: "10.0.0.12:4000".into(), line: line.clone() };
    world.report_side("web", "a2", 2, CopyState::Incoming, Some(("m", listening)));
    world.settle();
    let told = |world: &World| match role(world, "a1") {
        Some((1, Role::Owner(owner))) => owner.outgoing.unwrap().line,
        other => panic!("{other:?}"),
    };
    assert_eq!(told(&world), line);
    // The order stays as it is, whatever the target says next.
    world.report_side("web", "a2", 2, CopyState::Incoming, Some(("m", SideState::Loaded)));
    world.settle();
    assert_eq!(told(&world), line);
    let released = SideState::Released { outcome: Outcome::default() };
    let state = CopyState::Paused { why: "sent away".into() };
    world.report_side("web", "a1", 1, state, Some(("m", released)));
    world.settle();
    let decision = world.view.migrations[&name("m")].decision.as_ref().unwrap();
    let stored = serde_json::to_string(&*decision.value).unwrap();
    assert!(!stored.contains(LineKey::new([7; 32]).digits()), "the key outlives its use");
}
