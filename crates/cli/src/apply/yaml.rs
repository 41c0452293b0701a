//! YAML, behind one door: the library moves fast and is kept out of sight. Only its plain part is understood: no aliases,
//! no merge keys, no repeated keys, `true` and `false` as the only booleans, and bounds on everything.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Depth of a document; the API itself takes no deeper bodies.
const DEPTH_MAX: usize = 32;
/// Documents in one file.
const DOCUMENTS_MAX: usize = 10_000;
/// Values in one document.
const NODES_MAX: usize = 50_000;

/// All documents of a text.
pub fn read<T: DeserializeOwned>(text: &str) -> Result<Vec<T>, String> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_aliases: 0,
            max_anchors: 0,
            max_depth: DEPTH_MAX,
            max_documents: DOCUMENTS_MAX,
            max_nodes: NODES_MAX,
            max_merge_keys: 0,
        },
        merge_keys: serde_saphyr::options::MergeKeyPolicy::Error,
        duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::Error,
        strict_booleans: true,
        reject_unsupported_tags: true,
    };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
        let text = error.to_string();
        // Whoever prints it says that already.
        text.strip_prefix("error: ").unwrap_or(&text).to_owned()
    })
}

pub fn write<T: Serialize + ?Sized>(value: &T) -> Result<String, String> {
    // Through JSON: tagged enums then look as they do in the API.
    let value = serde_json::to_value(value).map_err(|error| error.to_string())?;
    serde_saphyr::to_string(&value).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn no_is_a_word_and_true_is_a_boolean() {
        let read: Vec<Value> = read("a: no\nb: true\nc: off\nd: 4GiB\n---\ne: 1\n").unwrap();
        assert_eq!(read, [json!({"a": "no", "b": true, "c": "off", "d": "4GiB"}), json!({"e": 1})]);
    }

    #[test]
    fn what_makes_yaml_dangerous_is_refused() {
        let deep = format!("{}1{}", "[".repeat(100), "]".repeat(100));
        let many = "- 1\n".repeat(NODES_MAX + 1);
        let bad = [
            "a: &x 1\nb: *x\n",
            "a: &x {b: 1}\n",
            "base: {a: 1}\nb:\n  <<: {a: 1}\n",
            "a: 1\na: 2\n",
            "a: !!python/object:os.system x\n",
            "a: [1\n",
            &deep,
            &many,
        ];
        for text in bad {
            assert!(read::<Value>(text).is_err(), "{text:.60}");
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        let value = json!({"name": "web", "no": "no", "n": 1, "list": [{"a": null}], "t": "true", "e": ""});
        assert_eq!(read::<Value>(&write(&value).unwrap()).unwrap(), [value]);
    }
}
