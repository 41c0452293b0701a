//! Assignments to one agent, as they change: on the critical path of a migration's switchover.
//!
//! Each change of the view is compared with what was sent last; only a difference is sent, at once, and only the newest.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use sterna_model::ha::HaState;
use sterna_model::store::MAIN;
use sterna_wire::assignment::{Assignment, Role, VmAssignment};
use sterna_wire::down::Down;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::app::App;
use crate::auth::HostActor;
use crate::ca::HostIdentity;
use crate::gateway::{Line, ORDERS_MAX, Session, link};

/// Lines that may wait in the connection. Newer assignments replace those that have not been put there yet.
const LINES_MAX: usize = 4;
/// Proof of life when there is nothing to say.
const ALIVE_EVERY: Duration = Duration::from_secs(5);
/// An agent that takes nothing for this long is cut off; it dials again.
const STALLED_AFTER: Duration = Duration::from_secs(10);

type Sink = mpsc::Sender<Result<Bytes, std::convert::Infallible>>;

/// `GET /agent/v1/assignment`: an endless stream of lines.
pub async fn assignment(State(app): State<App>, HostActor(host): HostActor) -> Response {
    let (sink, lines) = mpsc::channel(LINES_MAX);
    tokio::spawn(drive(app, host, sink));
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson"), (header::CACHE_CONTROL, "no-store")];
    (headers, Body::from_stream(ReceiverStream::new(lines))).into_response()
}

async fn drive(app: App, host: HostIdentity, sink: Sink) {
    let line = app.gateway.line(&host.name);
    let number = app.gateway.sessions.fetch_add(1, Ordering::Relaxed);
    let end = CancellationToken::new();
    let (orders, waiting) = mpsc::channel(ORDERS_MAX);
    let session = Session { number, orders, end: end.clone() };
    // The newest connection is the agent's; an older one is a line that died without a word.
    if let Some(older) = line.session().replace(session) {
        older.end.cancel();
    }
    tracing::info!(host = %host.name, "agent connected");
    tokio::select! {
        () = end.cancelled() => {}
        () = sink.closed() => {}
        () = tell(&app, &host, &line, waiting, &sink) => {}
    }
    let was_last = {
        let mut session = line.session();
        let mine = session.as_ref().is_some_and(|session| session.number == number);
        if mine {
            *session = None;
        }
        mine
    };
    if was_last {
        tracing::info!(host = %host.name, "agent disconnected");
        link::watch_silence(&app, &host.name, link::SILENT_AFTER);
    }
}

/// Tells the agent everything until the host is deleted or takes nothing more.
async fn tell(
    app: &App,
    host: &HostIdentity,
    line: &Arc<Line>,
    mut orders: mpsc::Receiver<Down>,
    sink: &Sink,
) {
    let mut revisions = app.follower.revisions();
    let mut strays = line.strays.subscribe();
    let mut alive = tokio::time::interval_at(Instant::now() + ALIVE_EVERY, ALIVE_EVERY);
    alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last: Option<Assignment> = None;
    let mut held: Option<Uuid> = None;
    let mut was_lost = is_lost(app, host);
    loop {
        revisions.mark_unchanged();
        strays.mark_unchanged();
        // Its voters do not hear it any more. An agent that does connects anew at once; a line that only looks alive is not waited for.
        let is_lost = is_lost(app, host);
        if is_lost && !was_lost {
            return;
        }
        was_lost = is_lost;
        match newest(app, host, line) {
            Newest::Deleted => return,
            Newest::Withheld(incarnation) if held == Some(incarnation) => {}
            Newest::Withheld(incarnation) => {
                if !send(sink, &Down::Hold { incarnation }).await {
                    return;
                }
                held = Some(incarnation);
            }
            Newest::Told(next, _) if last.as_ref() == Some(&*next) => {}
            Newest::Told(next, revision) => {
                let told = Assignment { revision, ..(*next).clone() };
                if !send(sink, &Down::Assignment(Box::new(told))).await {
                    return;
                }
                last = Some(*next);
            }
        }
        let order = tokio::select! {
            biased; // A changed assignment is what a switchover waits for.
            changed = revisions.changed() => match changed { Ok(()) => None, Err(_) => return },
            changed = strays.changed() => match changed { Ok(()) => None, Err(_) => return },
            order = orders.recv() => match order { Some(order) => Some(order), None => return },
            _ = alive.tick() => Some(Down::Alive),
        };
        if let Some(order) = order
            && !send(sink, &order).await
        {
            return;
        }
    }
}

fn is_lost(app: &App, host: &HostIdentity) -> bool {
    app.view().host(&host.name).is_some_and(|host| host.ha() == HaState::Fencing)
}

/// What a host is to be told.
enum Newest {
    Deleted,
    /// The store came back from a backup and does not know yet what there is: the host goes on as it was.
    Withheld(Uuid),
    /// Without the revision, so that two can be compared, and the revision.
    Told(Box<Assignment>, u64),
}

/// What the host should do now.
fn newest(app: &App, host: &HostIdentity, line: &Line) -> Newest {
    let view = app.view();
    let meta = view.hosts.get(&host.name).and_then(|entry| entry.meta());
    if meta.is_none_or(|meta| meta.uid != host.uid) {
        return Newest::Deleted;
    }
    if sterna_plan::recovery::is_on(&view) {
        let store = view.stores.get(MAIN).and_then(|entry| entry.spec.as_ref());
        // A record that cannot be read has none, and nobody can tell anything to it.
        return Newest::Withheld(store.map(|row| row.value.spec.incarnation).unwrap_or_default());
    }
    let mut assignment = sterna_plan::assignment::assignment(&view, &host.name);
    for (uid, stray) in line.strays.borrow().iter().filter(|(_, stray)| !stray.is_held) {
        if !assignment.vms.iter().any(|vm| vm.uid == *uid) {
            let (name, epoch) = (stray.name.clone(), stray.epoch);
            let stray = VmAssignment { name, uid: *uid, epoch, role: Role::Release };
            assignment.vms.push(stray);
        }
    }
    assignment.revision = 0;
    Newest::Told(Box::new(assignment), view.revision)
}

async fn send(sink: &Sink, line: &Down) -> bool {
    let mut text = match serde_json::to_vec(line) {
        Ok(text) => text,
        Err(error) => {
            tracing::error!(%error, "an assignment cannot be written");
            return false;
        }
    };
    text.push(b'\n');
    matches!(tokio::time::timeout(STALLED_AFTER, sink.send(Ok(text.into()))).await, Ok(Ok(())))
}
