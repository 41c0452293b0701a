//! The server itself: its store, its backups, and how it comes back from one.

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use sterna_base::clock::Timestamp;
use sterna_model::error::{Code, Error};
use sterna_model::key::Kind;
use sterna_model::meta::{Name, Object};
use sterna_model::store::{Backup, Finding, MAIN, RELEASED_MAX, Restored, StoreReport, StoreSpec};
use sterna_plan::{View, recovery};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::app::App;
use crate::body::{Body, OptionalBody};
use crate::error::{Answer, refuse};
use crate::gateway::link;
use crate::routes::Plain;
use crate::shown::Stores;
use crate::write::modify;

pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(get)).routes(routes!(recover)).routes(routes!(accept_store))
}

/// The server and its store.
#[derive(Debug, Serialize, ToSchema)]
struct ServerShown {
    version: String,
    /// Absent: the store's own record cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    incarnation: Option<Uuid>,
    /// While it recovers, nothing is started, moved or deleted and hosts are told nothing.
    mode: Mode,
    /// From what the store came back, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    restored: Option<Restored>,
    /// Hosts that have yet to tell what they have.
    waits_for: Vec<Name>,
    /// Hosts that a person said are not waited for.
    without: Vec<Name>,
    /// What the store said and the hosts did not: as far as it is known while it recovers, then as it was.
    findings: Vec<Finding>,
    /// Findings that are not kept.
    more: usize,
    /// VMs that hold the recovery up.
    unsettled: Vec<Unsettled>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    recovered: Option<Timestamp>,
    backup: BackupShown,
}

#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Mode {
    Normal,
    Recovering,
}

/// A VM that cannot be settled yet.
#[derive(Debug, Serialize, ToSchema)]
struct Unsettled {
    vm: Name,
    why: String,
}

/// How the backups are.
#[derive(Debug, Serialize, ToSchema)]
struct BackupShown {
    #[serde(skip_serializing_if = "Option::is_none")]
    newest: Option<Backup>,
    /// Of the newest.
    #[serde(skip_serializing_if = "Option::is_none")]
    age_seconds: Option<u64>,
    /// How often one is taken; absent: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    every: Option<String>,
    /// Why the last try made none.
    #[serde(skip_serializing_if = "Option::is_none")]
    failed: Option<String>,
}

fn show(view: &View, now: Timestamp) -> ServerShown {
    let entry = view.stores.get(MAIN);
    let spec = entry.and_then(|entry| entry.spec.as_ref()).map(|row| &row.value.spec);
    let decision = entry.and_then(|entry| entry.decision.as_ref()).map(|row| &*row.value);
    let decision = decision.filter(|has| spec.is_some_and(|spec| spec.incarnation == has.incarnation));
    let is_on = recovery::is_on(view);
    let findings = match decision {
        Some(decision) => decision.findings.clone(),
        None => recovery::findings(view, now),
    };
    let unsettled = recovery::unsettled(view, now).into_iter().map(|(vm, why)| Unsettled { vm, why });
    ServerShown {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        incarnation: spec.map(|spec| spec.incarnation),
        mode: if is_on { Mode::Recovering } else { Mode::Normal },
        restored: spec.and_then(|spec| spec.restored.clone()),
        waits_for: if is_on { recovery::waits_for(view) } else { Vec::new() },
        without: spec.map(|spec| spec.without.iter().cloned().collect()).unwrap_or_default(),
        findings,
        more: decision.map_or(0, |decision| decision.more),
        unsettled: unsettled.collect(),
        recovered: decision.and_then(|decision| decision.ended),
        backup: backup(entry.and_then(|entry| entry.report.as_ref()).map(|row| &*row.value), now),
    }
}

fn backup(report: Option<&StoreReport>, now: Timestamp) -> BackupShown {
    let newest = report.and_then(|report| report.backup.clone());
    BackupShown {
        age_seconds: newest.as_ref().map(|backup| now.since(backup.taken).as_secs()),
        newest,
        every: report.and_then(|report| report.every).map(|every| every.to_string()),
        failed: report.and_then(|report| report.failed.clone()),
    }
}

