//! The source's side: takes the stream from a running QEMU, and holds its end until the guest may go.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sterna_mover::codec::Settings;
use sterna_mover::link::{self, Link, SessionId};
use sterna_mover::session::source::{Options, SourceEvent};
use sterna_mover::session::{Outcome, Refused, Source};
use sterna_qemu::qmp::Client;
use sterna_qemu::qmp::migration::{Address, Capability, Parameters, Status};
use sterna_wire::assignment::Carry;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use uuid::Uuid;

use super::{Carriers, Error, lock, store_bytes};
use crate::hypervisor::Happened;

/// The socket that QEMU sends to, in the guest's directory.
const SOCKET: &str = "out.sock";
/// QEMU opens it at once.
const OPEN_WITHIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// A guest that stands still, with no line to the target, runs on at the source after this.
const PAUSE_PATIENCE: Duration = Duration::from_millis(1500);
/// A guest that runs waits this long for a line to come back; what has arrived by then is not lost on it.
const LINE_PATIENCE: Duration = Duration::from_secs(3600);
/// For the target's last word and the sealing of a checkpoint, when the copy here has ended.
const FINISH_WITHIN: Duration = Duration::from_secs(120);

/// How far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    Going,
    /// Everything but the end of the stream is on its way; the guest stands still.
    Held,
    /// The end was let go: only the owner's word continues the guest here.
    Granted,
    /// The guest stays, and QEMU resumes it by itself.
    Failed {
        why: String,
    },
    Over,
}

/// What a guest leaves with.
pub struct Departure {
    pub vm: Uuid,
    pub client: Client,
    /// The guest's directory, which is its QEMU's.
    pub directory: PathBuf,
    pub to: SocketAddr,
    pub carry: Carry,
    pub parameters: Parameters,
    pub happened: mpsc::UnboundedSender<Happened>,
}

/// Numbers of a stream under way.
#[derive(Debug, Clone, Copy, Default)]
pub struct Figures {
    pub wire_bytes: u64,
    /// Bytes a second.
    pub rate: u64,
    pub round_trip: Option<Duration>,
}

enum Call {
    Grant,
    Reclaim,
    Abort,
    Finish,
}

type Answer = oneshot::Sender<Result<(), String>>;

/// A guest that leaves. The last one dropped closes QEMU's socket.
#[derive(Clone)]
pub struct Outgoing(Arc<Inner>);

struct Inner {
    stage: watch::Receiver<Stage>,
    calls: mpsc::Sender<(Call, Answer)>,
    link: watch::Receiver<link::Progress>,
}

impl Outgoing {
    #[must_use]
    pub fn stage(&self) -> Stage {
        self.0.stage.borrow().clone()
    }

    #[must_use]
    pub fn figures(&self) -> Figures {
        let progress = *self.0.link.borrow();
        Figures {
            wire_bytes: progress.wire_bytes,
            rate: progress.rate.unwrap_or(0),
            round_trip: progress.round_trip,
        }
    }

    /// Lets the end go. The guest must be frozen, and it must be written down that it will not run here.
    pub async fn grant(&self) -> Result<(), String> {
        self.call(Call::Grant).await
    }

    /// The guest is this host's again, after a grant: closes QEMU's socket.
    pub async fn reclaim(&self) -> Result<(), String> {
        self.call(Call::Reclaim).await
    }

    /// Calls it off; refused after a grant.
    pub async fn abort(&self) -> Result<(), String> {
        self.call(Call::Abort).await
    }

    /// The copy here has ended: what was granted comes to its end by itself.
    pub(super) fn finish(self) {
        tokio::spawn(async move { self.call(Call::Finish).await });
    }

    async fn call(&self, call: Call) -> Result<(), String> {
        let (answer, answered) = oneshot::channel();
        let over = || "the stream has ended".to_owned();
        self.0.calls.send((call, answer)).await.map_err(|_| over())?;
        answered.await.unwrap_or_else(|_| Err(over()))
    }
}

