//! Virtual disks.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use sterna_base::units::Bytes;
use sterna_model::error::{Code, Error};
use sterna_model::image::ImageReport;
use sterna_model::key::Kind;
use sterna_model::meta::Name;
use sterna_model::operation::Goal;
use sterna_model::volume::VolumeSpec;
use sterna_plan::View;
use sterna_store::Txn;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::auth::Actor;
use crate::body::{Body, PathName, Words};
use crate::error::{Answer, refuse};
use crate::list::{self, Page};
use crate::routes::{Change, change_plain, in_use};
use crate::shown::{Images, Operation, Pools, Volume, Volumes};
use crate::write::{
    self, Create, Started, known_revision, modify, new_meta, operation, put_new, refer, started,
};

const SIZE_MIN: Bytes = Bytes::mib(1);
const SIZE_MAX: Bytes = Bytes::gib(16 * 1024);

pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(get, change, delete))
        .routes(routes!(grow))
}

/// A new volume, and the operation that waits until it is there.
#[derive(Debug, Serialize, ToSchema)]
struct VolumeCreated {
    object: Volume,
    operation: Operation,
}

/// All volumes that match.
#[utoipa::path(get, path = "/v1/volumes", tag = "volume", operation_id = "volume_list",
    params(("limit" = Option<usize>, Query), ("after" = Option<String>, Query), ("label" = Option<String>, Query),
        ("host" = Option<String>, Query), ("state" = Option<String>, Query)),
    responses((status = 200, body = Page<Volume>), (status = "default", body = Error)))]
async fn list(State(app): State<App>, actor: Actor, words: Words) -> Answer<Json<Page<Volume>>> {
    words.only(&list::WORDS)?;
    list::list::<Volumes>(&app, &actor, &words)
}

/// One volume.
#[utoipa::path(get, path = "/v1/volumes/{name}", tag = "volume", operation_id = "volume_get",
    params(("name" = Name, Path)), responses((status = 200, body = Volume), (status = "default", body = Error)))]
async fn get(State(app): State<App>, actor: Actor, PathName(name): PathName) -> Answer<Json<Volume>> {
    Ok(Json(list::show::<Volumes>(&app, actor.role, &name)?))
}

/// Creates a volume, blank or as a thin clone of an image.
#[utoipa::path(post, path = "/v1/volumes", tag = "volume", operation_id = "volume_create",
    request_body = Create<VolumeSpec>,
    responses((status = 202, body = VolumeCreated), (status = "default", body = Error)))]
async fn create(
    State(app): State<App>,
    actor: Actor,
    Body { value, .. }: Body<Create<VolumeSpec>>,
) -> Answer<(StatusCode, Json<VolumeCreated>)> {
    let Create { name, labels, notes, spec } = value;
    let (view, now) = (app.view(), app.now());
    if spec.vm.is_some() {
        return Err(refuse(Code::Invalid, "spec.vm is set by the server for boot volumes")
            .hint("name the volume in the VM's spec.volumes"));
    }
    if spec.size.is_none() && spec.image.is_none() {
        return Err(
            refuse(Code::Invalid, "a blank volume needs a size").hint("give spec.size, such as 10GiB")
        );
    }
    check_size(&view, &spec)?;
    let mut txn = Txn::new();
    if let Some(pool) = &spec.pool {
        txn = refer::<Pools>(&view, txn, pool)?;
    }
    if let Some(image) = &spec.image {
        txn = refer::<Images>(&view, txn, image)?;
    }
    let meta = new_meta(name.clone(), labels, notes, now)?;
    let txn = put_new(txn, Kind::Volume, meta, spec)?;
    let (id, txn) = operation(txn, &actor, Goal::VolumeReady { volume: name.clone() }, now)?;
    write::create(&app, Kind::Volume, &name, txn).await?;
    let object = list::show::<Volumes>(&app, actor.role, &name)?;
    Ok((
        StatusCode::ACCEPTED,
        Json(VolumeCreated { object, operation: started(&app, &actor, &id)?.operation }),
    ))
}

/// A size is within the limits, whole sectors, and not smaller than the image.
pub fn check_size(view: &View, spec: &VolumeSpec) -> Answer<()> {
    let Some(size) = spec.size else { return Ok(()) };
    if !(SIZE_MIN..=SIZE_MAX).contains(&size) || size.as_u64() % 512 != 0 {
        return Err(refuse(Code::Invalid, format!("size {size} is not allowed"))
            .hint(format!("use {SIZE_MIN} to {SIZE_MAX}, in whole sectors of 512 bytes")));
    }
    let image =
        spec.image.as_ref().and_then(|image| view.images.get(image)).and_then(|entry| entry.report.as_ref());
    match image.map(|row| &*row.value) {
        Some(ImageReport::Ready { virtual_size, .. }) if size < *virtual_size => {
            Err(refuse(Code::Invalid, format!("size {size} is smaller than the image's {virtual_size}")))
        }
        _ => Ok(()),
    }
}

