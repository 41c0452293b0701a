//! The client's half, by instants.

use super::*;
use crate::core::membership::Configuration;

const A: HostId = HostId::from_u128(1);
const B: HostId = HostId::from_u128(2);
const C: HostId = HostId::from_u128(3);
const L: Duration = Duration::from_secs(4);

fn ms(n: u64) -> BootInstant {
    BootInstant(n * 1_000_000)
}

fn membership() -> Membership {
    let voters = [A, B, C].into_iter().collect();
    let configuration =
        Configuration { version: 1, voters, fencers: BTreeSet::new(), profile: Profile::QUICK };
    Membership::new(configuration).unwrap()
}

/// Joined at second 100, with the store asked at that instant.
fn candidate() -> Lease {
    let mut lease = Lease::resume(None, Epoch(4), ms(100_000));
    lease.join(Epoch(5), ms(100_000), L, ms(100_000)).unwrap();
    lease
}

fn ask(lease: &mut Lease, at: u64) -> u64 {
    lease.ask_if_due(&Profile::QUICK, ms(at)).unwrap().seq
}

fn ack(lease: &mut Lease, voter: HostId, seq: u64, at: u64) -> bool {
    lease.on_ack(voter, (Epoch(5), seq), &membership(), ms(at))
}

#[test]
fn a_majority_gives_the_lease_from_when_it_was_asked_for() {
    let mut lease = candidate();
    let seq = ask(&mut lease, 100_000);
    assert!(!ack(&mut lease, A, seq, 100_100));
    assert_eq!(lease.state(), State::Candidate { epoch: Epoch(5) });
    assert!(ack(&mut lease, B, seq, 103_900));
    assert_eq!(lease.state(), State::Held { epoch: Epoch(5) });
    assert_eq!(lease.deadline(), Some(ms(104_000)), "not 107.9 s, when the answer came");
    assert!(!ack(&mut lease, C, seq, 103_950), "it is spent");
}

#[test]
fn one_voter_that_answers_twice_is_one() {
    let mut lease = candidate();
    let seq = ask(&mut lease, 100_000);
    assert!(!ack(&mut lease, A, seq, 100_100));
    assert!(!ack(&mut lease, A, seq, 100_200));
}

#[test]
fn answers_to_different_questions_make_no_majority() {
    let mut lease = candidate();
    let first = ask(&mut lease, 100_000);
    let second = ask(&mut lease, 101_000);
    assert!(!ack(&mut lease, A, first, 101_100));
    assert!(!ack(&mut lease, B, second, 101_100));
    assert!(ack(&mut lease, A, second, 101_200));
    assert_eq!(lease.deadline(), Some(ms(105_000)));
    assert!(!ack(&mut lease, B, first, 101_300), "an older one could not extend it");
}

#[test]
fn an_answer_to_nothing_that_was_asked_is_nothing() {
    let mut lease = candidate();
    let seq = ask(&mut lease, 100_000);
    assert!(!ack(&mut lease, A, seq + 1, 100_100));
    assert!(!lease.on_ack(A, (Epoch(4), seq), &membership(), ms(100_100)), "of another epoch");
    assert!(!lease.on_ack(B, (Epoch(4), seq), &membership(), ms(100_100)));
    assert_eq!(lease.state(), State::Candidate { epoch: Epoch(5) });
}

#[test]
fn a_late_majority_never_shortens_a_lease() {
    let mut lease = candidate();
    let first = ask(&mut lease, 100_000);
    let second = ask(&mut lease, 101_000);
    for voter in [A, B] {
        ack(&mut lease, voter, second, 101_100);
    }
    for voter in [A, B] {
        ack(&mut lease, voter, first, 101_200);
    }
    assert_eq!(lease.deadline(), Some(ms(105_000)));
}

