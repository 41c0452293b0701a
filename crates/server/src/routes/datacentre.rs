//! Sites with their own failure domain. A datacentre comes with one cluster of its name.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use sterna_base::clock::Timestamp;
use sterna_model::bandwidth::{BandwidthLimit, LIMITS_MAX};
use sterna_model::cluster::ClusterSpec;
use sterna_model::datacentre::DatacentreSpec;
use sterna_model::error::{Code, Error};
use sterna_model::ha::Profile;
use sterna_model::key::Kind;
use sterna_model::meta::{Labels, Name};
use sterna_model::token::Role;
use sterna_plan::View;
use sterna_store::Txn;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::auth::Actor;
use crate::body::{Body, PathName, Words};
use crate::error::{Answer, refuse};
use crate::list::{self, Page};
use crate::routes::{Change, Deleted, change_plain, create_plain, in_use};
use crate::shown::{Datacentre, Datacentres};
use crate::write::{Create, delete_columns, known_revision, new_meta, put_new};

pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(get, change, delete))
}

/// All datacentres that match.
#[utoipa::path(get, path = "/v1/datacentres", tag = "datacentre", operation_id = "datacentre_list",
    params(("limit" = Option<usize>, Query), ("after" = Option<String>, Query), ("label" = Option<String>, Query)),
    responses((status = 200, body = Page<Datacentre>), (status = "default", body = Error)))]
async fn list(State(app): State<App>, actor: Actor, words: Words) -> Answer<Json<Page<Datacentre>>> {
    words.only(&list::WORDS)?;
    list::list::<Datacentres>(&app, &actor, &words)
}

/// One datacentre.
#[utoipa::path(get, path = "/v1/datacentres/{name}", tag = "datacentre", operation_id = "datacentre_get",
    params(("name" = Name, Path)),
    responses((status = 200, body = Datacentre), (status = "default", body = Error)))]
async fn get(State(app): State<App>, actor: Actor, PathName(name): PathName) -> Answer<Json<Datacentre>> {
    Ok(Json(list::show::<Datacentres>(&app, actor.role, &name)?))
}

/// Creates a datacentre, and a cluster of the same name in it.
#[utoipa::path(post, path = "/v1/datacentres", tag = "datacentre", operation_id = "datacentre_create",
    request_body = Create<DatacentreSpec>,
    responses((status = 201, body = Datacentre), (status = "default", body = Error)))]
async fn create(
    State(app): State<App>,
    actor: Actor,
    Body { value, .. }: Body<Create<DatacentreSpec>>,
) -> Answer<(StatusCode, Json<Datacentre>)> {
    let name = value.name.clone();
    let made = create_plain::<Datacentres>(&app, &actor, value, |view, spec, txn| {
        let txn = check(view, None, spec, txn)?;
        with_cluster(view, txn, &name, app.now())
    });
    Ok((StatusCode::CREATED, made.await?))
}

/// Adds the datacentre's own cluster, unless there is a cluster of that name.
pub fn with_cluster(view: &View, txn: Txn, name: &Name, now: Timestamp) -> Answer<Txn> {
    if view.clusters.contains_key(name) {
        return Ok(txn);
    }
    let meta = new_meta(name.clone(), Labels::new(), String::new(), now)?;
    put_new(
        txn,
        Kind::Cluster,
        meta,
        ClusterSpec { datacentre: name.clone(), cpu_model: None, reserve: None },
    )
}

/// Changes a datacentre.
#[utoipa::path(patch, path = "/v1/datacentres/{name}", tag = "datacentre", operation_id = "datacentre_change",
    params(("name" = Name, Path)), request_body = Change,
    responses((status = 200, body = Datacentre), (status = "default", body = Error)))]
async fn change(
    State(app): State<App>,
    actor: Actor,
    PathName(name): PathName,
    headers: HeaderMap,
    Body { value, .. }: Body<Change>,
) -> Answer<Json<Datacentre>> {
    let checked = |view: &View, old: &DatacentreSpec, new: &DatacentreSpec, txn| {
        check(view, Some((&name, old)), new, txn)
    };
    change_plain::<Datacentres>(&app, &actor, &name, (&headers, &value), checked).await
}

