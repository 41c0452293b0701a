//! One test a rule; each line of a table is a situation and the step it leads to.

use super::*;
use crate::vm::health::Resets;
use crate::vm::restart::Restarts;
use sterna_base::clock::Timestamp;
use sterna_base::units::{Bytes, Span};
use sterna_model::cpu::Accel;
use sterna_model::migration::{MigrationReport, Outcome};
use sterna_model::vm::Hardware;
use sterna_wire::assignment::Machine;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn machine() -> Machine {
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
    Machine { hardware, disks: vec![], cloud_init: None }
}

fn owner() -> Owner {
    Owner {
        machine: machine(),
        power: Power::Running,
        reset_request: 0,
        shutdown_timeout: Span::from_secs(30),
        continues: None,
        adopts: None,
        outgoing: None,
        restart_here: None,
        health: None,
        host_epoch: None,
    }
}

fn given(epoch: u64, role: Role) -> Order {
    let order = VmAssignment { name: name("web"), uid: uuid::Uuid::from_u128(7), epoch, role };
    Order::Given(Box::new(order))
}

fn owns(epoch: u64, owner: Owner) -> Order {
    given(epoch, Role::Owner(Box::new(owner)))
}

fn continues(epoch: u64, migration: &str) -> Order {
    owns(epoch, Owner { continues: Some(name(migration)), ..owner() })
}

fn incoming(epoch: u64, migration: &str) -> Order {
    let listen = "127.0.0.1".parse().unwrap();
    let machine = Box::new(machine());
    given(
        epoch,
        Role::Incoming {
            migration: name(migration),
            machine,
            listen,
            carry: None,
            channels: None,
            in_clear: false,
            host_epoch: None,
        },
    )
}

fn sends(epoch: u64, migration: &str, cancel: bool) -> Order {
    let outgoing = Outgoing {
        migration: name(migration),
        to: "127.0.0.1:4000".parse().unwrap(),
        carry: None,
        line: None,
        max_downtime: Span::from_millis(300),
        cancel,
        seed: false,
    };
    owns(epoch, Owner { outgoing: Some(outgoing), ..owner() })
}

fn alive(run: Run, transfer: Transfer) -> Body {
    Body::Alive(View { run, transfer })
}

fn running() -> Body {
    alive(Run::Running, Transfer::None)
}

fn taken_in(transfer: Transfer) -> Body {
    alive(Run::Incoming, transfer)
}

fn as_owner(epoch: u64) -> Option<Notes> {
    Some(Notes {
        name: name("web"),
        epoch,
        title: Title::Owner,
        migration: None,
        reset_request: 0,
        ending: None,
        taps: vec![],
        restarts: Restarts::default(),
        resets: Resets::default(),
        began: Timestamp::default(),
        lease: None,
    })
}

fn as_target(epoch: u64, migration: &str) -> Option<Notes> {
    as_owner(epoch).map(|notes| Notes { title: Title::Incoming(name(migration)), ..notes })
}

fn with(notes: Option<Notes>, migration: &str, side: SideState) -> Option<Notes> {
    notes
        .map(|notes| Notes { migration: Some(MigrationReport { migration: name(migration), side }), ..notes })
}

fn listening() -> SideState {
    SideState::Listening { at: "127.0.0.1:4000".into(), line: None }
}

fn released() -> SideState {
    SideState::Released { outcome: Outcome::default() }
}

fn kept() -> SideState {
    SideState::Kept { why: "x".into() }
}

fn saw(epoch: u64) -> Option<Seen> {
    Some(Seen { name: name("web"), epoch, title: Title::Owner, exit: None, lease: None })
}

fn saw_target(epoch: u64, migration: &str) -> Option<Seen> {
    saw(epoch).map(|seen| Seen { title: Title::Incoming(name(migration)), ..seen })
}

fn step(order: &Order, body: &Body, notes: &Option<Notes>, seen: &Option<Seen>) -> Step {
    step_due(order, body, notes, seen, Due::default())
}

fn step_due(order: &Order, body: &Body, notes: &Option<Notes>, seen: &Option<Seen>, due: Due) -> Step {
    next(Known { order, body, notes: notes.as_ref(), seen: seen.as_ref(), kept: None, fault: None, due })
}

type Case = (Order, Body, Option<Notes>, Option<Seen>, Step);

