//! Restarts, releases and changes of the configuration.

use super::*;

const D: HostId = HostId::from_u128(4);

#[test]
fn a_guard_that_restarts_in_time_goes_on_with_its_lease() {
    let play = Play::held();
    let mut again = Play::start(Some(play.last_page()), 101_000);
    assert_eq!(again.state(), State::Held { epoch: Epoch(5) });
    assert!(again.has(&Effect::Thaw { vm: VM }), "its predecessor may have ended in the last quarter");
    again.grant(101_100);
    again.tick(104_500);
    assert!(!again.has_killed());
    again.tick(105_000);
    assert!(again.has_killed(), "renewed at 101 s");
}

#[test]
fn a_guard_that_restarts_in_the_last_quarter_leaves_vms_frozen() {
    let again = Play::start(Some(Play::held().last_page()), 103_500);
    let halts = |effect: &&Effect| matches!(effect, Effect::Freeze { .. } | Effect::Thaw { .. });
    assert_eq!(again.done.iter().filter(halts).collect::<Vec<_>>(), [&Effect::Freeze { vm: VM }]);
}

#[test]
fn a_guard_that_restarts_too_late_kills_and_joins_anew() {
    let mut again = Play::start(Some(Play::held().last_page()), 104_000);
    assert!(again.has_killed());
    assert_eq!(again.feeds(), 0);
    again.at(104_100, Event::Reaped { vm: VM });
    assert_eq!(again.state(), State::NoEpoch);
    again.at(104_200, Event::Join { epoch: Epoch(5), asked_at: ms(104_200) });
    let why = JoinRefusal::EpochUsed;
    assert!(again.has(&Effect::Report(Report::JoinRefused { epoch: Epoch(5), why })));
    again.at(104_200, Event::Join { epoch: Epoch(6), asked_at: ms(104_200) });
    assert_eq!(again.state(), State::Candidate { epoch: Epoch(6) });
}

#[test]
fn a_page_of_another_boot_gives_no_lease_and_kills_nothing() {
    let page = Page { boot: Uuid::from_u128(78), ..Play::held().last_page() };
    let again = Play::start(Some(page), 1_000);
    assert_eq!(again.state(), State::NoEpoch);
    assert!(!again.has_killed());
    assert_eq!(again.last_page().last_epoch, Epoch(5));
}

#[test]
fn a_candidate_leaves_nothing_to_go_on_with() {
    let mut play = Play::configured();
    play.at(100_000, Event::Join { epoch: Epoch(5), asked_at: ms(100_000) });
    let page = play.last_page();
    assert_eq!((page.lease, page.last_epoch), (None, Epoch(5)));
    assert_eq!(Play::start(Some(page), 100_100).state(), State::NoEpoch);
}

#[test]
fn an_answer_to_a_question_of_the_guard_before_counts_for_nothing() {
    let mut before = Play::held();
    before.tick(101_000);
    let (epoch, seq) = before.last_question();
    let mut again = Play::start(Some(before.last_page()), 101_500);
    for voter in [B, C] {
        again.hear(101_600, voter, Message::RenewAck { epoch, seq });
    }
    assert_eq!(again.last_page().lease, Some(HeldLease { epoch, deadline: ms(104_000) }));
}

#[test]
fn a_lease_is_returned_once_no_vm_is_left_and_nothing_starts_meanwhile() {
    let mut play = Play::held();
    play.at(100_100, Event::VmsChanged(vec![listed(5, true)]));
    play.at(100_200, Event::Release);
    assert_eq!(play.may_start(100_200), Err(StartRefusal::Releasing));
    play.tick(101_000);
    play.grant(101_010);
    assert_eq!(play.state(), State::Held { epoch: Epoch(5) }, "a VM is left");
    play.at(101_500, Event::VmsChanged(Vec::new()));
    assert_eq!(play.state(), State::NoEpoch);
    for second in 102..110 {
        play.tick(second * 1000);
    }
    let goodbye = Effect::Send { to: B, message: Message::Release { epoch: Epoch(5) } };
    assert_eq!(play.done.iter().filter(|effect| **effect == goodbye).count(), usize::from(FAREWELLS));
    assert!(play.has(&Effect::Report(Report::Released { epoch: Epoch(5) })));
    assert_eq!(play.last_page().lease, None, "a successor does not go on with it");
}

