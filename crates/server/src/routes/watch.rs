//! Every change as it happens, as server-sent events (WHATWG HTML, section 9.2).
//!
//! Each watcher reads on from the store's log at its own pace, so nothing is kept for slow ones: one that takes nothing
//! for a while is cut off, and comes back with the revision that it saw last.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde_json::{Value, json};
use sterna_model::error::{Code, Error};
use sterna_model::key::{Key, Kind};
use sterna_model::meta::Name;
use sterna_model::token::Role;
use sterna_store::Watch;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::auth::Actor;
use crate::body::Words;
use crate::error::{Answer, refuse};
use crate::routes::event::event;
use crate::shown::{Eye, Resource, with_resource};

/// Lines that may wait in a connection.
const LINES_MAX: usize = 16;
const WATCHERS_MAX: usize = 256;
/// A watcher that takes nothing for this long is cut off.
const STALLED_AFTER: Duration = Duration::from_secs(10);
/// Comments that show both sides that the line is alive.
const ALIVE_EVERY: Duration = Duration::from_secs(10);

static WATCHERS: AtomicUsize = AtomicUsize::new(0);

pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(watch))
}

/// Changes after revision `from`, then as they happen.
///
/// Events: `change` {kind, name, revision, object or null}, `progress` {migration, progress}, `event` (a recorded fact),
/// and `gone` when the watcher must read anew.
#[utoipa::path(get, path = "/v1/watch", tag = "watch", operation_id = "watch",
    params(("from" = Option<u64>, Query), ("kind" = Option<String>, Query, description = "one or several, such as vm,host")),
    responses((status = 200, body = String, content_type = "text/event-stream"), (status = "default", body = Error)))]
async fn watch(State(app): State<App>, actor: Actor, words: Words) -> Answer<Response> {
    words.only(&["from", "kind"])?;
    let wanted = Wanted::parse(&words)?;
    let now = app.view().revision;
    let from = words.parsed::<u64>("from")?.unwrap_or(now);
    if from > now {
        return Err(refuse(
            Code::Invalid,
            format!("revision {from} is not reached yet; the store is at {now}"),
        ));
    }
    let place = Place::take()?;
    let changes = app.store.watch("", from + 1).await?;
    let (sink, lines) = mpsc::channel(LINES_MAX);
    let watcher = Watcher { app, role: actor.role, wanted, sink, _place: place };
    tokio::spawn(watcher.run(changes, from));
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(ReceiverStream::new(lines))).into_response())
}

/// One of the places for watchers; given back when dropped.
struct Place;

impl Place {
    fn take() -> Answer<Self> {
        if WATCHERS.fetch_add(1, Ordering::AcqRel) >= WATCHERS_MAX {
            WATCHERS.fetch_sub(1, Ordering::AcqRel);
            return Err(refuse(
                Code::TooManyRequests,
                format!("{WATCHERS_MAX} watchers are connected already"),
            ));
        }
        Ok(Self)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        WATCHERS.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Which kinds a watcher asked for; none named: all.
struct Wanted(BTreeSet<String>);

impl Wanted {
    fn parse(words: &Words) -> Answer<Self> {
        let kinds: BTreeSet<String> =
            words.all("kind").flat_map(|text| text.split(',')).map(str::to_owned).collect();
        let known = |kind: &String| kind == "event" || Kind::ALL.iter().any(|known| known.as_str() == kind);
        match kinds.iter().find(|kind| !known(kind)) {
            Some(wrong) => Err(refuse(Code::Invalid, format!("{wrong:.40?} is not a kind"))
                .hint("such as vm, host or event")),
            None => Ok(Self(kinds)),
        }
    }

    fn has(&self, kind: &str) -> bool {
        self.0.is_empty() || self.0.contains(kind)
    }
}

struct Watcher {
    app: App,
    role: Role,
    wanted: Wanted,
    sink: mpsc::Sender<Result<Bytes, std::convert::Infallible>>,
    _place: Place,
}

/// The watcher is gone or too slow.
struct Gone;

impl Watcher {
    async fn run(self, mut changes: Watch, from: u64) {
        let mut progress = self.app.samples.subscribe();
        let mut events = self.app.history.subscribe_events();
        let mut alive = tokio::time::interval(ALIVE_EVERY);
        if self.send(format!(": from {from}\n\n")).await.is_err() {
            return;
        }
        loop {
            let told = tokio::select! {
                () = self.sink.closed() => return,
                batch = changes.next() => match batch {
                    Ok(batch) => self.on_change(batch.revision, batch.changes.iter().map(|change| change.key.as_str())).await,
                    Err(error) => {
                        let why = json!({ "message": error.to_string() });
                        // It ends either way.
                        let _ = self.tell("gone", None, &why).await;
                        return;
                    }
                },
                told = progress.recv() => match told {
                    Ok(told) if self.wanted.has("migration") => {
                        self.tell("progress", None, &json!({ "migration": told.migration, "progress": told.progress })).await
                    }
                    Ok(_) | Err(RecvError::Lagged(_)) => Ok(()),
                    Err(RecvError::Closed) => return,
                },
                row = events.recv() => match row {
                    Ok(row) if self.wanted.has("event") => {
                        self.tell("event", None, &json!(event(row.row))).await
                    }
                    Ok(_) | Err(RecvError::Lagged(_)) => Ok(()),
                    Err(RecvError::Closed) => return,
                },
                _ = alive.tick() => self.send(":\n\n".to_owned()).await,
            };
            if told.is_err() {
                return;
            }
        }
    }

    /// One event for each object of the batch, as it is now: what changed again meanwhile is told again.
    async fn on_change(&self, revision: u64, keys: impl Iterator<Item = &str>) -> Result<(), Gone> {
        self.app.follower.reached(revision).await;
        let objects: BTreeSet<(Kind, Name)> =
            keys.filter_map(Key::parse).map(|key| (key.kind, key.name)).collect();
        for (kind, name) in objects {
            if kind == Kind::JoinToken || !self.wanted.has(kind.as_str()) {
                continue;
            }
            let object = self.object(kind, &name);
            let change =
                json!({ "kind": kind.as_str(), "name": name, "revision": revision, "object": object });
            self.tell("change", Some(revision), &change).await?;
        }
        Ok(())
    }

    fn object(&self, kind: Kind, name: &Name) -> Value {
        fn show<R: Resource>(eye: Eye<'_>, name: &Name) -> Value {
            let shown = R::table(eye.view).get(name).and_then(|entry| R::show(eye, entry));
            shown.and_then(|shown| serde_json::to_value(shown).ok()).unwrap_or(Value::Null)
        }
        let view: Arc<_> = self.app.view();
        let eye = Eye { app: &self.app, view: &view, role: self.role };
        with_resource!(kind, R => show::<R>(eye, name), Value::Null)
    }

    async fn tell(&self, event: &str, id: Option<u64>, data: &Value) -> Result<(), Gone> {
        let id = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
        self.send(format!("event: {event}\n{id}data: {data}\n\n")).await
    }

    async fn send(&self, text: String) -> Result<(), Gone> {
        match tokio::time::timeout(STALLED_AFTER, self.sink.send(Ok(text.into()))).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(Gone),
        }
    }
}
