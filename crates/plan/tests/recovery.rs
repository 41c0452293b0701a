//! The table of docs/flows/server-restore.md: what a restored store becomes, from what the hosts have.

mod world;

use proptest::prelude::*;
use sterna_base::units::Bytes;
use sterna_model::key::{Key, Kind};
use sterna_model::migration::{Outcome, Phase, SideState};
use sterna_model::store::{MAIN, Restored, StoreDecision, StoreSpec};
use sterna_model::vm::{CopyState, Exit, Owner, Power, VmDecision};
use sterna_model::volume::Location;
use sterna_plan::assignment::assignment;
use sterna_plan::recovery;
use sterna_wire::assignment::Role;
use uuid::Uuid;
use world::{World, name};

const NOW: Uuid = Uuid::from_u128(2);

/// Two hosts and `web`, which the store has on `a` under epoch 1.
fn world() -> World {
    let mut world = World::new().host("a", Bytes::gib(8)).host("b", Bytes::gib(8)).vm("web", Bytes::gib(1));
    world.all_run();
    // Whoever was chosen first: the store shall say `a`.
    let object = world.view.vms[&name("web")].decision.as_ref().expect("it runs").value.clone();
    let host = object.owner.host.to_string();
    if host != "a" {
        world.forget("web", &host);
        let owner = Owner { host: name("a"), epoch: object.owner.epoch };
        world.put(Key::decision(Kind::Vm, &name("web")), &VmDecision { owner, ..(*object).clone() });
        world.report("web", "a", 1, CopyState::Running);
    }
    assert_eq!(world.owner("web"), ("a".to_owned(), 1));
    world
}

/// The store is back from a backup: nobody has told it anything.
fn restore(world: &mut World) {
    let restored = Restored { at: world.now, taken: world.now, revision: 1, incarnation: None };
    let spec = StoreSpec { restored: Some(restored), ..StoreSpec::new(NOW) };
    world.spec(Kind::Store, MAIN, spec);
}

/// The host's rows are what is there from now on.
fn tells(world: &mut World, host: &str) {
    world.report_host(host, |report| report.told = Some(NOW));
}

fn all_tell(world: &mut World) {
    tells(world, "a");
    tells(world, "b");
}

fn decision(world: &World) -> StoreDecision {
    let entry = &world.view.stores[&name(MAIN)];
    (*entry.decision.as_ref().expect("every host has told").value).clone()
}

fn power(world: &World) -> Power {
    world.view.vms[&name("web")].spec.as_ref().expect("it is there").value.spec.power
}

/// What the host is told to be of `web`, and under which epoch.
fn role(world: &World, host: &str) -> Option<(Role, u64)> {
    let told = assignment(&world.view, &name(host));
    told.vms.into_iter().find(|vm| vm.name == name("web")).map(|vm| (vm.role, vm.epoch))
}

fn stopped(exit: Exit) -> CopyState {
    CopyState::Stopped { exit }
}

fn released() -> SideState {
    SideState::Released { outcome: Outcome::default() }
}

#[test]
fn nothing_is_done_until_the_last_host_has_told() {
    let mut world = world();
    // Each of these would be acted upon at once.
    world.add_vm("new", Bytes::gib(1), None);
    world.report("web", "a", 1, stopped(Exit::Lost));
    world.migrate("web-1", "web", Some("b"));
    restore(&mut world);
    tells(&mut world, "a");
    assert!(recovery::is_on(&world.view));
    assert_eq!(recovery::waits_for(&world.view), [name("b")]);
    assert_eq!(world.settle(), Vec::<String>::new());
    tells(&mut world, "b");
    world.settle();
    assert!(!recovery::is_on(&world.view));
    assert_eq!(world.owner("web"), ("a".to_owned(), 2), "lost is lost: started again as after any crash");
}

#[test]
fn a_store_that_is_right_recovers_without_a_word() {
    let mut world = world();
    restore(&mut world);
    all_tell(&mut world);
    world.settle();
    let decision = decision(&world);
    assert!(decision.ended.is_some() && decision.findings.is_empty(), "{decision:?}");
    assert_eq!((world.owner("web"), power(&world)), (("a".to_owned(), 1), Power::Running));
}

