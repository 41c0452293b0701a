//! Places that hold volumes.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use sterna_model::error::{Code, Error};
use sterna_model::meta::Name;
use sterna_model::pool::{PoolKind, PoolSpec};
use sterna_plan::View;
use sterna_plan::view::VolumeEntry;
use sterna_store::Txn;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::auth::Actor;
use crate::body::{Body, PathName, Words};
use crate::error::{Answer, refuse};
use crate::list::{self, Page};
use crate::routes::{Change, Deleted, change_plain, create_plain, delete_plain};
use crate::shown::{Datacentres, Hosts, Pool, Pools};
use crate::write::{Create, refer};

pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(get, change, delete))
}

/// All pools that match.
#[utoipa::path(get, path = "/v1/pools", tag = "pool", operation_id = "pool_list",
    params(("limit" = Option<usize>, Query), ("after" = Option<String>, Query), ("label" = Option<String>, Query)),
    responses((status = 200, body = Page<Pool>), (status = "default", body = Error)))]
async fn list(State(app): State<App>, actor: Actor, words: Words) -> Answer<Json<Page<Pool>>> {
    words.only(&list::WORDS)?;
    list::list::<Pools>(&app, &actor, &words)
}

/// One pool.
#[utoipa::path(get, path = "/v1/pools/{name}", tag = "pool", operation_id = "pool_get",
    params(("name" = Name, Path)),
    responses((status = 200, body = Pool), (status = "default", body = Error)))]
async fn get(State(app): State<App>, actor: Actor, PathName(name): PathName) -> Answer<Json<Pool>> {
    Ok(Json(list::show::<Pools>(&app, actor.role, &name)?))
}

/// Creates a pool.
#[utoipa::path(post, path = "/v1/pools", tag = "pool", operation_id = "pool_create", request_body = Create<PoolSpec>,
    responses((status = 201, body = Pool), (status = "default", body = Error)))]
async fn create(
    State(app): State<App>,
    actor: Actor,
    Body { value, .. }: Body<Create<PoolSpec>>,
) -> Answer<(StatusCode, Json<Pool>)> {
    Ok((
        StatusCode::CREATED,
        create_plain::<Pools>(&app, &actor, value, |view, spec, txn| check(view, None, spec, txn)).await?,
    ))
}

/// Changes a pool.
#[utoipa::path(patch, path = "/v1/pools/{name}", tag = "pool", operation_id = "pool_change",
    params(("name" = Name, Path)), request_body = Change,
    responses((status = 200, body = Pool), (status = "default", body = Error)))]
async fn change(
    State(app): State<App>,
    actor: Actor,
    PathName(name): PathName,
    headers: HeaderMap,
    Body { value, .. }: Body<Change>,
) -> Answer<Json<Pool>> {
    let checked =
        |view: &View, old: &PoolSpec, new: &PoolSpec, txn| check(view, Some((&name, old)), new, txn);
    change_plain::<Pools>(&app, &actor, &name, (&headers, &value), checked).await
}

/// Deletes a pool that nothing uses.
#[utoipa::path(delete, path = "/v1/pools/{name}", tag = "pool", operation_id = "pool_delete",
    params(("name" = Name, Path)),
    responses((status = 200, body = Deleted), (status = "default", body = Error)))]
async fn delete(
    State(app): State<App>,
    PathName(name): PathName,
    headers: HeaderMap,
) -> Answer<Json<Deleted>> {
    delete_plain::<Pools>(&app, &name, &headers, |view| users(view, &name)).await
}

/// What must hold for a pool; `old` is the pool that changes.
fn check(view: &View, old: Option<(&Name, &PoolSpec)>, spec: &PoolSpec, mut txn: Txn) -> Answer<Txn> {
    check_path(&spec.kind)?;
    if let Some((name, old)) = old
        && old.kind != spec.kind
        && !users(view, name).is_empty()
    {
        return Err(refuse(Code::InUse, "a pool that holds volumes keeps its kind and path"));
    }
    if let Some(datacentre) = &spec.datacentre {
        txn = refer::<Datacentres>(view, txn, datacentre)?;
    }
    if let PoolKind::Nbd { host, .. } = &spec.kind {
        txn = refer::<Hosts>(view, txn, host)?;
    }
    Ok(txn)
}

/// A path is used as it is on every host: absolute, without detours. That of a host's own folder may also be relative: it
/// then lies below what the agent keeps, so that hosts of one machine have one each.
fn check_path(kind: &PoolKind) -> Answer<()> {
    let path = kind.path();
    let is_relative = !path.starts_with('/') && matches!(kind, PoolKind::Dir { .. });
    let parts = path.strip_prefix('/').unwrap_or(path).split('/');
    let parts_fit = parts.into_iter().all(|part| !part.is_empty() && part != "." && part != "..");
    let chars_fit = path.chars().all(|c| c.is_ascii_graphic() && !matches!(c, ',' | '\\' | '"' | '\''));
    if (path.starts_with('/') || is_relative) && parts_fit && chars_fit && path.len() <= 200 {
        return Ok(());
    }
    Err(refuse(Code::Invalid, format!("{path:.60?} is not allowed as a pool's path")).hint(
        "use an absolute path of visible ASCII without `,`, quotes, `.` or `..`, at most 200 characters; a `dir` pool's \
         may begin without `/`, below the agent's own folder on each host",
    ))
}

fn users(view: &View, name: &Name) -> Vec<String> {
    let asked = |entry: &VolumeEntry| {
        entry.spec.as_ref().is_some_and(|row| row.value.spec.pool.as_ref() == Some(name))
    };
    let decided = |entry: &VolumeEntry| entry.decision.as_ref().is_some_and(|row| row.pool == *name);
    let volumes = view.volumes.iter().filter(|(_, entry)| asked(entry) || decided(entry));
    volumes.map(|(volume, _)| format!("volume {volume}")).collect()
}
