//! Carries out steps: each is one job, with its own copy of what is known, and answers what it found.

use std::sync::Arc;
use std::time::Duration;

use sterna_model::health::RESETS_MAX;
use sterna_model::line::Laying;
use sterna_model::meta::Name;
use sterna_model::migration::{MigrationReport, SideState};
use sterna_model::vm::Exit;
use sterna_wire::assignment::{Owner, Role, VmAssignment};
use sterna_wire::shim::ExitRecord;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Ports;
use super::decide::{Body, Order, Step};
use super::health::{Cure, Quarantine, Resets};
use super::power;
use super::record::{Cause, Notes, Seen, Title};
use super::restart::{self, Crash, Restarts};
use super::start::Fresh;
use crate::hypervisor::{Guest, GuestError, Happenings, Hypervisor, Look, Pause, Run, View};
use crate::resources::Resources;

/// A reset takes milliseconds once QEMU comes to it.
const RESET_WITHIN: Duration = Duration::from_secs(2);
const RESET_POLL: Duration = Duration::from_millis(5);
/// Storage that is full or refuses says so at once.
const IO_FAILS_WITHIN: Duration = Duration::from_millis(300);

/// What a job knows and may use.
pub(super) struct Work<H: Hypervisor, R: Resources> {
    pub name: Name,
    pub uid: Uuid,
    pub ports: Arc<Ports<H, R>>,
    pub guest: Option<H::Guest>,
    pub notes: Option<Notes>,
    pub seen: Option<Seen>,
    /// By a newer order. A start that waits stops waiting then.
    pub superseded: CancellationToken,
    pub starting: watch::Sender<Option<(u64, String)>>,
}

/// What a job answers. Notes and seen are as they are now written.
pub(super) struct Outcome<G> {
    pub notes: Option<Notes>,
    pub seen: Option<Seen>,
    pub found: Found<G>,
    /// Something did not work; what is to be done is decided anew after a while.
    pub trouble: Option<String>,
}

pub(super) enum Found<G> {
    /// A copy that the task did not have before.
    Alive {
        guest: G,
        happenings: Happenings,
        view: View,
    },
    /// The copy that it had, as it is now.
    Same(View),
    Gone(Body),
    Forgotten,
    /// Nothing new.
    Again,
}

/// Why a job ends early.
pub(super) enum Stop {
    /// Told to the log; tried again after a while.
    Trouble(String),
    /// The task decides anew at once.
    Interrupted,
}

impl From<GuestError> for Stop {
    fn from(error: GuestError) -> Self {
        Self::Trouble(error.to_string())
    }
}

impl From<std::io::Error> for Stop {
    fn from(error: std::io::Error) -> Self {
        Self::Trouble(format!("records: {error}"))
    }
}

pub(super) type Done<G> = Result<Found<G>, Stop>;

impl<H: Hypervisor, R: Resources> Work<H, R> {
    pub async fn perform(mut self, step: Step, order: Order) -> Outcome<H::Guest> {
        let done = match (step, order) {
            (Step::Forget, _) => self.forget().await,
            (Step::HandOver, _) => self.hand_over().await,
            (Step::MarkLoaded, _) => self.mark_loaded().await,
            (Step::CancelSend, _) => self.cancel_send().await,
            (Step::Thaw, _) => self.thaw().await,
            (Step::EndSeed, _) => self.end_seed().await,
            (Step::Keep { why }, order) => self.keep(&order, why).await,
            (step, Order::Given(order)) => self.perform_order(step, *order).await,
            // No other step is decided without an order.
            (_, _) => Ok(Found::Again),
        };
        self.outcome(done)
    }

