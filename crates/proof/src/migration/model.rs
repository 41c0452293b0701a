//! What may happen next, and what must hold.

use stateright::{Model, Property};
use sterna_agent::hypervisor::Transfer;

use super::store::HOSTS;
use super::world::{Bounds, Way, World};

pub struct MoveModel {
    pub bounds: Bounds,
}

pub const SAFE: [&str; 3] = [
    "at most one copy runs",
    "no copy runs whose memory is old",
    "when nothing more happens by itself, a copy runs and the move has ended",
];
pub const POSSIBLE: [&str; 3] =
    ["the target runs it", "the source runs it after a failed move", "it starts anew from its disks"];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Happening {
    /// The n-th action of the round commits at once.
    Commits(usize),
    /// It will be tried later, by a leader that has meanwhile lost its place.
    WillCommit(usize),
    CommitsLate,
    Hears(usize),
    IsPosted(usize),
    MailArrives,
    Tells(usize),
    /// With the line to the server up, or down.
    Acts(usize, bool),
    StandsStill,
    EndArrives,
    IsOverdue(usize),
    // Faults.
    AgentDies(usize, usize),
    QemuDies(usize),
    Reboots(usize),
    FallsSilent(usize),
    IsBack(usize),
    TransferFails,
    LastWordIsLost,
    IsCancelled,
}

impl Happening {
    /// It comes without anything going wrong, sooner or later.
    fn is_certain(self) -> bool {
        match self {
            Happening::Commits(_)
            | Happening::CommitsLate
            | Happening::Hears(_)
            | Happening::MailArrives
            | Happening::Tells(_)
            | Happening::StandsStill
            | Happening::EndArrives
            | Happening::IsOverdue(_)
            | Happening::IsBack(_) => true,
            Happening::Acts(_, is_line_up) => is_line_up,
            _ => false,
        }
    }
}

impl Model for MoveModel {
    type State = World;
    type Action = Happening;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self.bounds)]
    }

    fn actions(&self, world: &World, happenings: &mut Vec<Happening>) {
        by_themselves(world, happenings);
        faults(world, happenings);
    }

    fn next_state(&self, before: &World, happening: Happening) -> Option<World> {
        let mut world = before.clone();
        happen(&mut world, happening)?;
        world.seal();
        (world.print != before.print).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(SAFE[0], |_, world: &World| !(world.runs(0) && world.runs(1))),
            Property::always(SAFE[1], |_, world: &World| {
                (0..2).all(|host| {
                    let is_stale = world.hosts[host].qemu.as_ref().is_some_and(|qemu| qemu.is_stale);
                    !(world.runs(host) && is_stale)
                })
            }),
            Property::always(SAFE[2], |model: &Self, world: &World| {
                let is_well = (world.runs(0) || world.runs(1)) && world.store.is_ended();
                is_well || !model.is_at_rest(world)
            }),
            Property::sometimes(POSSIBLE[0], |_, world: &World| world.runs(1)),
            Property::sometimes(POSSIBLE[1], |_, world: &World| {
                world.runs(0) && world.store.phase() == "failed"
            }),
            Property::sometimes(POSSIBLE[2], |_, world: &World| {
                let is_fresh = |host: usize| {
                    let notes = world.hosts[host].notes.as_ref();
                    notes.is_some_and(|notes| notes.epoch > 1 && notes.migration.is_none())
                };
                (0..2).any(|host| world.runs(host) && is_fresh(host))
            }),
        ]
    }
}

impl MoveModel {
    fn is_at_rest(&self, world: &World) -> bool {
        let mut happenings = Vec::new();
        by_themselves(world, &mut happenings);
        happenings
            .into_iter()
            .filter(|happening| happening.is_certain())
            .all(|happening| self.next_state(world, happening).is_none())
    }
}

