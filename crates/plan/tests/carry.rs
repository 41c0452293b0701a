//! Moves whose volumes go along: where they are at each step, and who may open them.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

mod world;

use sterna_base::units::{Bytes, Span};
use sterna_model::key::Kind;
use sterna_model::line::{DiskLine, Line, LineKey};
use sterna_model::meta::Name;
use sterna_model::migration::{Outcome, Phase, SideState, Via};
use sterna_model::pool::{PoolKind, PoolSpec};
use sterna_model::vm::{CopyState, Exit};
use sterna_model::volume::{Location, VolumeDecision};
use sterna_plan::assignment::assignment;
use sterna_plan::{check, placement};
use sterna_wire::assignment::{Carry, Purpose, Role};
use world::{World, name};

fn at(pool: &str, host: &str) -> Location {
    Location { pool: name(pool), host: name(host) }
}

fn volume(world: &World) -> VolumeDecision {
    (*world.view.volumes[&name("web-boot")].decision.as_ref().unwrap().value).clone()
}

/// What a host is told to do with the volume, by pool.
fn purposes(world: &World, host: &str) -> Vec<(Name, Purpose)> {
    let told = assignment(&world.view, &name(host)).volumes;
    told.into_iter().filter(|it| it.name == name("web-boot")).map(|it| (it.pool, it.purpose)).collect()
}

fn role(world: &World, host: &str) -> Option<Role> {
    assignment(&world.view, &name(host)).vms.into_iter().next().map(|vm| vm.role)
}

/// `web` runs on a1 from that host's own disk.
fn running() -> World {
    let mut world = World::new().host("a1", Bytes::gib(8)).host("a2", Bytes::gib(4));
    world.add_vm("web", Bytes::mib(64), Some("local"));
    world.all_run();
    let (owner, _) = world.owner("web");
    assert_eq!(owner, "a1");
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
    let listening = Some(("m", SideState::Listening { at: "10.0.0.12:4000".into(), line: None }));
    world.report_side("web", "a2", 2, CopyState::Incoming, listening);
    world.settle();
    world.report_side("web", "a1", 1, CopyState::Running, Some(("m", SideState::Sending)));
    world.settle();
    assert!(matches!(world.phase("m"), Phase::Copying { .. }));
    world
}

fn resuming() -> World {
    let mut world = copying();
    let outcome = Outcome { downtime: Some(Span::from_millis(20)), ..Outcome::default() };
    let released = Some(("m", SideState::Released { outcome }));
    world.report_side("web", "a1", 1, CopyState::Paused { why: "sent".into() }, released);
    world.settle();
    assert_eq!(world.phase("m"), Phase::Resuming { epoch: 2 });
    world
}

#[test]
fn a_volume_arrives_where_the_target_opens_it_and_stays_the_owners_until_the_handover() {
    let world = preparing();
    assert_eq!(volume(&world).location(), at("local", "a1"));
    assert_eq!(volume(&world).arriving, Some(at("local", "a2")));
    assert_eq!(purposes(&world, "a1"), [(name("local"), Purpose::Keep)]);
    assert_eq!(purposes(&world, "a2"), [(name("local"), Purpose::Arrive)]);
    let Some(Role::Incoming { carry: Some(carry), machine, .. }) = role(&world, "a2") else { panic!() };
    let session = world.view.migrations[&name("m")].meta().unwrap().uid;
    let expected = Carry { session, peer: name("a2"), disks: vec![0], straight: true, siblings: vec![] };
    assert_eq!(carry, expected);
    assert_eq!(machine.disks[0].pool, name("local"));
    let world = copying();
    let Some(Role::Owner(owner)) = role(&world, "a1") else { panic!() };
    assert_eq!(owner.outgoing.unwrap().carry, Some(carry).map(|carry| Carry { session, ..carry }));
    let decision = world.view.migrations[&name("m")].decision.as_ref().unwrap();
    assert_eq!(decision.via, Via::Direct);
    let why = "memory and disks straight from host to host: volume web-boot goes from pool local to pool local; \
               encrypted by QEMU over 2 connections";
    assert!(decision.method.starts_with(why), "{}", decision.method);
}

