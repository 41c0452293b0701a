//! Reports into rows: in the order they came, one host at a time, answered when the store has them for good.
//!
//! A host writes `report/ITS-NAME` of VMs, the report of volumes that are decided for it, and its own host row; what it
//! says of anything else is ignored. Rows are written only when they change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use bytes::Bytes;
use sterna_model::error::Code;
use sterna_model::event::Event;
use sterna_model::host::{HostReport, LinkState};
use sterna_model::key::{Key, Kind};
use sterna_model::meta::Name;
use sterna_model::store::MAIN;
use sterna_plan::View;
use sterna_plan::assignment::may_end_stray;
use sterna_store::Txn;
use sterna_wire::up::{Samples, Up, VmSeen, VolumeSeen};
use uuid::Uuid;

use crate::app::App;
use crate::auth::HostActor;
use crate::ca::HostIdentity;
use crate::error::{Answer, refuse};
use crate::gateway::{Line, Stray, Strays, link};
use crate::write;

/// Rows of one transaction: well below the store's limits in number and, at a few KiB a row, in bytes.
const ROWS_MAX: usize = 100;
/// How often rows are computed anew when the objects they belong to change at the same time.
const TRIES: usize = 10;
const PAUSE: Duration = Duration::from_millis(5);
/// Events in one batch; a host that has more to say than this is in trouble and its first words say why.
const EVENTS_MAX: usize = 100;

