//! Names, labels and what every object carries.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sterna_base::clock::Timestamp;
use utoipa::ToSchema;
use uuid::Uuid;

/// A DNS label (RFC 1123): 1-63 of `a-z 0-9 -`, starting and ending with a letter or digit.
/// Safe in paths, device names, host names and URLs by construction.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, ToSchema)]
#[schema(value_type = String, pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", example = "web")]
pub struct Name(String);

/// The text is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{shown} is not a name: {why}")]
pub struct NotAName {
    shown: String,
    why: &'static str,
}

impl Name {
    pub fn new(text: &str) -> Result<Self, NotAName> {
        let wrong = |why| NotAName { shown: shown(text), why };
        if text.is_empty() || text.len() > 63 {
            return Err(wrong("use 1 to 63 characters"));
        }
        if !text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-')) {
            return Err(wrong("use only a-z, 0-9 and -"));
        }
        if text.starts_with('-') || text.ends_with('-') {
            return Err(wrong("start and end with a letter or a digit"));
        }
        Ok(Self(text.to_owned()))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Quoted, escaped and cut, because the text may be anything a stranger sent.
fn shown(text: &str) -> String {
    let cut: String = text.chars().take(40).collect();
    format!("{cut:?}")
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Name {
    type Err = NotAName;

    fn from_str(text: &str) -> Result<Self, NotAName> {
        Self::new(text)
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::new(&text).map_err(serde::de::Error::custom)
    }
}

/// Free `key=value` pairs for people and selectors; at most 64, keys and values up to 63 characters.
pub type Labels = BTreeMap<String, String>;

/// The largest number of labels an object may carry; bounds the size of a record.
pub const LABELS_MAX: usize = 64;
/// The longest notes, in bytes.
pub const NOTES_MAX: usize = 4096;

/// Refuses labels that could not be written in a selector or shown in a terminal.
pub fn check_labels(labels: &Labels) -> Result<(), String> {
    if labels.len() > LABELS_MAX {
        return Err(format!("{} labels; at most {LABELS_MAX} are allowed", labels.len()));
    }
    let fits = |text: &str, empty_ok: bool| {
        (empty_ok || !text.is_empty())
            && text.len() <= 63
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/'))
    };
    match labels.iter().find(|(key, value)| !fits(key, false) || !fits(value, true)) {
        None => Ok(()),
        Some((key, value)) => Err(format!(
            "label {}={} is not allowed: use up to 63 letters, digits, `-`, `_`, `.` or `/`",
            shown(key),
            shown(value)
        )),
    }
}

/// What every object carries beside its spec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Meta {
    pub name: Name,
    /// Never reused: a new object of the same name has another.
    pub uid: Uuid,
    #[schema(value_type = String, format = DateTime)]
    pub created: Timestamp,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub notes: String,
    /// Set once deletion was asked for; never cleared. The object goes when its parts are gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub deleting: Option<Timestamp>,
}

/// The stored spec column of any object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Object<S> {
    pub meta: Meta,
    pub spec: S,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_dns_labels_are_names() {
        for good in ["a", "web-1", "0", &"x".repeat(63)] {
            assert!(Name::new(good).is_ok(), "{good}");
        }
        let long = "x".repeat(64);
        for bad in [
            "",
            "-drive",
            "web-",
            "../../x",
            "a/b",
            "a,file=/etc/passwd",
            "A",
            "a\0",
            "a\n",
            "\u{202e}",
            "é",
            &long,
        ] {
            assert!(Name::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_error_never_repeats_control_characters() {
        let text = Name::new("a\u{1b}[2J\n").unwrap_err().to_string();
        assert!(text.chars().all(|c| !c.is_control()), "{text}");
    }

    #[test]
    fn labels_are_bounded() {
        let many: Labels = (0..=LABELS_MAX).map(|n| (format!("k{n}"), String::new())).collect();
        assert!(check_labels(&many).is_err());
        assert!(check_labels(&Labels::from([("tier".into(), "web".into())])).is_ok());
        assert!(check_labels(&Labels::from([("a b".into(), "web".into())])).is_err());
    }
}
