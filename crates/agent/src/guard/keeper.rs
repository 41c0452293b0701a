//! Talks to the guard, all the time: tells it who grants leases and what lives under one, asks for an epoch when it has none,
//! and tells the server what it says.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use sterna_guard::core::event::{Isolation, State, VmUnderLease};
use sterna_guard::core::id::{Epoch, HostId, VmId};
use sterna_guard::core::time::BootInstant;
use sterna_guard::core::vms::VMS_MAX;
use sterna_guard::core::voters::Voters;
use sterna_guard::shell::request::{PeerSettings, ProfileName, Request, Settings};
use sterna_model::ha::{GuardKey, GuardSeen, LeaseSeen};
use sterna_model::meta::Name;
use sterna_wire::assignment::{Assignment, GuardOrder};
use sterna_wire::up::Up;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};
use uuid::Uuid;

use super::line::{Answer, Broken, Health, Line, Report};
use super::{Refused, Ward, Wards};
use crate::vm::Reports;

const LOOK_EVERY: Duration = Duration::from_millis(500);
const RETRY_AFTER: Duration = Duration::from_millis(200);
/// A question to the server that has no answer by then is asked anew: an answer may not come later than the shortest lease.
const QUESTION_LASTS: Duration = Duration::from_secs(3);

/// What does not change while the agent runs.
pub struct Identity {
    pub name: Name,
    pub host: Uuid,
    pub key: GuardKey,
    pub addresses: Vec<std::net::SocketAddr>,
    pub socket: PathBuf,
}

/// The tasks' end.
pub struct Handle(mpsc::UnboundedSender<Call>);

enum Call {
    Begin(Ward, oneshot::Sender<Result<(), Refused>>),
    Enlist(Ward, oneshot::Sender<Result<(), Refused>>),
    Set(Uuid, Option<Ward>),
}

impl Handle {
    fn ask(
        &self,
        ward: Ward,
        call: impl FnOnce(Ward, oneshot::Sender<Result<(), Refused>>) -> Call,
    ) -> BoxFuture<'_, Result<(), Refused>> {
        let (answer, answered) = oneshot::channel();
        let sent = self.0.send(call(ward, answer));
        async move {
            let gone = || Refused::NotNow("the agent ends".to_owned());
            sent.map_err(|_| gone())?;
            answered.await.unwrap_or_else(|_| Err(gone()))
        }
        .boxed()
    }
}

impl Wards for Handle {
    fn begin(&self, ward: Ward) -> BoxFuture<'_, Result<(), Refused>> {
        self.ask(ward, Call::Begin)
    }

    fn enlist(&self, ward: Ward) -> BoxFuture<'_, Result<(), Refused>> {
        self.ask(ward, Call::Enlist)
    }

    fn set(&self, vm: Uuid, ward: Option<Ward>) {
        // The keeper ends with the agent.
        let _ = self.0.send(Call::Set(vm, ward));
    }
}

/// A question to the server for an epoch.
#[derive(Debug, Clone, Copy)]
struct Question {
    number: Uuid,
    /// The guard's clock before the server was asked.
    asked_at: BootInstant,
    since: Instant,
}

pub struct Keeper {
    identity: Identity,
    calls: mpsc::UnboundedReceiver<Call>,
    assigned: watch::Receiver<Option<Arc<Assignment>>>,
    seen: watch::Sender<Option<GuardSeen>>,
    reports: Arc<dyn Reports>,
    host: Arc<dyn Fn() -> Up + Send + Sync>,
    wards: BTreeMap<Uuid, Ward>,
    question: Option<Question>,
    /// As the guard has them.
    settings: Option<Settings>,
    /// What the guard said last; none while there is none.
    health: Option<Health>,
    returned: Option<u64>,
}

impl Keeper {
    /// `wards`: what an earlier agent had listed, all of it: what is missing the guard would let go.
    pub fn prepare(
        identity: Identity,
        wards: BTreeMap<Uuid, Ward>,
        assigned: watch::Receiver<Option<Arc<Assignment>>>,
        reports: Arc<dyn Reports>,
    ) -> (Handle, Unattached) {
        let (sender, calls) = mpsc::unbounded_channel();
        (Handle(sender), Unattached { identity, wards, calls, assigned, reports })
    }
}

