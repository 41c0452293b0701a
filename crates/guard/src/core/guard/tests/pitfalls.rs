//! One test for each pitfall of the protocol that a guard could fall into.

use super::*;

#[test]
fn deadline_from_the_receive_time() {
    let mut play = Play::held();
    play.tick(101_000);
    play.grant(103_900);
    assert_eq!(play.last_page().lease.unwrap().deadline, ms(105_000));
}

#[test]
fn lease_revived_by_a_late_ack() {
    let mut play = Play::held();
    play.tick(101_000);
    // The guard stalls, and the answers are the first that it sees after the deadline.
    play.grant(104_000);
    assert_eq!(play.state(), State::Expired { epoch: Epoch(5) });
    assert!(play.has_killed());
}

#[test]
fn voter_restart_amnesia() {
    let mut play = Play::configured();
    play.tick(140_000);
    play.hear(140_000, B, Message::Renew { epoch: Epoch(2), seq: 9, promise: Profile::QUICK.promise() });
    let mut again = Play::start(Some(play.last_page()), 140_500);
    for at in [140_500, 147_514] {
        again.hear(at, FENCER, Message::Fence { host: B, epoch: Epoch(2), tau: ms(at) });
        again.hear(at, B, Message::Renew { epoch: Epoch(2), seq: 10, promise: Profile::QUICK.promise() });
    }
    let speaks = |effect: &Effect| matches!(effect, Effect::Send { .. });
    assert!(!again.done.iter().any(speaks), "7.014 s of silence");
    again.hear(147_515, FENCER, Message::Fence { host: B, epoch: Epoch(2), tau: ms(3) });
    assert!(again.done.iter().any(speaks));
}

#[test]
fn a_voter_that_remembers_nothing_is_silent_for_the_longest_promise() {
    let mut play = Play::configured();
    let end = ms(100_000) + PROMISE_MAX;
    let just_before = end.before(Duration::from_millis(1)).as_nanos() / 1_000_000;
    play.hear(just_before, FENCER, Message::Fence { host: B, epoch: Epoch(2), tau: ms(3) });
    assert!(!play.done.iter().any(|effect| matches!(effect, Effect::Send { .. })));
}

#[test]
fn never_leased_epoch() {
    let mut play = Play::configured();
    play.at(101_000, Event::Join { epoch: Epoch(5), asked_at: ms(100_000) });
    play.tick(103_999);
    assert_eq!(play.state(), State::Candidate { epoch: Epoch(5) });
    play.tick(104_000);
    assert_eq!(play.state(), State::NoEpoch, "from when the store was asked, not from when it answered");
    play.at(104_001, Event::Join { epoch: Epoch(5), asked_at: ms(104_001) });
    assert_eq!(play.state(), State::NoEpoch, "and not again");
}

#[test]
fn a_join_that_the_agent_brings_late_is_refused() {
    let mut play = Play::configured();
    play.at(130_000, Event::Join { epoch: Epoch(5), asked_at: ms(100_000) });
    let why = JoinRefusal::TooLate;
    assert!(play.has(&Effect::Report(Report::JoinRefused { epoch: Epoch(5), why })));
    assert_eq!(play.state(), State::NoEpoch);
}

#[test]
fn a_sleep_of_the_machine_counts() {
    let mut play = Play::held();
    // An hour on, the first thing that comes is a list from the agent.
    play.at(3_700_000, Event::VmsChanged(vec![listed(5, false)]));
    assert!(play.has_killed());
    assert_eq!(play.feeds(), 0);
}

#[test]
fn a_clock_that_goes_back_makes_no_lease_longer() {
    let mut play = Play::held();
    play.tick(103_990);
    play.done.clear();
    play.tick(50_000);
    assert_eq!(play.feeds(), 0);
    play.tick(104_000);
    assert!(play.has_killed());
}

#[test]
fn d_state_qemu_counted_as_dead() {
    let mut play = Play::held();
    play.tick(104_000);
    play.done.clear();
    for second in 105..200 {
        play.tick(second * 1000);
        play.at(second * 1000, Event::VmsChanged(Vec::new()));
        play.at(second * 1000, Event::Join { epoch: Epoch(6), asked_at: ms(second * 1000) });
    }
    assert_eq!(play.feeds(), 0);
    assert_eq!(play.state(), State::Expired { epoch: Epoch(5) });
}

#[test]
fn a_start_order_from_an_earlier_life_of_the_host() {
    let mut play = Play::held();
    play.tick(104_000);
    play.at(104_010, Event::Reaped { vm: VM });
    play.at(104_020, Event::Join { epoch: Epoch(6), asked_at: ms(104_020) });
    play.grant(104_030);
    assert_eq!(play.state(), State::Held { epoch: Epoch(6) });
    let refused = StartRefusal::WrongHostEpoch { held: Epoch(6), ordered: Epoch(5) };
    assert_eq!(play.may_start(104_040), Err(refused));
    play.at(104_050, Event::VmsChanged(vec![listed(5, true)]));
    let why = KillReason::WrongEpoch;
    assert!(play.has(&Effect::Report(Report::Killing { vm: VM, why })), "a copy that came up all the same");
}

#[test]
fn a_permitted_start_that_comes_after_the_lease_ended() {
    let mut play = Play::held();
    play.at(100_100, Event::VmsChanged(vec![listed(5, true)]));
    assert_eq!(play.may_start(100_100), Ok(()));
    play.tick(104_000);
    play.at(104_010, Event::Reaped { vm: VM });
    play.done.clear();
    play.tick(105_000);
    assert_eq!((play.feeds(), play.state()), (0, State::Expired { epoch: Epoch(5) }));
    // The agent wakes, starts QEMU, and says so.
    play.at(105_500, Event::VmsChanged(vec![listed(5, false)]));
    assert!(play.has_killed());
    play.at(105_510, Event::Reaped { vm: VM });
    assert_eq!(play.state(), State::NoEpoch);
}

#[test]
fn answers_to_another_host_with_the_same_id() {
    let mut play = Play::held();
    play.tick(101_000);
    let (epoch, seq) = play.last_question();
    for voter in [B, C] {
        play.hear(101_010, voter, Message::RenewAck { epoch, seq: seq + 1_000_000 });
    }
    play.tick(104_000);
    assert!(play.has_killed());
}
