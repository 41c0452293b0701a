//! Which commands, arguments and events a QEMU knows.
//!
//! Distributions backport and remove features, so version numbers prove nothing; the schema does.

use std::collections::HashMap;

use serde::Deserialize;

/// The reply to `query-qmp-schema`, indexed. Types have numbers for names that mean nothing outside.
#[derive(Debug, Clone, Default)]
pub struct Schema {
    entities: HashMap<String, Entity>,
}

/// One line of the schema, of any of its kinds.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Entity {
    name: String,
    meta_type: String,
    /// The type of a command's or an event's arguments.
    #[serde(default)]
    arg_type: Option<String>,
    /// The type of an array's elements.
    #[serde(default)]
    element_type: Option<String>,
    /// Fields of an object, or words of an enumeration. (An alternate's choices have no name.)
    #[serde(default)]
    members: Vec<Member>,
}

#[derive(Debug, Clone, Deserialize)]
struct Member {
    #[serde(default)]
    name: String,
    /// Absent in enumerations.
    #[serde(default, rename = "type")]
    kind: String,
}

impl Schema {
    pub fn new(entities: Vec<Entity>) -> Self {
        Self { entities: entities.into_iter().map(|entity| (entity.name.clone(), entity)).collect() }
    }

    pub fn has_command(&self, command: &str) -> bool {
        self.is_a(command, "command")
    }

    pub fn has_event(&self, event: &str) -> bool {
        self.is_a(event, "event")
    }

    /// Whether the command takes this argument. Always true for `device_add`, whose arguments are those of
    /// the device and are in no schema.
    pub fn has_argument(&self, command: &str, argument: &str) -> bool {
        let arguments = self.arguments_of(command);
        arguments.is_some_and(|kind| self.is_open(kind) || kind.member(argument).is_some())
    }

    /// Whether an argument that is an enumeration, at any depth (`["capabilities", "capability"]`), knows
    /// this word.
    pub fn has_value(&self, command: &str, path: &[&str], word: &str) -> bool {
        let mut kind = self.arguments_of(command);
        for name in path {
            kind = kind
                .and_then(|kind| kind.member(name))
                .and_then(|member| self.entities.get(&member.kind))
                .map(|kind| self.element(kind));
        }
        kind.is_some_and(|kind| kind.meta_type == "enum" && kind.member(word).is_some())
    }

    fn is_a(&self, name: &str, meta_type: &str) -> bool {
        self.entities.get(name).is_some_and(|entity| entity.meta_type == meta_type)
    }

    fn arguments_of(&self, command: &str) -> Option<&Entity> {
        let command = self.entities.get(command).filter(|entity| entity.meta_type == "command")?;
        self.entities.get(command.arg_type.as_deref()?)
    }

    /// An array stands for its elements.
    fn element<'a>(&'a self, kind: &'a Entity) -> &'a Entity {
        kind.element_type.as_deref().and_then(|element| self.entities.get(element)).unwrap_or(kind)
    }

    /// `device_add` says only `driver`, `bus` and `id`, and takes whatever the device takes.
    fn is_open(&self, kind: &Entity) -> bool {
        self.entities.get("device_add").and_then(|command| command.arg_type.as_deref())
            == Some(kind.name.as_str())
    }
}

impl Entity {
    fn member(&self, name: &str) -> Option<&Member> {
        self.members.iter().find(|member| member.name == name)
    }
}
