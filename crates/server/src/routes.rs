//! The API's paths, one module a resource.

/// Facts that need a person.
pub mod alert;
/// Who did what.
pub mod audit;
/// Hosts with one CPU baseline.
pub mod cluster;
/// Sites.
pub mod datacentre;
/// Facts recorded for people.
pub mod event;
/// Machines that run VMs.
pub mod host;
/// Sources of boot disks.
pub mod image;
/// A machine becomes a host.
pub mod join;
/// Moves of running VMs.
pub mod migration;
/// L2 segments.
pub mod network;
/// Long work.
pub mod operation;
/// Places that hold volumes.
pub mod pool;
/// The server itself.
pub mod server;
/// Who may talk to the API.
pub mod token;
/// Virtual servers.
pub mod vm;
/// Virtual disks.
pub mod volume;
/// Every change as it happens.
pub mod watch;

use axum::Json;
use axum::http::HeaderMap;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sterna_model::error::Code;
use sterna_model::meta::{Labels, Name, Object};
use sterna_plan::View;
use sterna_store::Txn;
use utoipa::ToSchema;

use crate::app::App;
use crate::auth::Actor;
use crate::body::decode;
use crate::error::{Answer, refuse};
use crate::list;
use crate::shown::Resource;
use crate::write::{self, check_notes, known_revision, modify};

/// A change of an object: what is absent stays.
#[derive(Debug, Default, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Change {
    /// The revision that the change was computed from; `If-Match` says the same. Absent: whatever is there.
    pub revision: Option<u64>,
    /// All labels as they shall be.
    pub labels: Option<Labels>,
    pub notes: Option<String>,
    /// Fields of the spec to change; null gives a field its default (JSON merge patch, RFC 7396).
    #[schema(value_type = Option<Object>)]
    pub spec: Option<Map<String, Value>>,
}

/// A verb without particulars: `{}`, or nothing at all.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Plain {}

/// The answer to a deletion that is done.
#[derive(Debug, Serialize, ToSchema)]
pub struct Deleted {
    pub deleted: Name,
}

/// Applies a change to an object in memory.
pub fn apply_change<S>(change: &Change, object: &mut Object<S>) -> Answer<()>
where
    S: Serialize + DeserializeOwned,
{
    if let Some(labels) = &change.labels {
        sterna_model::meta::check_labels(labels).map_err(|why| refuse(Code::Invalid, why))?;
        object.meta.labels.clone_from(labels);
    }
    if let Some(notes) = &change.notes {
        check_notes(notes)?;
        object.meta.notes.clone_from(notes);
    }
    if let Some(fields) = &change.spec {
        let mut spec = serde_json::to_value(&object.spec)
            .map_err(|error| refuse(Code::Internal, format!("cannot read the spec: {error}")))?;
        merge(&mut spec, &Value::Object(fields.clone()));
        object.spec = decode(spec)?;
    }
    Ok(())
}

/// JSON merge patch. A tagged choice that changes its tag is replaced whole: its fields are not those of the other.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    let retagged = patch.get("type").is_some_and(|tag| target.get("type") != Some(tag));
    if retagged || !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else { return };
    for (field, value) in patch {
        match value {
            Value::Null => {
                target.remove(field);
            }
            value => merge(target.entry(field.clone()).or_insert(Value::Null), value),
        }
    }
}

/// Changes a plain object; `check` sees the old and the new.
pub async fn change_plain<R>(
    app: &App,
    actor: &Actor,
    name: &Name,
    (headers, change): (&HeaderMap, &Change),
    check: impl Fn(&View, &R::Spec, &R::Spec, Txn) -> Answer<Txn>,
) -> Answer<Json<R::Shown>>
where
    R: Resource,
    R::Spec: DeserializeOwned,
{
    let known = known_revision(headers, change.revision)?;
    modify::<R>(app, name, known, |view, object, txn| {
        let old = object.spec.clone();
        apply_change(change, object)?;
        check(view, &old, &object.spec, txn)
    })
    .await?;
    Ok(Json(list::show::<R>(app, actor.role, name)?))
}

/// Creates a plain object.
pub async fn create_plain<R: Resource>(
    app: &App,
    actor: &Actor,
    body: write::Create<R::Spec>,
    check: impl Fn(&View, &R::Spec, Txn) -> Answer<Txn>,
) -> Answer<Json<R::Shown>> {
    let meta = write::new_meta(body.name.clone(), body.labels, body.notes, app.now())?;
    let txn = check(&app.view(), &body.spec, Txn::new())?;
    let txn = write::put_new(txn, R::KIND, meta, body.spec)?;
    write::create(app, R::KIND, &body.name, txn).await?;
    Ok(Json(list::show::<R>(app, actor.role, &body.name)?))
}

/// Deletes a plain object unless something still `uses` it.
pub async fn delete_plain<R: Resource>(
    app: &App,
    name: &Name,
    headers: &HeaderMap,
    uses: impl Fn(&View) -> Vec<String>,
) -> Answer<Json<Deleted>> {
    let known = known_revision(headers, None)?;
    write::remove::<R>(app, name, known, |view| in_use(R::KIND.as_str(), name, &uses(view))).await?;
    Ok(Json(Deleted { deleted: name.clone() }))
}

/// Refuses when there are users, naming the first few.
pub fn in_use(kind: &str, name: &Name, users: &[String]) -> Answer<()> {
    if users.is_empty() {
        return Ok(());
    }
    let shown: Vec<_> = users.iter().take(5).cloned().collect();
    let more = if users.len() > shown.len() {
        format!(" and {} more", users.len() - shown.len())
    } else {
        String::new()
    };
    Err(refuse(Code::InUse, format!("{kind} {name} is used by {}{more}", shown.join(", ")))
        .hint("delete or change those first"))
}

/// At most one object of a kind is the default: refuses a second one.
pub fn one_default<'a>(kind: &str, others: impl Iterator<Item = &'a Name>) -> Answer<()> {
    match others.take(1).next() {
        None => Ok(()),
        Some(other) => Err(refuse(Code::WrongState, format!("{kind} {other} is the default already"))
            .hint(format!("set default=false on {other} first"))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_merge_keeps_what_it_does_not_name_and_replaces_another_choice_whole() {
        let mut value = json!({"a": 1, "b": {"c": 2, "d": 3}, "kind": {"type": "overlay", "cidr": "x"}});
        merge(&mut value, &json!({"a": null, "b": {"c": 4}, "kind": {"type": "bridge", "bridge": "br0"}}));
        assert_eq!(value, json!({"b": {"c": 4, "d": 3}, "kind": {"type": "bridge", "bridge": "br0"}}));
    }
}
