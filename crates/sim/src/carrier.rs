//! The mover, as a fake: sessions that carry guests between hosts, as `agent::carrier` has them.
//!
//! ```text
//! rounds ─► the source stands still ─► holds the end ─► frozen ─► granted ─► the target has the end ─► loads it
//!    └──────────────┴──────────────────────┴─ any failure: the source runs again, unless it is frozen
//! ```
//!
//! A session lives in the lives of both agents. With the source's ends QEMU's socket there: it runs its guest again by
//! itself, or stands still if it is frozen. With the target's ends the other socket, and a QEMU that has not got the end
//! of its stream ends too; the source cannot know that, and waits for a line to an address that nobody has any more.

use std::net::{IpAddr, SocketAddr};

use sterna_agent::hypervisor::{Guest, GuestError, Transfer};
use sterna_model::migration::SideState;
use uuid::Uuid;

use crate::carrier::session::Session;
use crate::direct;
use crate::hypervisor::Held;
use crate::mutation::Mutation;
use crate::qemu::{End, Qemu};
use crate::world::{State, World};

/// What happens by itself.
mod session;

/// A source's side of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    pub session: Uuid,
    /// Of the agent that has it.
    pub life: u64,
    pub stage: Stage,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    Going,
    Held,
    Granted,
    Seeded,
    Failed(String),
}

/// A target's side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    pub session: Uuid,
    pub life: u64,
    /// All that it needs is in its socket, whoever dies now.
    pub has_end: bool,
}

/// What the mover says of a transfer comes first where it knows more than QEMU.
#[must_use]
pub fn carried(qemu: &Qemu, life: u64) -> Transfer {
    let Some(way) = qemu.way.as_ref().filter(|way| way.life == life) else { return direct::told(qemu, life) };
    match &way.stage {
        Stage::Going => Transfer::Going,
        Stage::Held | Stage::Granted => Transfer::Held,
        Stage::Seeded => Transfer::Seeded,
        Stage::Failed(why) => Transfer::Failed { why: why.clone() },
    }
}

/// Where one life of a host's mover listens, for all guests.
#[must_use]
fn address_of(ip: IpAddr, life: u64) -> SocketAddr {
    SocketAddr::new(ip, 20_000 + u16::try_from(life % 20_000).unwrap_or(0))
}

impl State {
    /// The mover that listened there still does.
    fn is_listening(&self, host: usize, at: SocketAddr) -> bool {
        let there = &self.hosts[host];
        there.agent_is_up && address_of(at.ip(), there.life) == at
    }

    fn target_of(&self, session: Uuid) -> Option<u64> {
        let is_it = |qemu: &Qemu| qemu.arrival.as_ref().is_some_and(|arrival| arrival.session == session);
        self.machines.qemus.iter().find(|(_, qemu)| is_it(qemu)).map(|(id, _)| *id)
    }
}

impl Held {
    pub(crate) async fn receive(&self, at: IpAddr, session: Uuid) -> Result<SocketAddr, GuestError> {
        let life = self.bench.life;
        let is_new = self
            .tell(|qemu| match &qemu.arrival {
                Some(arrival) if arrival.session == session && arrival.life == life => Ok(false),
                Some(_) => Err(GuestError::Refused("it waits for another stream".to_owned())),
                None => {
                    qemu.arrival = Some(Arrival { session, life, has_end: false });
                    Ok(true)
                }
            })
            .await?;
        if is_new {
            tokio::spawn(attend(self.bench.world.clone(), self.id, self.bench.host, life));
        }
        self.moment("listens");
        Ok(address_of(at, life))
    }

    pub(crate) async fn depart(&self, to: SocketAddr, session: Uuid, seed: bool) -> Result<(), GuestError> {
        let life = self.bench.life;
        self.tell(|qemu| {
            if matches!(&qemu.way, Some(way) if way.life == life && !matches!(way.stage, Stage::Failed(_) | Stage::Seeded)) {
                return Err(GuestError::Refused("a migration is already under way".to_owned()));
            }
            (qemu.way, qemu.direct) = (Some(Way { session, life, stage: Stage::Going }), None);
            qemu.wants_cancel = false;
            Ok(())
        })
        .await?;
        self.moment("sends");
        let session = Session::new(&self.bench, self.id, (to, session));
        if seed {
            tokio::spawn(session.seed());
        } else {
            tokio::spawn(session.run());
        }
        Ok(())
    }

