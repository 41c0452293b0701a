//! Moves of running VMs.

use axum::Json;
use axum::extract::State;
use sterna_model::error::{Code, Error};
use sterna_model::meta::Name;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::auth::Actor;
use crate::body::{OptionalBody, PathName, Words};
use crate::error::{Answer, refuse};
use crate::list::{self, Page};
use crate::routes::Plain;
use crate::shown::{Migration, Migrations};
use crate::write::modify;

pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(get)).routes(routes!(cancel))
}

/// All migrations that match; ended ones stay for 30 days.
#[utoipa::path(get, path = "/v1/migrations", tag = "migration", operation_id = "migration_list",
    params(("limit" = Option<usize>, Query), ("after" = Option<String>, Query), ("host" = Option<String>, Query),
        ("state" = Option<String>, Query), ("vm" = Option<String>, Query)),
    responses((status = 200, body = Page<Migration>), (status = "default", body = Error)))]
async fn list(State(app): State<App>, actor: Actor, words: Words) -> Answer<Json<Page<Migration>>> {
    words.only(&["limit", "after", "label", "host", "state", "vm"])?;
    let vm = words.parsed::<Name>("vm")?;
    let of_vm = |migration: &Migration| vm.as_ref().is_none_or(|vm| migration.spec.vm == *vm);
    list::list_where::<Migrations>(&app, &actor, &words, of_vm)
}

/// One migration, with the newest numbers of its transfer.
#[utoipa::path(get, path = "/v1/migrations/{name}", tag = "migration", operation_id = "migration_get",
    params(("name" = Name, Path)),
    responses((status = 200, body = Migration), (status = "default", body = Error)))]
async fn get(State(app): State<App>, actor: Actor, PathName(name): PathName) -> Answer<Json<Migration>> {
    Ok(Json(list::show::<Migrations>(&app, actor.role, &name)?))
}

/// Cancels a migration that has not handed the guest over yet.
#[utoipa::path(post, path = "/v1/migrations/{name}/cancel", tag = "migration", operation_id = "migration_cancel",
    params(("name" = Name, Path)),
    responses((status = 200, body = Migration), (status = "default", body = Error)))]
async fn cancel(
    State(app): State<App>,
    actor: Actor,
    PathName(name): PathName,
    _plain: OptionalBody<Plain>,
) -> Answer<Json<Migration>> {
    modify::<Migrations>(&app, &name, None, |view, object, txn| {
        let decision = view.migrations.get(&name).and_then(|entry| entry.decision.as_ref());
        let Some(decision) = decision else {
            object.spec.cancel = true;
            return Ok(txn);
        };
        if decision.phase.has_ended() {
            return Err(refuse(Code::WrongState, format!("migration {name} has {}", decision.phase.word())));
        }
        if !decision.phase.may_cancel() {
            return Err(refuse(
                Code::WrongState,
                format!("migration {name} is {}: the guest has been handed over", decision.phase.word()),
            )
            .hint("it can be moved back with another migration"));
        }
        object.spec.cancel = true;
        let key = sterna_model::key::Key::decision(sterna_model::key::Kind::Migration, &name);
        // The phase that allows it must still be the phase.
        Ok(txn.require(key.to_string(), decision.revision))
    })
    .await?;
    Ok(Json(list::show::<Migrations>(&app, actor.role, &name)?))
}
