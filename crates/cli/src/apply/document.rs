//! Documents and what may stand in them.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sterna_model::key::Kind;
use sterna_model::meta::{Labels, Name};

use super::yaml;
use crate::exit::{Failure, Result};

/// One object as it shall be.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    pub kind: Kind,
    pub name: Name,
    pub labels: Option<Labels>,
    pub notes: Option<String>,
    /// Only the fields that the document names, as the API writes them.
    pub spec: Value,
}

impl fmt::Display for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.as_str(), self.name)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    kind: String,
    name: Name,
    #[serde(default)]
    labels: Option<Labels>,
    #[serde(default)]
    notes: Option<String>,
    #[serde(default)]
    spec: Option<Value>,
}

/// Kinds that a file may describe, in the order in which one needs the other.
const KINDS: [Kind; 8] = [
    Kind::Datacentre,
    Kind::Cluster,
    Kind::Host,
    Kind::Pool,
    Kind::Image,
    Kind::Network,
    Kind::Volume,
    Kind::Vm,
];

/// Reads all documents and sorts them so that each comes after what it may need. JSON is YAML as well.
pub fn parse(text: &str) -> Result<Vec<Document>> {
    let raw: Vec<Value> = yaml::read(text).map_err(|why| {
        Failure::usage(
            why,
            "each document is {kind, name, labels, notes, spec}; anchors and aliases are not understood",
        )
    })?;
    // A JSON array of documents is several.
    let raw: Vec<Value> = raw
        .into_iter()
        .flat_map(|value| match value {
            Value::Array(list) => list,
            other => vec![other],
        })
        .collect();
    let mut documents = Vec::new();
    for (index, value) in raw.into_iter().enumerate() {
        documents.push(read(value).map_err(|why| {
            Failure::usage(
                format!("document {}: {why}", index + 1),
                "each document is {kind, name, labels, notes, spec}",
            )
        })?);
    }
    if documents.is_empty() {
        return Err(Failure::usage(
            "there is no document in it",
            "each document is {kind, name, labels, notes, spec}",
        ));
    }
    documents.sort_by_key(|document: &Document| KINDS.iter().position(|kind| *kind == document.kind));
    Ok(documents)
}

fn read(value: Value) -> std::result::Result<Document, String> {
    let raw: Raw = serde_json::from_value(value).map_err(|error| error.to_string())?;
    let kind = KINDS.into_iter().find(|kind| kind.as_str() == raw.kind).ok_or_else(|| {
        let known: Vec<_> = KINDS.iter().map(|kind| kind.as_str()).collect();
        format!("`{}` is no kind that a file may describe; use one of {}", raw.kind, known.join(", "))
    })?;
    let spec = raw.spec.unwrap_or_else(|| Value::Object(serde_json::Map::new()));
    let spec = normal(kind, spec).map_err(|why| format!("{} {}: {why}", kind.as_str(), raw.name))?;
    Ok(Document { kind, name: raw.name, labels: raw.labels, notes: raw.notes, spec })
}

/// The fields given, each written as the API writes it: `1024MiB` and `1GiB` are the same wish.
fn normal(kind: Kind, given: Value) -> std::result::Result<Value, String> {
    use sterna_model as m;
    match kind {
        Kind::Datacentre => through::<m::datacentre::DatacentreSpec>(given),
        Kind::Cluster => through::<m::cluster::ClusterSpec>(given),
        Kind::Pool => through::<m::pool::PoolSpec>(given),
        Kind::Image => through::<m::image::ImageSpec>(given),
        Kind::Network => through::<m::network::NetworkSpec>(given),
        Kind::Volume => through::<m::volume::VolumeSpec>(given),
        Kind::Vm => through::<m::vm::VmSpec>(given),
        // A host's spec is written when it joins; a file names only parts of it.
        _ => Ok(given),
    }
}

fn through<S: Serialize + DeserializeOwned>(given: Value) -> std::result::Result<Value, String> {
    let typed: S = serde_json::from_value(given.clone()).map_err(|error| error.to_string())?;
    let full = serde_json::to_value(&typed).map_err(|error| error.to_string())?;
    Ok(only(&given, full))
}

/// Of `full` only what `given` names.
fn only(given: &Value, full: Value) -> Value {
    match (given, full) {
        (Value::Object(given), Value::Object(mut full)) => {
            let kept =
                given.iter().filter_map(|(key, value)| Some((key.clone(), only(value, full.remove(key)?))));
            Value::Object(kept.collect())
        }
        (Value::Array(given), Value::Array(full)) if given.len() == full.len() => {
            Value::Array(given.iter().zip(full).map(|(given, full)| only(given, full)).collect())
        }
        (_, full) => full,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn documents_come_in_the_order_in_which_one_needs_the_other() {
        let text = "kind: vm\nname: web\nspec: {image: tiny, memory: 1024MiB}\n---\nkind: network\nname: lan\n\
                    spec:\n  kind: {type: overlay, cidr: 10.9.0.0/24}\n";
        let documents = parse(text).unwrap();
        let names: Vec<_> = documents.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["network lan", "vm web"]);
        assert_eq!(documents[1].spec, json!({"image": "tiny", "memory": "1GiB"}));
    }

    #[test]
    fn json_is_read_as_well_also_as_a_list() {
        let one = r#"{"kind": "datacentre", "name": "north"}"#;
        assert_eq!(parse(one).unwrap().len(), 1);
        assert_eq!(parse(&format!("[{one}, {one}]")).unwrap().len(), 2);
    }

    #[test]
    fn a_wrong_field_is_named_before_anything_is_sent() {
        for (text, word) in [
            ("kind: vm\nname: web\nspec: {memroy: 1GiB}\n", "memroy"),
            ("kind: vm\nname: web\nspcs: {}\n", "spcs"),
            ("kind: token\nname: web\n", "token"),
            ("kind: vm\nname: ../x\n", "is not a name"),
            ("kind: vm\nname: web\nspec: {power: off-ish}\n", "off-ish"),
            ("", "no document"),
        ] {
            let failure = parse(text).unwrap_err();
            assert!(failure.to_string().contains(word), "{text}: {failure}");
            assert_eq!(failure.code(), crate::exit::USAGE);
        }
    }
}
