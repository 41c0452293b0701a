//! Long work that a user can wait for.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use sterna_base::units::Span;
use sterna_model::error::{Code, Error};
use sterna_model::meta::Name;
use sterna_model::operation::OperationState;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::auth::Actor;
use crate::body::{PathName, Words};
use crate::error::{Answer, refuse};
use crate::list::{self, Page};
use crate::shown::{Operation, Operations};

/// The longest that one request waits.
const WAIT_MAX: Span = Span::from_secs(60);
/// States also change with time alone (a back-off that ends), so it is looked at without a change as well.
const LOOK_EVERY: Duration = Duration::from_secs(1);

pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(get))
}

/// All operations that match; ended ones stay for an hour.
#[utoipa::path(get, path = "/v1/operations", tag = "operation", operation_id = "operation_list",
    params(("limit" = Option<usize>, Query), ("after" = Option<String>, Query), ("state" = Option<String>, Query)),
    responses((status = 200, body = Page<Operation>), (status = "default", body = Error)))]
async fn list(State(app): State<App>, actor: Actor, words: Words) -> Answer<Json<Page<Operation>>> {
    words.only(&list::WORDS)?;
    list::list::<Operations>(&app, &actor, &words)
}

/// One operation; with `wait` the answer comes when it has ended, or after that time.
#[utoipa::path(get, path = "/v1/operations/{name}", tag = "operation", operation_id = "operation_get",
    params(("name" = Name, Path), ("wait" = Option<String>, Query, description = "such as 30s, at most 60s")),
    responses((status = 200, body = Operation), (status = "default", body = Error)))]
async fn get(
    State(app): State<App>,
    actor: Actor,
    PathName(name): PathName,
    words: Words,
) -> Answer<Json<Operation>> {
    words.only(&["wait"])?;
    let wait = words.parsed::<Span>("wait")?.unwrap_or_default();
    if wait > WAIT_MAX {
        return Err(refuse(Code::Invalid, format!("wait={wait} is too long"))
            .hint(format!("at most {WAIT_MAX}; ask again")));
    }
    let end = tokio::time::Instant::now() + wait.0;
    let mut revisions = app.follower.revisions();
    loop {
        revisions.mark_unchanged();
        let operation = list::show::<Operations>(&app, actor.role, &name)?;
        let now = tokio::time::Instant::now();
        if !matches!(operation.status, OperationState::Running { .. }) || now >= end {
            return Ok(Json(operation));
        }
        // A change, or time; both are reasons to look again.
        let _ = tokio::time::timeout_at(end.min(now + LOOK_EVERY), revisions.changed()).await;
    }
}
