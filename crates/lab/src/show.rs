//! `sterna lab demo` and `sterna lab bench`: a lab that is made when it is not there.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use crate::bench::rows::Wish;
use crate::bench::table::{MISSED, Table};
use crate::bench::world::World;
use crate::bench::{api, chaos, ha, migration, wan};
use crate::demo::{Demo, Shown};
use crate::down;
use crate::place::Lab;
use crate::say::Say;
use crate::up::{self, Wishes};
use crate::user::User;

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// `wan`: to another datacentre and back, over a slow line; `ha`: its host is killed
    #[arg(value_parser = ["wan", "ha"], value_name = "NAME")]
    which: Option<String>,
    /// Remove everything at the end; exit 0 only if it went as promised
    #[arg(long)]
    once: bool,
    /// Disk image of the guest
    #[arg(long, env = "STERNA_TINY_IMAGE", default_value = "target/images/tiny.qcow2", value_name = "FILE")]
    image: PathBuf,
}

#[derive(Debug, Args)]
pub struct BenchArgs {
    /// migration, chaos, api, wan or ha
    name: String,
    /// A short form
    #[arg(long)]
    quick: bool,
    /// Of wan, ha and migration: this row alone
    #[arg(long, value_name = "NAME")]
    row: Option<String>,
    /// Of wan and ha: measure also what is finished already
    #[arg(long)]
    fresh: bool,
    /// Of ha: a trial of so many runs a row, which is not kept
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: Option<u32>,
    /// Where the figures go as JSON [default: target/bench/NAME.json]
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Leave the lab running
    #[arg(long)]
    keep: bool,
    /// Disk image of the guest
    #[arg(long, env = "STERNA_TINY_IMAGE", default_value = "target/images/tiny.qcow2", value_name = "FILE")]
    image: PathBuf,
    /// QEMU of the baseline
    #[arg(long, default_value = "qemu-system-x86_64", value_name = "FILE")]
    qemu: PathBuf,
}

/// Shows a move or a loss, in the default lab.
pub fn demo(args: &DemoArgs, lab: &Lab, say: Say) -> Result<ExitCode> {
    check_image(&args.image)?;
    let program = std::env::args().next().unwrap_or_else(|| "sterna".to_owned());
    let demo = Demo { lab: lab.clone(), image: args.image.clone(), program };
    say_when_interrupted(&demo.program)?;
    let run = async {
        match args.which.as_deref() {
            Some("wan") => demo.run_wan().await,
            Some("ha") => demo.run_ha().await,
            _ => demo.run().await,
        }
    };
    let shown = up::up(lab, Wishes::default(), say).and_then(|()| runtime()?.block_on(run));
    let code = |shown: &Shown| if shown.is_as_promised { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if args.once {
        // Also when it failed: "once" leaves nothing behind.
        down::down(lab, say)?;
        return shown.map(|shown| code(&shown));
    }
    let shown = shown?;
    println!("\nThe lab is still running. Try:");
    let lines = match args.which.as_deref() {
        Some("wan") => demo.lines_to_paste_wan().to_vec(),
        Some("ha") => demo.lines_to_paste_ha().to_vec(),
        _ => demo.lines_to_paste().to_vec(),
    };
    for line in lines {
        println!("  {line}");
    }
    println!("Stop it and remove everything: {} lab down", demo.program);
    Ok(code(&shown))
}

/// Whoever ends a demo half-way is told what is left of it. What it started belongs to the lab, not to this process.
fn say_when_interrupted(program: &str) -> Result<()> {
    let told = format!("\nInterrupted; the lab is still there.\nRemove everything: {program} lab down");
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("watch for signals")?;
    let (mut interrupt, mut term) = runtime.block_on(async {
        anyhow::Ok((signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?))
    })?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = term.recv() => {}
            }
        });
        // That nobody reads it changes nothing.
        let _ = writeln!(std::io::stderr(), "{told}");
        std::process::exit(INTERRUPTED);
    });
    Ok(())
}

/// As a shell says it.
const INTERRUPTED: i32 = 130;

const BENCHES: [&str; 5] = ["migration", "chaos", "api", "wan", "ha"];

impl BenchArgs {
    /// Refuses what cannot be before anything is made.
    fn check(&self) -> Result<()> {
        let name = self.name.as_str();
        ensure!(BENCHES.contains(&name), "there is no benchmark `{name}`: {}", BENCHES.join(", "));
        let keeps_rows = matches!(name, "wan" | "ha");
        ensure!(
            keeps_rows || !self.fresh,
            "{name} keeps no finished rows: --fresh is for the benchmarks `wan` and `ha`"
        );
        ensure!(name == "ha" || self.runs.is_none(), "--runs is for the benchmark `ha`");
        let rows: &[&'static str] = match name {
            "wan" => wan::ROWS,
            "ha" => ha::ROWS,
            "migration" => &migration::ROWS,
            _ if self.row.is_some() => {
                bail!("{name} has no rows: --row is for the benchmarks `wan`, `ha` and `migration`")
            }
            _ => &[],
        };
        self.wish().wanted(rows)?;
        check_image(&self.image)
    }

    fn file(&self) -> PathBuf {
        let usual = || Path::new("target/bench").join(format!("{}.json", self.name));
        self.json.clone().unwrap_or_else(usual)
    }

    fn wish(&self) -> Wish {
        let file = self.file().with_extension("rows.json");
        let runs = self.runs.map(|runs| runs as usize);
        Wish { quick: self.quick, row: self.row.clone(), fresh: self.fresh, runs, file }
    }
}

/// Measures, in a lab of its own.
pub fn bench(args: &BenchArgs, lab: &Lab, say: Say) -> Result<ExitCode> {
    args.check()?;
    up::up(lab, Wishes::default(), say)?;
    let measured = measure(args, lab);
    if !args.keep {
        down::down(lab, say)?;
    }
    let table = measured?;
    print!("\n{}", table.render());
    table.write(&args.file())?;
    println!("written to {}", args.file().display());
    Ok(if table.all_hold() { ExitCode::SUCCESS } else { MISSED.into() })
}

fn measure(args: &BenchArgs, lab: &Lab) -> Result<Table> {
    runtime()?.block_on(async {
        let world = World {
            lab: lab.clone(),
            user: User::of(lab)?,
            image: args.image.clone(),
            program: args.qemu.clone(),
        };
        match args.name.as_str() {
            "migration" => {
                let size = if args.quick { migration::Size::QUICK } else { migration::Size::WHOLE };
                migration::run(&world, size, args.row.as_deref()).await
            }
            "chaos" => chaos::run(&world, if args.quick { 1 } else { 4 }).await,
            "wan" => wan::run(&world, &args.wish()).await,
            "ha" => ha::run(&world, &args.wish()).await,
            _ => api::run(&world, if args.quick { 5 } else { 20 }).await,
        }
    })
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")
}

fn check_image(image: &Path) -> Result<()> {
    if !image.is_file() {
        bail!("there is no guest image at {}; make it with `./dev image`", image.display());
    }
    Ok(())
}
