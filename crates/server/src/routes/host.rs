//! Machines that run VMs, and the tokens that make one.

/// What switches a host off when it is lost.
pub mod fence;
/// What a loss of a host would do.
pub mod loss;
/// Removing a host: refused while anything is, or may be, on it.
pub mod removal;

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use serde::{Deserialize, Serialize};
use sterna_base::clock::Timestamp;
use sterna_model::error::{Code, Error};
use sterna_model::ha::ConfirmedDead;
use sterna_model::host::HostSpec;
use sterna_model::key::{Key, Kind};
use sterna_model::meta::{Labels, Name};
use sterna_model::operation::Goal;
use sterna_model::token::JoinTokenSpec;
use sterna_store::Txn;
use sterna_wire::join::JoinToken;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::app::App;
use crate::auth::{Actor, new_secret};
use crate::body::{Body, OptionalBody, PathName, Words};
use crate::error::{Answer, refuse};
use crate::gateway::link;
use crate::list::{self, Page};
use crate::routes::{Change, Deleted, Plain, change_plain};
use crate::shown::{Host, Hosts};
use crate::write::{Started, known_revision, modify, new_meta, operation, put_new, started};

/// A join token is for the next minutes, not for a drawer.
const TOKEN_LIFE: Duration = Duration::from_secs(15 * 60);

pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(get, change, delete))
        .routes(routes!(drain))
        .routes(routes!(undrain))
        .routes(routes!(confirm_dead))
        .routes(routes!(create_token))
        .merge(loss::routes())
        .merge(fence::routes())
}

/// All hosts that match.
#[utoipa::path(get, path = "/v1/hosts", tag = "host", operation_id = "host_list",
    params(("limit" = Option<usize>, Query), ("after" = Option<String>, Query), ("label" = Option<String>, Query),
        ("state" = Option<String>, Query)),
    responses((status = 200, body = Page<Host>), (status = "default", body = Error)))]
async fn list(State(app): State<App>, actor: Actor, words: Words) -> Answer<Json<Page<Host>>> {
    words.only(&list::WORDS)?;
    list::list::<Hosts>(&app, &actor, &words)
}

/// One host.
#[utoipa::path(get, path = "/v1/hosts/{name}", tag = "host", operation_id = "host_get", params(("name" = Name, Path)),
    responses((status = 200, body = Host), (status = "default", body = Error)))]
async fn get(State(app): State<App>, actor: Actor, PathName(name): PathName) -> Answer<Json<Host>> {
    Ok(Json(list::show::<Hosts>(&app, actor.role, &name)?))
}

/// Changes labels, notes and the cordon of a host.
#[utoipa::path(patch, path = "/v1/hosts/{name}", tag = "host", operation_id = "host_change",
    params(("name" = Name, Path)), request_body = Change,
    responses((status = 200, body = Host), (status = "default", body = Error)))]
async fn change(
    State(app): State<App>,
    actor: Actor,
    PathName(name): PathName,
    headers: HeaderMap,
    Body { value, .. }: Body<Change>,
) -> Answer<Json<Host>> {
    change_plain::<Hosts>(&app, &actor, &name, (&headers, &value), |_, old, new, txn| {
        if new.confirmed_dead != old.confirmed_dead {
            return Err(refuse(Code::Invalid, "that a host is dead is not said by a change of its spec")
                .hint("`sterna host confirm-dead`"));
        }
        if new.fence != old.fence {
            return Err(refuse(
                Code::Invalid,
                "a fence device is not set by a change of the spec: it is asked first",
            )
            .hint("`sterna host fence set`"));
        }
        let movable = HostSpec { cordoned: old.cordoned, draining: old.draining, ..new.clone() };
        if movable != *old {
            return Err(refuse(
                Code::Invalid,
                "datacentre, cluster and addresses of a host are fixed when it joins",
            )
            .hint("let it leave and join again"));
        }
        Ok(txn)
    })
    .await
}

/// Moves every VM away, one by one; no new ones arrive.
#[utoipa::path(post, path = "/v1/hosts/{name}/drain", tag = "host", operation_id = "host_drain",
    params(("name" = Name, Path)), responses((status = 202, body = Started), (status = "default", body = Error)))]
async fn drain(
    State(app): State<App>,
    actor: Actor,
    PathName(name): PathName,
    _plain: OptionalBody<Plain>,
) -> Answer<(StatusCode, Json<Started>)> {
    let now = app.now();
    let mut waits_for = None;
    modify::<Hosts>(&app, &name, None, |_, object, txn| {
        object.spec.draining = true;
        let (id, txn) = operation(txn, &actor, Goal::HostEmpty { host: name.clone() }, now)?;
        waits_for = Some(id);
        Ok(txn)
    })
    .await?;
    let id = waits_for.ok_or_else(|| refuse(Code::Internal, "the operation was not recorded"))?;
    Ok((StatusCode::ACCEPTED, Json(started(&app, &actor, &id)?)))
}

/// Ends a drain: the host takes VMs again. Those that have moved away stay where they are.
#[utoipa::path(post, path = "/v1/hosts/{name}/undrain", tag = "host", operation_id = "host_undrain",
    params(("name" = Name, Path)), responses((status = 200, body = Host), (status = "default", body = Error)))]