#[test]
fn the_handover_moves_volume_and_owner_together_and_the_old_copy_waits_until_the_end() {
    let mut world = resuming();
    assert_eq!(world.owner("web"), ("a2".into(), 2));
    assert_eq!(volume(&world).location(), at("local", "a2"));
    assert_eq!(volume(&world).leaving, Some(at("local", "a1")));
    assert!(purposes(&world, "a1").is_empty(), "the guest may have to go back");
    assert_eq!(purposes(&world, "a2"), [(name("local"), Purpose::Keep)]);
    let continued = Some(("m", SideState::Continued { loading: None, answered: None }));
    world.report_side("web", "a2", 2, CopyState::Running, continued);
    world.settle();
    world.report("web", "a1", 1, CopyState::Stopped { exit: Exit::Released });
    world.settle();
    assert_eq!(world.phase("m"), Phase::Succeeded);
    let gap = |world: &World| {
        let decision = world.view.migrations[&name("m")].decision.as_ref().unwrap();
        decision.outcome.as_ref().unwrap().gap
    };
    assert_eq!(gap(&world), None);
    let answered = Some(Span::from_millis(70));
    let continued = Some(("m", SideState::Continued { loading: None, answered }));
    world.report_side("web", "a2", 2, CopyState::Running, continued);
    world.settle();
    assert_eq!(gap(&world), Some(Span::from_millis(90)), "20 ms of pause, 70 until it answered");
    assert_eq!(volume(&world).former, [at("local", "a1")]);
    assert!(!volume(&world).is_moving());
    assert_eq!(purposes(&world, "a1"), [(name("local"), Purpose::Shelve)]);
}

#[test]
fn a_target_lost_in_the_handover_gives_volume_and_guest_back_together() {
    let mut world = resuming();
    world.report("web", "a2", 2, CopyState::Stopped { exit: Exit::Crashed { why: "signal 9".into() } });
    world.settle();
    assert!(matches!(world.phase("m"), Phase::Returning { .. }));
    let (owner, epoch) = world.owner("web");
    assert_eq!((owner.as_str(), volume(&world).location()), ("a1", at("local", "a1")));
    world.report("web", "a1", epoch, CopyState::Running);
    world.settle();
    assert!(matches!(world.phase("m"), Phase::Failed { .. }));
    assert_eq!((volume(&world).is_moving(), volume(&world).former), (false, vec![at("local", "a2")]));
}

#[test]
fn a_move_that_is_called_off_leaves_the_volume_where_it_is() {
    let mut world = preparing();
    world.cancel("m");
    world.settle();
    world.report("web", "a2", 2, CopyState::Stopped { exit: Exit::Released });
    world.settle();
    assert_eq!(world.phase("m"), Phase::Cancelled);
    assert_eq!(volume(&world).location(), at("local", "a1"));
    assert_eq!(
        purposes(&world, "a2"),
        [(name("local"), Purpose::Shelve)],
        "what arrived helps the next time"
    );
}

#[test]
fn a_preseed_leaves_the_guest_and_puts_the_copies_where_the_move_will_find_them() {
    let mut world = running();
    world.preseed("m", "web", "a2");
    world.settle();
    let listening = Some(("m", SideState::Listening { at: "10.0.0.12:4000".into(), line: None }));
    world.report_side("web", "a2", 2, CopyState::Incoming, listening);
    world.settle();
    let Some(Role::Owner(owner)) = role(&world, "a1") else { panic!("a1 owns it") };
    assert!(owner.outgoing.is_some_and(|outgoing| outgoing.seed && outgoing.is_carried()));
    assert_eq!(way(&world, "m").0, Via::Mover, "what is there already is compared, also by the next one");
    let seeded = Some(("m", SideState::Seeded { outcome: Outcome::default() }));
    world.report_side("web", "a1", 1, CopyState::Running, seeded);
    world.settle();
    assert!(matches!(world.phase("m"), Phase::Undoing { seeded: true, .. }));
    world.report("web", "a2", 2, CopyState::Stopped { exit: Exit::Released });
    world.settle();
    assert_eq!(world.phase("m"), Phase::Succeeded);
    assert_eq!(world.owner("web"), ("a1".into(), 1));
    assert_eq!(
        (volume(&world).location(), volume(&world).former),
        (at("local", "a1"), vec![at("local", "a2")])
    );
    assert_eq!(purposes(&world, "a2"), [(name("local"), Purpose::Shelve)]);
    world.migrate("m2", "web", Some("a2"));
    world.settle();
    assert_eq!(purposes(&world, "a2"), [(name("local"), Purpose::Arrive)]);
    let (via, method) = way(&world, "m2");
    assert_eq!(via, Via::Mover);
    assert!(method.contains("host a2 has a former copy of volume web-boot"), "{method}");
}

