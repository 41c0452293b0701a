//! The baseline: two QEMU processes driven by hand, as a person with a terminal on both hosts would do it well.
//!
//! What it does, in order, timed from the decision until the target runs and the source is gone: starts the target
//! with `-incoming defer` (without `-S`: QEMU continues the guest by itself), connects to it, sets `events` and
//! `return-path` on both sides and the same bandwidth and downtime limits as Sterna's, has the target listen, starts
//! the migration, waits for QEMU's `completed` event and for the target to run, ends the source with `quit` and waits
//! for its process. It keeps no record, checks nothing, and would run the guest twice if the line broke at the wrong
//! moment. Told so, it sets `multifd` on both sides as well: with as many channels as are said, or with four and zstd.
//! Nothing of it is encrypted.

/// With a disk that goes along.
pub mod mirror;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};
use sterna_client::vm::Vm;
use sterna_model::meta::Name;
use sterna_model::network::OVERLAY_MTU;
use sterna_qemu::qmp::migration::{Address, Capability, Parameters, Progress, Status};
use sterna_qemu::qmp::{Client, Options};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use super::world::World;
use crate::place::Host;

/// What both machines are made of; the same as the VM it is compared with.
#[derive(Debug, Clone)]
pub struct Machine {
    pub program: PathBuf,
    pub machine: String,
    pub cpu_model: String,
    pub memory_kib: u64,
    pub disk: PathBuf,
    pub mac: String,
    /// Sockets go here.
    pub folder: PathBuf,
}

/// One of the two hosts.
#[derive(Debug, Clone)]
pub struct Place {
    pub namespace: String,
    /// The segment's bridge in it.
    pub bridge: String,
    pub mtu: u32,
    pub address: IpAddr,
}

/// A QEMU that somebody started by hand.
pub struct Hand {
    machine: Machine,
    places: [Place; 2],
    at: usize,
    child: Child,
    qmp: Client,
    started: u32,
}

/// What one move took.
#[derive(Debug, Clone)]
pub struct Moved {
    pub total: Duration,
    pub downtime: Duration,
    pub bytes: u64,
}

/// How QEMU itself sends the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// One stream as it is.
    Plain,
    /// This many channels, as they are.
    Multifd(u8),
    /// Four channels, each compressed with zstd at QEMU's own level.
    MultifdZstd,
}

/// What is asked of a move.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    pub style: Style,
    pub downtime_max: Duration,
    /// A move that takes longer is given up: the guest stays where it is.
    pub patience: Duration,
}

/// As Sterna's agent sets it: no limit of its own.
pub const BANDWIDTH: u64 = 1 << 40;
const DEADLINE: Duration = Duration::from_secs(120);
const TAP: &str = "plain0";

impl Hand {
    /// Makes a port on both hosts and boots the guest on the first.
    pub async fn boot(machine: Machine, places: [Place; 2]) -> anyhow::Result<Self> {
        for place in &places {
            make_port(place).await?;
        }
        let (child, qmp) = spawn(&machine, &places[0], 0, false).await?;
        Ok(Self { machine, places, at: 0, child, qmp, started: 1 })
    }

    /// Moves the guest to the other host.
    pub async fn migrate(&mut self, style: Style, downtime_max: Duration) -> anyhow::Result<Moved> {
        let terms = Terms { style, downtime_max, patience: DEADLINE };
        self.migrate_on(terms).await?.context("the move did not end")
    }

