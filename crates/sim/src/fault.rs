//! What may be done to the world, by faults and by people, and when.

use std::fmt;
use std::str::FromStr;

use sterna_agent::hypervisor::Run;
use sterna_store::memory::WatchFaults;

use crate::datagram::Air;
use crate::mutation::Mutation;
use crate::qemu::End;
use crate::random::Random;
use crate::world::{World, host_name};

/// One deed. The text form is what scenarios say: `kill agent a`, `migrate web to b`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    KillServer,
    KillAgent(usize),
    /// The shim of the host's first VM: its QEMU goes with it, and nobody writes down how.
    KillShim(usize),
    KillQemu(usize),
    /// The machine loses power and boots.
    Reboot(usize),
    CutLine(usize),
    HealLine(usize),
    CutData(usize),
    HealData(usize),
    /// Of 1,000 changes, how many are never told to watches.
    DropWatches(u16),
    /// A disk error stops the host's first running guest.
    FailDisk(usize),
    /// The host's first running guest says that it crashed.
    Panic(usize),
    /// It does nothing more and answers nobody.
    Hang(usize),
    /// Its agent answers nobody; the rest of it works.
    Mute(usize),
    /// Of 1,000 looks at a process, how many get no answer.
    Blind(u64),
    /// Of 1,000 starts of a process, how many fail.
    Starve(u64),
    /// Of 1,000 questions for the parts of a copy, how many are answered with "not yet".
    Withhold(u64),
    Create(String),
    Start(String),
    Stop(String),
    Off(String),
    Pause(String),
    Reset(String),
    Delete(String),
    Migrate {
        vm: String,
        to: Option<usize>,
    },
    /// Its volumes alone, ahead of a move.
    Preseed {
        vm: String,
        to: usize,
    },
    /// Every open migration of the VM.
    Cancel(String),
    Drain(usize),
    Undrain(usize),
    /// The server dies and its store is restored from a copy that is older than this VM.
    Lose(String),
    /// The store is copied.
    BackUp,
    /// The server dies and starts over the last copy of its store.
    Restore,
    /// The machine has no power until it is given some.
    PowerOff(usize),
    PowerOn(usize),
    /// All of the machine stands still for so many milliseconds; its clock and its watchdog go on.
    Freeze {
        host: usize,
        ms: u64,
    },
    KillGuard(usize),
    /// The guard beside the server.
    KillWitness,
    /// The server's machine has no power for so long.
    LoseServer(u64),
    /// What the host's machine sends to other guards and to fencers is lost.
    CutOut(usize),
    /// What others send to it is lost.
    CutIn(usize),
    /// All that goes in or out, with its line to the server and its guests' data.
    CutNet(usize),
    HealNet(usize),
    /// One host's datagrams to another.
    CutOne {
        from: usize,
        to: usize,
    },
    /// What hosts send to each other; the server's machine is reached.
    CutSwitch,
    /// The host's processes hang in the kernel: a kill ends none of them.
    Stick(usize),
    /// Its clock goes so many millionths too fast from now on.
    Skew {
        host: usize,
        ppm: i64,
    },
    /// A controller's process stands still for so many milliseconds.
    FreezeControl {
        controller: usize,
        ms: u64,
    },
    /// Of 1,000 datagrams, how many are lost.
    Lossy(u64),
    /// A person looked at the host.
    ConfirmDead(usize),
}

/// A deed that waits for an instant.
#[derive(Debug, Clone)]
pub struct Trigger {
    pub moment: String,
    /// How many times the instant has still to come.
    pub left: u32,
    /// Milliseconds after it.
    pub delay: u64,
    pub act: Act,
}

impl Act {
    /// The kill -9 of anything.
    pub fn draw_kill(random: &mut Random, hosts: u64) -> Self {
        let host = usize::try_from(random.below(hosts)).unwrap_or(0);
        match random.below(8) {
            0 | 1 => Act::KillServer,
            2..=4 => Act::KillAgent(host),
            5 => Act::KillShim(host),
            6 => Act::KillQemu(host),
            _ => Act::CutLine(host),
        }
    }