    async fn perform_order(&mut self, step: Step, order: VmAssignment) -> Done<H::Guest> {
        match (step, &order.role) {
            (Step::Conclude(exit), _) => self.conclude(&order, exit),
            (Step::Kill(cause), _) => self.kill(cause).await,
            (Step::Start, Role::Owner(owner)) => {
                let fresh = Fresh {
                    epoch: order.epoch,
                    title: Title::Owner,
                    reset_request: owner.reset_request,
                    lease: owner.host_epoch,
                };
                self.start(fresh, &owner.machine).await
            }
            (Step::StartAgain { why }, Role::Owner(owner)) => self.start_again(order.epoch, owner, why).await,
            (Step::Receive, Role::Incoming { migration, machine, host_epoch, .. }) => {
                let title = Title::Incoming(migration.clone());
                let fresh = Fresh { epoch: order.epoch, title, reset_request: 0, lease: *host_epoch };
                self.start(fresh, machine).await
            }
            (Step::Listen, Role::Incoming { migration, listen, carry, channels, in_clear, .. }) => {
                let laying = channels.map(|channels| Laying { channels, is_encrypted: !in_clear });
                self.listen(migration, *listen, carry.as_ref(), laying).await
            }
            (step, Role::Owner(owner)) => self.perform_owned(step, order.epoch, owner).await,
            (_, _) => Ok(Found::Again),
        }
    }

    async fn perform_owned(&mut self, step: Step, epoch: u64, owner: &Owner) -> Done<H::Guest> {
        match step {
            Step::Continue => self.continue_copy(epoch, owner).await,
            Step::Adopt => self.adopt(epoch).await,
            Step::Send => self.send(owner).await,
            Step::Enlist(host_epoch) => self.enlist(epoch, host_epoch).await,
            Step::Run => {
                self.guest()?.cont().await?;
                self.view().await
            }
            Step::RetryIo => self.retry_io().await,
            Step::Pause => {
                self.guest()?.stop().await?;
                self.view().await
            }
            Step::Reset(request) => self.reset(request).await,
            Step::Cure(Cure::Reset { why }) => self.reset_by_itself(why).await,
            Step::Cure(Cure::Quarantine { why }) => self.quarantine(owner, why).await,
            Step::Cure(Cure::Forgive) => {
                self.note(|notes| notes.resets.forgive())?;
                self.tell_people("quarantine lifted", "a start or a reset was asked for".to_owned());
                self.view().await
            }
            Step::PressPowerButton => self.press_power_button().await,
            Step::Relent => {
                self.note(|notes| notes.ending = None)?;
                self.view().await
            }
            _ => Ok(Found::Again),
        }
    }

    /// In this order, as before a start: no order under an older epoch may be acted upon once this one was.
    async fn adopt(&mut self, epoch: u64) -> Done<H::Guest> {
        let lease = self.notes.as_ref().and_then(|notes| notes.lease);
        self.remember(Seen { name: self.name.clone(), epoch, title: Title::Owner, exit: None, lease })?;
        self.note(|notes| notes.epoch = epoch)?;
        tracing::info!(vm = %self.name, epoch, "vm goes on under another epoch");
        self.view().await
    }

    pub(super) fn outcome(self, done: Done<H::Guest>) -> Outcome<H::Guest> {
        let (found, trouble) = match done {
            Ok(found) => (found, None),
            Err(Stop::Interrupted) => (Found::Again, None),
            Err(Stop::Trouble(why)) => (Found::Again, Some(why)),
        };
        Outcome { notes: self.notes, seen: self.seen, found, trouble }
    }

    pub(super) fn guest(&self) -> Result<&H::Guest, Stop> {
        self.guest.as_ref().ok_or_else(|| Stop::Trouble("the copy is not connected".to_owned()))
    }

    pub(super) async fn view(&self) -> Done<H::Guest> {
        Ok(Found::Same(self.guest()?.view().await?))
    }

    /// Changes the notes and writes them.
    pub(super) fn note(&mut self, change: impl FnOnce(&mut Notes)) -> Result<(), Stop> {
        let mut notes =
            self.notes.clone().ok_or_else(|| Stop::Trouble("the copy has no notes".to_owned()))?;
        change(&mut notes);
        self.ports.records.save_notes(self.uid, &notes)?;
        self.notes = Some(notes);
        Ok(())
    }

