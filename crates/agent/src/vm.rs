//! One task owns one VM on this host.
//!
//! ```text
//! assignment --watch--> [ Vm: order, body, notes ] --> report
//!                          |  decide::next -> Step
//!                          v
//!                    one job at a time (`steps`) --> Hypervisor, Resources, Records
//! ```
//!
//! The task never waits for a job: it hears of its end. What to do is decided in [`decide`], purely; each job
//! does one step and answers what it found.

/// Finds what runs after a restart of the agent.
pub mod adopt;
/// What is here of every VM, for inventories.
pub mod board;
/// Has a guest asked whether it is well, for as long as that may be asked.
mod care;
/// The next step: a pure function.
pub mod decide;
/// Asks guests that were moved here whether they answer.
mod echo;
/// All tasks, and who gets which order.
pub mod fleet;
/// Guests that fail while their QEMU is well.
pub mod health;
/// Measures what a guest uses.
mod load;
/// Both sides of a live migration.
mod migrate;
/// Power states and exits.
pub mod power;
/// What must not be forgotten.
pub mod record;
/// What is told to the server.
mod report;
/// Whether and when a copy that ended unasked is started again: a pure function.
pub mod restart;
/// Makes copies ready and starts them.
mod start;
/// Carries out steps.
mod steps;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sterna_base::clock::Clock;
use sterna_model::meta::Name;
use sterna_model::vm::VmReport;
use sterna_wire::assignment::VmAssignment;
use sterna_wire::up::Up;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::guard::{Ward, Wards};
use crate::hypervisor::{Happened, Happenings, Hypervisor, Pause, Run, Transfer, View};
use crate::resources::Resources;
use board::Board;
use decide::{Body, Due, Known, Order, Step};
use health::Fault;
use health::monitor::Monitor;
use record::{Cause, Notes, Records, Seen};
use restart::{Past, Turn};
use steps::{Outcome, Work};

/// How often the power button is pressed while a guest has not shut down: one that boots does not hear it.
const PRESS_EVERY: Duration = Duration::from_secs(5);
/// How often a failed disk is tried again.
const RETRY_IO_EVERY: Duration = Duration::from_secs(5);
/// After something that did not work and may work later.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Events tell of each change at once; this only catches what they missed.
const LOOK_EVERY: Duration = Duration::from_secs(10);
const LOOK_EVERY_MIGRATING: Duration = Duration::from_secs(1);
/// While a restart in place waits: a server that is back may know better.
const LOOK_EVERY_CRASHED: Duration = Duration::from_secs(1);
/// For the end of a stream that was let go. Nothing has run here yet: giving up costs a pause, and no guest.
const LOAD_PATIENCE: Duration = Duration::from_secs(20);

/// Where reports go.
pub trait Reports: Send + Sync + 'static {
    fn report(&self, up: Up);
}

/// Everything a VM's task reaches the world through.
pub struct Ports<H: Hypervisor, R> {
    pub hypervisor: H,
    pub resources: R,
    pub records: Arc<dyn Records>,
    pub clock: Arc<dyn Clock>,
    pub reports: Arc<dyn Reports>,
    pub board: Arc<Board>,
    pub guests: Guests<H::Guest>,
    /// The server hears us.
    pub link: watch::Receiver<bool>,
    /// What lives under the host's lease.
    pub wards: Arc<dyn Wards>,
}

/// Owned copies that run now, for what is done to them beside their own task.
pub struct Guests<G>(Mutex<HashMap<Uuid, G>>);

impl<G> Default for Guests<G> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<G: Clone> Guests<G> {
    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, G>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[must_use]
    pub fn get(&self, uid: Uuid) -> Option<G> {
        self.lock().get(&uid).cloned()
    }
}

/// A job under way.
struct Job<G> {
    step: Step,
    superseded: CancellationToken,
    handle: JoinHandle<Outcome<G>>,
}