    /// The same where guests go through the mover, whose lines break as well.
    pub fn draw_on_the_way(random: &mut Random, hosts: u64) -> Self {
        let host = usize::try_from(random.below(hosts)).unwrap_or(0);
        match random.below(12) {
            0 | 1 => Act::CutData(host),
            2 => Act::HealData(host),
            3 => Act::Reboot(host),
            _ => Self::draw_kill(random, hosts),
        }
    }

    /// Any fault.
    pub fn draw(random: &mut Random, hosts: u64) -> Self {
        let host = usize::try_from(random.below(hosts)).unwrap_or(0);
        match random.below(14) {
            0..=5 => Self::draw_kill(random, hosts),
            6 => Act::Reboot(host),
            7 => Act::CutLine(host),
            8 | 9 => Act::HealLine(host),
            10 => Act::CutData(host),
            11 => Act::HealData(host),
            12 => Act::FailDisk(host),
            _ => Act::DropWatches(*random.pick(&[0, 0, 200, 1000])),
        }
    }

    /// What a person may do without making or removing a VM.
    pub fn draw_lasting_order(random: &mut Random, hosts: u64, vms: &[String]) -> Self {
        loop {
            let order = Self::draw_order(random, hosts, vms);
            if !matches!(order, Act::Create(_) | Act::Delete(_)) {
                return order;
            }
        }
    }

    /// What a person may do next.
    pub fn draw_order(random: &mut Random, hosts: u64, vms: &[String]) -> Self {
        let vm = random.pick(vms).clone();
        let host = usize::try_from(random.below(hosts)).unwrap_or(0);
        match random.below(30) {
            0..=16 => Act::Migrate { vm, to: random.chance(700).then_some(host) },
            17 | 18 => Act::Cancel(vm),
            19 => Act::Stop(vm),
            20 => Act::Off(vm),
            21 => Act::Pause(vm),
            22 | 23 => Act::Start(vm),
            24 => Act::Reset(vm),
            25 => Act::Delete(vm),
            26 | 27 => Act::Create(vm),
            28 => Act::Drain(host),
            _ => Act::Undrain(host),
        }
    }
}

impl World {
    /// Does it, at once.
    pub fn act(&self, act: &Act) {
        self.lock().acts_done.insert(act.to_string());
        self.note_fault(act);
        match act {
            Act::KillServer => self.kill_server(),
            Act::KillAgent(host) => self.kill_agent(*host),
            Act::KillShim(host) => self.kill_process(*host, End::WithItsShim),
            Act::KillQemu(host) => self.kill_process(*host, End::Killed),
            Act::Reboot(host) => self.reboot(*host),
            Act::CutLine(host) => self.cut_line(*host),
            Act::HealLine(host) => self.heal_line(*host),
            Act::CutData(host) | Act::HealData(host) => {
                self.say(act.to_string());
                self.lock().hosts[*host].data_is_cut = matches!(act, Act::CutData(_));
            }
            Act::DropWatches(per_mille) => {
                self.say(act.to_string());
                let seed = self.lock().config.seed;
                self.store.set_watch_faults(WatchFaults {
                    seed,
                    drop_per_mille: *per_mille,
                    ..WatchFaults::default()
                });
            }
            Act::FailDisk(host) => self.fail_disk(*host),
            Act::Panic(host) | Act::Hang(host) | Act::Mute(host) => self.fail_guest(act, *host),
            Act::Lose(vm) => self.lose(vm),
            Act::BackUp => self.back_up(),
            Act::Restore => self.restore(),
            Act::Blind(rate) | Act::Starve(rate) | Act::Withhold(rate) => {
                self.say(act.to_string());
                let config = &mut self.lock().config;
                *match act {
                    Act::Blind(_) => &mut config.looks_fail,
                    Act::Starve(_) => &mut config.start_fails,
                    _ => &mut config.parts_wait,
                } = *rate;
            }
            order => {
                if !self.befall(order) {
                    self.order(order);
                }
            }
        }
    }

