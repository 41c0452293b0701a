//! Lists, objects and the calls that every resource has.

use std::collections::BTreeMap;
use std::marker::PhantomData;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sterna_model::meta::{Labels, Meta, Name};

use crate::Client;
use crate::error::Result;

/// An object as the API shows it: the three columns, and the status computed from them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object<S, D = Value, R = Value, T = Value> {
    pub kind: String,
    pub meta: Meta,
    /// Of the spec; sent back with a write, so that nobody's change is overwritten unseen.
    pub revision: u64,
    pub spec: S,
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub decision: Option<D>,
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub report: Option<R>,
    /// Reports by host, for kinds that several hosts report on.
    #[serde(default = "BTreeMap::new", skip_serializing_if = "BTreeMap::is_empty")]
    pub reports: BTreeMap<Name, R>,
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub status: Option<T>,
    /// What a newer server says beside: kept, so that `-o json` shows it.
    #[serde(flatten)]
    pub more: serde_json::Map<String, Value>,
}

fn none<T>() -> Option<T> {
    None
}

impl<S, D, R, T> Object<S, D, R, T> {
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.meta.name
    }
}

/// A kind of object: where it lies in the API and what its columns are.
pub trait Resource {
    /// The path segment, such as `vms`.
    const PATH: &'static str;
    /// The word for one, such as `vm`.
    const KIND: &'static str;
    type Spec: Serialize + DeserializeOwned + Send;
    type Decision: Serialize + DeserializeOwned + Send;
    type Report: Serialize + DeserializeOwned + Send;
    type Status: Serialize + DeserializeOwned + Send;
}

/// The object type of a resource.
pub type Of<R> = Object<
    <R as Resource>::Spec,
    <R as Resource>::Decision,
    <R as Resource>::Report,
    <R as Resource>::Status,
>;

/// What a list is narrowed by.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// All must match.
    pub labels: Labels,
    /// Further filters of the resource, such as `host`.
    pub fields: Vec<(&'static str, String)>,
}

impl Filter {
    pub(crate) fn query(&self) -> Vec<(&'static str, String)> {
        let labels = self.labels.iter().map(|(key, value)| ("label", format!("{key}={value}")));
        labels.chain(self.fields.iter().cloned()).collect()
    }
}

/// One page of a list.
#[derive(Debug, Deserialize)]
pub(crate) struct Page<T> {
    pub items: Vec<T>,
    #[serde(default = "none")]
    pub next: Option<String>,
}

/// What is asked for when an object is made.
#[derive(Debug, Clone, Serialize)]
pub struct New<S> {
    pub name: Name,
    #[serde(skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub notes: String,
    pub spec: S,
}

impl<S> New<S> {
    #[must_use]
    pub fn named(name: Name, spec: S) -> Self {
        Self { name, labels: Labels::new(), notes: String::new(), spec }
    }
}

/// What is changed; what is absent stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Patch<S = Value> {
    /// The revision that the change was computed from; absent: whatever is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// All labels as they shall be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<Labels>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notes: Option<String>,
    /// Fields of the spec as a JSON merge patch (RFC 7396).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spec: Option<S>,
}

impl<S> Default for Patch<S> {
    fn default() -> Self {
        Self { revision: None, labels: None, notes: None, spec: None }
    }
}

impl<S> Patch<S> {
    /// A change of the spec alone.
    #[must_use]
    pub fn of(spec: S) -> Self {
        Self { spec: Some(spec), ..Self::default() }
    }
}

/// The calls of one resource.
#[derive(Debug)]
pub struct Api<'a, R> {
    pub(crate) client: &'a Client,
    resource: PhantomData<R>,
}

impl<'a, R: Resource> Api<'a, R> {
    #[must_use]
    pub fn new(client: &'a Client) -> Self {
        Self { client, resource: PhantomData }
    }

    pub(crate) fn path(name: &Name) -> String {
        format!("/v1/{}/{name}", R::PATH)
    }

    pub(crate) fn verb(name: &Name, verb: &str) -> String {
        format!("/v1/{}/{name}/{verb}", R::PATH)
    }

    /// All objects that the filter lets through, over as many pages as there are.
    pub async fn list(&self, filter: &Filter) -> Result<Vec<Of<R>>> {
        all(self.client, &format!("/v1/{}", R::PATH), filter.query()).await
    }

    pub async fn get(&self, name: &Name) -> Result<Of<R>> {
        self.client.get(&Self::path(name), &[]).await
    }

