//! Benchmarks of many rows: each is kept in a file as it is finished, and is not measured again unless somebody asks. A row
//! that fails leaves its reason in the table, and the others go on.

use std::path::PathBuf;

use anyhow::{Result, bail};
use sterna_client::object::Filter;

use super::kept::Kept;
use super::table::{Figure, Table};
use super::world::World;

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Wish {
    pub quick: bool,
    /// One row alone.
    pub row: Option<String>,
    /// Also what is finished already.
    pub fresh: bool,
    /// So many runs of a row instead of its own number: a trial, which is not kept.
    pub runs: Option<usize>,
    /// Where finished rows are kept.
    pub file: PathBuf,
}

impl Wish {
    /// The rows that it is about, of all that there are.
    pub fn wanted(&self, all: &[&'static str]) -> Result<Vec<&'static str>> {
        match &self.row {
            None => Ok(all.to_vec()),
            Some(name) => match all.iter().find(|row| *row == name) {
                Some(row) => Ok(vec![*row]),
                None => bail!("there is no row `{name}`: {}", all.join(", ")),
            },
        }
    }
}

/// Measures what is wanted and not finished; a table of all that is wanted. `all` is in the order in which they run.
pub async fn run(
    world: &World,
    wish: &Wish,
    all: &[&'static str],
    mut measure: impl AsyncFnMut(&str) -> Result<Table>,
) -> Result<Table> {
    let mut kept = Kept::load(&wish.file)?;
    let (mut failures, conditions) = (Vec::new(), conditions(world).await?);
    for name in wish.wanted(all)? {
        if !wish.fresh && wish.runs.is_none() && kept.row(name, wish.quick).is_some() {
            println!("row {name}: was finished");
            continue;
        }
        println!("row {name}");
        match measure(name).await {
            Ok(table) => {
                kept.put((name, wish.quick), table, &conditions);
                if wish.runs.is_none() {
                    kept.save(&wish.file)?;
                }
            }
            Err(error) => {
                println!("row {name}: failed: {error:#}");
                failures.push((name, error));
            }
        }
    }
    let mut table = whole(&kept, wish, all)?;
    for (name, error) in failures {
        table.note(format!("row {name} failed: {error:#}"));
        table.failed(name);
    }
    Ok(table)
}

/// Everything that is wanted, as far as it is finished, and under which conditions each row was.
fn whole(kept: &Kept, wish: &Wish, all: &[&'static str]) -> Result<Table> {
    let mut table = Table::default();
    let rows: Vec<_> = wish.wanted(all)?.into_iter().filter_map(|name| kept.row(name, wish.quick)).collect();
    for alike in rows.chunk_by(|row, next| row.conditions() == next.conditions()) {
        let names: Vec<_> = alike.iter().map(|row| row.name.as_str()).collect();
        table.note(format!("{}: {}", names.join(", "), alike[0].conditions()));
    }
    for row in rows {
        table.notes.extend(row.notes.iter().cloned());
        let conditions = Some(row.conditions().to_owned());
        let figures = row.figures.iter().cloned();
        table.figures.extend(figures.map(|figure| Figure { conditions: conditions.clone(), ..figure }));
    }
    Ok(table)
}

async fn conditions(world: &World) -> Result<String> {
    let hosts = world.user.client.hosts().list(&Filter::default()).await?;
    let report = hosts.into_iter().find_map(|host| host.report);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let sterna = format!("Sterna {}{}", env!("CARGO_PKG_VERSION"), source().await);
    Ok(report.map_or_else(
        || sterna.clone(),
        |report| {
            let accel = format!("{:?}", report.accel).to_uppercase();
            format!(
                "QEMU {}, {accel}, {cores} cores for all hosts, guests, lines and movers, {sterna}",
                report.qemu_version
            )
        },
    ))
}

/// The commit that `./dev` has just built this from, where somebody can tell: whoever runs this may not own the files.
async fn source() -> String {
    let words = ["-c", "safe.directory=*", "describe", "--always", "--dirty", "--abbrev=12"];
    let output = tokio::process::Command::new("git").args(words).output().await;
    let told = output.ok().filter(|output| output.status.success());
    let commit = told.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    commit.filter(|commit| !commit.is_empty()).map_or_else(String::new, |commit| format!(" at {commit}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::table::Bar;

    const ROWS: &[&str] = &["case-r", "return", "outage"];

    fn wish(row: Option<&str>) -> Wish {
        let (row, file) = (row.map(str::to_owned), "wan.rows.json".into());
        Wish { quick: false, row, fresh: false, runs: None, file }
    }

    #[test]
    fn one_row_or_all_and_none_that_is_not_there() {
        assert_eq!(wish(None).wanted(ROWS).unwrap(), ROWS);
        assert_eq!(wish(Some("return")).wanted(ROWS).unwrap(), ["return"]);
        assert!(wish(Some("warp")).wanted(ROWS).unwrap_err().to_string().contains("case-r"));
    }

    #[test]
    fn the_table_has_finished_rows_in_the_usual_order_and_no_short_ones() {
        let mut kept = Kept::default();
        for (name, quick) in [("return", false), ("case-r", false)] {
            let mut table = Table::default();
            table.bar(name, 1.0, "x", Bar::AtMost(1.0), None);
            kept.put((name, quick), table, "QEMU 10");
        }
        let names = |kept: &Kept| -> Vec<String> {
            whole(kept, &wish(None), ROWS).unwrap().figures.into_iter().map(|figure| figure.name).collect()
        };
        assert_eq!(names(&kept), ["case-r", "return"]);
        kept.put(("case-r", true), Table::default(), "QEMU 10");
        assert_eq!(names(&kept), ["return"]);
    }

    #[test]
    fn each_row_says_under_which_conditions_it_was_measured() {
        let mut kept = Kept::default();
        for (name, conditions) in [("case-r", "QEMU 10"), ("return", "QEMU 10"), ("outage", "QEMU 7")] {
            let mut table = Table::default();
            table.info(name, 1.0, "x", None);
            kept.put((name, false), table, conditions);
        }
        kept.rows[2].conditions = None;
        let table = whole(&kept, &wish(None), ROWS).unwrap();
        assert_eq!(table.notes[0], "case-r, return: QEMU 10");
        assert!(table.notes[1].starts_with("outage: under conditions"));
        assert_eq!(table.figures[0].conditions.as_deref(), Some("QEMU 10"));
    }
}
