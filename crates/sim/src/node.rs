//! The machines that guards stand on: their power, their clocks, what resets them, and standing still as a whole.
//!
//! A host that is frozen runs nothing and its clock goes on: a machine check, a firmware that took the processor, a
//! suspended machine. Its watchdog is a device of its own and goes on as well.

use std::time::Duration;

use sterna_guard::core::id::{Epoch, HostId};
use sterna_guard::core::page::Page;
use sterna_guard::core::time::BootInstant;
use sterna_guard::shell::request::Settings;
use tokio::sync::mpsc::UnboundedSender;
use uuid::Uuid;

use crate::guard::ToGuard;
use crate::lease::clock::Clock;
use crate::mutation::Mutation;
use crate::qemu::End;
use crate::random::Random;
use crate::world::{Config, World, host_name};

/// Assumption A1: any two clocks differ by at most 1,000 millionths.
const PPM_MAX: i64 = 499;
/// Until a machine that was reset runs its first process.
const BOOTS_WITHIN_MS: (u64, u64) = (2000, 8000);

/// One machine with a guard: a host, or the server's.
pub struct Node {
    pub id: HostId,
    pub boot: u64,
    pub clock: Clock,
    pub is_down: bool,
    pub is_frozen: bool,
    /// Freezes so far: a thaw is for one of them.
    freezes: u64,
    /// In memory of the machine, as all that follows: gone with its boot.
    pub page: Option<Page>,
    pub settings: Option<Settings>,
    pub guard: Process,
    pub watchdog: Option<FakeWatchdog>,
    /// The epoch that is held, and the nanosecond of the world by which lease and watchdog have run out.
    pub lease: Option<(Epoch, u64)>,
}

/// A guard's process, as others see it.
#[derive(Default)]
pub struct Process {
    pub life: u64,
    pub is_up: bool,
    pub inbox: Option<UnboundedSender<ToGuard>>,
    pub scope: Option<sterna_base::scope::Scope>,
}

/// Resets its machine when it was not fed for so long.
#[derive(Debug, Clone, Copy)]
pub struct FakeWatchdog {
    timeout: Duration,
    /// Nanoseconds of the world.
    fires_at: u64,
}

impl Node {
    fn new(id: u128, random: &mut Random) -> Self {
        Self {
            id: HostId(Uuid::from_u128(id)),
            boot: 1,
            clock: Clock::drawn(random, 0, PPM_MAX),
            is_down: false,
            is_frozen: false,
            freezes: 0,
            page: None,
            settings: None,
            guard: Process::default(),
            watchdog: None,
            lease: None,
        }
    }

    #[must_use]
    pub fn boot_id(&self) -> Uuid {
        Uuid::from_u128(self.id.0.as_u128() ^ u128::from(self.boot))
    }

    /// The clock changes its rate, and goes on from where it is.
    pub fn skew(&mut self, now: u64, ppm: i64) {
        self.clock = self.clock.at_rate(now, ppm.clamp(-PPM_MAX, PPM_MAX));
    }
}

/// One machine for each host, and the server's last. Hosts get their ids when the store knows them.
#[must_use]
pub fn nodes(config: &Config) -> Vec<Node> {
    let mut random = Random::new(config.seed ^ 0x00de);
    let count = if config.guards { config.hosts + 1 } else { 0 };
    (0..count).map(|index| Node::new(WITNESS - index as u128, &mut random)).collect()
}

/// The guard beside the server, before hosts are known by their uids.
const WITNESS: u128 = 0x0bed_0000_0000_0000_0000_0000_0000_ffff;

impl World {
    #[must_use]
    pub fn has_guards(&self) -> bool {
        self.lock().config.guards
    }

    /// The server's machine.
    #[must_use]
    pub fn server_node(&self) -> usize {
        self.lock().config.hosts
    }

    /// What this machine's `CLOCK_BOOTTIME` shows.
    #[must_use]
    pub fn boot_time(&self, node: usize) -> BootInstant {
        let now = self.now_ns();
        self.lock().nodes[node].clock.at(now)
    }

    /// When this machine's clock will show that, in nanoseconds of the world.
    #[must_use]
    pub fn when(&self, node: usize, at: BootInstant) -> u64 {
        self.lock().nodes[node].clock.when(at)
    }

    /// Returns at once unless the machine stands still or is off: then never before it goes on.
    pub async fn goes_on(&self, node: usize) {
        while self.stands_still(node) {
            self.sleep(20).await;
        }
    }

    #[must_use]
    pub fn stands_still(&self, node: usize) -> bool {
        self.lock().nodes.get(node).is_some_and(|node| node.is_frozen || node.is_down)
    }

    /// All of it stops for so long. Whatever its QEMUs do in the instant in which it goes on, they do before anything else.
    pub fn freeze(&self, host: usize, ms: u64) {
        let number = {
            let mut state = self.lock();
            let Some(node) = state.nodes.get_mut(host).filter(|node| !node.is_down) else { return };
            node.is_frozen = true;
            node.freezes += 1;
            node.freezes
        };
        self.on_machines(|machines| machines.stand_still(host, true));
        self.moment(&format!("{}: stands still", host_name(host)));
        self.lose_connection_later(host);
        let world = self.clone();
        tokio::spawn(async move {
            world.sleep(ms).await;
            world.thaw(host, Some(number));
        });
    }