/// A task that ends takes its job with it: two agents must never act on one VM.
impl<G> Drop for Job<G> {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

/// Clocks of what becomes due.
struct Timers {
    asked: Option<Instant>,
    pressed: Option<Instant>,
    ran: Option<Instant>,
    /// Nothing is tried before this.
    not_before: Option<Instant>,
    /// Since when an arriving guest is this host's.
    owned: Option<Instant>,
    looked: Instant,
}

/// The task's state.
pub struct Vm<H: Hypervisor, R: Resources> {
    name: Name,
    uid: Uuid,
    ports: Arc<Ports<H, R>>,
    order: watch::Receiver<Order>,
    /// Its order before this agent started.
    kept: Option<VmAssignment>,
    body: Body,
    guest: Option<H::Guest>,
    happenings: Option<Happenings>,
    notes: Option<Notes>,
    seen: Option<Seen>,
    job: Option<Job<H::Guest>>,
    /// What a start waits for, while one does.
    starting: watch::Sender<Option<(u64, String)>>,
    /// The body may have changed since it was looked at.
    is_stale: bool,
    /// The copy was lost while the present job was under way: that it fails is no reason to wait.
    is_lost_meanwhile: bool,
    timers: Timers,
    sender: Option<migrate::Watcher>,
    load: Option<load::Sampler>,
    echo: echo::Echo,
    monitor: Option<Monitor>,
    /// What is wrong with the guest, until something was done about it.
    fault: Option<Fault>,
    /// After so long a guest that was moved here answered; not noted yet.
    answered: Option<Duration>,
    is_cancelling: bool,
    /// Why, when nobody had ordered it.
    given_up: Option<migrate::Hopeless>,
    reported: Option<VmReport>,
    /// As the guard was last told by this task.
    ward: Option<Option<Ward>>,
    is_forgotten: bool,
}

impl<H: Hypervisor, R: Resources> Vm<H, R> {
    /// `kept`: its order before this agent started, for as long as there is no newer one.
    pub fn new(
        name: Name,
        uid: Uuid,
        ports: Arc<Ports<H, R>>,
        order: watch::Receiver<Order>,
        kept: Option<VmAssignment>,
    ) -> Self {
        let now = Instant::now();
        let timers =
            Timers { asked: None, pressed: None, ran: None, not_before: None, owned: None, looked: now };
        Self {
            name,
            uid,
            ports,
            order,
            kept,
            body: Body::Unknown,
            guest: None,
            happenings: None,
            notes: None,
            seen: None,
            job: None,
            starting: watch::Sender::new(None),
            is_stale: false,
            is_lost_meanwhile: false,
            timers,
            sender: None,
            load: None,
            echo: echo::Echo::default(),
            monitor: None,
            fault: None,
            answered: None,
            is_cancelling: false,
            given_up: None,
            reported: None,
            ward: None,
            is_forgotten: false,
        }
    }

    /// Runs until every trace of the VM is removed and nothing new was ordered. Answers whether it may be
    /// dropped; never ends otherwise.
    pub async fn run(&mut self) {
        self.is_forgotten = false;
        let mut starting = self.starting.subscribe();
        while !self.is_forgotten {
            self.begin_next();
            self.mind_the_lease();
            self.tell();
            let wake = self.next_wake();
            tokio::select! {
                biased;
                happened = next_happening(&mut self.happenings) => self.on_happened(happened),
                outcome = finished(&mut self.job) => self.on_outcome(outcome),
                changed = self.order.changed() => match changed {
                    Ok(()) => self.supersede(),
                    Err(_) => return,
                },
                answered = self.echo.heard() => self.answered = answered,
                heard = care::heard(&mut self.monitor) => self.on_heard(heard),
                _ = starting.changed() => {}
                () = tokio::time::sleep_until(wake) => self.on_time(),
            }
        }
        // That nothing is left here.
        self.tell();
    }

    fn on_happened(&mut self, happened: Happened) {
        let is_busy = self.job.is_some();
        match (happened, &mut self.body) {
            (Happened::Lost, _) => {
                self.guest = None;
                self.happenings = None;
                self.body = Body::Unknown;
                self.timers.not_before = None;
                self.is_lost_meanwhile = is_busy;
            }
            // The shortest way from QEMU's word to the handover: no question in between.
            (Happened::TransferCompleted, Body::Alive(view)) if !is_busy => {
                view.transfer = Transfer::Completed;
                self.is_stale = true;
            }
            (Happened::WatchdogBit, _) => self.fault = Some(Fault::Watchdog),
            (Happened::TransferHeld, Body::Alive(view)) if !is_busy => view.transfer = Transfer::Held,
            (Happened::Resumed, Body::Alive(view)) if !is_busy => view.run = Run::Running,
            _ => self.is_stale = true,
        }
    }