#[test]
fn what_has_expired_stays_so() {
    let mut lease = candidate();
    let seq = ask(&mut lease, 100_000);
    assert!(!lease.expire_if_due(ms(103_999)));
    assert!(lease.expire_if_due(ms(104_000)));
    assert!(!lease.expire_if_due(ms(104_000)), "once");
    assert!(!ack(&mut lease, A, seq, 104_000));
    assert!(!ack(&mut lease, B, seq, 104_000));
    assert_eq!(lease.state(), State::Expired { epoch: Epoch(5) });
    assert_eq!(lease.ask_if_due(&Profile::QUICK, ms(105_000)), None);
    assert_eq!(lease.deadline(), None);
}

#[test]
fn a_candidate_lives_from_before_the_store_was_asked() {
    for (asked_at, now, joined) in [
        (100_000, 100_000, Ok(())),
        (96_001, 100_000, Ok(())),
        (96_000, 100_000, Err(JoinRefusal::TooLate)),
        (0, 100_000, Err(JoinRefusal::TooLate)),
        (100_001, 100_000, Err(JoinRefusal::NotOurClock)),
    ] {
        let mut lease = Lease::resume(None, Epoch(4), ms(now));
        assert_eq!(lease.join(Epoch(5), ms(asked_at), L, ms(now)), joined, "{asked_at}");
        assert_eq!(lease.deadline(), joined.ok().map(|()| ms(asked_at) + L));
    }
}

#[test]
fn an_epoch_is_used_once() {
    let mut lease = candidate();
    let join = |lease: &mut Lease, epoch| lease.join(Epoch(epoch), ms(100_500), L, ms(100_500));
    assert_eq!(join(&mut lease, 5), Ok(()), "said twice");
    assert_eq!(lease.deadline(), Some(ms(104_000)), "and changes nothing");
    assert_eq!(join(&mut lease, 6), Err(JoinRefusal::NotFree));
    assert!(lease.expire_if_due(ms(104_000)));
    assert_eq!(lease.join(Epoch(6), ms(104_000), L, ms(104_000)), Err(JoinRefusal::NotFree));
    lease.on_all_gone();
    assert_eq!(lease.join(Epoch(5), ms(104_000), L, ms(104_000)), Err(JoinRefusal::EpochUsed));
    assert_eq!(lease.join(Epoch(6), ms(104_000), L, ms(104_000)), Ok(()));
}

#[test]
fn a_returned_lease_is_not_renewed() {
    let mut lease = candidate();
    let seq = ask(&mut lease, 100_000);
    assert_eq!(lease.release(), Some(Epoch(5)));
    assert_eq!(lease.release(), None);
    assert!(!ack(&mut lease, A, seq, 100_100));
    assert!(!ack(&mut lease, B, seq, 100_100));
    assert_eq!(lease.state(), State::NoEpoch);
}

#[test]
fn after_a_stall_it_asks_once() {
    let mut lease = candidate();
    ask(&mut lease, 100_000);
    assert_eq!(lease.ask_if_due(&Profile::QUICK, ms(100_999)), None);
    ask(&mut lease, 103_500);
    assert_eq!(lease.ask_if_due(&Profile::QUICK, ms(104_000)), None);
    assert_eq!(lease.next_renewal(), Some(ms(104_500)));
}

#[test]
fn a_page_is_gone_on_with_only_before_its_deadline() {
    let held = |deadline| Some(HeldLease { epoch: Epoch(5), deadline: ms(deadline) });
    for (page, state) in [
        (held(100_001), State::Held { epoch: Epoch(5) }),
        (held(100_000), State::Expired { epoch: Epoch(5) }),
        (None, State::NoEpoch),
    ] {
        let lease = Lease::resume(page, Epoch(5), ms(100_000));
        assert_eq!(lease.state(), state);
        assert_eq!(lease.held(), page);
    }
}

#[test]
fn questions_of_a_successor_have_numbers_that_were_never_asked() {
    let mut before = candidate();
    let asked = (0..10).map(|n| ask(&mut before, 100_000 + n * 1_000)).max().unwrap();
    let mut after = Lease::resume(before.held(), Epoch(5), ms(110_000));
    after.join(Epoch(6), ms(110_000), L, ms(110_000)).unwrap();
    assert!(ask(&mut after, 110_000) > asked);
}
