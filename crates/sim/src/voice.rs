//! How a simulated fencer speaks to voters: over the world's datagrams, by the clock of the server's machine.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::pin::{Pin, pin};
use std::task::ready;

use sterna_control::fencer::{Fencer, Voice};
use sterna_guard::core::id::HostId;
use sterna_guard::core::message::Message;
use sterna_guard::core::time::BootInstant;
use sterna_guard::shell::request::Settings;
use sterna_model::ha::{GuardKey, Peer};
use sterna_plan::ha::voters::Server;
use sterna_store::BoxFuture;
use tokio::sync::mpsc::{self, UnboundedReceiver};
use uuid::Uuid;

use crate::datagram::Ear;
use crate::guard::ToGuard;
use crate::world::World;

/// Of fencers, by controller.
const FENCER: u128 = 0xfe_0000;

struct Radio {
    world: World,
    node: usize,
    me: HostId,
    inbox: UnboundedReceiver<(HostId, Message)>,
    heard: VecDeque<(HostId, Message)>,
    peers: BTreeSet<HostId>,
}

/// How others reach that machine's guard or fencer.
#[must_use]
pub fn peer(name: &str, id: HostId) -> Peer {
    let key = GuardKey::try_from(format!("{:064x}", id.0.as_u128())).expect("it has 64 digits");
    Peer { name: name.to_owned(), key, addresses: vec!["10.0.0.9:7450".parse().expect("it is an address")] }
}

impl World {
    /// A fencer for one life of a controller; none where there are no guards.
    #[must_use]
    pub fn fencer(&self, controller: usize) -> Option<Fencer> {
        if !self.has_guards() {
            return None;
        }
        let node = self.server_node();
        let me = HostId(Uuid::from_u128(FENCER + controller as u128));
        let (ear, inbox) = mpsc::unbounded_channel();
        let witness = {
            let mut state = self.lock();
            state.ears.retain(|ear| ear.id != me);
            state.ears.push(Ear { id: me, inbox: ear });
            state.nodes[node].id
        };
        let server = Server {
            fencer: (me.0, peer("server", me)),
            witness: Some((witness.0, peer("witness", witness))),
        };
        let radio =
            Radio { world: self.clone(), node, me, inbox, heard: VecDeque::new(), peers: BTreeSet::new() };
        Some(Fencer::over(server, Box::new(radio), std::path::PathBuf::new()))
    }

    /// Runs a controller, but for the time in which its process stands still.
    pub async fn run_controller<T>(&self, controller: usize, task: impl Future<Output = T>) -> T {
        let mut task = pin!(task);
        let mut wait: Option<Pin<Box<tokio::time::Sleep>>> = None;
        std::future::poll_fn(|context| {
            loop {
                let (until, now) = (self.lock().controllers_stand[controller], self.now_ms());
                if until <= now {
                    break;
                }
                let left = std::time::Duration::from_millis(until - now);
                let sleep = wait.insert(Box::pin(tokio::time::sleep(left)));
                ready!(sleep.as_mut().poll(context));
            }
            task.as_mut().poll(context)
        })
        .await
    }
}

impl Voice for Radio {
    fn now(&self) -> BootInstant {
        self.world.boot_time(self.node)
    }

    fn set_peers(&mut self, peers: &BTreeMap<HostId, Peer>) {
        self.peers = peers.keys().copied().collect();
    }

    fn send(&mut self, to: HostId, message: &Message) {
        let server_is_down = self.world.lock().nodes[self.node].is_down;
        if self.peers.contains(&to) && !server_is_down {
            self.world.send_datagram(self.node, self.me, to, *message);
        }
    }

    fn receive(&mut self) -> Option<(HostId, Message)> {
        loop {
            let next = self.heard.pop_front().or_else(|| self.inbox.try_recv().ok())?;
            if self.peers.contains(&next.0) {
                return Some(next);
            }
        }
    }

    fn wait(&mut self, until: BootInstant) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let wake = self.world.when(self.node, until);
            let world = self.world.clone();
            tokio::select! {
                biased;
                Some(next) = self.inbox.recv() => self.heard.push_back(next),
                () = world.sleep_until_ns(wake) => {}
            }
        })
    }

    fn tell_witness(&mut self, settings: Settings) {
        let known = {
            let state = self.world.lock();
            state.nodes[self.node].settings.clone()
        };
        let is_news = known.is_none_or(|known| Settings { version: settings.version, ..known } != settings);
        if is_news {
            self.world.tell_guard(self.node, ToGuard::Configure(Box::new(settings)));
        }
    }
}
