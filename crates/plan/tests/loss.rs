//! Hosts that are lost: what is proven, what follows from it, and what does not.

#![allow(clippy::unwrap_used, reason = "tests")]

mod world;

use std::collections::BTreeSet;
use std::time::Duration;

use sterna_base::units::Bytes;
use sterna_model::ha::{
    ConfirmedDead, GuardKey, GuardSeen, Ha, HaState, HostDecision, LeaseSeen, Peer, Proof, VoterDecision,
};
use sterna_model::host::LinkState;
use sterna_model::key::{Column, Key, Kind};
use sterna_model::migration::{Outcome, Phase, SideState};
use sterna_model::store::{MAIN, Restored, StoreSpec};
use sterna_model::vm::{CopyState, Exit, RestartPolicy, VmReport};
use sterna_plan::action::Action;
use sterna_plan::assignment::assignment;
use sterna_plan::ha::fence::{self, Heard, Sight, Sights};
use sterna_plan::ha::voters::{self, Server};
use sterna_wire::assignment::Role;
use uuid::Uuid;
use world::{World, name};

const WITNESS: Uuid = Uuid::from_u128(0xff01);
const FENCER: Uuid = Uuid::from_u128(0xff02);

fn key() -> GuardKey {
    GuardKey::try_from("ab".repeat(32)).unwrap()
}

fn peer(name: &str) -> Peer {
    Peer { name: name.into(), key: key(), addresses: vec!["10.0.0.1:7450".parse().unwrap()] }
}

fn server() -> Server {
    Server { fencer: (FENCER, peer("server")), witness: Some((WITNESS, peer("witness"))) }
}

fn guard(question: Option<u128>, lease: LeaseSeen) -> GuardSeen {
    GuardSeen {
        key: key(),
        addresses: vec!["10.0.0.1:7450".parse().unwrap()],
        watchdog: "fake".into(),
        lease,
        configuration: Some(1),
        confirmed: None,
        asks: question.map(Uuid::from_u128),
        returned: None,
        trouble: None,
    }
}

/// What the leader does with what it hears, until nothing changes.
fn turns(world: &mut World, sights: &Sights) -> Vec<String> {
    let mut log = Vec::new();
    loop {
        let mut actions = fence::plan(&world.view, sights, world.now);
        actions.extend(voters::plan(&world.view, &server(), world.now));
        let before = log.len();
        actions.into_iter().for_each(|action| log.extend(commit(world, action)));
        log.extend(world.settle());
        if log.len() == before {
            return log;
        }
    }
}

/// Nothing, when what it compares has changed.
fn commit(world: &mut World, action: Action) -> Option<String> {
    let stands = action.compares.iter().all(|(key, revision)| world.view.revision_of(key) == *revision);
    stands.then(|| {
        for (key, value) in &action.puts {
            world.commit(&key.to_string(), Some(value.to_string()));
        }
        format!("{} {}: {}", action.event.name, action.event.what, action.event.why)
    })
}

fn set_guard(world: &mut World, host: &str, seen: GuardSeen) {
    world.report_host(host, |report| report.guard = Some(seen));
}

fn decision(world: &World, host: &str) -> HostDecision {
    let row = world.view.hosts[&name(host)].decision.as_ref();
    row.map(|row| (*row.value).clone()).unwrap_or_default()
}

fn voters_of(world: &World) -> VoterDecision {
    (*world.view.datacentres[&name("dc")].decision.as_ref().expect("there are voters").value).clone()
}

fn uid(world: &World, host: &str) -> Uuid {
    world.view.hosts[&name(host)].meta().unwrap().uid
}

/// Hosts that hold their first lease.
fn leased(hosts: &[&str]) -> World {
    let mut world = World::new();
    for host in hosts {
        world.add_host(host, Bytes::gib(8));
        set_guard(&mut world, host, guard(None, LeaseSeen::None));
    }
    turns(&mut world, &Sights::new());
    for host in hosts {
        hold(&mut world, host);
    }
    world
}

