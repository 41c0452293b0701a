//! When a guest is reset by its host, and when no more.

use std::time::Duration;

use super::*;
use crate::vm::restart::tests::owner;

const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

fn with(order: HealthOrder) -> Owner {
    Owner { health: Some(order), ..owner() }
}

fn panicked() -> Run {
    Run::Paused(Pause::Panicked)
}

fn reset(why: &str) -> Option<Cure> {
    Some(Cure::Reset { why: why.to_owned() })
}

#[test]
fn a_fault_is_cured_as_the_order_says() {
    let hung = Fault::Hung { why: "x".into() };
    let check = Fault::Check { check: "http :80/".into(), why: "no answer".into() };
    let lenient =
        || HealthOrder { on_panic: OnFault::Leave, on_hang: OnFault::Leave, ..HealthOrder::default() };
    let strict = HealthOrder::default;
    let table = [
        (strict(), panicked(), None, reset("the guest crashed")),
        (strict(), Run::Running, Some(&Fault::Watchdog), reset("the guest did not feed its watchdog")),
        (strict(), Run::Running, Some(&hung), reset("the guest hangs: x")),
        (strict(), Run::Running, Some(&check), reset("check http :80/ fails: no answer")),
        (strict(), Run::Running, None, None),
        // What stands still for another reason is not cured by a reset.
        (strict(), Run::Paused(Pause::IoError(vec![])), Some(&hung), None),
        (strict(), Run::Paused(Pause::Asked), Some(&hung), None),
        (lenient(), panicked(), None, None),
        (lenient(), Run::Running, Some(&Fault::Watchdog), None),
        (lenient(), Run::Running, Some(&hung), None),
        (lenient(), Run::Running, Some(&check), reset("check http :80/ fails: no answer")),
    ];
    for (order, run, fault, expected) in table {
        let what = format!("{order:?} {run:?} {fault:?}");
        assert_eq!(cure(&with(order), &run, fault, &Resets::default(), true), expected, "{what}");
    }
    // A server that says nothing of it wants nothing done.
    assert_eq!(cure(&owner(), &panicked(), None, &Resets::default(), true), None);
}

#[test]
fn after_three_resets_in_an_hour_a_guest_is_left_alone_until_a_person_asks() {
    let mut resets = Resets::default();
    for minute in 0..3 {
        let now = NOW + Duration::from_secs(60 * minute);
        assert!(resets.may_reset(now));
        resets.add("x".into(), now);
    }
    let later = |minutes: u64| NOW + Duration::from_secs(60 * minutes);
    assert!(!resets.may_reset(later(3)));
    assert!(!resets.may_reset(later(59)));
    assert!(resets.may_reset(later(60)), "the first is an hour old");
    let owner = with(HealthOrder { power_request: 4, ..HealthOrder::default() });
    let quarantined = Cure::Quarantine { why: "the guest crashed".into() };
    assert_eq!(cure(&owner, &panicked(), None, &resets, false), Some(quarantined));
    resets.quarantine = Some(Quarantine { why: "x".into(), power_request: 4, reset_request: 0 });
    assert_eq!(cure(&owner, &panicked(), None, &resets, true), None, "time alone does not lift it");
    let started = with(HealthOrder { power_request: 5, ..HealthOrder::default() });
    assert_eq!(cure(&started, &panicked(), None, &resets, false), Some(Cure::Forgive));
    let was_reset = Owner { reset_request: 1, ..owner };
    assert_eq!(cure(&was_reset, &panicked(), None, &resets, false), Some(Cure::Forgive));
    resets.forgive();
    assert!(resets.may_reset(later(3)));
    assert_eq!(
        (resets.count, cure(&started, &panicked(), None, &resets, true)),
        (3, reset("the guest crashed"))
    );
}
