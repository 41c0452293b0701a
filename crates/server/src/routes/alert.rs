//! Facts that need a person.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use sterna_base::units::Span;
use sterna_model::alert::Acknowledged;
use sterna_model::error::{Code, Error};
use sterna_model::key::{Key, Kind};
use sterna_model::meta::Name;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::alerts::ReceiverShown;
use crate::app::App;
use crate::auth::Actor;
use crate::body::{Body, OptionalBody, PathName, Words};
use crate::error::{Answer, refuse};
use crate::list::{self, Page};
use crate::routes::Plain;
use crate::shown::{Alert, Alerts};
use crate::write::modify;

/// Longer than anybody is away; what is silenced for ever is forgotten.
const SILENCE_MAX: Duration = Duration::from_secs(90 * 86_400);

pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(receivers))
        .routes(routes!(test))
        .routes(routes!(get))
        .routes(routes!(acknowledge))
        .routes(routes!(silence))
}

/// All alerts that match: those that fire, and those that have been over for less than a week.
#[utoipa::path(get, path = "/v1/alerts", tag = "alert", operation_id = "alert_list",
    params(("limit" = Option<usize>, Query), ("after" = Option<String>, Query),
        ("state" = Option<String>, Query, description = "firing, acknowledged, silenced or resolved")),
    responses((status = 200, body = Page<Alert>), (status = "default", body = Error)))]
async fn list(State(app): State<App>, actor: Actor, words: Words) -> Answer<Json<Page<Alert>>> {
    words.only(&list::WORDS)?;
    list::list::<Alerts>(&app, &actor, &words)
}

/// One alert.
#[utoipa::path(get, path = "/v1/alerts/{name}", tag = "alert", operation_id = "alert_get",
    params(("name" = Name, Path)),
    responses((status = 200, body = Alert), (status = "default", body = Error)))]
async fn get(State(app): State<App>, actor: Actor, PathName(name): PathName) -> Answer<Json<Alert>> {
    Ok(Json(list::show::<Alerts>(&app, actor.role, &name)?))
}

/// Somebody cares for it: nobody is told again, unless it ends and begins anew.
#[utoipa::path(post, path = "/v1/alerts/{name}/ack", tag = "alert", operation_id = "alert_ack",
    params(("name" = Name, Path)), request_body = Plain,
    responses((status = 200, body = Alert), (status = "default", body = Error)))]
async fn acknowledge(
    State(app): State<App>,
    actor: Actor,
    PathName(name): PathName,
    _plain: OptionalBody<Plain>,
) -> Answer<Json<Alert>> {
    modify::<Alerts>(&app, &name, None, |view, object, txn| {
        let decision = view.alerts.get(&name).and_then(|entry| entry.decision.as_ref());
        let firing = decision.filter(|decision| decision.resolved.is_none());
        let firing = firing.ok_or_else(|| refuse(Code::WrongState, format!("alert {name} does not fire")))?;
        object.spec.acknowledged = Some(Acknowledged { by: actor.name.clone(), since: firing.since });
        // It is said of this firing, and of no other.
        let key = Key::decision(Kind::Alert, &name);
        Ok(txn.require(key.to_string(), view.revision_of(&key)))
    })
    .await?;
    Ok(Json(list::show::<Alerts>(&app, actor.role, &name)?))
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Silence {
    /// From now; `0s` ends a silence.
    #[schema(value_type = String, example = "8h")]
    r#for: Span,
}

/// Nobody is told of it for a while, however often it fires.
#[utoipa::path(post, path = "/v1/alerts/{name}/silence", tag = "alert", operation_id = "alert_silence",
    params(("name" = Name, Path)), request_body = Silence,
    responses((status = 200, body = Alert), (status = "default", body = Error)))]
async fn silence(
    State(app): State<App>,
    actor: Actor,
    PathName(name): PathName,
    Body { value, .. }: Body<Silence>,
) -> Answer<Json<Alert>> {
    let length = value.r#for.0;
    if length > SILENCE_MAX {
        return Err(refuse(Code::Invalid, format!("a silence of {} is not allowed", value.r#for))
            .hint(format!("use at most {}", Span(SILENCE_MAX))));
    }
    modify::<Alerts>(&app, &name, None, |_, object, txn| {
        object.spec.silenced_until = (!length.is_zero()).then(|| app.now() + length);
        Ok(txn)
    })
    .await?;
    Ok(Json(list::show::<Alerts>(&app, actor.role, &name)?))
}

/// All receivers of this server's settings, and how the last delivery to each went.
#[derive(Debug, Serialize, ToSchema)]
struct ReceiverList {
    receivers: Vec<ReceiverShown>,
}

/// Who is told.
#[utoipa::path(get, path = "/v1/alerts/receivers", tag = "alert", operation_id = "alert_receivers",
    responses((status = 200, body = ReceiverList), (status = "default", body = Error)))]
async fn receivers(State(app): State<App>) -> Json<ReceiverList> {
    Json(ReceiverList { receivers: app.receivers.show() })
}

#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
struct Test {
    /// As `mail/NAME`; absent: all.
    receiver: Option<String>,
}

/// How a test went.
#[derive(Debug, Serialize, ToSchema)]
struct Tested {
    tests: Vec<TestShown>,
}

#[derive(Debug, Serialize, ToSchema)]
struct TestShown {
    receiver: String,
    delivered: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Sends a test message now, and answers when each was taken or not.
#[utoipa::path(post, path = "/v1/alerts/test", tag = "alert", operation_id = "alert_test",
    request_body = Test, responses((status = 200, body = Tested), (status = "default", body = Error)))]
async fn test(State(app): State<App>, OptionalBody(test): OptionalBody<Test>) -> Answer<Json<Tested>> {
    let wanted = test.receiver.as_deref();
    if let Some(wanted) = wanted
        && !app.receivers.has(wanted)
    {
        return Err(refuse(Code::NotFound, format!("receiver {wanted:.80?} does not exist"))
            .hint("receivers are in the server's settings, under [alerts]"));
    }
    let tests = crate::alerts::test(&app, wanted).await.into_iter();
    let tests = tests.map(|(receiver, outcome)| TestShown {
        receiver,
        delivered: outcome.is_ok(),
        error: outcome.err(),
    });
    Ok(Json(Tested { tests: tests.collect() }))
}
