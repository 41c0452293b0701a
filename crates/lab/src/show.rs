//! `sterna lab demo` and `sterna lab bench`: a lab that is made when it is not there.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::bench::table::{MISSED, Table};
use crate::bench::world::World;
use crate::bench::{api, chaos, migration, wan};
use crate::demo::Demo;
use crate::down;
use crate::place::Lab;
use crate::say::Say;
use crate::up::{self, Wishes};
use crate::user::User;

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// `wan`: to another datacentre and back, over a slow line
    #[arg(value_parser = ["wan"], value_name = "NAME")]
    which: Option<String>,
    /// Remove everything at the end; exit 0 only if no request was lost
    #[arg(long)]
    once: bool,
    /// Disk image of the guest
    #[arg(long, env = "STERNA_TINY_IMAGE", default_value = "target/images/tiny.qcow2", value_name = "FILE")]
    image: PathBuf,
}

#[derive(Debug, Args)]
pub struct BenchArgs {
    /// migration, chaos, api or wan
    name: String,
    /// A short form
    #[arg(long)]
    quick: bool,
    /// Of wan and migration: this row alone
    #[arg(long, value_name = "NAME")]
    row: Option<String>,
    /// Of wan: measure also what is finished already
    #[arg(long)]
    fresh: bool,
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

/// Shows a move, in the default lab.
pub fn demo(args: &DemoArgs, lab: &Lab, say: Say) -> Result<ExitCode> {
    check_image(&args.image)?;
    let program = std::env::args().next().unwrap_or_else(|| "sterna".to_owned());
    let demo = Demo { lab: lab.clone(), image: args.image.clone(), program };
    let is_wan = args.which.is_some();
    let run = async { if is_wan { demo.run_wan().await } else { demo.run().await } };
    let shown = up::up(lab, Wishes::default(), say).and_then(|()| runtime()?.block_on(run));
    if args.once {
        // Also when it failed: "once" leaves nothing behind.
        down::down(lab, say)?;
        return Ok(if shown?.lost == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let shown = shown?;
    println!("\nThe lab is still running. Try:");
    let lines = if is_wan { demo.lines_to_paste_wan().to_vec() } else { demo.lines_to_paste().to_vec() };
    for line in lines {
        println!("  {line}");
    }
    println!("Stop it and remove everything: {} lab down", demo.program);
    Ok(if shown.lost == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

const BENCHES: [&str; 4] = ["migration", "chaos", "api", "wan"];

impl BenchArgs {
    /// Refuses what cannot be before anything is made.
    fn check(&self) -> Result<()> {
        if !BENCHES.contains(&self.name.as_str()) {
            bail!("there is no benchmark `{}`: {}", self.name, BENCHES.join(", "));
        }
        match (self.name.as_str(), &self.row) {
            ("wan", _) => drop(self.wish().wanted()?),
            (name, _) if self.fresh => {
                bail!("{name} keeps no finished rows: --fresh is for the benchmark `wan`")
            }
            ("migration", Some(row)) if !migration::ROWS.contains(&row.as_str()) => {
                bail!("there is no row `{row}`: {}", migration::ROWS.join(", "))
            }
            ("migration", _) | (_, None) => {}
            (name, Some(_)) => bail!("{name} has no rows: --row is for the benchmarks `wan` and `migration`"),
        }
        check_image(&self.image)
    }

    fn file(&self) -> PathBuf {
        let usual = || Path::new("target/bench").join(format!("{}.json", self.name));
        self.json.clone().unwrap_or_else(usual)
    }

    fn wish(&self) -> wan::Wish {
        let rows = self.file().with_extension("rows.json");
        wan::Wish { quick: self.quick, row: self.row.clone(), fresh: self.fresh, rows }
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
