//! What is frozen, killed and gone, and when.

use super::*;

fn vm(n: u128) -> VmId {
    VmId::from_u128(n)
}

fn listed(n: u128, starting: bool) -> VmUnderLease {
    let isolation = Isolation::Kill;
    VmUnderLease { vm: vm(n), epoch: 7, host_epoch: Epoch(3), isolation, starting }
}

fn kept(n: u128) -> VmUnderLease {
    VmUnderLease { isolation: Isolation::Keep, ..listed(n, false) }
}

const HELD: Option<Epoch> = Some(Epoch(3));

/// What is done to processes, without what is told.
fn done(effects: &mut Vec<Effect>) -> Vec<Effect> {
    std::mem::take(effects).into_iter().filter(|effect| !matches!(effect, Effect::Report(_))).collect()
}

fn freeze_and_kill(n: u128) -> Vec<Effect> {
    vec![Effect::Freeze { vm: vm(n) }, Effect::Kill { vm: vm(n) }]
}

#[test]
fn only_what_could_be_restarted_elsewhere_and_may_not_stay_is_frozen_and_killed() {
    let (mut vms, mut effects) = (Vms::default(), Vec::new());
    vms.set_list(&[listed(1, false), kept(2)], HELD, &mut effects);
    assert!(done(&mut effects).is_empty());
    vms.freeze(&mut effects);
    assert_eq!(done(&mut effects), [Effect::Freeze { vm: vm(1) }]);
    vms.freeze(&mut effects);
    assert!(done(&mut effects).is_empty(), "once");
    vms.thaw(&mut effects);
    assert_eq!(done(&mut effects), [Effect::Thaw { vm: vm(1) }]);
    vms.expire(&mut effects);
    assert_eq!(done(&mut effects), freeze_and_kill(1));
    assert!(vms.any_doomed() && !vms.any_at_stake());
    vms.on_reaped(vm(1), &mut effects);
    assert_eq!(effects, [Effect::Report(Report::Gone { vm: vm(1) })]);
    assert!(!vms.any_doomed());
    assert_eq!(vms.len(), 1, "the one that stays");
}

#[test]
fn a_vm_that_is_not_reaped_is_not_gone_whatever_the_agent_says() {
    let (mut vms, mut effects) = (Vms::default(), Vec::new());
    vms.set_list(&[listed(1, false)], HELD, &mut effects);
    vms.expire(&mut effects);
    vms.set_list(&[], HELD, &mut effects);
    vms.on_agent_lost(&mut effects);
    assert!(vms.any_doomed());
    vms.set_list(&[kept(1)], HELD, &mut effects);
    assert!(vms.any_doomed(), "it is too late for that");
    vms.on_reaped(vm(2), &mut effects);
    assert!(vms.any_doomed(), "another one");
}

#[test]
fn a_vm_whose_start_is_under_way_is_not_gone_and_is_looked_for_again() {
    enum End {
        Made,
        GivenUp,
        AgentLost,
    }
    for end in [End::Made, End::GivenUp, End::AgentLost] {
        let (mut vms, mut effects) = (Vms::default(), Vec::new());
        vms.set_list(&[listed(1, true)], HELD, &mut effects);
        vms.expire(&mut effects);
        assert_eq!(done(&mut effects), freeze_and_kill(1));
        vms.on_reaped(vm(1), &mut effects);
        assert!(vms.any_doomed(), "no process yet is not none");
        match end {
            End::Made => vms.set_list(&[listed(1, false)], None, &mut effects),
            End::GivenUp => vms.set_list(&[], None, &mut effects),
            End::AgentLost => vms.on_agent_lost(&mut effects),
        }
        assert_eq!(done(&mut effects), [Effect::Kill { vm: vm(1) }]);
        assert!(vms.any_doomed());
        vms.on_reaped(vm(1), &mut effects);
        assert!(!vms.any_doomed());
    }
}

#[test]
fn a_copy_without_the_lease_of_its_epoch_is_killed_as_soon_as_it_is_listed() {
    for (held, is_killed) in [(HELD, false), (Some(Epoch(4)), true), (Some(Epoch(2)), true), (None, true)] {
        let (mut vms, mut effects) = (Vms::default(), Vec::new());
        vms.set_list(&[listed(1, false), kept(2)], held, &mut effects);
        let expected = if is_killed { freeze_and_kill(1) } else { Vec::new() };
        assert_eq!(done(&mut effects), expected, "{held:?}");
        assert_eq!(vms.any_doomed(), is_killed);
    }
}

#[test]
fn a_vm_that_the_agent_no_longer_lists_is_let_go_thawed() {
    let (mut vms, mut effects) = (Vms::default(), Vec::new());
    vms.set_list(&[listed(1, false)], HELD, &mut effects);
    vms.freeze(&mut effects);
    effects.clear();
    vms.set_list(&[], HELD, &mut effects);
    assert_eq!(done(&mut effects), [Effect::Thaw { vm: vm(1) }]);
    assert!(vms.is_empty());
}

#[test]
fn a_start_needs_a_place_in_the_list_and_an_order_that_is_not_old() {
    let (mut vms, mut effects) = (Vms::default(), Vec::new());
    vms.set_list(&[listed(1, true), listed(2, false), listed(3, true)], HELD, &mut effects);
    vms.doom(vm(3), KillReason::LeaseExpired, &mut effects);
    for (which, ordered, expected) in [
        (1, 7, Ok(())),
        (1, 8, Ok(())),
        (1, 6, Err(StartRefusal::OldVmEpoch { seen: 7, ordered: 6 })),
        (2, 7, Err(StartRefusal::NotListed)),
        (3, 7, Err(StartRefusal::BeingKilled)),
        (4, 7, Err(StartRefusal::NotListed)),
    ] {
        assert_eq!(vms.check_start(vm(which), ordered), expected, "{which} {ordered}");
    }
}

#[test]
fn a_successor_goes_on_with_the_living_and_kills_the_dying_again() {
    let page = [
        PageVm { vm: listed(1, false), doomed: false },
        PageVm { vm: listed(2, false), doomed: true },
        PageVm { vm: kept(3), doomed: false },
    ];
    let mut effects = Vec::new();
    let mut vms = Vms::resume(&page, HELD, &mut effects);
    assert_eq!(done(&mut effects), freeze_and_kill(2));
    assert_eq!(vms.for_page(), page);
    vms.thaw(&mut effects);
    assert_eq!(done(&mut effects), [Effect::Thaw { vm: vm(1) }], "nobody knows whether it was frozen");
    let mut vms = Vms::resume(&page, HELD, &mut Vec::new());
    vms.freeze(&mut effects);
    assert_eq!(done(&mut effects), [Effect::Freeze { vm: vm(1) }]);
    Vms::resume(&page, None, &mut effects);
    let killed: Vec<_> =
        done(&mut effects).into_iter().filter(|e| matches!(e, Effect::Kill { .. })).collect();
    assert_eq!(killed, [Effect::Kill { vm: vm(2) }, Effect::Kill { vm: vm(1) }]);
}

#[test]
fn a_list_without_end_is_refused_whole() {
    let (mut vms, mut effects) = (Vms::default(), Vec::new());
    let many: Vec<_> = (0..=VMS_MAX as u128).map(|n| listed(n, false)).collect();
    vms.set_list(&many, HELD, &mut effects);
    assert!(vms.is_empty());
    assert_eq!(effects, [Effect::Report(Report::VmsRefused { count: VMS_MAX + 1, limit: VMS_MAX })]);
}
