//! A run of the world: a script of deeds, and what must come of it.

use serde::Deserialize;

use crate::campaign::Injected;
use crate::fault::{Act, Trigger};
use crate::site::Layout;
use crate::world::{Config, World};

/// Liveness: everything is as asked for this long after the last fault.
const SETTLES_WITHIN_MS: u64 = 120_000;
/// And it stays so: whatever is still under way would show by then.
const STAYS_MS: u64 = 4_000;

/// A directed scenario, as its file says it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// One sentence.
    pub about: String,
    #[serde(default = "two")]
    pub hosts: usize,
    #[serde(default = "one_vm")]
    pub vms: Vec<String>,
    /// Done once everything runs.
    pub begin: Vec<String>,
    #[serde(default)]
    pub when: Vec<When>,
    /// Faults end this long after the beginning.
    #[serde(default = "six_seconds")]
    pub calm_after_ms: u64,
    #[serde(default)]
    pub takes_disks_early: bool,
    /// Hosts are in different datacentres.
    #[serde(default)]
    pub far: bool,
    /// Volumes are on their hosts' own disks.
    #[serde(default)]
    pub local: bool,
    /// Everything is as asked for already when the faults end.
    #[serde(default)]
    pub settles_before_calm: bool,
    #[serde(default)]
    pub expect: Expect,
}

fn two() -> usize {
    2
}

fn one_vm() -> Vec<String> {
    vec!["web".to_owned()]
}

fn six_seconds() -> u64 {
    6000
}

impl Scenario {
    /// One move of `web` from `a` to `b`, during which this is done at that instant.
    #[must_use]
    pub fn disturbed(layout: Layout, moment: &str, deed: &str) -> Self {
        let when = When { moment: moment.to_owned(), nth: 1, after_ms: 0, acts: vec![deed.to_owned()] };
        Self {
            about: format!("{deed} when {moment}"),
            hosts: two(),
            vms: one_vm(),
            begin: vec!["migrate web to b".to_owned()],
            when: vec![when],
            calm_after_ms: 5000,
            takes_disks_early: false,
            far: layout.is_far,
            local: layout.is_local,
            settles_before_calm: false,
            expect: Expect { migration: Some("succeeded|failed".to_owned()), ..Expect::default() },
        }
    }
}

/// Deeds that wait for an instant of the trace.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct When {
    pub moment: String,
    #[serde(default = "first")]
    pub nth: u32,
    #[serde(default)]
    pub after_ms: u64,
    #[serde(rename = "do")]
    pub acts: Vec<String>,
}

fn first() -> u32 {
    1
}

/// What must hold at the end, beside what always must. All about the first VM.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Expect {
    /// Word of the last migration's phase; several that are allowed are parted by `|`.
    pub migration: Option<String>,
    /// Letters of the hosts it may be on.
    pub on: Option<String>,
    /// How often it booted from its disk.
    pub boots: Option<u64>,
    /// What it is owned under; the first start's is 1.
    pub epoch: Option<u64>,
    /// How often its host reset it by itself.
    pub resets: Option<u32>,
    /// Whether its host leaves it alone for that.
    pub quarantined: Option<bool>,
}

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    pub wrong: Vec<String>,
    pub hash: u64,
    pub trace: String,
    pub tail: String,
    /// Virtual milliseconds from calm until everything was as asked for.
    pub settled_after_ms: Option<u64>,
    /// Instants of the trace that were waited for and never came.
    pub missed: Vec<String>,
    pub injected: Injected,
}

/// Runs a directed scenario.
///
/// # Panics
/// When the scenario's text makes no sense.
#[must_use]
pub fn run(scenario: &Scenario, mut config: Config) -> Outcome {
    config.hosts = scenario.hosts;
    config.takes_disks_early |= scenario.takes_disks_early;
    config.layout.is_far |= scenario.far;
    config.layout.is_local |= scenario.local;
    in_virtual_time(|| async move {
        let world = World::new(config);
        let began = begin(&world, &scenario.vms).await;
        arm(&world, scenario);
        for act in &scenario.begin {
            world.act(&parsed(act));
        }
        world.sleep(scenario.calm_after_ms).await;
        let missed = {
            let state = world.lock();
            state
                .triggers
                .iter()
                .filter(|trigger| trigger.left > 0)
                .map(|trigger| trigger.moment.clone())
                .collect()
        };
        let open = if scenario.settles_before_calm { world.unsettled() } else { Vec::new() };
        let mut outcome = end(&world, began).await;
        outcome.missed = missed;
        outcome.wrong.extend(open.into_iter().map(|what| format!("not settled under faults: {what}")));
        let expected = expectations(&world, scenario);
        outcome.wrong.extend(expected);
        outcome
    })
}

