//! Reports that wait: in order, until the server has them; samples beside them, only the newest.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use sterna_wire::up::{Samples, Up};
use tokio::sync::Notify;

use crate::vm::Reports;

/// Messages in one request: far below what the server takes.
const BATCH_MAX: usize = 100;
/// Kept while the server is away. What is told of VMs comes again with the inventory; beyond this the oldest
/// of the rest is lost.
const WAITING_MAX: usize = 10_000;

#[derive(Default)]
pub struct Outbox {
    waiting: Mutex<Waiting>,
    reports: Notify,
    samples: Notify,
    inventory: Notify,
}

#[derive(Default)]
struct Waiting {
    reports: VecDeque<Up>,
    samples: Option<Samples>,
}

impl Reports for Outbox {
    fn report(&self, up: Up) {
        match up {
            Up::Samples(samples) => self.add_samples(samples),
            other => self.add(other),
        }
    }
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn add(&self, up: Up) {
        let mut waiting = self.lock();
        if waiting.reports.len() == WAITING_MAX {
            waiting.reports.pop_front();
        }
        waiting.reports.push_back(up);
        self.reports.notify_one();
    }

    fn add_samples(&self, newer: Samples) {
        let mut waiting = self.lock();
        let samples = waiting.samples.get_or_insert_default();
        samples.vms.extend(newer.vms);
        samples.migrations.extend(newer.migrations);
        samples.host = newer.host.or(samples.host.take());
        self.samples.notify_one();
    }

    /// An inventory is about to say the same, newer.
    pub fn forget_vms(&self) {
        self.lock()
            .reports
            .retain(|up| !matches!(up, Up::Vm(_) | Up::Volume(_) | Up::Inventory { .. } | Up::Host(_)));
    }

    /// The oldest reports, as soon as there are any. They stay until [`Outbox::done`].
    pub async fn batch(&self) -> Vec<Up> {
        loop {
            let notified = self.reports.notified();
            {
                let waiting = self.lock();
                if !waiting.reports.is_empty() {
                    return waiting.reports.iter().take(BATCH_MAX).cloned().collect();
                }
            }
            notified.await;
        }
    }

    /// The server has the oldest `count`.
    pub fn done(&self, count: usize) {
        self.lock().reports.drain(..count);
    }

    /// The server wants to hear again what is here.
    pub fn ask_for_inventory(&self) {
        self.inventory.notify_one();
    }

    pub async fn inventory_asked(&self) {
        self.inventory.notified().await;
    }

    pub async fn samples(&self) -> Samples {
        loop {
            let notified = self.samples.notified();
            if let Some(samples) = self.lock().samples.take() {
                return samples;
            }
            notified.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sterna_model::forecast::LoadSample;
    use sterna_model::meta::Name;

    fn event(what: &str) -> Up {
        Up::Event {
            kind: "vm".into(),
            name: Name::new("web").unwrap(),
            what: what.into(),
            why: String::new(),
        }
    }

    fn gone() -> Up {
        Up::Vm(sterna_wire::up::VmSeen {
            name: Name::new("web").unwrap(),
            uid: uuid::Uuid::nil(),
            report: None,
        })
    }

    #[tokio::test]
    async fn reports_stay_in_order_until_they_are_stored() {
        let outbox = Outbox::default();
        outbox.report(event("a"));
        outbox.report(event("b"));
        assert_eq!(outbox.batch().await, [event("a"), event("b")]);
        outbox.report(event("c"));
        assert_eq!(outbox.batch().await.len(), 3);
        outbox.done(2);
        assert_eq!(outbox.batch().await, [event("c")]);
    }

    #[tokio::test]
    async fn a_new_connection_forgets_what_its_inventory_says() {
        let outbox = Outbox::default();
        outbox.report(gone());
        outbox.report(event("a"));
        outbox.forget_vms();
        assert_eq!(outbox.batch().await, [event("a")]);
    }

    #[tokio::test]
    async fn samples_are_merged_and_never_wait_in_line() {
        let outbox = Outbox::default();
        let of = |name: &str, cpu_milli| Samples {
            vms: [(Name::new(name).unwrap(), LoadSample { cpu_milli, ..LoadSample::default() })].into(),
            ..Samples::default()
        };
        outbox.report(Up::Samples(of("a", 1)));
        outbox.report(Up::Samples(of("b", 2)));
        outbox.report(Up::Samples(of("a", 3)));
        let samples = outbox.samples().await;
        let cpu: Vec<_> = samples.vms.values().map(|sample| sample.cpu_milli).collect();
        assert_eq!(cpu, [3, 2]);
    }
}
