//! When a majority is one, and when it only looks like it.

use super::*;

const H: HostId = HostId::from_u128(9);

fn host(n: u128) -> HostId {
    HostId::from_u128(n)
}

fn ms(n: u64) -> BootInstant {
    BootInstant(n * 1_000_000)
}

fn fencer(sets: &[&[u128]]) -> Fencer {
    let voters = sets.iter().map(|set| set.iter().map(|n| host(*n)).collect()).collect();
    let order = Order { host: H, epoch: Epoch(3), voters, configuration: 8, profile: Profile::QUICK };
    Fencer::start(order, ms(100_000))
}

fn ack(fencer: &mut Fencer, from: u128, tau: BootInstant) {
    fencer.on_message(host(from), &Message::FenceAck { host: H, epoch: Epoch(3), tau });
}

/// Asks at this instant and returns what was put into the questions.
fn ask(fencer: &mut Fencer, at: u64) -> BootInstant {
    match fencer.ask_if_due(ms(at)).first() {
        Some((_, Message::Fence { tau, .. })) => *tau,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_voter_is_asked_four_times_a_second() {
    let mut fencer = fencer(&[&[1, 2, 3], &[1, 2, 4]]);
    let asked: Vec<HostId> = fencer.ask_if_due(ms(100_000)).into_iter().map(|(voter, _)| voter).collect();
    assert_eq!(asked, [1, 2, 3, 4].map(host));
    assert!(fencer.ask_if_due(ms(100_249)).is_empty());
    assert_eq!(fencer.next_wake(), ms(100_250));
    assert_eq!(fencer.ask_if_due(ms(100_250)).len(), 4);
}

#[test]
fn a_majority_of_fresh_answers_is_a_proof_with_everything_in_it() {
    let mut fencer = fencer(&[&[1, 2, 3]]);
    let tau = ask(&mut fencer, 100_000);
    ack(&mut fencer, 1, tau);
    assert_eq!(fencer.proof(ms(100_100)), None);
    ack(&mut fencer, 3, tau);
    let proof = fencer.proof(ms(100_100)).unwrap();
    let acks = vec![(host(1), tau), (host(3), tau)];
    let decided_at = ms(100_100);
    assert_eq!(proof, Proof { host: H, epoch: Epoch(3), configuration: 8, acks, decided_at });
}

#[test]
fn an_answer_that_was_asked_for_half_a_promise_ago_does_not_count_with_a_fresh_one() {
    let mut fencer = fencer(&[&[1, 2, 3]]);
    let old = ask(&mut fencer, 100_000);
    ack(&mut fencer, 1, old);
    let fresh = ask(&mut fencer, 103_600);
    ack(&mut fencer, 2, fresh);
    assert_eq!(fencer.proof(ms(103_600)), None, "half of 7.014 s have passed");
    assert!(fencer.proof(ms(103_500)).is_some(), "at an instant at which both were young");
    ack(&mut fencer, 1, fresh);
    assert!(fencer.proof(ms(103_700)).is_some());
}

#[test]
fn an_answer_that_comes_late_is_as_old_as_its_question() {
    let mut fencer = fencer(&[&[1, 2, 3]]);
    let old = ask(&mut fencer, 100_000);
    let fresh = ask(&mut fencer, 104_000);
    ack(&mut fencer, 1, old);
    ack(&mut fencer, 2, fresh);
    assert_eq!(fencer.proof(ms(104_100)), None);
    ack(&mut fencer, 1, fresh);
    ack(&mut fencer, 1, old);
    assert!(fencer.proof(ms(104_100)).is_some(), "an older answer takes nothing back");
}

#[test]
fn what_is_no_answer_to_this_fencer_changes_nothing() {
    let mut fencer = fencer(&[&[1, 2, 3]]);
    let tau = ask(&mut fencer, 100_000);
    ack(&mut fencer, 1, tau);
    for (from, message) in [
        (2, Message::FenceAck { host: H, epoch: Epoch(2), tau }),
        (2, Message::FenceAck { host: host(8), epoch: Epoch(3), tau }),
        (2, Message::FenceAck { host: H, epoch: Epoch(3), tau: ms(100_001) }),
        (2, Message::FenceAck { host: H, epoch: Epoch(3), tau: ms(99_999) }),
        (2, Message::RenewAck { epoch: Epoch(3), seq: 1 }),
        (7, Message::FenceAck { host: H, epoch: Epoch(3), tau }),
        (1, Message::FenceAck { host: H, epoch: Epoch(3), tau }),
    ] {
        fencer.on_message(host(from), &message);
        assert_eq!(fencer.proof(ms(100_100)), None, "{from} {message:?}");
    }
}

#[test]
fn during_a_change_of_voters_both_sets_have_to_agree() {
    let mut fencer = fencer(&[&[1, 2, 3], &[1, 4, 5]]);
    let tau = ask(&mut fencer, 100_000);
    ack(&mut fencer, 2, tau);
    ack(&mut fencer, 3, tau);
    assert_eq!(fencer.proof(ms(100_100)), None);
    ack(&mut fencer, 4, tau);
    assert_eq!(fencer.proof(ms(100_100)), None);
    ack(&mut fencer, 5, tau);
    assert!(fencer.proof(ms(100_100)).is_some());
}

#[test]
fn without_voters_there_is_no_proof() {
    assert_eq!(fencer(&[]).proof(ms(100_000)), None);
    assert_eq!(fencer(&[&[]]).proof(ms(100_000)), None);
}
