//! Who did what: requests that changed something or were refused.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use sterna_base::clock::Timestamp;
use sterna_model::error::{Code, Error};
use sterna_model::token::Role;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::auth::Actor;
use crate::body::Words;
use crate::error::{Answer, refuse};
use crate::list::{self, Page};

pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list))
}

/// One line of the record. Each request that was admitted has two: before it was executed, and what came of it.
#[derive(Debug, Serialize, ToSchema)]
struct AuditRow {
    id: u64,
    #[schema(value_type = String, format = DateTime)]
    time: Timestamp,
    /// The name of the token; `nobody` without a valid one.
    actor: String,
    /// The address that the request came from.
    source: String,
    method: String,
    path: String,
    /// SHA-256 of the body.
    request_hash: String,
    /// `accepted` before it was executed; then such as `201` or `409 conflict`.
    outcome: String,
}

/// The newest lines of the record first; `next` leads to older ones.
#[utoipa::path(get, path = "/v1/audit", tag = "audit", operation_id = "audit_list",
    params(("limit" = Option<usize>, Query), ("after" = Option<u64>, Query)),
    responses((status = 200, body = Page<AuditRow>), (status = "default", body = Error)))]
async fn list(State(app): State<App>, actor: Actor, words: Words) -> Answer<Json<Page<AuditRow>>> {
    words.only(&["limit", "after"])?;
    if actor.role != Role::Admin {
        return Err(refuse(Code::Forbidden, "only an admin reads the record"));
    }
    let limit = list::limit(&words)?;
    let rows = app.history.audits(words.parsed::<u64>("after")?, limit).await?;
    let next = if rows.len() == limit { rows.last().map(|row| row.id.to_string()) } else { None };
    let items = rows.into_iter().map(|row| {
        let audit = row.row;
        AuditRow {
            id: row.id,
            time: Timestamp::from_millis(audit.time_ms),
            actor: audit.actor,
            source: audit.source,
            method: audit.method,
            path: audit.path,
            request_hash: audit.request_hash,
            outcome: audit.outcome,
        }
    });
    Ok(Json(Page { items: items.collect(), next, revision: app.view().revision }))
}
