//! Promises, and the end of promises.

use super::*;
use crate::core::profile::Profile;

const H: HostId = HostId::from_u128(1);
const FENCER: HostId = HostId::from_u128(99);
const TAU: BootInstant = BootInstant(42);

fn ms(n: u64) -> BootInstant {
    BootInstant(n * 1_000_000)
}

fn promise() -> Duration {
    Profile::QUICK.promise()
}

/// One that has been silent long enough, at second 100.
fn voter() -> Voter {
    Voter::start(promise(), ms(50_000))
}

fn renew(voter: &mut Voter, epoch: u64, at: BootInstant) -> Option<Message> {
    let message = Message::Renew { epoch: Epoch(epoch), seq: 7, promise: promise() };
    voter.on_message(H, &message, false, at)
}

fn fence(voter: &mut Voter, epoch: u64, at: BootInstant) -> Option<Message> {
    voter.on_message(FENCER, &Message::Fence { host: H, epoch: Epoch(epoch), tau: TAU }, true, at)
}

fn acked(epoch: u64) -> Option<Message> {
    Some(Message::RenewAck { epoch: Epoch(epoch), seq: 7 })
}

fn fenced(epoch: u64) -> Option<Message> {
    Some(Message::FenceAck { host: H, epoch: Epoch(epoch), tau: TAU })
}

#[test]
fn it_is_silent_until_all_that_it_may_have_promised_is_over() {
    let mut voter = Voter::start(promise(), ms(100_000));
    let end = ms(100_000) + promise();
    for at in [ms(100_000), end.before(Duration::from_nanos(1))] {
        assert_eq!(renew(&mut voter, 1, at), None);
        assert_eq!(fence(&mut voter, 1, at), None);
        assert_eq!(voter.on_message(FENCER, &Message::Query { host: H, tau: TAU }, true, at), None);
    }
    assert_eq!(fence(&mut voter, 1, end), fenced(1));
}

#[test]
fn a_promise_holds_a_fence_back_and_a_fence_ends_renewals() {
    let mut voter = voter();
    assert_eq!(renew(&mut voter, 3, ms(100_000)), acked(3));
    assert_eq!(fence(&mut voter, 3, ms(101_000)), None, "promised");
    let nack = Some(Message::RenewNack { epoch: Epoch(3), seq: 7, fenced: Epoch(3) });
    assert_eq!(renew(&mut voter, 3, ms(102_000)), nack, "and not extended");
    let over = ms(100_000) + promise();
    assert_eq!(fence(&mut voter, 3, over.before(Duration::from_nanos(1))), None);
    assert_eq!(fence(&mut voter, 3, over), fenced(3));
    assert_eq!(
        renew(&mut voter, 2, over),
        Some(Message::RenewNack { epoch: Epoch(2), seq: 7, fenced: Epoch(3) })
    );
    assert_eq!(renew(&mut voter, 4, over), acked(4), "a new epoch is another matter");
}

#[test]
fn only_fencers_fence() {
    let mut voter = voter();
    let message = Message::Fence { host: H, epoch: Epoch(3), tau: TAU };
    assert_eq!(voter.on_message(FENCER, &message, false, ms(100_000)), None);
    assert_eq!(renew(&mut voter, 3, ms(100_000)), acked(3));
}

#[test]
fn a_released_epoch_is_fenced_at_once_and_never_renewed() {
    let mut voter = voter();
    renew(&mut voter, 3, ms(100_000));
    assert_eq!(voter.on_message(H, &Message::Release { epoch: Epoch(3) }, false, ms(100_500)), None);
    assert!(matches!(renew(&mut voter, 3, ms(100_600)), Some(Message::RenewNack { .. })), "a late renewal");
    assert_eq!(fence(&mut voter, 3, ms(100_700)), fenced(3));
}

#[test]
fn a_late_farewell_ends_no_promise_to_a_later_epoch() {
    let mut voter = voter();
    renew(&mut voter, 4, ms(100_000));
    voter.on_message(H, &Message::Release { epoch: Epoch(3) }, false, ms(100_500));
    assert_eq!(fence(&mut voter, 4, ms(100_700)), None);
}

#[test]
fn a_voter_never_promises_for_longer_than_it_was_silent_or_would_be() {
    let mut voter = Voter::start(Duration::from_secs(1), ms(100_000));
    assert_eq!(
        renew(&mut voter, 1, ms(101_500)),
        None,
        "quarantine is over, and was too short for this promise"
    );
    assert_eq!(renew(&mut voter, 1, ms(100_000) + promise()), acked(1));
    let too_long = Message::Renew { epoch: Epoch(1), seq: 7, promise: PROMISE_MAX + Duration::from_nanos(1) };
    assert_eq!(voter.on_message(H, &too_long, false, ms(900_000)), None);
}

#[test]
fn a_successor_has_to_be_silent_for_the_longest_promise_that_runs() {
    let mut voter = Voter::start(promise(), ms(100_000));
    assert_eq!(voter.successors_quarantine(ms(100_001)), promise(), "what its predecessor promised");
    assert_eq!(voter.successors_quarantine(ms(140_000)), Duration::ZERO);
    let patient = Message::Renew { epoch: Epoch(1), seq: 7, promise: PROMISE_MAX };
    voter.on_message(H, &patient, false, ms(140_000));
    renew(&mut voter, 1, ms(141_000));
    assert_eq!(voter.successors_quarantine(ms(141_000)), PROMISE_MAX);
    assert_eq!(voter.successors_quarantine(ms(175_000)), Duration::ZERO);
}

#[test]
fn a_voter_says_how_long_a_host_was_silent_and_listens_before_it_says_never() {
    let mut voter = voter();
    let query = Message::Query { host: H, tau: TAU };
    let heard = voter.silent_until();
    let seen = |voter: &mut Voter, at| match voter.on_message(FENCER, &query, true, at) {
        Some(Message::LastSeen { host: H, tau: TAU, epoch, age }) => (epoch.0, age),
        other => panic!("{other:?}"),
    };
    assert_eq!(seen(&mut voter, heard + Duration::from_secs(3)), (0, Duration::from_secs(3)));
    renew(&mut voter, 5, ms(100_000));
    assert_eq!(seen(&mut voter, ms(101_500)), (5, Duration::from_millis(1500)));
}

#[test]
fn memory_is_bounded_and_only_what_a_restart_would_forget_is_forgotten() {
    let mut voter = voter();
    let ask = |voter: &mut Voter, n: usize, at| {
        let message = Message::Renew { epoch: Epoch(1), seq: 7, promise: promise() };
        voter.on_message(HostId::from_u128(1000 + n as u128), &message, false, at)
    };
    for n in 0..HOSTS_MAX {
        assert!(ask(&mut voter, n, ms(100_000)).is_some());
    }
    assert_eq!(ask(&mut voter, HOSTS_MAX, ms(100_000)), None, "full: no promise");
    assert_eq!(fence(&mut voter, 1, ms(100_000)), None, "nor an answer that it could not remember");
    let later = ms(100_000) + PROMISE_MAX;
    assert_eq!(ask(&mut voter, HOSTS_MAX, later.before(Duration::from_nanos(1))), None);
    assert!(ask(&mut voter, HOSTS_MAX, later).is_some());
    assert_eq!(voter.hosts.len(), HOSTS_MAX);
}