    pub fn thaw(&self, host: usize, number: Option<u64>) {
        {
            let mut state = self.lock();
            let Some(node) = state.nodes.get_mut(host).filter(|node| node.is_frozen) else { return };
            if number.is_some_and(|number| number != node.freezes) {
                return;
            }
            node.is_frozen = false;
        }
        self.say(format!("{}: goes on", host_name(host)));
        self.on_machines(|machines| machines.stand_still(host, false));
    }

    /// Nobody answers on its connection any more: each end notices by itself, if that lasts.
    fn lose_connection_later(&self, host: usize) {
        let connection = self.lock().hosts[host].connection.clone();
        let Some(connection) = connection else { return };
        let name = host_name(host);
        self.later(3000, 6000, move |world| {
            if world.stands_still(host) {
                world.server_sees_end(&name, connection.id);
                connection.agent_sees_end.cancel();
            }
        });
    }

    /// Everything on the machine ends in this instant.
    pub fn power_off(&self, host: usize, why: &str) {
        if self.lock().nodes.get(host).is_none_or(|node| node.is_down) {
            return;
        }
        let connection = self.lock().hosts[host].connection.clone();
        // Nobody's kernel is left to say that a connection has ended.
        self.lock().nodes[host].is_down = true;
        if let Some(connection) = connection {
            let name = host_name(host);
            self.later(100, 6000, move |world| {
                world.server_sees_end(&name, connection.id);
                connection.agent_sees_end.cancel();
            });
        }
        self.end_agent(host);
        self.end_guard(host);
        self.on_machines(|machines| {
            let here = machines.qemus.iter().filter(|(_, qemu)| qemu.host == host).map(|(id, _)| *id);
            for id in here.collect::<Vec<_>>() {
                machines.end(id, End::WithItsShim);
            }
            machines.ended.retain(|(at, _), _| *at != host);
        });
        {
            let mut state = self.lock();
            let at = &mut state.hosts[host];
            at.boot += 1;
            at.notes.clear();
            at.assignment = None;
            let node = &mut state.nodes[host];
            node.boot += 1;
            node.is_frozen = false;
            (node.page, node.settings, node.watchdog, node.lease) = (None, None, None, None);
        }
        self.moment(&format!("{}: {why}", host_name(host)));
    }

    pub fn power_on(&self, host: usize) {
        let now = self.now_ns();
        {
            let mut state = self.lock();
            let state = &mut *state;
            let Some(node) = state.nodes.get_mut(host).filter(|node| node.is_down) else { return };
            node.is_down = false;
            node.clock = Clock::drawn(&mut state.random, now, PPM_MAX);
        }
        self.say(format!("{}: boots", host_name(host)));
        self.start_guard(host);
        self.later(50, 500, move |world| world.start_agent(host));
    }

    /// Power is gone and comes back, or the watchdog has fired.
    pub fn reset_machine(&self, host: usize, why: &str) {
        self.power_off(host, why);
        let (low, high) = BOOTS_WITHIN_MS;
        self.later(low, high, move |world| world.power_on(host));
    }

    pub fn program_watchdog(&self, node: usize, timeout: Duration) {
        let (is_new, boot) = {
            let mut state = self.lock();
            let is_host = node < state.config.hosts;
            let node = &mut state.nodes[node];
            if !is_host {
                // The server's machine has none, and nothing that would need one.
                return;
            }
            let is_new = node.watchdog.is_none();
            node.watchdog = Some(FakeWatchdog { timeout, fires_at: 0 });
            (is_new, node.boot)
        };
        self.feed_watchdog(node);
        if is_new {
            tokio::spawn(bark(self.clone(), node, boot));
        }
    }

    pub fn feed_watchdog(&self, node: usize) {
        let now = self.now_ns();
        let mut state = self.lock();
        let node = &mut state.nodes[node];
        if let Some(watchdog) = &mut node.watchdog {
            watchdog.fires_at = now + node.clock.lasts(watchdog.timeout);
        }
    }

    /// Until when something of this lease may run here, in nanoseconds of the world.
    pub fn note_lease(&self, node: usize, epoch: Epoch, deadline: BootInstant) {
        let mut state = self.lock();
        let node = &mut state.nodes[node];
        let timeout = node.watchdog.map(|watchdog| watchdog.timeout).unwrap_or_default();
        let until = node.clock.when(deadline).saturating_add(node.clock.lasts(timeout));
        node.lease = Some((epoch, until));
    }
}

/// One boot's watchdog.
async fn bark(world: World, host: usize, boot: u64) {
    loop {
        let watchdog = {
            let state = world.lock();
            let node = &state.nodes[host];
            node.watchdog.filter(|_| node.boot == boot)
        };
        let Some(watchdog) = watchdog else { return };
        if world.mutates(Mutation::WatchdogIsDead) {
            return;
        }
        if world.now_ns() >= watchdog.fires_at {
            world.lock().watchdog_resets += 1;
            world.reset_machine(host, "reset by its watchdog");
            return;
        }
        world.sleep_until_ns(watchdog.fires_at).await;
    }
}