impl Carriers {
    /// Begins to carry a guest away; answers at once.
    pub fn send(&self, departure: Departure) -> Result<Outgoing, Error> {
        let dialer = self.dialer(&departure.carry.peer)?;
        let session = SessionId(departure.carry.session.into_bytes());
        let link = Link::dial(session, departure.to, dialer, link::Options::default());
        let (stage, staged) = watch::channel(Stage::Going);
        let (calls, called) = mpsc::channel(4);
        let outgoing = Outgoing(Arc::new(Inner { stage: staged, calls, link: link.progress() }));
        lock(&self.0.outgoing).insert(departure.vm, outgoing.clone());
        self.0.scope.spawn(run(self.clone(), departure, link, stage, called));
        Ok(outgoing)
    }
}

type Called = mpsc::Receiver<(Call, Answer)>;

async fn run(
    carriers: Carriers,
    departure: Departure,
    link: Link,
    stage: watch::Sender<Stage>,
    mut called: Called,
) {
    let watched = link.progress();
    let begun = tokio::select! {
        begun = begin(&carriers, &departure, link) => begun.map_err(|error| error.explain()),
        why = called_off(&mut called) => Err(why),
    };
    let ended = match begun {
        Ok(source) => {
            Way { departure: &departure, source, link: watched, stage: &stage }.go(&mut called).await
        }
        Err(why) => Err(why),
    };
    if let Err(why) = &ended {
        tracing::warn!(vm = %departure.vm, %why, "a guest's way out has failed");
        // A transfer that has not begun, or has ended by itself, has nothing to cancel.
        let _ = departure.client.migrate_cancel().await;
    }
    stage.send_replace(ended.map_or_else(|why| Stage::Failed { why }, |()| Stage::Over));
    let _ = departure.happened.send(Happened::Changed);
    // Later calls are told that it has ended.
    drop(called);
}

/// Until somebody gives up what has not begun.
async fn called_off(called: &mut Called) -> String {
    loop {
        match called.recv().await {
            None => return "nobody waits for it any more".to_owned(),
            Some((Call::Abort | Call::Finish, answer)) => {
                let _ = answer.send(Ok(()));
                return "cancelled".to_owned();
            }
            Some((_, answer)) => drop(answer.send(Err(Refused::NothingHeld.to_string()))),
        }
    }
}

async fn begin(carriers: &Carriers, departure: &Departure, link: Link) -> Result<Source, Error> {
    let (client, vault) = (&departure.client, &carriers.0.vault);
    let memory = client.query_memory_size().await?;
    let settings = Settings::for_guest(vault.page_key(departure.vm)?, memory, store_bytes(memory));
    let options =
        Options { settings, checkpoint: vault.checkpoint(departure.vm), keeper: vault.keeper(departure.vm) };
    let on = [Capability::Events, Capability::ReturnPath, Capability::AutoConverge];
    client.set_migration_capabilities(&on, &[Capability::PauseBeforeSwitchover]).await?;
    client.set_migration_parameters(&departure.parameters).await?;
    let path = departure.directory.join(SOCKET);
    let socket = carriers.socket_for_qemu(&path)?;
    client.migrate(&Address::Unix(path)).await?;
    let (stream, _) = tokio::time::timeout(OPEN_WITHIN, socket.accept())
        .await
        .map_err(|_| Error::NotOpened)?
        .map_err(Error::io("take qemu's migration socket"))?;
    Ok(Source::start(stream, link, options)?)
}

/// A stream that flows.
struct Way<'a> {
    departure: &'a Departure,
    source: Source,
    link: watch::Receiver<link::Progress>,
    stage: &'a watch::Sender<Stage>,
}

impl Way<'_> {
    async fn go(mut self, called: &mut Called) -> Result<(), String> {
        let mut look = tokio::time::interval(LOOK_EVERY);
        let mut up = Instant::now();
        let mut is_finishing = None;
        loop {
            tokio::select! {
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
                    self.stage.send_replace(Stage::Held);
                    let _ = self.departure.happened.send(Happened::TransferHeld);
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
