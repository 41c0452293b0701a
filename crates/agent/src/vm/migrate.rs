//! Both sides of a live migration.
//!
//! ```text
//! source                                        target
//!                                               Receive, Listen  -> Listening{at, line}
//! Send -> Sending ............ memory .......>
//! completed: record, then say Released          completed          -> Loaded
//!                                               Continue (new epoch, by order of the server only) -> Continued
//! ```
//!
//! Until `Released` is recorded QEMU may resume the guest on the source, and so may we; after it only an order
//! with a higher epoch does.

use std::net::IpAddr;
use std::time::Duration;

use sterna_base::units::Span;
use sterna_model::line::Laying;
use sterna_model::meta::Name;
use sterna_model::migration::{MigrationReport, Outcome, SideState};
use sterna_model::vm::Power;
use sterna_wire::assignment::{Carry, Owner};

use super::decide::Order;
use super::health::Resets;
use super::record::{Seen, Title};
use super::restart::Restarts;
use super::steps::{self, Done, Found, Stop, Work};
use crate::hypervisor::{
    Figures, Guest, GuestError, Hypervisor, Limits, Listening, Pause, Run, Transfer, View,
};
use crate::resources::Resources;
pub(super) use passes::Hopeless;
use watcher::Rung;
pub(super) use watcher::Watcher;

mod passes;
mod watcher;

/// How long a completed source waits for the line to the server before it takes the guest back.
const LINE_PATIENCE: Duration = Duration::from_secs(1);

impl<H: Hypervisor, R: Resources> Work<H, R> {
    pub(super) async fn listen(
        &mut self,
        migration: &Name,
        at: IpAddr,
        carry: Option<&Carry>,
        laying: Option<Laying>,
    ) -> Done<H::Guest> {
        let Listening { at, line } = self.guest()?.listen(at, carry, laying).await?;
        self.note_side(migration, SideState::Listening { at: at.to_string(), line })?;
        self.view().await
    }

    /// Without a question to QEMU: its own event has just said so.
    pub(super) async fn mark_loaded(&mut self) -> Done<H::Guest> {
        let migration = self.migration()?;
        self.note_side(&migration, SideState::Loaded)?;
        Ok(Found::Same(View { run: Run::Incoming, transfer: Transfer::Completed }))
    }

    fn migration(&self) -> Result<Name, Stop> {
        let report = self.notes.as_ref().and_then(|notes| notes.migration.as_ref());
        report
            .map(|report| report.migration.clone())
            .ok_or_else(|| Stop::Trouble("no migration is noted".to_owned()))
    }

    pub(super) async fn send(&mut self, owner: &Owner) -> Done<H::Guest> {
        let Some(outgoing) = &owner.outgoing else { return Ok(Found::Again) };
        // Noted first: a successor of this agent that finds a transfer must know which one it is.
        self.note_side(&outgoing.migration, SideState::Sending)?;
        let limits = Limits { max_downtime: Rung::of(outgoing).pause(outgoing.max_downtime) };
        match self.guest()?.send(outgoing, limits).await {
            Ok(()) => {
                tracing::info!(vm = %self.name, migration = %outgoing.migration, to = %outgoing.to, "sending");
                Ok(Found::Same(View { run: self.guest()?.view().await?.run, transfer: Transfer::Going }))
            }
            Err(GuestError::Refused(why)) => {
                self.note_side(&outgoing.migration, SideState::Kept { why })?;
                self.view().await
            }
            Err(GuestError::Unclear(why)) => Err(Stop::Trouble(why)),
        }
    }

    pub(super) async fn cancel_send(&mut self) -> Done<H::Guest> {
        self.guest()?.cancel().await?;
        self.view().await
    }

    /// The guest stays here. QEMU resumes it by itself; if it does not, the next step does.
    pub(super) async fn keep(&mut self, order: &Order, why: String) -> Done<H::Guest> {
        let ordered = order.owner().and_then(|owner| owner.outgoing.as_ref());
        let ordered = ordered.map(|outgoing| outgoing.migration.clone());
        let is_sending = self.notes.as_ref().is_some_and(super::record::Notes::is_sending);
        let migration =
            if is_sending { self.migration()? } else { ordered.map_or_else(|| self.migration(), Ok)? };
        tracing::warn!(vm = %self.name, %migration, %why, "the guest stays");
        self.note_side(&migration, SideState::Kept { why })?;
        if let Err(error) = self.guest()?.tidy().await {
            tracing::warn!(vm = %self.name, %error, "something of the transfer is left");
        }
        self.view().await
    }

