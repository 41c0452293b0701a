//! The Debian of row `sibling` after use: what of its memory still is like its sibling's. There is no bar.
//!
//! Two guests are used at the same time, in the same way and for as long: one for Sterna, one by hand. The sibling at the
//! target is not used. One repetition: an hour is long, and what is compared are bytes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::time::sleep;

use super::case::{MB, tell};
use super::rig::{Guest, Path, Rig, Sample};
use super::sibling::{self, MANNERS, debian_with, ensure_debian, handed_over, there_and_back};
use crate::bench::table::Table;

/// In the short form.
pub const QUICK: Duration = Duration::from_secs(60);
pub const WHOLE: Duration = Duration::from_secs(3600);
/// A round of use that has begun goes on to its end, on a busy core.
const LATE: Duration = Duration::from_secs(600);
/// After its use, before its move.
const QUIET: Duration = Duration::from_secs(20);
/// A unit that starts with each boot, once the guest serves, and uses it as people would: a database that grows and is
/// searched, files that come and go, pages that are asked for, packages that are listed, a log. It begins after a minute:
/// the guest that is handed over boots twice, and is used only after its second boot.
const USE: &str = r#"- path: /usr/local/bin/use
  permissions: '0755'
  content: |
    #!/bin/bash
    sleep 60
    sql() { runuser -u postgres -- psql -qAt >/dev/null; }
    echo 'CREATE TABLE IF NOT EXISTS used (id serial PRIMARY KEY, who text, at timestamptz DEFAULT now(), what text);' | sql
    mkdir -p /var/tmp/used
    SECONDS=0 round=0
    while ((SECONDS < $1)); do
      round=$((round + 1))
      for n in {1..100}; do
        echo "INSERT INTO used (who, what) VALUES ('user $((RANDOM % 1000))', md5(random()::text) || repeat('x', $((RANDOM % 200))));"
        echo "UPDATE used SET what = md5(random()::text) WHERE id = $((RANDOM % (round * 100) + 1));"
      done | sql
      echo "SELECT who, count(*), max(what) FROM used GROUP BY who ORDER BY 2 DESC LIMIT 20;" | sql
      for n in {1..8}; do
        head -c $((RANDOM * 32)) /dev/urandom >/var/tmp/used/random-$((RANDOM % 64))
        find /usr/share/doc -type f -print0 | head -z -n $((RANDOM % 400)) | xargs -0r cat >/var/tmp/used/text-$((RANDOM % 64))
      done
      sha256sum /var/tmp/used/* >/dev/null
      dpkg -l >/dev/null
      dpkg -S /usr/bin/env >/dev/null
      python3 -c 'import urllib.request as web; [web.urlopen("http://localhost/").read() for _ in range(50)]'
      logger "used for $SECONDS s"
      sleep 2
    done
    sync
    echo "$round rounds" >/run/used
- path: /etc/systemd/system/use.service
  content: |
    [Unit]
    After=echo7.service postgresql.service nginx.service
    [Service]
    ExecStart=/usr/local/bin/use SECONDS_OF_USE
    [Install]
    WantedBy=graphical.target
runcmd:
- ln -sf /run/used /var/www/html/used
- systemctl daemon-reload
- systemctl enable use.service
"#;
/// Behind all others: it waits only for units that are already on their way.
const BEGIN: &str = "- systemctl start --no-block use.service
";

pub async fn sibling_used(rig: &Rig<'_>, time: Duration) -> Result<Table> {
    ensure_debian(rig).await?;
    sibling::sibling_at_target(rig).await?;
    let manners = manners(time);
    let by_hand = debian_with(rig, ("by-hand", rig.home), &manners).await?;
    let by_hand = handed_over(rig, by_hand).await?;
    let guest = debian_with(rig, ("used", rig.home), &manners).await?;
    let rounds = [used(rig, &by_hand.guest, time).await?, used(rig, &guest, time).await?];
    println!("  used by hand for {}, Sterna's for {}", rounds[0], rounds[1]);
    sleep(QUIET).await;
    rig.path(Path::R)?;
    let ours = rig.by_sterna(&guest, rig.away).await?;
    tell("Sterna", 0, Some(&ours));
    rig.fast()?;
    rig.user().remove(guest.name()).await?;
    let [plain, multifd] = there_and_back(rig, by_hand).await?;
    tell("plain QEMU", 0, Some(&plain));
    tell("multifd and zstd", 0, Some(&multifd));
    rig.clear().await?;
    Ok(table_of(time, &rounds, [&ours, &plain, &multifd]))
}

fn table_of(time: Duration, rounds: &[String; 2], [ours, plain, multifd]: [&Sample; 3]) -> Table {
    let mut table = Table::default();
    let after = match time.as_secs() {
        seconds if seconds % 60 == 0 => format!("after {} min of use", seconds / 60),
        seconds => format!("after {seconds} s of use"),
    };
    table.note(format!(
        "sibling {after}: Debian in 512 MiB, line of case R, another one of its image runs unused at the target; used by transactions of PostgreSQL, files, package lists and web pages, without a break ({} by hand, {} for Sterna)",
        rounds[0], rounds[1]
    ));
    for (name, base) in [("plain", plain), ("multifd+zstd", multifd)] {
        let label = format!("sibling {after}: wire bytes of memory / {name}");
        table.info(&label, ours.bytes / base.bytes, "x", Some(1.0));
        let label = format!("sibling {after}: wire bytes, beside {name}");
        table.info(&label, ours.bytes / MB, "MB", Some(base.bytes / MB));
        let label = format!("sibling {after}: total time, beside {name}");
        table.info(&label, ours.seconds, "s", Some(base.seconds));
    }
    table
}

/// Those of all Debians, and the use: cloud-init takes one list of files and one of commands.
fn manners(time: Duration) -> String {
    let (files, commands) = MANNERS.split_once("runcmd:\n").unwrap_or((MANNERS, ""));
    let seconds = time.as_secs().to_string();
    format!("{files}{}{commands}{BEGIN}", USE.replace("SECONDS_OF_USE", &seconds))
}

/// Waits until it was; how often it did everything.
async fn used(rig: &Rig<'_>, guest: &Guest, time: Duration) -> Result<String> {
    let until = Instant::now() + time + LATE;
    loop {
        match rig.world.ask_guest(rig.client, guest.address, "/used").await {
            Ok(rounds) => return Ok(rounds.trim().to_owned()),
            Err(error) if Instant::now() > until => {
                return Err(error).context("the guest does not say that it was used");
            }
            Err(_) => sleep(Duration::from_secs(2)).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_used_guest_has_the_manners_of_all_others_and_is_used_for_as_long_as_is_said() {
        let manners = manners(QUICK);
        assert_eq!(manners.matches("write_files:\n").count(), 1);
        assert_eq!(manners.matches("runcmd:\n").count(), 1);
        assert!(manners.contains("bin/use 60\n") && !manners.contains("SECONDS_OF_USE"));
        let (files, commands) = manners.split_once("runcmd:\n").unwrap();
        for command in ["enable use.service", "enable echo7.service"] {
            assert!(commands.contains(command), "{command}");
        }
        for file in ["/usr/local/bin/use", "/usr/local/bin/echo7"] {
            assert!(files.contains(&format!("- path: {file}\n")), "{file}");
        }
    }

    #[test]
    fn the_time_of_use_is_in_every_label_and_nothing_has_a_bar() {
        let sample = Sample { seconds: 9.0, gap_ms: 1.0, pause_ms: 1.0, bytes: 1e7, is_done: true };
        let rounds = ["7 rounds".to_owned(), "8 rounds".to_owned()];
        let table = table_of(WHOLE, &rounds, [&sample; 3]);
        assert!(table.figures.iter().all(|figure| figure.bar.is_none() && figure.name.contains("60 min")));
    }
}
