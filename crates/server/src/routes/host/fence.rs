//! A host's fence device: set once it has answered, asked, and taken away. Nothing here switches anything off.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use sterna_model::error::{Code, Error};
use sterna_model::fence::{FenceDevice, PowerState, Secret};
use sterna_model::meta::Name;
use sterna_plan::View;
use sterna_power::{Agents, STATUS_WITHIN};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::app::App;
use crate::auth::Actor;
use crate::body::{Body, OptionalBody, PathName};
use crate::error::{Answer, Refusal, refuse};
use crate::gateway::link;
use crate::list;
use crate::routes::Plain;
use crate::shown::{Host, Hosts};
use crate::write::modify;

pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(set, remove)).routes(routes!(test))
}

/// A device as it is to be.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SetFence {
    /// The agent's program on the server, such as `fence_ipmilan`.
    agent: String,
    /// As the agent's manual names them, such as `ip`.
    #[serde(default)]
    options: BTreeMap<String, String>,
    /// Options that are kept and never shown, such as `password`.
    #[serde(default)]
    secrets: BTreeMap<String, Secret>,
}

/// Sets the device that switches a host off when it is lost, if it answers now.
#[utoipa::path(post, path = "/v1/hosts/{name}/fence", tag = "host", operation_id = "host_fence_set",
    params(("name" = Name, Path)), request_body = SetFence,
    responses((status = 200, body = Host), (status = "default", body = Error)))]
async fn set(
    State(app): State<App>,
    actor: Actor,
    PathName(name): PathName,
    Body { value: asked, .. }: Body<SetFence>,
) -> Answer<Json<Host>> {
    let SetFence { agent, options, secrets } = asked;
    let device = FenceDevice { id: Uuid::new_v4(), agent, options, secrets, since: app.now() };
    device.check().map_err(|why| refuse(Code::Invalid, why.to_string()))?;
    let view = app.view();
    view.host(&name).ok_or_else(|| list::not_found::<Hosts>(&name))?;
    is_no_others(&view, &name, &device)?;
    let power = ask(&app, &name, &device).await?;
    modify::<Hosts>(&app, &name, None, |view, object, txn| {
        // What was asked may have taken a while.
        is_no_others(view, &name, &device)?;
        object.spec.fence = Some(device.clone());
        Ok(txn)
    })
    .await?;
    let why = format!("{} has set it; {} says that the host is {}", actor.name, device.agent, power.word());
    link::record(&app, &name, "fence device set", &why);
    Ok(Json(list::show::<Hosts>(&app, actor.role, &name)?))
}

/// One switch for two machines would switch off the wrong one, and prove something of neither.
fn is_no_others(view: &View, name: &Name, device: &FenceDevice) -> Answer<()> {
    let is_it = |other: &FenceDevice| other.agent == device.agent && other.options == device.options;
    let other = view.hosts().find(|host| host.name != name && host.spec.fence.as_ref().is_some_and(is_it));
    match other {
        Some(other) => Err(refuse(Code::InUse, format!("host {} has the same fence device", other.name))
            .hint("name the plug or the address of this host's own")),
        None => Ok(()),
    }
}

/// What the device says, as long as that can be true.
async fn ask(app: &App, name: &Name, device: &FenceDevice) -> Answer<PowerState> {
    let Some(fencing) = &app.config.fencing else {
        let message = "this server speaks to no guards: no host is ever called lost, and no device is used";
        return Err(refuse(Code::Unmet, message).hint("`[fencing]` in the server's settings"));
    };
    let agents = Agents::in_dir(&fencing.agents);
    let power =
        agents.status(device, STATUS_WITHIN).await.map_err(|failed| no_answer(name, device, &failed.0))?;
    let is_up = app.view().host(name).is_some_and(|host| host.is_connected());
    if power == PowerState::Off && is_up {
        let message = format!(
            "{} says that host {name} is off, and its agent is connected: the device is another machine's",
            device.agent
        );
        return Err(refuse(Code::Unmet, message).hint("look at address and plug"));
    }
    Ok(power)
}

fn no_answer(name: &Name, device: &FenceDevice, why: &str) -> Refusal {
    refuse(Code::Unmet, format!("the fence device of host {name} does not answer: {why}")).hint(format!(
        "the server runs it; `{} -o status ...` there, with the same options, shows more",
        device.agent
    ))
}

/// What a device said.
#[derive(Debug, Serialize, ToSchema)]
struct FenceTested {
    host: Name,
    agent: String,
    power: PowerState,
}

/// Asks a host's device now whether the host is on. Switches nothing.
#[utoipa::path(post, path = "/v1/hosts/{name}/fence/test", tag = "host", operation_id = "host_fence_test",
    params(("name" = Name, Path)),
    responses((status = 200, body = FenceTested), (status = "default", body = Error)))]
async fn test(
    State(app): State<App>,
    PathName(name): PathName,
    _plain: OptionalBody<Plain>,
) -> Answer<Json<FenceTested>> {
    let view = app.view();
    let host = view.host(&name).ok_or_else(|| list::not_found::<Hosts>(&name))?;
    let device = host.spec.fence.clone().ok_or_else(|| has_none(&name))?;
    let power = ask(&app, &name, &device).await?;
    Ok(Json(FenceTested { host: name, agent: device.agent, power }))
}

fn has_none(name: &Name) -> Refusal {
    refuse(Code::WrongState, format!("host {name} has no fence device"))
        .hint("`sterna host fence set` gives it one")
}

/// Takes a host's device away. What it has proven stays proven.
#[utoipa::path(delete, path = "/v1/hosts/{name}/fence", tag = "host", operation_id = "host_fence_remove",
    params(("name" = Name, Path)),
    responses((status = 200, body = Host), (status = "default", body = Error)))]
async fn remove(State(app): State<App>, actor: Actor, PathName(name): PathName) -> Answer<Json<Host>> {
    modify::<Hosts>(&app, &name, None, |_, object, txn| {
        object.spec.fence.take().ok_or_else(|| has_none(&name))?;
        Ok(txn)
    })
    .await?;
    link::record(&app, &name, "fence device removed", &format!("{} has removed it", actor.name));
    Ok(Json(list::show::<Hosts>(&app, actor.role, &name)?))
}
