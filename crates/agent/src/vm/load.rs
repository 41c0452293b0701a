//! Measures what a guest uses, while no migration disturbs it and none would be disturbed.

use std::sync::Arc;
use std::time::Duration;

use sterna_model::meta::Name;
use sterna_wire::up::{Samples, Up};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::Ports;
use crate::hypervisor::{Guest, Hypervisor};

const SAMPLE_EVERY: Duration = Duration::from_secs(10);
/// Measuring how fast a guest writes costs a second of hashing: every third time.
const DIRTY_EVERY: u64 = 3;

pub(super) struct Sampler {
    task: JoinHandle<()>,
    allowed: watch::Sender<bool>,
}

impl Sampler {
    pub fn start<H: Hypervisor, R>(name: Name, uid: Uuid, guest: H::Guest, ports: &Arc<Ports<H, R>>) -> Self {
        let allowed = watch::Sender::new(false);
        let mut may = allowed.subscribe();
        let reports = Arc::clone(&ports.reports);
        let task = tokio::spawn(async move {
            tokio::time::sleep(first_after(uid)).await;
            let mut every = tokio::time::interval(SAMPLE_EVERY);
            for turn in 0u64.. {
                every.tick().await;
                if may.wait_for(|may| *may).await.is_err() {
                    return;
                }
                let measured = tokio::select! {
                    biased;
                    // A migration has begun: its first pass must not wait for a figure.
                    _ = may.wait_for(|may| !*may) => continue,
                    measured = guest.load(turn.is_multiple_of(DIRTY_EVERY)) => measured,
                };
                if let Ok(sample) = measured {
                    let vms = [(name.clone(), sample)].into();
                    reports.report(Up::Samples(Samples { vms, ..Samples::default() }));
                }
            }
        });
        Self { task, allowed }
    }

    pub fn allow(&self, is_allowed: bool) {
        self.allowed.send_replace(is_allowed);
    }
}

/// The guests of a host take turns; a forecast can be asked for soon after the start.
fn first_after(uid: Uuid) -> Duration {
    Duration::from_millis(1500 + u64::from(uid.as_bytes()[15]) * 10)
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.task.abort();
    }
}