#[test]
fn a_vm_that_moved_since_stays_where_it_runs() {
    let mut world = world();
    restore(&mut world);
    world.forget("web", "a");
    world.report("web", "b", 2, CopyState::Running);
    all_tell(&mut world);
    world.settle();
    assert_eq!(world.owner("web"), ("b".to_owned(), 3));
    let findings = decision(&world).findings;
    assert_eq!(findings.len(), 1);
    assert_eq!(findings[0].stored, "to run, on host a under epoch 1");
    assert_eq!(findings[0].found, "a process on host b under epoch 2");
    assert_eq!(findings[0].done, "host b owns it under epoch 3");
    let Some((Role::Owner(owner), 3)) = role(&world, "b") else { panic!("b owns it") };
    assert_eq!(owner.adopts, Some(2));
    assert!(role(&world, "a").is_none());
    // It does, and later moves on as any other.
    world.report("web", "b", 3, CopyState::Running);
    assert_eq!(world.settle(), Vec::<String>::new());
}

#[test]
fn a_move_that_was_asked_for_before_the_backup_and_has_happened_since_does_not_happen_again() {
    // Recovered: it came here by the move that the store has yet to begin.
    let mut world = world();
    let side = SideState::Continued { loading: None, answered: None };
    world.report_side("web", "a", 1, CopyState::Running, Some(("web-1", side)));
    world.migrate("web-1", "web", Some("b"));
    world.settle();
    let Phase::Failed { why } = world.phase("web-1") else { panic!("{:?}", world.phase("web-1")) };
    assert!(why.contains("order it anew"), "{why}");
    assert_eq!(world.owner("web"), ("a".to_owned(), 1));
}

#[test]
fn a_vm_that_was_started_since_is_not_ended() {
    let mut world = world();
    world.change_vm("web", |object| object.spec.power = Power::Stopped);
    world.report("web", "a", 1, stopped(Exit::Requested { forced: false }));
    world.settle();
    restore(&mut world);
    world.report("web", "b", 4, CopyState::Running);
    world.forget("web", "a");
    all_tell(&mut world);
    world.settle();
    assert_eq!((world.owner("web"), power(&world)), (("b".to_owned(), 5), Power::Running));
}

#[test]
fn a_vm_that_the_store_never_started_is_found_running() {
    let mut world = world();
    world.add_vm("late", Bytes::gib(1), None);
    restore(&mut world);
    world.report("late", "b", 3, CopyState::Running);
    all_tell(&mut world);
    world.settle();
    assert_eq!(world.owner("late"), ("b".to_owned(), 4));
    let volume = world.view.volumes[&name("late-boot")].decision.as_ref();
    assert!(volume.is_some(), "its disk has a place");
}

#[test]
fn a_vm_that_was_stopped_since_stays_stopped() {
    let mut world = world();
    restore(&mut world);
    world.report("web", "a", 1, stopped(Exit::Requested { forced: false }));
    all_tell(&mut world);
    world.settle();
    assert_eq!((world.owner("web"), power(&world)), (("a".to_owned(), 1), Power::Stopped));
}

#[test]
fn a_crash_since_is_recovered_from_where_it_happened() {
    let mut world = world();
    restore(&mut world);
    world.forget("web", "a");
    world.report("web", "b", 5, stopped(Exit::Crashed { why: "signal 11".into() }));
    all_tell(&mut world);
    world.settle();
    assert_eq!(world.owner("web"), ("b".to_owned(), 6));
}

#[test]
fn what_nobody_has_is_not_started() {
    let mut world = world();
    restore(&mut world);
    world.forget("web", "a");
    all_tell(&mut world);
    world.settle();
    assert_eq!((world.owner("web"), power(&world)), (("a".to_owned(), 1), Power::Stopped));
    // A person may.
    world.change_vm("web", |object| {
        object.spec.power = Power::Running;
        object.spec.power_request += 1;
    });
    assert!(!recovery::is_on(&world.view));
}

#[test]
fn only_copies_that_were_given_up_start_nothing() {
    let mut world = world();
    restore(&mut world);
    world.report("web", "a", 3, stopped(Exit::Released));
    all_tell(&mut world);
    world.settle();
    assert_eq!((world.owner("web").1, power(&world)), (1, Power::Stopped));
}

