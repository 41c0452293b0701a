//! Disks that go with their VMs: what a second VM of the same image costs, and what the guest's own writes wait for.

use std::path::Path as File;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::Rng;
use serde_json::{Value, json};
use sterna_base::units::Bytes;
use sterna_model::error::Code;
use sterna_model::meta::Name;
use sterna_qemu::qmp::Client;
use tokio::process::{Child, Command};
use tokio::time::sleep;

use super::case::MB;
use super::rig::{Guest, Path, Rig};
use crate::bench::plain::mirror;
use crate::bench::table::{Bar, Table, median};

/// Memory is not what is measured.
const MEMORY: Bytes = Bytes::mib(128);
/// The image's own bytes, which no compression makes smaller.
pub const CONTENT: usize = 128 << 20;
pub const IMAGE: &str = "template";
const WRITES: &[&str] = &["/counter/start?hz=50"];
const PORT: u16 = 10_809;
const PATIENCE: Duration = Duration::from_secs(300);
/// A mirror that is in step goes on for a while: this is when a move's last phase would be.
const IN_STEP: Duration = Duration::from_secs(5);

pub async fn disk(rig: &Rig<'_>, repeats: usize) -> Result<Table> {
    let template = Template::make(rig).await?;
    let (mut first, mut second, mut waits, mut mirrored) = (vec![], vec![], vec![], vec![]);
    for number in 0..repeats {
        let memory = memory_alone(rig).await?;
        let pair = two_of_a_kind(rig).await?;
        first.push((pair[0] - memory).max(0.0));
        second.push((pair[1] - memory).max(0.0));
        rig.clear().await?;
        waits.push(by_sterna(rig).await?);
        mirrored.push(by_hand(rig, &template).await?);
        println!(
            "  {} disk bytes of the first VM {:.1} MB, of the second {:.1} MB; write p99 {:.1} ms, mirror by hand {:.1} ms",
            number + 1,
            first[number] / MB,
            second[number] / MB,
            waits[number],
            mirrored[number]
        );
    }
    let mut table = Table::default();
    let (allocated, bytes) = (template.allocated as f64, median(&second));
    let share = "second VM of an image: disk bytes on the wire / allocated";
    table.bar(share, bytes / allocated, "x", Bar::AtMost(0.05), Some(1.0));
    table.info("second VM of an image: disk bytes on the wire", bytes / MB, "MB", Some(allocated / MB));
    table.info("first VM of an image: disk bytes on the wire", first[0] / MB, "MB", Some(allocated / MB));
    let (wait, base) = (median(&waits), median(&mirrored));
    let name = "guest's synchronous write, p99 while its disk moves / write-blocking mirror";
    table.bar(name, wait / base, "x", Bar::AtMost(0.10), Some(1.0));
    table.info("guest's synchronous write, p99 while its disk moves", wait, "ms", Some(base));
    Ok(table)
}

/// The tiny image with content behind its partitions, which the guest leaves alone.
pub struct Template {
    pub allocated: u64,
    pub size: u64,
}

impl Template {
    /// And imports it as the image [`IMAGE`].
    pub async fn make(rig: &Rig<'_>) -> Result<Self> {
        Self::make_as(rig, IMAGE).await
    }

    /// Imports it under a name that no other image had, with content that no host has.
    pub async fn make_new(rig: &Rig<'_>, name: &str) -> Result<Self> {
        forget(rig, name).await?;
        Self::make_as(rig, name).await
    }

    async fn make_as(rig: &Rig<'_>, name: &str) -> Result<Self> {
        let (dir, tiny) = (&rig.world.lab.dir, &rig.world.image);
        let (raw, file) = (dir.join("template.raw"), dir.join("template.qcow2"));
        qemu_img(&["convert", "-O", "raw", &text(tiny), &text(&raw)]).await?;
        let grown = raw.clone();
        let size = tokio::task::spawn_blocking(move || -> Result<u64> {
            let mut content = vec![0; CONTENT];
            rand::rng().fill_bytes(&mut content);
            let mut disk = std::fs::OpenOptions::new().append(true).open(&grown)?;
            std::io::Write::write_all(&mut disk, &content)?;
            Ok(disk.metadata()?.len())
        });
        let size = size.await?.context("add content to the image")?;
        qemu_img(&["convert", "-f", "raw", "-O", "qcow2", &text(&raw), &text(&file)]).await?;
        std::fs::remove_file(&raw).context("remove the raw image")?;
        let allocated = std::fs::metadata(&file).context("look at the image")?.len();
        rig.world.user.ensure_image(&Name::new(name)?, &file).await?;
        Ok(Self { allocated, size })
    }
}