/// `POST /agent/v1/report`.
pub async fn report(State(app): State<App>, HostActor(host): HostActor, body: Bytes) -> Answer<StatusCode> {
    let messages = parse(&body)?;
    if let [Up::Samples(samples)] = messages.as_slice() {
        // Measurements are nobody's turn: no report of a handover waits behind them.
        on_samples(&app, &app.view(), &host.name, samples);
        return Ok(StatusCode::NO_CONTENT);
    }
    let line = app.gateway.line(&host.name);
    let _order = line.order.lock().await;
    apply(&app, &line, &host, &messages).await?;
    if !line.is_connected() {
        // Reports without a stream: the line may be half dead.
        link::watch_silence(&app, &host.name, link::SILENT_AFTER);
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Messages of a type that this server does not know are skipped: the agent may be newer.
fn parse(body: &[u8]) -> Answer<Vec<Up>> {
    if let Ok(messages) = serde_json::from_slice(body) {
        return Ok(messages);
    }
    let values: Vec<serde_json::Value> = serde_json::from_slice(body)
        .map_err(|error| refuse(Code::Malformed, format!("the report is not a JSON array: {error}")))?;
    let mut messages = Vec::new();
    for value in values {
        match serde_json::from_value(value) {
            Ok(message) => messages.push(message),
            Err(error) if error.to_string().starts_with("unknown variant") => {
                tracing::debug!(%error, "a message of the agent is not known here");
            }
            Err(error) => return Err(refuse(Code::Malformed, format!("a message cannot be read: {error}"))),
        }
    }
    Ok(messages)
}

async fn apply(app: &App, line: &Line, identity: &HostIdentity, messages: &[Up]) -> Answer<()> {
    let host = &identity.name;
    for _ in 0..TRIES {
        let view = app.view();
        identity.check(&view)?;
        let mut batch = Batch::new(app, &view, line, host);
        for message in messages {
            batch.on_message(message)?;
        }
        let Batch { rows, strays, inventory, .. } = batch;
        let was_silent = view.host(host).is_none_or(|host| !host.is_connected());
        match commit(app, &view, host, rows).await {
            Ok(()) => {
                tell_strays(app, line, host, &strays);
                line.strays.send_if_modified(|now| std::mem::replace(now, strays.clone()) != strays);
                if inventory {
                    line.inventory.store(true, Ordering::Release);
                }
                on_stored(app, &view, host, messages);
                if inventory && was_silent {
                    link::record(app, host, "connected", "its agent reported everything that it has");
                }
                return Ok(());
            }
            Err(sterna_store::Error::Conflict { found, .. }) => {
                app.follower.reached(found).await;
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(refuse(Code::Conflict, "the objects change too often"))
}

/// What becomes of one batch of messages.
struct Batch<'a> {
    app: &'a App,
    view: &'a View,
    host: &'a Name,
    /// The newest value of each row; `None`: none.
    rows: BTreeMap<Key, Option<Vec<u8>>>,
    strays: Strays,
    inventory: bool,
    /// The incarnation that this batch tells everything to, having let go of every order.
    told: Option<Uuid>,
    host_row: Option<HostReport>,
}

impl<'a> Batch<'a> {
    fn new(app: &'a App, view: &'a View, line: &'a Line, host: &'a Name) -> Self {
        let host_row = view.host(host).and_then(|host| host.report.cloned());
        let strays = line.strays.borrow().clone();
        Self {
            app,
            view,
            host,
            rows: BTreeMap::new(),
            strays,
            inventory: line.has_inventory(),
            told: None,
            host_row,
        }
    }

    fn on_message(&mut self, message: &Up) -> Answer<()> {
        match message {
            Up::Host(report) => {
                let link = self.host_row.as_ref().map_or(LinkState::Silent, |row| row.link);
                let since = self.host_row.as_ref().map_or_else(|| self.app.now(), |row| row.since);
                let told = self.host_row.as_ref().and_then(|row| row.told);
                self.set_host(HostReport { link, since, told, ..(**report).clone() })
            }
            Up::Inventory { complete, vms, volumes, held } => {
                if *complete {
                    self.on_complete(vms, *held)?;
                }
                vms.iter().try_for_each(|seen| self.on_vm(seen))?;
                volumes.iter().try_for_each(|seen| self.on_volume(seen))
            }
            Up::Vm(seen) => self.on_vm(seen),
            Up::Volume(seen) => self.on_volume(seen),
            Up::Event { .. } | Up::Samples(_) => Ok(()),
        }
    }

    /// Writes the host's own row, connected once there is an inventory.
    fn set_host(&mut self, mut report: HostReport) -> Answer<()> {
        if self.inventory && report.link != LinkState::Connected {
            report.link = LinkState::Connected;
            report.since = self.app.now();
        }
        if self.told.is_some() {
            report.told = self.told;
        }
        self.rows.insert(Key::report(Kind::Host, self.host), Some(write::bytes(&report)?));
        self.host_row = Some(report);
        Ok(())
    }

    /// Rows and strays of VMs that a complete inventory does not have are things of the past.
    fn on_complete(&mut self, vms: &[VmSeen], held: Option<Uuid>) -> Answer<()> {
        let here: BTreeSet<Uuid> = vms.iter().map(|seen| seen.uid).collect();
        for (name, entry) in &self.view.vms {
            let has_row = entry.reports.contains_key(self.host);
            let absent = entry.meta().is_some_and(|meta| !here.contains(&meta.uid));
            if has_row && absent {
                self.rows.insert(Key::report_of(Kind::Vm, name, self.host), None);
            }
        }
        self.strays.retain(|uid, _| here.contains(uid));
        self.inventory = true;
        if held.is_some() && held == self.incarnation() {
            self.told = held;
        }
        match self.host_row.clone() {
            Some(report) => self.set_host(report),
            None => Ok(()),
        }
    }

    fn on_vm(&mut self, seen: &VmSeen) -> Answer<()> {
        let entry = self.view.vms.get(&seen.name);
        // An object whose spec cannot be read exists all the same: nothing of it is released or overwritten.
        if entry.is_some_and(|entry| entry.meta().is_none()) {
            return Ok(());
        }
        let known = entry.and_then(|entry| entry.meta()).is_some_and(|meta| meta.uid == seen.uid);
        if known {
            self.strays.remove(&seen.uid);
            let row = seen.report.as_ref().map(write::bytes).transpose()?;
            self.rows.insert(Key::report_of(Kind::Vm, &seen.name, self.host), row);
            return Ok(());
        }
        match &seen.report {
            Some(report) if report.state.has_process() => {
                let before = self.strays.get(&seen.uid).filter(|before| before.epoch == report.epoch);
                let was_released = before.is_some_and(|before| !before.is_held);
                let is_given_up = was_released || self.is_given_up(seen.uid);
                let is_held = !is_given_up && !may_end_stray(report);
                let stray = Stray { name: seen.name.clone(), epoch: report.epoch, is_held };
                self.strays.insert(seen.uid, stray);
            }
            _ => {
                self.strays.remove(&seen.uid);
            }
        }
        Ok(())
    }

    fn incarnation(&self) -> Option<Uuid> {
        let store = self.view.stores.get(MAIN).and_then(|entry| entry.spec.as_ref());
        store.map(|row| row.value.spec.incarnation)
    }

    /// A person said that the store is right, which does not know it.
    fn is_given_up(&self, uid: Uuid) -> bool {
        let store = self.view.stores.get(MAIN).and_then(|entry| entry.spec.as_ref());
        store.is_some_and(|row| row.value.spec.released.contains(&uid))
    }

    fn on_volume(&mut self, seen: &VolumeSeen) -> Answer<()> {
        let entry = self.view.volumes.get(&seen.name);
        let same = entry.and_then(|entry| entry.meta()).is_some_and(|meta| meta.uid == seen.uid);
        let decided =
            entry.and_then(|entry| entry.decision.as_ref()).is_some_and(|row| row.host == *self.host);
        if same && decided {
            self.rows.insert(Key::report(Kind::Volume, &seen.name), Some(write::bytes(&seen.report)?));
        }
        Ok(())
    }
}

/// Says of each new stray what becomes of it.
fn tell_strays(app: &App, line: &Line, host: &Name, strays: &Strays) {
    let before = line.strays.borrow();
    for (uid, stray) in strays.iter().filter(|(uid, stray)| before.get(uid) != Some(stray)) {
        if stray.is_held {
            tracing::error!(%host, vm = %stray.name, %uid, "a VM that the store does not know is held");
            let why = format!(
                "it has VM {}, which the store does not know: the store is older than what the host has seen; nothing of it is \
                 released until `sterna server accept-store`",
                stray.name
            );
            link::record(app, host, "vm-held", &why);
        } else {
            tracing::warn!(%host, vm = %stray.name, %uid, "a copy that never ran, of a VM that nobody knows, is released");
        }
    }
}

/// Writes what differs from the view, a slice at a time, each on the condition that its objects are still those, and
/// that the host is: one that was removed meanwhile leaves nothing behind.
async fn commit(
    app: &App,
    view: &View,
    host: &Name,
    rows: BTreeMap<Key, Option<Vec<u8>>>,
) -> Result<(), sterna_store::Error> {
    let mut changed: Vec<_> =
        rows.into_iter().filter(|(key, row)| differs(view, key, row.as_deref())).collect();
    // The host's own row says that everything was told: it is true only after the others.
    changed.sort_by_key(|(key, _)| key.kind == Kind::Host);
    let mut newest = 0;
    for slice in changed.chunks(ROWS_MAX) {
        let host = Key::spec(Kind::Host, host);
        let mut txn = Txn::new().require(host.to_string(), view.revision_of(&host));
        let mut objects = BTreeSet::from([host]);
        for (key, row) in slice {
            let spec = Key::spec(key.kind, &key.name);
            if objects.insert(spec.clone()) {
                txn = txn.require(spec.to_string(), view.revision_of(&spec));
            }
            txn = match row {
                Some(row) => txn.put(key.to_string(), row.clone()),
                None => txn.delete(key.to_string()),
            };
        }
        newest = app.store.commit(txn).await?;
    }
    if newest > 0 {
        app.follower.reached(newest).await;
    }
    Ok(())
}

/// Whether a row is other than the view shows it.
fn differs(view: &View, key: &Key, row: Option<&[u8]>) -> bool {
    let shown = match key.kind {
        Kind::Vm => {
            let entry = view.vms.get(&key.name);
            entry.and_then(|entry| match &key.column {
                sterna_model::key::Column::ReportOf(host) => {
                    entry.reports.get(host).map(|row| write::bytes(&*row.value))
                }
                _ => None,
            })
        }
        Kind::Volume => view
            .volumes
            .get(&key.name)
            .and_then(|entry| entry.report.as_ref())
            .map(|row| write::bytes(&*row.value)),
        Kind::Host => view
            .hosts
            .get(&key.name)
            .and_then(|entry| entry.report.as_ref())
            .map(|row| write::bytes(&*row.value)),
        _ => None,
    };
    match (shown, row) {
        (None, None) => false,
        (Some(Ok(shown)), Some(row)) => shown != row,
        _ => true,
    }
}

/// What is not stored as rows: events and measurements.
fn on_stored(app: &App, view: &View, host: &Name, messages: &[Up]) {
    let mut events = 0;
    for message in messages {
        match message {
            Up::Event { kind, name, what, why } if events < EVENTS_MAX => {
                events += 1;
                app.record(&Event {
                    time: app.now(),
                    kind: cut(kind, 40),
                    name: name.to_string(),
                    what: cut(what, 60),
                    why: format!("{} (seen by host {host})", cut(why, 1000)),
                });
            }
            Up::Samples(samples) => on_samples(app, view, host, samples),
            _ => {}
        }
    }
}

/// Measurements count only for what the host has to do with.
fn on_samples(app: &App, view: &View, host: &Name, samples: &Samples) {
    for (name, sample) in &samples.vms {
        let here = view
            .vms
            .get(name)
            .and_then(|entry| entry.decision.as_ref())
            .is_some_and(|row| row.owner.host == *host);
        if here {
            app.samples.put_vm(name.clone(), sample.clone());
        }
    }
    for (name, progress) in &samples.migrations {
        let entry = view.migrations.get(name).and_then(|entry| entry.decision.as_ref());
        if entry.is_some_and(|row| row.source.as_ref() == Some(host)) {
            app.samples.put_migration(name.clone(), progress.clone());
        }
    }
    if let Some(sample) = &samples.host {
        app.samples.put_host(host.clone(), sample.clone());
    }
}

/// Text of a stranger for people's eyes: bounded, and without control characters.
fn cut(text: &str, length: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(length).collect()
}