#[test]
fn a_handover_that_the_store_does_not_know_is_finished() {
    let mut world = world();
    restore(&mut world);
    world.report_side("web", "a", 1, CopyState::Paused { why: "moved".into() }, Some(("web-9", released())));
    world.report_side("web", "b", 2, CopyState::Incoming, Some(("web-9", SideState::Loaded)));
    all_tell(&mut world);
    world.settle();
    assert_eq!(world.owner("web"), ("b".to_owned(), 2));
    let Some((Role::Owner(owner), 2)) = role(&world, "b") else { panic!("b owns it") };
    assert_eq!(owner.continues, Some(name("web-9")));
    assert_eq!(role(&world, "a"), Some((Role::Release, 1)));
}

#[test]
fn a_copy_that_was_let_go_for_nothing_goes_on_where_it_is() {
    let mut world = world();
    restore(&mut world);
    world.report_side("web", "a", 1, CopyState::Paused { why: "moved".into() }, Some(("web-9", released())));
    all_tell(&mut world);
    world.settle();
    assert_eq!(world.owner("web"), ("a".to_owned(), 2));
    let Some((Role::Owner(owner), 2)) = role(&world, "a") else { panic!("a owns it") };
    assert_eq!(owner.continues, Some(name("web-9")));
}

#[test]
fn a_copy_that_was_let_go_is_old_where_the_guest_ran_elsewhere_since() {
    let mut world = world();
    restore(&mut world);
    world.report_side("web", "a", 1, CopyState::Paused { why: "moved".into() }, Some(("web-9", released())));
    world.report("web", "b", 2, stopped(Exit::Crashed { why: "signal 11".into() }));
    all_tell(&mut world);
    world.settle();
    assert_eq!(world.owner("web").1, 3, "started anew from its disk");
    assert!(!matches!(role(&world, "a"), Some((Role::Owner(owner), _)) if owner.continues.is_some()));
}

#[test]
fn a_target_that_is_being_started_is_not_the_vm() {
    let mut world = world();
    restore(&mut world);
    world.report("web", "b", 2, CopyState::Starting { step: "prepares".into() });
    all_tell(&mut world);
    world.settle();
    assert_eq!(world.owner("web"), ("a".to_owned(), 1));
}

#[test]
fn a_move_that_the_store_does_not_know_is_waited_for() {
    let mut world = world();
    restore(&mut world);
    world.report_side("web", "a", 1, CopyState::Running, Some(("web-9", SideState::Sending)));
    all_tell(&mut world);
    world.settle();
    assert!(recovery::is_on(&world.view));
    let open = recovery::unsettled(&world.view, world.now);
    assert_eq!(open.len(), 1);
    assert!(open[0].1.contains("web-9"), "{open:?}");
    let kept = SideState::Kept { why: "the line broke".into() };
    world.report_side("web", "a", 1, CopyState::Running, Some(("web-9", kept)));
    world.settle();
    assert!(!recovery::is_on(&world.view));
    assert_eq!(world.owner("web"), ("a".to_owned(), 1));
}

#[test]
fn a_move_that_went_on_without_the_store_is_called_off_in_its_records() {
    let mut world = world();
    world.migrate("web-1", "web", Some("b"));
    world.settle();
    world.report_side("web", "b", 2, CopyState::Incoming, Some(("web-1", listening())));
    world.settle();
    assert!(matches!(world.phase("web-1"), Phase::Copying { .. }));
    restore(&mut world);
    // It succeeded, and then the VM went on to crash and be started again.
    world.forget("web", "a");
    world.report("web", "b", 3, CopyState::Running);
    all_tell(&mut world);
    world.settle();
    assert_eq!(world.owner("web"), ("b".to_owned(), 4));
    assert!(matches!(world.phase("web-1"), Phase::Failed { why } if why.contains("backup")));
}

#[test]
fn a_move_that_the_store_knows_goes_on() {
    let mut world = world();
    world.migrate("web-1", "web", Some("b"));
    world.settle();
    world.report_side("web", "b", 2, CopyState::Incoming, Some(("web-1", listening())));
    world.settle();
    restore(&mut world);
    world.report_side("web", "a", 1, CopyState::Paused { why: "moved".into() }, Some(("web-1", released())));
    world.report_side("web", "b", 2, CopyState::Incoming, Some(("web-1", SideState::Loaded)));
    all_tell(&mut world);
    world.settle();
    assert_eq!(world.owner("web"), ("b".to_owned(), 2));
    assert!(matches!(world.phase("web-1"), Phase::Resuming { .. }), "{:?}", world.phase("web-1"));
}