fn check(cases: Vec<Case>) {
    for (order, body, notes, seen, expected) in cases {
        let got = step(&order, &body, &notes, &seen);
        assert_eq!(got, expected, "\norder {order:?}\nbody {body:?}\nnotes {notes:?}\nseen {seen:?}");
    }
}

fn ended() -> Body {
    Body::Ended(Exit::GuestShutdown)
}

#[test]
fn orders_older_than_what_was_seen_are_refused() {
    check(vec![
        (owns(4, owner()), Body::Absent, None, saw(5), Step::Refuse),
        (owns(4, owner()), running(), as_owner(5), saw(5), Step::Refuse),
        (continues(4, "m"), Body::Absent, None, saw(5), Step::Refuse),
        (incoming(4, "m"), Body::Absent, None, saw(5), Step::Refuse),
        (given(4, Role::Release), running(), as_owner(5), saw(5), Step::Refuse),
    ]);
}

#[test]
fn an_epoch_is_started_once() {
    check(vec![
        (owns(5, owner()), Body::Absent, None, None, Step::Start),
        (owns(5, owner()), ended(), as_owner(4), saw(4), Step::Start),
        // Remembered, but no process: whatever ran is gone with the boot.
        (owns(5, owner()), Body::Absent, None, saw(5), Step::Conclude(Exit::Lost)),
        (owns(5, owner()), ended(), as_owner(5), saw(5), Step::Wait),
        // An epoch that was only prepared here, for a migration that was undone, has run nowhere.
        (owns(5, owner()), ended(), as_target(5, "m"), saw_target(5, "m"), Step::Start),
    ]);
}

#[test]
fn a_vm_that_shall_not_run_is_not_started() {
    for power in [Power::Stopped, Power::Off] {
        let order = owns(5, Owner { power, ..owner() });
        let exit = Exit::Requested { forced: false };
        assert_eq!(step(&order, &Body::Absent, &None, &None), Step::Conclude(exit));
    }
}

#[test]
fn nothing_is_concluded_from_what_could_not_be_read() {
    for order in [Order::Unknown, Order::Absent, owns(5, owner()), continues(5, "m"), incoming(5, "m")] {
        assert_eq!(step(&order, &Body::Unknown, &as_owner(5), &saw(5)), Step::Wait, "{order:?}");
    }
}

#[test]
fn a_second_process_is_never_started_beside_a_first() {
    check(vec![
        (owns(6, owner()), running(), as_owner(5), saw(5), Step::Kill(Cause::Released)),
        (owns(6, owner()), taken_in(Transfer::None), as_target(5, "m"), saw(5), Step::Kill(Cause::Released)),
        (incoming(6, "m"), taken_in(Transfer::None), as_target(5, "l"), saw(5), Step::Kill(Cause::Released)),
        // A guest that may run is ended by a release and by nothing else.
        (incoming(6, "m"), running(), as_owner(5), saw(5), Step::Wait),
    ]);
}

#[test]
fn a_migrated_copy_is_continued_and_never_started_anew() {
    let loaded = with(as_target(6, "m"), "m", SideState::Loaded);
    let waiting = with(as_target(6, "m"), "m", listening());
    check(vec![
        (
            continues(6, "m"),
            taken_in(Transfer::Completed),
            loaded.clone(),
            saw_target(6, "m"),
            Step::Continue,
        ),
        // The order can be faster than our own QEMU's word.
        (continues(6, "m"), taken_in(Transfer::Going), waiting.clone(), saw_target(6, "m"), Step::Wait),
        (continues(6, "m"), taken_in(Transfer::Completed), waiting, saw_target(6, "m"), Step::MarkLoaded),
        (continues(6, "m"), Body::Absent, None, saw_target(6, "m"), Step::Conclude(Exit::Lost)),
        (continues(6, "m"), ended(), as_target(6, "m"), saw_target(6, "m"), Step::Wait),
        (continues(6, "m"), Body::Absent, None, None, Step::Conclude(Exit::Lost)),
        (continues(6, "k"), taken_in(Transfer::Completed), loaded, saw(6), Step::Kill(Cause::Released)),
        // Already done.
        (
            continues(6, "m"),
            running(),
            with(as_owner(6), "m", SideState::Continued { loading: None, answered: None }),
            saw(6),
            Step::Wait,
        ),
    ]);
}

