//! A whole Debian that goes where another one of its image runs: the bytes of its memory, beside QEMU by hand.
//!
//! The disk is in a folder that both datacentres see, so what is compared is memory. Both ways by hand are taken by the
//! same guest, there and back: QEMU remembers nothing.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sterna_client::vm::Ask;
use sterna_model::meta::Name;
use sterna_model::vm::CloudInit;
use tokio::time::sleep;

use super::case::{MB, mid, note_unfinished, tell};
use super::rig::{ByHand, Guest, MEMORY, POOL, Path, Rig, Sample};
use crate::bench::plain::{self, Hand, Style};
use crate::bench::table::{Bar, Table};
use crate::place::Host;

pub const IMAGE: &str = "debian";
/// Under emulation it boots for a minute, and for longer beside another that does.
const BOOT: Duration = Duration::from_secs(600);
/// Services that have just started go on with something for a while.
const QUIET: Duration = Duration::from_secs(20);
/// The tiny guest's manners, which probes and rig rely on: datagrams to port 7 come back, and once all of it has started,
/// `/healthz` is there.
pub const MANNERS: &str = "#cloud-config
write_files:
- path: /usr/local/bin/echo7
  permissions: '0755'
  content: |
    #!/usr/bin/python3
    import socket
    echo = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    echo.bind(('', 7))
    open('/run/healthz', 'w').write('ok')
    while True:
        data, sender = echo.recvfrom(2048)
        echo.sendto(data, sender)
- path: /etc/systemd/system/echo7.service
  content: |
    [Unit]
    After=multi-user.target cloud-final.service
    [Service]
    ExecStart=/usr/local/bin/echo7
    [Install]
    WantedBy=graphical.target
runcmd:
- ln -sf /run/healthz /var/www/html/healthz
- systemctl daemon-reload
- systemctl enable echo7.service
- sync
- systemctl start --no-block echo7.service
";

pub async fn sibling(rig: &Rig<'_>, repeats: usize) -> Result<Table> {
    ensure_debian(rig).await?;
    sibling_at_target(rig).await?;
    let (mut sterna, mut plain, mut multifd) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..repeats {
        sterna.push(by_sterna(rig).await?);
        tell("Sterna", number, sterna.last());
        let [there, back] = by_hand(rig).await?;
        plain.push(there);
        tell("plain QEMU", number, plain.last());
        multifd.push(back);
        tell("multifd and zstd", number, multifd.last());
    }
    let mut table = Table::default();
    table.note("sibling: Debian in 512 MiB just after its boot, line of case R, another one of its image runs at the target; by hand one guest goes there plain and back with multifd+zstd");
    for (name, base, bar) in [("plain", &plain, 0.10), ("multifd+zstd", &multifd, 0.35)] {
        note_unfinished(&mut table, &format!("sibling: {name}"), base);
        let [ours, theirs] = [&sterna, base].map(|side| mid(side, |s| s.bytes));
        let label = format!("sibling: wire bytes of memory / {name}");
        table.bar(&label, ours / theirs, "x", Bar::AtMost(bar), Some(1.0));
        table.info(&format!("sibling: wire bytes, beside {name}"), ours / MB, "MB", Some(theirs / MB));
        let [ours, theirs] = [&sterna, base].map(|side| mid(side, |s| s.seconds));
        table.info(&format!("sibling: total time, beside {name}"), ours, "s", Some(theirs));
    }
    Ok(table)
}

/// Its file is beside the tiny one's.
pub async fn ensure_debian(rig: &Rig<'_>) -> Result<()> {
    let image = rig.world.image.with_file_name("debian.qcow2");
    ensure!(image.is_file(), "there is no {}; make it with `./dev image debian`", image.display());
    rig.user().ensure_image(&Name::new(IMAGE)?, &image).await
}

/// A fresh Debian that has come to rest on a host.
async fn debian(rig: &Rig<'_>, name: &str, host: Host) -> Result<Guest> {
    debian_with(rig, (name, host), MANNERS).await
}

/// The same with other manners, of which those of all others are a part.
pub async fn debian_with(rig: &Rig<'_>, (name, host): (&str, Host), manners: &str) -> Result<Guest> {
    let cloud_init = CloudInit { user_data: Some(manners.to_owned()), ..CloudInit::default() };
    let (image, memory) = (Some(Name::new(IMAGE)?), Some(MEMORY));
    let ask = Ask { image, memory, cloud_init: Some(cloud_init), ..Ask::default() };
    let mut there = *rig;
    there.home = host;
    let guest = there.make(name, ask, Some(POOL)).await?;
    comes_to_rest(rig, guest.address).await?;
    Ok(guest)
}

/// The one that runs where others go to.
pub async fn sibling_at_target(rig: &Rig<'_>) -> Result<Guest> {
    debian(rig, "sibling", rig.away).await
}

async fn comes_to_rest(rig: &Rig<'_>, guest: Ipv4Addr) -> Result<()> {
    let until = Instant::now() + BOOT;
    while let Err(error) = rig.world.ask_guest(rig.client, guest, "/healthz").await {
        ensure!(Instant::now() < until, "the guest does not come up within {} s: {error:#}", BOOT.as_secs());
        sleep(Duration::from_secs(1)).await;
    }
    sleep(QUIET).await;
    Ok(())
}

async fn by_sterna(rig: &Rig<'_>) -> Result<Sample> {
    let guest = debian(rig, "fresh", rig.home).await?;
    rig.path(Path::R)?;
    let sample = rig.by_sterna(&guest, rig.away).await?;
    rig.fast()?;
    rig.user().remove(guest.name()).await?;
    Ok(sample)
}

async fn by_hand(rig: &Rig<'_>) -> Result<[Sample; 2]> {
    let guest = debian(rig, "by-hand", rig.home).await?;
    there_and_back(rig, handed_over(rig, guest).await?).await
}

/// Its VM stops, and its guest boots anew, by hand.
pub async fn handed_over(rig: &Rig<'_>, Guest { vm, address }: Guest) -> Result<ByHand> {
    rig.user().done(&rig.user().client.vms().stop(vm.name(), true).await?).await?;
    let (machine, places) = plain::twin(rig.world, &vm, &rig.pool(), [rig.home, rig.away]).await?;
    let hand = Hand::boot(machine, places).await?;
    comes_to_rest(rig, address).await?;
    Ok(ByHand { guest: Guest { vm, address }, hand })
}

/// There plain, back with multifd and zstd.
pub async fn there_and_back(rig: &Rig<'_>, mut by_hand: ByHand) -> Result<[Sample; 2]> {
    rig.path(Path::R)?;
    let there = rig.move_by_hand(&mut by_hand, Style::Plain).await.context("there by hand")?;
    ensure!(there.is_done, "the guest by hand did not arrive");
    let back = rig.move_by_hand(&mut by_hand, Style::MultifdZstd).await.context("back by hand")?;
    rig.fast()?;
    rig.end(by_hand).await?;
    Ok([there, back])
}
