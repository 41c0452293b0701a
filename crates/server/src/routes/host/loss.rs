//! What a loss of a host would do.

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::State;
use sterna_model::error::Error;
use sterna_model::loss::Loss;
use sterna_model::meta::Name;
use sterna_plan::reserve;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::body::PathName;
use crate::error::Answer;
use crate::list;
use crate::shown::Hosts;

pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(loss))
}

/// Which VMs of a host would start where after its loss, and which not and why. Changes nothing.
#[utoipa::path(get, path = "/v1/hosts/{name}/loss", tag = "host", operation_id = "host_loss",
    params(("name" = Name, Path)), responses((status = 200, body = Loss), (status = "default", body = Error)))]
async fn loss(State(app): State<App>, PathName(name): PathName) -> Answer<Json<Loss>> {
    let view = app.view();
    view.host(&name).ok_or_else(|| list::not_found::<Hosts>(&name))?;
    Ok(Json(reserve::after_loss(&view, &BTreeSet::from([name]), app.now())))
}