#[test]
fn new_voters_are_asked_with_the_old_ones_until_both_have_granted() {
    let mut play = Play::held();
    play.tick(101_000);
    let (epoch, seq) = play.last_question();
    play.at(101_100, Event::Configure(configuration(2, &[ME, B, D])));
    for voter in [B, C] {
        play.hear(101_200, voter, Message::RenewAck { epoch, seq });
    }
    assert_eq!(play.last_page().lease.unwrap().deadline, ms(104_000), "the new ones were not asked yet");
    play.tick(102_000);
    let (epoch, seq) = play.last_question();
    for to in [B, C, D] {
        let promise = Profile::QUICK.promise();
        assert!(play.has(&Effect::Send { to, message: Message::Renew { epoch, seq, promise } }), "{to}");
    }
    for voter in [C, D] {
        play.hear(102_100, voter, Message::RenewAck { epoch, seq });
    }
    assert_eq!(play.last_page().lease.unwrap().deadline, ms(104_000), "one of each");
    play.hear(102_200, B, Message::RenewAck { epoch, seq });
    assert_eq!(play.last_page().lease.unwrap().deadline, ms(106_000));
    assert!(play.has(&Effect::Report(Report::ConfigurationConfirmed { version: 2 })));
    play.at(102_300, Event::Configure(configuration(3, &[B, C, D])));
    let is_refusal =
        |effect: &Effect| matches!(effect, Effect::Report(Report::ConfigurationRefused { version: 3, .. }));
    assert!(play.done.iter().any(is_refusal), "one change at a time");
}

#[test]
fn new_voters_are_not_confirmed_while_a_vm_of_the_lost_lease_is_not_gone() {
    for is_told_before in [true, false] {
        let mut play = Play::held();
        let told_at = if is_told_before { 103_000 } else { 104_500 };
        if !is_told_before {
            play.tick(104_000);
        }
        play.at(told_at, Event::Configure(configuration(2, &[D])));
        play.tick(105_000);
        assert_eq!(play.state(), State::Expired { epoch: Epoch(5) });
        let confirmed = |play: &Play, at| play.guard.status(ms(at)).confirmed_configuration;
        assert_eq!(confirmed(&play, 105_000), None, "{D} never promised anything: its word is no proof yet");
        play.at(105_100, Event::Reaped { vm: VM });
        assert_eq!((play.state(), confirmed(&play, 105_100)), (State::NoEpoch, Some(2)));
    }
}

#[test]
fn a_successor_in_the_middle_of_a_change_asks_both_sets() {
    let mut play = Play::held();
    play.at(101_100, Event::Configure(configuration(2, &[ME, B, D])));
    let again = Play::start(Some(play.last_page()), 101_500);
    let asked = again.done.iter().filter_map(|effect| match effect {
        Effect::Send { to, message: Message::Renew { .. } } => Some(*to),
        _ => None,
    });
    assert_eq!(asked.collect::<BTreeSet<_>>(), BTreeSet::from([B, C, D]));
}

#[test]
fn what_a_guard_cannot_use_is_refused_with_the_reason() {
    let mut play = Play::start(None, 100_000);
    play.at(100_000, Event::Join { epoch: Epoch(5), asked_at: ms(100_000) });
    let why = JoinRefusal::NotConfigured;
    assert!(play.has(&Effect::Report(Report::JoinRefused { epoch: Epoch(5), why })));
    let rare = Profile { renew: Duration::from_secs(4), ..Profile::QUICK };
    play.at(100_000, Event::Configure(Configuration { profile: rare, ..configuration(1, &[ME]) }));
    let refused = play.done.iter().find_map(|effect| match effect {
        Effect::Report(Report::ConfigurationRefused { version: 1, why }) => Some(why.as_str()),
        _ => None,
    });
    assert!(refused.unwrap().contains("too short for renewals"), "{refused:?}");
}

#[test]
fn the_same_events_give_the_same_effects() {
    let play = || {
        let mut play = Play::held();
        for tick in 0..200 {
            play.tick(100_000 + tick * 50);
        }
        play.done
    };
    assert_eq!(play(), play());
}
