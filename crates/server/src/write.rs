//! Changing objects: create, modify and delete as transactions that compare what they were computed from.

use axum::http::{HeaderMap, header};
use serde::{Deserialize, Serialize};
use sterna_base::clock::Timestamp;
use sterna_model::error::Code;
use sterna_model::key::{Column, Key, Kind};
use sterna_model::meta::{Labels, Meta, NOTES_MAX, Name, Object, check_labels};
use sterna_model::operation::{Goal, OperationSpec};
use sterna_plan::View;
use sterna_store::Txn;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::app::App;
use crate::auth::Actor;
use crate::error::{Answer, Refusal, refuse};
use crate::list;
use crate::shown::{Operation, Operations, Resource};

/// How often a change is computed anew when others change the same object at the same time.
const TRIES: usize = 8;

/// The answer to everything that takes time.
#[derive(Debug, Serialize, ToSchema)]
pub struct Started {
    pub operation: Operation,
}

/// Metadata of an object that begins to exist.
pub fn new_meta(name: Name, labels: Labels, notes: String, now: Timestamp) -> Answer<Meta> {
    check_labels(&labels).map_err(|why| refuse(Code::Invalid, why))?;
    check_notes(&notes)?;
    Ok(Meta { name, uid: Uuid::now_v7(), created: now, labels, notes, deleting: None })
}

pub fn check_notes(notes: &str) -> Answer<()> {
    if notes.len() > NOTES_MAX {
        let message = format!("notes have {} bytes; {NOTES_MAX} are allowed", notes.len());
        return Err(refuse(Code::Invalid, message));
    }
    Ok(())
}

/// Labels to set, and with null to remove.
pub type LabelChanges = std::collections::BTreeMap<String, Option<String>>;

/// Applies changes of labels and notes.
pub fn change_meta(meta: &mut Meta, labels: Option<&LabelChanges>, notes: Option<&String>) -> Answer<()> {
    for (key, value) in labels.into_iter().flatten() {
        match value {
            Some(value) => meta.labels.insert(key.clone(), value.clone()),
            None => meta.labels.remove(key),
        };
    }
    check_labels(&meta.labels).map_err(|why| refuse(Code::Invalid, why))?;
    if let Some(notes) = notes {
        check_notes(notes)?;
        meta.notes.clone_from(notes);
    }
    Ok(())
}

/// The bytes of a row.
pub fn bytes(value: &impl Serialize) -> Answer<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| refuse(Code::Internal, format!("cannot write a row: {error}")))
}

/// Adds a new object to a transaction.
pub fn put_new<S: Serialize>(txn: Txn, kind: Kind, meta: Meta, spec: S) -> Answer<Txn> {
    let key = Key::spec(kind, &meta.name).to_string();
    let row = bytes(&Object { meta, spec })?;
    Ok(txn.absent(key.clone()).put(key, row))
}

/// Commits the creation of `name`; a name that is taken is said to be.
pub async fn create(app: &App, kind: Kind, name: &Name, txn: Txn) -> Answer<u64> {
    // Without this a name whose remains (a decision or a report) are still being removed could be taken again.
    if has_remains(&app.view(), kind, name) {
        return Err(taken(kind, name));
    }
    let key = Key::spec(kind, name).to_string();
    match app.store.commit(txn).await {
        Ok(revision) => {
            app.follower.reached(revision).await;
            Ok(revision)
        }
        Err(sterna_store::Error::Conflict { key: found, .. }) if found == key => Err(taken(kind, name)),
        Err(error) => Err(error.into()),
    }
}

fn has_remains(view: &View, kind: Kind, name: &Name) -> bool {
    [Column::Spec, Column::Decision, Column::Report]
        .into_iter()
        .any(|column| view.revision_of(&Key::new(kind, name, column)) != 0)
}

fn taken(kind: Kind, name: &Name) -> Refusal {
    refuse(Code::AlreadyExists, format!("{} {name} exists already", kind.as_str()))
        .hint("choose another name")
}

/// The revision that the caller says it knows: `If-Match` or the body's `revision`.
pub fn known_revision(headers: &HeaderMap, body: Option<u64>) -> Answer<Option<u64>> {
    let Some(header) = headers.get(header::IF_MATCH) else { return Ok(body) };
    let text = header.to_str().unwrap_or_default().trim().trim_matches('"');
    let revision = text.parse().map_err(|_| {
        refuse(Code::Malformed, "If-Match is not a revision").hint("give the object's `revision`")
    })?;
    match body {
        Some(body) if body != revision => Err(refuse(Code::Malformed, "If-Match and `revision` differ")),
        _ => Ok(Some(revision)),
    }
}