/// Removes an image that no VM has any more, if it is there.
pub async fn forget(rig: &Rig<'_>, image: &str) -> Result<()> {
    let (name, images, until) = (Name::new(image)?, rig.user().client.images(), Instant::now() + PATIENCE);
    match images.delete(&name).await {
        Ok(gone) => rig.user().done(&gone).await?,
        Err(error) if error.is(Code::NotFound) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    while images.get(&name).await.is_ok() {
        ensure!(Instant::now() < until, "the image {image} is not removed");
        sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// What goes over the line with a VM that has no disk to take along.
async fn memory_alone(rig: &Rig<'_>) -> Result<f64> {
    let guest = rig.guest("memory", MEMORY).await?;
    rig.path(Path::R)?;
    let moved = rig.by_sterna(&guest, rig.away).await?;
    rig.clear().await?;
    Ok(moved.bytes)
}

/// Two VMs of the image, one after the other, with their disks; the first is still there when the second comes.
async fn two_of_a_kind(rig: &Rig<'_>) -> Result<[f64; 2]> {
    let mut bytes = [0.0; 2];
    for (name, bytes) in ["first", "second"].into_iter().zip(&mut bytes) {
        let guest = rig.guest_of(name, MEMORY, (IMAGE, None)).await?;
        rig.path(Path::R)?;
        *bytes = rig.by_sterna(&guest, rig.away).await?.bytes;
        rig.fast()?;
    }
    Ok(bytes)
}

/// The slowest hundredth of the guest's writes during a move, in milliseconds.
async fn by_sterna(rig: &Rig<'_>) -> Result<f64> {
    let guest = rig.guest_of("writes", MEMORY, (IMAGE, None)).await?;
    rig.load(&guest, WRITES).await?;
    rig.path(Path::R)?;
    write_p99(rig, &guest).await?;
    rig.by_sterna(&guest, rig.away).await?;
    let p99 = write_p99(rig, &guest).await?;
    rig.clear().await?;
    Ok(p99)
}

/// The same while QEMU mirrors the disk over the line, and each write waits for the other side.
async fn by_hand(rig: &Rig<'_>, template: &Template) -> Result<f64> {
    let by_hand = rig.by_hand_of("by-hand", MEMORY, IMAGE).await?;
    rig.load(&by_hand.guest, WRITES).await?;
    rig.path(Path::R)?;
    let mut server = serve(rig, template.size).await?;
    write_p99(rig, &by_hand.guest).await?;
    mirror_to(by_hand.hand.qmp(), &rig.world.lab.host_address(rig.away).to_string()).await?;
    sleep(IN_STEP).await;
    let p99 = write_p99(rig, &by_hand.guest).await?;
    rig.fast()?;
    rig.end(by_hand).await?;
    server.kill().await.context("end the server of the mirror")?;
    rig.clear().await?;
    Ok(p99)
}

/// Since this was asked last.
pub async fn write_p99(rig: &Rig<'_>, guest: &Guest) -> Result<f64> {
    let answer = rig.world.ask_guest(rig.client, guest.address, "/counter/writes").await?;
    let seen: Value = serde_json::from_str(&answer).context("understand the guest")?;
    ensure!(seen["count"].as_u64() > Some(0), "the guest wrote nothing");
    Ok(seen["p99_us"].as_f64().context("the guest names no time")? / 1000.0)
}

/// An empty disk on the other side, as a network block device.
async fn serve(rig: &Rig<'_>, size: u64) -> Result<Child> {
    let disk = rig.world.lab.dir.join("mirrored.raw");
    std::fs::File::create(&disk)?.set_len(size).context("make the disk of the mirror")?;
    let (space, address) = (rig.world.space(rig.away), rig.world.lab.host_address(rig.away).to_string());
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &space, "qemu-nbd", "--persistent", "--format", "raw", "--bind"]);
    command.args([&address, "--port", &PORT.to_string()]).arg(&disk);
    command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true).spawn().context("start qemu-nbd")
}

async fn mirror_to(qmp: &Client, host: &str) -> Result<()> {
    let server = json!({ "type": "inet", "host": host, "port": PORT.to_string() });
    let node = json!({ "driver": "nbd", "node-name": mirror::NODE, "server": server });
    let until = Instant::now() + PATIENCE;
    // The server may not listen yet.
    while let Err(error) = qmp.execute::<Value>("blockdev-add", node.clone()).await {
        ensure!(Instant::now() < until, "the mirror's server is not reached: {error}");
        sleep(Duration::from_millis(100)).await;
    }
    mirror::copy(qmp, PATIENCE).await
}

/// Runs it to its end.
pub async fn qemu_img(arguments: &[&str]) -> Result<()> {
    let output = Command::new("qemu-img").args(arguments).output().await.context("run qemu-img")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "qemu-img {}: {}", arguments.join(" "), said.trim());
    Ok(())
}

fn text(path: &File) -> String {
    path.to_string_lossy().into_owned()
}