/// Deletes a datacentre that nothing uses.
#[utoipa::path(delete, path = "/v1/datacentres/{name}", tag = "datacentre", operation_id = "datacentre_delete",
    params(("name" = Name, Path)),
    responses((status = 200, body = Deleted), (status = "default", body = Error)))]
async fn delete(
    State(app): State<App>,
    PathName(name): PathName,
    headers: HeaderMap,
) -> Answer<Json<Deleted>> {
    let known = known_revision(&headers, None)?;
    let view = app.view();
    let revision = list::show::<Datacentres>(&app, Role::Admin, &name)?.revision;
    if known.is_some_and(|known| known != revision) {
        return Err(refuse(Code::Conflict, format!("datacentre {name} is at revision {revision}"))
            .hint("read it again and repeat the change"));
    }
    in_use("datacentre", &name, &users(&view, &name))?;
    // Its own cluster came with it and goes with it.
    let txn = delete_columns(&view, Txn::new(), Kind::Datacentre, &name);
    let own = view.clusters.get(&name).and_then(|entry| entry.spec.as_ref());
    let txn = match own {
        Some(row) if row.value.spec.datacentre == name => delete_columns(&view, txn, Kind::Cluster, &name),
        _ => txn,
    };
    app.commit(txn).await?;
    Ok(Json(Deleted { deleted: name }))
}

fn check(
    view: &View,
    known: Option<(&Name, &DatacentreSpec)>,
    spec: &DatacentreSpec,
    txn: Txn,
) -> Answer<Txn> {
    if let (Profile::Fast, Some((name, _))) = (spec.ha.profile, known) {
        no_real_watchdog(view, name)?;
    }
    if spec.bandwidth.len() > LIMITS_MAX {
        let count = spec.bandwidth.len();
        return Err(refuse(
            Code::Invalid,
            format!("{count} bandwidth limits; at most {LIMITS_MAX} are kept"),
        ));
    }
    if let Some(fault) = spec.bandwidth.iter().find_map(BandwidthLimit::fault) {
        return Err(refuse(Code::Invalid, format!("bandwidth limit {fault}")));
    }
    match &spec.location {
        Some(location) if location.len() > 200 => {
            Err(refuse(Code::Invalid, "the location is longer than 200 bytes"))
        }
        _ => Ok(txn),
    }
}

/// The last second of a watchdog's time is for the reset: of one second nothing is left.
fn no_real_watchdog(view: &View, name: &Name) -> Answer<()> {
    let mut inside = view.hosts().filter(|host| host.spec.datacentre == *name);
    let real = inside.find(|host| {
        let guard = host.report.and_then(|report| report.guard.as_ref());
        guard.is_some_and(|guard| guard.watchdog == "device")
    });
    match real {
        Some(host) => Err(refuse(
            Code::Unmet,
            format!(
                "the watchdog of host {} cannot reset it within the one second that profile fast leaves",
                host.name
            ),
        )
        .hint("use profile quick")),
        None => Ok(()),
    }
}

fn users(view: &View, name: &Name) -> Vec<String> {
    let hosts =
        view.hosts().filter(|host| host.spec.datacentre == *name).map(|host| format!("host {}", host.name));
    let clusters = view.clusters.iter().filter(|(cluster, entry)| {
        *cluster != name && entry.spec.as_ref().is_some_and(|row| row.value.spec.datacentre == *name)
    });
    let pools = view.pools.iter().filter(|(_, entry)| {
        entry.spec.as_ref().is_some_and(|row| row.value.spec.datacentre.as_ref() == Some(name))
    });
    hosts
        .chain(clusters.map(|(cluster, _)| format!("cluster {cluster}")))
        .chain(pools.map(|(pool, _)| format!("pool {pool}")))
        .collect()
}
