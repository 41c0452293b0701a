//! Which faults a seed brings: a storm of everything, or a few that aim at one line of the proof.

use sterna_guard::core::mutation::Mutations;
use sterna_guard::core::profile::Profile;

use crate::lease::fault::{Fault, Who};
use crate::lease::network::Weather;
use crate::lease::world::{CONTROLLERS, Setup};
use crate::random::Random;

/// Faults that aim at one defect.
mod aimed;

/// What kind of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Script {
    /// Everything, at any time.
    Storm,
    /// A storm with clocks 30 % off, against the assumptions: it has to go wrong.
    WrongClocks,
    /// Stalls with watchdogs that do not fire, against the assumptions: it has to go wrong.
    DeadWatchdogs,
    /// Answers to renewals take longer and longer, then nothing arrives any more.
    SlowAcks,
    /// A voter restarts between its promise and a fence.
    ForgetfulVoter,
    /// A host stands still with its VMs running.
    StalledHost,
    /// Orders come when their epoch is long over.
    LateOrders,
    /// A process cannot be ended when the lease is over.
    HungVm,
    /// A host hears one voter, a controller the others.
    PartialCuts,
    /// Answers wait in a socket while the guard stands still over its deadline.
    AcksAtTheDeadline,
    /// A host goes from one half of the voters to the other while it is being fenced.
    ChangingSides,
    /// A host joins and hears no voter, until the voters have forgotten that it was fenced.
    NeverLeased,
    /// A voter's answer to a fence is remembered longer than the voter remembers it.
    StaleFenceAcks,
    /// QEMU takes its time to start, and meanwhile the lease ends.
    SlowStarts,
    /// New voters, and a host that they do not hear.
    NewVoters,
}

impl Script {
    /// Those under which nothing may go wrong.
    pub const SOUND: [Script; 13] = [
        Script::Storm,
        Script::SlowAcks,
        Script::ForgetfulVoter,
        Script::StalledHost,
        Script::LateOrders,
        Script::HungVm,
        Script::PartialCuts,
        Script::AcksAtTheDeadline,
        Script::ChangingSides,
        Script::NeverLeased,
        Script::StaleFenceAcks,
        Script::SlowStarts,
        Script::NewVoters,
    ];

    #[must_use]
    pub fn setup(self, seed: u64, mutations: Mutations) -> Setup {
        let mut random = Random::new(seed ^ 0x1ea5_e000 ^ ((self as u64) << 40));
        let mut draft = Draft::new(seed, &mut random);
        draft.setup.mutations = mutations;
        match self {
            Script::Storm => draft.storm(),
            Script::WrongClocks => {
                draft.storm();
                draft.setup.ppm_max = 300_000;
            }
            Script::DeadWatchdogs => {
                draft.stalled_host();
                draft.setup.watchdog_fires = false;
            }
            Script::SlowAcks => draft.slow_acks(),
            Script::ForgetfulVoter => draft.forgetful_voter(),
            Script::StalledHost => draft.stalled_host(),
            Script::LateOrders => draft.late_orders(),
            Script::HungVm => draft.hung_vm(),
            Script::PartialCuts => draft.partial_cuts(),
            Script::AcksAtTheDeadline => draft.acks_at_the_deadline(),
            Script::ChangingSides => draft.changing_sides(),
            Script::NeverLeased => draft.never_leased(),
            Script::StaleFenceAcks => draft.stale_fence_acks(),
            Script::SlowStarts => draft.slow_starts(),
            Script::NewVoters => draft.new_voters(),
        }
        draft.setup
    }
}

/// A setup on its way.
struct Draft<'a> {
    setup: Setup,
    random: &'a mut Random,
}

impl<'a> Draft<'a> {
    fn new(seed: u64, random: &'a mut Random) -> Self {
        let setup = Setup {
            seed,
            hosts: 4,
            has_witness: false,
            vms: 2,
            voters: vec![1, 2, 3],
            profile: Profile::QUICK,
            ppm_max: 1000,
            watchdog_fires: true,
            weather: Weather::fair(),
            plan: Vec::new(),
            calm_at_ms: 0,
            mutations: Mutations::default(),
        };
        Self { setup, random }
    }

    fn at(&mut self, ms: u64, fault: Fault) {
        self.setup.plan.push((ms, fault));
        self.setup.calm_at_ms = self.setup.calm_at_ms.max(ms + 1000);
    }

    /// Milliseconds of a duration of the profile, in hundredths.
    fn lease_ms(&self, percent: u64) -> u64 {
        ms(self.setup.profile.lease) * percent / 100
    }

    fn promise_ms(&self) -> u64 {
        ms(self.setup.profile.promise()) + 1
    }

    /// From here on everything runs: voters have been silent long enough, hosts have joined, VMs were started.
    fn begin_ms(&mut self) -> u64 {
        let jitter = self.random.below(2000);
        self.promise_ms() + 3000 + jitter
    }

    fn cut_both(&mut self, at: u64, (a, b): (usize, usize), for_ms: u64) {
        self.at(at, Fault::Cut { from: a, to: b, ms: for_ms });
        self.at(at, Fault::Cut { from: b, to: a, ms: for_ms });
    }

