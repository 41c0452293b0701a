//! Names, labels, selectors.

use std::str::FromStr;

use sterna_client::object::{Api, Of, Resource};
use sterna_client::{Client, Filter};
use sterna_model::meta::{Labels, Name};

use crate::exit::{Failure, Result};

/// `key=value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label(pub String, pub String);

impl FromStr for Label {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok(Self(key.to_owned(), value.to_owned())),
            _ => Err("write key=value".to_owned()),
        }
    }
}

/// `key=value`, or `key-` to take the label away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelChange(String, Option<String>);

impl FromStr for LabelChange {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match (text.split_once('='), text.strip_suffix('-')) {
            (Some((key, value)), _) if !key.is_empty() => Ok(Self(key.to_owned(), Some(value.to_owned()))),
            (None, Some(key)) if !key.is_empty() => Ok(Self(key.to_owned(), None)),
            _ => Err("write key=value, or key- to take the label away".to_owned()),
        }
    }
}

pub fn labels(given: &[Label]) -> Labels {
    given.iter().map(|Label(key, value)| (key.clone(), value.clone())).collect()
}

/// The labels after these changes.
pub fn changed(mut present: Labels, changes: &[LabelChange]) -> Labels {
    for LabelChange(key, value) in changes {
        match value {
            Some(value) => present.insert(key.clone(), value.clone()),
            None => present.remove(key),
        };
    }
    present
}

/// For verbs that list.
#[derive(Debug, Clone, clap::Args)]
pub struct Selector {
    /// Only objects with this label; several must all match
    #[arg(short = 'l', long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<Label>,
}

impl Selector {
    pub fn filter(&self) -> Filter {
        Filter { labels: labels(&self.labels), fields: Vec::new() }
    }
}

/// For verbs that take several objects: by name, by label, or both.
#[derive(Debug, Clone, clap::Args)]
pub struct Many {
    /// Names
    #[arg(value_name = "NAME")]
    pub names: Vec<Name>,
    #[command(flatten)]
    pub selector: Selector,
}

impl Many {
    /// The names meant, each once: those given, then those that carry the labels.
    pub async fn resolve<R: Resource>(&self, client: &Client) -> Result<Vec<Name>> {
        if self.names.is_empty() && self.selector.labels.is_empty() {
            return Err(Failure::usage(
                format!("which {}?", R::KIND),
                format!("give names, or -l key=value; `sterna {} list` shows what is there", R::KIND),
            ));
        }
        let mut names = Vec::new();
        let mut add = |name: Name| {
            if !names.contains(&name) {
                names.push(name);
            }
        };
        self.names.iter().cloned().for_each(&mut add);
        if !self.selector.labels.is_empty() {
            let found: Vec<Of<R>> = Api::<R>::new(client).list(&self.selector.filter()).await?;
            found.into_iter().map(|object| object.meta.name).for_each(&mut add);
        }
        if names.is_empty() {
            let wanted: Vec<_> =
                self.selector.labels.iter().map(|label| format!("{}={}", label.0, label.1)).collect();
            return Err(Failure::failed(
                format!("no {} has the label {}", R::KIND, wanted.join(" and ")),
                format!("`sterna {} list -o json` shows the labels", R::KIND),
            ));
        }
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_set_and_taken_away() {
        let present = [("a", "1"), ("b", "2")].map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let given = ["a=9", "b-", "c=", "d=x-"].map(|text| text.parse().unwrap());
        let wanted =
            [("a", "9"), ("c", ""), ("d", "x-")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(changed(present, &given), wanted.into());
        for bad in ["", "-", "=x", "plain"] {
            assert!(bad.parse::<LabelChange>().is_err(), "{bad}");
        }
    }
}