fn adopts(epoch: u64, found: u64) -> Order {
    owns(epoch, Owner { adopts: Some(found), ..owner() })
}

#[test]
fn a_copy_that_a_restored_store_found_goes_on_under_a_higher_epoch() {
    check(vec![
        (adopts(8, 5), running(), as_owner(5), saw(5), Step::Adopt),
        // Written down, but not yet noted, when the agent died.
        (adopts(8, 5), running(), as_owner(5), saw(8), Step::Adopt),
        (adopts(8, 5), running(), as_owner(8), saw(8), Step::Wait),
        // Another copy than the one that was found.
        (adopts(8, 5), running(), as_owner(4), saw(4), Step::Kill(Cause::Released)),
        (adopts(8, 5), taken_in(Transfer::Going), as_target(5, "m"), saw(5), Step::Kill(Cause::Released)),
        // An order from before is not obeyed any more.
        (owns(5, owner()), running(), as_owner(8), saw(8), Step::Refuse),
        // It ended before this host heard of it.
        (adopts(8, 5), ended(), as_owner(5), saw(5), Step::Start),
        (adopts(8, 5), Body::Absent, None, saw(8), Step::Conclude(Exit::Lost)),
    ]);
}

#[test]
fn a_source_that_let_go_runs_only_under_a_higher_epoch() {
    let gone = with(as_owner(5), "m", released());
    let stopped = alive(Run::Paused(Pause::Migrated), Transfer::Completed);
    check(vec![
        (owns(5, owner()), stopped.clone(), gone.clone(), saw(5), Step::Wait),
        (sends(5, "m", false), stopped.clone(), gone.clone(), saw(5), Step::Wait),
        (sends(5, "m", true), stopped.clone(), gone.clone(), saw(5), Step::Wait),
        (Order::Unknown, stopped.clone(), gone.clone(), saw(5), Step::Wait),
        (Order::Absent, stopped.clone(), gone.clone(), saw(5), Step::Wait),
        (continues(7, "m"), stopped.clone(), gone.clone(), saw(5), Step::Continue),
        (given(6, Role::Release), stopped, gone, saw(5), Step::Kill(Cause::Released)),
        (continues(7, "m"), ended(), as_owner(5), saw(5), Step::Conclude(Exit::GuestShutdown)),
    ]);
}

#[test]
fn a_target_is_prepared_once_per_migration() {
    check(vec![
        (incoming(6, "m"), Body::Absent, None, None, Step::Receive),
        (incoming(6, "m"), ended(), as_owner(4), saw(4), Step::Receive),
        // The same epoch for a later migration: the earlier one was undone.
        (incoming(6, "m"), ended(), as_target(6, "l"), saw_target(6, "l"), Step::Receive),
        (incoming(6, "m"), Body::Absent, None, saw_target(6, "m"), Step::Conclude(Exit::Lost)),
        (incoming(6, "m"), ended(), as_target(6, "m"), saw_target(6, "m"), Step::Wait),
        (incoming(6, "m"), taken_in(Transfer::None), as_target(6, "m"), saw_target(6, "m"), Step::Listen),
        (
            incoming(6, "m"),
            taken_in(Transfer::Completed),
            with(as_target(6, "m"), "m", listening()),
            saw_target(6, "m"),
            Step::MarkLoaded,
        ),
        (
            incoming(6, "m"),
            taken_in(Transfer::Completed),
            with(as_target(6, "m"), "m", SideState::Loaded),
            saw_target(6, "m"),
            Step::Wait,
        ),
    ]);
}

fn held() -> Body {
    alive(Run::Paused(Pause::Migrated), Transfer::Held)
}

