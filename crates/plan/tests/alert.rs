//! What fires, since when, and when it is over.

mod world;

use std::time::Duration;

use sterna_base::units::{Bytes, Span};
use sterna_model::alert::{AlertDecision, Severity};
use sterna_model::host::{LinkState, PoolSeen};
use sterna_model::key::{Key, Kind};
use sterna_model::store::{Backup, MAIN, Restored, StoreReport, StoreSpec};
use sterna_model::vm::{CopyState, Exit};
use uuid::Uuid;
use world::{World, name};

fn world() -> World {
    let mut world = World::new().host("a", Bytes::gib(8)).host("b", Bytes::gib(8)).vm("web", Bytes::gib(1));
    world.all_run();
    world
}

fn later(world: &mut World, seconds: u64) {
    world.now = world.now + Duration::from_secs(seconds);
    world.settle();
}

fn alert(world: &World, text: &str) -> Option<AlertDecision> {
    let entry = world.view.alerts.get(&name(text))?;
    assert!(entry.spec.is_some(), "people have something to acknowledge");
    entry.decision.as_ref().map(|row| (*row.value).clone())
}

/// Names of what fires.
fn firing(world: &World) -> Vec<String> {
    let firing = world
        .view
        .alerts
        .iter()
        .filter(|(_, entry)| entry.decision.as_ref().is_some_and(|decision| decision.resolved.is_none()));
    firing.map(|(name, _)| name.to_string()).collect()
}

fn silent(world: &mut World, host: &str) {
    let now = world.now;
    world.report_host(host, |report| (report.link, report.since) = (LinkState::Silent, now));
}

#[test]
fn nothing_fires_where_all_is_well() {
    let mut world = world();
    later(&mut world, 100_000);
    assert_eq!(firing(&world), Vec::<String>::new());
}

#[test]
fn a_silent_host_fires_after_a_minute_and_is_over_two_minutes_after_it_is_back() {
    let mut world = world();
    let (owner, _) = world.owner("web");
    silent(&mut world, &owner);
    later(&mut world, 59);
    assert_eq!(firing(&world), Vec::<String>::new());
    later(&mut world, 1);
    let name = format!("host-unreachable-{owner}");
    let began = alert(&world, &name).unwrap();
    assert_eq!((began.severity, began.since), (Severity::Critical, world.now));
    assert!(began.text.contains("nothing is known of the VM"), "{}", began.text);
    later(&mut world, 1000);
    assert_eq!(alert(&world, &name).unwrap(), began, "nothing new is nothing to write");

    let now = world.now;
    world.report_host(&owner, |report| (report.link, report.since) = (LinkState::Connected, now));
    later(&mut world, 1);
    assert_eq!(firing(&world), std::slice::from_ref(&name), "it may be gone again");
    // It is: the same alert, as if it had never been well.
    silent(&mut world, &owner);
    later(&mut world, 60);
    assert_eq!(alert(&world, &name).unwrap().since, began.since);
    let now = world.now;
    world.report_host(&owner, |report| (report.link, report.since) = (LinkState::Connected, now));
    later(&mut world, 0);
    later(&mut world, 120);
    assert_eq!(alert(&world, &name).unwrap().resolved, Some(world.now));
    // And forgotten after a week.
    later(&mut world, 7 * 86_400 + 1);
    assert!(world.view.alerts.get(&sterna_model::meta::Name::new(&name).unwrap()).is_none());
}

#[test]
fn a_host_without_vms_is_less_grave() {
    let mut world = world();
    let other = if world.owner("web").0 == "a" { "b" } else { "a" };
    silent(&mut world, other);
    later(&mut world, 60);
    assert_eq!(alert(&world, &format!("host-unreachable-{other}")).unwrap().severity, Severity::Warning);
}

#[test]
fn a_restart_that_nobody_asked_for_is_told_for_an_hour() {
    let mut world = world();
    let (host, epoch) = world.owner("web");
    world.report("web", &host, epoch, CopyState::Stopped { exit: Exit::Crashed { why: "signal 11".into() } });
    later(&mut world, 1);
    let (host, epoch) = world.owner("web");
    world.report("web", &host, epoch, CopyState::Running);
    later(&mut world, 1);
    let told = alert(&world, "vm-restarted-web").unwrap();
    assert!(told.text.contains("signal 11") && told.severity == Severity::Warning, "{told:?}");
    later(&mut world, 3600);
    later(&mut world, 120);
    assert!(alert(&world, "vm-restarted-web").unwrap().resolved.is_some());
}

