//! Virtual servers.

/// What may be asked of a VM.
mod check;
/// The serial console.
mod console;
/// What may be asked of its checks.
mod health;
/// Moving it, and what that would take.
mod migrate;
/// Start, stop, pause, resume, reset.
mod power;
/// Why it is where it is.
mod why;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use sterna_base::units::Bytes;
use sterna_model::error::{Code, Error};
use sterna_model::key::Kind;
use sterna_model::meta::{Labels, Meta, Name, Object};
use sterna_model::operation::Goal;
use sterna_model::vm::{NicSpec, VmSpec};
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
use crate::routes::{Change, apply_change};
use crate::shown::{Images, Operation, Pools, Vm, Vms};
use crate::write::{self, Started, known_revision, modify, new_meta, operation, put_new, refer, started};

pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(get, change, delete))
        .routes(routes!(add_nic))
        .routes(routes!(remove_nic))
        .routes(routes!(console::console))
        .merge(power::routes())
        .merge(migrate::routes())
        .merge(why::routes())
}

/// What a request to create a VM carries. `spec` may be empty but for `image` or `volumes`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct CreateVm {
    name: Name,
    #[serde(default)]
    labels: Labels,
    #[serde(default)]
    notes: String,
    spec: VmSpec,
    /// How the boot volume is made; only with `spec.image`.
    #[serde(default)]
    boot: Option<Boot>,
}

/// The volume that is cloned from the image.
#[derive(Debug, Default, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
struct Boot {
    pool: Option<Name>,
    /// Absent: the image's size.
    #[schema(value_type = Option<String>)]
    size: Option<Bytes>,
}

/// A new VM, and the operation that waits until it runs.
#[derive(Debug, Serialize, ToSchema)]
struct Created {
    object: Vm,
    operation: Operation,
}

/// A changed VM, and what of the change holds already.
#[derive(Debug, Serialize, ToSchema)]
struct Changed {
    object: Vm,
    applied: Vec<String>,
    at_next_start: Vec<String>,
}

/// All VMs that match.
#[utoipa::path(get, path = "/v1/vms", tag = "vm", operation_id = "vm_list",
    params(("limit" = Option<usize>, Query), ("after" = Option<String>, Query), ("label" = Option<String>, Query),
        ("host" = Option<String>, Query), ("state" = Option<String>, Query)),
    responses((status = 200, body = Page<Vm>), (status = "default", body = Error)))]
async fn list(State(app): State<App>, actor: Actor, words: Words) -> Answer<Json<Page<Vm>>> {
    words.only(&list::WORDS)?;
    list::list::<Vms>(&app, &actor, &words)
}

/// One VM.
#[utoipa::path(get, path = "/v1/vms/{name}", tag = "vm", operation_id = "vm_get", params(("name" = Name, Path)),
    responses((status = 200, body = Vm), (status = "default", body = Error)))]
async fn get(State(app): State<App>, actor: Actor, PathName(name): PathName) -> Answer<Json<Vm>> {
    Ok(Json(list::show::<Vms>(&app, actor.role, &name)?))
}

/// Creates a VM, with a boot volume cloned from its image when it names one.
#[utoipa::path(post, path = "/v1/vms", tag = "vm", operation_id = "vm_create", request_body = CreateVm,
    responses((status = 202, body = Created), (status = "default", body = Error)))]
async fn create(
    State(app): State<App>,
    actor: Actor,
    Body { value, raw }: Body<CreateVm>,
) -> Answer<(StatusCode, Json<Created>)> {
    let CreateVm { name, labels, notes, mut spec, boot } = value;
    let view = app.view();
    let now = app.now();
    let meta = new_meta(name.clone(), labels, notes, now)?;
    check::begins_at_zero(&spec)?;
    spec.power_request = 1;
    if raw.pointer("/spec/nics").is_none() {
        spec.nics = default_nic(&view);
    }
    let txn = check::spec(&view, None, &spec, Txn::new())?;
    let txn = with_boot_volume(&view, &meta, &mut spec, boot, txn)?;
    if spec.volumes.is_empty() {
        return Err(
            refuse(Code::Invalid, "the VM has nothing to boot from").hint("give spec.image or spec.volumes")
        );
    }
    let txn = put_new(txn, Kind::Vm, meta, spec)?;
    let (id, txn) = operation(txn, &actor, Goal::VmPower { vm: name.clone(), request: 1 }, now)?;
    write::create(&app, Kind::Vm, &name, txn).await?;
    let object = list::show::<Vms>(&app, actor.role, &name)?;
    Ok((StatusCode::ACCEPTED, Json(Created { object, operation: started(&app, &actor, &id)?.operation })))
}

/// One NIC on the default network, if there is one.
fn default_nic(view: &View) -> Vec<NicSpec> {
    let default = view.networks.iter().find(|(_, entry)| {
        entry.spec.as_ref().is_some_and(|row| row.value.spec.default && row.value.meta.deleting.is_none())
    });
    default.map(|(name, _)| NicSpec { network: name.clone(), mac: None, address: None }).into_iter().collect()
}