/// The guard asks, is answered, and gets its lease.
fn hold(world: &mut World, host: &str) {
    let question = u128::from(world.view.revision);
    let version = voters_of(world).version;
    let seen = |lease, asks| GuardSeen { configuration: Some(version), ..guard(asks, lease) };
    set_guard(world, host, seen(LeaseSeen::None, Some(question)));
    turns(world, &Sights::new());
    let epoch = decision(world, host).epoch;
    let held = GuardSeen { confirmed: Some(version), ..seen(LeaseSeen::Held { epoch }, None) };
    set_guard(world, host, held);
    turns(world, &Sights::new());
}

fn silent(world: &World, host: &str) -> (sterna_model::meta::Name, Sight) {
    let heard = Heard::Silent { for_so_long: Duration::from_secs(9), was_alive: true };
    (name(host), Sight { epoch: decision(world, host).epoch, heard, proof: None })
}

fn f3(configuration: u64) -> Proof {
    Proof::F3 { configuration, acks: vec![(WITNESS, 1), (FENCER, 2)], decided_at: 3 }
}

fn proven(world: &World, host: &str) -> (sterna_model::meta::Name, Sight) {
    let (host, sight) = silent(world, host);
    (host, Sight { proof: Some(f3(voters_of(world).version)), ..sight })
}

/// Power goes.
fn lose(world: &mut World, host: &str) -> Vec<String> {
    world.report_host(host, |report| report.link = LinkState::Silent);
    let sights = Sights::from([proven(world, host)]);
    turns(world, &sights)
}

/// `web` runs on a1, under its lease.
fn covered() -> World {
    let mut world = leased(&["a1", "a2"]);
    world.add_vm("web", Bytes::gib(1), None);
    world.all_run();
    assert_eq!(world.owner("web"), ("a1".into(), 1));
    world
}

fn epoch_of(world: &World, vm: &str) -> Option<u64> {
    world.view.vms[&name(vm)].decision.as_ref().unwrap().host_epoch
}

#[test]
fn two_hosts_and_the_server_grant_leases_and_one_host_alone_does_not() {
    let world = leased(&["a1", "a2"]);
    let voters = voters_of(&world);
    assert_eq!(voters.voters, BTreeSet::from([uid(&world, "a1"), uid(&world, "a2"), WITNESS]));
    assert_eq!((voters.version, voters.former), (1, None));
    assert_eq!((decision(&world, "a1").epoch, decision(&world, "a1").state), (1, HaState::Up));

    let mut alone = World::new().host("a1", Bytes::gib(8));
    set_guard(&mut alone, "a1", guard(Some(7), LeaseSeen::None));
    turns(&mut alone, &Sights::new());
    assert_eq!(decision(&alone, "a1").epoch, 0);
    assert!(alone.view.datacentres[&name("dc")].decision.is_none());
}

#[test]
fn an_epoch_answers_one_question_and_only_for_the_newest_voters() {
    let mut world = leased(&["a1", "a2"]);
    let again = decision(&world, "a1").answers.unwrap();
    set_guard(&mut world, "a1", GuardSeen { asks: Some(again), ..guard(None, LeaseSeen::None) });
    assert!(world.settle().is_empty(), "it was answered");
    set_guard(&mut world, "a1", GuardSeen { configuration: None, ..guard(Some(99), LeaseSeen::None) });
    assert!(world.settle().is_empty(), "its guard does not know who votes");
    set_guard(&mut world, "a1", GuardSeen { watchdog: "none".into(), ..guard(Some(99), LeaseSeen::None) });
    assert!(world.settle().is_empty(), "nothing would reset it");
    set_guard(&mut world, "a1", guard(Some(99), LeaseSeen::None));
    world.settle();
    assert_eq!(decision(&world, "a1").epoch, 2);
}