    /// The target has the disks; the guest has not been touched.
    pub(super) async fn end_seed(&mut self) -> Done<H::Guest> {
        let migration = self.migration()?;
        let outcome = outcome_of(&self.guest()?.figures().await?);
        tracing::info!(vm = %self.name, %migration, "the disks are there, ahead of the guest");
        self.note_side(&migration, SideState::Seeded { outcome })?;
        self.view().await
    }

    /// The transfer has completed: the target has everything, and this copy stands still.
    pub(super) async fn hand_over(&mut self) -> Done<H::Guest> {
        let migration = self.migration()?;
        let guest = self.guest()?.clone();
        let (view, figures) = tokio::join!(guest.view(), figures_of(&guest));
        let view = view?;
        // A predecessor took it back and did not live to note it.
        if view.run == Run::Running {
            self.note_side(&migration, SideState::Kept { why: "the guest was resumed here".to_owned() })?;
            return Ok(Found::Same(view));
        }
        let outcome = figures.map(|figures| outcome_of(&figures)).unwrap_or_default();
        if view.transfer == Transfer::Held {
            return self.let_go(&migration, outcome).await;
        }
        if self.is_line_up().await {
            self.note_side(&migration, SideState::Released { outcome })?;
            return Ok(Found::Same(view));
        }
        self.take_back(&migration, outcome).await
    }

    /// Frozen first, written down next, let go last: whatever dies in between, this copy runs by no other word than its
    /// owner's.
    async fn let_go(&mut self, migration: &Name, outcome: Outcome) -> Done<H::Guest> {
        let guest = self.guest()?.clone();
        if !self.is_line_up().await {
            let why = "the server could not be reached at the switchover".to_owned();
            return self.keep_held(migration, why).await;
        }
        guest.freeze().await?;
        self.note_side(migration, SideState::Released { outcome })?;
        match guest.grant().await {
            Ok(()) => {}
            // Its stream had ended before, so it may have run since; nobody was told yet that it was released.
            Err(GuestError::Refused(why)) => return self.keep_held(migration, why).await,
            Err(GuestError::Unclear(error)) => {
                // If the target does not get the end it says so; then the owner takes this copy back.
                tracing::warn!(vm = %self.name, %migration, %error, "whether the guest was granted is not known");
            }
        }
        Ok(Found::Same(View { run: Run::Paused(Pause::Migrated), transfer: Transfer::Held }))
    }

    /// A guest that stands still at the end of its stream runs on here.
    async fn keep_held(&mut self, migration: &Name, why: String) -> Done<H::Guest> {
        tracing::warn!(vm = %self.name, %migration, %why, "the guest stays");
        // Noted first: what runs must never be found noted as sent away.
        self.note_side(migration, SideState::Kept { why })?;
        // One that is frozen hears no cancel, whoever froze it.
        if self.guest()?.cancel().await.is_err() {
            self.guest()?.take_back().await?;
        }
        self.view().await
    }

    /// It was noted as kept by somebody who did not live to continue it.
    pub(super) async fn thaw(&mut self) -> Done<H::Guest> {
        self.guest()?.take_back().await?;
        self.view().await
    }

    async fn is_line_up(&self) -> bool {
        let mut link = self.ports.link.clone();
        matches!(tokio::time::timeout(LINE_PATIENCE, link.wait_for(|is_up| *is_up)).await, Ok(Ok(_)))
    }

