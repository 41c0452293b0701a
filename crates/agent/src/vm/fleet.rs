//! All VMs of this host: one task each, and who gets which order.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sterna_base::scope::Scope;
use sterna_model::meta::Name;
use sterna_wire::assignment::{Assignment, VmAssignment};
use tokio::sync::watch;
use uuid::Uuid;

use super::decide::Order;
use super::{Ports, Vm};
use crate::hypervisor::Hypervisor;
use crate::resources::Resources;

pub struct Fleet<H: Hypervisor, R> {
    ports: Arc<Ports<H, R>>,
    scope: Scope,
    /// Orders of before this agent's start.
    recalled: Vec<VmAssignment>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    orders: BTreeMap<Uuid, watch::Sender<Order>>,
    /// Of the assignment applied last.
    revision: Option<u64>,
}

impl<H: Hypervisor, R: Resources> Fleet<H, R> {
    pub fn new(ports: Arc<Ports<H, R>>, scope: Scope) -> Arc<Self> {
        let recalled = ports.records.assignment().unwrap_or_else(|error| {
            // Without it this agent knows no order until it hears the server.
            tracing::warn!(%error, "the last assignment cannot be read");
            None
        });
        let recalled = recalled.map(|assignment| assignment.vms).unwrap_or_default();
        Arc::new(Self { ports, scope, recalled, state: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes charge of a VM that is here without an order.
    pub fn adopt(self: &Arc<Self>, name: Name, uid: Uuid) {
        let mut state = self.lock();
        state.orders.entry(uid).or_insert_with(|| self.task(name, uid, Order::Unknown));
    }

    /// Hands each VM its order. Assignments are complete, so a VM without an entry has none. A server that
    /// was restarted from older state starts with a new connection: [`Fleet::on_connected`].
    pub fn apply(self: &Arc<Self>, assignment: &Assignment) {
        let mut state = self.lock();
        if state.revision.is_some_and(|last| last > assignment.revision) {
            tracing::warn!(revision = assignment.revision, "an assignment older than the last is ignored");
            return;
        }
        state.revision = Some(assignment.revision);
        for (uid, sender) in &state.orders {
            if !assignment.vms.iter().any(|vm| vm.uid == *uid) {
                give(sender, Order::Absent);
            }
        }
        for vm in &assignment.vms {
            let order = Order::Given(Box::new(vm.clone()));
            match state.orders.get(&vm.uid) {
                Some(sender) => give(sender, order),
                None => {
                    let sender = self.task(vm.name.clone(), vm.uid, order);
                    state.orders.insert(vm.uid, sender);
                }
            }
        }
        drop(state);
        if let Err(error) = self.ports.records.save_assignment(assignment) {
            tracing::warn!(%error, "an assignment cannot be kept for the next agent");
        }
    }

    /// A new connection counts from its own first assignment.
    pub fn on_connected(&self) {
        self.lock().revision = None;
    }

    /// Lets go of every order, for a server whose store came back from a backup. What a migration under way needs is done all
    /// the same; nothing else is begun until the next assignment.
    ///
    /// Inventories are not complete until every VM's task has seen it: an order from before may just have been begun.
    pub fn hold(&self) {
        let mut state = self.lock();
        state.revision = None;
        for (uid, sender) in &state.orders {
            sender.send_replace(Order::Unknown);
            self.ports.board.doubt(*uid);
        }
    }

    fn task(self: &Arc<Self>, name: Name, uid: Uuid, order: Order) -> watch::Sender<Order> {
        let (sender, receiver) = watch::channel(order);
        let fleet = Arc::clone(self);
        let kept = self.recalled.iter().find(|kept| kept.uid == uid).cloned();
        let mut vm = Vm::new(name, uid, Arc::clone(&self.ports), receiver, kept);
        self.scope.spawn(async move {
            loop {
                vm.run().await;
                if fleet.drop_if_absent(uid) {
                    return;
                }
            }
        });
        sender
    }

    /// A VM that was ordered again while it was being forgotten keeps its task.
    fn drop_if_absent(&self, uid: Uuid) -> bool {
        let mut state = self.lock();
        let is_absent = state.orders.get(&uid).is_none_or(|order| matches!(&*order.borrow(), Order::Absent));
        if is_absent {
            state.orders.remove(&uid);
        }
        is_absent
    }
}

/// An unchanged order wakes nobody.
fn give(sender: &watch::Sender<Order>, order: Order) {
    sender.send_if_modified(|present| {
        let is_new = *present != order;
        *present = order;
        is_new
    });
}