/// Runs random faults and orders, drawn from the seed.
#[must_use]
pub fn storm(config: Config) -> Outcome {
    in_virtual_time(|| async move {
        let config = drawn(config);
        let world = World::new(config);
        let vms: Vec<String> = vec!["web".to_owned(), "db".to_owned()];
        let began = begin(&world, &vms).await;
        world.lock().is_stormy = true;
        let (length, faults_every, orders_every) = {
            let mut state = world.lock();
            (
                state.random.between(2000, 8000),
                *state.random.pick(&[400, 1500, 5000, 60_000]),
                *state.random.pick(&[300, 800, 2000]),
            )
        };
        let operator = tokio::spawn(rain(world.clone(), orders_every, move |world| {
            let mut state = world.lock();
            let hosts = state.hosts.len() as u64;
            Act::draw_order(&mut state.random, hosts, &vms)
        }));
        let faults = tokio::spawn(rain(world.clone(), faults_every, |world| {
            let mut state = world.lock();
            let hosts = state.hosts.len() as u64;
            Act::draw(&mut state.random, hosts)
        }));
        world.sleep(length).await;
        operator.abort();
        faults.abort();
        // Power orders of the storm may leave a VM stopped: that is as asked for.
        end(&world, began).await
    })
}

/// The same with a store that is copied before the faults and the orders, and restored after them.
#[must_use]
pub fn restored(config: Config) -> Outcome {
    in_virtual_time(|| async move {
        let config = drawn(config);
        let world = World::new(config);
        let vms: Vec<String> = vec!["web".to_owned(), "db".to_owned()];
        let began = begin(&world, &vms).await;
        let quiet = {
            let mut state = world.lock();
            state.is_stormy = true;
            state.random.between(0, 3000)
        };
        let orders = tokio::spawn(rain(world.clone(), 600, move |world| {
            let mut state = world.lock();
            let hosts = state.hosts.len() as u64;
            Act::draw_lasting_order(&mut state.random, hosts, &vms)
        }));
        let faults = tokio::spawn(rain(world.clone(), 1500, |world| {
            let mut state = world.lock();
            let hosts = state.hosts.len() as u64;
            Act::draw(&mut state.random, hosts)
        }));
        world.sleep(quiet).await;
        world.act(&Act::BackUp);
        let length = world.lock().random.between(500, 6000);
        world.sleep(length).await;
        world.act(&Act::Restore);
        orders.abort();
        let after = world.lock().random.between(0, 4000);
        world.sleep(after).await;
        faults.abort();
        end(&world, began).await
    })
}

pub(crate) async fn rain(world: World, every: u64, draw: impl Fn(&World) -> Act) {
    loop {
        world.pause(every / 10, every * 2).await;
        let act = draw(&world);
        world.act(&act);
    }
}

/// The rates of this seed; most are none, so that each fault is also seen alone.
fn drawn(mut config: Config) -> Config {
    let mut random = crate::random::Random::new(config.seed ^ 0xdaa7);
    config.hosts = usize::try_from(random.between(2, 3)).unwrap_or(2);
    config.slowness = *random.pick(&[10, 10, 10, 40]);
    config.start_fails = *random.pick(&[0, 0, 100]);
    config.parts_wait = *random.pick(&[0, 100, 700]);
    config.looks_fail = *random.pick(&[0, 0, 200]);
    config.kills_at_moments = *random.pick(&[0, 15, 50, 150]);
    config.takes_disks_early = random.chance(500);
    config.layout.is_far |= random.chance(300);
    config.layout.is_local |= random.chance(150);
    config.loads_fail = *random.pick(&[0, 0, 100]);
    config
}

/// A world in virtual time, from its first event to its last.
pub(crate) fn in_virtual_time<F: Future<Output = Outcome>>(run: impl FnOnce() -> F) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime needs nothing but memory");
    runtime.block_on(async { run().await })
}