    fn on_time(&mut self) {
        if self.timers.looked.elapsed() >= self.look_every() {
            self.timers.looked = Instant::now();
            self.is_stale = true;
        }
    }

    fn look_every(&self) -> Duration {
        match &self.body {
            Body::Alive(View { transfer: Transfer::Going | Transfer::Held, .. }) => LOOK_EVERY_MIGRATING,
            Body::Crashed(_) => LOOK_EVERY_CRASHED,
            _ => LOOK_EVERY,
        }
    }

    fn next_wake(&self) -> Instant {
        let mut wake = self.timers.looked + self.look_every();
        let mut at_latest = |at: Instant| wake = wake.min(at);
        if self.job.is_none() {
            self.timers.not_before.into_iter().for_each(&mut at_latest);
        }
        if let (Some(asked), Some(pressed)) = (self.timers.asked, self.timers.pressed) {
            at_latest(asked + self.shutdown_timeout());
            at_latest(pressed + PRESS_EVERY);
        }
        self.timers.owned.into_iter().for_each(|owned| at_latest(owned + LOAD_PATIENCE));
        if matches!(&self.body, Body::Alive(View { run: Run::Paused(Pause::IoError(_)), .. })) {
            self.timers.ran.into_iter().for_each(|ran| at_latest(ran + RETRY_IO_EVERY));
        }
        if let Turn::After(left) = self.restart_turn() {
            at_latest(Instant::now() + left);
        }
        // Something overdue waits for the present job: no need to spin.
        let soonest = Instant::now() + Duration::from_millis(5);
        wake.max(soonest)
    }

    fn shutdown_timeout(&self) -> Duration {
        let order = self.order.borrow();
        match (order.owner(), &*order) {
            (Some(owner), _) => owner.shutdown_timeout.0,
            (None, Order::Given(_)) => Duration::MAX / 4,
            _ => Duration::from_secs(86_400),
        }
    }

    fn due(&self) -> Due {
        let is_over = |at: Option<Instant>, after: Duration| at.is_none_or(|at| at.elapsed() >= after);
        let is_ordered = self.order.borrow().owner().is_some_and(|owner| owner.outgoing.is_some());
        Due {
            switch_off: self.timers.asked.is_some() && is_over(self.timers.asked, self.shutdown_timeout()),
            press: is_over(self.timers.pressed, PRESS_EVERY),
            retry_io: is_over(self.timers.ran, RETRY_IO_EVERY),
            is_stalled: self.sender.as_ref().is_some_and(|sender| sender.is_stalled(is_ordered)),
            hopeless: self.given_up.or_else(|| self.sender.as_ref().and_then(migrate::Watcher::hopeless)),
            is_cancelling: self.is_cancelling,
            is_overdue: self.timers.owned.is_some_and(|since| since.elapsed() >= LOAD_PATIENCE),
            restart: self.restart_turn(),
            may_reset: self.notes.as_ref().is_none_or(|n| n.resets.may_reset(self.ports.clock.now())),
        }
    }

    /// What a crashed copy waits for.
    fn restart_turn(&self) -> Turn {
        let (Body::Crashed(crash), Some(notes)) = (&self.body, &self.notes) else { return Turn::default() };
        let order = self.order.borrow();
        let kept = restart::recalled(self.kept.as_ref(), self.seen.as_ref(), Some(notes));
        let owner = order.owner().or(kept.map(|(_, owner)| owner));
        let carried = owner.and_then(|owner| owner.restart_here).unwrap_or(0);
        let past = Past { carried, restarts: &notes.restarts, began: notes.began };
        restart::turn(past, crash, self.ports.clock.now(), *self.ports.link.borrow())
    }