#[test]
fn voters_change_one_at_a_time_and_the_former_count_until_every_lease_rests_on_the_new() {
    let mut world = leased(&["a1", "a2"]);
    world.add_host("a3", Bytes::gib(8));
    set_guard(&mut world, "a3", guard(None, LeaseSeen::None));
    turns(&mut world, &Sights::new());
    let joint = voters_of(&world);
    assert_eq!(joint.version, 2);
    assert_eq!(joint.voters.len(), 4, "the server is still one of them");
    assert_eq!(joint.former.as_ref().map(|former| former.voters.len()), Some(3));
    let confirm = |world: &mut World, host: &str, version| {
        world.report_host(host, |report| report.guard.as_mut().unwrap().confirmed = Some(version));
        turns(world, &Sights::new());
    };
    confirm(&mut world, "a1", 2);
    assert!(voters_of(&world).former.is_some(), "a2 may rest on the former");
    confirm(&mut world, "a2", 2);
    let next = voters_of(&world);
    assert_eq!((next.version, next.voters.contains(&WITNESS)), (3, false), "three hosts need no other");
    confirm(&mut world, "a1", 3);
    confirm(&mut world, "a2", 3);
    assert_eq!((voters_of(&world).version, voters_of(&world).former), (3, None));
}

#[test]
fn a_vm_of_a_lost_host_runs_elsewhere_with_the_next_epoch_and_the_proof() {
    let mut world = covered();
    assert_eq!(epoch_of(&world, "web"), Some(1));
    let log = lose(&mut world, "a1");
    let words: Vec<_> = log.iter().map(|line| line.split(':').next().unwrap()).collect();
    let all = ["a1 suspect", "a1 fencing", "a1 fenced", "web recovered", "web-boot passed on"];
    assert_eq!(words, all, "its disk lies in a folder that a2 can care for");
    assert_eq!(world.owner("web"), ("a2".into(), 2));
    let after = world.view.vms[&name("web")].decision.as_ref().unwrap();
    let takeover = after.takeover.as_ref().unwrap();
    assert_eq!((takeover.from.as_str(), takeover.from_epoch, takeover.proof.as_str()), ("a1", 1, "F3"));
    assert_eq!(after.host_epoch, Some(decision(&world, "a2").epoch));
    assert_eq!(decision(&world, "a1").proof_for(1).unwrap().proof, f3(1));
    assert!(lose(&mut world, "a1").is_empty(), "said twice");
}

#[test]
fn a_proof_by_other_voters_proves_nothing() {
    let mut world = covered();
    world.report_host("a1", |report| report.link = LinkState::Silent);
    let (host, sight) = proven(&world, "a1");
    let sights = Sights::from([(host, Sight { proof: Some(f3(7)), ..sight })]);
    turns(&mut world, &sights);
    assert_eq!(decision(&world, "a1").state, HaState::Fencing);
    assert_eq!(world.owner("web"), ("a1".into(), 1));
    // Nor does one that was collected before the voters changed.
    let old = fence::plan(&world.view, &Sights::from([proven(&world, "a1")]), world.now);
    let changed = VoterDecision { version: 2, ..voters_of(&world) };
    world.put(Key::decision(Kind::Datacentre, &name("dc")), &changed);
    assert!(old.into_iter().all(|action| commit(&mut world, action).is_none()));
}

#[test]
fn silence_of_an_agent_or_of_too_few_voters_moves_nothing() {
    let mut world = covered();
    world.report_host("a1", |report| report.link = LinkState::Silent);
    for heard in [Heard::Unknown, Heard::Alive] {
        let sight = Sight { epoch: 1, heard, proof: Some(f3(1)) };
        assert!(turns(&mut world, &Sights::from([(name("a1"), sight)])).is_empty(), "{heard:?}");
    }
    let (host, sight) = silent(&world, "a1");
    let of_another = Sight { epoch: 9, ..sight };
    assert!(turns(&mut world, &Sights::from([(host, of_another)])).is_empty());
}

