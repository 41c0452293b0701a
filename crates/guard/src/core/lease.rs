//! The client's half of the lease: when to renew, what an answer is worth, when it is over.
//!
//! Knows nothing of VMs and sends nothing: [`guard`](crate::core::guard) does both with what this says.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use crate::core::event::{JoinRefusal, State};
use crate::core::id::{Epoch, HostId};
use crate::core::membership::Membership;
use crate::core::mutation::Mutations;
use crate::core::page::HeldLease;
use crate::core::profile::Profile;
use crate::core::time::BootInstant;

/// Renewals that may still be answered. A lease spans at most a few; an answer to an older one could not extend it.
const OUTSTANDING_MAX: usize = 16;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Lease {
    state: State,
    /// Of a candidate as of a lease.
    deadline: BootInstant,
    last_epoch: Epoch,
    next_seq: u64,
    next_renewal: BootInstant,
    outstanding: VecDeque<Renewal>,
    mutations: Mutations,
}

/// One round of questions to all voters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Renewal {
    seq: u64,
    /// The lease is counted from here: when the voters heard it, nobody knows.
    sent_at: BootInstant,
    /// As long as was asked for; the profile may have changed since.
    lasts: Duration,
    granted_by: BTreeSet<HostId>,
}

/// What to ask all voters now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    pub epoch: Epoch,
    pub seq: u64,
    pub promise: Duration,
}

impl Lease {
    /// Goes on with what a page of this boot says. `seq` must be above all that an earlier guard used on this boot: a
    /// clock in nanoseconds is.
    #[must_use]
    pub fn resume(held: Option<HeldLease>, last_epoch: Epoch, now: BootInstant) -> Self {
        let state = match held {
            Some(held) if now < held.deadline => State::Held { epoch: held.epoch },
            Some(held) => State::Expired { epoch: held.epoch },
            None => State::NoEpoch,
        };
        Self {
            state,
            deadline: held.map_or(BootInstant::default(), |held| held.deadline),
            last_epoch,
            next_seq: now.as_nanos(),
            next_renewal: now,
            outstanding: VecDeque::with_capacity(OUTSTANDING_MAX),
            mutations: Mutations::default(),
        }
    }

    pub fn set_mutations(&mut self, mutations: Mutations) {
        self.mutations = mutations;
    }

    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    #[must_use]
    pub fn last_epoch(&self) -> Epoch {
        self.last_epoch
    }

    /// The next renewal gets this number.
    #[must_use]
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// The epoch that is held, or hoped for.
    #[must_use]
    pub fn live_epoch(&self) -> Option<Epoch> {
        match self.state {
            State::Candidate { epoch } | State::Held { epoch } => Some(epoch),
            State::NoEpoch | State::Expired { .. } => None,
        }
    }

    #[must_use]
    pub fn held_epoch(&self) -> Option<Epoch> {
        match self.state {
            State::Held { epoch } => Some(epoch),
            _ => None,
        }
    }

    /// When the live epoch ends unless it is renewed.
    #[must_use]
    pub fn deadline(&self) -> Option<BootInstant> {
        self.live_epoch().map(|_| self.deadline)
    }

    /// For the page. A candidate leaves nothing: no VM can have been started under it.
    #[must_use]
    pub fn held(&self) -> Option<HeldLease> {
        match self.state {
            State::Held { epoch } | State::Expired { epoch } => {
                Some(HeldLease { epoch, deadline: self.deadline })
            }
            State::NoEpoch | State::Candidate { .. } => None,
        }
    }

    #[must_use]
    pub fn next_renewal(&self) -> Option<BootInstant> {
        self.live_epoch().map(|_| self.next_renewal)
    }