    pub(super) fn note_side(&mut self, migration: &Name, side: SideState) -> Result<(), Stop> {
        let migration = migration.clone();
        self.note(|notes| notes.migration = Some(MigrationReport { migration, side }))
    }

    pub(super) fn remember(&mut self, seen: Seen) -> Result<(), Stop> {
        self.ports.records.save_seen(self.uid, &seen)?;
        self.seen = Some(seen);
        Ok(())
    }

    /// Asks the copy how it is.
    pub async fn refresh(self) -> Outcome<H::Guest> {
        let done = self.view().await;
        self.outcome(done)
    }

    /// Finds out what is here, from the records and from the processes.
    pub async fn look(mut self) -> Outcome<H::Guest> {
        let done = self.look_here().await;
        self.outcome(done)
    }

    pub(super) async fn look_here(&mut self) -> Done<H::Guest> {
        if self.seen.is_none() {
            self.seen = self.ports.records.seen(self.uid)?;
        }
        if self.notes.is_none() {
            self.notes = self.ports.records.notes(self.uid)?;
        }
        match self.ports.hypervisor.look(self.uid).await {
            Look::Unknown { why } => Err(Stop::Trouble(why)),
            Look::Absent => Ok(Found::Gone(self.absent())),
            Look::Ended(record) => self.ended(&record),
            Look::Alive { guest, happenings, epoch } => {
                let view = guest.view().await?;
                if self.notes.is_none() {
                    self.notes = Some(self.reconstructed(epoch));
                }
                Ok(Found::Alive { guest, happenings, view })
            }
        }
    }

    fn absent(&self) -> Body {
        match self.seen.as_ref().and_then(|seen| seen.exit.clone()) {
            Some(exit) => Body::Ended(exit),
            None => Body::Absent,
        }
    }

    /// Notes that were lost, as far as the durable record knows them. With less than that the copy is nobody's.
    fn reconstructed(&self, epoch: u64) -> Notes {
        let seen = self.seen.as_ref().filter(|seen| seen.epoch == epoch);
        Notes {
            name: self.name.clone(),
            epoch,
            title: seen.map_or(Title::Owner, |seen| seen.title.clone()),
            migration: None,
            reset_request: 0,
            ending: None,
            taps: Vec::new(),
            restarts: Restarts::default(),
            resets: Resets::default(),
            began: self.ports.clock.now(),
            lease: seen.and_then(|seen| seen.lease),
        }
    }

    fn ended(&mut self, record: &ExitRecord) -> Done<H::Guest> {
        let noted = self.notes.as_ref().map_or(record.epoch, |notes| notes.epoch.max(record.epoch));
        let seen = self.seen.as_ref();
        // What ended is older than what was begun since, of which nothing is here.
        if seen.is_some_and(|seen| seen.epoch > noted) {
            return Ok(Found::Gone(self.absent()));
        }
        if let Some(exit) = seen.filter(|seen| seen.epoch == noted).and_then(|seen| seen.exit.clone()) {
            return Ok(Found::Gone(Body::Ended(exit)));
        }
        let exit = power::exit_of(record, self.notes.as_ref().and_then(|notes| notes.ending));
        if noted == record.epoch && restart::is_open(&exit, self.notes.as_ref(), self.seen.as_ref()) {
            tracing::warn!(vm = %self.name, epoch = noted, ?exit, "vm ended unasked");
            return Ok(Found::Gone(Body::Crashed(Crash { exit, at: self.ports.clock.now() })));
        }
        let title = self.notes.as_ref().map_or(Title::Owner, |notes| notes.title.clone());
        tracing::info!(vm = %self.name, epoch = noted, ?exit, "vm ended");
        let (name, exit_seen) = (self.name.clone(), Some(exit.clone()));
        self.remember(Seen { name, epoch: noted, title, exit: exit_seen, lease: None })?;
        Ok(Found::Gone(Body::Ended(exit)))
    }