#[test]
fn memory_is_sent_once_and_the_end_is_taken_up_whoever_orders_what() {
    let sending = with(as_owner(5), "m", SideState::Sending);
    let source = |transfer| alive(Run::Running, transfer);
    check(vec![
        (sends(5, "m", false), running(), as_owner(5), saw(5), Step::Send),
        (sends(5, "m", false), source(Transfer::Going), sending.clone(), saw(5), Step::Wait),
        (sends(5, "m", false), source(Transfer::Completed), sending.clone(), saw(5), Step::HandOver),
        (Order::Unknown, source(Transfer::Completed), sending.clone(), saw(5), Step::HandOver),
        (Order::Absent, source(Transfer::Completed), sending.clone(), saw(5), Step::HandOver),
        (
            sends(5, "m", false),
            source(Transfer::Failed { why: "reset".into() }),
            sending.clone(),
            saw(5),
            Step::Keep { why: "reset".into() },
        ),
        (
            sends(5, "m", false),
            source(Transfer::None),
            sending,
            saw(5),
            Step::Keep { why: "never began".into() },
        ),
        // Kept: not sent again for the same migration, and for the next one it is.
        (sends(5, "m", false), running(), with(as_owner(5), "m", kept()), saw(5), Step::Wait),
        (sends(5, "n", false), running(), with(as_owner(5), "m", kept()), saw(5), Step::Send),
        // All but the end was sent; what was kept and is frozen all the same is continued by whoever finds it.
        (sends(5, "m", false), held(), with(as_owner(5), "m", SideState::Sending), saw(5), Step::HandOver),
        (Order::Unknown, held(), with(as_owner(5), "m", kept()), saw(5), Step::Thaw),
        (Order::Unknown, held(), with(as_owner(5), "m", released()), saw(5), Step::Wait),
        // It was paused by its owner before the move, and the order does not say so while it moves.
        (
            sends(5, "m", false),
            alive(Run::Paused(Pause::Asked), Transfer::Cancelled),
            with(as_owner(5), "m", kept()),
            saw(5),
            Step::Wait,
        ),
        // A guest that has not run yet runs first.
        (
            sends(5, "m", false),
            alive(Run::Paused(Pause::NotStarted), Transfer::None),
            as_owner(5),
            saw(5),
            Step::Run,
        ),
    ]);
}

#[test]
fn a_transfer_is_cancelled_while_it_goes_and_only_then() {
    let sending = with(as_owner(5), "m", SideState::Sending);
    let going = alive(Run::Running, Transfer::Going);
    let cancelled = Step::Keep { why: "cancelled".into() };
    check(vec![
        (sends(5, "m", true), running(), as_owner(5), saw(5), cancelled.clone()),
        (sends(5, "m", true), going.clone(), sending.clone(), saw(5), Step::CancelSend),
        // Its order is gone altogether.
        (owns(5, owner()), going.clone(), sending.clone(), saw(5), Step::CancelSend),
        (
            sends(5, "m", true),
            alive(Run::Paused(Pause::Migrated), Transfer::Completed),
            sending.clone(),
            saw(5),
            Step::HandOver,
        ),
        (sends(5, "m", true), alive(Run::Running, Transfer::Cancelled), sending.clone(), saw(5), cancelled),
    ]);
    let stalled = Due { is_stalled: true, ..Due::default() };
    let asked = Due { is_cancelling: true, ..stalled };
    let order = sends(5, "m", false);
    assert_eq!(step_due(&order, &going, &sending, &saw(5), stalled), Step::CancelSend);
    assert_eq!(step_due(&order, &going, &sending, &saw(5), asked), Step::Wait);
    // Nobody orders anything while the server is away; a stall is ended all the same.
    assert_eq!(step_due(&Order::Unknown, &going, &sending, &saw(5), stalled), Step::CancelSend);
}

#[test]
fn a_transfer_that_gets_no_nearer_to_its_end_is_given_up_and_says_what_would_do() {
    let hopeless = Hopeless {
        allowed: Span::from_millis(300),
        left: Bytes::mib(40),
        rate: Bytes::mib(2),
        pause: Span::from_secs(23),
    };
    let (due, sending) =
        (Due { hopeless: Some(hopeless), ..Due::default() }, with(as_owner(5), "m", SideState::Sending));
    let asked = Due { is_cancelling: true, ..due };
    let (order, going) = (sends(5, "m", false), alive(Run::Running, Transfer::Going));
    assert_eq!(step_due(&order, &going, &sending, &saw(5), due), Step::CancelSend);
    assert_eq!(step_due(&order, &going, &sending, &saw(5), asked), Step::Wait);
    // Straight, QEMU says so; through the mover, the mover does.
    for said in [Transfer::Cancelled, Transfer::Failed { why: "cancelled".into() }] {
        let ended = alive(Run::Running, said);
        let why = hopeless.to_string();
        assert_eq!(step_due(&order, &ended, &sending, &saw(5), asked), Step::Keep { why });
    }
    // It failed by itself before anybody asked it to end.
    let failed = alive(Run::Running, Transfer::Failed { why: "broken pipe".into() });
    let why = "broken pipe".to_owned();
    assert_eq!(step_due(&order, &failed, &sending, &saw(5), due), Step::Keep { why });
}