fn way(world: &World, migration: &str) -> (Via, String) {
    let decision = world.view.migrations[&name(migration)].decision.as_ref().unwrap();
    (decision.via, decision.method.clone())
}

#[test]
fn disks_go_straight_but_to_another_datacentre_or_where_a_former_copy_lies() {
    let mut world = running();
    world.add_host("a3", Bytes::gib(4));
    world.spec(Kind::Datacentre, "far", sterna_model::datacentre::DatacentreSpec::default());
    world.add_host("b1", Bytes::gib(4));
    world.change_host("b1", |spec| spec.datacentre = name("far"));
    let held = VolumeDecision { former: vec![at("local", "a3")], ..volume(&world) };
    world.put(sterna_model::key::Key::decision(Kind::Volume, &name("web-boot")), &held);
    let ways = [
        ("a2", Via::Direct, "memory and disks straight from host to host"),
        (
            "a3",
            Via::Mover,
            "through the mover: host a3 has a former copy of volume web-boot, and only what differs",
        ),
        ("b1", Via::Mover, "through the mover: the target is in datacentre far, volume web-boot goes"),
    ];
    for (host, via, why) in ways {
        let (vm, host) = (world.view.vm(&name("web")).unwrap(), name(host));
        let route = sterna_plan::route::route(&world.view, &vm, &world.view.host(&host).unwrap()).unwrap();
        assert_eq!(route.via, via, "{host}: {}", route.why);
        assert!(route.why.starts_with(why), "{host}: {}", route.why);
        let ahead = route.ahead();
        assert_eq!((ahead.via, ahead.channels), (Via::Mover, 0), "{host}: {}", ahead.why);
    }
}

#[test]
fn the_source_is_told_where_the_target_takes_its_disks_in_and_memory_alone_is_no_such_move() {
    let mut world = preparing();
    let disks = DiskLine { port: 4001, word: LineKey::new([7; 32]), blank: vec![0] };
    let line = Some(Line { key: None, channels: 2, disks: Some(disks) });
    let listening = SideState::Listening { at: "10.0.0.12:4000".into(), line: line.clone() };
    world.report_side("web", "a2", 2, CopyState::Incoming, Some(("m", listening)));
    world.settle();
    let Some(Role::Owner(owner)) = role(&world, "a1") else { panic!("a1 owns it") };
    let outgoing = owner.outgoing.unwrap();
    let there = line.as_ref().and_then(|line| line.disks.as_ref()).unwrap();
    assert_eq!(outgoing.straight_disks(), Some((&[0][..], there)));
    assert!(!outgoing.is_carried());
    // The target's agent is an older one, which has the mover listen.
    let outgoing = sterna_wire::assignment::Outgoing { line: None, ..outgoing };
    assert!(outgoing.is_carried() && outgoing.straight_disks().is_none());
}

#[test]
fn where_every_volume_is_in_reach_there_is_nothing_to_preseed() {
    let mut world = World::new().host("a1", Bytes::gib(8)).host("a2", Bytes::gib(4));
    world.add_vm("web", Bytes::mib(64), None);
    world.all_run();
    let to = if world.owner("web").0 == "a1" { "a2" } else { "a1" };
    world.preseed("m", "web", to);
    world.settle();
    let Phase::Failed { why } = world.phase("m") else { panic!("{:?}", world.phase("m")) };
    assert!(why.contains("opens every volume where it is"), "{why}");
}

#[test]
fn a_volume_between_two_places_does_not_grow_until_it_has_one() {
    let mut world = preparing();
    let mut object = (*world.view.volumes[&name("web-boot")].spec.as_ref().unwrap().value).clone();
    object.spec.size = Some(Bytes::gib(2));
    world.put(sterna_model::key::Key::spec(Kind::Volume, &name("web-boot")), &object);
    world.settle();
    assert_ne!(volume(&world).size, Bytes::gib(2));
    world.cancel("m");
    world.settle();
    world.report("web", "a2", 2, CopyState::Stopped { exit: Exit::Released });
    world.settle();
    assert_eq!(volume(&world).size, Bytes::gib(2));
}

