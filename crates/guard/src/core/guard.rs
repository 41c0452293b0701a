//! One host's guard: lease, VMs, votes and watchdog together. What a host runs, and what the simulation runs.
//!
//! Every step first lets a lease expire whose deadline has passed: nothing that happens at or after it can give it back.

use std::time::Duration;

use uuid::Uuid;

use crate::core::event::{Effect, Event, JoinRefusal, Report, StartRefusal, State};
use crate::core::id::{Epoch, HostId, VmId};
use crate::core::lease::{Lease, Question};
use crate::core::membership::{Configuration, Membership, Refused};
use crate::core::message::Message;
use crate::core::mutation::Mutations;
use crate::core::page::Page;
use crate::core::profile::{PROMISE_MAX, START_MARGIN};
use crate::core::time::BootInstant;
use crate::core::vms::Vms;
use crate::core::voter::Voter;

/// What the agent and people are told of a guard.
mod status;

pub use status::Status;

/// How often voters are told that a lease is returned; one that hears none of them waits a promise longer.
const FAREWELLS: u8 = 3;

/// A watchdog is fed so many times within its time-out: one late turn of the scheduler resets nobody.
const FEEDS_PER_TIMEOUT: u32 = 4;

/// With nothing to wait for, a guard still looks around.
const IDLE: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Guard {
    me: HostId,
    boot: Uuid,
    lease: Lease,
    vms: Vms,
    voter: Voter,
    membership: Option<Membership>,
    watchdog: Watchdog,
    /// The agent wants the lease returned.
    is_releasing: bool,
    farewell: Option<Farewell>,
    /// The epoch of which the agent knows that it is fenced.
    told_fenced: Option<Epoch>,
    /// As it was last written.
    page: Option<Page>,
    latest: BootInstant,
    effects: Vec<Effect>,
    mutations: Mutations,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Watchdog {
    programmed: Option<Duration>,
    next_feed: BootInstant,
}

/// A lease that was returned, while voters are being told.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Farewell {
    epoch: Epoch,
    left: u8,
    next: BootInstant,
}

/// An order to start or continue a VM, as control signed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StartOrder {
    pub vm: VmId,
    pub vm_epoch: u64,
    pub host_epoch: Epoch,
}

impl Guard {
    /// Starts with what a predecessor left; step at once. A page of this boot whose deadline has not passed goes on as it
    /// was; otherwise its VMs are ended. As a voter every guard starts silent, for it has forgotten what it promised.
    #[must_use]
    pub fn start(me: HostId, boot: Uuid, page: Option<Page>, now: BootInstant) -> Self {
        let quarantine = page.as_ref().map_or(PROMISE_MAX, |page| page.quarantine);
        let last_epoch = page.as_ref().map_or(Epoch::default(), |page| page.last_epoch);
        let mut membership = page.as_ref().and_then(|page| page.membership.clone());
        let page = page.filter(|page| page.boot == boot);
        let held = page.as_ref().and_then(|page| page.lease);
        if held.is_none() {
            membership.iter_mut().for_each(Membership::forget_former);
        }
        let lease = Lease::resume(held, last_epoch, now);
        let mut effects = Vec::new();
        let left = page.map(|page| page.vms).unwrap_or_default();
        let vms = Vms::resume(&left, lease.held_epoch(), &mut effects);
        Self {
            me,
            boot,
            lease,
            vms,
            voter: Voter::start(quarantine, now),
            membership,
            watchdog: Watchdog::default(),
            is_releasing: false,
            farewell: None,
            told_fenced: None,
            page: None,
            latest: now,
            effects,
            mutations: Mutations::default(),
        }
    }

    /// Puts a defect in, before the first step.
    pub fn set_mutations(&mut self, mutations: Mutations) {
        self.mutations = mutations;
        self.lease.set_mutations(mutations);
        self.vms.set_mutations(mutations);
        self.voter.set_mutations(mutations);
    }

