//! From three voters to other three, with a lease held all the while.

use super::*;

fn configuration(version: u64, voters: &[u128], profile: Profile) -> Configuration {
    let voters = voters.iter().copied().map(HostId::from_u128).collect();
    Configuration { version, voters, fencers: BTreeSet::new(), profile }
}

fn hosts(numbers: &[u128]) -> BTreeSet<HostId> {
    numbers.iter().copied().map(HostId::from_u128).collect()
}

fn second(n: u64) -> BootInstant {
    BootInstant(n * 1_000_000_000)
}

#[test]
fn during_a_change_a_majority_of_both_sets_is_needed() {
    let mut membership = Membership::new(configuration(1, &[1, 2, 3], Profile::QUICK)).unwrap();
    membership.change(configuration(2, &[1, 4, 5], Profile::QUICK), second(100), 7).unwrap();
    let granted = |agreed: &[u128]| membership.is_granted_by(&hosts(agreed), Mutations::default());
    assert_eq!(membership.everybody(), hosts(&[1, 2, 3, 4, 5]));
    assert!(!granted(&[1, 2, 3]));
    assert!(!granted(&[1, 4, 5]));
    assert!(granted(&[1, 2, 4]));
    assert!(granted(&[2, 3, 4, 5]));
}

#[test]
fn the_former_voters_count_until_the_deadline_rests_on_both_and_a_promise_has_passed() {
    let mut membership = Membership::new(configuration(1, &[1, 2, 3], Profile::QUICK)).unwrap();
    membership.change(configuration(2, &[1, 2, 4], Profile::QUICK), second(100), 7).unwrap();
    let both = membership.everybody();
    assert_eq!(membership.confirmed_version(), None);
    assert!(!membership.on_granted(6), "asked before the change");
    membership.settle(second(200));
    assert_eq!(membership.everybody(), both, "nothing was granted by both yet");
    assert!(membership.on_granted(7));
    assert!(!membership.on_granted(8), "said once");
    assert_eq!(membership.confirmed_version(), Some(2));
    membership.settle(second(107));
    assert_eq!(membership.everybody(), both, "a promise takes longer than seven seconds");
    membership.settle(second(108));
    assert_eq!(membership.everybody(), hosts(&[1, 2, 4]));
}

#[test]
fn one_change_at_a_time_and_never_back() {
    let mut membership = Membership::new(configuration(3, &[1, 2, 3], Profile::QUICK)).unwrap();
    let next = |version| configuration(version, &[1, 2, 4], Profile::QUICK);
    assert_eq!(membership.change(next(3), second(1), 1), Err(Refused::Old { have: 3 }));
    membership.change(next(4), second(1), 1).unwrap();
    assert_eq!(membership.change(next(5), second(1), 1), Err(Refused::ChangeUnderWay { to: 4 }));
    assert_eq!(membership.replace(next(4)), Err(Refused::Old { have: 4 }));
    membership.replace(next(5)).unwrap();
    assert_eq!(membership.everybody(), hosts(&[1, 2, 4]));
}

#[test]
fn until_a_new_profile_is_confirmed_the_shorter_watchdog_holds() {
    let three = Duration::from_secs(3);
    let five = Duration::from_secs(5);
    for (from, to, at_first, at_last) in
        [(Profile::QUICK, Profile::STANDARD, three, five), (Profile::STANDARD, Profile::QUICK, three, three)]
    {
        let mut membership = Membership::new(configuration(1, &[1], from)).unwrap();
        membership.change(configuration(2, &[1], to), second(1), 9).unwrap();
        assert_eq!(membership.watchdog(), at_first);
        assert!(membership.on_granted(9));
        assert_eq!(membership.watchdog(), at_last);
    }
}

#[test]
fn an_unsafe_configuration_is_refused_and_changes_nothing() {
    let mut membership = Membership::new(configuration(1, &[1, 2, 3], Profile::QUICK)).unwrap();
    let before = membership.clone();
    assert!(matches!(
        membership.change(configuration(2, &[], Profile::QUICK), second(1), 1),
        Err(Refused::Voters(voters::Error::None))
    ));
    let rare = Profile { renew: Duration::from_secs(4), ..Profile::QUICK };
    assert!(matches!(membership.replace(configuration(2, &[1], rare)), Err(Refused::Profile(_))));
    assert_eq!(membership, before);
}