#[test]
fn by_itself_a_vm_leaves_its_datacentre_never_and_carries_volumes_only_when_it_must() {
    let mut world = running();
    world.spec(Kind::Datacentre, "far", sterna_model::datacentre::DatacentreSpec::default());
    world.add_host("b1", Bytes::gib(64));
    world.change_host("b1", |spec| spec.datacentre = name("far"));
    world.settle();
    let vm = world.view.vm(&name("web")).unwrap();
    let chosen = |datacentre: Option<&Name>| placement::choose_move(&world.view, &vm, datacentre).unwrap().0;
    assert_eq!(chosen(None), name("a2"));
    assert_eq!(chosen(Some(&name("far"))), name("b1"));
    assert_eq!(check::migration(&world.view, &vm, &name("b1")), Ok(()), "but it may be told to");
}

#[test]
fn a_pool_that_has_failed_at_the_target_is_no_reason_to_copy_its_volumes_elsewhere() {
    let mut world =
        World::new().host("a1", Bytes::gib(8)).host("a2", Bytes::gib(4)).vm("web", Bytes::mib(64));
    world.all_run();
    world.report_host("a2", |report| {
        report
            .pools
            .insert(name("shared"), sterna_model::host::PoolSeen::Failed { why: "not mounted".into() });
    });
    world.settle();
    let vm = world.view.vm(&name("web")).unwrap();
    let why = check::migration(&world.view, &vm, &name("a2")).unwrap_err();
    assert_eq!(why, ["host a2: pool shared is not usable there: not mounted"]);
}

#[test]
fn a_volume_of_a_served_pool_is_open_to_each_side_where_that_side_uses_it() {
    let mut world = World::new().host("a1", Bytes::gib(8)).host("a2", Bytes::gib(4));
    world.spec(Kind::Datacentre, "far", sterna_model::datacentre::DatacentreSpec::default());
    let kind = PoolKind::Nbd { host: name("a1"), path: "/san".into() };
    let spec = PoolSpec { kind, datacentre: Some(name("dc")), default: false };
    world.spec(Kind::Pool, "san", spec);
    world.add_host("b1", Bytes::gib(4));
    world.change_host("b1", |spec| spec.datacentre = name("far"));
    world.report_host("b1", |report| drop(report.pools.remove(&name("san"))));
    world.add_vm("web", Bytes::mib(64), Some("san"));
    world.all_run();
    world.migrate("m", "web", Some("b1"));
    world.settle();
    assert_eq!(world.phase("m"), Phase::Preparing);
    assert_eq!(volume(&world).arriving, Some(at("shared", "b1")));
    let exports = |world: &World| {
        let pools = assignment(&world.view, &name("a1")).pools;
        let pool = pools.into_iter().find(|pool| pool.name == name("san")).unwrap();
        pool.exports.into_iter().map(|export| export.epoch).collect::<Vec<_>>()
    };
    assert_eq!(exports(&world), [1], "the target has its own copy");
    let listening = Some(("m", SideState::Listening { at: "10.0.0.12:4000".into(), line: None }));
    world.report_side("web", "b1", 2, CopyState::Incoming, listening);
    world.settle();
    let (owner, epoch) = world.owner("web");
    let released = Some(("m", SideState::Released { outcome: Outcome::default() }));
    world.report_side("web", &owner, epoch, CopyState::Paused { why: "sent".into() }, released);
    world.settle();
    assert_eq!(world.phase("m"), Phase::Resuming { epoch: 2 });
    assert_eq!(exports(&world), [1], "the source may get the guest back");
    let continued = Some(("m", SideState::Continued { loading: None, answered: None }));
    world.report_side("web", "b1", 2, CopyState::Running, continued);
    world.settle();
    world.report("web", &owner, epoch, CopyState::Stopped { exit: Exit::Released });
    world.settle();
    assert!(exports(&world).is_empty(), "what it had there is open to nobody");
}

/// Who waits for a line to come back cannot know that nobody is there any more.
#[test]
fn a_source_is_told_to_stop_when_its_target_has_ended() {
    let mut world = copying();
    let ordered = |world: &World| match role(world, "a1") {
        Some(Role::Owner(owner)) => owner.outgoing.map(|outgoing| outgoing.cancel),
        _ => None,
    };
    assert_eq!(ordered(&world), Some(false));
    world.report("web", "a2", 2, CopyState::Stopped { exit: Exit::Crashed { why: "exit code 1".into() } });
    world.settle();
    assert_eq!(ordered(&world), Some(true));
    let kept = Some(("m", SideState::Kept { why: "cancelled".into() }));
    world.report_side("web", "a1", 1, CopyState::Running, kept);
    world.settle();
    let Phase::Failed { why } = world.phase("m") else { panic!("it is {:?}", world.phase("m")) };
    assert!(why.contains("the target was lost") && why.contains("exit code 1"), "{why}");
}
