//! The waits, and which ends are the host's own affair.

use super::*;
use crate::hypervisor::{Pause, Run, Transfer, View};
use crate::vm::decide::{Body, Due, Known, Order, Step, next};
use crate::vm::health::Resets;
use crate::vm::record::Cause;
use sterna_base::units::{Bytes, Span};
use sterna_model::cpu::Accel;
use sterna_model::meta::Name;
use sterna_model::migration::{MigrationReport, Outcome};
use sterna_model::vm::{Hardware, Power};
use sterna_wire::assignment::{Machine, Outgoing};

const START: Timestamp = Timestamp::from_millis(1_800_000_000_000);

fn at(seconds: u64) -> Timestamp {
    START + Duration::from_secs(seconds)
}

fn crash(seconds: u64) -> Crash {
    Crash { exit: Exit::Crashed { why: "killed by signal 9".into() }, at: at(seconds) }
}

fn tried(seconds: &[u64]) -> Restarts {
    let mut restarts = Restarts::default();
    for second in seconds {
        restarts.add("it".into(), at(*second));
    }
    restarts
}

fn after(seconds: u64) -> Turn {
    Turn::After(Duration::from_secs(seconds))
}

#[test]
fn each_restart_in_a_row_waits_longer_and_the_fourth_is_controls() {
    // (restarts before this epoch, tried at, crashed at, now, the server hears us, what is done)
    let table = [
        (0, &[][..], 5, 5, true, Turn::Now),
        (0, &[5], 6, 6, true, after(1)),
        (0, &[5], 6, 7, true, Turn::Now),
        (0, &[5, 7], 8, 8, true, after(5)),
        (0, &[5, 7], 8, 10, true, after(3)),
        (0, &[5, 7, 13], 14, 14, true, Turn::GiveUp),
        (0, &[5, 7, 13], 14, 14, false, after(30)),
        (0, &[5, 7, 13, 44], 45, 45, false, after(60)),
        (0, &[5, 7, 13, 44, 105], 106, 106, false, after(60)),
        // Heard again in the middle of a wait.
        (0, &[5, 7, 13], 14, 20, true, Turn::GiveUp),
        // Ten minutes later they do not count.
        (0, &[5, 7, 13], 700, 700, true, Turn::Now),
        (0, &[5, 7, 300], 700, 700, true, after(1)),
        // What control counted before goes on, until a copy has run for long.
        (4, &[], 30, 30, true, after(60)),
        (4, &[], 600, 600, true, Turn::Now),
        (4, &[5], 600, 600, true, after(60)),
        // The clock went back.
        (4, &[], 30, 20, true, Turn::Now),
    ];
    for (carried, before, crashed, now, is_heard, expected) in table {
        let restarts = tried(before);
        let past = Past { carried, restarts: &restarts, began: START };
        let what = format!("{carried} {before:?} crashed {crashed} now {now} {is_heard}");
        assert_eq!(turn(past, &crash(crashed), at(now), is_heard), expected, "{what}");
    }
}

#[test]
fn a_record_of_restarts_stays_short_and_counts_on() {
    let restarts = tried(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 700]);
    assert_eq!((restarts.count, restarts.tried.len()), (10, TRIED_KEPT));
    assert_eq!(restarts.report().recent, 1);
    assert_eq!(Restarts::default().report(), HealthReport::default());
}

fn notes() -> Notes {
    Notes {
        name: Name::new("web").unwrap(),
        epoch: 5,
        title: Title::Owner,
        migration: None,
        reset_request: 0,
        ending: None,
        taps: vec![],
        lease: None,
        restarts: Restarts::default(),
        resets: Resets::default(),
        began: START,
    }
}

fn seen() -> Seen {
    Seen { name: Name::new("web").unwrap(), epoch: 5, title: Title::Owner, exit: None, lease: None }
}

#[test]
fn only_an_end_that_nobody_asked_for_and_nobody_was_told_of_is_open() {
    let name = || Name::new("m").unwrap();
    let side = |side| Notes { migration: Some(MigrationReport { migration: name(), side }), ..notes() };
    let crashed = crash(0).exit;
    let open = |notes: &Notes, seen: &Seen| is_open(&crashed, Some(notes), Some(seen));
    assert!(open(&notes(), &seen()));
    assert!(open(&side(SideState::Kept { why: "cancelled".into() }), &seen()));
    assert!(open(&side(SideState::Continued { loading: None, answered: None }), &seen()));
    for ending in [Cause::Asked, Cause::Forced, Cause::Released] {
        assert!(!open(&Notes { ending: Some(ending), ..notes() }, &seen()), "{ending:?}");
    }
    for gone in [
        SideState::Sending,
        SideState::Released { outcome: Outcome::default() },
        SideState::Loaded,
        SideState::Listening { at: String::new(), line: None },
    ] {
        assert!(!open(&side(gone.clone()), &seen()), "{gone:?}");
    }
    assert!(!open(&Notes { title: Title::Incoming(name()), ..notes() }, &seen()));
    assert!(!open(&notes(), &Seen { epoch: 6, ..seen() }), "a later one was begun");
    assert!(!open(&notes(), &Seen { exit: Some(Exit::Lost), ..seen() }), "it was told");
    assert!(!is_open(&Exit::GuestShutdown, Some(&notes()), Some(&seen())));
    assert!(!is_open(&Exit::Requested { forced: true }, Some(&notes()), Some(&seen())));
    assert!(!is_open(&crashed, None, Some(&seen())), "of a copy without notes nothing is known");
}

