//! Reading objects: one, or many with filters and paging.

use axum::Json;
use serde::Serialize;
use sterna_model::error::Code;
use sterna_model::meta::Name;
use sterna_model::token::Role;
use utoipa::ToSchema;

use crate::app::App;
use crate::auth::Actor;
use crate::body::Words;
use crate::error::{Answer, refuse};
use crate::shown::{Eye, Resource};

/// The most objects in one answer.
pub const LIMIT_MAX: usize = 1000;
const LIMIT: usize = 500;
/// Words that every list understands.
pub const WORDS: [&str; 5] = ["limit", "after", "label", "host", "state"];

/// One page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// Give it as `after` to get the next page; null on the last.
    pub next: Option<String>,
    /// The store revision that the page shows; a watch from the next one misses nothing.
    pub revision: u64,
}

/// The objects of a kind that match, by name.
pub fn list<R: Resource>(app: &App, actor: &Actor, words: &Words) -> Answer<Json<Page<R::Shown>>> {
    list_where::<R>(app, actor, words, |_| true)
}

/// The same, of those that also satisfy `wanted`.
pub fn list_where<R: Resource>(
    app: &App,
    actor: &Actor,
    words: &Words,
    wanted: impl Fn(&R::Shown) -> bool,
) -> Answer<Json<Page<R::Shown>>> {
    let limit = limit(words)?;
    let labels = words.labels();
    let (host, state) = (words.one("host"), words.one("state"));
    let view = app.view();
    let eye = Eye { app, view: &view, role: actor.role };
    let after = words.parsed::<Name>("after")?;
    let start = after.as_ref().map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
    let mut items: Vec<R::Shown> = Vec::new();
    let mut last = None;
    for (name, entry) in R::table(&view).range::<Name, _>((start, std::ops::Bound::Unbounded)) {
        let Some(meta) = entry.meta() else { continue };
        let labelled = labels.iter().all(|(key, value)| {
            meta.labels.get(key).is_some_and(|has| value.as_ref().is_none_or(|value| value == has))
        });
        if !labelled || host.is_some_and(|host| !R::is_on(&view, entry, host)) {
            continue;
        }
        let Some(shown) = R::show(eye, entry) else { continue };
        if state.is_some_and(|state| R::state(&shown).as_deref() != Some(state)) || !wanted(&shown) {
            continue;
        }
        if items.len() == limit {
            return Ok(Json(Page { items, next: last, revision: view.revision }));
        }
        last = Some(name.to_string());
        items.push(shown);
    }
    Ok(Json(Page { items, next: None, revision: view.revision }))
}

/// `limit=` within its bounds.
pub fn limit(words: &Words) -> Answer<usize> {
    match words.parsed::<usize>("limit")? {
        None => Ok(LIMIT),
        Some(limit) if (1..=LIMIT_MAX).contains(&limit) => Ok(limit),
        Some(limit) => Err(refuse(Code::Invalid, format!("limit={limit} is not allowed"))
            .hint(format!("use 1 to {LIMIT_MAX}, and `after` for the next page"))),
    }
}

/// One object as its actor may see it.
pub fn show<R: Resource>(app: &App, role: Role, name: &Name) -> Answer<R::Shown> {
    let view = app.view();
    R::table(&view)
        .get(name)
        .and_then(|entry| R::show(Eye { app, view: &view, role }, entry))
        .ok_or_else(|| not_found::<R>(name))
}

pub fn not_found<R: Resource>(name: &Name) -> crate::error::Refusal {
    refuse(Code::NotFound, format!("{} {name} does not exist", R::KIND.as_str()))
}
