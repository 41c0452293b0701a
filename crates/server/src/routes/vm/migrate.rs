//! Moving a VM: the order, what it would take, and the moves of the past.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use sterna_base::units::{Bytes, Span};
use sterna_model::error::{Code, Error};
use sterna_model::forecast::{Forecast, LoadSample};
use sterna_model::key::Kind;
use sterna_model::meta::{Labels, Name};
use sterna_model::migration::MigrationSpec;
use sterna_model::operation::Goal;
use sterna_plan::forecast::{Line, forecast};
use sterna_plan::view::{Host, Vm};
use sterna_plan::{View, capacity, check, drain};
use sterna_store::Txn;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::auth::Actor;
use crate::body::{OptionalBody, PathName, Words};
use crate::error::{Answer, Refusal, refuse};
use crate::list::{self, Page};
use crate::shown::{Migration, Migrations, Operation, Vms};
use crate::write::{new_meta, operation, put_new, refer, started};

/// Pauses that a person may ask for.
const DOWNTIME_MIN: Span = Span::from_millis(10);
const DOWNTIME_MAX: Span = Span::from_secs(60);
const DOWNTIME: Span = Span::from_millis(300);

pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(migrate)).routes(routes!(outlook)).routes(routes!(ledger))
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
    let max_downtime = order.max_downtime.unwrap_or(DOWNTIME);
    if !(DOWNTIME_MIN..=DOWNTIME_MAX).contains(&max_downtime) {
        return Err(refuse(Code::Invalid, format!("max_downtime {max_downtime} is not allowed"))
            .hint(format!("use {DOWNTIME_MIN} to {DOWNTIME_MAX}")));
    }
    let now = app.now();
    let view = app.view();
    let vm = find(&view, &name)?;
    not_migrating(&view, &name)?;
    let to = target(&view, &vm, order.to.as_ref(), order.to_datacentre.as_ref())?;
    let expected = forecast(&load(&app, &vm), &line(&view), max_downtime.0);
    let migration = drain::free_name(&view, &vm)
        .ok_or_else(|| refuse(Code::WrongState, format!("vm {name} has too many recorded migrations")))?;
    let mut txn = refer::<Vms>(&view, Txn::new(), &name)?;
    if let Some(to) = &to {
        txn = refer::<crate::shown::Hosts>(&view, txn, to)?;
    }
    let spec = MigrationSpec {
        vm: name.clone(),
        to,
        max_downtime,
        cancel: false,
        forecast: Some(expected),
        asked_by: actor.name.clone(),
    };
    let meta = new_meta(migration.clone(), Labels::new(), String::new(), now)?;
    let txn = put_new(txn, Kind::Migration, meta, spec)?;
    let (id, txn) = operation(txn, &actor, Goal::MigrationEnds { migration: migration.clone() }, now)?;
    app.commit(txn).await.map_err(|refusal| someone_was_faster(refusal, &name))?;
    let operation = started(&app, &actor, &id)?.operation;
    Ok((StatusCode::ACCEPTED, Json(Ordered { operation, migration })))
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

/// The host asked for, or the roomiest of the datacentre asked for; `None`: control chooses. Refuses what cannot be.
fn target(view: &View, vm: &Vm<'_>, to: Option<&Name>, to_datacentre: Option<&Name>) -> Answer<Option<Name>> {
    if let Some(to) = to {
        let elsewhere = |host: Host<'_>| to_datacentre.is_some_and(|asked| *asked != host.spec.datacentre);
        if view.host(to).is_some_and(elsewhere) {
            return Err(refuse(Code::Invalid, format!("host {to} is not in the datacentre asked for")));
        }
        check::migration(view, vm, to).map_err(|reasons| unmet(&reasons))?;
        return Ok(Some(to.clone()));
    }
    check::can_leave(view, vm).map_err(|reason| unmet(&[reason]))?;
    let home = vm.decision().and_then(|decision| view.host(&decision.owner.host));
    // Over the line only when somebody asks for it.
    let datacentre = to_datacentre.or(home.as_ref().map(|home| &home.spec.datacentre));
    let candidates =
        || view.hosts().filter(|host| datacentre.is_none_or(|asked| *asked == host.spec.datacentre));
    let fits = candidates().filter(|host| check::arrive(view, vm, host).is_none());
    let best = fits.max_by_key(|host| (capacity::free_memory(view, host), std::cmp::Reverse(host.name)));
    match (best, to_datacentre) {
        (Some(best), Some(_)) => Ok(Some(best.name.clone())),
        (Some(_), None) => Ok(None),
        (None, _) => {
            let why = |host: Host<'_>| {
                check::arrive(view, vm, &host).map(|why| format!("host {}: {why}", host.name))
            };
            let reasons: Vec<_> = candidates().filter_map(why).collect();
            Err(if reasons.is_empty() {
                unmet(&["there is no such host".to_owned()])
            } else {
                unmet(&reasons)
            })
        }
    }
}

