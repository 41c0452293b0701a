//! `sterna demo wan`: a busy VM goes to the other datacentre over a slow line, with its disk, and comes back.

use std::time::Duration;

use anyhow::{Context, Result};
use sterna_base::units::{Bytes, Span};
use sterna_client::vm::{Move, Vm};
use sterna_model::meta::Name;

use super::{BEFORE, Demo, Line, Shown, answers, report, step};
use crate::place::{Host, Lab, Pair};
use crate::probe::{self, Probes};
use crate::user::{self, User};
use crate::wan::{self, Order};

const VM: &str = "shop";
const MEMORY: Bytes = Bytes::mib(256);
/// Two cities an ocean apart, and a line that an office could pay.
const RTT_MS: u64 = 80;
const MBIT_S: u64 = 80;
const PAUSE: Span = Span::from_millis(300);
/// A shop with some memory in use, of which it changes 1,000 pages a second.
const LOAD: [&str; 2] = ["/fill?mib=24&kind=text", "/dirty?pages_per_s=1000&mib=32&random_percent=50"];
/// So long an agent has to see the load before a forecast can speak of it.
const BUSY: Duration = Duration::from_secs(12);
/// Between the two moves.
const AWAY: Duration = Duration::from_secs(10);

/// Who goes where, and who watches.
struct Trip {
    line: Pair,
    home: Host,
    away: Host,
    /// Another host of the datacentre that is left.
    client: Host,
}

impl Trip {
    /// Wherever the VM is.
    fn of(lab: &Lab, vm: &Vm) -> Result<Self> {
        let owner = user::owner(vm)?;
        let home = lab.host(owner.as_str()).with_context(|| format!("host {owner} is not in the lab"))?;
        let others = || lab.hosts().filter(|host| *host != home);
        let client =
            others().find(|host| host.site == home.site).context("the datacentre has one host only")?;
        let away = others().find(|host| host.site != home.site).context("there is no other datacentre")?;
        let line = Pair::new(home.site, away.site).context("there is no line between them")?;
        Ok(Self { line, home, away, client })
    }
}

/// What one way took.
struct Leg {
    bytes: u64,
    seconds: f64,
    gap_ms: f64,
    requests: u64,
    lost: u64,
}

impl Demo {
    /// Runs in a lab that is up. Prints as it goes.
    pub async fn run_wan(&self) -> Result<Shown> {
        let user = User::of(&self.lab)?;
        let (vm, tiny) = (Name::new(VM)?, Name::new("tiny")?);
        self.say_accel(&user).await?;
        step("image `tiny` is in the library", user.ensure_image(&tiny, &self.image)).await?;
        let shop = step("VM `shop` runs", user.ensure_vm(&vm, &tiny, MEMORY)).await?;
        let (trip, guest) = (Trip::of(&self.lab, &shop)?, user::address(&shop)?);
        let space = self.lab.host_space(trip.client);
        step("it answers requests", answers(&space, guest)).await?;
        step("it is busy, and has been for a while", async {
            for path in LOAD {
                let space = space.clone();
                tokio::task::spawn_blocking(move || probe::http::once(&space, guest, path)).await??;
            }
            tokio::time::sleep(BUSY).await;
            Ok(())
        })
        .await?;
        wan::change(&self.lab.wan_socket(trip.line), |line| {
            (line.delay_us, line.rate_bits) = (RTT_MS * 500, Some(MBIT_S * 1_000_000));
        })?;
        println!("  the line {} has {MBIT_S} Mbit/s and a round trip of {RTT_MS} ms now", trip.line);
        let there = self.go(&user, &shop, (&trip, trip.away)).await?;
        println!("\n`shop` stays there for {} s", AWAY.as_secs());
        tokio::time::sleep(AWAY).await;
        let back = self.go(&user, &shop, (&trip, trip.home)).await?;
        println!("\n{}", ending(&there, &back));
        Ok(Shown { is_as_promised: there.lost + back.lost == 0 })
    }

    async fn go(&self, user: &User, vm: &Vm, (trip, to): (&Trip, Host)) -> Result<Leg> {
        let (space, guest) = (self.lab.host_space(trip.client), user::address(vm)?);
        let probes = Probes::start(Some(&space), Some(guest), Some(guest))?;
        tokio::time::sleep(BEFORE).await;
        let (to, client) = (to.name(), trip.client.name());
        println!("\nmoving `shop` to {to}, with its disk, while a client on {client} keeps asking:");
        let order = Move { to: Some(Name::new(&to)?), max_downtime: Some(PAUSE), ..Move::default() };
        let (mut line, before, began) = (Line::new(), self.sent(trip)?, std::time::Instant::now());
        let moved =
            user.migrate(vm.name(), &order, |now, progress| line.show(&probes, now, progress)).await?;
        line.end();
        let (seconds, bytes) = (began.elapsed().as_secs_f64(), self.sent(trip)? - before);
        tokio::time::sleep(BEFORE).await;
        let seen = tokio::task::spawn_blocking(move || probes.finish()).await??;
        report(&moved, &seen)?;
        let (udp, http) = (seen.udp.unwrap_or_default(), seen.http.unwrap_or_default());
        Ok(Leg { bytes, seconds, gap_ms: udp.gap_ms, requests: http.requests, lost: http.lost })
    }

    /// On the line, in both directions.
    fn sent(&self, trip: &Trip) -> Result<u64> {
        let state = wan::ask(&self.lab.wan_socket(trip.line), &Order::Show)?;
        Ok(state.directions.values().map(|counters| counters.bytes).sum())
    }

    /// What to try next after [`Demo::run_wan`].
    #[must_use]
    pub fn lines_to_paste_wan(&self) -> [String; 4] {
        let sterna = &self.program;
        [
            format!("{sterna} vm migrate shop --to b2"),
            format!("{sterna} vm why shop"),
            format!("{sterna} migration list"),
            format!("{sterna} lab link a-b --rtt 300ms --rate 20Mbit --loss 0.1%"),
        ]
    }
}

/// Both ways side by side.
fn ending(there: &Leg, back: &Leg) -> String {
    let mb = |leg: &Leg| format!("{:.1} MB", leg.bytes as f64 / 1e6);
    let rows = [
        ("", "there".to_owned(), "back".to_owned()),
        ("bytes on the line", mb(there), mb(back)),
        ("seconds", format!("{:.1}", there.seconds), format!("{:.1}", back.seconds)),
        ("a client heard nothing for", format!("{:.0} ms", there.gap_ms), format!("{:.0} ms", back.gap_ms)),
        (
            "requests asked / lost",
            format!("{} / {}", there.requests, there.lost),
            format!("{} / {}", back.requests, back.lost),
        ),
    ];
    let lines =
        rows.map(|(what, there, back)| format!("  {what:<28} {there:>14} {back:>14}").trim_end().to_owned());
    format!("{}\n  The way back is short because each side kept what it had seen.", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_stand_side_by_side() {
        let there = Leg { bytes: 31_400_000, seconds: 9.04, gap_ms: 512.3, requests: 900, lost: 0 };
        let back = Leg { bytes: 230_000, seconds: 3.0, gap_ms: 498.9, requests: 80, lost: 1 };
        let text = ending(&there, &back);
        assert!(text.contains("bytes on the line                   31.4 MB         0.2 MB"), "{text}");
        assert!(text.contains("900 / 0         80 / 1"), "{text}");
    }
}
