//! The server itself: when its store was restored to an older state.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use sterna_model::error::Error;
use sterna_model::meta::Name;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::app::App;
use crate::body::OptionalBody;
use crate::error::Answer;
use crate::gateway::link;
use crate::routes::Plain;

pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(accept_store))
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
    let mut released = Vec::new();
    for (host, vms) in app.gateway.release_held() {
        for (uid, vm) in vms {
            let why = format!("a person said that the store is right, which does not know VM {vm}");
            link::record(&app, &host, "vm-released", &why);
            released.push(ReleasedVm { host: host.clone(), vm, uid });
        }
    }
    Ok(Json(StoreAccepted { released }))
}
