//! Faults that aim at one defect each. The victim is host 0, which is no voter; 1, 2 and 3 are.

use sterna_guard::core::profile::Profile;

use super::Draft;
use crate::lease::fault::{Fault, Who};

const VICTIM: usize = 0;
/// As long as it lasts.
const LONG: u64 = 120_000;

impl Draft<'_> {
    /// Answers that left just before the line is cut arrive until long after, each counted anew by a host that counts from
    /// when they come.
    pub(super) fn slow_acks(&mut self) {
        self.setup.profile = *self.random.pick(&[Profile::STANDARD, Profile::QUICK]);
        let begin = self.begin_ms();
        let by_ms = self.lease_ms(60) + self.random.below(self.lease_ms(38));
        let slow = by_ms + self.random.below(by_ms);
        for voter in 1..=3 {
            self.at(begin, Fault::Slow { from: voter, to: VICTIM, by_ms, ms: slow });
        }
        let cut = begin + slow.min(by_ms + self.random.below(2000));
        for to in 1..=3 {
            self.at(cut, Fault::Cut { from: VICTIM, to, ms: 30_000 });
        }
        self.setup.calm_at_ms = cut + 25_000;
    }

    pub(super) fn forgetful_voter(&mut self) {
        self.setup.profile = *self.random.pick(&[Profile::STANDARD, Profile::QUICK]);
        self.setup.weather.page_survives = 1000;
        let begin = self.begin_ms();
        let promise = self.promise_ms();
        self.cut_both(begin, (VICTIM, 3), LONG);
        let fence = begin + promise + self.random.below(2000);
        self.at(fence, Fault::Suspect { host: VICTIM });
        let crash = fence.saturating_sub(500) + self.random.below(1500);
        self.at(crash, Fault::CrashGuard { machine: 1, down_ms: 20 });
        if self.random.chance(700) {
            self.cut_both(crash, (VICTIM, 1), 10_000);
        }
        self.setup.calm_at_ms = fence + 15_000;
    }

    pub(super) fn stalled_host(&mut self) {
        self.setup.profile = *self.random.pick(&[Profile::FAST, Profile::QUICK, Profile::STANDARD]);
        let begin = self.begin_ms();
        let ms = self.random.between(self.lease_ms(50), self.lease_ms(400));
        let who = *self.random.pick(&[Who::Both, Who::Guard]);
        self.at(begin, Fault::Stall { machine: VICTIM, who, ms });
        self.setup.calm_at_ms = begin + ms + 5000;
    }

    /// Hosts go and come back with new epochs while orders for the old ones are on their way.
    pub(super) fn late_orders(&mut self) {
        self.setup.profile = Profile::FAST;
        self.setup.weather.control_late = 300;
        self.setup.weather.late_ms_max = 30_000;
        let mut now = self.begin_ms();
        for _ in 0..8 {
            let host = self.any_host();
            let ms = self.random.between(2500, 6000);
            self.isolate(now, host, ms);
            if self.random.chance(500) {
                self.at(now + 50, Fault::CrashAgent { machine: host, down_ms: 100 });
            }
            now += ms + self.random.below(4000);
        }
    }

    pub(super) fn hung_vm(&mut self) {
        self.setup.profile = *self.random.pick(&[Profile::FAST, Profile::QUICK]);
        let begin = self.begin_ms();
        self.at(begin, Fault::Hang { vm: 0 });
        let ms = self.random.between(self.lease_ms(80), self.lease_ms(400));
        self.isolate(begin + 100, VICTIM, ms);
        self.setup.calm_at_ms = begin + ms + 10_000;
    }

    pub(super) fn partial_cuts(&mut self) {
        let begin = self.begin_ms();
        let heard = self.random.between(1, 3) as usize;
        for voter in 1..=3 {
            if voter == heard {
                self.cut_controllers(begin, voter, 20_000);
            } else {
                self.cut_both(begin, (VICTIM, voter), 20_000);
            }
        }
        let fence = begin + self.random.below(4000);
        self.at(fence, Fault::Suspect { host: VICTIM });
        self.setup.calm_at_ms = begin + 20_000;
    }

    pub(super) fn acks_at_the_deadline(&mut self) {
        self.setup.profile = *self.random.pick(&[Profile::QUICK, Profile::STANDARD]);
        let mut now = self.begin_ms();
        for _ in 0..4 {
            let by_ms = self.random.between(self.lease_ms(60), self.lease_ms(100));
            for voter in 1..=3 {
                self.at(now, Fault::Slow { from: voter, to: VICTIM, by_ms, ms: self.lease_ms(150) });
            }
            // Shorter than the watchdog is patient.
            let stall = now + self.random.between(self.lease_ms(60), self.lease_ms(100));
            let ms = self.random.between(200, 2200);
            self.at(stall, Fault::Stall { machine: VICTIM, who: Who::Guard, ms });
            now += self.lease_ms(250) + self.random.below(3000);
        }
    }

    /// It renews with 2 and 3; then 2 hears nothing any more, and 1, which has said yes to the fence, hears it again.
    pub(super) fn changing_sides(&mut self) {
        self.setup.profile = *self.random.pick(&[Profile::STANDARD, Profile::PATIENT]);
        let begin = self.begin_ms();
        let promise = self.promise_ms();
        let change = begin + promise + 1000 + self.random.below(2000);
        let back = change + self.random.between(promise / 2 - 1000, self.lease_ms(100));
        self.cut_both(begin, (VICTIM, 1), back - begin);
        self.at(change - 900, Fault::Suspect { host: VICTIM });
        self.cut_both(change, (VICTIM, 2), LONG);
        self.cut_controllers(change - 1500, 3, LONG);
        self.setup.calm_at_ms = change + promise + 5000;
    }

    pub(super) fn never_leased(&mut self) {
        self.setup.profile = Profile::FAST;
        self.setup.weather.page_survives = 1000;
        self.setup.hosts = 5;
        // Both VMs begin on a host that is cut off, so that they look for another one.
        let begin = self.begin_ms();
        self.at(begin, Fault::Crash { machine: VICTIM, down_ms: 1500 });
        for voter in 1..=3 {
            self.at(begin, Fault::Cut { from: voter, to: VICTIM, ms: 22_000 });
        }
        self.isolate(begin + 1000, 4, 15_000);
        for index in 0..2 {
            let from = self.setup.controller(index);
            let by_ms = self.random.between(14_000, 24_000);
            self.at(begin + 1000, Fault::Slow { from, to: VICTIM, by_ms, ms: 30_000 });
        }
        for vm in [0, 1] {
            let ms = begin + 3500 + self.random.below(2500);
            self.at(ms, Fault::CrashVm { vm });
        }
        let fence = begin + 5000 + self.random.below(4000);
        self.at(fence, Fault::Suspect { host: VICTIM });
        let crash = fence + self.promise_ms() + 1000 + self.random.below(2000);
        for voter in [1, 2, 3] {
            self.at(crash + 300 * voter as u64, Fault::CrashGuard { machine: voter, down_ms: 20 });
        }
        self.setup.calm_at_ms = begin + 40_000;
    }

    /// 1 says yes to a fence and restarts; when it speaks again the host renews with 1 and 2, and 3 says yes.
    pub(super) fn stale_fence_acks(&mut self) {
        self.setup.profile = *self.random.pick(&[Profile::FAST, Profile::QUICK]);
        self.setup.weather.page_survives = 1000;
        self.setup.weather.dup = 100;
        let begin = self.begin_ms();
        let promise = self.promise_ms();
        let fence = begin + promise + 500;
        let crash = fence + 600 + self.random.below(800);
        let back = crash + promise + 500 + self.random.below(500);
        let leave = back + 2500 + self.random.below(1000);
        let heard = leave + promise + 500 + self.random.below(500);
        self.cut_both(begin, (VICTIM, 1), back - begin);
        self.cut_controllers(fence - 400, 2, heard + 5000 - fence);
        self.cut_controllers(fence - 400, 3, heard - fence);
        self.at(fence, Fault::Suspect { host: VICTIM });
        self.at(crash, Fault::CrashGuard { machine: 1, down_ms: 20 });
        self.cut_controllers(crash, 1, heard + 5000 - crash);
        self.cut_both(leave, (VICTIM, 3), 20_000);
        self.setup.calm_at_ms = heard + 6000;
    }

    pub(super) fn slow_starts(&mut self) {
        self.setup.profile = *self.random.pick(&[Profile::FAST, Profile::QUICK]);
        self.setup.weather.spawn_slow = 500;
        self.setup.weather.spawn_ms_max = 20_000;
        let mut now = self.begin_ms();
        for _ in 0..5 {
            let vm = self.random.below(2) as usize;
            self.at(now, Fault::CrashVm { vm });
            let host = self.any_host();
            let ms = self.lease_ms(250);
            let cut = now + self.random.between(500, 3000);
            self.isolate(cut, host, ms);
            if self.random.chance(300) {
                self.at(cut, Fault::Stall { machine: host, who: Who::Agent, ms: ms * 2 });
            }
            now = cut + ms + self.random.below(3000);
        }
    }

    /// The new voters have promised nothing to a host that does not reach them.
    pub(super) fn new_voters(&mut self) {
        self.setup.profile = *self.random.pick(&[Profile::STANDARD, Profile::PATIENT]);
        self.setup.hosts = 5;
        self.setup.has_witness = true;
        let begin = self.begin_ms();
        let cut = begin + self.random.below(2000);
        self.at(begin, Fault::Change { voters: vec![3, 4, 5], profile: None });
        for voter in [4, 5] {
            self.cut_both(cut, (VICTIM, voter), 20_000);
        }
        let fence = begin + 1000 + self.random.below(4000);
        self.at(fence, Fault::Suspect { host: VICTIM });
        self.setup.calm_at_ms = begin + 20_000;
    }
}