    /// The whole machine: what happened, at which instant, and what is to be done about it, in this order.
    pub fn step(&mut self, now: BootInstant, event: Event) -> Vec<Effect> {
        // A clock that went back would make a lease longer.
        let now = now.max(self.latest);
        self.latest = now;
        let state = self.lease.state();
        if !self.would_revive(&event) {
            self.expire_if_due(now);
        }
        self.on_event(now, event);
        self.advance(now);
        if self.lease.state() != state {
            self.effects.push(Effect::Report(Report::Lease { state: self.lease.state() }));
        }
        self.persist_if_changed(now);
        self.effects.push(Effect::NextWake(self.next_wake(now)));
        let mut effects = std::mem::take(&mut self.effects);
        effects.sort_by_key(Effect::rank);
        effects
    }

    /// Whether a VM may be started or continued now. The answer is worth something only if the VM was listed as starting
    /// before, in a step whose effects were carried out.
    pub fn may_start(&self, order: StartOrder, now: BootInstant) -> Result<(), StartRefusal> {
        let Some(held) = self.lease.held_epoch() else { return Err(StartRefusal::NoLease) };
        let any_epoch = crate::mutated!(self.mutations, StartsUnderAnyEpoch);
        if order.host_epoch != held && !any_epoch {
            return Err(StartRefusal::WrongHostEpoch { held, ordered: order.host_epoch });
        }
        if self.is_releasing {
            return Err(StartRefusal::Releasing);
        }
        // Also while others are frozen: what starts now would be frozen at once.
        let last = self.lease.deadline().map_or(BootInstant::default(), |at| at.before(START_MARGIN));
        if now >= last || self.freeze_at().is_none_or(|at| now >= at) {
            return Err(StartRefusal::TooLate);
        }
        self.vms.check_start(order.vm, order.vm_epoch)
    }

    fn on_event(&mut self, now: BootInstant, event: Event) {
        match event {
            Event::Tick => {}
            Event::Datagram { from, message } => self.on_message(now, from, message),
            Event::VmsChanged(list) => {
                self.vms.set_list(&list, self.lease.held_epoch(), &mut self.effects);
            }
            Event::AgentLost => self.vms.on_agent_lost(&mut self.effects),
            Event::Reaped { vm } => self.vms.on_reaped(vm, &mut self.effects),
            Event::Join { epoch, asked_at } => self.on_join(now, epoch, asked_at),
            Event::Configure(configuration) => self.on_configure(now, configuration),
            Event::Release => self.is_releasing = true,
        }
    }

    /// What follows from the state as it is now, whatever happened.
    fn advance(&mut self, now: BootInstant) {
        self.expire_if_due(now);
        if !self.vms.any_doomed() {
            self.lease.on_all_gone();
        }
        if !self.rests_on_voters() {
            self.membership.iter_mut().for_each(Membership::forget_former);
        }
        self.release_if_due(now);
        self.say_farewell(now);
        self.renew_if_due(now);
        if let Some(membership) = &mut self.membership {
            membership.settle(now);
        }
        self.freeze_or_thaw(now);
        self.feed_watchdog(now);
    }

    fn expire_if_due(&mut self, now: BootInstant) {
        if self.lease.expire_if_due(now) {
            self.vms.expire(&mut self.effects);
        }
    }

    /// The defect `LateAckRevives`: an answer is looked at before the clock.
    fn would_revive(&self, event: &Event) -> bool {
        let is_ack = matches!(event, Event::Datagram { message: Message::RenewAck { .. }, .. });
        is_ack && crate::mutated!(self.mutations, LateAckRevives)
    }