    fn kill_process(&self, host: usize, how: End) {
        let what = if how == End::Killed { "qemu" } else { "shim" };
        let name = host_name(host);
        self.say(format!("{name}: {what} is killed"));
        self.on_machines(|machines| {
            let id = machines.qemus.iter().find(|(_, qemu)| qemu.host == host).map(|(id, _)| *id);
            if let Some(id) = id {
                machines.end(id, how);
            }
        });
    }

    fn fail_disk(&self, host: usize) {
        self.say(format!("{}: a disk fails", host_name(host)));
        self.on_machines(|machines| {
            let is_here = |qemu: &crate::qemu::Qemu| qemu.host == host && qemu.run == Run::Running;
            let id = machines.qemus.iter().find(|(_, qemu)| is_here(qemu)).map(|(id, _)| *id);
            if let Some(id) = id {
                machines.pause(id, sterna_agent::hypervisor::Pause::IoError(Vec::new()));
            }
        });
    }

    fn fail_guest(&self, act: &Act, host: usize) {
        self.say(act.to_string());
        self.on_machines(|machines| {
            let is_here = |qemu: &crate::qemu::Qemu| qemu.host == host && qemu.run == Run::Running;
            let Some((id, qemu)) = machines.qemus.iter_mut().find(|(_, qemu)| is_here(qemu)) else { return };
            match act {
                Act::Hang(_) => (qemu.is_hung, qemu.is_mute) = (true, true),
                Act::Mute(_) => qemu.is_mute = true,
                _ => {
                    let id = *id;
                    machines.pause(id, sterna_agent::hypervisor::Pause::Panicked);
                }
            }
        });
    }

    fn reboot(&self, host: usize) {
        if self.has_guards() {
            return self.reset_machine(host, "loses power");
        }
        self.say(format!("{}: loses power", host_name(host)));
        self.kill_agent(host);
        self.on_machines(|machines| {
            let ids: Vec<u64> =
                machines.qemus.iter().filter(|(_, qemu)| qemu.host == host).map(|(id, _)| *id).collect();
            for id in ids {
                machines.end(id, End::WithItsShim);
            }
            machines.ended.retain(|(at, _), _| *at != host);
        });
        let mut state = self.lock();
        let forgets = state.config.mutation == Some(Mutation::SeenIsForgotten);
        let at = &mut state.hosts[host];
        at.boot += 1;
        at.notes.clear();
        at.assignment = None;
        if forgets {
            at.seen.clear();
        }
    }

    /// Faults stop, and what people would repair is repaired.
    pub fn calm(&self) {
        self.say("calm");
        let hosts = {
            let mut state = self.lock();
            state.is_stormy = false;
            state.is_calm = true;
            state.triggers.clear();
            state.hosts.len()
        };
        for host in 0..hosts {
            if self.has_guards() {
                self.thaw(host, None);
                self.act(&Act::PowerOn(host));
                self.act(&Act::HealNet(host));
            }
            self.act(&Act::HealLine(host));
            self.act(&Act::HealData(host));
            self.act(&Act::Undrain(host));
        }
        self.act(&Act::DropWatches(0));
        if self.has_guards() {
            self.on_machines(|machines| {
                machines.qemus.values_mut().for_each(|qemu| qemu.is_stuck = false);
            });
            self.lock().air = Air::default();
            self.bring_server_back();
        }
    }
}