    /// The same on certain terms; `None`: it was not done in time.
    pub async fn migrate_on(&mut self, terms: Terms) -> anyhow::Result<Option<Moved>> {
        let decided = Instant::now();
        let to = 1 - self.at;
        let (mut child, target) = spawn(&self.machine, &self.places[to], self.started, true).await?;
        self.started += 1;
        for side in [&self.qmp, &target] {
            prepare(side, terms.style).await?;
        }
        let limits = Parameters {
            max_bandwidth: Some(BANDWIDTH),
            downtime_limit: Some(u64::try_from(terms.downtime_max.as_millis())?),
            ..Parameters::default()
        };
        self.qmp.set_migration_parameters(&limits).await?;
        let ip = self.places[to].address;
        target.migrate_incoming(&Address::Tcp { ip, port: 0 }).await?;
        let port = listening_port(&target).await?;
        self.qmp.migrate(&Address::Tcp { ip, port }).await?;
        let Ok(progress) = timeout(terms.patience, completed(&self.qmp)).await else {
            self.qmp.migrate_cancel().await?;
            child.kill().await.context("end the target")?;
            return Ok(None);
        };
        let progress = progress?;
        timeout(DEADLINE, runs(&target)).await.context("the target does not run")??;
        let source = std::mem::replace(&mut self.qmp, target);
        // QEMU may close the connection before it answers; what counts is that the process ends.
        let _ = source.quit().await;
        self.child.wait().await.context("wait for the source")?;
        self.child = child;
        self.at = to;
        let ram = progress.ram.unwrap_or_default();
        Ok(Some(Moved {
            total: decided.elapsed(),
            downtime: Duration::from_millis(progress.downtime.unwrap_or(0)),
            bytes: ram.transferred,
        }))
    }

    /// Where it runs now.
    #[must_use]
    pub fn qmp(&self) -> &Client {
        &self.qmp
    }

    /// Ends the guest and removes the ports.
    pub async fn end(mut self) -> anyhow::Result<()> {
        let _ = self.qmp.quit().await;
        self.child.wait().await.context("wait for qemu")?;
        for place in &self.places {
            ip(&["-n", &place.namespace, "link", "delete", TAP]).await?;
        }
        Ok(())
    }
}

/// What both sides must agree on.
async fn prepare(side: &Client, style: Style) -> anyhow::Result<()> {
    side.set_migration_capabilities(&[Capability::Events, Capability::ReturnPath], &[]).await?;
    let how = match style {
        Style::Plain => return Ok(()),
        Style::Multifd(channels) => json!({ "multifd-channels": channels, "multifd-compression": "none" }),
        Style::MultifdZstd => json!({ "multifd-channels": 4, "multifd-compression": "zstd" }),
    };
    side.set_migration_capabilities(&[Capability::Multifd], &[]).await?;
    side.execute::<Value>("migrate-set-parameters", how).await?;
    Ok(())
}

/// The machine of a VM that is stopped and whose disk lies in `pool`, and two hosts, to move it by hand between them.
pub async fn twin(
    world: &World,
    vm: &Vm,
    pool: &Path,
    hosts: [Host; 2],
) -> anyhow::Result<(Machine, [Place; 2])> {
    let network = world.user.client.networks().get(&Name::new("default")?).await?;
    let vni = network.decision.context("the network has no identifier")?.vni;
    let hardware = &vm.decision.as_ref().context("the twin has no hardware")?.hardware;
    let volume = world.user.client.volumes().get(&hardware.volumes[0]).await?;
    let machine = Machine {
        program: world.program.clone(),
        machine: hardware.machine.clone(),
        cpu_model: hardware.cpu_model.clone(),
        memory_kib: hardware.memory.as_u64() >> 10,
        disk: pool.join("volumes").join(format!("{}.qcow2", volume.meta.uid)),
        mac: hardware.nics[0].mac.to_string(),
        folder: world.lab.dir.clone(),
    };
    let place = |host: Host| Place {
        namespace: world.space(host),
        bridge: format!("sterna-b{vni:x}"),
        mtu: OVERLAY_MTU,
        address: world.lab.host_address(host).into(),
    };
    Ok((machine, hosts.map(place)))
}

/// Removes the ports that a bench left when it failed.
pub async fn clear(world: &World) {
    for host in world.lab.hosts() {
        // Usually there is none.
        let _ = ip(&["-n", &world.space(host), "link", "delete", TAP]).await;
    }
}

