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
use super::super::patience::{CalledOff, LineWatch};
use super::{Call, Called, Departure, Stage};
use crate::hypervisor::Happened;

const LOOK_EVERY: Duration = Duration::from_millis(250);
/// For the target's last word and the sealing of a checkpoint, when the copy here has ended.
const FINISH_WITHIN: Duration = Duration::from_secs(120);

/// Where the disks are that go with the guest.
enum Disks {
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
    departure: &'a Departure,
    source: Source,
    mirrors: Option<Mirrors>,
    events: Events,
    disks: Disks,
    is_tail_held: bool,
    link: watch::Receiver<link::Progress>,
    stage: &'a watch::Sender<Stage>,
    /// Since when the guest's CPUs stand still.
    stops: watch::Sender<Option<std::time::Instant>>,
    line: LineWatch,
    /// The guest waited for too long, and the stream is about to end.
    called_off: Option<CalledOff>,
}

impl<'a> Way<'a> {
    pub fn new(
        departure: &'a Departure,
        (source, mirrors): (Source, Option<Mirrors>),
        link: watch::Receiver<link::Progress>,
        (stage, stops): (&'a watch::Sender<Stage>, watch::Sender<Option<std::time::Instant>>),
    ) -> Self {
        let disks = if mirrors.is_some() { Disks::Mirrored } else { Disks::There };
        Self {
            departure,
            source,
            mirrors,
            events: departure.client.events(),
            disks,
            is_tail_held: false,
            link,
            stage,
            stops,
            line: LineWatch::new(Instant::now()),
            called_off: None,
        }
    }

    pub async fn go(mut self, called: &mut Called) -> Result<(), String> {
        let mut look = tokio::time::interval(LOOK_EVERY);
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
                    if is_finishing.is_some_and(|since: Instant| since.elapsed() > FINISH_WITHIN) {
                        return Err("the target did not say its last word".to_owned());
                    }
                    self.mind().await;
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
            Some(SourceEvent::Ended(Outcome::Aborted)) => {
                let why = self.called_off.map(|why| why.to_string());
                return Some(Err(why.unwrap_or_else(|| "cancelled".to_owned())));
            }
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
        let client = &self.departure.client;
        let Some(mirrors) = &mut self.mirrors else { return Ok(()) };
        let end = async {
            mirrors.end().await?;
            Ok::<_, Error>(client.migrate_continue().await?)
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

    /// Calls it off when the guest would wait too long for it.
    async fn mind(&mut self) {
        if *self.stage.borrow() == Stage::Granted || self.called_off.is_some() {
            return;
        }
        let journal = self.mirrors.as_mut().map_or(Ok(()), Mirrors::mind_the_journal);
        let minded = match journal {
            Ok(()) => self.mind_the_line().await,
            full => full,
        };
        if let Err(why) = minded {
            self.called_off = Some(why);
            // One that has ended meanwhile says so itself.
            let _ = self.source.abort().await;
        }
    }

    /// That of the memory, and that of the disks while anything of them has to cross.
    async fn mind_the_line(&mut self) -> Result<(), CalledOff> {
        let has_disks_line =
            matches!(self.disks, Disks::There) || self.mirrors.as_ref().is_none_or(Mirrors::is_connected);
        let is_connected = self.link.borrow().connected > 0 && has_disks_line;
        let now = Instant::now();
        let stands = !is_connected && self.line.is_long_down(now) && self.stands().await;
        self.line.on(now, is_connected, stands)
    }

    async fn stands(&self) -> bool {
        self.departure.client.query_status().await.is_ok_and(|state| !state.is_running)
    }
}