fn with_boot_volume(
    view: &View,
    vm: &Meta,
    spec: &mut VmSpec,
    boot: Option<Boot>,
    mut txn: Txn,
) -> Answer<Txn> {
    let Some(image) = &spec.image else {
        return match boot {
            Some(_) => {
                Err(refuse(Code::Invalid, "`boot` says how a boot volume is made, but no image is named"))
            }
            None => Ok(txn),
        };
    };
    let boot = boot.unwrap_or_default();
    txn = refer::<Images>(view, txn, image)?;
    if let Some(pool) = &boot.pool {
        txn = refer::<Pools>(view, txn, pool)?;
    }
    let name = Name::new(&format!("{}-boot", vm.name)).map_err(|_| {
        refuse(
            Code::Invalid,
            "the name of a VM with an image has at most 58 characters: its volume is called NAME-boot",
        )
    })?;
    if view.volumes.contains_key(&name) {
        return Err(refuse(Code::AlreadyExists, format!("volume {name} exists already"))
            .hint("delete it, boot from it with `volumes`, or choose another name"));
    }
    let volume = VolumeSpec {
        pool: boot.pool,
        size: boot.size,
        image: Some(image.clone()),
        vm: Some(vm.name.clone()),
    };
    super::volume::check_size(view, &volume)?;
    let meta = new_meta(name.clone(), Labels::new(), String::new(), vm.created)?;
    spec.volumes.insert(0, name);
    put_new(txn, Kind::Volume, meta, volume)
}

/// Changes a VM; says what holds already and what waits for the next start.
#[utoipa::path(patch, path = "/v1/vms/{name}", tag = "vm", operation_id = "vm_change",
    params(("name" = Name, Path)), request_body = Change,
    responses((status = 200, body = Changed), (status = "default", body = Error)))]
async fn change(
    State(app): State<App>,
    actor: Actor,
    PathName(name): PathName,
    headers: HeaderMap,
    Body { value, .. }: Body<Change>,
) -> Answer<Json<Changed>> {
    let known = known_revision(&headers, value.revision)?;
    apply(&app, &actor, &name, known, |object| apply_change(&value, object)).await
}

/// Adds a NIC; it is there after the next start.
#[utoipa::path(post, path = "/v1/vms/{name}/nics", tag = "vm", operation_id = "vm_add_nic",
    params(("name" = Name, Path)), request_body = NicSpec,
    responses((status = 200, body = Changed), (status = "default", body = Error)))]
async fn add_nic(
    State(app): State<App>,
    actor: Actor,
    PathName(name): PathName,
    headers: HeaderMap,
    Body { value, .. }: Body<NicSpec>,
) -> Answer<Json<Changed>> {
    let known = known_revision(&headers, None)?;
    apply(&app, &actor, &name, known, |object| {
        object.spec.nics.push(value.clone());
        Ok(())
    })
    .await
}

/// Removes the NIC with this number, counted from 0; it is gone after the next start.
#[utoipa::path(delete, path = "/v1/vms/{name}/nics/{index}", tag = "vm", operation_id = "vm_remove_nic",
    params(("name" = Name, Path), ("index" = usize, Path)),
    responses((status = 200, body = Changed), (status = "default", body = Error)))]
async fn remove_nic(
    State(app): State<App>,
    actor: Actor,
    headers: HeaderMap,
    axum::extract::Path((name, index)): axum::extract::Path<(String, String)>,
) -> Answer<Json<Changed>> {
    let name = Name::new(&name)?;
    let known = known_revision(&headers, None)?;
    apply(&app, &actor, &name, known, |object| {
        let index = index.parse::<usize>().ok().filter(|index| *index < object.spec.nics.len());
        let index = index.ok_or_else(|| {
            refuse(Code::NotFound, format!("vm {name} has {} NICs, counted from 0", object.spec.nics.len()))
        })?;
        object.spec.nics.remove(index);
        Ok(())
    })
    .await
}

async fn apply(
    app: &App,
    actor: &Actor,
    name: &Name,
    known: Option<u64>,
    change: impl Fn(&mut Object<VmSpec>) -> Answer<()>,
) -> Answer<Json<Changed>> {
    let mut differences = Vec::new();
    modify::<Vms>(app, name, known, |view, object, txn| {
        if object.meta.deleting.is_some() {
            return Err(refuse(Code::WrongState, format!("vm {name} is being deleted")));
        }
        let old = object.clone();
        change(object)?;
        check::keeps(&old.spec, &mut object.spec)?;
        differences = check::differences(&old, object);
        check::spec(view, Some(name), &object.spec, txn)
    })
    .await?;
    let object = list::show::<Vms>(app, actor.role, name)?;
    let has_process = object.reports.values().any(|report| report.state.has_process());
    let (waits, applied) =
        differences.into_iter().partition::<Vec<_>, _>(|(needs_start, _)| *needs_start && has_process);
    let words = |changes: Vec<(bool, String)>| changes.into_iter().map(|(_, words)| words).collect();
    Ok(Json(Changed { object, applied: words(applied), at_next_start: words(waits) }))
}

/// Deletes a VM: its guest is switched off, its boot volume goes with it.
#[utoipa::path(delete, path = "/v1/vms/{name}", tag = "vm", operation_id = "vm_delete", params(("name" = Name, Path)),
    responses((status = 202, body = Started), (status = "default", body = Error)))]
async fn delete(
    State(app): State<App>,
    actor: Actor,
    PathName(name): PathName,
    headers: HeaderMap,
) -> Answer<(StatusCode, Json<Started>)> {
    let known = known_revision(&headers, None)?;
    let now = app.now();
    let mut waits_for = None;
    modify::<Vms>(&app, &name, known, |_, object, txn| {
        object.meta.deleting.get_or_insert(now);
        let (id, txn) = operation(txn, &actor, Goal::VmGone { vm: name.clone() }, now)?;
        waits_for = Some(id);
        Ok(txn)
    })
    .await?;
    accepted(&app, &actor, waits_for)
}

/// `202` with the operation to wait for.
fn accepted(app: &App, actor: &Actor, operation: Option<Name>) -> Answer<(StatusCode, Json<Started>)> {
    let operation = operation.ok_or_else(|| refuse(Code::Internal, "the operation was not recorded"))?;
    Ok((StatusCode::ACCEPTED, Json(started(app, actor, &operation)?)))
}
