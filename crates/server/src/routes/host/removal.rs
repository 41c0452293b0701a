//! Removing a host: refused while anything is, or may be, on it.
//!
//! ```text
//!  look ── used: 409, nothing changed
//!    │
//!  cordon ── every start on the host and every move to it compares the host's row: none commits from here on
//!    │
//!  look again ── used: 409, the cordon is as it was
//!    │
//!  delete ── on the condition that the cordon still stands
//! ```
//!
//! What is left in rows of VMs that ended there goes afterwards (`plan::cleanup`).

use std::time::Duration;

use sterna_model::error::Code;
use sterna_model::key::{Key, Kind};
use sterna_model::meta::Name;
use sterna_model::pool::PoolKind;
use sterna_plan::View;
use sterna_plan::view::VmEntry;

use crate::app::App;
use crate::error::{Answer, refuse};
use crate::shown::Hosts;
use crate::write;

/// How often the deletion is computed anew while the host's own row changes.
const TRIES: usize = 10;
const PAUSE: Duration = Duration::from_millis(5);
/// Names of each kind that a refusal tells.
const NAMED_MAX: usize = 5;

pub async fn remove(app: &App, name: &Name, known: Option<u64>) -> Answer<()> {
    let mut was_cordoned = false;
    let cordoned = write::modify::<Hosts>(app, name, known, |view, object, txn| {
        Uses::of(view, name).refuse(name)?;
        was_cordoned = std::mem::replace(&mut object.spec.cordoned, true);
        Ok(txn)
    })
    .await?;
    let removed = delete(app, name, cordoned).await;
    if removed.is_err() && !was_cordoned {
        write::modify::<Hosts>(app, name, None, |_, object, txn| {
            object.spec.cordoned = false;
            Ok(txn)
        })
        .await?;
    }
    removed
}

async fn delete(app: &App, name: &Name, cordoned: u64) -> Answer<()> {
    let mut removed = Ok(());
    for _ in 0..TRIES {
        removed =
            write::remove::<Hosts>(app, name, Some(cordoned), |view| Uses::of(view, name).refuse(name)).await;
        match &removed {
            Err(refusal) if refusal.0.code == Code::Conflict => tokio::time::sleep(PAUSE).await,
            _ => break,
        }
    }
    removed
}

/// What a host still has.
#[derive(Debug, Default)]
pub struct Uses {
    vms: Vec<Name>,
    migrations: Vec<Name>,
    volumes: Vec<Name>,
    pools: Vec<Name>,
}

impl Uses {
    pub fn of(view: &View, host: &Name) -> Self {
        let vms = view.vms.iter().filter(|(name, entry)| may_run(view, name, entry, host));
        let migrations = view.migrations.iter().filter(|(_, entry)| {
            let decision = entry.decision.as_ref();
            let has_ended = decision.is_some_and(|row| row.phase.has_ended());
            let asked = entry.spec.as_ref().and_then(|row| row.value.spec.to.as_ref());
            let sides = decision.into_iter().flat_map(|row| [row.source.as_ref(), row.target.as_ref()]);
            !has_ended && sides.chain([asked]).flatten().any(|side| side == host)
        });
        let volumes = view.volumes.iter().filter(|(_, entry)| {
            let decision = entry.decision.as_ref().filter(|row| row.host == *host);
            let pool = decision.and_then(|row| view.pools.get(&row.pool)?.spec.as_ref());
            pool.is_some_and(|pool| !pool.value.spec.kind.is_shared())
        });
        let pools = view.pools.iter().filter(|(_, entry)| {
            let kind = entry.spec.as_ref().map(|row| &row.value.spec.kind);
            matches!(kind, Some(PoolKind::Nbd { host: server, .. }) if server == host)
        });
        Self {
            vms: vms.map(|(name, _)| name.clone()).collect(),
            migrations: migrations.map(|(name, _)| name.clone()).collect(),
            volumes: volumes.map(|(name, _)| name.clone()).collect(),
            pools: pools.map(|(name, _)| name.clone()).collect(),
        }
    }

    /// Names what keeps the host, and says how each kind goes.
    pub fn refuse(&self, host: &Name) -> Answer<()> {
        let kinds: Vec<_> = [
            (Kind::Vm, &self.vms, "move VMs away with `sterna host drain`, or stop them"),
            (Kind::Migration, &self.migrations, "wait for migrations, or cancel them"),
            (Kind::Volume, &self.volumes, "delete the volumes on its own disk"),
            (Kind::Pool, &self.pools, "delete the pools that it serves"),
        ]
        .into_iter()
        .filter(|(_, names, _)| !names.is_empty())
        .collect();
        if kinds.is_empty() {
            return Ok(());
        }
        let has: Vec<_> = kinds.iter().map(|(kind, names, _)| listed(*kind, names)).collect();
        let hints: Vec<_> = kinds.iter().map(|(_, _, hint)| *hint).collect();
        Err(refuse(Code::InUse, format!("host {host} still has {}", has.join(", "))).hint(hints.join("; ")))
    }
}

/// A copy of the VM is here as far as is known, or may be: the decision or the row that would tell cannot be read, or an
/// order to start it may be on its way.
fn may_run(view: &View, name: &Name, entry: &VmEntry, host: &Name) -> bool {
    let row = entry.reports.get(host);
    let owner = entry.decision.as_ref().map(|row| &row.owner);
    let telling = [Key::decision(Kind::Vm, name), Key::report_of(Kind::Vm, name, host)];
    if telling.iter().any(|key| view.broken.contains_key(&key.to_string())) {
        return true;
    }
    if row.is_some_and(|row| row.state.has_process()) {
        return true;
    }
    let Some(owner) = owner.filter(|owner| owner.host == *host) else { return false };
    let has_ended = row.is_some_and(|row| row.epoch == owner.epoch);
    let is_wanted = entry
        .spec
        .as_ref()
        .is_none_or(|row| row.value.meta.deleting.is_none() && row.value.spec.power.wants_process());
    is_wanted || !has_ended
}

/// `vm a, vm b and 3 more`
fn listed(kind: Kind, names: &[Name]) -> String {
    let shown: Vec<_> =
        names.iter().take(NAMED_MAX).map(|name| format!("{} {name}", kind.as_str())).collect();
    match names.len() - shown.len() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