    /// Decides and begins the next step, unless a job is under way.
    fn begin_next(&mut self) {
        if self.order.has_changed().unwrap_or(false) {
            self.supersede();
        }
        let order = self.order.borrow_and_update().clone();
        self.mind_the_arrival(&order);
        self.mind_the_health(&order);
        if self.job.is_some() || self.timers.not_before.is_some_and(|at| at > Instant::now()) {
            return;
        }
        self.timers.not_before = None;
        if let (Some(after), Body::Alive(_)) = (self.answered.take(), &self.body) {
            return self.begin(Step::Wait, |work| work.note_answer(after));
        }
        let step = self.decide(&order);
        if self.body == Body::Unknown && !matches!(step, Step::Kill(_)) {
            return self.begin(Step::Wait, Work::look);
        }
        if self.is_stale && matches!(step, Step::Wait) {
            self.is_stale = false;
            if let Body::Alive(_) = self.body {
                return self.begin(Step::Wait, Work::refresh);
            }
            return;
        }
        if step == Step::Wait || step == Step::Refuse {
            return;
        }
        tracing::debug!(vm = %self.name, ?step, "vm step");
        self.note_time(&step);
        let order = match (order, &self.kept) {
            // What was decided before the server was heard rests on what it said last.
            (Order::Unknown, Some(kept)) if matches!(step, Step::StartAgain { .. } | Step::Run) => {
                Order::Given(Box::new(kept.clone()))
            }
            (order, _) => order,
        };
        self.begin(step.clone(), |work| work.perform(step, order));
    }

    /// A copy stays in the guard's list until nothing of it is left.
    fn mind_the_lease(&mut self) {
        // Such a job tells the guard by itself, and before it says what it found.
        let tells_itself = |step: &Step| {
            matches!(step, Step::Start | Step::StartAgain { .. } | Step::Receive | Step::Enlist(_))
        };
        if self.job.as_ref().is_some_and(|job| tells_itself(&job.step)) {
            self.ward = None;
            return;
        }
        let ward = match (&self.body, &self.notes) {
            (Body::Alive(_), Some(notes)) => notes.lease.map(|host_epoch| Ward {
                vm: self.uid,
                epoch: notes.epoch,
                host_epoch,
                starting: false,
            }),
            // A crashed one is listed anew before it is started again.
            (Body::Absent | Body::Ended(_) | Body::Crashed(_), _) => None,
            _ => return,
        };
        if self.ward != Some(ward) {
            self.ward = Some(ward);
            self.ports.wards.set(self.uid, ward);
        }
    }

    fn mind_the_arrival(&mut self, order: &Order) {
        let is_incoming =
            self.notes.as_ref().is_some_and(|notes| matches!(notes.title, record::Title::Incoming(_)));
        match order.owner() {
            Some(_) if is_incoming => drop(self.timers.owned.get_or_insert_with(Instant::now)),
            _ => self.timers.owned = None,
        }
    }

    fn decide(&self, order: &Order) -> Step {
        let (notes, seen) = (self.notes.as_ref(), self.seen.as_ref());
        let (kept, fault) = (self.kept.as_ref(), self.fault.as_ref());
        decide::next(Known { order, body: &self.body, notes, seen, kept, fault, due: self.due() })
    }

    fn note_time(&mut self, step: &Step) {
        let now = Some(Instant::now());
        match step {
            Step::PressPowerButton => {
                self.timers.asked = self.timers.asked.or(now);
                self.timers.pressed = now;
            }
            Step::Run | Step::RetryIo => self.timers.ran = now,
            Step::CancelSend => (self.given_up, self.is_cancelling) = (self.due().hopeless, true),
            Step::Send => (self.given_up, self.is_cancelling) = (None, false),
            Step::Relent | Step::Start | Step::StartAgain { .. } | Step::Receive => self.timers.asked = None,
            _ => {}
        }
    }

    fn begin<F>(&mut self, step: Step, perform: impl FnOnce(Work<H, R>) -> F)
    where
        F: Future<Output = Outcome<H::Guest>> + Send + 'static,
    {
        let superseded = CancellationToken::new();
        let work = Work {
            name: self.name.clone(),
            uid: self.uid,
            ports: Arc::clone(&self.ports),
            guest: self.guest.clone(),
            notes: self.notes.clone(),
            seen: self.seen.clone(),
            superseded: superseded.clone(),
            starting: self.starting.clone(),
        };
        self.job = Some(Job { step, superseded, handle: tokio::spawn(perform(work)) });
    }

    /// There is a newer order than the one that the job was begun for.
    fn supersede(&self) {
        if let Some(job) = &self.job {
            job.superseded.cancel();
        }
    }

