//! Rows that are finished, in a file of their own: a run that was interrupted goes on after them.
//!
//! Each says under which conditions it was measured: those of the run that prints it may be others.

use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::bench::table::{Figure, Table};

/// One finished row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    pub name: String,
    /// The short form; a whole run measures it again.
    pub quick: bool,
    pub figures: Vec<Figure>,
    pub notes: Vec<String>,
    /// Absent in files of an older bench.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conditions: Option<String>,
}

impl Row {
    #[must_use]
    pub fn conditions(&self) -> &str {
        self.conditions.as_deref().unwrap_or("under conditions that were not written down")
    }
}

/// All that were, in the order in which they were finished.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    pub rows: Vec<Row>,
}

impl Kept {
    /// What is in the file, if there is one.
    pub fn load(file: &Path) -> Result<Self> {
        let bytes = sterna_base::file::read_if_there(file).context("read the finished rows")?;
        bytes.map_or(Ok(Self::default()), |bytes| {
            serde_json::from_slice(&bytes).with_context(|| {
                format!("understand {}; remove it, or name another with --json", file.display())
            })
        })
    }

    /// The row, unless it was measured less well than is wanted now.
    #[must_use]
    pub fn row(&self, name: &str, quick: bool) -> Option<&Row> {
        self.rows.iter().find(|row| row.name == name && (quick || !row.quick))
    }

    /// Puts it in the place of an earlier one.
    pub fn put(&mut self, (name, quick): (&str, bool), table: Table, conditions: &str) {
        self.rows.retain(|row| row.name != name);
        let (figures, notes) = (table.figures, table.notes);
        let conditions = Some(conditions.to_owned());
        self.rows.push(Row { name: name.to_owned(), quick, figures, notes, conditions });
    }

    pub fn save(&self, file: &Path) -> Result<()> {
        let directory = file.parent().context("the JSON file needs a folder")?;
        std::fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
        let bytes = serde_json::to_vec_pretty(self)?;
        sterna_base::file::write_atomically(file, &bytes, 0o644).context("keep the finished rows")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::table::Bar;

    fn table(value: f64) -> Table {
        let mut table = Table::default();
        table.bar("bytes", value, "x", Bar::AtMost(0.5), Some(1.0));
        table.note("seen");
        table
    }

    #[test]
    fn finished_rows_survive_and_short_ones_do_not_stand_for_whole_ones() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("deep").join("wan.json");
        let mut kept = Kept::load(&file).unwrap();
        kept.put(("one", true), table(0.4), "QEMU 10");
        kept.save(&file).unwrap();
        let kept = Kept::load(&file).unwrap();
        assert_eq!(kept.row("one", true).unwrap().figures[0].holds, Some(true));
        assert_eq!(kept.row("one", true).unwrap().conditions(), "QEMU 10");
        assert_eq!(kept.row("one", false), None);
        assert_eq!(kept.row("two", true), None);
    }

    #[test]
    fn a_row_measured_again_replaces_the_first() {
        let mut kept = Kept::default();
        kept.put(("one", true), table(0.4), "QEMU 7");
        kept.put(("one", false), table(0.6), "QEMU 10");
        assert_eq!(kept.rows.len(), 1);
        assert_eq!(kept.row("one", true).unwrap().figures[0].holds, Some(false));
    }

    #[test]
    fn a_file_of_an_older_bench_is_read_also_with_what_could_not_be_measured() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("wan.json");
        let old = r#"{"rows":[{"name":"one","quick":false,"notes":[],"figures":[
            {"name":"gap","value":null,"unit":"ms","bar":{"at-most":1.0},"holds":false,"baseline":null}]}]}"#;
        std::fs::write(&file, old).unwrap();
        let mut kept = Kept::load(&file).unwrap();
        assert!(kept.row("one", false).unwrap().conditions().contains("not written down"));
        kept.put(("two", false), table(f64::NAN), "QEMU 10");
        kept.save(&file).unwrap();
        assert_eq!(Kept::load(&file).unwrap().row("two", false).unwrap().figures[0].holds, Some(false));
    }

    #[test]
    fn a_file_of_something_else_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("wan.json");
        std::fs::write(&file, "[1]").unwrap();
        assert!(Kept::load(&file).unwrap_err().to_string().contains("wan.json"));
    }
}
