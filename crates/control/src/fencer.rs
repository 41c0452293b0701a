//! Asks voters about hosts, and collects proofs that a lease is over; has fence devices switch off what is lost. Decides nothing: `plan::ha::fence` does, with what is
//! heard here.
//!
//! ```text
//! voters ── UDP ──► Fencer ── sights ──► plan::ha::fence ── transactions ──► store
//!    ▲                 │  ◄── learn ── view
//!    └── Query, Fence ─┘
//! ```
//!
//! All time in here is this machine's `CLOCK_BOOTTIME`. A fence is asked for only once the store says that the host is being
//! fenced: from there is no way back.

/// What hosts' fence devices are asked for.
mod devices;
/// How it speaks.
mod voice;
/// One host, as its voters see it.
mod watched;
/// The guard beside the server.
mod witness;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use sterna_guard::core::id::HostId;
use sterna_guard::core::message::Message;
use sterna_guard::core::profile::Profile;
use sterna_guard::core::time::BootInstant;
use sterna_guard::datagram::HostKey;
use sterna_model::ha::{Peer, VoterDecision};
use sterna_model::meta::Name;
use sterna_plan::View;
use sterna_plan::ha::fence::Sights;
use sterna_plan::ha::power::Heard;
use sterna_plan::ha::voters::Server;
use uuid::Uuid;

use devices::Devices;
use voice::Udp;
pub use voice::Voice;
use watched::Watched;

/// Datagrams that one turn reads: a flood may not keep the leader from its lease.
const READS_MAX: usize = 256;
/// What is heard of a silent host is told as often as this.
const ALERT_EVERY: Duration = Duration::from_millis(250);

/// What this server is to guards.
pub struct Settings {
    pub id: Uuid,
    pub key: HostKey,
    pub listen: SocketAddr,
    /// As voters reach it.
    pub peer: Peer,
    pub witness: Option<Witness>,
    /// Where the fence agents of this machine lie.
    pub agents: PathBuf,
}

/// The guard beside the server: a voter without VMs.
#[derive(Debug, Clone)]
pub struct Witness {
    pub id: Uuid,
    pub peer: Peer,
    pub socket: PathBuf,
}

pub struct Fencer {
    server: Server,
    voice: Box<dyn Voice>,
    sites: BTreeMap<Name, Site>,
    hosts: BTreeMap<Name, Watched>,
    /// Of the view that it was learned from.
    revision: Option<u64>,
    next_alert: BootInstant,
    devices: Devices,
}

/// A datacentre's voters.
struct Site {
    voters: BTreeSet<HostId>,
    profile: Profile,
    next_query: BootInstant,
}

impl Fencer {
    pub fn open(settings: Settings) -> anyhow::Result<Self> {
        let witness = settings.witness.as_ref().map(|witness| (witness.id, witness.peer.clone()));
        let teller = settings.witness.map(witness::Teller::start);
        let voice = Udp::open(HostId(settings.id), settings.key, settings.listen, teller)?;
        let server = Server { fencer: (settings.id, settings.peer), witness };
        Ok(Self::over(server, Box::new(voice), settings.agents))
    }

    /// Speaks through something else than a socket. `agents`: where fence agents are.
    #[must_use]
    pub fn over(server: Server, voice: Box<dyn Voice>, agents: PathBuf) -> Self {
        Self {
            server,
            voice,
            sites: BTreeMap::new(),
            hosts: BTreeMap::new(),
            revision: None,
            next_alert: BootInstant::default(),
            devices: Devices::new(agents),
        }
    }

    #[must_use]
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// What the voters say of each host that has, or had, a lease.
    #[must_use]
    pub fn sights(&self) -> Sights {
        let now = self.voice.now();
        self.hosts.iter().map(|(name, host)| (name.clone(), host.sight(now))).collect()
    }

    /// What fence devices have said.
    #[must_use]
    pub fn heard(&self) -> &Heard {
        self.devices.heard()
    }

    /// This server leads no more: nothing is switched off by its word.
    pub fn rest(&mut self) {
        self.devices.rest();
        self.revision = None;
    }