#[test]
fn a_host_that_is_heard_again_is_not_fenced() {
    let mut world = covered();
    let heard = Heard::Silent { for_so_long: Duration::from_millis(100), was_alive: true };
    let brief = Sight { epoch: 1, heard, proof: None };
    turns(&mut world, &Sights::from([(name("a1"), brief.clone())]));
    assert_eq!(decision(&world, "a1").state, HaState::Suspect);
    let heard = Heard::Silent { for_so_long: Duration::from_millis(8400), was_alive: true };
    turns(&mut world, &Sights::from([(name("a1"), Sight { heard, ..brief.clone() })]));
    assert_eq!(decision(&world, "a1").state, HaState::Suspect, "its lease is not over yet");
    turns(&mut world, &Sights::from([(name("a1"), Sight { heard: Heard::Alive, ..brief })]));
    assert_eq!(decision(&world, "a1").state, HaState::Up);
    assert_eq!(decision(&world, "a1").silent_since, None);
}

#[test]
fn a_host_that_may_still_renew_is_not_fenced() {
    let mut world = covered();
    // Of a lease of ten seconds one and a half had passed when it was suspected.
    for (millis, expected) in [(8_400, HaState::Suspect), (8_500, HaState::Fencing)] {
        let heard = Heard::Silent { for_so_long: Duration::from_millis(millis), was_alive: true };
        turns(&mut world, &Sights::from([(name("a1"), Sight { epoch: 1, heard, proof: None })]));
        assert_eq!(decision(&world, "a1").state, expected, "{millis}");
    }
}

#[test]
fn only_what_could_run_elsewhere_lives_under_the_lease() {
    let mut world = leased(&["a1", "a2"]);
    world.add_vm("shared", Bytes::gib(1), None);
    world.add_vm("local", Bytes::gib(1), Some("local"));
    world.add_vm("off", Bytes::gib(1), None);
    world.change_vm("off", |object| object.spec.ha = Some(Ha::Off));
    world.add_vm("once", Bytes::gib(1), None);
    world.change_vm("once", |object| object.spec.restart = RestartPolicy::Never);
    world.all_run();
    let has: Vec<_> = ["shared", "local", "off", "once"].map(|vm| epoch_of(&world, vm).is_some()).into();
    assert_eq!(has, [true, false, false, false]);
}

#[test]
fn a_running_copy_is_covered_once_its_guard_has_it_and_not_before() {
    let mut world = World::new().host("a1", Bytes::gib(8)).host("a2", Bytes::gib(8)).vm("web", Bytes::gib(1));
    world.all_run();
    let owner = world.owner("web").0;
    for host in ["a1", "a2"] {
        set_guard(&mut world, host, guard(None, LeaseSeen::None));
    }
    turns(&mut world, &Sights::new());
    hold(&mut world, "a1");
    hold(&mut world, "a2");
    assert_eq!(epoch_of(&world, "web"), None);
    let told = assignment(&world.view, &name(&owner));
    let Role::Owner(order) = &told.vms[0].role else { panic!() };
    assert_eq!(order.host_epoch, Some(1), "the agent is asked to list it");
    let row = world.view.vms[&name("web")].reports[&name(&owner)].clone();
    let listed = VmReport { lease: Some(1), ..(*row.value).clone() };
    world.put(Key::new(Kind::Vm, &name("web"), Column::ReportOf(name(&owner))), &listed);
    world.settle();
    assert_eq!(epoch_of(&world, "web"), Some(1));
    world.change_vm("web", |object| object.spec.ha = Some(Ha::Off));
    world.settle();
    assert_eq!(epoch_of(&world, "web"), None, "nobody takes it over any more");
}

#[test]
fn a_vm_under_no_lease_waits_for_a_person() {
    let mut world = leased(&["a1", "a2"]);
    world.add_vm("web", Bytes::gib(1), None);
    world.change_vm("web", |object| object.spec.ha = Some(Ha::Off));
    world.all_run();
    lose(&mut world, "a1");
    assert_eq!(decision(&world, "a1").state, HaState::Fenced);
    assert_eq!(world.owner("web"), ("a1".into(), 1));
    let status = sterna_plan::status::vm(&world.view, &name("web"), world.now).unwrap();
    assert!(
        status.message.contains("`ha` is off") && status.message.contains("confirm-dead"),
        "{}",
        status.message
    );
    let word = word(&world, "a1", 1);
    world.change_host("a1", |spec| spec.confirmed_dead = Some(word));
    world.settle();
    assert_eq!(world.owner("web"), ("a2".into(), 2));
    assert_eq!(decision(&world, "a1").fenced.unwrap().proof, Proof::F5 { by: "ada".into() });
}

