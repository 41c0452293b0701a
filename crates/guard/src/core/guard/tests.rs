//! A guard among two other voters, whose answers the tests give.

use std::collections::BTreeSet;

use super::*;
use crate::core::event::{Isolation, KillReason, VmUnderLease};
use crate::core::page::{HeldLease, PageVm};
use crate::core::profile::Profile;

/// Restarts, releases and changes of the configuration.
mod life;
/// What the protocol's pitfalls look like to a guard.
mod pitfalls;

const ME: HostId = HostId::from_u128(1);
const B: HostId = HostId::from_u128(2);
const C: HostId = HostId::from_u128(3);
const FENCER: HostId = HostId::from_u128(99);
const BOOT: Uuid = Uuid::from_u128(77);
const VM: VmId = VmId::from_u128(0x1000);

fn ms(n: u64) -> BootInstant {
    BootInstant(n * 1_000_000)
}

fn configuration(version: u64, voters: &[HostId]) -> Configuration {
    let voters = voters.iter().copied().collect();
    Configuration { version, voters, fencers: BTreeSet::from([FENCER]), profile: Profile::QUICK }
}

fn listed(host_epoch: u64, starting: bool) -> VmUnderLease {
    let isolation = Isolation::Kill;
    VmUnderLease { vm: VM, epoch: 7, host_epoch: Epoch(host_epoch), isolation, starting }
}

/// A guard with what it did since somebody looked.
struct Play {
    guard: Guard,
    done: Vec<Effect>,
}

impl Play {
    fn start(page: Option<Page>, at: u64) -> Self {
        let mut play = Self { guard: Guard::start(ME, BOOT, page, ms(at)), done: Vec::new() };
        play.at(at, Event::Tick);
        play
    }

    /// One that knows its voters, at second 100.
    fn configured() -> Self {
        let mut play = Self::start(None, 100_000);
        play.at(100_000, Event::Configure(configuration(1, &[ME, B, C])));
        play
    }

    /// One whose lease for epoch 5 lasts until second 104, with a VM under it.
    fn held() -> Self {
        let mut play = Self::configured();
        play.at(100_000, Event::Join { epoch: Epoch(5), asked_at: ms(100_000) });
        play.grant(100_000);
        play.at(100_000, Event::VmsChanged(vec![listed(5, false)]));
        assert_eq!(play.state(), State::Held { epoch: Epoch(5) });
        play.done.clear();
        play
    }

    fn at(&mut self, at: u64, event: Event) {
        self.done.extend(self.guard.step(ms(at), event));
    }

    fn tick(&mut self, at: u64) {
        self.at(at, Event::Tick);
    }

    fn hear(&mut self, at: u64, from: HostId, message: Message) {
        self.at(at, Event::Datagram { from, message });
    }

    /// B and C answer the last renewal.
    fn grant(&mut self, at: u64) {
        let (epoch, seq) = self.last_question();
        for voter in [B, C] {
            self.hear(at, voter, Message::RenewAck { epoch, seq });
        }
    }

    fn last_question(&self) -> (Epoch, u64) {
        let mut sent = self.done.iter().rev().filter_map(|effect| match effect {
            Effect::Send { message: Message::Renew { epoch, seq, .. }, .. } => Some((*epoch, *seq)),
            _ => None,
        });
        sent.next().expect("it has asked")
    }

    fn state(&self) -> State {
        self.guard.status(self.guard.latest).lease
    }

    /// What was done of a kind since somebody looked.
    fn has(&self, wanted: &Effect) -> bool {
        self.done.contains(wanted)
    }

    fn has_killed(&self) -> bool {
        self.has(&Effect::Kill { vm: VM })
    }

    fn feeds(&self) -> usize {
        self.done.iter().filter(|effect| **effect == Effect::Pet).count()
    }

    fn last_page(&self) -> Page {
        self.guard.page.clone().expect("it has written one")
    }

    fn wake(&self) -> BootInstant {
        match self.done.last() {
            Some(Effect::NextWake(at)) => *at,
            other => panic!("{other:?}"),
        }
    }

    fn may_start(&self, at: u64) -> Result<(), StartRefusal> {
        self.guard.may_start(StartOrder { vm: VM, vm_epoch: 7, host_epoch: Epoch(5) }, ms(at))
    }
}