    /// Changes what the patch names. `A` is what this resource answers.
    pub(crate) async fn patch_as<A: DeserializeOwned>(
        &self,
        name: &Name,
        patch: &impl Serialize,
    ) -> Result<A> {
        self.client.patch(&Self::path(name), patch).await
    }
}

/// Follows a list's cursor to its end.
pub(crate) async fn all<T: DeserializeOwned>(
    client: &Client,
    path: &str,
    query: Vec<(&'static str, String)>,
) -> Result<Vec<T>> {
    let mut items = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let mut asked = query.clone();
        asked.extend(after.take().map(|cursor| ("after", cursor)));
        let page: Page<T> = client.get(path, &asked).await?;
        items.extend(page.items);
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(items),
        }
    }
}

/// The answer to a write: the object as it is now, the work that follows, or both.
#[derive(Debug, Clone, Serialize)]
pub struct Answer<O> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<O>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operation: Option<crate::operation::Operation>,
    /// The migration that was ordered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub migration: Option<Name>,
    /// Changes that hold already, in words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub applied: Vec<String>,
    /// Changes that wait for the VM's next start.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub at_next_start: Vec<String>,
}

impl<O> Default for Answer<O> {
    fn default() -> Self {
        Self {
            object: None,
            operation: None,
            migration: None,
            applied: Vec::new(),
            at_next_start: Vec::new(),
        }
    }
}

/// The envelope; a bare object is read as an envelope around it.
#[derive(Deserialize)]
struct Envelope<O> {
    #[serde(default = "none")]
    object: Option<O>,
    #[serde(default = "none")]
    operation: Option<crate::operation::Operation>,
    #[serde(default = "none")]
    migration: Option<Name>,
    #[serde(default)]
    applied: Vec<String>,
    #[serde(default)]
    at_next_start: Vec<String>,
}

impl<'de, O: DeserializeOwned> Deserialize<'de> for Answer<O> {
    fn deserialize<De: serde::Deserializer<'de>>(deserializer: De) -> std::result::Result<Self, De::Error> {
        use serde::de::Error as _;
        let value = Value::deserialize(deserializer)?;
        if value.is_null() {
            return Ok(Self::default());
        }
        if value.get("meta").is_some() {
            let object = serde_json::from_value(value).map_err(De::Error::custom)?;
            return Ok(Self { object: Some(object), ..Self::default() });
        }
        let read: Envelope<O> = serde_json::from_value(value).map_err(De::Error::custom)?;
        let Envelope { object, operation, migration, applied, at_next_start } = read;
        Ok(Self { object, operation, migration, applied, at_next_start })
    }
}

impl<R: Resource> Api<'_, R> {
    pub async fn create<S: Serialize>(&self, new: &New<S>) -> Result<Answer<Of<R>>> {
        self.client.post(&format!("/v1/{}", R::PATH), new).await
    }

    pub async fn patch<S: Serialize>(&self, name: &Name, patch: &Patch<S>) -> Result<Answer<Of<R>>> {
        self.patch_as(name, patch).await
    }

    pub async fn delete(&self, name: &Name) -> Result<Answer<Of<R>>> {
        self.client.delete(&Self::path(name), &[]).await
    }

    /// `POST NAME/VERB` with a body.
    pub(crate) async fn ask(&self, name: &Name, verb: &str, body: &impl Serialize) -> Result<Answer<Of<R>>> {
        self.client.post(&Self::verb(name, verb), body).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    type Any = Object<Value>;

    fn object() -> Value {
        json!({"kind": "vm", "revision": 4, "spec": {"cpus": 1}, "newer": true,
            "meta": {"name": "web", "uid": "018f2f6e-0000-7000-8000-000000000000", "created": "2026-11-22T12:00:00Z"}})
    }

    #[test]
    fn what_a_newer_server_adds_is_kept() {
        let read: Any = serde_json::from_value(object()).unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap()["newer"], json!(true));
    }

    #[test]
    fn an_answer_is_an_envelope_or_the_object_itself() {
        let bare: Answer<Any> = serde_json::from_value(object()).unwrap();
        assert_eq!(bare.object.unwrap().meta.name.as_str(), "web");
        let wrapped: Answer<Any> =
            serde_json::from_value(json!({"object": object(), "at_next_start": ["cpus 1 -> 2"]})).unwrap();
        assert_eq!(wrapped.at_next_start, ["cpus 1 -> 2"]);
        assert!(serde_json::from_value::<Answer<Any>>(Value::Null).unwrap().object.is_none());
    }
}
