//! What would change, field by field.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Value, json};
use sterna_client::object::Object;

use super::document::Document;
use crate::output::flatten;

/// One field; absent on one side when it is new, or was never set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    field: String,
    before: Option<String>,
    after: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Difference { field, before, after } = self;
        match (before, after) {
            (None, Some(after)) => write!(f, "+ {field}: {after}"),
            (Some(before), None) => write!(f, "- {field}: {before}"),
            (before, after) => {
                let text = |value: &Option<String>| value.clone().unwrap_or_default();
                write!(f, "~ {field}: {} -> {}", text(before), text(after))
            }
        }
    }
}

/// The fields that the document names and the object has otherwise.
pub fn between(document: &Document, present: Option<&Object<Value>>) -> Vec<Difference> {
    let mut wanted = json!({ "spec": document.spec });
    let mut has = json!({ "spec": present.map(|object| object.spec.clone()) });
    if let Some(labels) = &document.labels {
        wanted["labels"] = json!(labels);
        has["labels"] = json!(present.map(|object| &object.meta.labels));
    }
    if let Some(notes) = &document.notes {
        wanted["notes"] = json!(notes);
        has["notes"] = json!(present.map(|object| &object.meta.notes));
    }
    let mut differences = Vec::new();
    compare("", &wanted, present.is_some().then_some(&has), &mut differences);
    differences
}

fn compare(path: &str, wanted: &Value, has: Option<&Value>, differences: &mut Vec<Difference>) {
    let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    if let Value::Object(wanted) = wanted {
        for (key, value) in wanted {
            compare(&below(key), value, has.and_then(|has| has.get(key)), differences);
        }
        // Labels are given as they shall be, all of them; of a spec only what is named changes.
        if path == "labels"
            && let Some(Value::Object(has)) = has
        {
            let gone = has.iter().filter(|(key, _)| !wanted.contains_key(*key));
            differences.extend(gone.map(|(key, value)| Difference {
                field: below(key),
                before: Some(crate::output::plain(value)),
                after: None,
            }));
        }
        return;
    }
    if has == Some(wanted) {
        return;
    }
    let (before, after) = (leaves(path, has), leaves(path, Some(wanted)));
    let fields: std::collections::BTreeSet<_> = before.keys().chain(after.keys()).collect();
    for field in fields {
        let (before, after) = (before.get(field).cloned(), after.get(field).cloned());
        if before != after {
            differences.push(Difference { field: field.clone(), before, after });
        }
    }
}

fn leaves(path: &str, value: Option<&Value>) -> BTreeMap<String, String> {
    let mut lines = Vec::new();
    if let Some(value) = value.filter(|value| !value.is_null()) {
        flatten(path, value, &mut lines);
    }
    lines.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::document::parse;

    fn lines(yaml: &str, present: Option<Value>) -> Vec<String> {
        let present = present.map(|value| serde_json::from_value(value).unwrap());
        between(&parse(yaml).unwrap()[0], present.as_ref()).iter().map(ToString::to_string).collect()
    }

    fn web() -> Value {
        json!({"kind": "vm", "revision": 4,
            "meta": {"name": "web", "uid": "018f2f6e-0000-7000-8000-000000000000", "created": "2026-11-22T12:00:00Z",
                     "labels": {"tier": "web", "old": "1"}},
            "spec": {"cpus": 1, "memory": "1GiB", "nics": [{"network": "lan"}], "volumes": ["web-boot"]}})
    }

    #[test]
    fn only_what_differs_and_is_named_is_shown() {
        let yaml = "kind: vm\nname: web\nlabels: {tier: db}\nspec: {cpus: 2, memory: 1024MiB}\n";
        assert_eq!(
            lines(yaml, Some(web())),
            ["~ labels.tier: web -> db", "- labels.old: 1", "~ spec.cpus: 1 -> 2"]
        );
        let same = "kind: vm\nname: web\nspec: {cpus: 1, volumes: [web-boot]}\n";
        assert!(lines(same, Some(web())).is_empty());
    }

    #[test]
    fn a_list_is_shown_item_by_item() {
        let yaml = "kind: vm\nname: web\nspec:\n  nics: [{network: lan}, {network: dmz}]\n";
        assert_eq!(lines(yaml, Some(web())), ["+ spec.nics.1.network: dmz"]);
    }

    #[test]
    fn a_new_object_is_all_plus() {
        let yaml = "kind: vm\nname: new\nnotes: hello\nspec: {image: tiny}\n";
        assert_eq!(lines(yaml, None), ["+ notes: hello", "+ spec.image: tiny"]);
    }
}
