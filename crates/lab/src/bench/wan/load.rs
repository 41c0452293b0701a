//! What guests do, as requests to their workload (`guest/workload/src/routes.rs`), and when they do it.

use serde::Deserialize;

/// What a guest does while it moves.
pub type Load<'a> = &'a [&'a str];

/// What a guest says of itself, as far as it is asked.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct State {
    pub counter: Counter,
    pub fill: Fill,
    pub database: Database,
    pub churn: Churn,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub struct Counter {
    /// The last one that the disk acknowledged.
    pub value: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub struct Fill {
    text_mib: u64,
    random_mib: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub struct Database {
    pub replaced: u64,
    pub error: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub struct Churn {
    files: u64,
    written: u64,
    pub read: u64,
    pub wrong: u64,
    pub error: Option<String>,
}

/// It takes longer than a request may.
pub fn is_slow(path: &str) -> bool {
    ["/fill", "/database", "/churn"].iter().any(|slow| path.starts_with(slow))
}

/// The guest has begun with it, and has made all that it needs for it.
pub fn is_under_way(path: &str, state: &State) -> bool {
    match path.split('?').next() {
        Some("/fill") => fill_of(path).is_some_and(|(kind, mib)| match kind {
            "text" => state.fill.text_mib == mib,
            _ => state.fill.random_mib == mib,
        }),
        Some("/database") => state.database.replaced > 0,
        Some("/churn") => state.churn.files > 0 && state.churn.written == state.churn.files,
        _ => true,
    }
}

/// Kind and amount in `/fill?mib=N&kind=KIND`.
fn fill_of(path: &str) -> Option<(&str, u64)> {
    let value = |key: &str| path.split(['?', '&']).find_map(|pair| pair.strip_prefix(key));
    Some((value("kind=")?, value("mib=")?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_fill_is_read_from_the_request() {
        assert_eq!(fill_of("/fill?mib=64&kind=text"), Some(("text", 64)));
        assert_eq!(fill_of("/fill?mib=64"), None);
    }

    #[test]
    fn slow_work_is_under_way_when_the_guest_says_so() {
        let state = r#"{"fill":{"text_mib":64,"random_mib":0},"churn":{"files":4,"written":3,"read":0,"wrong":0,"error":null}}"#;
        let state: State = serde_json::from_str(state).unwrap();
        assert!(is_under_way("/fill?mib=64&kind=text", &state));
        assert!(!is_under_way("/fill?mib=32&kind=random", &state));
        assert!(!is_under_way("/churn?mib_per_s=1", &state));
        assert!(!is_under_way("/database?pages_per_s=1&mib=1", &state));
        let churn = Churn { written: 4, ..state.churn.clone() };
        assert!(is_under_way("/churn?mib_per_s=1", &State { churn, ..state }));
    }
}
