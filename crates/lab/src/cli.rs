//! `sterna lab ...` and `sterna supervise ...`.

use std::ffi::OsString;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};
use sterna_base::units::{Bytes, Span};

use crate::command::Share;
use crate::place::{DEFAULT_DIR, DEFAULT_NAME, DEFAULT_NET, DEFAULT_PORT, Lab, Pair, Site};
use crate::probe::Probes;
use crate::say::Say;
use crate::supervise::{self, Supervise};
use crate::up::Wishes;
use crate::{down, fence, show, status, up, wan, watchdog};

#[derive(Debug, Parser)]
#[command(name = "sterna")]
struct Line {
    #[command(subcommand)]
    noun: Noun,
}

#[derive(Debug, Subcommand)]
enum Noun {
    /// A small world on this machine: datacentres, hosts, slow lines between them
    #[command(subcommand)]
    Lab(LabVerb),
    Supervise(Supervise),
}

/// What can be done with a lab.
#[derive(Debug, Subcommand)]
pub enum LabVerb {
    /// Build it, or go on where an interrupted start left it
    Up(Up),
    /// End and remove all of it, disks of its VMs included
    Down(Where),
    /// Say what of it runs
    Status(Where),
    /// Change a line between two datacentres, and show what went over it
    Link(Link),
    /// Measure what a client in a namespace sees of a guest
    Probe(Probe),
    /// Show a VM that moves while it serves, or that outlives its host
    Demo(Demo),
    /// Measure against bars and a baseline
    Bench(Bench),
    /// Carry the frames of a line (started by `up`)
    #[command(hide = true)]
    WanRelay(Relay),
    /// Play the fence device of the hosts (run by the server)
    #[command(hide = true)]
    FenceFake(Faked),
    /// Play the watchdog of a host (started by `up`)
    #[command(hide = true)]
    Watchdog(Watched),
}

/// Which lab.
#[derive(Debug, Clone, Args)]
pub struct Where {
    /// Name of the lab: the prefix of its namespaces
    #[arg(long, default_value = DEFAULT_NAME, value_name = "NAME")]
    name: String,
    /// Its folder; of a lab with another name: this, a dash and the name
    #[arg(long, env = "STERNA_LAB_DIR", default_value = DEFAULT_DIR, value_name = "DIR")]
    dir: PathBuf,
    /// JSON instead of text for people
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct Up {
    #[command(flatten)]
    place: Where,
    /// Addresses of the lab, a /16
    #[arg(long, default_value = DEFAULT_NET, value_name = "CIDR")]
    net: String,
    /// Port that the server serves on
    #[arg(long, default_value_t = DEFAULT_PORT, value_name = "PORT")]
    port: u16,
    /// One letter each; there is a line between each two, and the server is in the first
    #[arg(long, value_delimiter = ',', default_value = "a,b", value_name = "LETTERS")]
    datacentres: Vec<Site>,
    /// CPUs of each host, enforced where the machine has CPU quotas [default: all, shared]
    #[arg(long, value_name = "NUMBER")]
    host_cpus: Option<f64>,
    /// Memory that each host offers to VMs [default: all of the machine's]
    #[arg(long, value_name = "SIZE")]
    host_memory: Option<Bytes>,
    /// Namespaces and lines only: no server, no agents
    #[arg(long)]
    network_only: bool,
}

#[derive(Debug, Args)]
pub struct Link {
    #[command(flatten)]
    place: Where,
    /// Which line, such as a-b [default: the only one]
    #[arg(value_name = "LINE")]
    line: Option<Pair>,
    /// One way, such as 40ms; a round trip takes twice this
    #[arg(long, value_name = "DURATION", value_parser = parse_delay)]
    delay: Option<Span>,
    /// There and back, such as 80ms: each way takes half of it
    #[arg(long, value_name = "DURATION", value_parser = parse_delay, conflicts_with = "delay")]
    rtt: Option<Span>,
    /// Up to this much more delay, by chance
    #[arg(long, value_name = "DURATION", value_parser = parse_delay)]
    jitter: Option<Span>,
    /// Of each direction, such as 100Mbit or 1Gbit, or `none` for no limit
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    rate: Option<Rate>,
    /// Frames lost by chance, such as 0.1%
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent)]
    loss: Option<f64>,
    /// What waits for its turn in each direction at most; more is dropped
    #[arg(long, value_name = "SIZE")]
    queue: Option<Bytes>,
    /// Mend the line
    #[arg(long, conflicts_with = "down")]
    up: bool,
    /// Cut the line
    #[arg(long)]
    down: bool,
}

