//! Fence devices: what makes one count, what its word proves, and what it does not.

#![allow(clippy::unwrap_used, reason = "tests")]

mod world;

use std::collections::BTreeMap;

use sterna_base::units::Bytes;
use sterna_model::fence::{FenceDevice, PowerState};
use sterna_model::ha::{Fenced, GuardKey, GuardSeen, Ha, HaState, HostDecision, Isolation, LeaseSeen, Proof};
use sterna_model::host::LinkState;
use sterna_model::key::{Key, Kind};
use sterna_plan::action::Action;
use sterna_plan::assignment::assignment;
use sterna_plan::ha::lease::protected_by;
use sterna_plan::ha::power::{self, Heard, Order, Said, Task};
use uuid::Uuid;
use world::{World, name};

/// Has a power of its own.
const PDU: &str = "fence_apc";
/// Has the host's.
const BOARD: &str = "fence_ipmilan";

fn device(agent: &str, id: u128) -> FenceDevice {
    FenceDevice {
        id: Uuid::from_u128(id),
        agent: agent.into(),
        options: BTreeMap::from([("ip".to_owned(), "10.9.9.9".to_owned())]),
        secrets: BTreeMap::new(),
        since: Default::default(),
    }
}

fn decision(world: &World, host: &str) -> HostDecision {
    let row = world.view.hosts[&name(host)].decision.as_ref();
    row.map(|row| (*row.value).clone()).unwrap_or_default()
}

fn decide(world: &mut World, host: &str, change: impl FnOnce(&mut HostDecision)) {
    let mut after = decision(world, host);
    change(&mut after);
    world.put(Key::decision(Kind::Host, &name(host)), &after);
}

/// Hosts that hold lease 1; the first has a device that has not been asked yet.
fn hosts(names: &[&str], agent: &str) -> World {
    let mut world = World::new();
    for host in names {
        world.add_host(host, Bytes::gib(8));
        decide(&mut world, host, |row| (row.epoch, row.state) = (1, HaState::Up));
        let guard = GuardSeen {
            key: GuardKey::try_from("ab".repeat(32)).unwrap(),
            addresses: vec!["10.0.0.1:7450".parse().unwrap()],
            watchdog: "fake".into(),
            lease: LeaseSeen::Held { epoch: 1 },
            configuration: Some(1),
            confirmed: Some(1),
            asks: None,
            returned: None,
            trouble: None,
        };
        world.report_host(host, |report| report.guard = Some(guard));
    }
    world.change_host(names[0], |spec| spec.fence = Some(device(agent, 1)));
    world.settle();
    world
}

fn order(world: &World) -> Order {
    power::orders(&world.view).remove(&name("a1")).expect("a1 has a device")
}

fn ways(world: &World) -> Vec<&'static str> {
    protected_by(&world.view.host(&name("a1")).unwrap())
}

/// The device says this under its order; then rounds, until nothing changes.
fn say(world: &mut World, outcome: Result<PowerState, &str>) -> Vec<String> {
    let said = Said { order: order(world), outcome: outcome.map_err(str::to_owned) };
    hear(world, said)
}

fn hear(world: &mut World, said: Said) -> Vec<String> {
    let heard = Heard::from([(name("a1"), said)]);
    let mut log: Vec<_> = power::plan(&world.view, &heard, world.now)
        .into_iter()
        .filter_map(|action| commit(world, action))
        .collect();
    log.extend(world.settle());
    log
}

/// Nothing, when what it compares has changed.
fn commit(world: &mut World, action: Action) -> Option<String> {
    let stands = action.compares.iter().all(|(key, revision)| world.view.revision_of(key) == *revision);
    stands.then(|| {
        for (key, value) in &action.puts {
            world.commit(&key.to_string(), Some(value.to_string()));
        }
        format!("{} {}", action.event.name, action.event.what)
    })
}

fn alert(world: &World) -> Option<String> {
    let decision = world.view.alerts.get(&name("fence-device-a1"))?.decision.as_ref()?;
    decision.ceased.is_none().then(|| decision.text.clone())
}

/// `web` runs on a1 and outlives a1's lease.
fn kept() -> World {
    let mut world = hosts(&["a1", "a2"], PDU);
    say(&mut world, Ok(PowerState::On));
    world.add_vm("web", Bytes::gib(1), None);
    world.change_vm("web", |object| object.spec.isolation = Some(Isolation::Keep));
    world.change_host("a2", |spec| spec.cordoned = true);
    world.all_run();
    world.change_host("a2", |spec| spec.cordoned = false);
    assert_eq!((world.owner("web"), lease_of(&world, "web")), (("a1".into(), 1), None));
    world
}

fn lease_of(world: &World, vm: &str) -> Option<u64> {
    world.view.vms[&name(vm)].decision.as_ref().unwrap().host_epoch
}

/// No voter hears a1 any more, and its agent is silent.
fn lose(world: &mut World) {
    let now = world.now;
    decide(world, "a1", |row| (row.state, row.since, row.silent_since) = (HaState::Fencing, now, Some(now)));
    world.report_host("a1", |report| (report.link, report.since) = (LinkState::Silent, now));
    world.settle();
}

