//! Carries out what `plan::ha::power` orders of fence devices: one task a host, which runs agents one after the other.
//!
//! Decides nothing: what was said is handed to the next round, and counts there only for the order that it was said under.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sterna_base::backoff::Backoff;
use sterna_model::fence::PowerState;
use sterna_model::meta::Name;
use sterna_plan::View;
use sterna_plan::ha::power::{self, Heard, Order, Said, Task};
use sterna_power::{Agents, OFF_WITHIN, STATUS_WITHIN};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;
use tokio::time::sleep;

/// A device that broke is to be known before it is needed.
const LOOK_EVERY: Duration = Duration::from_secs(3600);
/// One that failed may have been mended.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(60);
/// Agents are large programs; a leader that has just begun looks at all devices.
const LOOKS_MAX: usize = 8;
/// Between two tries to switch off.
const TRY_FIRST: Duration = Duration::from_secs(1);
const TRY_MAX: Duration = Duration::from_secs(10);
/// Said and not taken over yet.
const SAID_MAX: usize = 64;

pub struct Devices {
    agents: Agents,
    looks: Arc<Semaphore>,
    tasks: BTreeMap<Name, Running>,
    sender: mpsc::Sender<(Name, Said)>,
    said: mpsc::Receiver<(Name, Said)>,
    heard: Heard,
}

/// Ends its task, and the agent that this one runs, when it is dropped.
struct Running {
    order: Order,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Devices {
    pub fn new(agents: PathBuf) -> Self {
        let (sender, said) = mpsc::channel(SAID_MAX);
        Self {
            agents: Agents::in_dir(agents),
            looks: Arc::new(Semaphore::new(LOOKS_MAX)),
            tasks: BTreeMap::new(),
            sender,
            said,
            heard: Heard::new(),
        }
    }

    /// Takes over what is to be done; what is done under an order that still stands goes on.
    pub fn learn(&mut self, view: &View) {
        let orders = power::orders(view);
        self.tasks.retain(|name, running| orders.get(name) == Some(&running.order));
        self.heard.retain(|name, said| orders.get(name) == Some(&said.order));
        for (name, order) in orders {
            if self.tasks.contains_key(&name) {
                continue;
            }
            let work = Work {
                name: name.clone(),
                order: order.clone(),
                agents: self.agents.clone(),
                looks: Arc::clone(&self.looks),
                said: self.sender.clone(),
            };
            let task = tokio::spawn(work.run()).abort_handle();
            self.tasks.insert(name, Running { order, task });
        }
    }

    #[must_use]
    pub fn heard(&self) -> &Heard {
        &self.heard
    }

    /// Returns when a device has said something. May be dropped and called again.
    pub async fn changed(&mut self) {
        if let Some((name, said)) = self.said.recv().await {
            let is_news = self.heard.get(&name) != Some(&said);
            // Of an order that does not stand any more it would be forgotten with the next look at the view.
            let stands = self.tasks.get(&name).is_some_and(|running| running.order == said.order);
            if is_news && stands {
                self.heard.insert(name, said);
            }
        }
    }

    /// Whoever leads next does it.
    pub fn rest(&mut self) {
        self.tasks.clear();
        self.heard.clear();
    }
}

/// What one task needs.
struct Work {
    name: Name,
    order: Order,
    agents: Agents,
    looks: Arc<Semaphore>,
    said: mpsc::Sender<(Name, Said)>,
}

impl Work {
    async fn run(self) {
        match self.order.task {
            Task::Look { .. } => self.look().await,
            Task::SwitchOff { .. } => self.switch_off().await,
        }
    }

    async fn look(self) {
        loop {
            let outcome = {
                // Never closed.
                let _turn = self.looks.acquire().await;
                self.agents.status(&self.order.device, STATUS_WITHIN).await
            };
            let pause = if outcome.is_ok() { LOOK_EVERY } else { LOOK_AGAIN_AFTER };
            self.say(outcome.map_err(|failed| failed.0)).await;
            sleep(pause).await;
        }
    }

    async fn switch_off(self) {
        let mut backoff = Backoff::new(TRY_FIRST, TRY_MAX);
        tracing::warn!(host = %self.name, agent = self.order.device.agent, "switching off");
        loop {
            let outcome = self.agents.switch_off(&self.order.device, OFF_WITHIN).await;
            let is_off = outcome == Ok(PowerState::Off);
            if let Err(failed) = &outcome {
                tracing::warn!(host = %self.name, agent = self.order.device.agent, why = %failed, "not switched off");
            }
            self.say(outcome.map_err(|failed| failed.0)).await;
            if is_off {
                return;
            }
            sleep(backoff.next_delay()).await;
        }
    }

    async fn say(&self, outcome: Result<PowerState, String>) {
        let said = Said { order: self.order.clone(), outcome };
        // Whoever listened has ended.
        let _ = self.said.send((self.name.clone(), said)).await;
    }
}

#[cfg(test)]
mod tests;