pub(in crate::vm) fn owner() -> Owner {
    let hardware = Hardware {
        machine: "pc-q35-10.0".into(),
        cpu_model: "qemu64".into(),
        accel: Accel::Tcg,
        cpus: 1,
        memory: Bytes::mib(64),
        volumes: vec![],
        nics: vec![],
        watchdog: false,
    };
    Owner {
        machine: Machine { hardware, disks: vec![], cloud_init: None },
        power: Power::Running,
        reset_request: 0,
        shutdown_timeout: Span::from_secs(30),
        continues: None,
        adopts: None,
        outgoing: None,
        restart_here: Some(0),
        health: None,
        host_epoch: None,
    }
}

fn order(epoch: u64, role: Role) -> VmAssignment {
    VmAssignment { name: Name::new("web").unwrap(), uid: uuid::Uuid::from_u128(7), epoch, role }
}

fn owns(epoch: u64, owner: Owner) -> VmAssignment {
    order(epoch, Role::Owner(Box::new(owner)))
}

fn given(order: VmAssignment) -> Order {
    Order::Given(Box::new(order))
}

fn outgoing() -> Option<Outgoing> {
    Some(Outgoing {
        migration: Name::new("m").unwrap(),
        to: "127.0.0.1:4000".parse().unwrap(),
        carry: None,
        line: None,
        max_downtime: Span::from_millis(300),
        cancel: false,
        seed: false,
    })
}

fn again() -> Step {
    Step::StartAgain { why: "qemu ended: killed by signal 9".into() }
}

fn told() -> Step {
    Step::Conclude(crash(0).exit)
}

/// What is done about a crash whose wait is over.
fn step(order: &Order, restart: Turn) -> Step {
    let (body, notes, seen) = (Body::Crashed(crash(0)), notes(), seen());
    let due = Due { restart, ..Due::default() };
    next(Known { order, body: &body, notes: Some(&notes), seen: Some(&seen), kept: None, fault: None, due })
}

#[test]
fn a_crash_is_healed_only_by_the_owner_and_as_the_newest_order_allows() {
    let table = [
        (given(owns(5, owner())), Turn::Now, again()),
        (given(owns(5, owner())), after(1), Step::Wait),
        (given(owns(5, owner())), Turn::GiveUp, told()),
        (given(owns(5, Owner { power: Power::Paused, ..owner() })), Turn::Now, again()),
        // Something newer is known.
        (given(owns(5, Owner { restart_here: None, ..owner() })), Turn::Now, told()),
        (given(owns(5, Owner { power: Power::Stopped, ..owner() })), Turn::Now, told()),
        (given(owns(5, Owner { power: Power::Off, ..owner() })), Turn::Now, told()),
        (given(owns(5, Owner { outgoing: outgoing(), ..owner() })), Turn::Now, told()),
        (given(order(5, Role::Release)), Turn::Now, told()),
        (given(order(6, Role::Release)), Turn::Now, Step::Conclude(Exit::Released)),
        (given(owns(6, owner())), Turn::Now, Step::Start),
        (given(owns(4, owner())), Turn::Now, Step::Refuse),
        (Order::Absent, Turn::Now, Step::Forget),
        // Nothing is known at all.
        (Order::Unknown, Turn::Now, Step::Wait),
    ];
    for (order, turn, expected) in table {
        assert_eq!(step(&order, turn), expected, "{order:?} {turn:?}");
    }
}

#[test]
fn an_agent_that_has_just_started_acts_on_its_last_assignment_and_tells_nothing() {
    let (crashed, notes_of) = (Body::Crashed(crash(0)), notes);
    let not_running = || View { run: Run::Paused(Pause::NotStarted), transfer: Transfer::None };
    let restarted = || Notes { restarts: tried(&[1]), ..notes_of() };
    let stopped = || owns(5, Owner { power: Power::Stopped, ..owner() });
    let table = [
        (owns(5, owner()), &crashed, notes_of(), Turn::Now, again()),
        (owns(5, owner()), &crashed, notes_of(), after(1), Step::Wait),
        (owns(5, owner()), &crashed, notes_of(), Turn::GiveUp, Step::Wait),
        (owns(5, Owner { restart_here: None, ..owner() }), &crashed, notes_of(), Turn::Now, Step::Wait),
        (stopped(), &crashed, notes_of(), Turn::Now, Step::Wait),
        (owns(4, owner()), &crashed, notes_of(), Turn::Now, Step::Wait),
        (order(5, Role::Release), &crashed, notes_of(), Turn::Now, Step::Wait),
        // Its predecessor had started it again, and did not live to run it.
        (owns(5, owner()), &Body::Alive(not_running()), restarted(), Turn::GiveUp, Step::Run),
        (
            owns(5, Owner { power: Power::Paused, ..owner() }),
            &Body::Alive(not_running()),
            restarted(),
            Turn::GiveUp,
            Step::Wait,
        ),
        (owns(5, owner()), &Body::Alive(not_running()), notes_of(), Turn::GiveUp, Step::Wait),
    ];
    for (kept, body, notes, restart, expected) in table {
        let (seen, due) = (seen(), Due { restart, ..Due::default() });
        let (notes, seen) = (Some(&notes), Some(&seen));
        let step =
            next(Known { order: &Order::Unknown, body, notes, seen, kept: Some(&kept), fault: None, due });
        assert_eq!(step, expected, "{kept:?} {body:?} {restart:?}");
    }
}