/// A person has looked at the host as it is now.
fn word(world: &World, host: &str, epoch: u64) -> ConfirmedDead {
    let silent_since = world.view.hosts[&name(host)].report.as_ref().map(|report| report.since);
    ConfirmedDead { epoch, silent_since, by: "ada".into(), at: world.now }
}

fn silence(world: &mut World, host: &str) {
    let now = world.now + Duration::from_secs(5);
    world.report_host(host, |report| (report.link, report.since) = (LinkState::Silent, now));
}

#[test]
fn a_persons_word_is_for_a_silent_host_and_ends_when_it_is_back() {
    // No guards anywhere: a person is all there is.
    let mut world = World::new().host("a1", Bytes::gib(8)).host("a2", Bytes::gib(8)).vm("web", Bytes::gib(1));
    world.all_run();
    let host = world.owner("web").0;
    let early = word(&world, &host, 0);
    world.change_host(&host, |spec| spec.confirmed_dead = Some(early));
    assert!(world.settle().is_empty(), "it is connected");
    silence(&mut world, &host);
    assert!(world.settle().is_empty(), "it was about another silence");
    let now = word(&world, &host, 0);
    world.change_host(&host, |spec| spec.confirmed_dead = Some(now));
    world.settle();
    let next = world.owner("web").0;
    assert_ne!(next, host);
    world.report_host(&host, |report| report.link = LinkState::Connected);
    world.settle();
    assert_eq!((decision(&world, &host).state, decision(&world, &host).epoch), (HaState::Left, 1));
    // The old copy is told to go; a new loss needs a new word.
    let told = assignment(&world.view, &name(&host));
    assert!(told.vms.iter().any(|vm| vm.role == Role::Release), "{told:?}");
    world.report_host(&host, |report| report.link = LinkState::Silent);
    assert!(world.settle().is_empty());
}

#[test]
fn many_hosts_that_fall_silent_together_hold_the_takeover() {
    let mut world = leased(&["a1", "a2", "a3", "a4", "a5"]);
    world.add_vm("web", Bytes::gib(1), None);
    world.all_run();
    let lost = ["a1", "a2", "a3"];
    let sights: Sights = lost.iter().map(|host| proven(&world, host)).collect();
    turns(&mut world, &sights);
    assert!(lost.iter().all(|host| decision(&world, host).state == HaState::Suspect));
    assert_eq!(world.owner("web").0, "a1");
    world.report_host("a1", |report| report.link = LinkState::Silent);
    let status = sterna_plan::status::vm(&world.view, &name("web"), world.now).unwrap();
    assert!(status.message.contains("3 of 5 hosts"), "{}", status.message);
    // Somebody looked at one of them.
    let word = word(&world, "a1", 1);
    world.change_host("a1", |spec| spec.confirmed_dead = Some(word));
    world.settle();
    assert_ne!(world.owner("web").0, "a1");
}

