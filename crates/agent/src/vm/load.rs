//! Measures what a guest uses, while no migration disturbs it and none would be disturbed.

use std::sync::Arc;
use std::time::Duration;

use sterna_model::forecast::Written;
use sterna_model::meta::Name;
use sterna_wire::up::{Samples, Up};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use uuid::Uuid;

use super::Ports;
use crate::hypervisor::{Guest, Hypervisor};

const SAMPLE_EVERY: Duration = Duration::from_secs(10);
/// How much a guest writes is measured every third time, over one of these: short ones show what it writes again and
/// again, long ones how far its writes spread. A forecast needs both.
const WRITTEN_EVERY: u64 = 3;
const WINDOWS: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(10)];
/// Measurements that are kept of each window: their median bears one that was out of the ordinary.
const KEPT: usize = 3;

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
            // After a long measurement the guest is left alone as long as after any other.
            every.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut curve = Vec::new();
            for turn in 0u64.. {
                every.tick().await;
                if may.wait_for(|may| *may).await.is_err() {
                    return;
                }
                let measured = tokio::select! {
                    biased;
                    // A migration has begun: its first pass must not wait for a figure.
                    _ = may.wait_for(|may| !*may) => continue,
                    measured = guest.load(window(turn)) => measured,
                };
                if let Ok(mut sample) = measured {
                    keep(&mut curve, &sample.written);
                    sample.written.clone_from(&curve);
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

/// What is to be measured at a turn, if anything.
fn window(turn: u64) -> Option<Duration> {
    let nth = usize::try_from(turn / WRITTEN_EVERY).unwrap_or_default();
    turn.is_multiple_of(WRITTEN_EVERY).then(|| WINDOWS[nth % WINDOWS.len()])
}

/// Adds what was measured, and forgets the oldest of the same window.
fn keep(curve: &mut Vec<Written>, measured: &[Written]) {
    for new in measured {
        let of_its_window = |kept: &Written| kept.window == new.window;
        if curve.iter().filter(|kept| of_its_window(kept)).count() >= KEPT
            && let Some(oldest) = curve.iter().position(of_its_window)
        {
            curve.remove(oldest);
        }
        curve.push(*new);
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    use sterna_base::units::{Bytes, Span};

    use super::*;

    #[test]
    fn every_window_gets_its_turn_and_most_turns_measure_no_writes() {
        let turns: Vec<_> = (0..18).filter_map(window).collect();
        assert_eq!(turns, [WINDOWS, WINDOWS].concat());
    }

    #[test]
    fn the_newest_measurements_of_each_window_are_kept() {
        let at = |seconds, bytes| Written { window: Span::from_secs(seconds), bytes: Bytes(bytes) };
        let mut curve = Vec::new();
        keep(&mut curve, &[at(10, 7)]);
        for bytes in 0..5 {
            keep(&mut curve, &[at(1, bytes)]);
        }
        assert_eq!(curve, [at(10, 7), at(1, 2), at(1, 3), at(1, 4)]);
    }
}