    fn on_message(&mut self, now: BootInstant, from: HostId, message: Message) {
        match message {
            Message::RenewAck { epoch, seq } => self.on_ack(now, from, (epoch, seq)),
            Message::RenewNack { epoch, fenced, .. } => self.on_nack(from, epoch, fenced),
            Message::Renew { .. }
            | Message::Release { .. }
            | Message::Fence { .. }
            | Message::Query { .. } => {
                let may_fence = self.membership.as_ref().is_some_and(|membership| membership.may_fence(from));
                if let Some(answer) = self.voter.on_message(from, &message, may_fence, now) {
                    self.send(now, from, answer);
                }
            }
            // For fencers.
            Message::FenceAck { .. } | Message::LastSeen { .. } => {}
        }
    }

    fn on_ack(&mut self, now: BootInstant, voter: HostId, answered: (Epoch, u64)) {
        let Some(membership) = &mut self.membership else { return };
        let is_longer = self.lease.on_ack(voter, answered, membership, now);
        if is_longer && membership.on_granted(answered.1) {
            let version = membership.version();
            self.effects.push(Effect::Report(Report::ConfigurationConfirmed { version }));
        }
    }

    /// Another host will start our VMs. There is nothing to do but to say it: the deadline stands, and renewals that no
    /// majority grants do not move it.
    fn on_nack(&mut self, voter: HostId, epoch: Epoch, fenced: Epoch) {
        if self.lease.live_epoch() == Some(epoch) && self.told_fenced != Some(epoch) {
            self.told_fenced = Some(epoch);
            self.effects.push(Effect::Report(Report::Fenced { voter, fenced }));
        }
    }

    fn on_join(&mut self, now: BootInstant, epoch: Epoch, asked_at: BootInstant) {
        let lasts = self.membership.as_ref().map(|membership| membership.profile().lease);
        let joined = match lasts {
            // A VM of the last epoch that is still dying keeps this host from joining, whatever the lease says.
            Some(_) if self.vms.any_doomed() => Err(JoinRefusal::NotFree),
            Some(lasts) => self.lease.join(epoch, asked_at, lasts, now),
            None => Err(JoinRefusal::NotConfigured),
        };
        match joined {
            Ok(()) => {
                self.is_releasing = false;
                self.farewell = None;
            }
            Err(why) => self.effects.push(Effect::Report(Report::JoinRefused { epoch, why })),
        }
    }

    fn on_configure(&mut self, now: BootInstant, configuration: Configuration) {
        let version = configuration.version;
        let is_joint = self.rests_on_voters() && !crate::mutated!(self.mutations, NoJointChange);
        let taken = match &mut self.membership {
            None => Membership::new(configuration).map(|first| self.membership = Some(first)),
            Some(membership) if is_joint => membership.change(configuration, now, self.lease.next_seq()),
            Some(membership) => membership.replace(configuration),
        };
        let report = match taken {
            Ok(()) if is_joint => return,
            Ok(()) => Report::ConfigurationConfirmed { version },
            // Said twice.
            Err(Refused::Old { have }) if have == version => return,
            Err(error) => Report::ConfigurationRefused { version, why: error.to_string() },
        };
        self.effects.push(Effect::Report(report));
    }

    /// Something may run here, or be hoped for, by what voters have promised. Until a lease that has run out has taken its
    /// VMs with it, those who granted it must still be asked whether it is over.
    fn rests_on_voters(&self) -> bool {
        self.lease.state() != State::NoEpoch || self.vms.any_doomed()
    }

    fn renew_if_due(&mut self, now: BootInstant) {
        let Some(membership) = &self.membership else { return };
        let Some(Question { epoch, seq, promise }) = self.lease.ask_if_due(membership.profile(), now) else {
            return;
        };
        self.send_to_voters(now, Message::Renew { epoch, seq, promise });
    }

    fn send_to_voters(&mut self, now: BootInstant, message: Message) {
        let everybody = self.membership.as_ref().map(Membership::everybody).unwrap_or_default();
        for voter in everybody {
            self.send(now, voter, message);
        }
    }