fn number<T: FromStr>(word: &str) -> Result<T, String> {
    word.parse().map_err(|_| format!("{word} is no number"))
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Act::KillServer => f.write_str("kill server"),
            Act::KillAgent(host) => write!(f, "kill agent {}", host_name(*host)),
            Act::KillShim(host) => write!(f, "kill shim {}", host_name(*host)),
            Act::KillQemu(host) => write!(f, "kill qemu {}", host_name(*host)),
            Act::Reboot(host) => write!(f, "reboot {}", host_name(*host)),
            Act::CutLine(host) => write!(f, "cut line {}", host_name(*host)),
            Act::HealLine(host) => write!(f, "heal line {}", host_name(*host)),
            Act::CutData(host) => write!(f, "cut data {}", host_name(*host)),
            Act::HealData(host) => write!(f, "heal data {}", host_name(*host)),
            Act::DropWatches(per_mille) => write!(f, "drop watches {per_mille}"),
            Act::FailDisk(host) => write!(f, "fail disk {}", host_name(*host)),
            Act::Panic(host) => write!(f, "panic {}", host_name(*host)),
            Act::Hang(host) => write!(f, "hang {}", host_name(*host)),
            Act::Mute(host) => write!(f, "mute {}", host_name(*host)),
            Act::Blind(rate) => write!(f, "blind {rate}"),
            Act::Starve(rate) => write!(f, "starve {rate}"),
            Act::Withhold(rate) => write!(f, "withhold {rate}"),
            Act::Create(vm) => write!(f, "create {vm}"),
            Act::Lose(vm) => write!(f, "lose {vm}"),
            Act::BackUp => f.write_str("back up"),
            Act::Restore => f.write_str("restore"),
            Act::Start(vm) => write!(f, "start {vm}"),
            Act::Stop(vm) => write!(f, "stop {vm}"),
            Act::Off(vm) => write!(f, "off {vm}"),
            Act::Pause(vm) => write!(f, "pause {vm}"),
            Act::Reset(vm) => write!(f, "reset {vm}"),
            Act::Delete(vm) => write!(f, "delete {vm}"),
            Act::Preseed { vm, to } => write!(f, "preseed {vm} to {}", host_name(*to)),
            Act::Migrate { vm, to: None } => write!(f, "migrate {vm}"),
            Act::Migrate { vm, to: Some(to) } => write!(f, "migrate {vm} to {}", host_name(*to)),
            Act::Cancel(vm) => write!(f, "cancel {vm}"),
            Act::Drain(host) => write!(f, "drain {}", host_name(*host)),
            Act::Undrain(host) => write!(f, "undrain {}", host_name(*host)),
            Act::PowerOff(host) => write!(f, "power off {}", host_name(*host)),
            Act::PowerOn(host) => write!(f, "power on {}", host_name(*host)),
            Act::Freeze { host, ms } => write!(f, "freeze {} {ms}", host_name(*host)),
            Act::KillGuard(host) => write!(f, "kill guard {}", host_name(*host)),
            Act::KillWitness => f.write_str("kill witness"),
            Act::LoseServer(ms) => write!(f, "lose server {ms}"),
            Act::CutOut(host) => write!(f, "cut out {}", host_name(*host)),
            Act::CutIn(host) => write!(f, "cut in {}", host_name(*host)),
            Act::CutNet(host) => write!(f, "cut net {}", host_name(*host)),
            Act::HealNet(host) => write!(f, "heal net {}", host_name(*host)),
            Act::CutOne { from, to } => write!(f, "cut {} to {}", host_name(*from), host_name(*to)),
            Act::CutSwitch => f.write_str("cut switch"),
            Act::Stick(host) => write!(f, "stick {}", host_name(*host)),
            Act::Skew { host, ppm } => write!(f, "skew {} {ppm}", host_name(*host)),
            Act::FreezeControl { controller, ms } => write!(f, "freeze control {controller} {ms}"),
            Act::Lossy(rate) => write!(f, "lossy {rate}"),
            Act::ConfirmDead(host) => write!(f, "confirm {} dead", host_name(*host)),
        }
    }
}

