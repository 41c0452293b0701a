//! Whether a host has gone silent, as its voters see it. A suspicion is no proof: it only says when to begin to fence.
//!
//! A voter's answer says how old the last renewal was when it answered. A host is suspected when two voters, asked a moment
//! ago, have both heard nothing for one and a half renewals, and no voter, asked a moment ago, has.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::core::id::{Epoch, HostId};
use crate::core::message::Message;
use crate::core::profile::Profile;
use crate::core::time::BootInstant;

/// One voter alone may be the one that is cut off.
const VANTAGE_POINTS: usize = 2;

/// What the voters last said of one host.
#[derive(Debug)]
pub struct Suspicion {
    host: HostId,
    profile: Profile,
    answers: BTreeMap<HostId, Answer>,
}

#[derive(Debug, Clone, Copy)]
struct Answer {
    asked_at: BootInstant,
    /// Zero when it has never heard the host.
    epoch: Epoch,
    age: Duration,
    /// The host renewed with this voter at this instant or before it, by our clock.
    last_renewal: BootInstant,
}

/// What can be said of a host at an instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// A voter has heard a renewal of this epoch recently.
    Alive { epoch: Epoch },
    /// Too few voters have answered recently.
    Unknown,
    /// This many have heard nothing for one and a half renewals, and nobody has.
    Silent { vantage_points: usize },
}

impl Suspicion {
    #[must_use]
    pub fn of(host: HostId, profile: Profile) -> Self {
        Self { host, profile, answers: BTreeMap::new() }
    }

    /// What to ask every voter, about as often as the host renews.
    #[must_use]
    pub fn question(&self, now: BootInstant) -> Message {
        Message::Query { host: self.host, tau: now }
    }

    /// From a voter whose key it bore, and whom the caller knows for a voter of this host.
    pub fn on_message(&mut self, from: HostId, message: &Message, now: BootInstant) {
        let Message::LastSeen { host, tau, epoch, age } = *message else { return };
        if host != self.host || tau > now {
            return;
        }
        // The later end of what is possible: it was that old when the voter answered, at the latest now.
        let answer = Answer { asked_at: tau, epoch, age, last_renewal: now.before(age) };
        let kept = self.answers.entry(from).or_insert(answer);
        if tau >= kept.asked_at {
            *kept = answer;
        }
    }

    #[must_use]
    pub fn view(&self, now: BootInstant) -> View {
        let patience = self.profile.suspect_after();
        let has_heard =
            |answer: &&Answer| answer.epoch > Epoch::default() && now < answer.last_renewal + patience;
        let is_vantage_point = |answer: &&Answer| answer.age >= patience && now < answer.asked_at + patience;
        let heard = self.answers.values().filter(has_heard);
        if let Some(epoch) = heard.map(|answer| answer.epoch).max() {
            return View::Alive { epoch };
        }
        // A host renews as often as voters are asked: the last renewal that one of them hears in time may be older than that
        // by the time it is asked again.
        let has_just_heard = |answer: &Answer| {
            answer.epoch > Epoch::default() && answer.age < patience && now < answer.asked_at + patience
        };
        if self.answers.values().any(has_just_heard) {
            return View::Unknown;
        }
        let vantage_points = self.answers.values().filter(is_vantage_point).count();
        if vantage_points < VANTAGE_POINTS { View::Unknown } else { View::Silent { vantage_points } }
    }
}

#[cfg(test)]
mod tests;
