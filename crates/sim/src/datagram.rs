//! Datagrams between guards, voters and fencers: lost, late and cut, one way as well as both.

use std::collections::BTreeSet;

use sterna_guard::core::id::HostId;
use sterna_guard::core::message::Message;
use tokio::sync::mpsc::UnboundedSender;

use crate::guard::ToGuard;
use crate::world::{State, World};

/// How the network between machines is. Rates are of 1,000.
#[derive(Debug, Clone, Default)]
pub struct Air {
    /// From one machine to another.
    cuts: BTreeSet<(usize, usize)>,
    pub loss: u64,
    pub late: u64,
    pub late_ms_max: u64,
    pub doubled: u64,
}

impl Air {
    pub fn cut(&mut self, from: usize, to: usize) {
        self.cuts.insert((from, to));
    }

    /// What leaves a machine, or reaches it, does so again.
    pub fn heal(&mut self, node: usize) {
        self.cuts.retain(|(from, to)| *from != node && *to != node);
    }

    fn is_cut(&self, from: usize, to: usize) -> bool {
        from != to && self.cuts.contains(&(from, to))
    }
}

/// Where a fencer hears.
pub struct Ear {
    pub id: HostId,
    pub inbox: UnboundedSender<(HostId, Message)>,
}

impl World {
    /// Takes its time, or is lost.
    pub fn send_datagram(&self, node: usize, from: HostId, to: HostId, message: Message) {
        let there = {
            let state = self.lock();
            state.node_of(to)
        };
        let Some(there) = there else { return };
        let copies = {
            let mut state = self.lock();
            let state = &mut *state;
            let (air, random) = (&state.air, &mut state.random);
            if air.is_cut(node, there) || random.chance(air.loss) {
                return;
            }
            let times = if random.chance(air.doubled) { 2 } else { 1 };
            let slowness = state.config.slowness;
            let mut delay = || {
                let near = random.between(0, 2) * slowness / 10;
                if random.chance(air.late) { near + random.below(air.late_ms_max) } else { near }
            };
            (0..times).map(|_| delay()).collect::<Vec<_>>()
        };
        for delay in copies {
            let world = self.clone();
            tokio::spawn(async move {
                world.sleep(delay).await;
                world.deliver(node, there, (from, to), message);
            });
        }
    }

    fn deliver(&self, from_node: usize, there: usize, (from, to): (HostId, HostId), message: Message) {
        let state = self.lock();
        if state.air.is_cut(from_node, there) || state.nodes[there].is_down {
            return;
        }
        // Whoever does not listen any more loses it.
        if let Some(ear) = state.ears.iter().find(|ear| ear.id == to) {
            let _ = ear.inbox.send((from, message));
        } else if let Some(inbox) = &state.nodes[there].guard.inbox {
            let _ = inbox.send(ToGuard::Datagram { from, message });
        }
    }
}

impl State {
    /// On which machine that is.
    fn node_of(&self, id: HostId) -> Option<usize> {
        let guard = self.nodes.iter().position(|node| node.id == id);
        guard.or_else(|| self.ears.iter().any(|ear| ear.id == id).then_some(self.config.hosts))
    }
}