impl FromStr for Act {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words: Vec<_> = text.split_whitespace().collect();
        let host = |word: &str| {
            (0..26)
                .find(|index| host_name(*index).as_str() == word)
                .ok_or_else(|| format!("{word} is no host"))
        };
        let vm = |word: &str| word.to_owned();
        Ok(match words.as_slice() {
            ["kill", "server"] => Act::KillServer,
            ["kill", "agent", at] => Act::KillAgent(host(at)?),
            ["kill", "shim", at] => Act::KillShim(host(at)?),
            ["kill", "qemu", at] => Act::KillQemu(host(at)?),
            ["reboot", at] => Act::Reboot(host(at)?),
            ["cut", "line", at] => Act::CutLine(host(at)?),
            ["heal", "line", at] => Act::HealLine(host(at)?),
            ["cut", "data", at] => Act::CutData(host(at)?),
            ["heal", "data", at] => Act::HealData(host(at)?),
            ["drop", "watches", n] => Act::DropWatches(n.parse().map_err(|_| format!("{n} is no number"))?),
            ["fail", "disk", at] => Act::FailDisk(host(at)?),
            ["panic", at] => Act::Panic(host(at)?),
            ["hang", at] => Act::Hang(host(at)?),
            ["mute", at] => Act::Mute(host(at)?),
            ["blind", n] => Act::Blind(n.parse().map_err(|_| format!("{n} is no number"))?),
            ["starve", n] => Act::Starve(n.parse().map_err(|_| format!("{n} is no number"))?),
            ["withhold", n] => Act::Withhold(n.parse().map_err(|_| format!("{n} is no number"))?),
            ["create", name] => Act::Create(vm(name)),
            ["start", name] => Act::Start(vm(name)),
            ["stop", name] => Act::Stop(vm(name)),
            ["off", name] => Act::Off(vm(name)),
            ["pause", name] => Act::Pause(vm(name)),
            ["reset", name] => Act::Reset(vm(name)),
            ["delete", name] => Act::Delete(vm(name)),
            ["preseed", name, "to", at] => Act::Preseed { vm: vm(name), to: host(at)? },
            ["migrate", name] => Act::Migrate { vm: vm(name), to: None },
            ["migrate", name, "to", at] => Act::Migrate { vm: vm(name), to: Some(host(at)?) },
            ["cancel", name] => Act::Cancel(vm(name)),
            ["drain", at] => Act::Drain(host(at)?),
            ["undrain", at] => Act::Undrain(host(at)?),
            ["power", "off", at] => Act::PowerOff(host(at)?),
            ["power", "on", at] => Act::PowerOn(host(at)?),
            ["freeze", "control", n, ms] => Act::FreezeControl { controller: number(n)?, ms: number(ms)? },
            ["freeze", at, ms] => Act::Freeze { host: host(at)?, ms: number(ms)? },
            ["kill", "guard", at] => Act::KillGuard(host(at)?),
            ["kill", "witness"] => Act::KillWitness,
            ["lose", "server", ms] => Act::LoseServer(number(ms)?),
            ["cut", "out", at] => Act::CutOut(host(at)?),
            ["cut", "in", at] => Act::CutIn(host(at)?),
            ["cut", "net", at] => Act::CutNet(host(at)?),
            ["heal", "net", at] => Act::HealNet(host(at)?),
            ["cut", "switch"] => Act::CutSwitch,
            ["cut", from, "to", to] => Act::CutOne { from: host(from)?, to: host(to)? },
            ["stick", at] => Act::Stick(host(at)?),
            ["skew", at, ppm] => Act::Skew { host: host(at)?, ppm: number(ppm)? },
            ["lossy", rate] => Act::Lossy(number(rate)?),
            ["confirm", at, "dead"] => Act::ConfirmDead(host(at)?),
            ["lose", name] => Act::Lose(vm(name)),
            ["back", "up"] => Act::BackUp,
            ["restore"] => Act::Restore,
            _ => return Err(format!("`{text}` is nothing that can be done")),
        })
    }
}
