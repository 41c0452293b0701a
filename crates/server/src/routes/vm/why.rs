//! Why a VM is where it is and does what it does.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use sterna_model::error::{Code, Error};
use sterna_model::event::Event;
use sterna_model::meta::Name;
use sterna_model::status::VmStatus;
use sterna_store::history::EventFilter;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::body::{PathName, Words};
use crate::error::{Answer, refuse};
use crate::list;
use crate::routes::event;
use crate::shown::Vms;

pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(why))
}

/// The answer to "why is this VM here?".
#[derive(Debug, Serialize, ToSchema)]
struct Why {
    status: VmStatus,
    /// The host that owns it.
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<Name>,
    /// Why it is on that host.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    /// What happened to it, the newest last.
    events: Vec<Event>,
}

/// Why a VM is where it is, and what happened to it.
#[utoipa::path(get, path = "/v1/vms/{name}/why", tag = "vm", operation_id = "vm_why",
    params(("name" = Name, Path), ("limit" = Option<usize>, Query)),
    responses((status = 200, body = Why), (status = "default", body = Error)))]
async fn why(State(app): State<App>, PathName(name): PathName, words: Words) -> Answer<Json<Why>> {
    words.only(&["limit"])?;
    let limit = words.parsed::<usize>("limit")?.unwrap_or(20).clamp(1, list::LIMIT_MAX);
    let (status, decision) = {
        let view = app.view();
        let vm = view.vm(&name).ok_or_else(|| list::not_found::<Vms>(&name))?;
        let status = sterna_plan::status::vm(&view, &name, app.now())
            .ok_or_else(|| refuse(Code::WrongState, format!("vm {name} has a part that cannot be read")))?;
        (status, vm.decision().cloned())
    };
    let filter = EventFilter {
        object_kind: Some("vm".to_owned()),
        object: Some(name.to_string()),
        limit,
        ..EventFilter::default()
    };
    let events = event::oldest_first(app.history.events(filter).await?);
    let (host, why) = decision.map(|decision| (decision.owner.host, decision.why)).unzip();
    Ok(Json(Why { status, host, why, events }))
}
