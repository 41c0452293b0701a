//! Tables, JSON, YAML.

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::Value;

use crate::apply::yaml;
use crate::exit::{Failure, Result};

/// How data is shown on stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    #[default]
    Table,
    Json,
    Yaml,
}

/// One line of a list.
pub trait Listed: Serialize {
    /// The word for several, such as `VMs`.
    const WORDS: &'static str;
    const HEAD: &'static [&'static str];
    fn row(&self) -> Vec<String>;
}

/// Columns without lines between them: what a person reads and `awk` splits. Wrapped only when the width is known.
pub fn table(head: &[&str], rows: Vec<Vec<String>>, width: Option<u16>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    match width {
        Some(width) => {
            table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
        }
        None => {
            table.set_content_arrangement(ContentArrangement::Disabled);
        }
    }
    table.set_header(head.iter().map(|word| word.to_uppercase()));
    table.add_rows(rows.into_iter().map(|row| row.into_iter().map(or_dash).collect::<Vec<_>>()));
    let columns = table.column_count();
    for (index, column) in table.column_iter_mut().enumerate() {
        // Two spaces between columns, none before the first or after the last.
        column.set_padding((0, if index + 1 == columns { 0 } else { 2 }));
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

fn or_dash(cell: String) -> String {
    if cell.is_empty() { "-".to_owned() } else { cell }
}

/// JSON or YAML text with a final newline.
pub fn text<T: Serialize + ?Sized>(format: Format, value: &T) -> Result<String> {
    let written = match format {
        Format::Yaml => yaml::write(value),
        Format::Json | Format::Table => {
            serde_json::to_string_pretty(value).map_err(|error| error.to_string())
        }
    };
    let mut text = written.map_err(|message| Failure::Failed { message, hint: None })?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// An object as `path  value` lines.
pub fn pairs<T: Serialize>(object: &T) -> Result<String> {
    let value = serde_json::to_value(object)
        .map_err(|error| Failure::Failed { message: error.to_string(), hint: None })?;
    let mut lines = Vec::new();
    flatten("", &value, &mut lines);
    let width = lines.iter().map(|(path, _)| path.chars().count()).max().unwrap_or(0);
    Ok(lines.iter().map(|(path, value)| format!("{path:width$}  {value}\n")).collect())
}

/// Every leaf with its path; lists of plain values on one line.
pub fn flatten(path: &str, value: &Value, lines: &mut Vec<(String, String)>) {
    let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| flatten(&below(key), value, lines)),
        Value::Array(list) if list.iter().any(|item| item.is_object() || item.is_array()) => {
            list.iter()
                .enumerate()
                .for_each(|(index, item)| flatten(&below(&index.to_string()), item, lines));
        }
        Value::Array(list) => {
            let words: Vec<_> = list.iter().map(plain).collect();
            lines.push((path.to_owned(), or_dash(words.join(", "))));
        }
        leaf => lines.push((path.to_owned(), plain(leaf))),
    }
}

/// A leaf without JSON's quotes, and without what could move a terminal's cursor.
pub fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_table_has_no_trailing_blanks_and_fits_its_width() {
        let rows = vec![
            vec![
                "web".into(),
                "running".into(),
                "a long message that goes on and on for quite a while and then some".into(),
            ],
            vec!["db".into(), String::new(), "x".into()],
        ];
        let wide = table(&["name", "state", "message"], rows.clone(), None);
        assert_eq!(wide.lines().count(), 3);
        assert!(wide.lines().all(|line| line == line.trim_end()), "{wide}");
        assert!(wide.contains("db    -        x"), "{wide}");
        let narrow = table(&["name", "state", "message"], rows, Some(40));
        assert!(narrow.lines().all(|line| line.chars().count() <= 40), "{narrow}");
    }

    #[test]
    fn an_object_is_shown_leaf_by_leaf_without_control_characters() {
        let text = pairs(&json!({"a": {"b": [1, 2], "c": "x\u{1b}[2J"}, "d": [{"e": true}]})).unwrap();
        assert_eq!(text, "a.b    1, 2\na.c    x [2J\nd.0.e  true\n");
    }
}
