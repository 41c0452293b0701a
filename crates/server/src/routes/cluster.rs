//! Hosts with one CPU baseline.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use sterna_model::cluster::{ClusterSpec, RESERVE_MAX};
use sterna_model::error::{Code, Error};
use sterna_model::meta::Name;
use sterna_plan::View;
use sterna_store::Txn;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::auth::Actor;
use crate::body::{Body, PathName, Words};
use crate::error::{Answer, refuse};
use crate::list::{self, Page};
use crate::routes::{Change, Deleted, change_plain, create_plain, delete_plain};
use crate::shown::{Cluster, Clusters, Datacentres};
use crate::write::{Create, refer};

pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(get, change, delete))
}

/// All clusters that match.
#[utoipa::path(get, path = "/v1/clusters", tag = "cluster", operation_id = "cluster_list",
    params(("limit" = Option<usize>, Query), ("after" = Option<String>, Query), ("label" = Option<String>, Query)),
    responses((status = 200, body = Page<Cluster>), (status = "default", body = Error)))]
async fn list(State(app): State<App>, actor: Actor, words: Words) -> Answer<Json<Page<Cluster>>> {
    words.only(&list::WORDS)?;
    list::list::<Clusters>(&app, &actor, &words)
}

/// One cluster.
#[utoipa::path(get, path = "/v1/clusters/{name}", tag = "cluster", operation_id = "cluster_get",
    params(("name" = Name, Path)),
    responses((status = 200, body = Cluster), (status = "default", body = Error)))]
async fn get(State(app): State<App>, actor: Actor, PathName(name): PathName) -> Answer<Json<Cluster>> {
    Ok(Json(list::show::<Clusters>(&app, actor.role, &name)?))
}

/// Creates a cluster.
#[utoipa::path(post, path = "/v1/clusters", tag = "cluster", operation_id = "cluster_create", request_body = Create<ClusterSpec>,
    responses((status = 201, body = Cluster), (status = "default", body = Error)))]
async fn create(
    State(app): State<App>,
    actor: Actor,
    Body { value, .. }: Body<Create<ClusterSpec>>,
) -> Answer<(StatusCode, Json<Cluster>)> {
    Ok((
        StatusCode::CREATED,
        create_plain::<Clusters>(&app, &actor, value, |view, spec, txn| check(view, None, spec, txn)).await?,
    ))
}

/// Changes a cluster.
#[utoipa::path(patch, path = "/v1/clusters/{name}", tag = "cluster", operation_id = "cluster_change",
    params(("name" = Name, Path)), request_body = Change,
    responses((status = 200, body = Cluster), (status = "default", body = Error)))]
async fn change(
    State(app): State<App>,
    actor: Actor,
    PathName(name): PathName,
    headers: HeaderMap,
    Body { value, .. }: Body<Change>,
) -> Answer<Json<Cluster>> {
    let checked =
        |view: &View, old: &ClusterSpec, new: &ClusterSpec, txn| check(view, Some((&name, old)), new, txn);
    change_plain::<Clusters>(&app, &actor, &name, (&headers, &value), checked).await
}

/// Deletes a cluster that nothing uses.
#[utoipa::path(delete, path = "/v1/clusters/{name}", tag = "cluster", operation_id = "cluster_delete",
    params(("name" = Name, Path)),
    responses((status = 200, body = Deleted), (status = "default", body = Error)))]
async fn delete(
    State(app): State<App>,
    PathName(name): PathName,
    headers: HeaderMap,
) -> Answer<Json<Deleted>> {
    delete_plain::<Clusters>(&app, &name, &headers, |view| users(view, &name)).await
}

/// What must hold for a cluster; `old` is the cluster that changes.
fn check(view: &View, old: Option<(&Name, &ClusterSpec)>, spec: &ClusterSpec, txn: Txn) -> Answer<Txn> {
    if let Some((name, old)) = old
        && old.datacentre != spec.datacentre
        && !users(view, name).is_empty()
    {
        return Err(refuse(Code::InUse, "a cluster with hosts keeps its datacentre"));
    }
    let model = spec.cpu_model.as_deref().unwrap_or("qemu64");
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if model.is_empty() || model.len() > 40 || !model.bytes().all(fits) {
        return Err(refuse(Code::Invalid, format!("{model:.40?} is not a CPU model"))
            .hint("use a name that `qemu-system-x86_64 -cpu help` lists"));
    }
    if spec.reserve.is_some_and(|reserve| reserve > RESERVE_MAX) {
        return Err(refuse(Code::Invalid, format!("a reserve is for {RESERVE_MAX} lost hosts at most")));
    }
    refer::<Datacentres>(view, txn, &spec.datacentre)
}

fn users(view: &View, name: &Name) -> Vec<String> {
    let hosts = view.hosts().filter(|host| host.spec.cluster == *name);
    hosts.map(|host| format!("host {}", host.name)).collect()
}
