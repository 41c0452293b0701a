//! `sterna demo`: a lab, a VM that serves, a client that never stops asking, and a move in between.

/// The host is killed.
pub mod ha;
/// To another datacentre and back.
pub mod wan;

use std::io::{IsTerminal, Write};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sterna_base::units::{Bytes, Span};
use sterna_client::migration::Migration;
use sterna_client::object::Filter;
use sterna_client::vm::Move;
use sterna_model::cpu::Accel;
use sterna_model::forecast::{Forecast, Verdict};
use sterna_model::meta::Name;
use sterna_model::migration::{Outcome, Phase, Progress};

use crate::place::Lab;
use crate::probe::{self, Probes};
use crate::user::{self, User};

/// What the person asked for.
#[derive(Debug, Clone)]
pub struct Demo {
    pub lab: Lab,
    pub image: PathBuf,
    /// How the binary is called in the lines to paste.
    pub program: String,
}

/// What the demo showed.
#[derive(Debug)]
pub struct Shown {
    /// No request was lost in a move; no two copies answered after a loss.
    pub is_as_promised: bool,
}

const VM: &str = "web";
/// No multiple of 256 KiB is needed where QEMU is recent; the server adjusts it where it is not.
const MEMORY: Bytes = Bytes::mib(256);
/// A guest boots in seconds, under emulation on a busy machine in tens of them.
const BOOT: Duration = Duration::from_secs(90);
/// Requests before the move starts, so that "none was lost" speaks of before, during and after.
const BEFORE: Duration = Duration::from_secs(2);

impl Demo {
    /// Runs in a lab that is up. Prints as it goes.
    pub async fn run(&self) -> Result<Shown> {
        let user = User::of(&self.lab)?;
        let name = |text: &str| Name::new(text).context("name what the demo makes");
        let (vm, tiny) = (name(VM)?, name("tiny")?);
        self.say_accel(&user).await?;
        step("image `tiny` is in the library", user.ensure_image(&tiny, &self.image)).await?;
        let web = step("VM `web` runs", user.ensure_vm(&vm, &tiny, MEMORY)).await?;
        let source = user::owner(&web)?.clone();
        let guest = user::address(&web)?;
        let target = self.neighbour(&user, &source).await?;
        let space = self.lab.host_space_of(source.as_str()).context("find the host in the lab")?;
        step("it answers requests", answers(&space, guest)).await?;
        let probes = Probes::start(Some(&space), Some(guest), Some(guest))?;
        tokio::time::sleep(BEFORE).await;
        println!("\nmoving `web` from {source} to {target} while a client on {source} keeps asking:");
        let mut line = Line::new();
        let order = Move { to: Some(target.clone()), ..Move::default() };
        let moved = user.migrate(&vm, &order, |now, progress| line.show(&probes, now, progress)).await?;
        line.end();
        tokio::time::sleep(BEFORE).await;
        let seen = tokio::task::spawn_blocking(move || probes.finish()).await??;
        let lost = seen.http.as_ref().map_or(0, |http| http.lost);
        report(&moved, &seen)?;
        Ok(Shown { is_as_promised: lost == 0 })
    }

    async fn say_accel(&self, user: &User) -> Result<()> {
        let hosts = user.client.hosts().list(&Filter::default()).await?;
        let report = hosts.iter().find_map(|host| host.report.as_ref()).context("no host has reported")?;
        let meaning = match report.accel {
            Accel::Kvm => "guests run on the processor itself: the figures are those of a real host",
            Accel::Tcg => {
                "guests are emulated: they run many times slower than on a real host, so read the figures as ratios"
            }
        };
        println!("QEMU {}, {:?} ({}): {meaning}", report.qemu_version, report.accel, report.accel_why);
        Ok(())
    }

    /// The other host of the same datacentre: shared storage ends there.
    async fn neighbour(&self, user: &User, source: &Name) -> Result<Name> {
        let hosts = user.client.hosts().list(&Filter::default()).await?;
        let own = hosts.iter().find(|host| host.name() == source).context("the VM's host is unknown")?;
        let other = hosts
            .iter()
            .find(|host| host.name() != source && host.spec.datacentre == own.spec.datacentre)
            .context("the datacentre has one host only")?;
        Ok(other.name().clone())
    }

    /// What to try next; every line is tried by the tests.
    #[must_use]
    pub fn lines_to_paste(&self) -> [String; 5] {
        let sterna = &self.program;
        [
            format!("{sterna} vm list"),
            format!("{sterna} vm migrate web"),
            format!("{sterna} vm why web"),
            format!("{sterna} migration list"),
            format!("{sterna} host list"),
        ]
    }
}

/// Says what is waited for when it takes longer than people like to look at nothing.
async fn step<T>(what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let began = Instant::now();
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            result = &mut work => {
                let value = result.with_context(|| format!("make sure that {what}"))?;
                println!("  {what} ({:.1} s)", began.elapsed().as_secs_f64());
                return Ok(value);
            }
            () = tokio::time::sleep(Duration::from_secs(4)) => {
                println!("  ... waiting until {what} ({:.0} s)", began.elapsed().as_secs_f64());
            }
        }
    }
}

