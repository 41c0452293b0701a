//! One stream that flows, from its first byte to its end.

use std::time::Duration;

use sterna_mover::link;
use sterna_mover::session::source::SourceEvent;
use sterna_mover::session::{Outcome, Refused, Source};
use sterna_qemu::qmp::client::{Events, Heard};
use sterna_qemu::qmp::event::Event;
use sterna_qemu::qmp::migration::Status;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::super::Error;
use super::super::disks::Mirrors;
use super::{Call, Called, Departure, Stage};
use crate::hypervisor::Happened;

const LOOK_EVERY: Duration = Duration::from_millis(250);
/// A guest that stands still, with no line to the target, runs on at the source after this.
const PAUSE_PATIENCE: Duration = Duration::from_millis(1500);
/// A guest that runs waits this long for a line to come back; what has arrived by then is not lost on it.
const LINE_PATIENCE: Duration = Duration::from_secs(3600);
/// For the target's last word and the sealing of a checkpoint, when the copy here has ended.
const FINISH_WITHIN: Duration = Duration::from_secs(120);

/// Where the disks are that go with the guest.
pub(super) enum Disks {
    /// Behind the guest by a little.
    Mirrored,
    /// The guest stands still; resolves when they are whole at the target.
    Crossing(AbortOnDropHandle<Result<(), String>>),
    There,
}

/// Never, while nothing crosses.
async fn crossed(disks: &mut Disks) -> Result<(), String> {
    match disks {
        // It is nobody's to panic in, or to end before its time.
        Disks::Crossing(barrier) => barrier.await.unwrap_or_else(|error| Err(error.to_string())),
        Disks::Mirrored | Disks::There => std::future::pending().await,
    }
}

/// Never, without mirrors.
async fn lost(mirrors: &mut Option<Mirrors>) -> Error {
    match mirrors {
        Some(mirrors) => mirrors.failed().await,
        None => std::future::pending().await,
    }
}

/// A stream that flows.
pub(super) struct Way<'a> {
    pub departure: &'a Departure,
    pub source: Source,
    pub mirrors: Option<Mirrors>,
    pub events: Events,
    pub disks: Disks,
    pub is_tail_held: bool,
    pub link: watch::Receiver<link::Progress>,
    pub stage: &'a watch::Sender<Stage>,
    /// Since when the guest's CPUs stand still.
    pub stops: watch::Sender<Option<std::time::Instant>>,
}