    /// Nobody can be told that the guest was released, so it was not: it runs on here.
    async fn take_back(&mut self, migration: &Name, outcome: Outcome) -> Done<H::Guest> {
        let why = "the server could not be reached at the switchover".to_owned();
        // Noted first: what runs must never be found noted as sent away.
        self.note_side(migration, SideState::Kept { why })?;
        match self.guest()?.cont().await {
            Ok(()) => tracing::warn!(vm = %self.name, %migration, "no line to the server: the guest stays"),
            // The target holds the disks already: only the server can settle it now.
            Err(GuestError::Refused(why)) => {
                tracing::warn!(vm = %self.name, %migration, %why, "the guest could not be taken back");
                self.note_side(migration, SideState::Released { outcome })?;
            }
            Err(GuestError::Unclear(why)) => return Err(Stop::Trouble(why)),
        }
        self.view().await
    }

    /// By order of the server this copy is the owner's now.
    pub(super) async fn continue_copy(&mut self, epoch: u64, owner: &Owner) -> Done<H::Guest> {
        let was_target = self.notes.as_ref().is_some_and(|notes| notes.title != Title::Owner);
        // A target wrote this epoch down when it was started: no disk is waited for between two hosts.
        if self.seen.as_ref().is_none_or(|seen| seen.epoch != epoch) {
            let lease = self.notes.as_ref().and_then(|notes| notes.lease);
            self.remember(Seen { name: self.name.clone(), epoch, title: Title::Owner, exit: None, lease })?;
        }
        let now = self.ports.clock.now();
        let continued = self.migration().ok().filter(|_| was_target);
        self.note(|notes| {
            notes.epoch = epoch;
            notes.title = Title::Owner;
            notes.began = now;
            notes.restarts = Restarts::default();
            notes.resets = Resets::default();
            notes.reset_request = owner.reset_request;
            notes.migration = continued.map(|migration| MigrationReport {
                migration,
                side: SideState::Continued { loading: None, answered: None },
            });
        })?;
        let guest = self.guest()?.clone();
        if was_target {
            guest.activate_disks().await?;
        }
        tracing::info!(vm = %self.name, epoch, "vm continues here");
        if !was_target {
            guest.take_back().await?;
            if owner.power == Power::Paused {
                guest.stop().await?;
            } else if let Err(error) = guest.announce().await {
                tracing::warn!(%error, "the guest could not be announced");
            }
            return self.view().await;
        }
        if owner.power == Power::Paused {
            return self.view().await;
        }
        // Asked for in one breath: a busy guest's QEMU answers late, and until the segment has heard where the guest is,
        // its packets go to where it was. The VM is this host's by now, whatever becomes of `cont`.
        let (announced, continued) = tokio::join!(guest.announce(), guest.cont());
        if let Err(error) = announced {
            tracing::warn!(%error, "the guest could not be announced");
        }
        continued?;
        if let (Some(loading), Ok(migration)) = (guest.loading(), self.migration()) {
            self.note_side(&migration, SideState::Continued { loading: Some(loading), answered: None })?;
        }
        Ok(Found::Same(View { run: Run::Running, transfer: Transfer::Completed }))
    }
}

impl<H: Hypervisor, R: Resources> Work<H, R> {
    /// The guest that was continued here has answered.
    pub(super) async fn note_answer(mut self, after: Duration) -> steps::Outcome<H::Guest> {
        let done = self.try_note_answer(after).await;
        self.outcome(done)
    }

    async fn try_note_answer(&mut self, after: Duration) -> Done<H::Guest> {
        let noted = self.notes.as_ref().and_then(|notes| notes.migration.clone());
        if let Some(MigrationReport { migration, side: SideState::Continued { loading, .. } }) = noted {
            self.note_side(&migration, SideState::Continued { loading, answered: Some(Span(after)) })?;
        }
        Ok(Found::Again)
    }
}

/// QEMU says `completed` a moment before it has written down how long the guest stood still.
async fn figures_of<G: Guest>(guest: &G) -> Result<Figures, GuestError> {
    let mut figures = guest.figures().await?;
    for _ in 0..3 {
        if figures.downtime.is_some_and(|downtime| downtime.as_millis() > 0) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        figures = guest.figures().await?;
    }
    Ok(figures)
}

fn outcome_of(figures: &Figures) -> Outcome {
    Outcome {
        total: None,
        downtime: figures.downtime,
        gap: None,
        round_trip: figures.round_trip,
        bytes: figures.progress.sent,
        rounds: figures.progress.rounds,
    }
}