fn by_themselves(world: &World, happenings: &mut Vec<Happening>) {
    let plan = world.store.plan();
    happenings.extend((0..plan.len()).map(Happening::Commits));
    if world.left.late_writes > 0 {
        happenings.extend((0..plan.len()).map(Happening::WillCommit));
    }
    happenings.extend(world.late.as_ref().map(|_| Happening::CommitsLate));
    happenings.extend(world.mail.as_ref().map(|_| Happening::MailArrives));
    for host in 0..HOSTS.len() {
        if world.is_silent[host] {
            happenings.extend([Happening::IsBack(host), Happening::Acts(host, false)]);
            continue;
        }
        happenings.extend([Happening::Hears(host), Happening::Tells(host), Happening::Acts(host, true)]);
        if world.left.late_orders > 0 && world.mail.is_none() {
            happenings.push(Happening::IsPosted(host));
        }
    }
    happenings.extend(world.is_going().then_some(Happening::StandsStill));
    happenings.extend(world.has_end.then_some(Happening::EndArrives));
    happenings.extend((0..HOSTS.len()).filter(|host| world.may_be_overdue(*host)).map(Happening::IsOverdue));
}

fn faults(world: &World, happenings: &mut Vec<Happening>) {
    let left = &world.left;
    for host in 0..HOSTS.len() {
        if left.agents > 0 {
            happenings.extend((0..4).map(|most| Happening::AgentDies(host, most)));
        }
        let has_qemu = world.hosts[host].qemu.is_some();
        happenings.extend((left.deaths > 0 && has_qemu).then_some(Happening::QemuDies(host)));
        happenings.extend((left.reboots > 0).then_some(Happening::Reboots(host)));
        happenings
            .extend((left.silences > 0 && !world.is_silent[host]).then_some(Happening::FallsSilent(host)));
    }
    if left.failures > 0 {
        happenings.push(Happening::TransferFails);
        let is_direct = left.way == Way::Direct && world.is_going();
        happenings.extend(is_direct.then_some(Happening::LastWordIsLost));
    }
    happenings.extend((left.cancels > 0).then_some(Happening::IsCancelled));
}

fn happen(world: &mut World, happening: Happening) -> Option<()> {
    match happening {
        Happening::Commits(index) => {
            let action = world.store.plan().into_iter().nth(index)?;
            if world.store.still_holds(&action) {
                world.store.write(&action);
            }
        }
        Happening::WillCommit(index) => {
            world.left.late_writes -= 1;
            world.late = Some(world.store.plan().into_iter().nth(index)?);
        }
        Happening::CommitsLate => {
            let action = world.late.take()?;
            if world.store.still_holds(&action) {
                world.store.write(&action);
            }
        }
        Happening::Hears(host) => world.hear(host),
        Happening::IsPosted(host) => {
            world.left.late_orders -= 1;
            world.post(host);
        }
        Happening::MailArrives => {
            let (host, revision, order) = world.mail.take()?;
            world.take_order(host, revision, order);
        }
        Happening::Tells(host) => world.tell(host),
        Happening::Acts(host, is_line_up) => world.act(host, is_line_up, None),
        Happening::StandsStill => world.stand_still(),
        Happening::EndArrives => world.end_arrives(),
        Happening::IsOverdue(host) => world.hosts[host].is_overdue = true,
        fault => happen_wrong(world, fault)?,
    }
    Some(())
}

fn happen_wrong(world: &mut World, fault: Happening) -> Option<()> {
    let left = &mut world.left;
    match fault {
        Happening::AgentDies(host, most) => {
            left.agents -= 1;
            world.act(host, true, Some(most));
            let defect = world.left.defect;
            world.hosts[host].restart_agent(defect);
        }
        Happening::QemuDies(host) => {
            left.deaths -= 1;
            world.die(host);
        }
        Happening::Reboots(host) => {
            left.reboots -= 1;
            world.reboot(host);
        }
        Happening::FallsSilent(host) => {
            left.silences -= 1;
            world.is_silent[host] = true;
            world.store.set_silent(host, true);
        }
        Happening::IsBack(host) => {
            world.is_silent[host] = false;
            world.store.set_silent(host, false);
            world.tell(host);
        }
        Happening::TransferFails => {
            left.failures -= 1;
            if world.left.way == Way::Mover && world.has_end {
                // The line is cut behind what was let go.
                world.has_end = false;
            }
            world.end_transfer(Transfer::Failed { why: "the line was cut".to_owned() });
        }
        Happening::LastWordIsLost => {
            left.failures -= 1;
            world.lose_last_word();
        }
        Happening::IsCancelled => {
            left.cancels -= 1;
            world.store.cancel();
        }
        _ => return None,
    }
    Some(())
}
