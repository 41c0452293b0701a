//! The voter's half: promises hosts to let nobody take their VMs, and tells fencers when a promise is over.
//!
//! All of it is in memory. A voter that has restarted is silent until whatever it may have promised is over; and it never
//! promises for longer than it would be silent.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::core::id::{Epoch, HostId};
use crate::core::message::Message;
use crate::core::mutation::Mutations;
use crate::core::profile::PROMISE_MAX;
use crate::core::time::BootInstant;

/// Hosts of a datacentre. One more gets no answer, which is safe: it gets no lease from this voter.
pub const HOSTS_MAX: usize = 1024;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Voter {
    started: BootInstant,
    silent_until: BootInstant,
    hosts: BTreeMap<HostId, Known>,
    mutations: Mutations,
}

/// What this voter knows of one host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Known {
    promised_until: BootInstant,
    /// The longest promise that may still run.
    promise: Duration,
    /// The highest epoch that a promise was made to.
    promised_to: Epoch,
    /// No promise is made to this epoch or a lower one.
    fenced: Option<Epoch>,
    last_renewal: Option<(Epoch, BootInstant)>,
    touched: BootInstant,
}

impl Voter {
    /// Silent for `quarantine` from its start.
    #[must_use]
    pub fn start(quarantine: Duration, now: BootInstant) -> Self {
        let mutations = Mutations::default();
        Self { started: now, silent_until: now + quarantine, hosts: BTreeMap::new(), mutations }
    }

    pub fn set_mutations(&mut self, mutations: Mutations) {
        self.mutations = mutations;
    }

    #[must_use]
    pub fn silent_until(&self) -> BootInstant {
        self.silent_until
    }

    /// How long its successor has to be silent: for the longest promise that runs, its own or its predecessor's.
    #[must_use]
    pub fn successors_quarantine(&self, now: BootInstant) -> Duration {
        let running = self.hosts.values().filter(|known| known.promised_until > now);
        let promised = running.map(|known| known.promise).max().unwrap_or_default();
        let inherited = self.silent_until.since(self.started);
        if now < self.silent_until { promised.max(inherited) } else { promised }
    }

    /// What to answer, if anything. `may_fence`: the sender is a fencer.
    pub fn on_message(
        &mut self,
        from: HostId,
        message: &Message,
        may_fence: bool,
        now: BootInstant,
    ) -> Option<Message> {
        if self.is_silent(now) {
            return None;
        }
        match *message {
            Message::Renew { epoch, seq, promise } => self.on_renew(from, (epoch, seq), promise, now),
            Message::Release { epoch } => {
                self.on_release(from, epoch, now);
                None
            }
            Message::Fence { host, epoch, tau } if may_fence => self.on_fence(host, epoch, tau, now),
            Message::Query { host, tau } if may_fence => Some(self.on_query(host, tau, now)),
            Message::Fence { .. } | Message::Query { .. } => None,
            Message::RenewAck { .. }
            | Message::RenewNack { .. }
            | Message::FenceAck { .. }
            | Message::LastSeen { .. } => None,
        }
    }

    fn is_silent(&self, now: BootInstant) -> bool {
        now < self.silent_until && !crate::mutated!(self.mutations, NoVoterQuarantine)
    }

    fn on_renew(
        &mut self,
        host: HostId,
        (epoch, seq): (Epoch, u64),
        promise: Duration,
        now: BootInstant,
    ) -> Option<Message> {
        // Its successor would not be silent long enough; nor was this one, yet.
        let too_long = promise > PROMISE_MAX || now < self.started + promise;
        if too_long && !crate::mutated!(self.mutations, NoVoterQuarantine) {
            return None;
        }
        let forgets = crate::mutated!(self.mutations, FencedIsForgotten);
        let known = self.known(host, now)?;
        known.last_renewal = Some((epoch, now));
        if let Some(fenced) = known.fenced.filter(|fenced| *fenced >= epoch && !forgets) {
            return Some(Message::RenewNack { epoch, seq, fenced });
        }
        let is_running = known.promised_until > now;
        known.promise = if is_running { known.promise.max(promise) } else { promise };
        known.promised_until = known.promised_until.max(now + promise);
        known.promised_to = known.promised_to.max(epoch);
        Some(Message::RenewAck { epoch, seq })
    }

    /// The host itself says that nothing of `epoch` runs. A promise to a later epoch is not touched by a late farewell.
    fn on_release(&mut self, host: HostId, epoch: Epoch, now: BootInstant) {
        let Some(known) = self.known(host, now) else { return };
        known.fenced = known.fenced.max(Some(epoch));
        if known.promised_to <= epoch {
            known.promised_until = known.promised_until.min(now);
        }
    }

    fn on_fence(
        &mut self,
        host: HostId,
        epoch: Epoch,
        tau: BootInstant,
        now: BootInstant,
    ) -> Option<Message> {
        let known = self.known(host, now)?;
        known.fenced = known.fenced.max(Some(epoch));
        (now >= known.promised_until).then_some(Message::FenceAck { host, epoch, tau })
    }

    fn on_query(&self, host: HostId, tau: BootInstant, now: BootInstant) -> Message {
        let last = self.hosts.get(&host).and_then(|known| known.last_renewal);
        let (epoch, since) = last.unwrap_or((Epoch::default(), self.silent_until));
        Message::LastSeen { host, tau, epoch, age: now.since(since) }
    }

    /// What is known of a host, from now on at least. None when there is no room.
    fn known(&mut self, host: HostId, now: BootInstant) -> Option<&mut Known> {
        if !self.hosts.contains_key(&host) && self.hosts.len() >= HOSTS_MAX {
            self.forget_one(now)?;
        }
        let known = self.hosts.entry(host).or_insert(Known {
            promised_until: BootInstant::default(),
            promise: Duration::ZERO,
            promised_to: Epoch::default(),
            fenced: None,
            last_renewal: None,
            touched: now,
        });
        known.touched = now;
        Some(known)
    }

    /// To forget a host is to restart for that host alone: it has to have been as silent about it as after a restart.
    fn forget_one(&mut self, now: BootInstant) -> Option<()> {
        let is_over = |known: &Known| now >= known.touched + PROMISE_MAX && now >= known.promised_until;
        let forgettable = self.hosts.iter().find(|(_, known)| is_over(known)).map(|(host, _)| *host)?;
        self.hosts.remove(&forgettable);
        Some(())
    }
}

#[cfg(test)]
mod tests;
