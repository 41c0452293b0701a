//! A database in a guest goes on with a client's one connection while its VM moves: no transaction that it acknowledged
//! is missing afterwards.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sterna_base::units::Bytes;
use sterna_client::vm::Ask;
use sterna_model::meta::Name;
use sterna_model::vm::CloudInit;
use tokio::time::sleep;

use super::rig::{Guest, POOL, Path, Rig};
use super::sibling::{IMAGE, ensure_debian};
use super::sql::Session;
use crate::bench::table::{Bar, Table, median};
use crate::netns;
use crate::probe::Stop;

const MEMORY: Bytes = Bytes::mib(512);
/// The database listens to everybody: the guest is alone with its client.
const USER_DATA: &str = r#"#cloud-config
runcmd:
  - |
    for main in /etc/postgresql/*/main; do
      echo "host all all all trust" >>"$main/pg_hba.conf"
      echo "listen_addresses = '*'" >"$main/conf.d/network.conf"
    done
    systemctl restart postgresql
"#;
/// A whole Debian boots under emulation, and then its database starts anew.
const BOOT_MAX: Duration = Duration::from_secs(420);
/// Transactions before the move and after it.
const CALM: Duration = Duration::from_secs(5);

pub async fn postgres(rig: &Rig<'_>, repeats: usize) -> Result<Table> {
    ensure_debian(rig).await?;
    let (mut broken, mut lost, mut waits, mut times, mut counts) = (0, 0, vec![], vec![], vec![]);
    let mut table = Table::default();
    for number in 0..repeats {
        let guest = boot(rig).await?;
        rig.path(Path::R)?;
        let (moved, acknowledged, longest) = serve_while_it_moves(rig, &guest).await?;
        times.push(moved.as_secs_f64());
        counts.push(acknowledged as f64);
        // Also those of a connection that broke.
        lost += acknowledged - count(rig, guest.address, acknowledged).await?;
        match longest {
            Ok(longest) => waits.push(longest.as_secs_f64() * 1000.0),
            Err(error) => {
                broken += 1;
                table.note(format!("PostgreSQL: {error:#}"));
            }
        }
        println!(
            "  {} moved in {:.1} s; transactions {counts:?}, longest waits {waits:.0?} ms",
            number + 1,
            times[number]
        );
        rig.clear().await?;
    }
    table.note("PostgreSQL: Debian guest of 512 MiB, line of case R, one client on one connection, a transaction after another");
    table.bar(
        "PostgreSQL while the VM moves: connections broken off",
        f64::from(broken),
        "",
        Bar::AtMost(0.0),
        None,
    );
    table.bar("PostgreSQL: acknowledged transactions lost", lost as f64, "", Bar::AtMost(0.0), None);
    table.info(
        "PostgreSQL: longest wait for a transaction",
        waits.iter().copied().fold(f64::NAN, f64::max),
        "ms",
        None,
    );
    table.info("PostgreSQL: transactions meanwhile", median(&counts), "", None);
    table.info("PostgreSQL: total time of the move", median(&times), "s", None);
    Ok(table)
}

/// Until its database answers on the network.
async fn boot(rig: &Rig<'_>) -> Result<Guest> {
    let cloud_init = CloudInit { user_data: Some(USER_DATA.to_owned()), ..CloudInit::default() };
    let image = Some(Name::new(IMAGE)?);
    let ask =
        Ask { image, cpus: Some(2), memory: Some(MEMORY), cloud_init: Some(cloud_init), ..Ask::default() };
    let guest = rig.make("database", ask, Some(POOL)).await?;
    let until = Instant::now() + BOOT_MAX;
    let make_table = "CREATE TABLE IF NOT EXISTS seen (number bigint PRIMARY KEY)";
    while let Err(error) = ask_once(rig, guest.address, make_table.to_owned()).await {
        ensure!(Instant::now() < until, "the database does not answer: {error:#}");
        sleep(Duration::from_secs(1)).await;
    }
    Ok(guest)
}

/// How long the move took, how many transactions the client had done in the end, and how long the longest took it.
async fn serve_while_it_moves(rig: &Rig<'_>, guest: &Guest) -> Result<(Duration, u64, Result<Duration>)> {
    let (stop, done) = (Stop::default(), Arc::new(AtomicU64::new(0)));
    let (stopped, counted, address) = (stop.clone(), done.clone(), guest.address);
    let space = rig.world.space(rig.client);
    let client = netns::inside(Some(&space), move || transact(address, &stopped, &counted))?;
    sleep(CALM).await;
    ensure!(done.load(Ordering::Relaxed) > 0, "no transaction was done before the move");
    let began = Instant::now();
    let moved = rig.arrive(guest, rig.away).await;
    let took = began.elapsed();
    if moved.is_ok() {
        sleep(CALM).await;
    }
    stop.stop();
    let seen = tokio::task::spawn_blocking(move || client.join()).await?;
    moved?;
    let longest = seen.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    Ok((took, done.load(Ordering::Relaxed), longest))
}

/// One transaction after another, on one connection.
fn transact(guest: Ipv4Addr, stop: &Stop, done: &AtomicU64) -> Result<Duration> {
    let mut session = Session::open(guest)?;
    let mut longest = Duration::ZERO;
    while !stop.is_stopped() {
        let number = done.load(Ordering::Relaxed) + 1;
        let began = Instant::now();
        let sql = format!("BEGIN; INSERT INTO seen VALUES ({number}); COMMIT");
        session.ask(&sql).with_context(|| format!("transaction {number}"))?;
        longest = longest.max(began.elapsed());
        done.store(number, Ordering::Relaxed);
    }
    Ok(longest)
}

/// How many of the acknowledged ones are there.
async fn count(rig: &Rig<'_>, guest: Ipv4Addr, acknowledged: u64) -> Result<u64> {
    let sql = format!("SELECT count(*) FROM seen WHERE number <= {acknowledged}");
    let values = ask_once(rig, guest, sql).await?;
    values.first().context("no count")?.parse().context("read the count")
}

/// On a connection of its own.
async fn ask_once(rig: &Rig<'_>, guest: Ipv4Addr, sql: String) -> Result<Vec<String>> {
    let asked = netns::inside(Some(&rig.world.space(rig.client)), move || Session::open(guest)?.ask(&sql))?;
    let answer = tokio::task::spawn_blocking(move || asked.join()).await?;
    answer.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