impl Way<'_> {
    pub async fn go(mut self, called: &mut Called) -> Result<(), String> {
        let mut look = tokio::time::interval(LOOK_EVERY);
        let mut up = Instant::now();
        let mut is_finishing = None;
        loop {
            tokio::select! {
                Some(heard) = self.events.next() => self.on_heard(heard).await?,
                crossed = crossed(&mut self.disks) => {
                    crossed?;
                    self.disks = Disks::There;
                    self.hold();
                }
                failed = lost(&mut self.mirrors), if *self.stage.borrow() != Stage::Granted => {
                    return Err(failed.explain());
                }
                event = self.source.events.recv() => {
                    if let Some(ended) = self.on_event(event, is_finishing.is_some()).await {
                        return ended;
                    }
                }
                call = called.recv() => match call {
                    Some((Call::Finish, answer)) => {
                        is_finishing = Some(Instant::now());
                        let _ = answer.send(Ok(()));
                        self.finish().await;
                    }
                    Some((call, answer)) => drop(answer.send(self.on_call(call).await)),
                    None if is_finishing.is_none() => return Err("nobody waits for it any more".to_owned()),
                    // The registry has let go of it; it ends by itself.
                    None => tokio::time::sleep(LOOK_EVERY).await,
                },
                _ = look.tick() => {
                    if let Some(mirrors) = &self.mirrors {
                        mirrors.count();
                    }
                    if self.link.borrow().connected > 0 {
                        up = Instant::now();
                    }
                    if is_finishing.is_some_and(|since: Instant| since.elapsed() > FINISH_WITHIN) {
                        return Err("the target did not say its last word".to_owned());
                    }
                    self.mind_the_line(up.elapsed()).await;
                }
            }
        }
    }

    async fn on_event(
        &mut self,
        event: Option<SourceEvent>,
        is_finishing: bool,
    ) -> Option<Result<(), String>> {
        match event {
            Some(SourceEvent::Opened { has_checkpoint }) => {
                tracing::info!(vm = %self.departure.vm, has_checkpoint, "a guest is carried");
            }
            Some(SourceEvent::TailHeld(held)) => {
                if held.is_certain || self.is_at_its_end().await {
                    self.is_tail_held = true;
                    self.hold();
                }
            }
            Some(SourceEvent::Loaded { .. }) if is_finishing => self.finish().await,
            Some(SourceEvent::Loaded { code }) => {
                tracing::debug!(vm = %self.departure.vm, code, "loaded there")
            }
            Some(SourceEvent::InDoubt(error)) => {
                tracing::warn!(vm = %self.departure.vm, %error, "a granted guest is in doubt; its owner will say");
                if is_finishing {
                    return Some(Err(error.to_string()));
                }
            }
            Some(SourceEvent::Ended(Outcome::Committed | Outcome::Reclaimed)) => return Some(Ok(())),
            Some(SourceEvent::Ended(Outcome::Aborted)) => return Some(Err("cancelled".to_owned())),
            Some(SourceEvent::Ended(Outcome::Failed(error))) => return Some(Err(error.to_string())),
            None => return Some(Err("the stream has ended".to_owned())),
        }
        None
    }

    /// The guest may go: its memory is on its way but for the end, and its disks are there.
    fn hold(&self) {
        if self.is_tail_held && matches!(self.disks, Disks::There) {
            let link::Progress { queued_bytes, window_bytes, rate, round_trip, .. } = *self.link.borrow();
            let stands = self.stops.borrow().map(|since| since.elapsed());
            tracing::debug!(
                vm = %self.departure.vm, ?stands, queued_bytes, window_bytes, rate, ?round_trip, "the end is held"
            );
            self.stage.send_replace(Stage::Held);
            let _ = self.departure.happened.send(Happened::TransferHeld);
        }
    }

    async fn on_heard(&mut self, heard: Heard) -> Result<(), String> {
        let Heard::Event(stamped) = heard else { return Ok(()) };
        match stamped.event {
            Event::Stop => drop(self.stops.send_replace(Some(std::time::Instant::now()))),
            Event::Resume => drop(self.stops.send_replace(None)),
            Event::Migration { status: Status::PreSwitchover } => return self.end_mirrors().await,
            _ => {}
        }
        Ok(())
    }

    /// The guest stands still and its images are still open: the mirrors end, and what is under way crosses beside the
    /// last of the memory.
    async fn end_mirrors(&mut self) -> Result<(), String> {
        let Some(mirrors) = &self.mirrors else { return Ok(()) };
        let end = async {
            mirrors.end().await?;
            Ok::<_, Error>(self.departure.client.migrate_continue().await?)
        };
        end.await.map_err(|error| error.explain())?;
        self.disks = Disks::Crossing(AbortOnDropHandle::new(tokio::spawn(mirrors.barrier())));
        Ok(())
    }

    /// QEMU has sent all it has.
    async fn is_at_its_end(&self) -> bool {
        self.departure.client.query_migrate().await.is_ok_and(|told| told.status == Status::Device)
    }

    async fn on_call(&mut self, call: Call) -> Result<(), String> {
        let said = |refused: Refused| refused.to_string();
        match call {
            Call::Grant => {
                self.source.grant().await.map_err(said)?;
                self.stage.send_replace(Stage::Granted);
                Ok(())
            }
            Call::Reclaim => self.source.reclaim().await.map_err(said),
            Call::Abort | Call::Finish => self.source.abort().await.map_err(said),
        }
    }

    /// The copy here has ended. Before a grant there is nothing to finish; after it the commit is both sides' word to
    /// keep their checkpoints, as soon as the target has loaded everything.
    async fn finish(&mut self) {
        match self.source.commit().await {
            Err(Refused::NotGranted) => drop(self.source.abort().await),
            Ok(()) if self.mirrors.is_some() => {
                if let Some(mirrors) = self.mirrors.take() {
                    mirrors.finish().await;
                }
            }
            Err(Refused::NotLoaded | Refused::Ended) | Ok(()) => {}
            Err(refused) => tracing::debug!(vm = %self.departure.vm, %refused, "not committed"),
        }
    }

    /// A guest never stands still for a line that is gone.
    async fn mind_the_line(&mut self, down: Duration) {
        let is_granted = *self.stage.borrow() == Stage::Granted;
        if is_granted || down < PAUSE_PATIENCE {
            return;
        }
        let stands = self.departure.client.query_status().await.is_ok_and(|state| !state.is_running);
        if stands || down > LINE_PATIENCE {
            tracing::warn!(vm = %self.departure.vm, ?down, "no line to the target: the guest stays");
            let _ = self.source.abort().await;
        }
    }
}
