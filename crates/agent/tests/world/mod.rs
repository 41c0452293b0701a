//! A host for tests: the real tasks, the real shim and QEMU, with disks from files and a server that only listens.
#![allow(clippy::unwrap_used, dead_code)]

/// Hosts that know each other.
pub mod certificates;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sterna_agent::hypervisor::{Opened, Parts};
use sterna_agent::process::Process;
use sterna_agent::qemu_hypervisor::{QemuHypervisor, Settings};
use sterna_agent::resources::{NotReady, Resources, Whose};
use sterna_agent::vm::board::Board;
use sterna_agent::vm::fleet::Fleet;
use sterna_agent::vm::record::Files;
use sterna_agent::vm::{Guests, Ports, Reports, adopt};
use sterna_base::clock::SystemClock;
use sterna_base::scope::Scope;
use sterna_base::units::{Bytes, Span};
use sterna_model::cpu::Accel;
use sterna_model::image;
use sterna_model::meta::Name;
use sterna_model::vm::{CopyState, Hardware, Power, VmReport};
use sterna_qemu::config::{Backing, Format, Source};
use sterna_qemu::version::Version;
use sterna_wire::assignment::{Assignment, Disk, Machine, Owner, Role, VmAssignment};
use sterna_wire::shim::RunRecord;
use sterna_wire::up::Up;
use tokio::sync::watch;
use uuid::Uuid;

const RUN_AS: u32 = 64_711;

pub fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// The QEMU of a major version, or `None` after a line that says so. With `STERNA_REQUIRE_QEMU=1` a missing one fails
/// the test.
pub fn qemu(major: u16) -> Option<(PathBuf, Version)> {
    let variable = if major == 7 { "STERNA_QEMU_72" } else { "STERNA_QEMU_100" };
    let path = std::env::var_os(variable).map_or_else(|| PathBuf::from("qemu-system-x86_64"), PathBuf::from);
    let path = sterna_agent::process::find_program(&path);
    let output = std::process::Command::new(&path).arg("--version").output().ok();
    let version = output.and_then(|output| Version::from_banner(&String::from_utf8_lossy(&output.stdout)));
    match version {
        Some(version) if version.major == major => Some((path, version)),
        other => {
            let is = other.map_or_else(|| "missing".to_owned(), |version| version.to_string());
            let line = format!("needs QEMU {major}.x, but {} is {is}; set {variable}", path.display());
            assert!(std::env::var_os("STERNA_REQUIRE_QEMU").is_none_or(|value| value != "1"), "{line}");
            eprintln!("not run: {line}");
            None
        }
    }
}

/// Waits until the condition holds. Long, since emulated guests of several tests share a busy machine.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "not within 60 s: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A folder that QEMU's user may pass through.
pub fn folder() -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("sa-").tempdir_in("/var/tmp").unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    folder
}

/// A disk with this boot sector that QEMU's user may write.
pub fn disk(folder: &Path, sector: &sterna_qemu::boot::Sector) -> PathBuf {
    let disk = folder.join("disk.img");
    sterna_qemu::boot::write_disk(&disk, sector, 1 << 20).unwrap();
    std::fs::set_permissions(&disk, std::fs::Permissions::from_mode(0o666)).unwrap();
    disk
}

/// What a qcow2 disk is a clone of, in the same folder.
pub const IMAGE: &str = "image.raw";

/// Every VM has this one disk, but for those that have one of their own beside it.
pub struct OneDisk(pub PathBuf);

/// The disk of one VM alone.
pub fn own_disk(disk: &Path, vm: Uuid) -> PathBuf {
    disk.with_file_name(format!("{vm}.img"))
}

impl Resources for OneDisk {
    async fn prepare(&self, whose: &Whose, _machine: &Machine) -> Result<Parts, NotReady> {
        let own = own_disk(&self.0, whose.uid);
        let path = if own.exists() { own } else { self.0.clone() };
        let file = |path: PathBuf| Source::File { path };
        // One that is no raw disk lies above this image.
        let image = Backing { format: Format::Raw, source: file(path.with_file_name(IMAGE)) };
        let is_overlay = path.extension().is_some_and(|end| end == "qcow2");
        let (format, backing) = if is_overlay { (Format::Qcow2, vec![image]) } else { (Format::Raw, vec![]) };
        let opened = Opened { format, source: file(path), backing };
        Ok(Parts { disks: vec![opened], ..Parts::default() })
    }