async fn make_port(place: &Place) -> anyhow::Result<()> {
    let namespace = place.namespace.as_str();
    let mtu = place.mtu.to_string();
    ip(&["-n", namespace, "tuntap", "add", "dev", TAP, "mode", "tap", "vnet_hdr"]).await?;
    ip(&["-n", namespace, "link", "set", TAP, "mtu", &mtu, "master", &place.bridge, "up"]).await
}

async fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("ip").args(arguments).output().await.context("run ip")?;
    if !output.status.success() {
        bail!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

async fn spawn(
    machine: &Machine,
    place: &Place,
    number: u32,
    incoming: bool,
) -> anyhow::Result<(Child, Client)> {
    let socket = machine.folder.join(format!("plain-{number}.qmp"));
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &place.namespace]).arg(&machine.program).args(arguments(machine, &socket));
    if incoming {
        command.args(["-incoming", "defer"]);
    }
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .context("start qemu by hand")?;
    let stream = timeout(DEADLINE, connect(&socket)).await.context("qemu does not listen")?;
    Ok((child, Client::connect(stream, Options::default()).await?))
}

fn arguments(machine: &Machine, socket: &Path) -> Vec<String> {
    let disk = machine.disk.display();
    let list = [
        "-nodefaults",
        "-display",
        "none",
        "-machine",
        // The same machine as Sterna's: a guest that is busy for a reason of its own would slow the other's move, too.
        &format!("{},usb=off,vmport=off,smm=off,hpet=off,dump-guest-core=off", machine.machine),
        "-accel",
        "tcg",
        "-cpu",
        &machine.cpu_model,
        "-m",
        &format!("{}K", machine.memory_kib),
        "-blockdev",
        &format!(
            "driver=qcow2,node-name=d0,file.driver=file,file.filename={disk},file.cache.direct=on,file.locking=on"
        ),
        "-device",
        "virtio-blk-pci,drive=d0,bootindex=0",
        "-netdev",
        &format!("tap,id=n0,ifname={TAP},script=no,downscript=no"),
        "-device",
        &format!("virtio-net-pci,netdev=n0,mac={}", machine.mac),
        // The guest's console is there: without it, its login would be started again and again, on a whole CPU.
        "-chardev",
        "null,id=serial0",
        "-device",
        "isa-serial,chardev=serial0",
        "-qmp",
        &format!("unix:{},server=on,wait=off", socket.display()),
    ];
    list.iter().map(|text| (*text).to_owned()).collect()
}

/// QEMU makes its socket some tens of milliseconds after its start.
async fn connect(socket: &Path) -> UnixStream {
    loop {
        match UnixStream::connect(socket).await {
            Ok(stream) => return stream,
            Err(_) => sleep(Duration::from_millis(2)).await,
        }
    }
}

async fn listening_port(target: &Client) -> anyhow::Result<u16> {
    let found = timeout(DEADLINE, async {
        loop {
            match target.incoming_port().await {
                Ok(Some(port)) => return Ok(port),
                Ok(None) => sleep(Duration::from_millis(1)).await,
                Err(error) => return Err(error),
            }
        }
    });
    Ok(found.await.context("the target does not listen")??)
}

/// Waits on events; the status itself is the truth.
async fn completed(source: &Client) -> anyhow::Result<Progress> {
    let mut events = source.events();
    loop {
        let progress = source.query_migrate().await?;
        match progress.status {
            Status::Completed => return Ok(progress),
            ref status if status.is_final() => bail!("the move ended as {status}: {:?}", progress.error_desc),
            _ => {}
        }
        // A lost event must not stop the clock for ever.
        let _ = timeout(Duration::from_millis(100), events.next()).await;
    }
}

async fn runs(target: &Client) -> anyhow::Result<()> {
    let mut events = target.events();
    while !target.query_status().await?.is_running {
        let _ = timeout(Duration::from_millis(20), events.next()).await;
    }
    Ok(())
}