/// The server, its store and its backups.
#[utoipa::path(get, path = "/v1/server", tag = "server", operation_id = "server_get",
    responses((status = 200, body = ServerShown), (status = "default", body = Error)))]
async fn get(State(app): State<App>) -> Json<ServerShown> {
    Json(show(&app.view(), app.now()))
}

/// Hosts that are not waited for.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Recover {
    /// A person looked: these hosts will not tell what they have. VMs that the store has on one of them stay with it, and
    /// are shown as unknown.
    without: BTreeSet<Name>,
}

/// Lets a recovery go on without hosts that do not answer.
#[utoipa::path(post, path = "/v1/server/recover", tag = "server", operation_id = "server_recover",
    request_body = Recover, responses((status = 200, body = ServerShown), (status = "default", body = Error)))]
async fn recover(
    State(app): State<App>,
    Body { value: asked, .. }: Body<Recover>,
) -> Answer<Json<ServerShown>> {
    modify::<Stores>(&app, &Name::new(MAIN)?, None, |view, object: &mut Object<StoreSpec>, txn| {
        if !recovery::is_on(view) {
            return Err(refuse(Code::WrongState, "the store is not recovering")
                .hint("only a store that came back from a backup waits for hosts"));
        }
        let waits_for = recovery::waits_for(view);
        let txn = asked.without.iter().try_fold(txn, |txn, host| {
            if !waits_for.contains(host) && !object.spec.without.contains(host) {
                return Err(not_waited_for(view, host));
            }
            // Removed and joined anew it would be another one.
            let key = sterna_model::key::Key::spec(Kind::Host, host);
            Ok(txn.require(key.to_string(), view.revision_of(&key)))
        })?;
        object.spec.without.extend(asked.without.iter().cloned());
        Ok(txn)
    })
    .await?;
    for host in &asked.without {
        link::record(&app, host, "not-waited-for", "a person said that the recovery goes on without it");
    }
    Ok(Json(show(&app.view(), app.now())))
}

fn not_waited_for(view: &View, host: &Name) -> crate::error::Refusal {
    if view.is_removed(host) {
        return refuse(Code::NotFound, format!("host {host} does not exist"));
    }
    refuse(Code::WrongState, format!("host {host} has told what it has"))
        .hint("what a host has told is not left out")
}

/// What was given up.
#[derive(Debug, Serialize, ToSchema)]
struct StoreAccepted {
    released: Vec<ReleasedVm>,
}

/// A VM that ran on a host and that the store does not know.
#[derive(Debug, Serialize, ToSchema)]
struct ReleasedVm {
    host: Name,
    vm: Name,
    uid: Uuid,
}

/// Takes the store as it is: VMs that hosts have and that the store does not know are ended there.
///
/// They are held until this is said, because a store that was restored from an older copy knows nothing of younger VMs.
#[utoipa::path(post, path = "/v1/server/accept-store", tag = "server", operation_id = "server_accept_store",
    request_body = Plain, responses((status = 200, body = StoreAccepted), (status = "default", body = Error)))]
async fn accept_store(State(app): State<App>, _plain: OptionalBody<Plain>) -> Answer<Json<StoreAccepted>> {
    let held = app.gateway.held();
    let uids: BTreeSet<Uuid> = held.values().flatten().map(|(uid, _)| *uid).collect();
    if !uids.is_empty() {
        // Before anything is ended: a server that starts anew in between must not hold them again.
        modify::<Stores>(&app, &Name::new(MAIN)?, None, |_, object: &mut Object<StoreSpec>, txn| {
            object.spec.released.extend(&uids);
            while object.spec.released.len() > RELEASED_MAX {
                // By their uids the oldest: what was given up that long ago has been ended since.
                object.spec.released.pop_first();
            }
            Ok(txn)
        })
        .await?;
    }
    let mut released = Vec::new();
    for (host, vms) in app.gateway.release_held(&uids) {
        for (uid, vm) in vms {
            let why = format!("a person said that the store is right, which does not know VM {vm}");
            link::record(&app, &host, "vm-released", &why);
            released.push(ReleasedVm { host: host.clone(), vm, uid });
        }
    }
    Ok(Json(StoreAccepted { released }))
}