    fn conclude(&mut self, order: &VmAssignment, exit: Exit) -> Done<H::Guest> {
        let title = match &order.role {
            Role::Incoming { migration, .. } => Title::Incoming(migration.clone()),
            Role::Owner(_) | Role::Release => Title::Owner,
        };
        let epoch = self.seen.as_ref().map_or(order.epoch, |seen| seen.epoch.max(order.epoch));
        tracing::info!(vm = %self.name, epoch, ?exit, "vm has no copy here");
        let (name, exit_seen) = (self.name.clone(), Some(exit.clone()));
        self.remember(Seen { name, epoch, title, exit: exit_seen, lease: None })?;
        Ok(Found::Gone(Body::Ended(exit)))
    }

    async fn kill(&mut self, cause: Cause) -> Done<H::Guest> {
        tracing::info!(vm = %self.name, ?cause, "vm is ended");
        if self.notes.as_ref().is_some_and(|notes| notes.ending != Some(cause)) {
            self.note(|notes| notes.ending = Some(cause))?;
        }
        self.ports.hypervisor.kill(self.uid, self.guest.clone()).await;
        self.look_here().await
    }

    async fn forget(&mut self) -> Done<H::Guest> {
        let taps = self.notes.take().map(|notes| notes.taps).unwrap_or_default();
        self.ports.resources.release(self.uid, &taps).await;
        self.ports.hypervisor.clear(self.uid)?;
        self.ports.records.remove_notes(self.uid)?;
        tracing::info!(vm = %self.name, "vm is forgotten");
        Ok(Found::Forgotten)
    }

    async fn reset(&mut self, request: u64) -> Done<H::Guest> {
        self.guest()?.reset().await?;
        self.note(|notes| {
            notes.reset_request = request;
            notes.resets.forgive();
        })?;
        self.after_reset().await
    }

    /// Counted before it is done: what cannot be written down is not tried again and again.
    async fn reset_by_itself(&mut self, why: String) -> Done<H::Guest> {
        let now = self.ports.clock.now();
        self.note(|notes| notes.resets.add(why.clone(), now))?;
        tracing::warn!(vm = %self.name, %why, "vm is reset by its host");
        self.guest()?.reset().await?;
        let count = self.notes.as_ref().map_or(0, |notes| notes.resets.made.len());
        self.tell_people("reset by its host", format!("{why}; reset {count} of {RESETS_MAX} in an hour"));
        self.after_reset().await
    }

    /// QEMU resets a moment after it has said that it will. What stood still for a crash is run by the owner's next step.
    async fn after_reset(&self) -> Done<H::Guest> {
        let begun = tokio::time::Instant::now();
        loop {
            let view = self.guest()?.view().await?;
            if view.run != Run::Paused(Pause::Panicked) || begun.elapsed() > RESET_WITHIN {
                return Ok(Found::Same(view));
            }
            tokio::time::sleep(RESET_POLL).await;
        }
    }

    async fn quarantine(&mut self, owner: &Owner, why: String) -> Done<H::Guest> {
        let why = format!("{why}, after {RESETS_MAX} resets in an hour");
        tracing::error!(vm = %self.name, %why, "vm is quarantined");
        let power_request = owner.health.as_ref().map_or(0, |order| order.power_request);
        let quarantine = Quarantine { why: why.clone(), power_request, reset_request: owner.reset_request };
        self.note(|notes| notes.resets.quarantine = Some(quarantine))?;
        self.tell_people("quarantined", why);
        self.view().await
    }

    /// Looks again when what it tries can have failed again: to run for a moment is no news.
    async fn retry_io(&mut self) -> Done<H::Guest> {
        self.guest()?.cont().await?;
        tokio::time::sleep(IO_FAILS_WITHIN).await;
        self.view().await
    }

    async fn press_power_button(&mut self) -> Done<H::Guest> {
        self.note(|notes| notes.ending = Some(Cause::Asked))?;
        let guest = self.guest()?;
        // A guest that stands still does not hear the button.
        if matches!(guest.view().await?.run, Run::Paused(Pause::Asked | Pause::Migrated)) {
            guest.cont().await?;
        }
        guest.press_power_button().await?;
        self.view().await
    }
}
