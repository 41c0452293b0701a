//! Puts the parts of an agent together.
//!
//! The order matters for a restart: what runs is found first, from this machine alone; the server is told when it is
//! known. A guest never waits for any of it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use sterna_base::clock::SystemClock;
use sterna_base::scope::Scope;
use sterna_guard::datagram::HostKey;
use sterna_model::ha::{GuardKey, GuardSeen};
use sterna_wire::assignment::Assignment;
use sterna_wire::down::Down;
use sterna_wire::up::Up;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::carrier::{self, Carriers, Lines};
use crate::config::Config;
use crate::console::Consoles;
use crate::converge::{self, Converger, FromServer, Pools};
use crate::guard::keeper::{self, Keeper, Unattached};
use crate::guard::{NoGuard, Ward, Wards};
use crate::host::{self, Meter, Probed};
use crate::link::outbox::Outbox;
use crate::link::tls::Identity;
use crate::link::{Ends, Link};
use crate::machine::MachineResources;
use crate::network::{Networks, TunnelSettings};
use crate::process;
use crate::qemu_hypervisor::{QemuHypervisor, Settings};
use crate::storage::{self, Limits, Storage, User};
use crate::vm::board::Board;
use crate::vm::fleet::Fleet;
use crate::vm::record::{Files, Records};
use crate::vm::{Guests, Ports, Reports, adopt};

/// How long the first look at everything may take before the server is told what is known so far.
const ADOPT_WITHIN: Duration = Duration::from_secs(3);

type LiveFleet = Fleet<QemuHypervisor, MachineResources>;

/// Runs until cancelled; guests run on.
pub async fn run(config: Config, cancel: CancellationToken) -> anyhow::Result<()> {
    let shim = vec![std::env::current_exe().context("find our own program")?.into(), "shim".into()];
    run_with(config, shim, cancel).await
}

/// The same with another shim program; the launch file is appended to it.
pub async fn run_with(config: Config, shim: Vec<OsString>, cancel: CancellationToken) -> anyhow::Result<()> {
    let scope = Scope::new();
    let started = start(&config, shim, &scope);
    tokio::select! {
        () = cancel.cancelled() => {}
        ended = started => ended?,
    }
    scope.shut_down().await;
    Ok(())
}

async fn start(config: &Config, shim: Vec<OsString>, scope: &Scope) -> anyhow::Result<()> {
    prepare_directories(config)?;
    let identity = Identity::new(config);
    let qemu = process::find_program(&config.qemu);
    let probed = host::probe(config, &qemu).await?;
    tracing::info!(accel = ?probed.accel, why = %probed.why, qemu = %probed.inspection.version, "host");
    let outbox = Arc::new(Outbox::default());
    let is_up = watch::Sender::new(false);
    let assigned = watch::Sender::new(None);
    let storage = storage(config, &identity).await?;
    let networks = Arc::new(networks(config, &identity).await?);
    let files = Files::open(&config.data_dir, &config.run_dir).context("open the records")?;
    files.prune(SystemTime::now()).context("clean the records")?;
    let carriers = carriers(config, scope)?;
    let files = Arc::new(files);
    // What the guard has it keeps: without us it gets no more, and nothing is started under its lease.
    let (wards, keeper) = guard(config, &*files, &assigned, &outbox).unwrap_or_else(|error| {
        tracing::error!(error = format!("{error:#}"), "this host's guard is not spoken to");
        (Arc::new(NoGuard), None)
    });
    let ports = Arc::new(Ports {
        hypervisor: QemuHypervisor::new(settings(config, &probed, qemu, shim), carriers.clone()),
        resources: MachineResources {
            storage: storage.clone(),
            networks: Arc::clone(&networks),
            assigned: assigned.subscribe(),
            seeds: config.run_dir.join("seed"),
        },
        records: files,
        clock: Arc::new(SystemClock),
        reports: Arc::clone(&outbox) as Arc<dyn Reports>,
        board: Arc::new(Board::default()),
        guests: Guests::default(),
        link: is_up.subscribe(),
        wards,
    });
    // What was assigned last, until a server says more: a crashed VM needs its pools and networks now.
    assigned.send_replace(ports.records.assignment().ok().flatten().map(until_heard).map(Arc::new));
    let fleet = Fleet::new(Arc::clone(&ports), scope.clone());
    let is_complete = adopt_all(config, &ports, &fleet).await;
    let pools = Arc::new(Pools::default());
    let lines = carriers.lines();
    let guard_seen = watch::Sender::new(None);
    let told = Told {
        pools: Arc::clone(&pools),
        networks: Arc::clone(&networks),
        lines: lines.clone(),
        guard: guard_seen.subscribe(),
    };
    let host = host_row(config.clone(), probed, told);
    if let Some(keeper) = keeper {
        scope.spawn(keeper.attach(guard_seen, Arc::clone(&host)).run());
    }
    let converger = Converger {
        ports: Arc::clone(&ports),
        storage: storage.clone(),
        networks,
        assigned: assigned.subscribe(),
        pools,
        host: Arc::clone(&host),
    };
    scope.spawn(converger.run());
    scope.spawn(carriers.clone().keep_probing(carrier::PROBE_EVERY));
    scope.spawn(converge::tell_lines(lines, Arc::clone(&host), Arc::clone(&outbox) as _));
    scope.spawn(converge::measure(Meter::new(config), storage.clone(), Arc::clone(&outbox) as _));
    let consoles = Consoles::new(identity.clone(), config.run_dir.clone());
    let board = Arc::clone(&ports.board);
    let ends = ServerEnds {
        fleet,
        assigned,
        carriers,
        consoles,
        board,
        storage,
        host,
        is_complete,
        held: Mutex::default(),
    };
    Link { identity, outbox, ends: Arc::new(ends), is_up }.run().await;
    Ok(())
}