#[test]
fn a_guest_that_shuts_down_is_not_moved() {
    let notes = as_owner(5).map(|notes| Notes { ending: Some(Cause::Asked), ..notes });
    let why = "the guest is shutting down".to_owned();
    assert_eq!(step(&sends(5, "m", false), &running(), &notes, &saw(5)), Step::Keep { why });
}

#[test]
fn released_is_killed_and_then_said() {
    let release = || given(6, Role::Release);
    check(vec![
        (release(), running(), as_owner(5), saw(5), Step::Kill(Cause::Released)),
        (release(), running(), as_owner(6), saw(6), Step::Kill(Cause::Released)),
        // Its shim or its QEMU hangs. Before the records were read nothing is killed.
        (release(), Body::Unknown, as_owner(5), saw(5), Step::Kill(Cause::Released)),
        (release(), Body::Unknown, as_owner(7), saw(7), Step::Refuse),
        (release(), Body::Unknown, None, None, Step::Wait),
        (
            owns(5, Owner { power: Power::Off, ..owner() }),
            Body::Unknown,
            as_owner(5),
            saw(5),
            Step::Kill(Cause::Forced),
        ),
        (release(), Body::Absent, None, None, Step::Conclude(Exit::Released)),
        (release(), ended(), as_owner(6), saw(6), Step::Wait),
        // A start under 6 was announced and called off: the server waits to hear that nothing came of it.
        (release(), ended(), as_owner(5), saw(5), Step::Conclude(Exit::Released)),
        // The target of an undone migration has a higher epoch than the owner; it never ran.
        (
            given(5, Role::Release),
            taken_in(Transfer::Going),
            with(as_target(6, "m"), "m", listening()),
            saw_target(6, "m"),
            Step::Kill(Cause::Released),
        ),
    ]);
}

#[test]
fn what_is_not_in_the_assignment_is_left_alone_or_forgotten() {
    check(vec![
        (Order::Absent, running(), as_owner(5), saw(5), Step::Wait),
        (Order::Absent, ended(), as_owner(5), saw(5), Step::Forget),
        (Order::Absent, Body::Absent, None, saw(5), Step::Forget),
        // Before the first word of the server, silence means nothing.
        (Order::Unknown, ended(), as_owner(5), saw(5), Step::Wait),
        (Order::Unknown, running(), as_owner(5), saw(5), Step::Wait),
        (Order::Unknown, Body::Absent, None, saw(5), Step::Wait),
    ]);
}

#[test]
fn resets_are_carried_out_once() {
    let order = |n| owns(5, Owner { reset_request: n, ..owner() });
    let done = as_owner(5).map(|notes| Notes { reset_request: 2, ..notes });
    check(vec![
        (order(3), running(), done.clone(), saw(5), Step::Reset(3)),
        (order(2), running(), done.clone(), saw(5), Step::Wait),
        (
            order(3),
            alive(Run::Running, Transfer::Going),
            with(done, "m", SideState::Sending),
            saw(5),
            Step::CancelSend,
        ),
    ]);
}

#[test]
fn a_kill_that_was_begun_is_finished() {
    let notes = as_owner(5).map(|notes| Notes { ending: Some(Cause::Forced), ..notes });
    assert_eq!(step(&owns(5, owner()), &running(), &notes, &saw(5)), Step::Kill(Cause::Forced));
}

#[test]
fn a_copy_that_runs_under_no_lease_comes_under_the_one_it_is_told() {
    let order = owns(5, Owner { host_epoch: Some(3), ..owner() });
    let listed = as_owner(5).map(|notes| Notes { lease: Some(3), ..notes });
    // Once there it stays, whatever is ordered: nobody could say when it has left.
    let elsewhere = owns(5, Owner { host_epoch: Some(4), ..owner() });
    check(vec![
        (order.clone(), running(), as_owner(5), saw(5), Step::Enlist(3)),
        (order, running(), listed.clone(), saw(5), Step::Wait),
        (elsewhere, running(), listed.clone(), saw(5), Step::Wait),
        (owns(5, owner()), running(), listed, saw(5), Step::Wait),
    ]);
}