/// Changes the spec of `name` with `change`, which may add to the transaction.
///
/// Without a `known` revision the change is computed anew when somebody else was faster.
pub async fn modify<R: Resource>(
    app: &App,
    name: &Name,
    known: Option<u64>,
    mut change: impl FnMut(&View, &mut Object<R::Spec>, Txn) -> Answer<Txn>,
) -> Answer<u64> {
    let key = Key::spec(R::KIND, name).to_string();
    for _ in 0..TRIES {
        let (view, row) = newest::<R>(app, name)?;
        check_known(known, row.revision, R::KIND, name)?;
        let mut object = (*row.value).clone();
        let txn = change(&view, &mut object, Txn::new().require(key.clone(), row.revision))?;
        let txn = txn.put(key.clone(), bytes(&object)?);
        match app.store.commit(txn).await {
            Ok(revision) => {
                app.follower.reached(revision).await;
                return Ok(revision);
            }
            Err(sterna_store::Error::Conflict { found, .. }) => app.follower.reached(found).await,
            Err(error) => return Err(error.into()),
        }
    }
    Err(refuse(Code::Conflict, format!("{} {name} changes too often", R::KIND.as_str())).hint("try again"))
}

type SpecRow<R> = sterna_plan::view::Row<Object<<R as Resource>::Spec>>;

fn newest<R: Resource>(app: &App, name: &Name) -> Answer<(std::sync::Arc<View>, SpecRow<R>)> {
    let view = app.view();
    let spec = R::table(&view).get(name).and_then(|entry| entry.spec.as_ref());
    let spec = spec.ok_or_else(|| list::not_found::<R>(name))?;
    let row = sterna_plan::view::Row { value: std::sync::Arc::clone(&spec.value), revision: spec.revision };
    Ok((view, row))
}

fn check_known(known: Option<u64>, newest: u64, kind: Kind, name: &Name) -> Answer<()> {
    match known {
        Some(known) if known != newest => {
            let message = format!("{} {name} is at revision {newest}, not {known}", kind.as_str());
            Err(refuse(Code::Conflict, message).hint("read it again and repeat the change"))
        }
        _ => Ok(()),
    }
}

/// Removes every column of an object that no agent has a part of.
pub async fn remove<R: Resource>(
    app: &App,
    name: &Name,
    known: Option<u64>,
    refusal: impl Fn(&View) -> Answer<()>,
) -> Answer<()> {
    let (view, row) = newest::<R>(app, name)?;
    check_known(known, row.revision, R::KIND, name)?;
    refusal(&view)?;
    let txn = delete_columns(&view, Txn::new(), R::KIND, name);
    app.commit(txn).await?;
    Ok(())
}

/// Adds the deletion of every column to a transaction, comparing each.
pub fn delete_columns(view: &View, txn: Txn, kind: Kind, name: &Name) -> Txn {
    [Column::Spec, Column::Decision, Column::Report].into_iter().fold(txn, |txn, column| {
        let key = Key::new(kind, name, column);
        match view.revision_of(&key) {
            0 => txn,
            revision => txn.require(key.to_string(), revision).delete(key.to_string()),
        }
    })
}

/// An operation that waits for `goal`, and the transaction that also records it.
pub fn operation(txn: Txn, actor: &Actor, goal: Goal, now: Timestamp) -> Answer<(Name, Txn)> {
    let random = Uuid::new_v4().simple().to_string();
    let name = Name::new(&format!("op-{:x}-{}", now.as_millis(), &random[..6]))?;
    let meta = new_meta(name.clone(), Labels::new(), String::new(), now)?;
    let spec = OperationSpec { goal, started: now, actor: actor.name.clone() };
    Ok((name, put_new(txn, Kind::Operation, meta, spec)?))
}

/// The answer that tells the caller what to wait for.
pub fn started(app: &App, actor: &Actor, operation: &Name) -> Answer<Started> {
    Ok(Started { operation: list::show::<Operations>(app, actor.role, operation)? })
}

/// The object that a reference names must exist when the transaction commits.
pub fn refer<R: Resource>(view: &View, txn: Txn, name: &Name) -> Answer<Txn> {
    let key = Key::spec(R::KIND, name);
    let entry = R::table(view).get(name).and_then(|entry| entry.spec.as_ref());
    match entry {
        Some(row) if row.value.meta.deleting.is_none() => {
            let txn = if txn.compares.iter().any(|known| is_about(known, &key)) {
                txn
            } else {
                txn.require(key.to_string(), row.revision)
            };
            Ok(txn)
        }
        Some(_) => Err(refuse(Code::Unmet, format!("{} {name} is being deleted", R::KIND.as_str()))),
        None => Err(refuse(Code::Unmet, format!("{} {name} does not exist", R::KIND.as_str()))
            .hint(format!("create it first, or name one that GET /v1/{}s lists", R::KIND.as_str()))),
    }
}

fn is_about(compare: &sterna_store::Compare, key: &Key) -> bool {
    matches!(compare, sterna_store::Compare::Modified { key: known, .. } if *known == key.to_string())
}

/// What a request to create a plain object carries.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Create<S> {
    pub name: Name,
    #[serde(default)]
    pub labels: Labels,
    #[serde(default)]
    pub notes: String,
    pub spec: S,
}

/// A change of what every object carries.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ChangeMeta {
    /// Labels to set; null removes one.
    pub labels: Option<LabelChanges>,
    pub notes: Option<String>,
    /// The revision that the change was computed from.
    pub revision: Option<u64>,
}