    async fn release(&self, _uid: Uuid, _taps: &[String]) {}
}

/// What the server would have heard.
#[derive(Default)]
pub struct Heard {
    pub newest: Mutex<BTreeMap<Uuid, Option<VmReport>>>,
    pub states: Mutex<Vec<CopyState>>,
}

impl Reports for Heard {
    fn report(&self, up: Up) {
        if let Up::Vm(seen) = up {
            self.states.lock().unwrap().extend(seen.report.iter().map(|report| report.state.clone()));
            self.newest.lock().unwrap().insert(seen.uid, seen.report);
        }
    }
}

pub struct Host {
    folder: PathBuf,
    pub heard: Arc<Heard>,
    pub fleet: Arc<Fleet<QemuHypervisor, OneDisk>>,
    pub ports: Arc<Ports<QemuHypervisor, OneDisk>>,
    pub line: watch::Sender<bool>,
    revision: std::cell::Cell<u64>,
    scope: Scope,
    qemu: (PathBuf, Version),
    disk: PathBuf,
}

impl Host {
    /// An agent on the host whose files are in `folder`; takes charge of what runs there.
    pub fn start(folder: &Path, qemu: &(PathBuf, Version), disk: &Path) -> Self {
        // For whoever looks for the reason of a failure.
        if std::env::var_os("STERNA_LOG").is_some() {
            sterna_base::log::init(sterna_base::log::Format::Text);
        }
        std::fs::create_dir_all(folder).unwrap();
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o711)).unwrap();
        let files = Files::open(&folder.join("data"), &folder.join("run")).unwrap();
        let (heard, line, scope) = (Arc::new(Heard::default()), watch::Sender::new(true), Scope::new());
        let ports = Arc::new(Ports {
            hypervisor: QemuHypervisor::new(
                Settings {
                    run_dir: folder.join("run"),
                    qemu: qemu.0.clone(),
                    version: qemu.1,
                    run_as_uid: RUN_AS,
                    run_as_gid: RUN_AS,
                    groups: vec![],
                    shim: vec!["/bin/sh".into(), shim_script(folder).into()],
                },
                certificates::carriers(folder, &scope),
            ),
            resources: OneDisk(disk.to_owned()),
            records: Arc::new(files),
            clock: Arc::new(SystemClock),
            reports: Arc::clone(&heard) as Arc<dyn Reports>,
            board: Arc::new(Board::default()),
            guests: Guests::default(),
            link: line.subscribe(),
            wards: Arc::new(sterna_agent::guard::NoGuard),
        });
        let fleet = Fleet::new(Arc::clone(&ports), scope.clone());
        let found = adopt::find(&folder.join("run"), &*ports.records);
        assert!(found.is_complete);
        for (uid, name) in found.vms {
            fleet.adopt(name, uid);
        }
        Self {
            folder: folder.to_owned(),
            heard,
            fleet,
            ports,
            line,
            revision: std::cell::Cell::new(1),
            scope,
            qemu: qemu.clone(),
            disk: disk.to_owned(),
        }
    }

    /// The agent ends without a word, as after SIGKILL, and another one starts.
    pub async fn restart(self) -> Self {
        self.restart_after(|| {}).await
    }

    /// The same; this is done while there is none.
    pub async fn restart_after(self, meanwhile: impl FnOnce()) -> Self {
        let (folder, qemu, disk) = (self.folder.clone(), self.qemu.clone(), self.disk.clone());
        self.scope.shut_down().await;
        drop(self);
        meanwhile();
        Self::start(&folder, &qemu, &disk)
    }

    pub fn order(&self, vms: Vec<VmAssignment>) {
        self.revision.set(self.revision.get() + 1);
        let revision = self.revision.get();
        let assignment = Assignment {
            revision,
            host: name("h"),
            vms,
            networks: vec![],
            pools: vec![],
            volumes: vec![],
            tunnel: None,
            paces: Vec::new(),
            probes: Vec::new(),
            probed: None,
            guard: None,
        };
        self.fleet.apply(&assignment);
    }

    pub fn report(&self, uid: Uuid) -> Option<VmReport> {
        self.heard.newest.lock().unwrap().get(&uid).cloned().flatten()
    }

    pub fn state(&self, uid: Uuid) -> Option<CopyState> {
        self.report(uid).map(|report| report.state)
    }

    pub fn side(&self, uid: Uuid) -> Option<sterna_model::migration::SideState> {
        self.report(uid).and_then(|report| report.migration).map(|migration| migration.side)
    }

    pub async fn runs(&self, uid: Uuid, epoch: u64) {
        eventually("the guest runs", || {
            self.report(uid).is_some_and(|report| report.epoch == epoch && report.state == CopyState::Running)
        })
        .await;
    }

    #[allow(dead_code)]
    pub fn disk(&self) -> &Path {
        &self.disk
    }

    #[allow(dead_code)]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn machine(&self) -> Machine {
        machine_of(self.qemu.1)
    }

    pub fn owner(&self) -> Owner {
        owner_of(self.machine())
    }

    pub fn run_record(&self, uid: Uuid) -> Option<RunRecord> {
        let path = sterna_agent::qemu_hypervisor::directory(&self.folder.join("run"), uid).join("run.json");
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }

    pub fn qemu_process(&self, uid: Uuid) -> Process {
        let record = self.run_record(uid).unwrap();
        Process { pid: record.qemu_pid, started: record.qemu_started }
    }

    pub fn shim_process(&self, uid: Uuid) -> Process {
        let record = self.run_record(uid).unwrap();
        Process { pid: record.shim_pid, started: record.shim_started }
    }

    pub fn run_directory(&self, uid: Uuid) -> PathBuf {
        sterna_agent::qemu_hypervisor::directory(&self.folder.join("run"), uid)
    }
}

