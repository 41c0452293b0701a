//! Asks the guest, beside everything else: its agent, its counters, and the checks of its order. Ends when it is dropped.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use sterna_model::health::{CheckAction, CheckReport, HealthCheck};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use super::Fault;
use super::check::{self, Standing, Turned};
use super::pulse::{self, Pulse, Sample};
use crate::hypervisor::Guest;

/// What a monitor was made for: another start, reset or order needs another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    pub epoch: u64,
    pub restarts: u32,
    /// By the host, and by people.
    pub resets: (u32, u64),
    pub checks: Vec<HealthCheck>,
    pub at: Option<Ipv4Addr>,
}

/// What a monitor tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    Fault(Fault),
    /// A check's state changed: see [`Monitor::reports`].
    Checks,
    /// For people: what happened to a check.
    Turned {
        what: &'static str,
        why: String,
    },
}

pub struct Monitor {
    pub subject: Subject,
    heard: mpsc::UnboundedReceiver<Heard>,
    standings: Vec<watch::Receiver<Standing>>,
    _tasks: JoinSet<()>,
}

impl Monitor {
    pub fn start<G: Guest>(subject: Subject, guest: &G) -> Self {
        let (told, heard) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        tasks.spawn(watch_pulse(guest.clone(), told.clone()));
        let mut standings = Vec::new();
        for check in &subject.checks {
            let (standing, seen) = watch::channel(Standing::default());
            standings.push(seen);
            let asker = Asker { check: Arc::new(check.clone()), guest: guest.clone(), at: subject.at };
            tasks.spawn(asker.run(standing, told.clone()));
        }
        Self { subject, heard, standings, _tasks: tasks }
    }

    /// The next thing to tell. May be dropped and called again.
    pub async fn heard(&mut self) -> Option<Heard> {
        self.heard.recv().await
    }

    #[must_use]
    pub fn reports(&self) -> Vec<CheckReport> {
        let both = self.subject.checks.iter().zip(&self.standings);
        both.map(|(check, standing)| standing.borrow().report(check)).collect()
    }
}

/// Says of a guest that hangs so at every look.
async fn watch_pulse<G: Guest>(guest: G, told: mpsc::UnboundedSender<Heard>) {
    let begun = Instant::now();
    let mut pulse = Pulse::default();
    let mut every = tokio::time::interval(pulse::ASK_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let (answered, activity) = tokio::join!(guest.ping(pulse::ANSWER_WITHIN), guest.activity());
        let (has_answered, activity) = (answered.is_ok(), activity.ok());
        let sample = Sample { at: begun.elapsed(), has_answered, activity };
        if let Some(why) = pulse.on(sample)
            && told.send(Heard::Fault(Fault::Hung { why })).is_err()
        {
            return;
        }
    }
}

/// One check.
struct Asker<G> {
    check: Arc<HealthCheck>,
    guest: G,
    at: Option<Ipv4Addr>,
}

impl<G: Guest> Asker<G> {
    async fn run(self, standing: watch::Sender<Standing>, told: mpsc::UnboundedSender<Heard>) {
        let mut every = tokio::time::interval(self.check.interval.0.max(Duration::from_millis(1)));
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            let answer = check::ask(&self.check, &self.guest, self.at).await;
            let mut now = standing.borrow().clone();
            let turned = now.on(answer, self.check.failures);
            standing.send_replace(now);
            for heard in self.tell(turned) {
                if told.send(heard).is_err() {
                    return;
                }
            }
        }
    }

    fn tell(&self, turned: Turned) -> Vec<Heard> {
        let check = self.check.probe.words();
        match turned {
            Turned::Nothing => vec![],
            Turned::NotUp => vec![Heard::Checks],
            Turned::Healthy => {
                vec![Heard::Checks, Heard::Turned { what: "healthy", why: format!("check {check} passes") }]
            }
            Turned::Unhealthy { why } => {
                let told = Heard::Turned { what: "unhealthy", why: format!("check {check} fails: {why}") };
                let fault = (self.check.action == CheckAction::Restart)
                    .then_some(Heard::Fault(Fault::Check { check, why }));
                [Heard::Checks, told].into_iter().chain(fault).collect()
            }
        }
    }
}
