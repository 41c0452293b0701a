//! One host, as its voters see it: production `Suspicion` and `Fencer`, with what this leader remembers between them.

use std::time::Duration;

use sterna_guard::core::fencer::{Fencer, Order, Proof as Collected};
use sterna_guard::core::id::{Epoch, HostId};
use sterna_guard::core::message::Message;
use sterna_guard::core::profile::Profile;
use sterna_guard::core::suspicion::{Suspicion, View};
use sterna_guard::core::time::BootInstant;
use sterna_guard::core::voters::Voters;
use sterna_model::ha::{HaState, HostDecision, Proof, VoterDecision};
use sterna_model::meta::Name;
use sterna_plan::ha::fence::{Heard, Sight};
use uuid::Uuid;

pub struct Watched {
    pub datacentre: Name,
    pub id: HostId,
    epoch: u64,
    state: HaState,
    profile: Profile,
    suspicion: Suspicion,
    was_alive: bool,
    silent_since: Option<BootInstant>,
    fencer: Option<Fencer>,
    /// It does not grow old: what it proves is over for ever.
    proof: Option<Proof>,
}

impl Watched {
    pub fn of(datacentre: Name, uid: Uuid, profile: Profile) -> Self {
        let id = HostId(uid);
        Self {
            datacentre,
            id,
            epoch: 0,
            state: HaState::Left,
            profile,
            suspicion: Suspicion::of(id, profile),
            was_alive: false,
            silent_since: None,
            fencer: None,
            proof: None,
        }
    }

    pub fn learn(&mut self, uid: Uuid, decision: &HostDecision, voters: &VoterDecision, now: BootInstant) {
        let profile = super::profile(voters);
        // Another host of the same name, or another epoch, or a clock by other spans: nothing that was heard counts.
        if self.id != HostId(uid) || self.epoch != decision.epoch || self.profile != profile {
            *self = Self::of(self.datacentre.clone(), uid, profile);
            self.epoch = decision.epoch;
        }
        self.state = decision.state;
        if self.state != HaState::Fencing {
            (self.fencer, self.proof) = (None, None);
            return;
        }
        let order = self.order(voters, profile);
        if self.fencer.as_ref().is_none_or(|fencer| *fencer.order() != order) {
            self.fencer = Some(Fencer::start(order, now));
            self.proof = None;
        }
    }

    fn order(&self, voters: &VoterDecision, profile: Profile) -> Order {
        let former = voters.former.iter().map(|former| &former.voters);
        let sets = std::iter::once(&voters.voters).chain(former);
        Order {
            host: self.id,
            epoch: Epoch(self.epoch),
            voters: sets.map(|set| set.iter().copied().map(HostId).collect::<Voters>()).collect(),
            configuration: voters.version,
            profile,
        }
    }

    pub fn is_watched(&self) -> bool {
        matches!(self.state, HaState::Up | HaState::Suspect)
    }

    pub fn question(&self, now: BootInstant) -> Message {
        self.suspicion.question(now)
    }

    pub fn next_question(&self) -> Option<BootInstant> {
        self.fencer.as_ref().filter(|_| self.proof.is_none()).map(Fencer::next_wake)
    }

    pub fn fence_if_due(&mut self, now: BootInstant) -> Vec<(HostId, Message)> {
        if self.proof.is_some() {
            return Vec::new();
        }
        self.fencer.as_mut().map(|fencer| fencer.ask_if_due(now)).unwrap_or_default()
    }

    /// From a voter. True when something may follow from it.
    pub fn on_message(&mut self, from: HostId, message: &Message, now: BootInstant) -> bool {
        if let Message::FenceAck { .. } = message {
            let Some(fencer) = &mut self.fencer else { return false };
            fencer.on_message(from, message);
            if self.proof.is_none() {
                self.proof = fencer.proof(now).map(f3);
                return self.proof.is_some();
            }
            return false;
        }
        self.suspicion.on_message(from, message, now);
        let was_silent = self.silent_since.is_some();
        match self.suspicion.view(now) {
            View::Alive { epoch } if epoch.0 >= self.epoch => {
                (self.was_alive, self.silent_since) = (true, None);
            }
            View::Alive { .. } | View::Silent { .. } => {
                self.silent_since.get_or_insert(now);
            }
            View::Unknown => {}
        }
        was_silent != self.silent_since.is_some()
    }

    /// Something may be to be done that waits for time alone.
    pub fn is_silent(&self, now: BootInstant) -> bool {
        self.is_watched() && !matches!(self.heard(now), Heard::Alive | Heard::Unknown)
    }

    fn heard(&self, now: BootInstant) -> Heard {
        match self.suspicion.view(now) {
            View::Unknown => Heard::Unknown,
            View::Alive { epoch } if epoch.0 >= self.epoch => Heard::Alive,
            View::Alive { .. } | View::Silent { .. } => {
                let for_so_long = self.silent_since.map_or(Duration::ZERO, |since| now.since(since));
                Heard::Silent { for_so_long, was_alive: self.was_alive }
            }
        }
    }

    pub fn sight(&self, now: BootInstant) -> Sight {
        Sight { epoch: self.epoch, heard: self.heard(now), proof: self.proof.clone() }
    }
}

/// The same in the store's words.
fn f3(proof: Collected) -> Proof {
    Proof::F3 {
        configuration: proof.configuration,
        acks: proof.acks.into_iter().map(|(voter, asked)| (voter.0, asked.0)).collect(),
        decided_at: proof.decided_at.0,
    }
}

#[cfg(test)]
mod tests;