    /// A signal needs no answer. Only what is carried is frozen.
    pub(crate) async fn halt(&self) -> Result<(), GuestError> {
        self.bench.travel().await;
        if self.way().is_none() {
            return Ok(());
        }
        if !self.bench.world.mutates(Mutation::NothingIsFrozen) {
            self.change(|qemu| qemu.is_frozen = true);
        }
        self.moment("frozen");
        if self.bench.world.mutates(Mutation::GrantedBeforeItIsNoted) {
            self.let_end_go().await?;
        }
        Ok(())
    }

    pub(crate) async fn let_end_go(&self) -> Result<(), GuestError> {
        self.bench.travel().await;
        let refused = |why: &str| Err(GuestError::Refused(why.to_owned()));
        match self.way().map(|way| way.stage) {
            None => Ok(()),
            Some(Stage::Going) => refused("the end of the stream has not come yet"),
            Some(Stage::Granted) => refused("the source has let go already"),
            Some(Stage::Failed(_) | Stage::Seeded) => refused("the stream has ended"),
            Some(Stage::Held) => {
                self.check_grant();
                self.change(|qemu| {
                    if let Some(way) = &mut qemu.way {
                        way.stage = Stage::Granted;
                    }
                });
                self.moment("granted");
                Ok(())
            }
        }
    }

    /// The first half of taking a copy back: it is no longer frozen, its socket is closed, and its transfer fails.
    pub(crate) async fn reclaim(&self) {
        if self.change(|qemu| qemu.is_frozen || qemu.way.is_some()) != Some(true) {
            return;
        }
        self.bench.travel().await;
        self.bench.world.check_cont(self.bench.host, self.id);
        self.change(|qemu| {
            qemu.is_frozen = false;
            qemu.way = None;
            qemu.transfer = Transfer::Failed { why: "its socket was closed".to_owned() };
        });
        self.moment("taken back");
    }

    /// `None`: nothing carries it, and QEMU is to be asked itself.
    pub(crate) async fn call_off(&self) -> Option<Result<(), GuestError>> {
        let refused = |why: &str| Some(Err(GuestError::Refused(why.to_owned())));
        let stage = self.way()?.stage;
        self.bench.travel().await;
        match stage {
            Stage::Granted => refused("the source has let go already"),
            Stage::Failed(_) | Stage::Seeded => refused("the stream has ended"),
            Stage::Going | Stage::Held => {
                self.change(|qemu| qemu.wants_cancel = true);
                self.moment("asked to cancel");
                Some(Ok(()))
            }
        }
    }

    /// What this life of the agent has of it.
    fn way(&self) -> Option<Way> {
        let state = self.bench.world.lock();
        state.machines.qemus.get(&self.id)?.way.clone().filter(|way| way.life == self.bench.life)
    }

    /// Without asking the process.
    fn change<T>(&self, what: impl FnOnce(&mut Qemu) -> T) -> Option<T> {
        self.bench.world.on_machines(|machines| machines.qemus.get_mut(&self.id).map(what))
    }

    /// Whoever finds this copy after the end was let go must find it noted as gone.
    fn check_grant(&self) {
        let wrong = {
            let state = self.bench.world.lock();
            let here = &state.hosts[self.bench.host];
            state.machines.qemus.get(&self.id).and_then(|qemu| {
                let side = here.notes.get(&qemu.uid).and_then(|notes| notes.migration.as_ref());
                let is_noted = side.is_some_and(|report| matches!(report.side, SideState::Released { .. }));
                (!is_noted).then(|| format!("grant: {} was let go on {}, unnoted", qemu.vm, here.name))
            })
        };
        if let Some(what) = wrong {
            self.bench.world.violate(what);
        }
    }

    /// A defect on purpose: whoever finds a frozen copy runs it.
    pub(crate) async fn thaw_by_mistake(&self) {
        let is_frozen = self.change(|qemu| qemu.is_frozen) == Some(true);
        if is_frozen && self.bench.world.mutates(Mutation::FrozenIsTakenBackAtOnce) {
            // Whatever comes of it is the checker's to see.
            let _ = self.take_back().await;
        }
    }
}

/// The other end of a waiting QEMU's socket: it closes with the agent.
async fn attend(world: World, target: u64, host: usize, life: u64) {
    loop {
        world.sleep(10).await;
        let is_waiting = {
            let state = world.lock();
            let arrival = state.machines.qemus.get(&target).and_then(|qemu| qemu.arrival.as_ref());
            arrival.is_some_and(|arrival| !arrival.has_end)
        };
        if !is_waiting {
            return;
        }
        if !world.is_agent_alive(host, life) {
            world.on_machines(|machines| machines.end(target, End::LoadFailed));
            let name = world.lock().hosts[host].name.clone();
            return world.moment(&format!("{name}: its stream has ended"));
        }
    }
}