/// Everything starts, and the first VMs run.
pub(crate) async fn begin(world: &World, vms: &[String]) -> Result<(), String> {
    let hosts = world.lock().hosts.len();
    world.found_sites(hosts);
    world.start_server();
    for host in 0..hosts {
        world.start_agent(host);
    }
    world.sleep(1000).await;
    for vm in vms {
        world.act(&Act::Create(vm.clone()));
    }
    let settled = settle(world, 30_000).await.map(|_| ());
    settled.map_err(|open| format!("never got going: {}", open.join("; ")))
}

fn parsed(act: &str) -> Act {
    match act.parse() {
        Ok(act) => act,
        Err(why) => panic!("{why}"),
    }
}

fn arm(world: &World, scenario: &Scenario) {
    let triggers = scenario.when.iter().flat_map(|when| {
        when.acts.iter().map(|act| Trigger {
            moment: when.moment.clone(),
            left: when.nth,
            delay: when.after_ms,
            act: parsed(act),
        })
    });
    world.lock().triggers = triggers.collect();
}

/// Waits until all is as asked for; answers how long it took, or what is not.
async fn settle(world: &World, within: u64) -> Result<u64, Vec<String>> {
    let from = world.now_ms();
    loop {
        let open = world.unsettled();
        let passed = world.now_ms() - from;
        if open.is_empty() {
            return Ok(passed);
        }
        if passed >= within {
            return Err(open);
        }
        world.sleep(100).await;
    }
}

pub(crate) async fn end(world: &World, began: Result<(), String>) -> Outcome {
    world.calm();
    let settled = settle(world, SETTLES_WITHIN_MS).await;
    if settled.is_ok() {
        world.sleep(STAYS_MS).await;
    }
    let mut wrong = world.lock().violations.clone();
    wrong.extend(began.err());
    match &settled {
        Ok(_) => {
            wrong.extend(world.unsettled().into_iter().map(|what| format!("did not stay settled: {what}")))
        }
        Err(open) => wrong.extend(open.iter().map(|what| format!("not settled: {what}"))),
    }
    let state = world.lock();
    Outcome {
        wrong,
        hash: state.trace.hash(),
        trace: state.trace.text(),
        tail: state.trace.tail(120),
        settled_after_ms: settled.ok(),
        missed: Vec::new(),
        injected: state.injected.clone(),
    }
}

fn expectations(world: &World, scenario: &Scenario) -> Vec<String> {
    let mut wrong = Vec::new();
    let Some(vm) = scenario.vms.first() else { return wrong };
    if let Some(allowed) = &scenario.expect.migration {
        let word = world.last_phase(vm).map_or("none", |phase| phase.word());
        if !allowed.split('|').any(|allowed| allowed.trim() == word) {
            wrong.push(format!("the migration is {word}, expected {allowed}"));
        }
    }
    let state = world.lock();
    let found = state.checker.view.vms().find(|found| found.name.as_str() == vm);
    if let (Some(allowed), Some(found)) = (&scenario.expect.on, &found) {
        let host = found.decision().map_or("nowhere", |decision| decision.owner.host.as_str());
        if !allowed.contains(host) {
            wrong.push(format!("{vm} is on {host}, expected {allowed}"));
        }
    }
    let health = found.as_ref().and_then(|found| found.owner_report()).map(|row| row.health.clone());
    let health = health.unwrap_or_default();
    if scenario.expect.resets.is_some_and(|resets| resets != health.resets) {
        wrong.push(format!("{vm} was reset {} times: {:?}", health.resets, health.reset_why));
    }
    if scenario.expect.quarantined.is_some_and(|expected| expected != health.quarantine.is_some()) {
        wrong.push(format!("{vm} is quarantined: {:?}", health.quarantine));
    }
    if let (Some(epoch), Some(found)) = (scenario.expect.epoch, &found) {
        let owned = found.decision().map_or(0, |decision| decision.owner.epoch);
        if owned != epoch {
            wrong.push(format!("{vm} is owned under {owned}, expected {epoch}"));
        }
    }
    if let (Some(boots), Some(found)) = (scenario.expect.boots, &found) {
        let counted = state.machines.boots.get(&found.meta.uid).copied().unwrap_or(0);
        if counted != boots {
            wrong.push(format!("{vm} booted {counted} times, expected {boots}"));
        }
    }
    wrong
}
