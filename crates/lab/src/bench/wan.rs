//! `sterna bench wan`: moves between datacentres over a slow line, each row beside its own baseline.
//!
//! Rows are kept in a file of their own as they are finished, and are not measured again unless somebody asks. A row that
//! fails leaves its reason in the table, and the others go on.

/// Reference case R, and the way back.
pub mod case;
/// Disks that go with their VMs.
pub mod disk;
/// A fault in every move.
pub mod faults;
/// Finished rows.
pub mod kept;
/// Guests of other kinds.
pub mod kinds;
/// Inside a datacentre, beside QEMU's several connections.
pub mod lan;
/// Beside another manager.
pub mod libvirt;
/// Lines that are cut, slow, long or lossy.
pub mod line;
/// What guests do.
pub mod load;
/// Inside a datacentre, with a disk that is its host's own.
pub mod local;
/// A database that outlives a move.
pub mod postgres;
/// How fast a guest may write.
pub mod rate;
/// Line, guests, moves.
pub mod rig;
/// Where another guest of the same image runs.
pub mod sibling;
/// The same after use.
pub mod sibling_used;
/// Asking a database.
pub mod sql;
/// A connection that outlives a move.
pub mod tcp;

use std::path::PathBuf;

use anyhow::{Result, bail};
use sterna_client::object::Filter;

use self::kept::Kept;
use self::rig::Rig;
use super::table::{Figure, Table};
use super::world::World;

/// In the order in which they run.
pub const ROWS: &[&str] = &[
    "case-r",
    "return",
    "outage",
    "slow",
    "rtt",
    "rate",
    "disk",
    "tcp",
    "sibling",
    "sibling-used",
    "lan",
    "local",
    "database",
    "page-cache",
    "faults",
    "postgres",
    "libvirt",
];

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Wish {
    pub quick: bool,
    /// One row alone.
    pub row: Option<String>,
    /// Also what is finished already.
    pub fresh: bool,
    /// Where finished rows are kept.
    pub rows: PathBuf,
}

impl Wish {
    /// The rows that it is about.
    pub fn wanted(&self) -> Result<Vec<&'static str>> {
        match &self.row {
            None => Ok(ROWS.to_vec()),
            Some(name) => match ROWS.iter().find(|row| *row == name) {
                Some(row) => Ok(vec![*row]),
                None => bail!("there is no row `{name}`: {}", ROWS.join(", ")),
            },
        }
    }
}

pub async fn run(world: &World, wish: &Wish) -> Result<Table> {
    let mut kept = Kept::load(&wish.rows)?;
    let rig = Rig::set_up(world).await?;
    let (mut failures, conditions) = (Vec::new(), conditions(world).await?);
    for name in wish.wanted()? {
        if !wish.fresh && kept.row(name, wish.quick).is_some() {
            println!("row {name}: was finished");
            continue;
        }
        println!("row {name}");
        let measured = async {
            rig.clear().await?;
            row(&rig, name, if wish.quick { 1 } else { 3 }).await
        };
        match measured.await {
            Ok(table) => {
                kept.put((name, wish.quick), table, &conditions);
                kept.save(&wish.rows)?;
            }
            Err(error) => {
                println!("row {name}: failed: {error:#}");
                failures.push((name, error));
            }
        }
    }
    rig.clear().await?;
    let mut table = whole(&kept, wish)?;
    for (name, error) in failures {
        table.note(format!("row {name} failed: {error:#}"));
        table.failed(name);
    }
    Ok(table)
}

async fn row(rig: &Rig<'_>, name: &str, repeats: usize) -> Result<Table> {
    match name {
        "case-r" => case::case_r(rig, repeats).await,
        "return" => case::way_back(rig, repeats).await,
        "outage" => line::outage(rig, repeats).await,
        "slow" => line::slow(rig, repeats).await,
        "rtt" => line::rtt(rig, repeats).await,
        "rate" => rate::rate(rig).await,
        "disk" => disk::disk(rig, repeats).await,
        "tcp" => tcp::tcp(rig, repeats).await,
        "sibling" => sibling::sibling(rig, repeats).await,
        "sibling-used" => {
            let time = if repeats == 1 { sibling_used::QUICK } else { sibling_used::WHOLE };
            sibling_used::sibling_used(rig, time).await
        }
        "lan" => lan::lan(rig, repeats).await,
        "local" => local::local(rig, repeats).await,
        "database" => kinds::database(rig, repeats).await,
        "page-cache" => kinds::page_cache(rig, repeats).await,
        "faults" => faults::faults(rig, if repeats == 1 { 10 } else { 200 }).await,
        "postgres" => postgres::postgres(rig, repeats).await,
        "libvirt" => libvirt::libvirt(rig, repeats).await,
        _ => bail!("there is no row `{name}`"),
    }
}

/// Everything that is wanted, as far as it is finished, and under which conditions each row was.
fn whole(kept: &Kept, wish: &Wish) -> Result<Table> {
    let mut table = Table::default();
    let rows: Vec<_> = wish.wanted()?.into_iter().filter_map(|name| kept.row(name, wish.quick)).collect();
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

    fn wish(row: Option<&str>) -> Wish {
        Wish { quick: false, row: row.map(str::to_owned), fresh: false, rows: "wan.rows.json".into() }
    }

    #[test]
    fn one_row_or_all_and_none_that_is_not_there() {
        assert_eq!(wish(None).wanted().unwrap(), ROWS);
        assert_eq!(wish(Some("return")).wanted().unwrap(), ["return"]);
        assert!(wish(Some("warp")).wanted().unwrap_err().to_string().contains("case-r"));
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
            whole(kept, &wish(None)).unwrap().figures.into_iter().map(|figure| figure.name).collect()
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
        let table = whole(&kept, &wish(None)).unwrap();
        assert_eq!(table.notes[0], "case-r, return: QEMU 10");
        assert!(table.notes[1].starts_with("outage: under conditions"));
        assert_eq!(table.figures[0].conditions.as_deref(), Some("QEMU 10"));
    }
}
