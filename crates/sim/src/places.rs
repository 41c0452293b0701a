//! What must hold of volumes' places: a volume is where its VM's owner can open it, and between two places only while a
//! migration is under way.

use sterna_model::meta::Name;
use sterna_model::volume::VolumeDecision;
use sterna_plan::View;

use crate::check::Checker;

impl Checker {
    /// After each commit.
    pub(crate) fn check_places(&self, wrong: &mut Vec<String>) {
        for vm in self.view.vms() {
            let Some(decision) = vm.decision() else { continue };
            for name in &decision.hardware.volumes {
                let volume = self.view.volumes.get(name).and_then(|entry| entry.decision.as_ref());
                let Some(volume) = volume else { continue };
                if is_local(&self.view, &volume.pool) && volume.host != decision.owner.host {
                    let (here, owner) = (volume.location(), &decision.owner);
                    wrong.push(format!("places: {name} of {} is at {here:?}, owner {owner:?}", vm.name));
                }
                if volume.is_moving() && self.view.migration_of(vm.name).is_none() {
                    wrong.push(format!("places: {name} moves and no migration does: {volume:?}"));
                }
            }
        }
        for (name, entry) in &self.view.volumes {
            let twice = entry.decision.as_ref().is_some_and(|volume| is_twice_somewhere(volume));
            if twice {
                wrong.push(format!("places: {name} is twice in one: {:?}", entry.decision));
            }
        }
    }

    /// At rest.
    pub(crate) fn look_at_places(&self, open: &mut Vec<String>) {
        let moving = self.view.volumes.iter().filter_map(|(name, entry)| {
            entry.decision.as_ref().filter(|volume| volume.is_moving()).map(|volume| (name, volume))
        });
        open.extend(moving.map(|(name, volume)| format!("places: {name} is between two: {volume:?}")));
    }
}

fn is_local(view: &View, pool: &Name) -> bool {
    let spec = view.pools.get(pool).and_then(|entry| entry.spec.as_ref());
    spec.is_some_and(|object| !object.spec.kind.is_shared())
}

/// A place is one thing at a time.
fn is_twice_somewhere(volume: &VolumeDecision) -> bool {
    let places: Vec<_> = volume.locations().collect();
    places.iter().enumerate().any(|(index, place)| places[..index].contains(place))
}
