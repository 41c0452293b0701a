//! The agents' side of the server: assignments go down, reports come up, streams are attached.
//!
//! ```text
//!  store ─ follower ─► stream (one a host) ─► agent        agent ─► report ─► store
//! ```
//!
//! Writes the report columns and nothing else. A host writes only its own rows. Never decides anything.

/// Connected or silent.
pub mod link;
/// Reports into rows.
pub mod report;
/// Assignments to one agent, as they change.
pub mod stream;
/// Streams that an agent dials back for.
pub mod ticket;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use sterna_model::error::Code;
use sterna_model::meta::Name;
use sterna_wire::down::Down;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::app::App;
use crate::body::REPORT_MAX;
use crate::error::{Answer, refuse};

/// Orders beside the assignment that may wait for a slow agent.
const ORDERS_MAX: usize = 32;

/// What is known of the hosts beside the store.
#[derive(Default)]
pub struct Gateway {
    hosts: Mutex<BTreeMap<Name, Arc<Line>>>,
    sessions: AtomicU64,
    pub tickets: ticket::Tickets,
}

/// One host's line to this server; outlives its connections.
pub struct Line {
    /// Reports of one host are applied one after the other.
    order: tokio::sync::Mutex<()>,
    session: Mutex<Option<Session>>,
    /// A complete inventory came since the host was last silent.
    inventory: AtomicBool,
    /// Copies of VMs that the store does not know.
    strays: watch::Sender<Strays>,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            order: tokio::sync::Mutex::default(),
            session: Mutex::default(),
            inventory: AtomicBool::new(false),
            strays: watch::Sender::new(Strays::new()),
        }
    }
}

/// By uid.
pub type Strays = BTreeMap<Uuid, Stray>;

/// A copy of a VM that the store does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stray {
    pub name: Name,
    /// The one to release.
    pub epoch: u64,
    /// A guest has run in it: only a person may end it.
    pub is_held: bool,
}

struct Session {
    number: u64,
    orders: mpsc::Sender<Down>,
    end: CancellationToken,
}

impl Line {
    fn session(&self) -> MutexGuard<'_, Option<Session>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_connected(&self) -> bool {
        self.session().is_some()
    }

    pub fn has_inventory(&self) -> bool {
        self.inventory.load(Ordering::Acquire)
    }

    /// Copies of VMs that the store does not know, which wait for a person.
    pub fn held(&self) -> Vec<(Uuid, Name)> {
        held_of(&self.strays.borrow())
    }

    /// Ends the stream, such as after the host was deleted.
    pub fn hang_up(&self) {
        if let Some(session) = self.session().take() {
            session.end.cancel();
        }
    }
}

fn held_of(strays: &Strays) -> Vec<(Uuid, Name)> {
    strays.iter().filter(|(_, stray)| stray.is_held).map(|(uid, stray)| (*uid, stray.name.clone())).collect()
}

impl Gateway {
    /// The line of a host that exists. Lines are as many as hosts.
    pub fn line(&self, host: &Name) -> Arc<Line> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(hosts.entry(host.clone()).or_default())
    }

    pub fn forget(&self, host: &Name) {
        let line = self.hosts.lock().unwrap_or_else(PoisonError::into_inner).remove(host);
        if let Some(line) = line {
            line.hang_up();
        }
    }

    /// Copies of VMs that the store does not know, which wait for a person: by host.
    pub fn held(&self) -> BTreeMap<Name, Vec<(Uuid, Name)>> {
        let hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let held = hosts.iter().map(|(host, line)| (host.clone(), line.held()));
        held.filter(|(_, vms)| !vms.is_empty()).collect()
    }

    /// The store is right and the hosts are to follow: releases what is held of these, and tells what that is.
    pub fn release_held(&self, uids: &BTreeSet<Uuid>) -> BTreeMap<Name, Vec<(Uuid, Name)>> {
        let hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut released = BTreeMap::new();
        for (host, line) in hosts.iter() {
            line.strays.send_if_modified(|strays| {
                let held: Vec<_> =
                    held_of(strays).into_iter().filter(|(uid, _)| uids.contains(uid)).collect();
                let given_up = strays.iter_mut().filter(|(uid, _)| uids.contains(uid));
                given_up.for_each(|(_, stray)| stray.is_held = false);
                let is_new = !held.is_empty();
                if is_new {
                    released.insert(host.clone(), held);
                }
                is_new
            });
        }
        released
    }

    /// Sends an order beside the assignment to a connected agent.
    pub fn order(&self, host: &Name, order: Down) -> Answer<()> {
        let line = self.line(host);
        let sent = line.session().as_ref().map(|session| session.orders.try_send(order));
        match sent {
            Some(Ok(())) => Ok(()),
            Some(Err(_)) => Err(refuse(Code::TooManyRequests, format!("host {host} is busy"))),
            None => Err(refuse(Code::Unmet, format!("host {host} is silent")).hint("is its agent running?")),
        }
    }
}

/// What agents ask for, each with its certificate.
pub fn routes() -> axum::Router<App> {
    axum::Router::new()
        .route("/agent/v1/assignment", get(stream::assignment))
        .route("/agent/v1/report", post(report::report).layer(DefaultBodyLimit::max(REPORT_MAX)))
        .route("/agent/v1/attach/{ticket}", get(ticket::attach))
        .route("/agent/v1/images/{name}/content", get(crate::routes::image::content_for_agent))
}
