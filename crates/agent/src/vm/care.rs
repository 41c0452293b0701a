//! Has a guest asked whether it is well, for as long as it runs as its owner's.

use sterna_wire::up::Up;

use super::Vm;
use super::decide::{Body, Order};
use super::health::Fault;
use super::health::monitor::{Heard, Monitor, Subject};
use super::record::Title;
use crate::hypervisor::{Hypervisor, Run};
use crate::resources::Resources;

impl<H: Hypervisor, R: Resources> Vm<H, R> {
    /// Keeps the monitor that the order and the copy ask for, and no other.
    pub(super) fn mind_the_health(&mut self, order: &Order) {
        let subject = self.subject(order);
        if self.monitor.as_ref().map(|monitor| &monitor.subject) == subject.as_ref() {
            return;
        }
        // What one noticed was about a guest that was asked other things, or stands still now. A watchdog bites once.
        if self.monitor.is_some() && self.fault != Some(Fault::Watchdog) {
            self.fault = None;
        }
        self.monitor = match (subject, &self.guest) {
            (Some(subject), Some(guest)) => Some(Monitor::start(subject, guest)),
            _ => None,
        };
    }

    /// `None`: nothing may be concluded from its silence now, or nobody wants to know.
    fn subject(&self, order: &Order) -> Option<Subject> {
        let owner = order.owner()?;
        let wanted = owner.health.as_ref()?;
        let Body::Alive(view) = &self.body else { return None };
        let notes =
            self.notes.as_ref().filter(|notes| notes.title == Title::Owner && notes.ending.is_none())?;
        let is_its_own = view.run == Run::Running && !notes.is_sending() && !notes.is_handed_over();
        is_its_own.then(|| Subject {
            epoch: notes.epoch,
            restarts: notes.restarts.count,
            resets: (notes.resets.count, notes.reset_request),
            checks: wanted.checks.clone(),
            at: owner.machine.hardware.nics.iter().find_map(|nic| nic.address),
        })
    }

    pub(super) fn on_heard(&mut self, heard: Heard) {
        match heard {
            Heard::Fault(fault) => self.fault = Some(fault),
            // The next report has it.
            Heard::Checks => {}
            Heard::Turned { what, why } => {
                let (name, what) = (self.name.clone(), what.to_owned());
                self.ports.reports.report(Up::Event { kind: "vm".to_owned(), name, what, why });
            }
        }
    }
}

/// What the monitor tells next. Never resolves while there is none.
pub(super) async fn heard(monitor: &mut Option<Monitor>) -> Heard {
    let next = match monitor {
        Some(monitor) => monitor.heard().await,
        None => None,
    };
    match next {
        Some(heard) => heard,
        None => std::future::pending().await,
    }
}