#[test]
fn a_move_that_no_host_speaks_of_any_more_is_called_off() {
    let mut world = world();
    world.migrate("web-1", "web", Some("b"));
    world.settle();
    world.report_side("web", "b", 2, CopyState::Incoming, Some(("web-1", listening())));
    world.settle();
    restore(&mut world);
    // It was cancelled, and so was another one since.
    world.forget("web", "b");
    let kept = SideState::Kept { why: "cancelled".into() };
    world.report_side("web", "a", 1, CopyState::Running, Some(("web-2", kept)));
    all_tell(&mut world);
    world.settle();
    assert_eq!(world.owner("web"), ("a".to_owned(), 1));
    assert!(matches!(world.phase("web-1"), Phase::Failed { .. }), "{:?}", world.phase("web-1"));
    assert!(decision(&world).findings[0].done.contains("called off"));
}

#[test]
fn a_start_that_its_host_has_not_heard_of_is_still_to_come() {
    let mut world = world();
    world.report("web", "a", 1, stopped(Exit::Lost));
    world.settle();
    assert_eq!(world.owner("web"), ("a".to_owned(), 2));
    restore(&mut world);
    all_tell(&mut world);
    world.settle();
    assert_eq!(world.owner("web"), ("a".to_owned(), 2));
    assert!(matches!(role(&world, "a"), Some((Role::Owner(_), 2))));
}

#[test]
fn a_guest_that_was_asked_to_shut_down_since_is_left_to_it() {
    let mut world = world();
    restore(&mut world);
    world.report("web", "a", 1, CopyState::ShuttingDown);
    all_tell(&mut world);
    world.settle();
    assert_eq!((world.owner("web"), power(&world)), (("a".to_owned(), 1), Power::Stopped));
}

fn listening() -> SideState {
    SideState::Listening { at: "10.0.0.12:4444".into(), line: None }
}

#[test]
fn a_host_that_is_not_waited_for_keeps_what_the_store_says_it_has() {
    let mut world = world();
    restore(&mut world);
    tells(&mut world, "b");
    world.settle();
    assert!(recovery::is_on(&world.view));
    let mut object = (*world.view.stores[&name(MAIN)].spec.as_ref().unwrap().value).clone();
    object.spec.without.insert(name("a"));
    world.put(Key::spec(Kind::Store, &name(MAIN)), &object);
    world.settle();
    assert!(!recovery::is_on(&world.view));
    assert_eq!((world.owner("web"), power(&world)), (("a".to_owned(), 1), Power::Running));
    assert!(role(&world, "b").is_none());
}

#[test]
fn local_disks_are_where_their_vm_runs() {
    let mut world = World::new().host("a", Bytes::gib(8)).host("b", Bytes::gib(8));
    world.add_vm("web", Bytes::gib(1), Some("local"));
    world.all_run();
    let (host, _) = world.owner("web");
    let other = if host == "a" { "b" } else { "a" };
    restore(&mut world);
    world.forget("web", &host);
    world.report("web", other, 2, CopyState::Running);
    all_tell(&mut world);
    world.settle();
    let volume = world.view.volumes[&name("web-boot")].decision.as_ref().unwrap().value.clone();
    assert_eq!(volume.location(), Location { pool: name("local"), host: name(other) });
    assert_eq!(volume.former, [Location { pool: name("local"), host: name(&host) }]);
    assert!(!volume.is_moving());
}

#[test]
fn a_store_that_was_never_restored_has_no_mode() {
    let mut world = world();
    world.spec(Kind::Store, MAIN, StoreSpec::new(NOW));
    assert!(!recovery::is_on(&world.view));
    let key = Key::spec(Kind::Store, &name(MAIN)).to_string();
    world.commit(&key, Some("{\"torn".to_owned()));
    assert!(recovery::is_on(&world.view), "nothing is concluded from what cannot be read");
    assert_eq!(world.settle(), Vec::<String>::new());
}

