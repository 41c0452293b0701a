//! A run of the world: a script of deeds, and what must come of it.

use serde::Deserialize;
use sterna_model::ha::{Ha, Isolation, Profile};

use crate::campaign::Injected;
use crate::fault::{Act, Trigger};
use crate::random::Random;
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
    /// Hosts have guards, and a witness is beside the server.
    #[serde(default)]
    pub guards: bool,
    #[serde(default)]
    pub profile: Profile,
    #[serde(default = "one")]
    pub controllers: usize,
    /// Of every VM.
    pub ha: Option<Ha>,
    #[serde(default)]
    pub isolation: Option<Isolation>,
    #[serde(default)]
    pub expect: Expect,
}

fn one() -> usize {
    1
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
            guards: false,
            profile: Profile::default(),
            controllers: one(),
            ha: None,
            isolation: None,
            expect: Expect { migration: Some("succeeded|failed".to_owned()), ..Expect::default() },
        }
    }
}

impl Scenario {
    /// The same where hosts have guards, with enough time for a takeover.
    #[must_use]
    pub fn lost(moment: &str, deed: &str) -> Self {
        let calm_after_ms = 40_000;
        let disturbed = Self::disturbed(Layout::default(), moment, deed);
        Self { hosts: 3, guards: true, calm_after_ms, ..disturbed }
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
    /// How many VMs were taken over, all in all, and how many hosts were fenced.
    pub takeovers: Option<u32>,
    pub fences: Option<u32>,
    /// How many living VMs guards ended, and hosts watchdogs reset.
    pub kills: Option<u32>,
    pub watchdogs: Option<u32>,
    /// The longest that it did not run at a stretch, in milliseconds.
    pub gap_ms_max: Option<u64>,
    /// And the least: it had to wait for something.
    pub gap_ms_min: Option<u64>,
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
    config.guards |= scenario.guards;
    config.profile = scenario.profile;
    config.controllers = scenario.controllers;
    (config.ha, config.isolation) = (scenario.ha, scenario.isolation);
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
        let order = move |random: &mut Random, hosts| Act::draw_order(random, hosts, &vms);
        blow(&world, length, (orders_every, order), (faults_every, Act::draw)).await;
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
        let order = move |random: &mut Random, hosts| Act::draw_lasting_order(random, hosts, &vms);
        let orders = tokio::spawn(rain(world.clone(), 600, order));
        let faults = tokio::spawn(rain(world.clone(), 1500, Act::draw));
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

/// Orders and faults, each about so often, for so long.
pub(crate) async fn blow(
    world: &World,
    length: u64,
    (orders_every, order): (u64, impl Fn(&mut Random, u64) -> Act + Send + 'static),
    (faults_every, fault): (u64, impl Fn(&mut Random, u64) -> Act + Send + 'static),
) {
    let orders = tokio::spawn(rain(world.clone(), orders_every, order));
    let faults = tokio::spawn(rain(world.clone(), faults_every, fault));
    world.sleep(length).await;
    orders.abort();
    faults.abort();
}

/// `draw` is told how many hosts there are.
async fn rain(world: World, every: u64, draw: impl Fn(&mut Random, u64) -> Act) {
    loop {
        world.pause(every / 10, every * 2).await;
        let act = {
            let mut state = world.lock();
            let hosts = state.hosts.len() as u64;
            draw(&mut state.random, hosts)
        };
        world.act(&act);
    }
}

/// The rates of this seed; most are none, so that each fault is also seen alone.
fn drawn(mut config: Config) -> Config {
    let mut random = Random::new(config.seed ^ 0xdaa7);
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
    let nodes = world.lock().nodes.len();
    for node in 0..nodes {
        world.start_guard(node);
    }
    for host in 0..hosts {
        world.start_agent(host);
    }
    world.sleep(1000).await;
    for vm in vms {
        world.act(&Act::Create(vm.clone()));
    }
    // A guard that has just been installed is silent as a voter for half a minute.
    let patience = if world.has_guards() { 90_000 } else { 30_000 };
    let settled = settle(world, patience).await.map(|_| ());
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
    let mut wrong = expected_losses(world, scenario);
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

fn expected_losses(world: &World, scenario: &Scenario) -> Vec<String> {
    let state = world.lock();
    let (losses, expect) = (&state.losses, &scenario.expect);
    let kills = u32::try_from(losses.kills.len()).unwrap_or(u32::MAX);
    let counted = [
        ("VMs taken over", expect.takeovers, losses.takeovers),
        ("hosts fenced", expect.fences, losses.fences),
        ("VMs ended by guards", expect.kills, kills),
        ("hosts reset by watchdogs", expect.watchdogs, state.watchdog_resets),
    ];
    let counts = counted.into_iter().filter_map(|(what, expected, counted)| {
        let expected = expected.filter(|expected| *expected != counted)?;
        Some(format!("{what}: {counted}, expected {expected}"))
    });
    let mut wrong: Vec<_> = counts.collect();
    let vm = scenario.vms.first();
    let found = state.checker.view.vms().find(|found| Some(found.name.as_str()) == vm.map(String::as_str));
    let gap = found.and_then(|found| losses.gaps.get(&found.meta.uid)).copied().unwrap_or(0) / 1_000_000;
    if expect.gap_ms_max.is_some_and(|most| gap > most) || expect.gap_ms_min.is_some_and(|least| gap < least)
    {
        wrong.push(format!("it did not run for {gap} ms"));
    }
    wrong
}
