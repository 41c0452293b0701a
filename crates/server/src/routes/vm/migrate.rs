//! Moving a VM: the order, what it would take, and the moves of the past.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use sterna_base::clock::Timestamp;
use sterna_base::units::Span;
use sterna_model::error::{Code, Error};
use sterna_model::forecast::{Forecast, LoadSample, Past};
use sterna_model::key::Kind;
use sterna_model::meta::{Labels, Name};
use sterna_model::migration::MigrationSpec;
use sterna_model::operation::Goal;
use sterna_plan::forecast::past::past;
use sterna_plan::forecast::{Line, forecast};
use sterna_plan::view::{Host, Vm};
use sterna_plan::{View, check, drain, placement, route};
use sterna_store::Txn;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::auth::Actor;
use crate::body::{OptionalBody, PathName, Words};
use crate::error::{Answer, Refusal, refuse};
use crate::list::{self, Page};
use crate::shown::{Hosts, Migration, Migrations, Operation, Vms};
use crate::write::{new_meta, operation, put_new, refer, started};

/// Pauses that a person may ask for.
const DOWNTIME_MIN: Span = Span::from_millis(10);
const DOWNTIME_MAX: Span = Span::from_secs(60);
const DOWNTIME: Span = Span::from_millis(300);

pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(migrate))
        .routes(routes!(preseed))
        .routes(routes!(outlook))
        .routes(routes!(ledger))
}

/// Where a VM shall move. Empty: to the best host that there is.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
struct Move {
    to: Option<Name>,
    to_datacentre: Option<Name>,
    /// The longest pause of the guest that is accepted.
    #[schema(value_type = Option<String>, example = "300ms")]
    max_downtime: Option<Span>,
    /// A duration from now, or a time. Refused when it is not expected to be met; called off when it is not.
    #[schema(example = "2h")]
    finish_by: Option<String>,
}

/// A move that was ordered.
#[derive(Debug, Serialize, ToSchema)]
struct Ordered {
    operation: Operation,
    migration: Name,
}

/// What a move would take, or why it cannot be.
#[derive(Debug, Serialize, ToSchema)]
struct Outlook {
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<Name>,
    #[serde(skip_serializing_if = "Option::is_none")]
    forecast: Option<Forecast>,
    /// Reasons against the move; empty: it may go.
    reasons: Vec<String>,
    /// How far off earlier forecasts of this VM were, the latest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    past: Vec<Past>,
}

/// Where a move goes.
struct Aim<'a> {
    /// `None`: control chooses, most likely `host`.
    to: Option<Name>,
    host: Host<'a>,
}

/// Where volumes shall be copied ahead of a move.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
struct Ahead {
    to: Option<Name>,
    to_datacentre: Option<Name>,
}

/// Moves a running VM to another host while it runs.
#[utoipa::path(post, path = "/v1/vms/{name}/migrate", tag = "vm", operation_id = "vm_migrate",
    params(("name" = Name, Path)), request_body = Move,
    responses((status = 202, body = Ordered), (status = "default", body = Error)))]
async fn migrate(
    State(app): State<App>,
    actor: Actor,
    PathName(name): PathName,
    OptionalBody(order): OptionalBody<Move>,
) -> Answer<(StatusCode, Json<Ordered>)> {
    ask(&app, &actor, &name, (order, false)).await
}

/// Copies the volumes of a running VM to where it is to move, hours before: the move itself then takes what differs.
#[utoipa::path(post, path = "/v1/vms/{name}/preseed", tag = "vm", operation_id = "vm_preseed",
    params(("name" = Name, Path)), request_body = Ahead,
    responses((status = 202, body = Ordered), (status = "default", body = Error)))]
async fn preseed(
    State(app): State<App>,
    actor: Actor,
    PathName(name): PathName,
    OptionalBody(order): OptionalBody<Ahead>,
) -> Answer<(StatusCode, Json<Ordered>)> {
    let order = Move { to: order.to, to_datacentre: order.to_datacentre, ..Move::default() };
    ask(&app, &actor, &name, (order, true)).await
}

