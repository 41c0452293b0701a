//! Start, stop, pause, resume, reset.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use sterna_model::error::{Code, Error};
use sterna_model::meta::Name;
use sterna_model::operation::Goal;
use sterna_model::status::VmState;
use sterna_model::vm::{Power, VmSpec};
use sterna_plan::View;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::auth::Actor;
use crate::body::{OptionalBody, PathName};
use crate::error::{Answer, refuse};
use crate::routes::Plain;
use crate::routes::vm::accepted;
use crate::shown::Vms;
use crate::write::{Started, modify, operation};

pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(start))
        .routes(routes!(stop))
        .routes(routes!(pause))
        .routes(routes!(resume))
        .routes(routes!(reset))
}

/// How a VM stops.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
struct Stop {
    /// Switch it off without asking the guest.
    force: bool,
}

type Accepted = Answer<(StatusCode, Json<Started>)>;

/// Starts a VM; one that runs stays as it is.
#[utoipa::path(post, path = "/v1/vms/{name}/start", tag = "vm", operation_id = "vm_start",
    params(("name" = Name, Path)), request_body = Plain,
    responses((status = 202, body = Started), (status = "default", body = Error)))]
async fn start(
    State(app): State<App>,
    actor: Actor,
    PathName(name): PathName,
    _plain: OptionalBody<Plain>,
) -> Accepted {
    ask(&app, &actor, &name, |now, spec| {
        // A guest that ended by itself is started anew only by a new request, and only one lifts a quarantine.
        let runs =
            matches!(now.state, VmState::Running | VmState::Starting | VmState::Migrating | VmState::Placing);
        if !(runs && spec.power == Power::Running) || now.is_quarantined {
            spec.power_request += 1;
        }
        spec.power = Power::Running;
        Ok(Goal::VmPower { vm: name.clone(), request: spec.power_request })
    })
    .await
}

/// Asks the guest to shut down; after `shutdown_timeout` it is switched off.
#[utoipa::path(post, path = "/v1/vms/{name}/stop", tag = "vm", operation_id = "vm_stop",
    params(("name" = Name, Path)), request_body = Stop,
    responses((status = 202, body = Started), (status = "default", body = Error)))]
async fn stop(
    State(app): State<App>,
    actor: Actor,
    PathName(name): PathName,
    OptionalBody(how): OptionalBody<Stop>,
) -> Accepted {
    ask(&app, &actor, &name, |_, spec| {
        spec.power = if how.force { Power::Off } else { Power::Stopped };
        spec.power_request += 1;
        Ok(Goal::VmPower { vm: name.clone(), request: spec.power_request })
    })
    .await
}

/// Stops the guest's CPUs; its memory stays.
#[utoipa::path(post, path = "/v1/vms/{name}/pause", tag = "vm", operation_id = "vm_pause",
    params(("name" = Name, Path)), request_body = Plain,
    responses((status = 202, body = Started), (status = "default", body = Error)))]
async fn pause(
    State(app): State<App>,
    actor: Actor,
    PathName(name): PathName,
    _plain: OptionalBody<Plain>,
) -> Accepted {
    ask(&app, &actor, &name, |now, spec| match now.state {
        VmState::Running | VmState::Paused => {
            spec.power = Power::Paused;
            Ok(Goal::VmPaused { vm: name.clone() })
        }
        other => Err(refuse(
            Code::WrongState,
            format!("the VM is {}; only a running one can be paused", other.word()),
        )),
    })
    .await
}

/// Continues a paused guest.
#[utoipa::path(post, path = "/v1/vms/{name}/resume", tag = "vm", operation_id = "vm_resume",
    params(("name" = Name, Path)), request_body = Plain,
    responses((status = 202, body = Started), (status = "default", body = Error)))]
async fn resume(
    State(app): State<App>,
    actor: Actor,
    PathName(name): PathName,
    _plain: OptionalBody<Plain>,
) -> Accepted {
    ask(&app, &actor, &name, |now, spec| match now.state {
        VmState::Running | VmState::Paused => {
            spec.power = Power::Running;
            Ok(Goal::VmResumed { vm: name.clone() })
        }
        other => Err(refuse(
            Code::WrongState,
            format!("the VM is {}; only a paused one can be resumed", other.word()),
        )
        .hint("use start for a stopped VM")),
    })
    .await
}

/// Resets the guest, as its reset button would.
#[utoipa::path(post, path = "/v1/vms/{name}/reset", tag = "vm", operation_id = "vm_reset",
    params(("name" = Name, Path)), request_body = Plain,
    responses((status = 202, body = Started), (status = "default", body = Error)))]
async fn reset(
    State(app): State<App>,
    actor: Actor,
    PathName(name): PathName,
    _plain: OptionalBody<Plain>,
) -> Accepted {
    ask(&app, &actor, &name, |now, spec| match now.state {
        VmState::Running | VmState::Paused | VmState::Migrating => {
            spec.reset_request += 1;
            Ok(Goal::VmReset { vm: name.clone(), request: spec.reset_request })
        }
        other => Err(refuse(
            Code::WrongState,
            format!("the VM is {}; only a running one can be reset", other.word()),
        )),
    })
    .await
}

/// Changes the power part of a spec and records the operation that waits for the goal that `change` gives.
async fn ask(
    app: &App,
    actor: &Actor,
    name: &Name,
    change: impl Fn(Now, &mut VmSpec) -> Answer<Goal>,
) -> Accepted {
    let now = app.now();
    let mut waits_for = None;
    modify::<Vms>(app, name, None, |view, object, txn| {
        let goal = change(now_of(view, app, name)?, &mut object.spec)?;
        let (id, txn) = operation(txn, actor, goal, now)?;
        waits_for = Some(id);
        Ok(txn)
    })
    .await?;
    accepted(app, actor, waits_for)
}

/// How a VM is when something is asked of it.
#[derive(Debug, Clone, Copy)]
struct Now {
    state: VmState,
    is_quarantined: bool,
}

fn now_of(view: &View, app: &App, name: &Name) -> Answer<Now> {
    let status = sterna_plan::status::vm(view, name, app.now())
        .ok_or_else(|| refuse(Code::WrongState, format!("vm {name} has a part that cannot be read")))?;
    let report = view.vm(name).and_then(|vm| vm.owner_report().cloned());
    let is_quarantined = report.is_some_and(|row| row.health.quarantine.is_some());
    match status.state {
        VmState::Deleting => Err(refuse(Code::WrongState, format!("vm {name} is being deleted"))),
        state => Ok(Now { state, is_quarantined }),
    }
}
