//! L2 segments between VMs.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use sterna_model::error::{Code, Error};
use sterna_model::meta::Name;
use sterna_model::network::{NetworkKind, NetworkSpec};
use sterna_plan::View;
use sterna_plan::view::VmEntry;
use sterna_store::Txn;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::auth::Actor;
use crate::body::{Body, PathName, Words};
use crate::error::{Answer, refuse};
use crate::list::{self, Page};
use crate::routes::{Change, Deleted, change_plain, create_plain, delete_plain, one_default};
use crate::shown::{Network, Networks};
use crate::write::Create;

pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(get, change, delete))
}

/// All networks that match.
#[utoipa::path(get, path = "/v1/networks", tag = "network", operation_id = "network_list",
    params(("limit" = Option<usize>, Query), ("after" = Option<String>, Query), ("label" = Option<String>, Query)),
    responses((status = 200, body = Page<Network>), (status = "default", body = Error)))]
async fn list(State(app): State<App>, actor: Actor, words: Words) -> Answer<Json<Page<Network>>> {
    words.only(&list::WORDS)?;
    list::list::<Networks>(&app, &actor, &words)
}

/// One network.
#[utoipa::path(get, path = "/v1/networks/{name}", tag = "network", operation_id = "network_get",
    params(("name" = Name, Path)),
    responses((status = 200, body = Network), (status = "default", body = Error)))]
async fn get(State(app): State<App>, actor: Actor, PathName(name): PathName) -> Answer<Json<Network>> {
    Ok(Json(list::show::<Networks>(&app, actor.role, &name)?))
}

/// Creates a network.
#[utoipa::path(post, path = "/v1/networks", tag = "network", operation_id = "network_create", request_body = Create<NetworkSpec>,
    responses((status = 201, body = Network), (status = "default", body = Error)))]
async fn create(
    State(app): State<App>,
    actor: Actor,
    Body { value, .. }: Body<Create<NetworkSpec>>,
) -> Answer<(StatusCode, Json<Network>)> {
    Ok((
        StatusCode::CREATED,
        create_plain::<Networks>(&app, &actor, value, |view, spec, txn| check(view, None, spec, txn)).await?,
    ))
}

/// Changes a network.
#[utoipa::path(patch, path = "/v1/networks/{name}", tag = "network", operation_id = "network_change",
    params(("name" = Name, Path)), request_body = Change,
    responses((status = 200, body = Network), (status = "default", body = Error)))]
async fn change(
    State(app): State<App>,
    actor: Actor,
    PathName(name): PathName,
    headers: HeaderMap,
    Body { value, .. }: Body<Change>,
) -> Answer<Json<Network>> {
    let checked =
        |view: &View, old: &NetworkSpec, new: &NetworkSpec, txn| check(view, Some((&name, old)), new, txn);
    change_plain::<Networks>(&app, &actor, &name, (&headers, &value), checked).await
}

/// Deletes a network that nothing uses.
#[utoipa::path(delete, path = "/v1/networks/{name}", tag = "network", operation_id = "network_delete",
    params(("name" = Name, Path)),
    responses((status = 200, body = Deleted), (status = "default", body = Error)))]
async fn delete(
    State(app): State<App>,
    PathName(name): PathName,
    headers: HeaderMap,
) -> Answer<Json<Deleted>> {
    delete_plain::<Networks>(&app, &name, &headers, |view| users(view, &name)).await
}

/// What must hold for a network; `old` is the network that changes.
fn check(view: &View, old: Option<(&Name, &NetworkSpec)>, spec: &NetworkSpec, txn: Txn) -> Answer<Txn> {
    if let NetworkKind::Bridge { bridge, vlan } = &spec.kind {
        check_bridge(bridge, *vlan)?;
    }
    let name = old.map(|(name, _)| name);
    if let Some((name, old)) = old
        && old.kind != spec.kind
        && !users(view, name).is_empty()
    {
        return Err(refuse(Code::InUse, "a network with NICs keeps its kind and addresses"));
    }
    if spec.default {
        let others = view.networks.iter().filter(|(other, entry)| {
            Some(*other) != name && entry.spec.as_ref().is_some_and(|row| row.value.spec.default)
        });
        one_default("network", others.map(|(other, _)| other))?;
    }
    Ok(txn)
}

/// Interface names are at most 15 bytes (IFNAMSIZ); these characters need no quoting anywhere.
fn check_bridge(bridge: &str, vlan: Option<u16>) -> Answer<()> {
    let chars_fit = bridge.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    let reserved = matches!(bridge, "lo" | "." | ".." | "all" | "default");
    if bridge.is_empty() || bridge.len() > 15 || !chars_fit || bridge.starts_with('-') || reserved {
        return Err(refuse(Code::Invalid, format!("{bridge:.40?} is not allowed as a bridge"))
            .hint("name an existing bridge of the hosts, 1 to 15 of a-z A-Z 0-9 . _ -"));
    }
    match vlan {
        Some(vlan) if !(1..=4094).contains(&vlan) => {
            Err(refuse(Code::Invalid, format!("vlan {vlan} is not allowed")).hint("use 1 to 4094"))
        }
        _ => Ok(()),
    }
}

fn users(view: &View, name: &Name) -> Vec<String> {
    let asks = |entry: &VmEntry| {
        entry.spec.as_ref().is_some_and(|row| row.value.spec.nics.iter().any(|nic| nic.network == *name))
    };
    let has = |entry: &VmEntry| {
        entry.decision.as_ref().is_some_and(|row| row.hardware.nics.iter().any(|nic| nic.network == *name))
    };
    let vms = view.vms.iter().filter(|(_, entry)| asks(entry) || has(entry));
    vms.map(|(vm, _)| format!("vm {vm}")).collect()
}