#[test]
fn a_host_lost_three_times_within_an_hour_gets_no_vms_for_two() {
    let mut world = leased(&["a1", "a2", "a3", "a4"]);
    world.add_vm("web", Bytes::gib(1), None);
    for loss in 1..=3 {
        world.change_vm("web", |object| object.spec.power_request += 1);
        let (host, epoch) = world.view.vms[&name("web")]
            .decision
            .as_ref()
            .map_or(("a1".into(), 0), |row| (row.owner.host.to_string(), row.owner.epoch));
        if epoch > 0 {
            world.report("web", &host, epoch, CopyState::Stopped { exit: Exit::Requested { forced: true } });
        }
        // Only a1 has room.
        for other in ["a2", "a3", "a4"] {
            world.change_host(other, |spec| spec.cordoned = true);
        }
        world.all_run();
        assert_eq!(world.owner("web").0, "a1", "loss {loss}");
        for other in ["a2", "a3", "a4"] {
            world.change_host(other, |spec| spec.cordoned = false);
        }
        lose(&mut world, "a1");
        assert_ne!(world.owner("web").0, "a1");
        assert_eq!(decision(&world, "a1").quarantined_until.is_some(), loss == 3);
        world.report_host("a1", |report| report.link = LinkState::Connected);
        hold(&mut world, "a1");
        world.now = world.now + Duration::from_secs(600);
    }
    assert_eq!(decision(&world, "a1").word(world.now), "quarantined");
    world.now = world.now + Duration::from_secs(2 * 3600);
    world.settle();
    assert_eq!(decision(&world, "a1").quarantined_until, None);
}

#[test]
fn a_returned_host_never_starts_what_was_taken_over() {
    let mut world = covered();
    lose(&mut world, "a1");
    world.report_host("a1", |report| report.link = LinkState::Connected);
    hold(&mut world, "a1");
    assert_eq!((decision(&world, "a1").epoch, decision(&world, "a1").state), (2, HaState::Up));
    let told = assignment(&world.view, &name("a1"));
    assert!(told.vms.iter().all(|vm| vm.role == Role::Release && vm.epoch == 1), "{told:?}");
    assert_eq!(world.owner("web"), ("a2".into(), 2));
}

/// `web` moves from a1 to a2, both under their leases.
fn moving() -> World {
    let mut world = leased(&["a1", "a2", "a3"]);
    world.add_vm("web", Bytes::gib(1), None);
    world.all_run();
    world.migrate("m", "web", Some("a2"));
    world.settle();
    let listening = SideState::Listening { at: "10.0.0.12:4444".into(), line: None };
    report_under(&mut world, "a2", 2, CopyState::Incoming, listening);
    world.settle();
    report_under(&mut world, "a1", 1, CopyState::Running, SideState::Sending);
    assert!(matches!(world.phase("m"), Phase::Copying { .. }));
    world
}

fn report_under(world: &mut World, host: &str, epoch: u64, state: CopyState, side: SideState) {
    world.report_side("web", host, epoch, state, Some(("m", side)));
    let row = world.view.vms[&name("web")].reports[&name(host)].clone();
    let lease = Some(decision(world, host).epoch);
    let listed = VmReport { lease, ..(*row.value).clone() };
    world.put(Key::new(Kind::Vm, &name("web"), Column::ReportOf(name(host))), &listed);
}

fn released(world: &mut World) {
    let paused = CopyState::Paused { why: "sent".into() };
    report_under(world, "a1", 1, paused, SideState::Released { outcome: Outcome::default() });
    world.settle();
    assert!(matches!(world.phase("m"), Phase::Resuming { .. }));
    assert_eq!(world.owner("web"), ("a2".into(), 2));
    assert_eq!(epoch_of(world, "web"), Some(decision(world, "a2").epoch), "the target's lease, as it says");
}

#[test]
fn a_source_lost_before_the_handover_is_taken_over_and_the_move_undone() {
    let mut world = moving();
    lose(&mut world, "a1");
    let (host, epoch) = world.owner("web");
    assert!(epoch > 2 && host != "a1", "2 was promised to the target: {host} {epoch}");
    world.report_side("web", "a2", 2, CopyState::Stopped { exit: Exit::Released }, None);
    world.settle();
    assert!(matches!(world.phase("m"), Phase::Failed { .. }), "{:?}", world.phase("m"));
    assert_eq!(world.owner("web"), (host, epoch));
}

#[test]
fn a_source_lost_after_the_handover_ends_the_move_at_the_target() {
    let mut world = moving();
    released(&mut world);
    lose(&mut world, "a1");
    assert_eq!(world.owner("web"), ("a2".into(), 2));
    let runs = SideState::Continued { loading: None, answered: None };
    report_under(&mut world, "a2", 2, CopyState::Running, runs);
    world.settle();
    assert_eq!(world.phase("m"), Phase::Succeeded);
    assert_eq!(world.owner("web"), ("a2".into(), 2));
}