fn unmet(reasons: &[String]) -> Refusal {
    refuse(Code::Unmet, format!("the VM cannot move: {}", reasons.join("; ")))
        .hint("`sterna vm forecast VM --to HOST` tells for each host")
}

/// What a move to a host would take now, or why it cannot be.
#[utoipa::path(get, path = "/v1/vms/{name}/forecast", tag = "vm", operation_id = "vm_forecast",
    params(("name" = Name, Path), ("to" = Option<String>, Query), ("max_downtime" = Option<String>, Query)),
    responses((status = 200, body = Outlook), (status = "default", body = Error)))]
async fn outlook(State(app): State<App>, PathName(name): PathName, words: Words) -> Answer<Json<Outlook>> {
    words.only(&["to", "max_downtime"])?;
    let max_downtime = words.parsed::<Span>("max_downtime")?.unwrap_or(DOWNTIME);
    let to = words.parsed::<Name>("to")?;
    let view = app.view();
    let vm = find(&view, &name)?;
    let target = match &to {
        Some(to) => check::migration(&view, &vm, to).map(|()| Some(to.clone())),
        None => target(&view, &vm, None, None).map_err(|refusal| vec![refusal.0.message]),
    };
    let (to, reasons) = match target {
        Ok(target) => (target, Vec::new()),
        Err(reasons) => (to, reasons),
    };
    let forecast = forecast(&load(&app, &vm), &line(&view), max_downtime.0);
    Ok(Json(Outlook { to, forecast: Some(forecast), reasons }))
}

/// The newest measurement, or the worst that can be without one: all memory in use.
fn load(app: &App, vm: &Vm<'_>) -> LoadSample {
    let memory = vm.decision().map_or(vm.spec.memory, |decision| decision.hardware.memory);
    app.samples.vm(vm.name).unwrap_or(LoadSample {
        used: memory,
        dirty: Bytes(0),
        dirty_window: Span::from_secs(1),
        cpu_milli: 0,
    })
}

/// From the order to the first byte and from the last to the end: a process that starts and one that is reaped.
const OVERHEAD: Duration = Duration::from_millis(500);
/// 1 Gbit/s, as TCP carries it.
const ASSUMED_BYTES_PER_S: f64 = 110e6;

/// The fastest that past migrations got through; without any, an assumption that is said to be one.
fn line(view: &View) -> Line {
    let outcomes = view.migrations.values().filter_map(|entry| entry.decision.as_ref()?.outcome.as_ref());
    let measured: Vec<f64> = outcomes
        .filter_map(|outcome| {
            let sending = outcome.total?.0.saturating_sub(OVERHEAD);
            let enough = outcome.bytes.as_u64() > 0 && sending > OVERHEAD / 5;
            enough.then(|| outcome.bytes.as_u64() as f64 / sending.as_secs_f64())
        })
        .collect();
    let best = measured.iter().copied().fold(0.0, f64::max);
    let (bytes_per_s, basis) = if best > 0.0 {
        (best, format!("the fastest of {} past migrations", measured.len()))
    } else {
        (ASSUMED_BYTES_PER_S, "no migration was measured yet; 1 Gbit/s assumed".to_owned())
    };
    Line { bytes_per_s, overhead: OVERHEAD, basis }
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