/// Nothing is left of a test, also when it fails.
impl Drop for Host {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for (uid, pid) in sterna_agent::process::of_vms(&self.folder.join("run/vm")).unwrap_or_default() {
            eprintln!("left: {uid} {pid}");
            if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

/// Starts this test program as a shim: the launch file goes where the harness looks for a test to skip.
pub fn shim_script(folder: &Path) -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let script = folder.join("shim.sh");
    let text = format!(
        "exec '{}' shim_entry --exact --nocapture -q --test-threads=1 --skip \"$1\"\n",
        program.display()
    );
    std::fs::write(&script, text).unwrap();
    script
}

/// The body of a test called `shim_entry`: does nothing unless it was started by [`shim_script`].
pub fn shim_entry() {
    let args: Vec<String> = std::env::args().collect();
    let Some(at) = args.iter().position(|arg| arg == "--skip") else { return };
    match sterna_shim::run(Path::new(&args[at + 1])) {
        Ok(()) => std::process::exit(0),
        Err(error) => {
            eprintln!("{error:#}");
            std::process::exit(1);
        }
    }
}

pub fn order(uid: Uuid, epoch: u64, role: Role) -> VmAssignment {
    VmAssignment { name: name("web"), uid, epoch, role }
}

pub fn owns(uid: Uuid, epoch: u64, owner: Owner) -> VmAssignment {
    order(uid, epoch, Role::Owner(Box::new(owner)))
}

pub fn machine_of(version: Version) -> Machine {
    let hardware = Hardware {
        machine: format!("pc-q35-{}.{}", version.major, version.minor),
        cpu_model: "qemu64".into(),
        accel: Accel::Tcg,
        cpus: 1,
        // No multiple of 256 KiB: right on every version.
        memory: Bytes(16_376 << 10),
        volumes: vec![name("web-boot")],
        nics: vec![],
        watchdog: false,
    };
    let disk = Disk {
        volume: name("web-boot"),
        uid: Uuid::from_u128(8),
        pool: name("p"),
        format: image::Format::Raw,
        image: None,
    };
    Machine { hardware, disks: vec![disk], cloud_init: None }
}

pub fn owner_of(machine: Machine) -> Owner {
    Owner {
        machine,
        power: Power::Running,
        reset_request: 0,
        shutdown_timeout: Span::from_millis(200),
        continues: None,
        adopts: None,
        outgoing: None,
        restart_here: None,
        health: None,
        host_epoch: None,
    }
}

/// The QEMU that runs a VM under an agent whose run directory is below `folder`.
pub fn qemu_of(folder: &Path, uid: Uuid) -> Process {
    let path = sterna_agent::qemu_hypervisor::directory(&folder.join("run"), uid).join("run.json");
    let record: RunRecord = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    Process { pid: record.qemu_pid, started: record.qemu_started }
}