    fn on_outcome(&mut self, outcome: Option<Outcome<H::Guest>>) {
        let step = self.job.take().map(|job| job.step.clone());
        self.starting.send_replace(None);
        let Some(outcome) = outcome else {
            // A defect in a job must not cost the VM its task: look again.
            tracing::error!(vm = %self.name, ?step, "vm step panicked");
            self.body = Body::Unknown;
            self.timers.not_before = Some(Instant::now() + RETRY_AFTER);
            return;
        };
        let is_lost = std::mem::take(&mut self.is_lost_meanwhile);
        self.notes = outcome.notes;
        self.seen = outcome.seen;
        match outcome.found {
            steps::Found::Alive { guest, happenings, view } => self.on_attached(guest, happenings, view),
            // The copy was lost while the job was under way: its answer is about what was.
            steps::Found::Same(_) if self.guest.is_none() => self.body = Body::Unknown,
            steps::Found::Same(view) => self.body = Body::Alive(view),
            steps::Found::Gone(body) => self.on_gone(body),
            steps::Found::Forgotten => self.is_forgotten = true,
            steps::Found::Again => {}
        }
        if let Some(why) = outcome.trouble {
            tracing::warn!(vm = %self.name, ?step, %why, "vm step did not succeed");
            self.timers.not_before = (!is_lost).then(|| Instant::now() + RETRY_AFTER);
            self.is_stale = true;
        }
        if step == Some(Step::Continue) {
            self.ask_whether_it_answers();
        }
        if matches!(step, Some(Step::Cure(_) | Step::Reset(_))) {
            self.fault = None;
        }
        if self.notes.as_ref().is_some_and(|notes| notes.ending == Some(Cause::Asked)) {
            self.timers.asked.get_or_insert_with(Instant::now);
        }
        self.mind_the_transfer();
    }

    fn ask_whether_it_answers(&mut self) {
        let order = self.order.borrow();
        let nics = order.owner().map(|owner| &owner.machine.hardware.nics);
        let at = nics.and_then(|nics| nics.iter().find_map(|nic| nic.address));
        if let (Some(at), Some(guest)) = (at, &self.guest) {
            self.echo.start(guest.clone(), at);
        }
    }

    fn on_attached(&mut self, guest: H::Guest, happenings: Happenings, view: View) {
        self.load = Some(load::Sampler::start(self.name.clone(), self.uid, guest.clone(), &self.ports));
        self.guest = Some(guest);
        self.happenings = Some(happenings);
        self.body = Body::Alive(view);
    }

    fn on_gone(&mut self, body: Body) {
        self.guest = None;
        self.happenings = None;
        self.load = None;
        self.fault = None;
        self.echo.stop();
        self.ports.guests.lock().remove(&self.uid);
        self.timers.asked = None;
        self.timers.pressed = None;
        self.body = body;
    }

    /// A source's transfer is watched while it goes.
    fn mind_the_transfer(&mut self) {
        let sending =
            self.notes.as_ref().filter(|notes| notes.is_sending()).and_then(|n| n.migration.as_ref());
        match (sending, &self.guest, &self.sender) {
            (Some(report), Some(guest), None) => {
                let (migration, reports) = (report.migration.clone(), Arc::clone(&self.ports.reports));
                let outgoing = self.order.borrow().owner().and_then(|owner| owner.outgoing.clone());
                self.sender = Some(migrate::Watcher::start(migration, guest.clone(), reports, outgoing));
            }
            (None, _, Some(_)) | (_, None, Some(_)) => self.sender = None,
            _ => {}
        }
        if let Some(load) = &self.load {
            let is_quiet = self.notes.as_ref().is_some_and(|notes| {
                notes.title == record::Title::Owner && !notes.is_sending() && !notes.is_handed_over()
            });
            match (&self.guest, is_quiet) {
                (Some(guest), true) => drop(self.ports.guests.lock().insert(self.uid, guest.clone())),
                _ => drop(self.ports.guests.lock().remove(&self.uid)),
            }
            load.allow(is_quiet && matches!(&self.body, Body::Alive(view) if view.run == Run::Running));
        }
    }
}

async fn next_happening(happenings: &mut Option<Happenings>) -> Happened {
    match happenings {
        Some(happenings) => happenings.recv().await.unwrap_or(Happened::Lost),
        None => std::future::pending().await,
    }
}

async fn finished<G>(job: &mut Option<Job<G>>) -> Option<Outcome<G>> {
    match job {
        Some(job) => (&mut job.handle).await.ok(),
        None => std::future::pending().await,
    }
}
