//! Where each column of each object lies in the store.
//!
//! `KIND/NAME/COLUMN`, for what belongs to a project `KIND/PROJECT/NAME/COLUMN`; a VM's report has one row a host.
//! Nothing else in the project spells a key.

use crate::meta::Name;

/// The project that everything lives in until there are several.
pub const PROJECT: &str = "default";

/// Kinds of objects. The text form is the first part of the key and the last part of the API's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Datacentre,
    Cluster,
    Host,
    Pool,
    Image,
    Network,
    Volume,
    Vm,
    Migration,
    Operation,
    Token,
    JoinToken,
    Store,
    Alert,
}

impl Kind {
    pub const ALL: [Kind; 14] = [
        Kind::Datacentre,
        Kind::Cluster,
        Kind::Host,
        Kind::Pool,
        Kind::Image,
        Kind::Network,
        Kind::Volume,
        Kind::Vm,
        Kind::Migration,
        Kind::Operation,
        Kind::Token,
        Kind::JoinToken,
        Kind::Store,
        Kind::Alert,
    ];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Datacentre => "datacentre",
            Kind::Cluster => "cluster",
            Kind::Host => "host",
            Kind::Pool => "pool",
            Kind::Image => "image",
            Kind::Network => "network",
            Kind::Volume => "volume",
            Kind::Vm => "vm",
            Kind::Migration => "migration",
            Kind::Operation => "operation",
            Kind::Token => "token",
            Kind::JoinToken => "join-token",
            Kind::Store => "store",
            Kind::Alert => "alert",
        }
    }

    fn has_project(self) -> bool {
        matches!(self, Kind::Volume | Kind::Vm | Kind::Migration | Kind::Operation)
    }

    /// The prefix that all keys of this kind share.
    #[must_use]
    pub fn prefix(self) -> String {
        if self.has_project() {
            format!("{}/{PROJECT}/", self.as_str())
        } else {
            format!("{}/", self.as_str())
        }
    }
}

/// One column of an object; each has exactly one writer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Column {
    /// Written by the API.
    Spec,
    /// Written by control.
    Decision,
    /// Written by the gateway (for images: by the importer) about the object as a whole.
    Report,
    /// Written by the gateway: what this host saw of the object.
    ReportOf(Name),
}

/// A parsed key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub kind: Kind,
    pub name: Name,
    pub column: Column,
}

impl Key {
    #[must_use]
    pub fn new(kind: Kind, name: &Name, column: Column) -> Self {
        Self { kind, name: name.clone(), column }
    }

    #[must_use]
    pub fn spec(kind: Kind, name: &Name) -> Self {
        Self::new(kind, name, Column::Spec)
    }

    #[must_use]
    pub fn decision(kind: Kind, name: &Name) -> Self {
        Self::new(kind, name, Column::Decision)
    }

    #[must_use]
    pub fn report(kind: Kind, name: &Name) -> Self {
        Self::new(kind, name, Column::Report)
    }

    #[must_use]
    pub fn report_of(kind: Kind, name: &Name, host: &Name) -> Self {
        Self::new(kind, name, Column::ReportOf(host.clone()))
    }

    /// `None` for keys that belong to no object (leases, settings).
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let kind = Kind::ALL.into_iter().find(|kind| text.starts_with(&kind.prefix()))?;
        let mut parts = text[kind.prefix().len()..].split('/');
        let name = Name::new(parts.next()?).ok()?;
        let column = match (parts.next()?, parts.next()) {
            ("spec", None) => Column::Spec,
            ("decision", None) => Column::Decision,
            ("report", None) => Column::Report,
            ("report", Some(host)) => Column::ReportOf(Name::new(host).ok()?),
            _ => return None,
        };
        if parts.next().is_some() { None } else { Some(Self { kind, name, column }) }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}/", self.kind.prefix(), self.name)?;
        match &self.column {
            Column::Spec => f.write_str("spec"),
            Column::Decision => f.write_str("decision"),
            Column::Report => f.write_str("report"),
            Column::ReportOf(host) => write!(f, "report/{host}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_survives_its_text() {
        let name = Name::new("web").unwrap();
        let host = Name::new("a1").unwrap();
        for kind in Kind::ALL {
            for column in [Column::Spec, Column::Decision, Column::Report, Column::ReportOf(host.clone())] {
                let key = Key::new(kind, &name, column);
                assert_eq!(Key::parse(&key.to_string()), Some(key));
            }
        }
    }

    #[test]
    fn foreign_keys_parse_to_nothing() {
        for text in ["lease/control", "vm/default/web", "vm/default/web/spec/x", "vm//spec", ""] {
            assert_eq!(Key::parse(text), None, "{text}");
        }
    }
}
