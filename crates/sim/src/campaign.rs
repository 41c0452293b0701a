//! Moves through the mover under faults that the seed draws, and a count of what was done to them in which phase.

use std::collections::BTreeMap;

use sterna_model::migration::{MigrationDecision, Via};

use crate::fault::Act;
use crate::random::Random;
use crate::scenario::{Outcome, begin, blow, end, in_virtual_time};
use crate::site::Layout;
use crate::world::{Config, State, World};

/// How often each fault hit a guest on its way: by its kind and whom it hit, and by the move's phase.
pub type Injected = BTreeMap<(String, &'static str), u32>;

/// One guest goes to and fro, and everything fails.
#[must_use]
pub fn march(config: Config) -> Outcome {
    in_virtual_time(|| async move {
        let world = World::new(drawn(config));
        let vms = vec!["web".to_owned()];
        let began = begin(&world, &vms).await;
        world.lock().is_stormy = true;
        let (length, faults_every) = {
            let mut state = world.lock();
            (state.random.between(6000, 20_000), *state.random.pick(&[700, 2000, 60_000]))
        };
        blow(&world, length, (400, draw_order), (faults_every, Act::draw)).await;
        end(&world, began).await
    })
}

fn draw_order(random: &mut Random, hosts: u64) -> Act {
    let vm = "web".to_owned();
    let to = usize::try_from(random.below(hosts)).ok();
    match random.below(40) {
        0 => Act::Cancel(vm),
        1 => Act::Pause(vm),
        2 | 3 => Act::Start(vm),
        4..=7 => Act::Preseed { vm, to: to.unwrap_or(0) },
        _ => Act::Migrate { vm, to },
    }
}

fn drawn(mut config: Config) -> Config {
    let mut random = Random::new(config.seed ^ 0xca44);
    config.hosts = usize::try_from(random.between(2, 3)).unwrap_or(2);
    config.slowness = *random.pick(&[10, 10, 10, 40]);
    config.kills_at_moments = *random.pick(&[0, 15, 40, 100]);
    config.takes_disks_early = random.chance(500);
    config.loads_fail = *random.pick(&[0, 0, 100]);
    let is_local = random.chance(400);
    config.layout = Layout { is_far: !is_local || random.chance(500), is_local };
    config
}

impl Act {
    /// What breaks, and on which host.
    fn fault(&self) -> Option<(&'static str, Option<usize>)> {
        Some(match self {
            Act::KillServer => ("kill server", None),
            Act::KillAgent(host) => ("kill agent", Some(*host)),
            Act::KillShim(host) => ("kill shim", Some(*host)),
            Act::KillQemu(host) => ("kill qemu", Some(*host)),
            Act::Reboot(host) => ("reboot", Some(*host)),
            Act::CutLine(host) => ("cut line", Some(*host)),
            Act::CutData(host) => ("cut data", Some(*host)),
            Act::FailDisk(host) => ("fail disk", Some(*host)),
            Act::DropWatches(per_mille) if *per_mille > 0 => ("drop watches", None),
            _ => return None,
        })
    }
}

impl World {
    /// Counts a fault that hits a guest on its way through the mover, or with its disks, or either of its hosts.
    pub(crate) fn note_fault(&self, act: &Act) {
        let Some((what, host)) = act.fault() else { return };
        let mut state = self.lock();
        if let Some(key) = state.hit(what, host) {
            *state.injected.entry(key).or_default() += 1;
        }
    }
}

impl State {
    fn hit(&self, what: &str, host: Option<usize>) -> Option<(String, &'static str)> {
        let mut moves = self.checker.view.migrations.values().filter_map(|entry| entry.decision.as_ref());
        let is_watched = |it: &MigrationDecision| it.via == Via::Mover || !it.volumes.is_empty();
        let it = moves.find(|it| is_watched(it) && !it.phase.has_ended())?;
        let name = host.and_then(|host| self.hosts.get(host)).map(|host| &host.name);
        let whom = match name {
            None => "",
            Some(name) if it.source.as_ref() == Some(name) => " of source",
            Some(name) if it.target.as_ref() == Some(name) => " of target",
            Some(_) => return None,
        };
        Some((format!("{what}{whom}"), it.phase.word()))
    }
}