#[test]
fn a_target_lost_after_the_handover_is_taken_over_cold() {
    let mut world = moving();
    released(&mut world);
    lose(&mut world, "a2");
    let (host, epoch) = world.owner("web");
    assert!(epoch > 2 && host != "a2", "{host} {epoch}");
    let decision = world.view.vms[&name("web")].decision.as_ref().unwrap();
    assert_eq!(decision.continues, None, "whether the guest had run at the target is not known: it boots");
    assert!(matches!(world.phase("m"), Phase::Finishing { .. } | Phase::Succeeded), "{:?}", world.phase("m"));
    // The source's copy, whose memory may be older than the disks, goes.
    let told = assignment(&world.view, &name("a1"));
    let role = &told.vms.iter().find(|vm| vm.name == name("web")).unwrap().role;
    let is_cold = |role: &Role| match role {
        Role::Release => true,
        Role::Owner(owner) => owner.continues.is_none(),
        Role::Incoming { .. } => false,
    };
    assert!(is_cold(role), "{role:?}");
}

#[test]
fn a_host_is_given_eight_starts_at_once() {
    let mut world = leased(&["a1", "a2", "a3"]);
    world.change_host("a3", |spec| spec.cordoned = true);
    world.change_host("a2", |spec| spec.cordoned = true);
    for n in 0..12 {
        world.add_vm(&format!("v{n:02}"), Bytes::mib(64), None);
    }
    world.all_run();
    world.change_host("a2", |spec| spec.cordoned = false);
    lose(&mut world, "a1");
    let on_a2 = |world: &World| world.view.vms.keys().filter(|vm| world.owner(vm.as_str()).0 == "a2").count();
    assert_eq!(on_a2(&world), 8);
    let first: Vec<_> = (0..8).map(|n| format!("v{n:02}")).collect();
    for vm in &first {
        let (host, epoch) = world.owner(vm);
        assert_eq!(host, "a2", "in order");
        world.report(vm, "a2", epoch, CopyState::Running);
    }
    world.settle();
    assert_eq!(on_a2(&world), 12);
}

#[test]
fn a_restored_store_keeps_the_leases_that_it_can_know_and_has_the_others_joined_anew() {
    let mut world = covered();
    let version = voters_of(&world).version;
    let held = |epoch, version| GuardSeen {
        configuration: Some(version),
        confirmed: Some(version),
        ..guard(None, LeaseSeen::Held { epoch })
    };
    // Since the backup both were lost and came back, a2 under voters that were chosen since.
    set_guard(&mut world, "a1", held(7, version));
    set_guard(&mut world, "a2", held(9, version + 1));
    let restored = Restored { at: world.now, taken: world.now, revision: 1, incarnation: None };
    let incarnation = Uuid::from_u128(2);
    world.spec(Kind::Store, MAIN, StoreSpec { restored: Some(restored), ..StoreSpec::new(incarnation) });
    for host in ["a1", "a2"] {
        world.report_host(host, |report| report.told = Some(incarnation));
    }
    world.settle();
    let kept = decision(&world, "a1");
    assert_eq!((kept.epoch, kept.state, kept.confirmed), (7, HaState::Up, version));
    let left = decision(&world, "a2");
    assert!(left.state == HaState::Left && left.epoch > 1_000_000, "{left:?}");
    assert!(voters_of(&world).version > version + 1, "no version comes again");
    assert_eq!(world.owner("web"), ("a1".into(), 1), "it runs where it ran");

    // A proof by voters from before is none.
    world.report_host("a1", |report| report.link = LinkState::Silent);
    let (host, sight) = silent(&world, "a1");
    turns(&mut world, &Sights::from([(host, Sight { proof: Some(f3(version)), ..sight })]));
    assert_ne!(decision(&world, "a1").state, HaState::Fenced);
}