    /// Rule (*): the epoch is counted from before the store was asked for it, so that one which never gets a lease is dead
    /// before a voter that has forgotten its fence may speak again.
    pub fn join(
        &mut self,
        epoch: Epoch,
        asked_at: BootInstant,
        lasts: Duration,
        now: BootInstant,
    ) -> Result<(), JoinRefusal> {
        if self.live_epoch() == Some(epoch) {
            // Said twice.
            return Ok(());
        }
        if self.state != State::NoEpoch {
            return Err(JoinRefusal::NotFree);
        }
        if epoch <= self.last_epoch {
            return Err(JoinRefusal::EpochUsed);
        }
        if asked_at > now {
            return Err(JoinRefusal::NotOurClock);
        }
        let mut deadline = asked_at + lasts;
        if crate::mutated!(self.mutations, CandidateLivesForEver) {
            deadline = BootInstant::NEVER;
        }
        if now >= deadline {
            return Err(JoinRefusal::TooLate);
        }
        self.state = State::Candidate { epoch };
        self.deadline = deadline;
        self.last_epoch = epoch;
        self.next_renewal = now;
        Ok(())
    }

    /// Over for ever, for this epoch. True when it happened now.
    pub fn expire_if_due(&mut self, now: BootInstant) -> bool {
        let Some(epoch) = self.live_epoch() else { return false };
        if now < self.deadline {
            return false;
        }
        self.state = State::Expired { epoch };
        self.outstanding.clear();
        true
    }

    /// Every VM of the expired epoch is gone: this host may join again.
    pub fn on_all_gone(&mut self) {
        if matches!(self.state, State::Expired { .. }) {
            self.state = State::NoEpoch;
        }
    }

    /// Gives the epoch up for good; none when there is none. The caller has made sure that nothing runs under it.
    pub fn release(&mut self) -> Option<Epoch> {
        let epoch = self.live_epoch()?;
        self.state = State::NoEpoch;
        self.outstanding.clear();
        Some(epoch)
    }

    /// The next round of questions, when it is time for one. Only before the deadline: `expire_if_due` comes first.
    pub fn ask_if_due(&mut self, profile: &Profile, now: BootInstant) -> Option<Question> {
        let epoch = self.live_epoch()?;
        if now < self.next_renewal {
            return None;
        }
        let seq = self.next_seq;
        self.next_seq += 1;
        // After a stall one question is enough: what was missed is not made up for.
        self.next_renewal = now + profile.renew;
        if self.outstanding.len() == OUTSTANDING_MAX {
            self.outstanding.pop_front();
        }
        let granted_by = BTreeSet::new();
        self.outstanding.push_back(Renewal { seq, sent_at: now, lasts: profile.lease, granted_by });
        let forgets = crate::mutated!(self.mutations, PromiseForgetsTheWatchdog);
        let promise = if forgets { profile.lease } else { profile.promise() };
        Some(Question { epoch, seq, promise })
    }

    /// A voter has granted a renewal. True when it was the one that made a majority, and the deadline now rests on it.
    ///
    /// The caller has let an epoch whose deadline is over expire before it came here: no answer gives that back.
    pub fn on_ack(
        &mut self,
        voter: HostId,
        (epoch, seq): (Epoch, u64),
        membership: &Membership,
        now: BootInstant,
    ) -> bool {
        if self.live_epoch() != Some(epoch) {
            return false;
        }
        let Some(at) = self.outstanding.iter().position(|renewal| renewal.seq == seq) else { return false };
        let renewal = &mut self.outstanding[at];
        renewal.granted_by.insert(voter);
        if !membership.is_granted_by(&renewal.granted_by, self.mutations) {
            return false;
        }
        let from_receive = crate::mutated!(self.mutations, DeadlineFromReceiveTime);
        let counted_from = if from_receive { now } else { renewal.sent_at };
        let extended = counted_from + renewal.lasts;
        // It is spent, and so are those before it: they end earlier.
        self.outstanding.drain(..=at);
        let was_candidate = matches!(self.state, State::Candidate { .. });
        self.deadline = if was_candidate { extended } else { self.deadline.max(extended) };
        self.state = State::Held { epoch };
        // After a change to a shorter lease, the deadline rests for a while on what was granted before the change.
        self.deadline == extended
    }
}

#[cfg(test)]
mod tests;