/// Changes labels and notes of a volume.
#[utoipa::path(patch, path = "/v1/volumes/{name}", tag = "volume", operation_id = "volume_change",
    params(("name" = Name, Path)), request_body = Change,
    responses((status = 200, body = Volume), (status = "default", body = Error)))]
async fn change(
    State(app): State<App>,
    actor: Actor,
    PathName(name): PathName,
    headers: HeaderMap,
    Body { value, .. }: Body<Change>,
) -> Answer<Json<Volume>> {
    change_plain::<Volumes>(&app, &actor, &name, (&headers, &value), |_, old, new, txn| {
        if old != new {
            return Err(
                refuse(Code::Invalid, "the spec of a volume does not change").hint("use grow for its size")
            );
        }
        Ok(txn)
    })
    .await
}

/// The new size.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Grow {
    #[schema(value_type = String, example = "20GiB")]
    size: Bytes,
    /// The revision that the change was computed from.
    #[serde(default)]
    revision: Option<u64>,
}

/// Makes the disk larger. A running guest sees the new size when it looks.
#[utoipa::path(post, path = "/v1/volumes/{name}/grow", tag = "volume", operation_id = "volume_grow",
    params(("name" = Name, Path)), request_body = Grow,
    responses((status = 202, body = Started), (status = "default", body = Error)))]
async fn grow(
    State(app): State<App>,
    actor: Actor,
    PathName(name): PathName,
    headers: HeaderMap,
    Body { value, .. }: Body<Grow>,
) -> Answer<(StatusCode, Json<Started>)> {
    let known = known_revision(&headers, value.revision)?;
    let now = app.now();
    let mut waits_for = None;
    modify::<Volumes>(&app, &name, known, |view, object, txn| {
        if object.meta.deleting.is_some() {
            return Err(refuse(Code::WrongState, format!("volume {name} is being deleted")));
        }
        let decided = view.volumes.get(&name).and_then(|entry| entry.decision.as_ref()).map(|row| row.size);
        let present = decided.max(object.spec.size).unwrap_or_default();
        if value.size <= present {
            return Err(refuse(Code::Invalid, format!("size {} is not larger than {present}", value.size))
                .hint("volumes only grow: shrinking would cut the guest's file system off"));
        }
        object.spec.size = Some(value.size);
        check_size(view, &object.spec)?;
        let goal = Goal::VolumeSize { volume: name.clone(), bytes: value.size.as_u64() };
        let (id, txn) = operation(txn, &actor, goal, now)?;
        waits_for = Some(id);
        Ok(txn)
    })
    .await?;
    accepted(&app, &actor, waits_for)
}

/// Deletes a volume that no VM names.
#[utoipa::path(delete, path = "/v1/volumes/{name}", tag = "volume", operation_id = "volume_delete",
    params(("name" = Name, Path)), responses((status = 202, body = Started), (status = "default", body = Error)))]
async fn delete(
    State(app): State<App>,
    actor: Actor,
    PathName(name): PathName,
    headers: HeaderMap,
) -> Answer<(StatusCode, Json<Started>)> {
    let known = known_revision(&headers, None)?;
    let now = app.now();
    let mut waits_for = None;
    modify::<Volumes>(&app, &name, known, |view, object, txn| {
        in_use("volume", &name, &users(view, &name))?;
        object.meta.deleting.get_or_insert(now);
        let (id, txn) = operation(txn, &actor, Goal::VolumeGone { volume: name.clone() }, now)?;
        waits_for = Some(id);
        Ok(txn)
    })
    .await?;
    accepted(&app, &actor, waits_for)
}

fn accepted(app: &App, actor: &Actor, operation: Option<Name>) -> Answer<(StatusCode, Json<Started>)> {
    let operation = operation.ok_or_else(|| refuse(Code::Internal, "the operation was not recorded"))?;
    Ok((StatusCode::ACCEPTED, Json(started(app, actor, &operation)?)))
}

fn users(view: &View, name: &Name) -> Vec<String> {
    let vms = view.vms.iter().filter(|(_, entry)| {
        let asks = entry.spec.as_ref().is_some_and(|row| row.value.spec.volumes.contains(name));
        let has = entry.decision.as_ref().is_some_and(|row| row.hardware.volumes.contains(name));
        let runs = entry.reports.values().any(|row| row.state.has_process());
        asks || (has && runs)
    });
    vms.map(|(vm, _)| format!("vm {vm}")).collect()
}