    /// Takes over who is to be watched, and by whose word.
    pub fn learn(&mut self, view: &View) {
        if self.revision == Some(view.revision) {
            return;
        }
        self.revision = Some(view.revision);
        let decisions: BTreeMap<&Name, &VoterDecision> = view
            .datacentres
            .iter()
            .filter_map(|(name, entry)| Some((name, &*entry.decision.as_ref()?.value)))
            .collect();
        let all = decisions.values().flat_map(|decision| &decision.peers);
        let peers = all.map(|(id, peer)| (HostId(*id), peer.clone())).collect();
        self.voice.set_peers(&peers);
        let now = self.voice.now();
        self.sites.retain(|name, _| decisions.contains_key(name));
        for (name, decision) in &decisions {
            let former = decision.former.iter().flat_map(|former| &former.voters);
            let voters = decision.voters.iter().chain(former).copied().map(HostId).collect();
            let profile = profile(decision);
            let site = self.sites.entry((*name).clone()).or_insert_with(|| Site {
                voters: BTreeSet::new(),
                profile,
                next_query: now,
            });
            (site.voters, site.profile) = (voters, profile);
        }
        self.learn_hosts(view, &decisions, now);
        self.devices.learn(view);
        if let Some((witness, _)) = &self.server.witness {
            let settings = witness::settings(*witness, &decisions, self.server.fencer.0, view.revision);
            self.voice.tell_witness(settings);
        }
    }

    fn learn_hosts(&mut self, view: &View, decisions: &BTreeMap<&Name, &VoterDecision>, now: BootInstant) {
        let mut known = BTreeSet::new();
        for host in view.hosts() {
            let (Some(decision), Some(voters)) = (host.decision, decisions.get(&host.spec.datacentre)) else {
                continue;
            };
            known.insert(host.name.clone());
            let fresh = || Watched::of(host.spec.datacentre.clone(), host.meta.uid, profile(voters));
            let watched = self.hosts.entry(host.name.clone()).or_insert_with(fresh);
            watched.learn(host.meta.uid, decision, voters, now);
        }
        self.hosts.retain(|name, _| known.contains(name));
    }

    /// Returns when something was heard that a decision may follow from. May be dropped and called again.
    pub async fn changed(&mut self) {
        loop {
            let now = self.voice.now();
            self.ask(now);
            let news = self.read(now);
            if news || self.is_alert(now) {
                return;
            }
            let wake = self.next_wake();
            tokio::select! {
                biased; // A simulation's order is fixed.
                () = self.devices.changed() => return,
                () = self.voice.wait(wake) => {}
            }
        }
    }

    /// A silent host is looked at again and again: what is to follow may wait for time alone.
    fn is_alert(&mut self, now: BootInstant) -> bool {
        if now < self.next_alert || !self.hosts.values().any(|host| host.is_silent(now)) {
            return false;
        }
        self.next_alert = now + ALERT_EVERY;
        true
    }

    fn next_wake(&self) -> BootInstant {
        let queries = self.sites.values().map(|site| site.next_query);
        let questions = self.hosts.values().filter_map(Watched::next_question);
        let alert = std::iter::once(self.next_alert.max(self.voice.now() + ALERT_EVERY));
        queries.chain(questions).chain(alert).min().unwrap_or(BootInstant::NEVER)
    }

    fn ask(&mut self, now: BootInstant) {
        let mut due = Vec::new();
        for (name, site) in self.sites.iter_mut().filter(|(_, site)| now >= site.next_query) {
            site.next_query = now + site.profile.renew;
            let hosts = self.hosts.values().filter(|host| host.datacentre == *name && host.is_watched());
            for question in hosts.map(|host| host.question(now)) {
                due.extend(site.voters.iter().map(|voter| (*voter, question)));
            }
        }
        due.extend(self.hosts.values_mut().flat_map(|host| host.fence_if_due(now)));
        for (to, message) in due {
            self.voice.send(to, &message);
        }
    }

    fn read(&mut self, now: BootInstant) -> bool {
        let mut is_news = false;
        for _ in 0..READS_MAX {
            let Some((from, message)) = self.voice.receive() else { break };
            is_news |= self.on_message(from, &message, now);
        }
        is_news
    }

    fn on_message(&mut self, from: HostId, message: &Message, now: BootInstant) -> bool {
        let (Message::LastSeen { host, .. } | Message::FenceAck { host, .. }) = *message else {
            return false;
        };
        let Some(watched) = self.hosts.values_mut().find(|watched| watched.id == host) else { return false };
        let is_voter = self.sites.get(&watched.datacentre).is_some_and(|site| site.voters.contains(&from));
        is_voter && watched.on_message(from, message, now)
    }
}

/// Which a voter's promise is for; while it changes the shorter, which is over first, is what a host may rest on.
fn profile(decision: &VoterDecision) -> Profile {
    let former = decision.former.iter().map(|former| former.profile);
    let all = std::iter::once(decision.profile).chain(former);
    let known = all.filter_map(|profile| Profile::named(profile.as_str()));
    known.min_by_key(Profile::promise).unwrap_or(Profile::STANDARD)
}