#[test]
fn a_vm_that_fits_nowhere_says_why() {
    let mut world = world();
    world.add_vm("big", Bytes::gib(500), None);
    later(&mut world, 59);
    assert_eq!(firing(&world), Vec::<String>::new());
    later(&mut world, 1);
    let told = alert(&world, "vm-unplaced-big").unwrap();
    assert!(told.text.contains("no host fits") && told.severity == Severity::Critical, "{told:?}");
}

#[test]
fn a_shared_pool_is_one_and_a_local_one_is_each_hosts() {
    let mut world = world();
    for host in ["a", "b"] {
        world.report_host(host, |report| {
            for pool in ["shared", "local"] {
                let used = if (host, pool) == ("b", "local") { 95 } else { 85 };
                let seen = PoolSeen::Ready { capacity: Bytes::gib(9), port: None, used_percent: Some(used) };
                report.pools.insert(name(pool), seen);
            }
        });
    }
    world.settle();
    assert_eq!(firing(&world), ["pool-full-local-a", "pool-full-local-b", "pool-full-shared"]);
    assert_eq!(alert(&world, "pool-full-local-b").unwrap().severity, Severity::Critical);
    assert_eq!(alert(&world, "pool-full-shared").unwrap().severity, Severity::Warning);
}

#[test]
fn two_missing_backups_are_one_too_many() {
    let mut world = world();
    let begun = world.now;
    let every = Some(Span::from_secs(3600));
    let key = Key::report(Kind::Store, &name(MAIN));
    world.put(key.clone(), &StoreReport { every, since: begun, ..StoreReport::default() });
    later(&mut world, 7200);
    assert_eq!(firing(&world), Vec::<String>::new());
    later(&mut world, 60);
    assert!(alert(&world, "backup-old-main").unwrap().text.contains("there is no backup"));
    let backup = Some(Backup { taken: world.now, file: "x".into(), bytes: 1 });
    let report = StoreReport { every, since: begun, backup, failed: None };
    world.put(key.clone(), &report);
    later(&mut world, 0);
    later(&mut world, 120);
    assert!(alert(&world, "backup-old-main").unwrap().resolved.is_some());
    world.put(key.clone(), &StoreReport { failed: Some("no space left".into()), ..report.clone() });
    later(&mut world, 7200);
    assert!(alert(&world, "backup-old-main").unwrap().text.contains("no space left"));
    // Who takes none by the clock misses none.
    world.put(key, &StoreReport { every: None, ..report });
    later(&mut world, 0);
    later(&mut world, 120);
    assert_eq!(firing(&world), Vec::<String>::new());
}

#[test]
fn a_recovery_that_waits_says_for_whom() {
    let mut world = world();
    let restored = Restored { at: world.now, taken: world.now, revision: 1, incarnation: None };
    let spec = StoreSpec { restored: Some(restored), ..StoreSpec::new(Uuid::from_u128(9)) };
    world.spec(Kind::Store, MAIN, spec);
    later(&mut world, 59);
    assert_eq!(firing(&world), Vec::<String>::new());
    later(&mut world, 1);
    assert!(alert(&world, "recovery-waits-main").unwrap().text.contains("waits for a, b"));
    for host in ["a", "b"] {
        world.report_host(host, |report| report.told = Some(Uuid::from_u128(9)));
    }
    world.settle();
    later(&mut world, 0);
    later(&mut world, 120);
    assert_eq!(firing(&world), Vec::<String>::new());
}

#[test]
fn a_row_that_cannot_be_read_needs_a_person() {
    let mut world = world();
    world.commit("vm/default/web/spec", Some("{\"torn".to_owned()));
    world.settle();
    assert_eq!(firing(&world), ["unreadable-vm-default-web-spec"]);
    // One of the alerts' own fires nothing that could not be read in turn.
    world.commit("alert/unreadable-vm-default-web-spec/decision", Some("{\"torn".to_owned()));
    world.settle();
}

#[test]
fn a_name_is_a_name_whatever_the_object_is_called() {
    let long = "x".repeat(63);
    let mut world = World::new().host(&long, Bytes::gib(8));
    silent(&mut world, &long);
    later(&mut world, 60);
    let firing = firing(&world);
    assert_eq!(firing.len(), 1);
    assert!(firing[0].starts_with("host-unreachable-xxx") && firing[0].len() <= 63, "{firing:?}");
}