fn f3() -> Fenced {
    let proof = Proof::F3 { configuration: 1, acks: Vec::new(), decided_at: 1 };
    Fenced { epoch: 1, proof, at: Default::default() }
}

#[test]
fn a_device_counts_once_it_has_answered_and_while_it_does() {
    let mut world = hosts(&["a1", "a2"], PDU);
    assert_eq!(order(&world).task, Task::Look { boot: Some("boot".into()) });
    assert_eq!(ways(&world), ["F3"]);
    assert_eq!(say(&mut world, Ok(PowerState::On)), ["a1 device-answers"]);
    assert_eq!(ways(&world), ["F2", "F3"]);
    assert!(say(&mut world, Ok(PowerState::On)).is_empty(), "that is no news");
    say(&mut world, Err("no route"));
    assert_eq!(ways(&world), ["F3"]);
    assert!(alert(&world).unwrap().contains("no route"));
    say(&mut world, Ok(PowerState::On));
    assert_eq!((ways(&world), alert(&world)), (vec!["F2", "F3"], None));
    world.change_host("a1", |spec| spec.fence = Some(device(PDU, 2)));
    assert_eq!(ways(&world), ["F3"], "another device has said nothing yet");
    decide(&mut world, "a2", |row| row.state = HaState::Left);
    assert!(protected_by(&world.view.host(&name("a2")).unwrap()).is_empty());
}

#[test]
fn a_device_that_calls_a_connected_host_off_is_another_machines() {
    let mut world = hosts(&["a1", "a2"], PDU);
    say(&mut world, Ok(PowerState::Off));
    assert_eq!(ways(&world), ["F3"]);
    assert!(alert(&world).unwrap().contains("another machine"));
}

#[test]
fn vms_are_kept_by_default_where_the_device_has_its_own_power_and_nowhere_else() {
    for (agent, lease) in [(PDU, None), (BOARD, Some(1))] {
        let mut world = hosts(&["a1", "a2"], agent);
        say(&mut world, Ok(PowerState::On));
        for (vm, isolation) in
            [("default", None), ("kill", Some(Isolation::Kill)), ("keep", Some(Isolation::Keep))]
        {
            world.add_vm(vm, Bytes::gib(1), None);
            world.change_vm(vm, |object| object.spec.isolation = isolation);
        }
        world.change_host("a2", |spec| spec.cordoned = true);
        world.all_run();
        let leases = ["default", "kill", "keep"].map(|vm| lease_of(&world, vm));
        assert_eq!(leases, [lease, Some(1), None], "{agent}");
        // Once the device is of no use, what is kept only because of it is to come under the lease.
        say(&mut world, Err("no route"));
        let told = assignment(&world.view, &name("a1"));
        let orders: BTreeMap<_, _> = told
            .vms
            .iter()
            .filter_map(|vm| match &vm.role {
                sterna_wire::assignment::Role::Owner(owner) => Some((vm.name.to_string(), owner.host_epoch)),
                _ => None,
            })
            .collect();
        assert_eq!((orders["default"], orders["keep"]), (Some(1), None), "{agent}");
    }
}

#[test]
fn a_kept_vm_runs_elsewhere_once_a_status_says_off_and_not_before() {
    let mut world = kept();
    lose(&mut world);
    assert_eq!(order(&world).task, Task::SwitchOff { epoch: 1, boot: "boot".into() });
    say(&mut world, Err("off: cannot log in"));
    assert!(alert(&world).unwrap().contains("cannot log in"));
    let status = sterna_plan::status::vm(&world.view, &name("web"), world.now).unwrap();
    assert!(status.message.contains("cannot log in"), "{}", status.message);
    say(&mut world, Ok(PowerState::On));
    assert_eq!((decision(&world, "a1").state, world.owner("web")), (HaState::Fencing, ("a1".into(), 1)));

    say(&mut world, Ok(PowerState::Off));
    let fenced = decision(&world, "a1").fenced.unwrap();
    let proof = Proof::F2 { device: Uuid::from_u128(1), agent: PDU.into(), boot: "boot".into() };
    assert_eq!((fenced.epoch, fenced.proof), (1, proof));
    assert_eq!(world.owner("web"), ("a2".into(), 2));
    let takeover = world.view.vms[&name("web")].decision.as_ref().unwrap().takeover.clone().unwrap();
    assert_eq!((takeover.from.as_str(), takeover.proof.as_str()), ("a1", "F2"));
    assert!(matches!(order(&world).task, Task::Look { .. }), "there is nothing more to switch off");
}

