//! What may happen next, and what must hold.

use stateright::{Model, Property};
use sterna_guard::core::event::State;
use sterna_guard::core::id::Epoch;
use sterna_guard::core::mutation::Mutations;

use super::bounds::Bounds;
use super::world::{A, Change, Start, World};

pub struct LeaseModel {
    pub bounds: Bounds,
    pub mutations: Mutations,
}

/// What must hold in every state.
pub const SAFE: [&str; 3] = [
    "at most one host has a process of the VM",
    "an epoch that expired is never held again",
    "nothing outlives lease and watchdog",
];
/// What happens in some state: a search without it has not seen what it is for.
pub const POSSIBLE: [&str; 5] = [
    "A runs the VM",
    "A is fenced, and B runs the VM",
    "A's guard kills it",
    "the watchdog resets A",
    "A holds its next epoch",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Happening {
    /// To the next message that was sent at this tick.
    Arrives,
    IsLost,
    IsDelayed,
    /// It arrives, and will once more.
    IsDoubled,
    /// One that was delayed.
    ArrivesLate(usize),
    TickPasses,
    GuardRestarts(usize),
    HostLosesPower,
    GuardStalls,
    GuardWakes,
    FencerAsks,
    AsksForAnEpoch,
    GetsItsEpoch,
    IsOrdered,
    Starts,
    IsReaped,
    VotersChange,
}

impl Model for LeaseModel {
    type State = World;
    type Action = Happening;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self.bounds, self.mutations)]
    }

    fn actions(&self, world: &World, happenings: &mut Vec<Happening>) {
        if world.net.is_empty() {
            of_fencer(world, happenings);
            of_host(world, happenings);
            of_faults(world, happenings);
            if world.tick < world.left.ticks {
                happenings.push(Happening::TickPasses);
            }
        } else {
            // Nothing that happens at the same instant makes a difference to a message's being on its way.
            let left = &world.left;
            happenings.push(Happening::Arrives);
            happenings.extend((left.losses > 0).then_some(Happening::IsLost));
            happenings.extend((left.delays > 0).then_some(Happening::IsDelayed));
            happenings.extend((left.doubles > 0).then_some(Happening::IsDoubled));
        }
    }

    fn next_state(&self, before: &World, happening: Happening) -> Option<World> {
        let mut world = before.clone();
        let left = &mut world.left;
        let now = before.now();
        match happening {
            Happening::Arrives | Happening::IsLost | Happening::IsDelayed | Happening::IsDoubled => {
                on_message(&mut world, happening)?;
            }
            Happening::ArrivesLate(index) => {
                let envelope = world.late.remove(index);
                world.deliver(envelope);
            }
            Happening::TickPasses => world.pass(),
            Happening::GuardRestarts(machine) => {
                left.restarts -= 1;
                world.restart_guard(machine, now);
            }
            Happening::HostLosesPower => {
                left.resets -= 1;
                world.reset(A, now);
                world.was_reset = before.was_reset;
            }
            Happening::GuardStalls => {
                left.stalls -= 1;
                world.set_stalled(true);
            }
            Happening::GuardWakes => world.set_stalled(false),
            Happening::FencerAsks => {
                left.asks -= 1;
                world.ask();
            }
            Happening::AsksForAnEpoch => {
                left.joins -= 1;
                world.host_epoch = Epoch(world.host_epoch.0 + 1);
                world.joining = Some((world.host_epoch, now));
            }
            Happening::GetsItsEpoch => world.join(),
            Happening::IsOrdered => world.order(),
            Happening::Starts => world.spawn(),
            Happening::IsReaped => world.reap(),
            Happening::VotersChange => {
                left.changes -= 1;
                world.change_voters();
            }
        }
        world.settle(Some(before));
        (world != *before).then_some(world)
    }

    fn within_boundary(&self, world: &World) -> bool {
        !world.is_over() || self.bounds.joins > 0
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(SAFE[0], |_, world: &World| !(world.is_fenced && world.process.is_some())),
            Property::always(SAFE[1], |_, world: &World| !world.is_revived),
            Property::always(SAFE[2], |_, world: &World| !world.outlives_its_lease()),
            Property::sometimes(POSSIBLE[0], |_, world: &World| world.process.is_some()),
            Property::sometimes(POSSIBLE[1], |_, world: &World| world.is_fenced),
            Property::sometimes(POSSIBLE[2], |_, world: &World| {
                world.process.is_some_and(|process| process.is_killed)
            }),
            Property::sometimes(POSSIBLE[3], |_, world: &World| world.was_reset),
            Property::sometimes(POSSIBLE[4], |_, world: &World| {
                world.lease_state() == State::Held { epoch: Epoch(2) }
            }),
        ]
    }
}

fn on_message(world: &mut World, happening: Happening) -> Option<()> {
    let envelope = world.net.pop_front()?;
    match happening {
        Happening::IsLost => world.left.losses -= 1,
        Happening::IsDelayed => {
            world.left.delays -= 1;
            world.late.push(envelope);
        }
        Happening::IsDoubled => {
            world.left.doubles -= 1;
            world.late.push(envelope.clone());
            world.deliver(envelope);
        }
        _ => world.deliver(envelope),
    }
    Some(())
}

fn of_fencer(world: &World, happenings: &mut Vec<Happening>) {
    let may_ask = !world.has_asked && !world.is_fenced && world.left.asks > 0;
    happenings.extend(may_ask.then_some(Happening::FencerAsks));
}

fn of_host(world: &World, happenings: &mut Vec<Happening>) {
    let a = world.a();
    if a.is_stalled {
        return;
    }
    let may_join = world.lease_state() == State::NoEpoch && world.joining.is_none() && world.left.joins > 0;
    happenings.extend(may_join.then_some(Happening::AsksForAnEpoch));
    if world.left.late_start {
        happenings.extend(world.joining.map(|_| Happening::GetsItsEpoch));
        match world.start {
            Start::Ordered => happenings.push(Happening::IsOrdered),
            Start::Allowed => happenings.push(Happening::Starts),
            Start::Made | Start::GivenUp => {}
        }
    }
    // One that hangs until its host is reset is the worst; only a host that is to come back wants it gone.
    let is_killed = world.process.is_some_and(|process| process.is_killed);
    happenings.extend((is_killed && world.left.joins > 0).then_some(Happening::IsReaped));
}

fn of_faults(world: &World, happenings: &mut Vec<Happening>) {
    let left = &world.left;
    happenings.extend((0..world.late.len()).map(Happening::ArrivesLate));
    if left.restarts > 0 {
        happenings.extend(left.restarting.iter().copied().map(Happening::GuardRestarts));
    }
    happenings.extend((left.resets > 0).then_some(Happening::HostLosesPower));
    let is_stalled = world.a().is_stalled;
    happenings.extend((left.stalls > 0 && !is_stalled).then_some(Happening::GuardStalls));
    happenings.extend(is_stalled.then_some(Happening::GuardWakes));
    let may_change = left.changes > 0 && world.change == Change::No && !is_stalled;
    happenings.extend(may_change.then_some(Happening::VotersChange));
}