/// A keeper that does not know yet how the host row is made.
pub struct Unattached {
    identity: Identity,
    wards: BTreeMap<Uuid, Ward>,
    calls: mpsc::UnboundedReceiver<Call>,
    assigned: watch::Receiver<Option<Arc<Assignment>>>,
    reports: Arc<dyn Reports>,
}

impl Unattached {
    #[must_use]
    pub fn attach(
        self,
        seen: watch::Sender<Option<GuardSeen>>,
        host: Arc<dyn Fn() -> Up + Send + Sync>,
    ) -> Keeper {
        Keeper {
            identity: self.identity,
            calls: self.calls,
            assigned: self.assigned,
            seen,
            reports: self.reports,
            host,
            wards: self.wards,
            question: None,
            settings: None,
            health: None,
            returned: None,
        }
    }
}

impl Keeper {
    /// Never ends.
    pub async fn run(mut self) {
        loop {
            let ended = match Line::connect(&self.identity.socket).await {
                Ok(line) => {
                    let Err(ended) = self.serve(line).await;
                    ended
                }
                Err(error) => error,
            };
            if self.health.take().is_some() {
                tracing::warn!(%ended, "the guard is away");
            }
            self.settings = None;
            self.tell();
            let pause = tokio::time::sleep(RETRY_AFTER);
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    Some(call) = self.calls.recv() => self.on_call_without_guard(call),
                }
            }
        }
    }

    async fn serve(&mut self, mut line: Line) -> Result<std::convert::Infallible, Broken> {
        self.tell_list(&mut line).await?;
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased; // A start waits, and so does an epoch that runs out.
                Some(call) = self.calls.recv() => self.on_call(&mut line, call).await?,
                Ok(()) = self.assigned.changed() => self.look(&mut line).await?,
                report = line.report() => self.on_report(report?),
                _ = look.tick() => self.look(&mut line).await?,
            }
        }
    }

    fn on_call_without_guard(&mut self, call: Call) {
        match call {
            Call::Begin(_, answer) | Call::Enlist(_, answer) => {
                let _ = answer.send(Err(Refused::NotNow("this host's guard does not answer".to_owned())));
            }
            Call::Set(vm, ward) => self.set(vm, ward),
        }
    }

    /// A longer list would be refused as a whole.
    fn is_full(&self, vm: Uuid) -> bool {
        self.wards.len() >= VMS_MAX && !self.wards.contains_key(&vm)
    }

    fn set(&mut self, vm: Uuid, ward: Option<Ward>) {
        match ward {
            Some(ward) => drop(self.wards.insert(vm, ward)),
            None => drop(self.wards.remove(&vm)),
        }
    }

    async fn on_call(&mut self, line: &mut Line, call: Call) -> Result<(), Broken> {
        match call {
            Call::Begin(ward, answer) | Call::Enlist(ward, answer) if self.is_full(ward.vm) => {
                let why = format!("this host's guard keeps {VMS_MAX} VMs and no more");
                let _ = answer.send(Err(Refused::NotNow(why)));
                Ok(())
            }
            Call::Begin(ward, answer) => {
                let before = self.wards.insert(ward.vm, Ward { starting: true, ..ward });
                let outcome = self.begin(line, ward).await;
                if !matches!(outcome, Ok(Ok(()))) {
                    // Nobody starts it. Whether the guard had said yes does not matter.
                    self.set(ward.vm, before);
                }
                match outcome {
                    Ok(Err(refused)) => {
                        let _ = answer.send(Err(refused));
                        self.tell_list(line).await
                    }
                    Ok(Ok(())) => {
                        let _ = answer.send(Ok(()));
                        Ok(())
                    }
                    Err(broken) => Err(broken),
                }
            }
            Call::Enlist(ward, answer) => {
                let outcome = self.enlist(line, ward).await?;
                let _ = answer.send(outcome);
                Ok(())
            }
            Call::Set(vm, ward) => {
                self.set(vm, ward);
                self.tell_list(line).await
            }
        }
    }

    async fn begin(&mut self, line: &mut Line, ward: Ward) -> Result<Result<(), Refused>, Broken> {
        self.tell_list(line).await?;
        let request =
            Request::MayStart { vm: VmId(ward.vm), vm_epoch: ward.epoch, host_epoch: Epoch(ward.host_epoch) };
        let Answer::Refused { why } = line.ask(&request).await? else { return Ok(Ok(())) };
        let health = self.refresh(line).await?;
        let why = format!("the guard refuses: {why}");
        let may_come = matches!(health.guard.lease, State::Held { epoch } if epoch == Epoch(ward.host_epoch));
        Ok(Err(if may_come { Refused::NotNow(why) } else { Refused::Over(why) }))
    }

    /// Under another epoch than the one that is held the guard would end it at once.
    async fn enlist(&mut self, line: &mut Line, ward: Ward) -> Result<Result<(), Refused>, Broken> {
        let health = self.refresh(line).await?;
        if health.guard.lease != (State::Held { epoch: Epoch(ward.host_epoch) }) {
            return Ok(Err(Refused::NotNow(format!("this host does not hold lease {}", ward.host_epoch))));
        }
        self.wards.insert(ward.vm, ward);
        self.tell_list(line).await?;
        Ok(Ok(()))
    }

    async fn tell_list(&mut self, line: &mut Line) -> Result<(), Broken> {
        let of = |ward: &Ward| VmUnderLease {
            vm: VmId(ward.vm),
            epoch: ward.epoch,
            host_epoch: Epoch(ward.host_epoch),
            isolation: Isolation::Kill,
            starting: ward.starting,
        };
        let request = Request::Vms { vms: self.wards.values().map(of).collect() };
        // Until an earlier agent's process has ended the guard listens to that one.
        match line.ask(&request).await? {
            Answer::Refused { why } => {
                tracing::warn!(why, "the guard does not take the list");
                Err(Broken::Silent)
            }
            _ => Ok(()),
        }
    }

    async fn refresh(&mut self, line: &mut Line) -> Result<Health, Broken> {
        match line.ask(&Request::Status {}).await? {
            Answer::Status(health) => {
                self.health = Some((*health).clone());
                Ok(*health)
            }
            _ => Err(Broken::Silent),
        }
    }

    /// What the guard says, what it is to be told, and what the server is.
    async fn look(&mut self, line: &mut Line) -> Result<(), Broken> {
        let mut health = self.refresh(line).await?;
        let order = self.assigned.borrow().as_ref().and_then(|assignment| assignment.guard.clone());
        if let Some(order) = order.filter(|order| order.host == self.identity.host) {
            self.configure(line, &order, &health).await?;
            if self.pass_on_epoch(line, &order).await? || order.release && self.release(line, &health).await?
            {
                health = self.refresh(line).await?;
            }
            self.ask_for_epoch(&order, &health);
        }
        self.tell();
        Ok(())
    }

    async fn configure(
        &mut self,
        line: &mut Line,
        order: &GuardOrder,
        health: &Health,
    ) -> Result<(), Broken> {
        let settings = match settings(order) {
            Ok(settings) => settings,
            Err(error) => {
                tracing::error!(error, "the voters are not understood");
                return Ok(());
            }
        };
        let has_version = health.guard.configuration == Some(settings.version);
        if has_version && self.settings.as_ref() == Some(&settings) {
            return Ok(());
        }
        match line.ask(&Request::Configure(settings.clone())).await? {
            Answer::Refused { why } => tracing::warn!(why, "the guard does not take the voters"),
            _ => self.settings = Some(settings),
        }
        Ok(())
    }

    /// Only the answer to the newest question may reach the guard: an older one is about an epoch that has run out.
    async fn pass_on_epoch(&mut self, line: &mut Line, order: &GuardOrder) -> Result<bool, Broken> {
        let Some(joined) = order.joined else { return Ok(false) };
        let Some(question) = self.question.take_if(|question| question.number == joined.question) else {
            return Ok(false);
        };
        line.ask(&Request::Join { epoch: Epoch(joined.epoch), asked_at: question.asked_at }).await?;
        Ok(true)
    }

    async fn release(&mut self, line: &mut Line, health: &Health) -> Result<bool, Broken> {
        if !matches!(health.guard.lease, State::Held { .. } | State::Candidate { .. }) {
            return Ok(false);
        }
        line.ask(&Request::Release {}).await?;
        Ok(true)
    }

    fn ask_for_epoch(&mut self, order: &GuardOrder, health: &Health) {
        let is_free = health.guard.lease == State::NoEpoch && !health.guard.is_killing;
        let is_ready = health.guard.configuration == Some(order.voters.version)
            // The voters were most likely started with it, and say nothing yet either.
            && health.guard.silent_for.is_zero();
        if !is_free || !is_ready || order.release {
            self.question = None;
            return;
        }
        if self.question.is_none_or(|question| question.since.elapsed() >= QUESTION_LASTS) {
            let (number, asked_at) = (Uuid::new_v4(), health.guard.now);
            self.question = Some(Question { number, asked_at, since: Instant::now() });
        }
    }

    /// The host row, if something of it has changed.
    fn tell(&mut self) {
        let seen = Some(self.seen());
        let is_news = self.seen.send_if_modified(|before| {
            let is_news = *before != seen;
            before.clone_from(&seen);
            is_news
        });
        if is_news {
            self.reports.report((self.host)());
        }
    }

    fn seen(&self) -> GuardSeen {
        let health = self.health.as_ref();
        let trouble = match health {
            None => Some(format!("no guard answers at {}", self.identity.socket.display())),
            Some(health) => health.watchdog_error.clone(),
        };
        GuardSeen {
            key: self.identity.key.clone(),
            addresses: self.identity.addresses.clone(),
            watchdog: health.map_or_else(|| "none".to_owned(), |health| health.watchdog.clone()),
            lease: health.map_or(LeaseSeen::None, |health| lease(health.guard.lease)),
            configuration: health.and_then(|health| health.guard.configuration),
            confirmed: health.and_then(|health| health.guard.confirmed_configuration),
            asks: self.question.map(|question| question.number),
            returned: self.returned,
            trouble,
        }
    }

    fn on_report(&mut self, report: Report) {
        let event = |what: &str, why: String| Up::Event {
            kind: "host".to_owned(),
            name: self.identity.name.clone(),
            what: what.to_owned(),
            why,
        };
        let told = match report {
            Report::Frozen { vms } => {
                event("lease-short", format!("{vms} VMs are frozen until its lease is renewed"))
            }
            Report::Thawed { vms } => event("lease-renewed", format!("{vms} VMs go on")),
            Report::Killing { vm, why } => event("lease-over", format!("VM {vm} is ended: {why}")),
            Report::Fenced { fenced } => {
                event("fenced-by-voters", format!("no epoch up to {fenced} is renewed"))
            }
            Report::Lease { state: State::Expired { epoch } } => {
                event("lease-expired", format!("epoch {epoch} is over"))
            }
            Report::Released { epoch } => {
                self.returned = Some(epoch.0);
                return;
            }
            Report::JoinRefused { epoch, why } => {
                tracing::info!(%epoch, why, "the guard does not take an epoch");
                return;
            }
            Report::ConfigurationRefused { version, why } => {
                tracing::warn!(version, why, "the guard does not take the voters");
                return;
            }
            Report::VmsRefused { count, limit } => {
                event("guard-full", format!("{count} VMs are more than the {limit} that a guard can keep"))
            }
            Report::Lease { .. } | Report::Other => return,
        };
        self.reports.report(told);
    }
}

fn lease(state: State) -> LeaseSeen {
    match state {
        State::NoEpoch => LeaseSeen::None,
        State::Candidate { epoch } => LeaseSeen::Candidate { epoch: epoch.0 },
        State::Held { epoch } => LeaseSeen::Held { epoch: epoch.0 },
        State::Expired { epoch } => LeaseSeen::Expired { epoch: epoch.0 },
    }
}

/// The same in the guard's words.
fn settings(order: &GuardOrder) -> Result<Settings, String> {
    let voters = &order.voters;
    let peers = voters.peers.iter().map(|(host, peer)| {
        let key = peer.key.as_str().parse().map_err(|error| format!("key of {}: {error}", peer.name))?;
        Ok((HostId(*host), PeerSettings { key, addresses: peer.addresses.clone() }))
    });
    Ok(Settings {
        version: voters.version,
        voters: voters.voters.iter().copied().map(HostId).collect::<Voters>(),
        fencers: voters.fencers.iter().copied().map(HostId).collect(),
        profile: ProfileName::Named(voters.profile.as_str().to_owned()),
        peers: peers.collect::<Result<_, String>>()?,
    })
}

#[cfg(test)]
mod tests;