#[test]
fn the_end_of_the_lease_says_nothing_of_a_kept_vm_and_the_device_is_asked_on() {
    let mut world = kept();
    world.add_vm("kill", Bytes::gib(1), None);
    world.change_vm("kill", |object| object.spec.isolation = Some(Isolation::Kill));
    world.change_host("a2", |spec| spec.cordoned = true);
    world.all_run();
    world.change_host("a2", |spec| spec.cordoned = false);
    assert_eq!(lease_of(&world, "kill"), Some(1));
    lose(&mut world);
    let now = world.now;
    decide(&mut world, "a1", |row| {
        (row.state, row.fenced, row.fenced_at) = (HaState::Fenced, Some(f3()), vec![now]);
    });
    world.settle();
    assert_eq!((world.owner("kill").0, world.owner("web").0), ("a2".into(), "a1".into()));
    assert!(matches!(order(&world).task, Task::SwitchOff { .. }));
    say(&mut world, Ok(PowerState::Off));
    assert_eq!(world.owner("web"), ("a2".into(), 2));
    assert_eq!(decision(&world, "a1").fenced_at.len(), 1, "one loss");
}

#[test]
fn what_was_said_of_another_device_boot_or_epoch_proves_nothing() {
    let mut world = kept();
    lose(&mut world);
    let right = order(&world);
    let others = [
        Order { device: device(PDU, 9), ..right.clone() },
        Order { host: Uuid::from_u128(99), ..right.clone() },
        Order { task: Task::SwitchOff { epoch: 2, boot: "boot".into() }, ..right.clone() },
        Order { task: Task::SwitchOff { epoch: 1, boot: "other".into() }, ..right.clone() },
        // It was off when nobody had called it lost.
        Order { task: Task::Look { boot: None }, ..right.clone() },
    ];
    for order in others {
        hear(&mut world, Said { order, outcome: Ok(PowerState::Off) });
        assert_eq!(decision(&world, "a1").state, HaState::Fencing);
    }
    // Whatever changes between the word and the transaction undoes it.
    let heard = Heard::from([(name("a1"), Said { order: right, outcome: Ok(PowerState::Off) })]);
    let changes: [fn(&mut World); 3] = [
        |world| world.change_host("a1", |spec| spec.fence = Some(device(PDU, 2))),
        |world| world.report_host("a1", |report| report.boot_id = "other".into()),
        |world| decide(world, "a1", |row| (row.epoch, row.state) = (2, HaState::Up)),
    ];
    for change in changes {
        let mut world = kept();
        lose(&mut world);
        let actions = power::plan(&world.view, &heard, world.now);
        assert_eq!(actions.len(), 1);
        change(&mut world);
        assert!(actions.into_iter().all(|action| commit(&mut world, action).is_none()));
    }
}

#[test]
fn a_host_that_is_back_keeps_what_no_guard_knew_of() {
    let mut world = kept();
    lose(&mut world);
    world.change_host("a2", |spec| spec.cordoned = true);
    say(&mut world, Ok(PowerState::Off));
    assert_eq!((decision(&world, "a1").state, world.owner("web").0), (HaState::Fenced, "a1".into()));
    // It has been switched on again, and says so before anybody else has the VM.
    world.report_host("a1", |report| report.boot_id = "next".into());
    world.change_host("a2", |spec| spec.cordoned = false);
    world.settle();
    assert_eq!(world.owner("web"), ("a1".into(), 1));
}

#[test]
fn the_same_boot_that_was_said_to_be_off_is_not_taken_for_gone() {
    let mut world = kept();
    lose(&mut world);
    world.change_host("a2", |spec| spec.cordoned = true);
    say(&mut world, Ok(PowerState::Off));
    world.report_host("a1", |report| report.link = LinkState::Connected);
    world.change_host("a2", |spec| spec.cordoned = false);
    world.now = world.now + std::time::Duration::from_secs(120);
    world.settle();
    assert_eq!(world.owner("web"), ("a1".into(), 1));
    assert!(alert(&world).unwrap().contains("another machine"));
}

#[test]
fn a_copy_that_no_guard_knows_and_nobody_saw_does_not_begin_on_a_lost_host() {
    let mut world = hosts(&["a1", "a2"], PDU);
    say(&mut world, Ok(PowerState::On));
    world.add_vm("web", Bytes::gib(1), None);
    world.change_host("a2", |spec| spec.cordoned = true);
    world.settle();
    assert_eq!(world.owner("web").0, "a1");
    let has = |world: &World| assignment(&world.view, &name("a1")).vms.len();
    assert_eq!(has(&world), 1);
    lose(&mut world);
    assert_eq!(has(&world), 0);
}

#[test]
fn nothing_is_switched_off_in_vain_or_by_an_outage_of_the_network() {
    let mut world = kept();
    world.change_vm("web", |object| object.spec.ha = Some(Ha::Off));
    lose(&mut world);
    assert!(matches!(order(&world).task, Task::Look { .. }), "nothing would start elsewhere");
    world.change_vm("web", |object| object.spec.ha = None);
    assert!(matches!(order(&world).task, Task::SwitchOff { .. }));
    for host in ["a3", "a4", "a5"] {
        world.add_host(host, Bytes::gib(8));
        let now = world.now;
        decide(&mut world, host, |row| {
            (row.epoch, row.state, row.silent_since) = (1, HaState::Suspect, Some(now))
        });
    }
    assert!(matches!(order(&world).task, Task::Look { .. }), "four of five are silent");
}