#[test]
fn a_cut_off_guard_freezes_then_kills_and_is_free_when_all_is_reaped() {
    let mut play = Play::held();
    play.tick(102_999);
    assert!(!play.has(&Effect::Freeze { vm: VM }));
    play.tick(103_000);
    assert!(play.has(&Effect::Freeze { vm: VM }), "at the last quarter");
    play.tick(103_999);
    assert!(!play.has_killed());
    play.tick(104_000);
    assert!(play.has_killed());
    assert_eq!(play.state(), State::Expired { epoch: Epoch(5) });
    play.at(104_010, Event::Reaped { vm: VM });
    assert_eq!(play.state(), State::NoEpoch);
    play.at(104_020, Event::Join { epoch: Epoch(6), asked_at: ms(104_015) });
    assert_eq!(play.state(), State::Candidate { epoch: Epoch(6) });
}

#[test]
fn a_renewal_in_the_last_quarter_thaws() {
    let mut play = Play::held();
    play.tick(103_000);
    play.grant(103_500);
    assert!(play.has(&Effect::Thaw { vm: VM }));
    play.tick(106_999);
    assert_eq!(play.state(), State::Held { epoch: Epoch(5) });
    assert!(!play.has_killed());
}

#[test]
fn a_whole_day_of_renewals_does_nothing_to_any_vm() {
    let mut play = Play::held();
    for second in 101..2_000 {
        play.tick(second * 1000);
        play.grant(second * 1000 + 30);
    }
    let touched = |effect: &&Effect| {
        matches!(effect, Effect::Freeze { .. } | Effect::Thaw { .. } | Effect::Kill { .. })
    };
    assert_eq!(play.done.iter().find(touched), None);
    assert_eq!(play.state(), State::Held { epoch: Epoch(5) });
}

#[test]
fn the_guard_wakes_for_every_instant_that_matters() {
    let mut play = Play::held();
    play.tick(100_000);
    assert_eq!(play.wake(), ms(100_750), "to feed, a quarter of three seconds on");
    play.tick(100_900);
    assert_eq!(play.wake(), ms(101_000), "to renew");
    play.tick(102_950);
    assert_eq!(play.wake(), ms(103_000), "to freeze");
    play.tick(103_960);
    assert_eq!(play.wake(), ms(104_000), "to kill");
}

#[test]
fn the_watchdog_is_fed_only_while_all_is_well() {
    for (why, vms, reaped, is_fed) in [
        ("no VM under the lease", vec![], false, true),
        (
            "one that stays",
            vec![VmUnderLease { isolation: Isolation::Keep, ..listed(5, false) }],
            false,
            true,
        ),
        ("killed and not reaped", vec![listed(5, false)], false, false),
        ("killed and reaped", vec![listed(5, false)], true, true),
        ("a start under way", vec![listed(5, true)], true, false),
    ] {
        let mut play = Play::held();
        play.at(100_100, Event::VmsChanged(vms));
        play.tick(104_000);
        if reaped {
            play.at(104_001, Event::Reaped { vm: VM });
        }
        play.done.clear();
        for tick in 0..10 {
            play.tick(105_000 + tick * 1000);
        }
        assert_eq!(play.feeds() > 0, is_fed, "{why}");
    }
}

#[test]
fn the_watchdog_is_fed_four_times_within_its_time_out_and_never_at_the_deadline() {
    let mut play = Play::held();
    let mut fed_at = Vec::new();
    for tick in 0..600 {
        play.done.clear();
        let at = 100_010 + tick * 10;
        play.tick(at);
        if play.feeds() > 0 {
            fed_at.push(at);
        }
    }
    assert!(fed_at.windows(2).all(|two| two[1] - two[0] <= 760), "{fed_at:?}");
    assert!(fed_at.iter().all(|at| *at < 104_000), "{fed_at:?}");
}

#[test]
fn the_watchdog_is_set_before_it_is_relied_upon_and_not_by_a_host_that_should_die() {
    let play = Play::configured();
    assert!(play.has(&Effect::ProgramWatchdog { timeout: Duration::from_secs(3) }));
    let mut dying = Play::held();
    dying.tick(104_000);
    let mut again = Play::start(Some(dying.last_page()), 104_100);
    for tick in 0..10 {
        again.tick(104_100 + tick * 500);
    }
    assert!(again.has_killed(), "once more");
    assert_eq!(again.feeds(), 0);
    let sets = |effect: &Effect| matches!(effect, Effect::ProgramWatchdog { .. });
    assert!(!again.done.iter().any(sets), "to set it is to feed it");
}