async fn ask(
    app: &App,
    actor: &Actor,
    name: &Name,
    (order, seed): (Move, bool),
) -> Answer<(StatusCode, Json<Ordered>)> {
    let now = app.now();
    let max_downtime = allowed_downtime(order.max_downtime)?;
    let finish_by = order.finish_by.as_deref().map(|text| deadline(text, now)).transpose()?;
    let view = app.view();
    let vm = find(&view, name)?;
    not_migrating(&view, name)?;
    let aim = aim(&view, &vm, order.to.as_ref(), order.to_datacentre.as_ref())?;
    if seed {
        something_to_seed(&view, &vm, &aim.host)?;
    }
    let estimate = Estimate::new(app, (&view, &vm), &aim.host, max_downtime);
    if let Some(late) = finish_by.and_then(|by| estimate.is_late(now, by)) {
        return Err(unmet(&[late]));
    }
    // Copies are of use on the host that they are made for.
    let to = aim.to.or_else(|| seed.then(|| aim.host.name.clone()));
    let migration = drain::free_name(&view, &vm)
        .ok_or_else(|| refuse(Code::WrongState, format!("vm {name} has too many recorded migrations")))?;
    let mut txn = refer::<Vms>(&view, Txn::new(), name)?;
    if let Some(to) = &to {
        txn = refer::<Hosts>(&view, txn, to)?;
    }
    let spec = MigrationSpec {
        vm: name.clone(),
        to,
        max_downtime,
        finish_by,
        cancel: false,
        seed,
        forecast: Some(estimate.forecast).filter(|_| !seed),
        asked_by: actor.name.clone(),
    };
    let meta = new_meta(migration.clone(), Labels::new(), String::new(), now)?;
    let txn = put_new(txn, Kind::Migration, meta, spec)?;
    let (id, txn) = operation(txn, actor, Goal::MigrationEnds { migration: migration.clone() }, now)?;
    app.commit(txn).await.map_err(|refusal| someone_was_faster(refusal, name))?;
    let operation = started(app, actor, &id)?.operation;
    Ok((StatusCode::ACCEPTED, Json(Ordered { operation, migration })))
}

fn something_to_seed(view: &View, vm: &Vm<'_>, host: &Host<'_>) -> Answer<()> {
    let route = route::route(view, vm, host).map_err(|why| unmet(&[why]))?;
    if route.volumes.is_empty() {
        let message = format!("host {} opens every volume of vm {} where it is", host.name, vm.name);
        return Err(refuse(Code::WrongState, message).hint("a move takes none of them along: just move it"));
    }
    Ok(())
}

fn find<'a>(view: &'a View, name: &Name) -> Answer<Vm<'a>> {
    view.vm(name).ok_or_else(|| list::not_found::<Vms>(name))
}

fn not_migrating(view: &View, vm: &Name) -> Answer<()> {
    if view.is_migrating(vm) {
        return Err(refuse(Code::WrongState, format!("vm {vm} is being migrated already"))
            .hint("wait for that migration, or cancel it"));
    }
    Ok(())
}

/// Two orders at once want the same migration name: the second loses.
fn someone_was_faster(refusal: Refusal, vm: &Name) -> Refusal {
    if refusal.0.code == Code::Conflict {
        return refuse(
            Code::Conflict,
            format!("vm {vm} changed, or another migration of it was ordered just now"),
        )
        .hint("look at it and order again");
    }
    refusal
}

fn allowed_downtime(asked: Option<Span>) -> Answer<Span> {
    let max_downtime = asked.unwrap_or(DOWNTIME);
    if (DOWNTIME_MIN..=DOWNTIME_MAX).contains(&max_downtime) {
        return Ok(max_downtime);
    }
    Err(refuse(Code::Invalid, format!("max_downtime {max_downtime} is not allowed"))
        .hint(format!("use {DOWNTIME_MIN} to {DOWNTIME_MAX}")))
}

/// `2h` from now, or a time of its own.
fn deadline(text: &str, now: Timestamp) -> Answer<Timestamp> {
    let by = match (text.parse::<Span>(), text.parse::<Timestamp>()) {
        (Ok(span), _) => now + span.0,
        (_, Ok(at)) => at,
        (Err(_), Err(_)) => {
            let text: String = text.chars().take(60).collect();
            return Err(refuse(Code::Invalid, format!("finish_by {text:?} is no duration and no time"))
                .hint("write 90s, 30m or 2h from now, or a time such as 2026-11-22T12:00:00Z"));
        }
    };
    if by <= now {
        return Err(refuse(Code::Invalid, format!("finish_by {by} has passed")).hint("give it time"));
    }
    Ok(by)
}

/// Towards the host asked for, or the one that placement chooses, in the datacentre asked for if one was. Refuses what
/// cannot be.
fn aim<'a>(view: &'a View, vm: &Vm<'_>, to: Option<&Name>, to_datacentre: Option<&Name>) -> Answer<Aim<'a>> {
    if let Some(to) = to {
        let elsewhere = |host: Host<'_>| to_datacentre.is_some_and(|asked| *asked != host.spec.datacentre);
        if view.host(to).is_some_and(elsewhere) {
            return Err(refuse(Code::Invalid, format!("host {to} is not in the datacentre asked for")));
        }
        check::migration(view, vm, to).map_err(|reasons| unmet(&reasons))?;
        let host = view.host(to).ok_or_else(|| list::not_found::<Hosts>(to))?;
        return Ok(Aim { to: Some(to.clone()), host });
    }
    check::can_leave(view, vm).map_err(|reason| unmet(&[reason]))?;
    // What control would choose; without a datacentre it chooses anew when the move begins.
    if let Ok((best, _)) = placement::choose_move(view, vm, to_datacentre) {
        let host = view.host(&best).ok_or_else(|| list::not_found::<Hosts>(&best))?;
        return Ok(Aim { to: to_datacentre.map(|_| best), host });
    }
    let home = vm.decision().and_then(|decision| view.host(&decision.owner.host));
    let datacentre = to_datacentre.or(home.as_ref().map(|home| &home.spec.datacentre));
    let candidates =
        view.hosts().filter(|host| datacentre.is_none_or(|asked| *asked == host.spec.datacentre));
    let why = |host: Host<'_>| check::arrive(view, vm, &host).map(|why| format!("host {}: {why}", host.name));
    let reasons: Vec<_> = candidates.filter_map(why).collect();
    Err(if reasons.is_empty() { unmet(&["there is no such host".to_owned()]) } else { unmet(&reasons) })
}

