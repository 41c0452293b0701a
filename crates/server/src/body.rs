//! Reads what a request carries, strictly: every way of being wrong has its own answer, and none of them is a panic.

use std::collections::BTreeMap;
use std::fmt;

use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use serde::de::{DeserializeOwned, DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use sterna_model::error::Code;
use sterna_model::meta::Name;

use crate::error::{Answer, Refusal, refuse};

/// The longest JSON body. Cloud-init data, the largest part of any request, is limited to a quarter of it.
pub const BODY_MAX: usize = 1024 * 1024;
/// The deepest nesting. The API's own types reach six.
pub const DEPTH_MAX: usize = 32;
/// The largest batch of reports from an agent: some thousand VMs.
pub const REPORT_MAX: usize = 8 * 1024 * 1024;

/// A JSON body as `T`, and as it came.
pub struct Body<T> {
    pub value: T,
    pub raw: Value,
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Answer<Self> {
        check_content_type(request.headers())?;
        let bytes = Bytes::from_request(request, state).await.map_err(|_| unreadable())?;
        if bytes.is_empty() {
            return Err(refuse(Code::Malformed, "the body is empty").hint("send a JSON object"));
        }
        let raw = parse(&bytes)?;
        Ok(Self { value: decode(raw.clone())?, raw })
    }
}

/// A JSON body that may be left out.
pub struct OptionalBody<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Default> FromRequest<S> for OptionalBody<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Answer<Self> {
        let headers = request.headers().clone();
        let bytes = Bytes::from_request(request, state).await.map_err(|_| unreadable())?;
        if bytes.is_empty() {
            return Ok(Self(T::default()));
        }
        check_content_type(&headers)?;
        Ok(Self(decode(parse(&bytes)?)?))
    }
}

fn unreadable() -> Refusal {
    refuse(Code::Malformed, "the body broke off")
}

fn check_content_type(headers: &HeaderMap) -> Answer<()> {
    let sent = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut parts = sent.split(';').map(|part| part.trim().to_ascii_lowercase());
    let essence = parts.next().unwrap_or_default();
    let charset_fits =
        parts.all(|part| !part.starts_with("charset=") || part.trim_matches('"').ends_with("utf-8"));
    if essence == "application/json" && charset_fits {
        return Ok(());
    }
    let shown: String = sent.chars().take(60).collect();
    Err(refuse(Code::UnsupportedMedia, format!("content type {shown:?} is not understood"))
        .hint("send Content-Type: application/json"))
}

/// Parses JSON text and refuses what serde_json alone would let pass: repeated fields and deep nesting.
pub fn parse(bytes: &[u8]) -> Answer<Value> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        refuse(Code::Malformed, format!("the body is not UTF-8 after byte {}", error.valid_up_to()))
    })?;
    let mut reader = serde_json::Deserializer::from_str(text);
    let value = Strict { depth: 0 }.deserialize(&mut reader).and_then(|value| reader.end().map(|()| value));
    value.map_err(|error| refuse(Code::Malformed, format!("the body is not valid JSON: {error}")))
}

/// Turns parsed JSON into `T`, naming the field that does not fit.
///
/// A request is an object: serde would also take an array for a struct, field by field.
pub fn decode<T: DeserializeOwned>(value: Value) -> Answer<T> {
    if !value.is_object() {
        return Err(refuse(Code::Malformed, "the body is not a JSON object").hint("send {...}"));
    }
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        explain(&path, &error.into_inner().to_string())
    })
}

fn explain(path: &str, message: &str) -> Refusal {
    let at = if path == "." { String::new() } else { format!("{}: ", cut(path, 120)) };
    let message = cut(message, 600);
    let ticked: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let unknown_field = message.starts_with("unknown field");
    if unknown_field || message.starts_with("unknown variant") {
        let (wrong, known) = ticked.split_first().map_or(("", &[][..]), |(wrong, known)| (*wrong, known));
        let code = if unknown_field { Code::UnknownField } else { Code::Invalid };
        let what = if unknown_field { "is not a field here" } else { "is not a choice here" };
        let refusal = refuse(code, format!("{at}{wrong:?} {what}"));
        return match nearest(wrong, known) {
            Some(near) => refusal.hint(format!("did you mean {near:?}?")),
            None if known.is_empty() => refusal.hint("no field is expected here"),
            None => refusal.hint(format!("one of: {}", known.join(", "))),
        };
    }
    let code = if message.starts_with("invalid type") { Code::Malformed } else { Code::Invalid };
    refuse(code, format!("{at}{message}"))
}

fn cut(text: &str, length: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(length).collect()
}

/// The known word that a typing error would turn into `wrong`, if one is near enough.
fn nearest<'a>(wrong: &str, known: &[&'a str]) -> Option<&'a str> {
    let reach = (wrong.chars().count() / 3).max(1) + 1;
    known
        .iter()
        .map(|word| (distance(wrong, word), *word))
        .filter(|(distance, _)| *distance <= reach)
        .min()
        .map(|(_, word)| word)
}

/// Levenshtein distance: insertions, deletions and replacements of one character.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[to.len()]
}

/// A JSON value, counted for depth and checked for repeated fields while it is read.
#[derive(Clone, Copy)]
struct Strict {
    depth: usize,
}

