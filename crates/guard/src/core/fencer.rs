//! Collects the proof that a host's lease is over, for whoever starts its VMs elsewhere.
//!
//! One fencer is for one host and epoch. It asks every voter again and again, each time with its own clock; a voter echoes it.
//! The proof is a majority whose questions are all younger than half a promise (rule **): so young that none of these voters
//! can have restarted, forgotten, and promised anew since it answered.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::core::id::{Epoch, HostId};
use crate::core::message::Message;
use crate::core::mutation::Mutations;
use crate::core::profile::Profile;
use crate::core::time::BootInstant;
use crate::core::voters::Voters;

/// How often the voters are asked: a proof comes at most this much later than it could.
pub const ASK_EVERY: Duration = Duration::from_millis(250);

/// Questions whose answers may still count: half of the longest promise.
const QUESTIONS_MAX: usize = 64;

/// Whom to fence, and by whose word.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Order {
    pub host: HostId,
    pub epoch: Epoch,
    /// Every set that the host may hold its lease by; during a change of voters the old and the new. Of each a majority.
    pub voters: Vec<Voters>,
    /// Of the configuration that they come from. The transaction that uses the proof compares it.
    pub configuration: u64,
    /// The profile of the host's datacentre; during a change of profiles the one with the shorter promise.
    pub profile: Profile,
}

/// Why the host's VMs of this epoch have ended. Goes into the store with the transaction that relies on it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    pub host: HostId,
    pub epoch: Epoch,
    pub configuration: u64,
    /// Who said so, and when that voter was asked, by the fencer's clock.
    pub acks: Vec<(HostId, BootInstant)>,
    pub decided_at: BootInstant,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Fencer {
    order: Order,
    /// The youngest question that each voter has said yes to.
    acks: BTreeMap<HostId, BootInstant>,
    /// What was asked when. An answer to anything else is not ours: another boot's clock may have shown the same.
    asked: VecDeque<BootInstant>,
    next_question: BootInstant,
    mutations: Mutations,
}

impl Fencer {
    /// The store says already that this host is being fenced: from there is no way back for this epoch.
    #[must_use]
    pub fn start(order: Order, now: BootInstant) -> Self {
        let asked = VecDeque::with_capacity(QUESTIONS_MAX);
        let mutations = Mutations::default();
        Self { order, acks: BTreeMap::new(), asked, next_question: now, mutations }
    }

    pub fn set_mutations(&mut self, mutations: Mutations) {
        self.mutations = mutations;
    }

    #[must_use]
    pub fn order(&self) -> &Order {
        &self.order
    }

    #[must_use]
    pub fn next_wake(&self) -> BootInstant {
        self.next_question
    }

    /// What to send now; empty until `next_wake`.
    pub fn ask_if_due(&mut self, now: BootInstant) -> Vec<(HostId, Message)> {
        if now < self.next_question {
            return Vec::new();
        }
        self.next_question = now + ASK_EVERY;
        if self.asked.len() == QUESTIONS_MAX {
            self.asked.pop_front();
        }
        self.asked.push_back(now);
        let everybody: BTreeSet<HostId> =
            self.order.voters.iter().flat_map(|voters| &voters.0).copied().collect();
        let question = Message::Fence { host: self.order.host, epoch: self.order.epoch, tau: now };
        everybody.into_iter().map(|voter| (voter, question)).collect()
    }

    /// From a voter whose key it bore. What is not an answer to this fencer's questions changes nothing.
    pub fn on_message(&mut self, from: HostId, message: &Message) {
        let Message::FenceAck { host, epoch, tau } = *message else { return };
        let is_ours = host == self.order.host && epoch == self.order.epoch && self.asked.contains(&tau);
        if !is_ours || !self.order.voters.iter().any(|set| set.0.contains(&from)) {
            return;
        }
        let youngest = self.acks.entry(from).or_insert(tau);
        *youngest = tau.max(*youngest);
    }

    /// The proof, if there is one at this instant. It does not grow old: what it proves is over for ever.
    #[must_use]
    pub fn proof(&self, now: BootInstant) -> Option<Proof> {
        let age_max = Profile::fence_ack_age_max(self.order.profile.promise());
        let counts_stale = crate::mutated!(self.mutations, StaleFenceAcksCount);
        let is_young = |asked: BootInstant| counts_stale || now < asked + age_max;
        let young: Vec<(HostId, BootInstant)> = self
            .acks
            .iter()
            .filter(|(_, asked)| is_young(**asked))
            .map(|(who, asked)| (*who, *asked))
            .collect();
        let agreed: BTreeSet<HostId> = young.iter().map(|(who, _)| *who).collect();
        let mut sets = self.order.voters.iter();
        let is_proven = sets.len() > 0 && sets.all(|set| set.has_majority(&agreed, self.mutations));
        is_proven.then_some(Proof {
            host: self.order.host,
            epoch: self.order.epoch,
            configuration: self.order.configuration,
            acks: young,
            decided_at: now,
        })
    }
}

#[cfg(test)]
mod tests;