#[derive(Debug, Args)]
pub struct Probe {
    /// Namespace to measure from [default: this machine's]
    #[arg(long = "in", value_name = "NAMESPACE")]
    space: Option<String>,
    /// Guest whose UDP echo is used
    #[arg(long, value_name = "IP")]
    udp: Option<Ipv4Addr>,
    /// Guest whose HTTP server is asked
    #[arg(long, value_name = "IP")]
    http: Option<Ipv4Addr>,
    /// For how long
    #[arg(long, default_value_t = 10.0, value_name = "SECONDS")]
    seconds: f64,
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

#[derive(Debug, Args)]
pub struct Demo {
    #[command(flatten)]
    place: Where,
    #[command(flatten)]
    wishes: show::DemoArgs,
}

#[derive(Debug, Args)]
pub struct Bench {
    #[command(flatten)]
    wishes: show::BenchArgs,
    /// Folder of the lab that it makes for itself
    #[arg(long, default_value = "/var/lib/sterna-lab-bench", value_name = "DIR")]
    dir: PathBuf,
}

/// What a person calls slow ends well before.
const DELAY_MAX: Duration = Duration::from_secs(60);

/// A lab for measuring stands beside a lab for people.
const BENCH_NET: &str = "10.93.0.0/16";
const BENCH_PORT: u16 = 7643;

#[derive(Debug, Args)]
pub struct Relay {
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    #[arg(long, value_name = "LINE")]
    line: Pair,
}

#[derive(Debug, Args)]
pub struct Faked {
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

#[derive(Debug, Args)]
pub struct Watched {
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    #[arg(long, value_name = "NAME")]
    host: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rate(Option<u64>);

/// Carries out the arguments of a whole command line (the program's name first) whose first word is `lab` or
/// `supervise`.
pub fn cli(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let line = Line::parse_from(args);
    sterna_base::log::init(sterna_base::log::Format::Text);
    let result = match line.noun {
        Noun::Lab(verb) => run(verb),
        Noun::Supervise(args) => supervise::run(&args).map(ExitCode::from),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            // That nobody reads it changes nothing.
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Carries out one verb.
pub fn run(verb: LabVerb) -> Result<ExitCode> {
    match verb {
        LabVerb::Demo(args) => return show::demo(&args.wishes, &args.place.lab()?, args.place.say()),
        LabVerb::FenceFake(args) => {
            let lab = Lab::load(&args.dir)?.context("find the lab")?;
            return fence::run(&lab);
        }
        LabVerb::Bench(args) => {
            let lab = Lab::new("bench", BENCH_NET, BENCH_PORT, &args.dir)?;
            return show::bench(&args.wishes, &lab, Say::Text);
        }
        LabVerb::Up(args) => run_up(&args),
        LabVerb::Down(place) => {
            let say = place.say();
            let lab = place.lab()?;
            down::down(&lab, say)
        }
        LabVerb::Status(place) => {
            let status = status::status(&place.lab()?);
            print(&if place.json { serde_json::to_string_pretty(&status)? } else { status.text() })
        }
        LabVerb::Link(args) => run_link(&args),
        LabVerb::Probe(args) => run_probe(&args),
        LabVerb::Watchdog(args) => {
            let lab = Lab::load(&args.dir)?.context("find the lab")?;
            let host = lab.host(&args.host).with_context(|| format!("find host {}", args.host))?;
            watchdog::run(&lab, host)
        }
        LabVerb::WanRelay(args) => {
            let lab = Lab::load(&args.dir)?.context("find the lab")?;
            wan::relay::run(&lab, lab.pair(Some(args.line))?)
        }
    }
    .map(|()| ExitCode::SUCCESS)
}

impl Where {
    fn say(&self) -> Say {
        if self.json { Say::Json } else { Say::Text }
    }

    fn dir(&self) -> PathBuf {
        if self.name == DEFAULT_NAME {
            return self.dir.clone();
        }
        let mut dir = self.dir.as_os_str().to_owned();
        dir.push(format!("-{}", self.name));
        dir.into()
    }

    /// The lab that was begun there; of one that left no record, the names follow from its name.
    fn lab(&self) -> Result<Lab> {
        let begun = Lab::load(&self.dir())?;
        begun.map_or_else(|| Lab::new(&self.name, DEFAULT_NET, DEFAULT_PORT, &self.dir()), Ok)
    }
}

fn run_up(args: &Up) -> Result<()> {
    let say = args.place.say();
    let lab = Lab::new(&args.place.name, &args.net, args.port, &args.place.dir())?;
    let lab = lab.with_datacentres(&args.datacentres)?;
    if let Some(begun) = Lab::load(&lab.dir)? {
        ensure!(
            begun == lab,
            "lab {} in {} was begun with net {}, port {} and datacentres {}; give the same, or remove it with `sterna lab down`",
            begun.name,
            begun.dir.display(),
            begun.cidr(),
            begun.port,
            begun.datacentres.iter().map(|site| site.letter().to_string()).collect::<Vec<_>>().join(",")
        );
    }
    if let Some(cpus) = args.host_cpus {
        ensure!(cpus > 0.0 && cpus.is_finite(), "--host-cpus must be more than 0");
    }
    if args.network_only {
        return up::network(&lab, say);
    }
    let share =
        Share { cpus: args.host_cpus, memory_mib: args.host_memory.map(|memory| memory.as_u64() >> 20) };
    up::up(&lab, Wishes { share }, say)?;
    say.sentence(&format!("export STERNA_CONFIG={}", lab.cli_config().display()));
    Ok(())
}

fn run_link(args: &Link) -> Result<()> {
    let lab = args.place.lab()?;
    let pair = lab.pair(args.line)?;
    let micros = |span: Span| u64::try_from(span.0.as_micros()).unwrap_or(u64::MAX);
    let state = wan::change(&lab.wan_socket(pair), |settings| {
        settings.delay_us = args.delay.map_or(settings.delay_us, micros);
        settings.delay_us = args.rtt.map_or(settings.delay_us, |rtt| micros(rtt) / 2);
        settings.jitter_us = args.jitter.map_or(settings.jitter_us, micros);
        settings.rate_bits = args.rate.map_or(settings.rate_bits, |Rate(bits)| bits);
        settings.loss = args.loss.unwrap_or(settings.loss);
        settings.queue_bytes = args.queue.map_or(settings.queue_bytes, Bytes::as_u64);
        settings.up = (settings.up || args.up) && !args.down;
    })?;
    print(&if args.place.json { serde_json::to_string_pretty(&state)? } else { status::line_text(&state) })
}

fn run_probe(args: &Probe) -> Result<()> {
    ensure!(
        args.udp.is_some() || args.http.is_some(),
        "nothing to measure: give --udp IP, --http IP or both"
    );
    ensure!(args.seconds >= 0.0 && args.seconds < 1e6, "--seconds must be 0 to a million");
    let probes = Probes::start(args.space.as_deref(), args.udp, args.http)?;
    std::thread::sleep(Duration::from_secs_f64(args.seconds));
    let outcome = probes.finish()?;
    if args.output == Output::Json {
        return print(&serde_json::to_string_pretty(&outcome)?);
    }
    let udp = outcome.udp.map(|udp| {
        let (sent, back) = (udp.sent, udp.received);
        format!(
            "longest silence {:.1} ms; {back} of {sent} datagrams came back, round trip {:.2} ms",
            udp.gap_ms, udp.round_trip_median_ms
        )
    });
    let http = outcome.http.map(|http| {
        format!(
            "{} requests, {} lost, slowest {:.1} ms; last answer: {}",
            http.requests, http.lost, http.slowest_ms, http.last_answer
        )
    });
    print(&udp.into_iter().chain(http).collect::<Vec<_>>().join("\n"))
}

fn print(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{text}").context("write to stdout")
}

fn parse_rate(text: &str) -> Result<Rate> {
    if text == "none" {
        return Ok(Rate(None));
    }
    let lower = text.to_ascii_lowercase();
    let number = lower.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match &lower[number.len()..] {
        "gbit" => 1_000_000_000.0,
        "mbit" => 1_000_000.0,
        "kbit" => 1_000.0,
        _ => bail!("write a rate such as 100Mbit, 1Gbit or `none`"),
    };
    let bits = number.parse::<f64>()? * unit;
    ensure!(bits >= 1000.0, "a line has at least 1Kbit");
    Ok(Rate(Some(bits as u64)))
}

fn parse_delay(text: &str) -> Result<Span> {
    let span: Span = text.parse().context("write a duration such as 40ms")?;
    ensure!(span.0 <= DELAY_MAX, "a line delays by {} s at most", DELAY_MAX.as_secs());
    Ok(span)
}

fn parse_percent(text: &str) -> Result<f64> {
    let number: f64 = text.trim_end_matches('%').parse().context("write a percentage such as 0.1%")?;
    ensure!((0.0..=100.0).contains(&number), "a percentage is 0 to 100");
    Ok(number / 100.0)
}

/// For those who start a lab without a command line.
pub fn open(dir: &Path) -> Result<Lab> {
    Lab::load(dir)?.with_context(|| format!("no lab in {}; start one with `sterna lab up`", dir.display()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_grammar_holds_together() {
        Line::command().debug_assert();
    }

    #[test]
    fn rates_and_losses_are_read_as_people_write_them() {
        assert_eq!(parse_rate("100Mbit").unwrap(), Rate(Some(100_000_000)));
        assert_eq!(parse_rate("1.5gbit").unwrap(), Rate(Some(1_500_000_000)));
        assert_eq!(parse_rate("none").unwrap(), Rate(None));
        assert_eq!(parse_percent("0.1%").unwrap(), 0.001);
        assert!(parse_rate("12").is_err() && parse_rate("0Mbit").is_err() && parse_percent("101").is_err());
        assert_eq!(parse_delay("80ms").unwrap(), Span::from_millis(80));
        assert!(parse_delay("61s").is_err() && parse_delay("fast").is_err());
    }

    #[test]
    fn labs_with_other_names_stand_beside_the_usual_one() {
        let place = |name: &str| Where { name: name.to_owned(), dir: "/x/lab".into(), json: false };
        assert_eq!(place(DEFAULT_NAME).dir(), Path::new("/x/lab"));
        assert_eq!(place("test").dir(), Path::new("/x/lab-test"));
    }
}