    /// What is for this guard itself does not go over the network, and is answered within the step.
    fn send(&mut self, now: BootInstant, to: HostId, message: Message) {
        if to == self.me {
            self.on_message(now, to, message);
        } else {
            self.effects.push(Effect::Send { to, message });
        }
    }

    fn release_if_due(&mut self, now: BootInstant) {
        if !self.is_releasing || !self.vms.is_empty() {
            return;
        }
        if let Some(epoch) = self.lease.release() {
            self.farewell = Some(Farewell { epoch, left: FAREWELLS, next: now });
            self.effects.push(Effect::Report(Report::Released { epoch }));
        }
    }

    fn say_farewell(&mut self, now: BootInstant) {
        let (Some(farewell), Some(membership)) = (&mut self.farewell, &self.membership) else { return };
        if now < farewell.next {
            return;
        }
        let epoch = farewell.epoch;
        farewell.left -= 1;
        farewell.next = now + membership.profile().renew;
        if farewell.left == 0 {
            self.farewell = None;
        }
        self.send_to_voters(now, Message::Release { epoch });
    }

    fn freeze_at(&self) -> Option<BootInstant> {
        let deadline = self.lease.held_epoch().and_then(|_| self.lease.deadline())?;
        Some(self.membership.as_ref()?.profile().freeze_at(deadline))
    }

    fn freeze_or_thaw(&mut self, now: BootInstant) {
        match self.freeze_at() {
            Some(at) if now >= at => self.vms.freeze(&mut self.effects),
            Some(_) => self.vms.thaw(&mut self.effects),
            None => {}
        }
    }

    /// Whether it is well that this host lives on for as long as a watchdog takes.
    fn may_feed(&self, now: BootInstant) -> bool {
        if crate::mutated!(self.mutations, FeedsTheWatchdogAlways) {
            return true;
        }
        let has_lease = self.lease.held_epoch().is_some() && self.lease.deadline().is_some_and(|at| now < at);
        !self.vms.any_doomed() && (has_lease || !self.vms.any_at_stake())
    }

    /// Setting a watchdog feeds it as well: neither is done when the host should not live on.
    fn feed_watchdog(&mut self, now: BootInstant) {
        let Some(timeout) = self.membership.as_ref().map(Membership::watchdog) else { return };
        if !self.may_feed(now) {
            return;
        }
        if self.watchdog.programmed != Some(timeout) {
            self.watchdog = Watchdog { programmed: Some(timeout), next_feed: now };
            self.effects.push(Effect::ProgramWatchdog { timeout });
        }
        if now >= self.watchdog.next_feed {
            self.watchdog.next_feed = now + timeout / FEEDS_PER_TIMEOUT;
            self.effects.push(Effect::Pet);
        }
    }

    fn persist_if_changed(&mut self, now: BootInstant) {
        let own = self.membership.as_ref().map_or(Duration::ZERO, |m| m.profile().quarantine());
        let page = Page {
            boot: self.boot,
            last_epoch: self.lease.last_epoch(),
            lease: self.lease.held(),
            membership: self.membership.clone(),
            quarantine: self.voter.successors_quarantine(now).max(own),
            vms: self.vms.for_page(),
        };
        if self.page.as_ref() != Some(&page) {
            self.effects.push(Effect::Persist(page.clone()));
            self.page = Some(page);
        }
    }

    fn next_wake(&self, now: BootInstant) -> BootInstant {
        let freeze_at = self.freeze_at().filter(|_| self.vms.any_to_freeze());
        let feed = self.watchdog.programmed.filter(|_| self.may_feed(now)).map(|_| self.watchdog.next_feed);
        let farewell = self.farewell.as_ref().map(|farewell| farewell.next);
        let all = [self.lease.next_renewal(), self.lease.deadline(), freeze_at, feed, farewell];
        all.into_iter().flatten().min().unwrap_or(now + IDLE)
    }
}

#[cfg(test)]
mod tests;
