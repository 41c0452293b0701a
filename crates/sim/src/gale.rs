//! Storms in which hosts are lost: power, freezes, cuts one way and both, clocks, and everything killed as in any storm.
//!
//! While they blow, guards may end VMs and hosts may be fenced; never may two copies run or write. Once they are over,
//! everything has its lease again and runs, and nobody ends anything any more.

use sterna_model::ha::Profile;

use crate::fault::Act;
use crate::random::Random;
use crate::scenario::{Outcome, begin, blow, end, in_virtual_time};
use crate::world::{Config, State, World};

/// From the end of the faults on, a guard may still end what a fault has cost the lease: for so long.
const AFTERMATH_MS: u64 = 60_000;

/// Random losses and orders, drawn from the seed.
#[must_use]
pub fn gale(config: Config) -> Outcome {
    in_virtual_time(|| async move {
        let world = World::new(drawn(config));
        let vms: Vec<String> = vec!["web".to_owned(), "db".to_owned()];
        let began = begin(&world, &vms).await;
        world.lock().is_stormy = true;
        let (length, faults_every, orders_every) = {
            let mut state = world.lock();
            thicken(&mut state);
            (
                state.random.between(10_000, 90_000),
                *state.random.pick(&[2000, 6000, 15_000, 40_000]),
                *state.random.pick(&[3000, 15_000, 60_000]),
            )
        };
        let order = move |random: &mut Random, hosts| Act::draw_order(random, hosts, &vms);
        blow(&world, length, (orders_every, order), (faults_every, Act::draw_loss)).await;
        let calm = world.now_ms();
        let mut outcome = end(&world, began).await;
        outcome.wrong.extend(world.kills_since(calm + AFTERMATH_MS));
        outcome
    })
}

/// How late datagrams are, and how often there are two: mostly not at all.
fn thicken(state: &mut State) {
    let random = &mut state.random;
    state.air.late = *random.pick(&[0, 0, 5, 50]);
    state.air.late_ms_max = *random.pick(&[500, 5000, 40_000]);
    state.air.doubled = *random.pick(&[0, 0, 100]);
}

/// The rates of this seed; most are none, so that each fault is also seen alone.
fn drawn(mut config: Config) -> Config {
    let mut random = Random::new(config.seed ^ 0x9a1e);
    config.guards = true;
    config.hosts = usize::try_from(random.between(2, 4)).unwrap_or(3);
    config.profile = *random.pick(&[Profile::Quick, Profile::Standard]);
    config.slowness = *random.pick(&[10, 10, 10, 40]);
    config.start_fails = *random.pick(&[0, 0, 0, 100]);
    config.starts_stall = *random.pick(&[0, 0, 300]);
    config.parts_wait = *random.pick(&[0, 0, 300]);
    config.looks_fail = *random.pick(&[0, 0, 0, 200]);
    config.kills_at_moments = *random.pick(&[0, 0, 5, 20]);
    config.takes_disks_early = random.chance(500);
    config.controllers = *random.pick(&[1, 1, 2]);
    config.loads_fail = *random.pick(&[0, 0, 100]);
    config
}