async fn undrain(
    State(app): State<App>,
    actor: Actor,
    PathName(name): PathName,
    _plain: OptionalBody<Plain>,
) -> Answer<Json<Host>> {
    modify::<Hosts>(&app, &name, None, |_, object, txn| {
        object.spec.draining = false;
        Ok(txn)
    })
    .await?;
    Ok(Json(list::show::<Hosts>(&app, actor.role, &name)?))
}

/// The name once more: a slip must not start what still runs a second time.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ConfirmDead {
    host: Name,
}

/// A person has looked: nothing runs on this host any more. Its VMs are started elsewhere.
#[utoipa::path(post, path = "/v1/hosts/{name}/confirm-dead", tag = "host", operation_id = "host_confirm_dead",
    params(("name" = Name, Path)), request_body = ConfirmDead,
    responses((status = 200, body = Host), (status = "default", body = Error)))]
async fn confirm_dead(
    State(app): State<App>,
    actor: Actor,
    PathName(name): PathName,
    Body { value: typed, .. }: Body<ConfirmDead>,
) -> Answer<Json<Host>> {
    if typed.host != name {
        let message = format!("host {} was typed, and it is about host {name}", typed.host);
        return Err(refuse(Code::Invalid, message).hint("type the name of the host that is dead"));
    }
    let at = app.now();
    modify::<Hosts>(&app, &name, None, |view, object, txn| {
        let host = view.host(&name).ok_or_else(|| list::not_found::<Hosts>(&name))?;
        if host.is_connected() {
            return Err(refuse(Code::WrongState, format!("host {name} is alive: its agent is connected"))
                .hint("`sterna host drain` moves its VMs away"));
        }
        let silent_since = host.report.map(|report| report.since);
        object.spec.confirmed_dead =
            Some(ConfirmedDead { epoch: host.epoch(), silent_since, by: actor.name.clone(), at });
        // Should it be back meanwhile, it is not dead.
        let report = Key::report(Kind::Host, &name);
        Ok(txn.require(report.to_string(), view.revision_of(&report)))
    })
    .await?;
    link::record(
        &app,
        &name,
        "confirmed dead",
        &format!("{} looked and says that nothing runs on it", actor.name),
    );
    Ok(Json(list::show::<Hosts>(&app, actor.role, &name)?))
}

/// Removes a host that has nothing left. Its certificate is worth nothing from then on.
#[utoipa::path(delete, path = "/v1/hosts/{name}", tag = "host", operation_id = "host_delete",
    params(("name" = Name, Path)), responses((status = 200, body = Deleted), (status = "default", body = Error)))]
async fn delete(
    State(app): State<App>,
    PathName(name): PathName,
    headers: HeaderMap,
) -> Answer<Json<Deleted>> {
    removal::remove(&app, &name, known_revision(&headers, None)?).await?;
    app.gateway.forget(&name);
    Ok(Json(Deleted { deleted: name }))
}

/// Which host may join.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
struct CreateToken {
    /// Only a host of this name; absent: any name.
    host: Option<Name>,
}

/// A single-use right to join one host.
#[derive(Debug, Serialize, ToSchema)]
struct HostToken {
    /// What `sterna agent join` takes. It is shown this once.
    token: String,
    #[schema(value_type = String, format = DateTime)]
    expires: Timestamp,
}

/// Makes a token that one machine can join with, within 15 minutes.
#[utoipa::path(post, path = "/v1/host-tokens", tag = "host", operation_id = "host_token_create",
    request_body = CreateToken, responses((status = 201, body = HostToken), (status = "default", body = Error)))]
async fn create_token(
    State(app): State<App>,
    headers: HeaderMap,
    uri: axum::http::Uri,
    OptionalBody(asked): OptionalBody<CreateToken>,
) -> Answer<(StatusCode, Json<HostToken>)> {
    let server = reachable_at(&app, &headers, &uri);
    let (token, expires, txn) = new_join_token(&server, &app.ca.pin(), asked.host, app.now())?;
    app.commit(txn).await?;
    Ok((StatusCode::CREATED, Json(HostToken { token: token.to_string(), expires })))
}

/// A join token, and the transaction that makes it valid.
pub fn new_join_token(
    server: &str,
    pin: &str,
    host: Option<Name>,
    now: Timestamp,
) -> Answer<(JoinToken, Timestamp, Txn)> {
    let (secret, hash) = new_secret();
    let expires = now + TOKEN_LIFE;
    let random = Uuid::new_v4().simple().to_string();
    let name = Name::new(&format!("join-{}", &random[..12]))?;
    let meta = new_meta(name, Labels::new(), String::new(), now)?;
    let spec = JoinTokenSpec { hash, expires, host, used_by: None };
    let txn = put_new(Txn::new(), Kind::JoinToken, meta, spec)?;
    let token = JoinToken { server: server.to_owned(), secret, ca_pin: pin.to_owned() };
    Ok((token, expires, txn))
}

/// Where the joining machine finds this server: as configured, else as the asker found it.
fn reachable_at(app: &App, headers: &HeaderMap, uri: &axum::http::Uri) -> String {
    if let Some(advertise) = &app.config.advertise {
        return advertise.clone();
    }
    let asked = uri.authority().map(ToString::to_string);
    let asked = asked.or_else(|| headers.get(header::HOST)?.to_str().ok().map(str::to_owned));
    let plain = |host: &String| host.len() < 300 && !host.contains(['/', '@']) && host.contains(':');
    asked.filter(plain).unwrap_or_else(|| app.address.to_string())
}