impl Strict {
    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        if self.depth == DEPTH_MAX {
            return Err(E::custom(format_args!("nested deeper than {DEPTH_MAX} levels")));
        }
        Ok(Self { depth: self.depth + 1 })
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut all = Vec::new();
        while let Some(item) = items.next_element_seed(inner)? {
            all.push(item);
        }
        Ok(Value::Array(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut all = Map::new();
        while let Some(name) = fields.next_key::<String>()? {
            if all.contains_key(&name) {
                return Err(A::Error::custom(format_args!("field {:?} appears twice", cut(&name, 60))));
            }
            let value = fields.next_value_seed(inner)?;
            all.insert(name, value);
        }
        Ok(Value::Object(all))
    }
}

/// The name in the path of an object.
pub struct PathName(pub Name);

impl<S: Send + Sync> FromRequestParts<S> for PathName {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Answer<Self> {
        let path: Path<String> = Path::from_request_parts(parts, state)
            .await
            .map_err(|_| refuse(Code::Malformed, "the name in the path is not readable"))?;
        Ok(Self(Name::new(&path.0)?))
    }
}

/// The query of a request. Each handler says which words it knows; others are refused.
#[derive(Debug, Default)]
pub struct Words(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Words {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Answer<Self> {
        let query: Query<Vec<(String, String)>> = Query::from_request_parts(parts, state)
            .await
            .map_err(|_| refuse(Code::Malformed, "the query is not readable"))?;
        Ok(Self(query.0))
    }
}

impl Words {
    /// Refuses words that the handler does not know.
    pub fn only(&self, known: &[&str]) -> Answer<()> {
        let Some((wrong, _)) = self.0.iter().find(|(word, _)| !known.contains(&word.as_str())) else {
            return Ok(());
        };
        let refusal = refuse(Code::UnknownField, format!("{:?} is not a parameter here", cut(wrong, 60)));
        Err(match nearest(wrong, known) {
            Some(near) => refusal.hint(format!("did you mean {near:?}?")),
            None => refusal.hint(format!("one of: {}", known.join(", "))),
        })
    }

    pub fn all<'a>(&'a self, word: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(name, _)| name == word).map(|(_, value)| value.as_str())
    }

    pub fn one(&self, word: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == word).map(|(_, value)| value.as_str())
    }

    /// The value of a word as `T`.
    pub fn parsed<T: std::str::FromStr>(&self, word: &str) -> Answer<Option<T>>
    where
        T::Err: fmt::Display,
    {
        let parse = |text: &str| {
            text.parse().map_err(|error| {
                refuse(Code::Invalid, format!("{word}={:?} is not allowed: {error}", cut(text, 60)))
            })
        };
        self.one(word).map(parse).transpose()
    }

    /// `label=key=value` or `label=key`, each given word; several all have to match.
    pub fn labels(&self) -> BTreeMap<String, Option<String>> {
        self.all("label")
            .flat_map(|text| text.split(','))
            .map(|text| match text.split_once('=') {
                Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                None => (text.to_owned(), None),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use sterna_model::vm::VmSpec;

    use super::*;

    fn refused(text: &str) -> (Code, String, String) {
        let result = parse(text.as_bytes()).and_then(decode::<VmSpec>);
        let error = result.map(|_| ()).unwrap_err().0;
        (error.code, error.message.clone(), error.hint.clone().unwrap_or_default())
    }

    #[test]
    fn a_typing_error_is_answered_with_the_word_that_was_meant() {
        let (code, message, hint) = refused(r#"{"memroy": "1GiB"}"#);
        assert_eq!(code, Code::UnknownField, "{message}");
        assert_eq!(hint, "did you mean \"memory\"?");
        let (_, _, hint) = refused(r#"{"zzzzzzzz": 1}"#);
        assert!(hint.contains("cpus"), "{hint}");
        let (code, _, hint) = refused(r#"{"power": "runing"}"#);
        assert_eq!((code, hint.as_str()), (Code::Invalid, "did you mean \"running\"?"));
    }

    #[test]
    fn what_json_forbids_or_hides_is_malformed() {
        let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
        let cases = [
            r#"{"cpus": 1, "cpus": 2}"#,
            r#"{"cpus": NaN}"#,
            r#"{"cpus": 1e999}"#,
            r#"{"cpus": 9223372036854775808e3}"#,
            r#"{"cpus": "two"}"#,
            r#"{"cpus": 1} x"#,
            r#"{"cpus": 1"#,
            r#"[]]"#,
            "",
            "null",
            &deep,
        ];
        for text in cases {
            let (code, message, _) = refused(text);
            assert_eq!(code, Code::Malformed, "{:.60} {message:.200}", text);
            assert!(message.len() < 800);
        }
    }

    #[test]
    fn the_place_of_a_wrong_value_is_named() {
        let (code, message, _) = refused(r#"{"nics": [{"network": "../x"}]}"#);
        assert_eq!(code, Code::Invalid);
        assert!(message.starts_with("nics[0].network: "), "{message}");
    }

    #[test]
    fn distances_are_counted_in_edits() {
        assert_eq!(distance("memroy", "memory"), 2);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(nearest("lable", &["label", "limit"]), Some("label"));
        assert_eq!(nearest("q", &["label", "limit"]), None);
    }
}
