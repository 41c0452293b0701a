//! What is done to machines and to the network between them, and how a storm draws it.

use crate::fault::Act;
use crate::random::Random;
use crate::world::World;

impl Act {
    /// Any fault of a world in which hosts are lost.
    pub fn draw_loss(random: &mut Random, hosts: u64) -> Self {
        let host = usize::try_from(random.below(hosts)).unwrap_or(0);
        match random.below(28) {
            0..=2 => Act::Reboot(host),
            3 => Act::PowerOff(host),
            4..=7 => {
                let (low, high) = *random.pick(&[(1, 999), (1000, 8000), (5000, 20_000), (10_000, 60_000)]);
                Act::Freeze { host, ms: random.between(low, high) }
            }
            8 => Act::CutOut(host),
            9 => Act::CutIn(host),
            10 | 11 => Act::CutNet(host),
            12..=14 => Act::HealNet(host),
            15 | 16 => Act::KillGuard(host),
            17 => Act::KillWitness,
            18 => Act::LoseServer(random.between(1000, 20_000)),
            19 => Act::Skew { host, ppm: *random.pick(&[-499, 499]) },
            20 => Act::Lossy(*random.pick(&[0, 0, 30, 300])),
            21 => Act::PowerOn(host),
            22 => Act::CutOne { from: host, to: usize::try_from(random.below(hosts)).unwrap_or(0) },
            23 => Act::CutSwitch,
            24 => Act::Stick(host),
            _ => Self::draw(random, hosts),
        }
    }
}

impl World {
    /// What happens to machines and to the network between them. False: it is something else.
    pub(crate) fn befall(&self, act: &Act) -> bool {
        match act {
            Act::PowerOff(host) => self.power_off(*host, "loses power"),
            Act::PowerOn(host) => self.power_on(*host),
            Act::Freeze { host, ms } => self.freeze(*host, *ms),
            Act::KillGuard(host) => self.kill_guard(*host),
            Act::KillWitness => self.kill_guard(self.server_node()),
            Act::LoseServer(ms) => self.lose_server(*ms),
            Act::CutOut(host) | Act::CutIn(host) | Act::CutNet(host) => self.cut_air(act, *host),
            Act::HealNet(host) => {
                self.say(act.to_string());
                self.lock().air.heal(*host);
                self.heal_line(*host);
                self.lock().hosts[*host].data_is_cut = false;
            }
            Act::CutOne { from, to } => {
                self.say(act.to_string());
                self.lock().air.cut(*from, *to);
            }
            Act::CutSwitch => {
                self.say(act.to_string());
                let mut state = self.lock();
                let hosts = state.hosts.len();
                let pairs = (0..hosts).flat_map(|from| (0..hosts).map(move |to| (from, to)));
                pairs.filter(|(from, to)| from != to).for_each(|(from, to)| state.air.cut(from, to));
            }
            Act::Stick(host) => {
                self.say(act.to_string());
                self.on_machines(|machines| {
                    machines.qemus.values_mut().filter(|qemu| qemu.host == *host).for_each(|qemu| {
                        qemu.is_stuck = true;
                    });
                });
            }
            Act::Skew { host, ppm } => {
                self.say(act.to_string());
                let now = self.now_ns();
                if let Some(node) = self.lock().nodes.get_mut(*host) {
                    node.skew(now, *ppm);
                }
            }
            Act::FreezeControl { controller, ms } => {
                self.say(act.to_string());
                let until = self.now_ms() + ms;
                if let Some(stands) = self.lock().controllers_stand.get_mut(*controller) {
                    *stands = until;
                }
            }
            Act::Lossy(rate) => {
                self.say(act.to_string());
                self.lock().air.loss = *rate;
            }
            _ => return false,
        }
        true
    }

    fn cut_air(&self, act: &Act, host: usize) {
        self.say(act.to_string());
        {
            let mut state = self.lock();
            for other in (0..state.nodes.len()).filter(|other| *other != host) {
                if !matches!(act, Act::CutIn(_)) {
                    state.air.cut(host, other);
                }
                if !matches!(act, Act::CutOut(_)) {
                    state.air.cut(other, host);
                }
            }
        }
        if matches!(act, Act::CutNet(_)) {
            self.lock().hosts[host].data_is_cut = true;
            self.cut_line(host);
        }
    }
}