#[test]
fn a_start_is_allowed_under_the_held_epoch_well_before_the_deadline() {
    let mut play = Play::held();
    assert_eq!(play.may_start(100_100), Err(StartRefusal::NotListed));
    play.at(100_100, Event::VmsChanged(vec![listed(5, true)]));
    for (at, expected) in [
        (100_100, Ok(())),
        (102_999, Ok(())),
        (103_000, Err(StartRefusal::TooLate)),
        (103_500, Err(StartRefusal::TooLate)),
        (999_000, Err(StartRefusal::TooLate)),
    ] {
        assert_eq!(play.may_start(at), expected, "{at}");
    }
    for epoch in [4, 6] {
        let order = StartOrder { vm: VM, vm_epoch: 7, host_epoch: Epoch(epoch) };
        let refused = StartRefusal::WrongHostEpoch { held: Epoch(5), ordered: Epoch(epoch) };
        assert_eq!(play.guard.may_start(order, ms(100_100)), Err(refused));
    }
    play.tick(104_000);
    assert_eq!(play.may_start(104_000), Err(StartRefusal::NoLease));
}

#[test]
fn what_stops_writers_comes_first_and_the_page_before_what_relies_on_it() {
    let mut play = Play::held();
    play.tick(104_500);
    let ranks: Vec<u8> = play.done.iter().map(Effect::rank).collect();
    assert!(ranks.is_sorted(), "{:?}", play.done);
    assert!(matches!(play.done.first(), Some(Effect::Freeze { .. })));
    let page = play.last_page();
    assert_eq!(page.vms, [PageVm { vm: listed(5, false), doomed: true }]);
}

#[test]
fn a_guard_votes_for_its_own_host_without_a_datagram() {
    let mut play = Play::start(None, 100_000);
    play.at(100_000, Event::Configure(configuration(1, &[ME, B, C])));
    // Its own quarantine is over, so one other voter makes two.
    play.at(140_000, Event::Join { epoch: Epoch(5), asked_at: ms(140_000) });
    let (epoch, seq) = play.last_question();
    play.hear(140_100, B, Message::RenewAck { epoch, seq });
    assert_eq!(play.state(), State::Held { epoch: Epoch(5) });
    let to_me = |effect: &Effect| matches!(effect, Effect::Send { to: ME, .. });
    assert!(!play.done.iter().any(to_me));
}

#[test]
fn a_guard_answers_as_a_voter_and_writes_down_how_long_its_successor_is_silent() {
    let mut play = Play::configured();
    let promise = Profile::PATIENT.promise();
    play.tick(140_000);
    play.done.clear();
    play.hear(140_000, B, Message::Renew { epoch: Epoch(2), seq: 9, promise });
    let answer = Effect::Send { to: B, message: Message::RenewAck { epoch: Epoch(2), seq: 9 } };
    let persisted = play.done.iter().position(|effect| matches!(effect, Effect::Persist(_)));
    let answered = play.done.iter().position(|effect| *effect == answer);
    assert!(persisted.unwrap() < answered.unwrap());
    assert_eq!(play.last_page().quarantine, promise);
    play.hear(140_100, FENCER, Message::Fence { host: B, epoch: Epoch(2), tau: ms(1) });
    play.hear(140_100, C, Message::Fence { host: B, epoch: Epoch(9), tau: ms(1) });
    let over = 140_000 + 30_061;
    play.hear(over, FENCER, Message::Fence { host: B, epoch: Epoch(2), tau: ms(2) });
    let ack = Message::FenceAck { host: B, epoch: Epoch(2), tau: ms(2) };
    assert!(play.has(&Effect::Send { to: FENCER, message: ack }));
}

#[test]
fn a_fenced_epoch_is_said_once_and_runs_out() {
    let mut play = Play::held();
    let nack = Message::RenewNack { epoch: Epoch(5), seq: 0, fenced: Epoch(5) };
    for at in [101_000, 102_000] {
        play.hear(at, B, nack);
    }
    let said = Effect::Report(Report::Fenced { voter: B, fenced: Epoch(5) });
    assert_eq!(play.done.iter().filter(|effect| **effect == said).count(), 1);
    assert_eq!(play.state(), State::Held { epoch: Epoch(5) }, "the deadline stands");
}
