//! Facts recorded for people.

use axum::Json;
use axum::extract::State;
use sterna_base::clock::Timestamp;
use sterna_model::error::{Code, Error};
use sterna_model::event::Event;
use sterna_store::history::{Event as Row, EventFilter, Numbered};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::body::Words;
use crate::error::{Answer, refuse};
use crate::list::{self, Page};

pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list))
}

/// The newest events that match, the oldest of them first; `next` leads to older ones.
#[utoipa::path(get, path = "/v1/events", tag = "event", operation_id = "event_list",
    params(("object" = Option<String>, Query, description = "KIND/NAME, such as vm/web"),
        ("kind" = Option<String>, Query, description = "such as vm"), ("what" = Option<String>, Query),
        ("since" = Option<String>, Query), ("limit" = Option<usize>, Query), ("after" = Option<u64>, Query)),
    responses((status = 200, body = Page<Event>), (status = "default", body = Error)))]
async fn list(State(app): State<App>, words: Words) -> Answer<Json<Page<Event>>> {
    words.only(&["object", "kind", "what", "since", "limit", "after"])?;
    let limit = if words.one("limit").is_some() { list::limit(&words)? } else { 100 };
    let (mut object_kind, mut object) = (words.one("kind").map(str::to_owned), None);
    if let Some(text) = words.one("object") {
        let (kind, name) = text
            .split_once('/')
            .ok_or_else(|| refuse(Code::Invalid, "object is not KIND/NAME").hint("such as object=vm/web"))?;
        (object_kind, object) = (Some(kind.to_owned()), Some(name.to_owned()));
    }
    let filter = EventFilter {
        kind: words.one("what").map(str::to_owned),
        object_kind,
        object,
        since_ms: words.parsed::<Timestamp>("since")?.map(Timestamp::as_millis),
        before: words.parsed::<u64>("after")?,
        limit,
        ..EventFilter::default()
    };
    let rows = app.history.events(filter).await?;
    let next = if rows.len() == limit { rows.last().map(|row| row.id.to_string()) } else { None };
    Ok(Json(Page { items: oldest_first(rows), next, revision: app.view().revision }))
}

/// Rows of the history as events, in the order they happened.
pub fn oldest_first(rows: Vec<Numbered<Row>>) -> Vec<Event> {
    rows.into_iter().rev().map(|row| event(row.row)).collect()
}

/// A row of the history as the API shows it.
pub fn event(row: Row) -> Event {
    Event {
        time: Timestamp::from_millis(row.time_ms),
        kind: row.object_kind,
        name: row.object,
        what: row.kind,
        why: row.why.unwrap_or(row.message),
    }
}