fn prepare_directories(config: &Config) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    for directory in [&config.data_dir, &config.run_dir] {
        std::fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
        // QEMU's unprivileged user passes through to what belongs to it.
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o711))
            .with_context(|| format!("open {} for passing", directory.display()))?;
    }
    Ok(())
}

async fn address(config: &Config, identity: &Identity) -> anyhow::Result<IpAddr> {
    match config.address {
        Some(address) => Ok(address),
        None => {
            let server = identity.address().await.context("find the server")?;
            converge::address_towards(server).context("find our own address")
        }
    }
}

async fn networks(config: &Config, identity: &Identity) -> anyhow::Result<Networks> {
    let address = address(config, identity).await?;
    let tunnel = TunnelSettings {
        key: config.tunnel_key(),
        endpoint: SocketAddr::new(config.tunnel_address.unwrap_or(address), config.tunnel_port),
    };
    let networks = Networks::new(&config.run_dir, address, config.run_as_uid).with_tunnel(tunnel);
    networks.observe_tunnel().await.context("look at the machine's network")?;
    Ok(networks)
}

async fn storage(config: &Config, identity: &Identity) -> anyhow::Result<Storage> {
    let address = match config.storage_address {
        Some(address) => address,
        None => address(config, identity).await?,
    };
    let settings = storage::Settings {
        host: config.host.clone(),
        cluster: identity.cluster().context("read the CA's certificate")?,
        data_dir: config.data_dir.clone(),
        run_dir: config.run_dir.clone(),
        address,
        run_as: User { uid: config.run_as_uid, gid: config.run_as_gid },
        qemu_img: process::find_program(Path::new("qemu-img")),
        storage_daemon: process::find_program(Path::new("qemu-storage-daemon")),
        former: Limits { age_max: config.former_kept.0, free_min: config.former_free_percent },
    };
    Ok(Storage::new(settings, Arc::new(FromServer(identity.clone()))))
}

fn carriers(config: &Config, scope: &Scope) -> anyhow::Result<Carriers> {
    let settings = carrier::Settings {
        certificate: config.certificate(),
        key: config.key(),
        ca: config.ca(),
        data_dir: config.data_dir.clone(),
        run_dir: config.run_dir.clone(),
        run_as_uid: config.run_as_uid,
        run_as_gid: config.run_as_gid,
        checkpoints_kept: config.former_kept.0,
    };
    Carriers::open(settings, scope.clone()).context("open the checkpoints")
}

fn settings(config: &Config, probed: &Probed, qemu: std::path::PathBuf, shim: Vec<OsString>) -> Settings {
    Settings {
        run_dir: config.run_dir.clone(),
        qemu,
        version: probed.inspection.version,
        run_as_uid: config.run_as_uid,
        run_as_gid: config.run_as_gid,
        groups: host::groups(probed),
        shim,
    }
}

/// Of an assignment of before this agent's start, only what VMs here stand on: nothing is made or removed by it.
fn until_heard(assignment: Assignment) -> Assignment {
    Assignment { volumes: Vec::new(), ..assignment }
}

/// Takes charge of everything that runs. Answers whether all sources could be read.
async fn adopt_all(
    config: &Config,
    ports: &Arc<Ports<QemuHypervisor, MachineResources>>,
    fleet: &Arc<LiveFleet>,
) -> bool {
    let found = adopt::find(&config.run_dir, &*ports.records);
    for (uid, name) in &found.vms {
        fleet.adopt(name.clone(), *uid);
    }
    let known = ports.board.all_known(found.vms.len());
    // One that hangs is reported as unknown; the others need not wait for it.
    let in_time = tokio::time::timeout(ADOPT_WITHIN, known).await.is_ok();
    tracing::info!(
        vms = found.vms.len(),
        in_time,
        is_complete = found.is_complete,
        "looked at what runs here"
    );
    found.is_complete
}