/// Anything that a host may say of its copy.
fn any_copy() -> impl Strategy<Value = Option<(u64, CopyState, Option<SideState>)>> {
    let state = prop_oneof![
        Just(CopyState::Running),
        Just(CopyState::Paused { why: "asked".into() }),
        Just(CopyState::Incoming),
        Just(CopyState::Starting { step: "prepares".into() }),
        Just(CopyState::ShuttingDown),
        Just(stopped(Exit::Lost)),
        Just(stopped(Exit::Released)),
        Just(stopped(Exit::GuestShutdown)),
        Just(stopped(Exit::Requested { forced: true })),
    ];
    let side = prop_oneof![
        Just(None),
        Just(Some(SideState::Loaded)),
        Just(Some(listening())),
        Just(Some(released())),
        Just(Some(SideState::Kept { why: "cancelled".into() })),
        Just(Some(SideState::Continued { loading: None, answered: None })),
    ];
    prop::option::of((1..5u64, state, side))
}

fn runs(copy: &(u64, CopyState, Option<SideState>)) -> bool {
    let (_, state, side) = copy;
    let is_guest = matches!(state, CopyState::Running | CopyState::Paused { .. } | CopyState::ShuttingDown);
    is_guest && !matches!(side, Some(SideState::Released { .. }))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the store says: the one copy that runs is its owner's and is told to go on, and nothing else starts.
    #[test]
    fn the_copy_that_runs_is_the_vm(
        copies in [any_copy(), any_copy(), any_copy()],
        is_stopped in any::<bool>(),
        stored in 0..3usize,
        stored_epoch in 1..6u64,
    ) {
        let mut world = world();
        world.add_host("c", Bytes::gib(8));
        let hosts = ["a", "b", "c"];
        let before = world.view.vms[&name("web")].decision.as_ref().unwrap().value.clone();
        let owner = Owner { host: name(hosts[stored]), epoch: stored_epoch };
        world.put(Key::decision(Kind::Vm, &name("web")), &VmDecision { owner, ..(*before).clone() });
        if is_stopped {
            world.change_vm("web", |object| object.spec.power = Power::Stopped);
        }
        restore(&mut world);
        world.forget("web", "a");
        for (host, copy) in hosts.iter().zip(&copies) {
            if let Some((epoch, state, side)) = copy {
                let side = side.clone().map(|side| ("web-9", side));
                world.report_side("web", host, *epoch, state.clone(), side);
            }
            tells(&mut world, host);
        }
        world.settle();
        prop_assert!(!recovery::is_on(&world.view));
        let running: Vec<_> =
            hosts.iter().zip(&copies).filter(|(_, copy)| copy.as_ref().is_some_and(runs)).collect();
        if let [(host, Some((epoch, ..)))] = running[..] {
            prop_assert_eq!(world.owner("web").0, *host);
            let Some((Role::Owner(owner), told)) = role(&world, host) else {
                return Err(TestCaseError::fail("its host is not told to go on"));
            };
            // As the store had it, or under an epoch that is above all that anybody speaks of.
            let highest = copies.iter().flatten().map(|(epoch, ..)| *epoch).max().unwrap_or(0).max(stored_epoch);
            let is_new = owner.adopts == Some(*epoch) && told > highest;
            prop_assert!(is_new || (owner.adopts.is_none() && told == *epoch), "{} {:?}", told, owner.adopts);
            let is_ending = copies.iter().flatten().any(|(_, state, _)| *state == CopyState::ShuttingDown);
            prop_assert!(owner.power.wants_process() || is_ending);
        }
        // Whoever owns it under an epoch that its host has not spoken of is started: never beside a guest that runs.
        let (host, epoch) = world.owner("web");
        let adopted = world.view.vms[&name("web")].decision.as_ref().unwrap().adopts;
        let epoch = adopted.unwrap_or(epoch);
        let is_spoken_of = hosts.iter().zip(&copies).any(|(at, copy)| {
            *at == host && copy.as_ref().is_some_and(|(has, ..)| *has == epoch)
        });
        let is_let_go = copies.iter().flatten().any(|(_, _, side)| matches!(side, Some(SideState::Released { .. })));
        prop_assert!(running.is_empty() || is_spoken_of || is_let_go, "{:?} {} {}", copies, host, epoch);
    }
}