/// Waits for the guest to boot; from then on every request counts.
async fn answers(space: &str, guest: Ipv4Addr) -> Result<()> {
    let until = Instant::now() + BOOT;
    loop {
        let space = space.to_owned();
        let asked = tokio::task::spawn_blocking(move || probe::http::once(&space, guest, "/healthz")).await?;
        match asked {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > until => return Err(error.context("the guest does not answer")),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// One line that is written over at a terminal, and repeated now and then elsewhere.
struct Line {
    is_terminal: bool,
    last: Option<(String, Instant)>,
}

impl Line {
    fn new() -> Self {
        Self { is_terminal: std::io::stdout().is_terminal(), last: None }
    }

    fn show(&mut self, probes: &Probes, now: &Migration, progress: Option<Progress>) {
        let phase = user::phase(now).map_or("asked for", Phase::word);
        let decision = now.decision.as_ref();
        let at = match user::phase(now) {
            Some(Phase::Finishing { .. } | Phase::Succeeded) => decision.and_then(|d| d.target.as_ref()),
            _ => decision.and_then(|d| d.source.as_ref()),
        };
        let at = at.map(ToString::to_string).unwrap_or_default();
        let answered = probes.answered().map_or(0, |(count, _)| count);
        let rest = progress.map(|p| {
            format!(
                "{:>4} MiB left, {:>3} MiB/s, pass {}",
                p.remaining.as_u64() >> 20,
                p.send_rate.as_u64() >> 20,
                p.rounds
            )
        });
        let text =
            format!("  {answered:>7} requests answered, by {at:<4} {phase:<10} {}", rest.unwrap_or_default());
        if self.is_terminal {
            print!("\r{text:<78}");
            let _ = std::io::stdout().flush();
        } else if self
            .last
            .as_ref()
            .is_none_or(|(word, at)| word != phase || at.elapsed() > Duration::from_secs(1))
        {
            println!("{text}");
        }
        if self.last.as_ref().is_none_or(|(word, at)| word != phase || at.elapsed() > Duration::from_secs(1))
        {
            self.last = Some((phase.to_owned(), Instant::now()));
        }
    }

    fn end(&self) {
        if self.is_terminal {
            println!();
        }
    }
}

fn report(moved: &Migration, seen: &probe::Outcome) -> Result<()> {
    let decision = moved.decision.as_ref().context("the migration was never decided")?;
    ensure!(decision.phase == Phase::Succeeded, "the move did not succeed: {:?}", decision.phase);
    let outcome = decision.outcome.clone().unwrap_or_default();
    let (udp, http) = (seen.udp.clone().unwrap_or_default(), seen.http.clone().unwrap_or_default());
    println!("\n{}", table(moved.spec.forecast.as_ref(), &outcome, udp.gap_ms, (http.requests, http.lost)));
    for reason in &http.reasons {
        println!("  lost: {reason}");
    }
    Ok(())
}

/// Forecast and measurement side by side, in plain words.
fn table(
    forecast: Option<&Forecast>,
    outcome: &Outcome,
    gap_ms: f64,
    (requests, lost): (u64, u64),
) -> String {
    let none = || "-".to_owned();
    let ms = |span: Span| format!("{} ms", span.as_millis());
    let mib = |bytes: Bytes| format!("{} MiB", bytes.as_u64() >> 20);
    let verdict = forecast.map(|f| match f.verdict {
        Verdict::Fits => "fits".to_owned(),
        Verdict::NeedsThrottling => "fits when the guest is slowed".to_owned(),
        Verdict::NeedsLongerPause => "needs a longer pause".to_owned(),
        Verdict::WillNotConverge => "will not converge".to_owned(),
    });
    let rows = [
        ("", "forecast".to_owned(), "measured".to_owned()),
        (
            "the whole move took",
            forecast.map_or_else(none, |f| ms(f.total)),
            outcome.total.map_or_else(none, ms),
        ),
        (
            "the guest stood still for",
            forecast.map_or_else(none, |f| ms(f.downtime)),
            outcome.downtime.map_or_else(none, ms),
        ),
        ("a client heard nothing for", none(), format!("{gap_ms:.0} ms")),
        ("memory sent", forecast.map_or_else(none, |f| mib(f.bytes)), mib(outcome.bytes)),
        ("passes over the memory", none(), outcome.rounds.to_string()),
        ("requests asked / lost", "0 lost".to_owned(), format!("{requests} / {lost} lost")),
        ("verdict before the move", verdict.unwrap_or_else(none), String::new()),
    ];
    let line =
        |(what, a, b): &(&str, String, String)| format!("  {what:<28} {a:>14} {b:>18}").trim_end().to_owned();
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use sterna_model::forecast::Confidence;

    use super::*;

    #[test]
    fn forecast_and_measurement_stand_side_by_side() {
        let forecast = Forecast {
            total: Span::from_millis(1500),
            downtime: Span::from_millis(30),
            bytes: Bytes::mib(90),
            verdict: Verdict::Fits,
            advice: String::new(),
            confidence: Confidence::Good,
            basis: String::new(),
        };
        let outcome = Outcome {
            total: Some(Span::from_millis(1400)),
            downtime: Some(Span::from_millis(25)),
            gap: None,
            round_trip: None,
            bytes: Bytes::mib(88),
            rounds: 3,
        };
        let text = table(Some(&forecast), &outcome, 61.4, (1234, 0));
        assert!(text.contains("the whole move took                 1500 ms            1400 ms"), "{text}");
        assert!(text.contains("1234 / 0 lost"), "{text}");
    }
}