/// Talks to this host's guard, if it has one. What an earlier agent had listed is known before anything else is said.
fn guard(
    config: &Config,
    records: &dyn Records,
    assigned: &watch::Sender<Option<Arc<Assignment>>>,
    outbox: &Arc<Outbox>,
) -> anyhow::Result<(Arc<dyn Wards>, Option<Unattached>)> {
    let Some(path) = &config.guard else { return Ok((Arc::new(NoGuard), None)) };
    let guard = sterna_guard::Config::read(path).context("read what the guard is told")?;
    let text = std::fs::read_to_string(&guard.key).context("read the guard's key")?;
    let key = HostKey::from_text(&text).and_then(|key| key.public()).context("understand the guard's key")?;
    let identity = keeper::Identity {
        name: config.host.clone(),
        host: guard.host,
        key: GuardKey::try_from(key.to_string()).context("show the guard's key")?,
        addresses: guard.listen.clone(),
        socket: guard.socket(),
    };
    let found = adopt::find(&config.run_dir, records);
    let wards = wards(records, &found).context("read what lives under the lease")?;
    let (handle, keeper) =
        Keeper::prepare(identity, wards, assigned.subscribe(), Arc::clone(outbox) as Arc<dyn Reports>);
    Ok((Arc::new(handle), Some(keeper)))
}

/// Every copy that was under the lease and is not known to have ended.
fn wards(records: &dyn Records, found: &adopt::Found) -> std::io::Result<BTreeMap<Uuid, Ward>> {
    let mut wards = BTreeMap::new();
    for vm in records.known()? {
        let (notes, seen) = (records.notes(vm)?, records.seen(vm)?);
        let noted = notes.and_then(|notes| Some((notes.epoch, notes.lease?)));
        // Without notes it lives only if there is something of it; after a boot there is not.
        let lives = seen
            .filter(|seen| seen.exit.is_none() && found.vms.contains_key(&vm))
            .and_then(|seen| Some((seen.epoch, seen.lease?)));
        if let Some((epoch, host_epoch)) = noted.or(lives) {
            wards.insert(vm, Ward { vm, epoch, host_epoch, starting: false });
        }
    }
    Ok(wards)
}

/// What the host row tells beside the machine itself.
struct Told {
    pools: Arc<Pools>,
    networks: Arc<Networks>,
    lines: watch::Receiver<Lines>,
    guard: watch::Receiver<Option<GuardSeen>>,
}

fn host_row(config: Config, probed: Probed, told: Told) -> Arc<dyn Fn() -> Up + Send + Sync> {
    Arc::new(move || {
        let (lines, guard) = (told.lines.borrow().clone(), told.guard.borrow().clone());
        let seen = (told.pools.seen(), told.networks.tunnel_seen(), lines, guard);
        match host::report(&config, &probed, seen) {
            Ok(report) => Up::Host(Box::new(report)),
            Err(error) => Up::Event {
                kind: "host".to_owned(),
                name: config.host.clone(),
                what: "unreadable".to_owned(),
                why: format!("{error:#}"),
            },
        }
    })
}

/// What the line to the server is connected with.
struct ServerEnds {
    fleet: Arc<LiveFleet>,
    assigned: watch::Sender<Option<Arc<Assignment>>>,
    carriers: Carriers,
    consoles: Arc<Consoles>,
    board: Arc<Board>,
    storage: Storage,
    host: Arc<dyn Fn() -> Up + Send + Sync>,
    is_complete: bool,
    /// The incarnation that asked to hold, on this connection.
    held: Mutex<Option<Uuid>>,
}

impl ServerEnds {
    fn held(&self) -> MutexGuard<'_, Option<Uuid>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ends for ServerEnds {
    fn on_connected(&self) {
        *self.held() = None;
        self.fleet.on_connected();
    }

    fn on_line(&self, line: Down) {
        match line {
            Down::Assignment(assignment) => {
                let assignment = Arc::new(*assignment);
                // Parts of a copy are looked up in it as soon as the copy's task has its order.
                self.assigned.send_replace(Some(Arc::clone(&assignment)));
                // So is how fast it may go.
                self.carriers.set_paces(&assignment.paces);
                self.carriers.set_probes(&assignment);
                self.fleet.apply(&assignment);
            }
            Down::Attach { ticket, uid, end, .. } => self.consoles.attach(ticket, uid, end),
            Down::Hold { incarnation } => {
                tracing::warn!(%incarnation, "the server's store came back from a backup; every order is let go of");
                // In this order: an inventory that says so rests on it.
                self.fleet.hold();
                *self.held() = Some(incarnation);
            }
            Down::Alive => {}
        }
    }

    fn host(&self) -> Up {
        (self.host)()
    }

    fn inventory(&self) -> (bool, Up) {
        let held = *self.held();
        let (is_known, vms) = self.board.inventory();
        let volumes = self.storage.volumes().borrow().values().cloned().collect();
        let complete = is_known && self.is_complete;
        (complete, Up::Inventory { complete, vms, volumes, held })
    }
}