fn unmet(reasons: &[String]) -> Refusal {
    refuse(Code::Unmet, format!("the VM cannot move: {}", reasons.join("; ")))
        .hint("`sterna vm forecast VM --to HOST` tells for each host")
}

/// What a move would take now, or why it cannot be.
#[utoipa::path(get, path = "/v1/vms/{name}/forecast", tag = "vm", operation_id = "vm_forecast",
    params(("name" = Name, Path), ("to" = Option<String>, Query), ("to_datacentre" = Option<String>, Query),
        ("max_downtime" = Option<String>, Query), ("finish_by" = Option<String>, Query)),
    responses((status = 200, body = Outlook), (status = "default", body = Error)))]
async fn outlook(State(app): State<App>, PathName(name): PathName, words: Words) -> Answer<Json<Outlook>> {
    words.only(&["to", "to_datacentre", "max_downtime", "finish_by"])?;
    let now = app.now();
    let max_downtime = allowed_downtime(words.parsed("max_downtime")?)?;
    let finish_by = words.parsed::<String>("finish_by")?;
    let finish_by = finish_by.as_deref().map(|text| deadline(text, now)).transpose()?;
    let (to, to_datacentre) = (words.parsed::<Name>("to")?, words.parsed::<Name>("to_datacentre")?);
    let view = app.view();
    let vm = find(&view, &name)?;
    let past = past(&view, &vm);
    let aim = match aim(&view, &vm, to.as_ref(), to_datacentre.as_ref()) {
        Ok(aim) => aim,
        Err(refusal) => {
            // What stands against it may pass: what it would take is worth knowing all the same.
            let host = to.as_ref().and_then(|to| view.host(to));
            let forecast = host.map(|host| Estimate::new(&app, (&view, &vm), &host, max_downtime).forecast);
            return Ok(Json(Outlook { to, forecast, reasons: vec![refusal.0.message], past }));
        }
    };
    let estimate = Estimate::new(&app, (&view, &vm), &aim.host, max_downtime);
    let reasons = Vec::from_iter(finish_by.and_then(|by| estimate.is_late(now, by)));
    Ok(Json(Outlook { to: aim.to, forecast: Some(estimate.forecast), reasons, past }))
}

/// What a move would take.
struct Estimate {
    forecast: Forecast,
    /// The same if nothing of its volumes were in use.
    at_best: Span,
}

impl Estimate {
    fn new(app: &App, (view, vm): (&View, &Vm<'_>), host: &Host<'_>, max_downtime: Span) -> Self {
        let load = load(app, vm);
        let line = Line::to(view, vm, host, load.used, app.now());
        let at_best = forecast(&load, &line.at_best(), max_downtime.0).total;
        Self { forecast: forecast(&load, &line, max_downtime.0), at_best }
    }

    /// Why it cannot end in time. What only may take too long is tried: it is called off if it does.
    fn is_late(&self, now: Timestamp, by: Timestamp) -> Option<String> {
        let late = self.at_best.0.checked_sub(by.since(now)).filter(|late| !late.is_zero())?;
        Some(format!(
            "it would end {} after {by}: it is expected to take {} ({})",
            Span(late),
            self.at_best,
            self.forecast.basis
        ))
    }
}

/// The newest measurement, or the worst that can be without one: all memory in use.
fn load(app: &App, vm: &Vm<'_>) -> LoadSample {
    let memory = vm.decision().map_or(vm.spec.memory, |decision| decision.hardware.memory);
    app.samples.vm(vm.name).unwrap_or(LoadSample { used: memory, ..LoadSample::default() })
}

/// The moves of the past, the latest first.
#[utoipa::path(get, path = "/v1/vms/{name}/ledger", tag = "vm", operation_id = "vm_ledger",
    params(("name" = Name, Path), ("limit" = Option<usize>, Query)),
    responses((status = 200, body = Page<Migration>), (status = "default", body = Error)))]
async fn ledger(
    State(app): State<App>,
    actor: Actor,
    PathName(name): PathName,
    words: Words,
) -> Answer<Json<Page<Migration>>> {
    words.only(&["limit"])?;
    let limit = list::limit(&words)?;
    find(&app.view(), &name)?;
    let ended = |migration: &Migration| {
        migration.spec.vm == name
            && migration.decision.as_ref().is_some_and(|decision| decision.phase.has_ended())
    };
    let Json(mut page) = list::list_where::<Migrations>(&app, &actor, &Words::default(), ended)?;
    page.items.sort_by_key(|migration| {
        std::cmp::Reverse(migration.decision.as_ref().map(|decision| decision.started))
    });
    page.items.truncate(limit);
    page.next = None;
    Ok(Json(page))
}