    /// Nobody but the store hears a machine.
    fn isolate(&mut self, at: u64, node: usize, for_ms: u64) {
        for other in (0..self.setup.store()).filter(|other| *other != node) {
            self.cut_both(at, (node, other), for_ms);
        }
    }

    fn cut_controllers(&mut self, at: u64, machine: usize, for_ms: u64) {
        for index in 0..CONTROLLERS {
            let controller = self.setup.controller(index);
            self.cut_both(at, (controller, machine), for_ms);
        }
    }

    fn any_machine(&mut self) -> usize {
        self.random.below(self.setup.machines() as u64) as usize
    }

    fn any_host(&mut self) -> usize {
        self.random.below(self.setup.hosts as u64) as usize
    }

    fn any_node(&mut self) -> usize {
        self.random.below(self.setup.store() as u64 + 1) as usize
    }

    fn storm(&mut self) {
        self.setup.hosts = self.random.between(2, 5) as usize;
        self.setup.has_witness = self.setup.hosts == 2 || self.random.chance(300);
        self.setup.vms = self.random.between(1, 4) as usize;
        self.setup.profile =
            *self.random.pick(&[Profile::FAST, Profile::QUICK, Profile::QUICK, Profile::STANDARD]);
        self.setup.voters = self.draw_voters();
        self.setup.weather = Weather::drawn(self.random);
        let begin = self.begin_ms();
        let end = begin + self.random.between(10_000, 50_000);
        let gap = *self.random.pick(&[300, 1000, 1000, 4000]);
        let mut now = begin;
        while now < end {
            self.draw_fault(now);
            now += self.random.between(1, 2 * gap);
        }
        self.setup.calm_at_ms = end + 1000;
    }

    fn draw_voters(&mut self) -> Vec<usize> {
        let mut all: Vec<usize> = (0..self.setup.machines()).collect();
        let many = if all.len() >= 5 && self.random.chance(500) { 5 } else { 3.min(all.len()) };
        while all.len() > many {
            let drop = self.random.below(all.len() as u64) as usize;
            all.remove(drop);
        }
        all
    }

    fn draw_ms(&mut self) -> u64 {
        let most = *self.random.pick(&[50, 1000, 5000, 20_000, 60_000]);
        self.random.between(1, most)
    }

    fn draw_fault(&mut self, now: u64) {
        let (machine, ms) = (self.any_machine(), self.draw_ms());
        let vm = self.random.below(self.setup.vms as u64) as usize;
        let short = self.random.between(5, 3000);
        let controller = self.random.below(CONTROLLERS as u64) as usize;
        let fault = match self.random.below(26) {
            0..=2 => Fault::Stall { machine, who: Who::Both, ms },
            3 | 4 => Fault::Stall { machine, who: Who::Guard, ms },
            5 => Fault::Stall { machine, who: Who::Agent, ms },
            6 | 7 => Fault::Crash { machine, down_ms: 1000 + short * 3 },
            8 | 9 => Fault::CrashGuard { machine, down_ms: short },
            10 => Fault::CrashMidStep { machine, after: self.random.below(6) as usize },
            11 => Fault::CrashAgent { machine, down_ms: short },
            12 => Fault::CrashController { controller, down_ms: short },
            13 => Fault::StallController { controller, ms },
            14..=18 => return self.draw_cut(now, ms),
            19 => {
                let (from, to) = (self.any_node(), self.any_node());
                let by_ms = self.random.between(100, 8000);
                Fault::Slow { from, to, by_ms, ms: 10_000 }
            }
            20 => Fault::StoreDown { ms: ms.min(20_000) },
            21 => Fault::Hang { vm },
            22 => Fault::CrashVm { vm },
            23 => Fault::Suspect { host: self.any_host() },
            24 => Fault::Drain { machine: self.any_host() },
            _ => self.draw_change(),
        };
        self.at(now, fault);
    }

    fn draw_change(&mut self) -> Fault {
        let voters = self.draw_voters();
        let profiles = [Profile::FAST, Profile::QUICK, Profile::STANDARD];
        let profile = self.random.chance(400).then(|| *self.random.pick(&profiles));
        Fault::Change { voters, profile }
    }

    /// One direction, both, a whole node, or a line that comes and goes.
    fn draw_cut(&mut self, now: u64, ms: u64) {
        let (a, b) = (self.any_node(), self.any_node());
        match self.random.below(5) {
            0 => self.at(now, Fault::Cut { from: a, to: b, ms }),
            1 => self.cut_both(now, (a, b), ms),
            2 => {
                let node = self.any_machine();
                self.isolate(now, node, ms);
            }
            3 => {
                let node = self.any_machine();
                for other in (0..=self.setup.store()).filter(|other| *other != node) {
                    if self.random.chance(500) {
                        self.cut_both(now, (node, other), ms);
                    }
                }
            }
            _ => {
                let node = self.any_machine();
                for round in 0..self.random.between(2, 5) {
                    let length = self.random.between(200, 1500);
                    self.isolate(now + round * 2000, node, length);
                }
            }
        }
    }
}

fn ms(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
