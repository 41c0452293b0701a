//! Another manager as a baseline: libvirt as Debian has it, a daemon on each of two hosts, and its own command.
//!
//! The daemons see folders of their own where libvirt has its fixed places, and users that it wants. On the machine itself
//! there are empty folders to lay them over, until the pair ends. They take no orders over the network but from each other.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use super::plain::{Machine, Place};
use super::wan::disk::qemu_img;

/// Fixed when libvirt is built.
const PLACES: [&str; 5] =
    ["/etc/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt", "/run/libvirt"];
/// What a package that also starts services would add.
const ACCOUNTS: [(&str, &str); 2] = [
    ("passwd", "libvirt-qemu:x:64055:64055::/nonexistent:/usr/sbin/nologin\n"),
    ("group", "libvirt-qemu:x:64055:\n"),
];
/// Lays the first of each two over the second, where nobody else sees it, and becomes what follows `--`.
const ENTER: &str =
    r#"set -e; while [ "$1" != -- ]; do mount --bind "$1" "$2"; shift 2; done; shift; exec "$@""#;
/// Of a machine that is given no device to look at, and of a QEMU that runs as who started the daemon.
const QEMU: &str = r#"user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
"#;
const DOMAIN: &str = "by-libvirt";
const DISK: &str = "disk.qcow2";
const STARTS: Duration = Duration::from_secs(60);

/// Two daemons and the guest that they have.
pub struct Pair {
    sides: [Side; 2],
    /// Where both see a disk of the guest, each its own.
    disks: PathBuf,
    _made: Made,
}

/// Places that the machine did not have. Dropped last: the daemons are over them until they end.
struct Made(Vec<PathBuf>);

impl Drop for Made {
    fn drop(&mut self) {
        for place in &self.0 {
            // One that is not empty is somebody's by now.
            let _ = std::fs::remove_dir(place);
        }
    }
}

struct Side {
    folder: PathBuf,
    place: Place,
    daemon: Child,
}

impl Pair {
    pub async fn start(folder: &Path, places: [Place; 2]) -> Result<Self> {
        let made = Made(PLACES.iter().map(PathBuf::from).filter(|place| !place.exists()).collect());
        let disks = folder.join("disks");
        for folder in made.0.iter().chain([&disks]) {
            std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        }
        let [first, last] = places;
        let sides = [
            Side::start(folder.join("first"), first, &disks)?,
            Side::start(folder.join("last"), last, &disks)?,
        ];
        let pair = Self { sides, disks, _made: made };
        for side in &pair.sides {
            side.answers().await?;
        }
        Ok(pair)
    }

    /// What the daemons say they are.
    pub async fn version(&self) -> Result<String> {
        let text = self.sides[0].virsh(&["version", "--daemon"]).await?;
        let daemon = text.lines().find_map(|line| line.strip_prefix("Running against daemon: "));
        Ok(daemon.unwrap_or("unknown").to_owned())
    }

    /// Boots a guest on the first host from a disk of its own, and gives the other an empty disk of that size: libvirt
    /// makes one only in a pool that it manages.
    pub async fn boot(&self, machine: &Machine, size: u64) -> Result<()> {
        let [first, last] = &self.sides;
        let disk = machine.disk.to_string_lossy();
        qemu_img(&["convert", "-O", "qcow2", &disk, &first.disk()]).await?;
        qemu_img(&["create", "-q", "-f", "qcow2", &last.disk(), &size.to_string()]).await?;
        let description = first.folder.join("guest.xml");
        let text = description_of(machine, &first.place, &self.disks.join(DISK))?;
        std::fs::write(&description, text).context("describe the guest")?;
        first.virsh(&["create", &description.to_string_lossy()]).await.map(drop)
    }

    /// Moves the guest with its disk to the other host; `false`: it was given up.
    pub async fn migrate(&self, patience: Duration) -> Result<bool> {
        let [first, last] = &self.sides;
        let (address, way) = (last.place.address, ["--live", "--p2p", "--copy-storage-all"]);
        let (to, by) = (format!("qemu+tcp://{address}/system"), format!("tcp://{address}"));
        let words = [&["migrate"][..], &way, &[DOMAIN, &to, &by]].concat();
        match timeout(patience, first.virsh(&words)).await {
            Ok(moved) => moved.map(|_| true),
            Err(_) => first.virsh(&["domjobabort", DOMAIN]).await.map(|_| false),
        }
    }

    /// Ends the guest, wherever it is, and its disks.
    pub async fn destroy(&self) -> Result<()> {
        for side in &self.sides {
            // It is on one of them.
            let _ = side.virsh(&["destroy", DOMAIN]).await;
            sterna_base::file::remove_if_there(Path::new(&side.disk())).context("remove the disk")?;
        }
        Ok(())
    }

    /// Leaves nothing on the machine.
    pub async fn end(mut self) -> Result<()> {
        self.destroy().await?;
        for side in &mut self.sides {
            side.daemon.kill().await.context("end libvirt's daemon")?;
        }
        Ok(())
    }
}

impl Side {
    fn start(folder: PathBuf, place: Place, disks: &Path) -> Result<Self> {
        let binds = prepare(&folder, &place, disks)?;
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &place.namespace, "sh", "-c", ENTER, "sh"]);
        for (from, onto) in &binds {
            command.args([from, onto]);
        }
        let log = std::fs::File::create(folder.join("log")).context("make a log")?;
        command.args(["--", "libvirtd", "--listen", "--config"]).arg(folder.join("etc/libvirtd.conf"));
        command.arg("--pid-file").arg(folder.join("run/libvirtd.pid"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).kill_on_drop(true);
        let daemon = command.spawn().context("start libvirt's daemon")?;
        Ok(Self { folder, place, daemon })
    }

    fn disk(&self) -> String {
        self.folder.join("disks").join(DISK).to_string_lossy().into_owned()
    }

    async fn answers(&self) -> Result<()> {
        let until = Instant::now() + STARTS;
        while let Err(error) = self.virsh(&["uri"]).await {
            let log = self.folder.join("log");
            ensure!(Instant::now() < until, "libvirt does not start ({}): {error:#}", log.display());
            sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }

    async fn virsh(&self, words: &[&str]) -> Result<String> {
        let socket = self.folder.join("run/libvirt-sock");
        let mut command = Command::new("virsh");
        command.args(["--connect", &format!("qemu+unix:///system?socket={}", socket.display())]).args(words);
        let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await;
        let output = output.context("run virsh; its package is libvirt-clients")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "virsh {}: {}", words.join(" "), said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// Makes a daemon's folders; which goes over which.
fn prepare(folder: &Path, place: &Place, disks: &Path) -> Result<Vec<(PathBuf, PathBuf)>> {
    let mut binds = Vec::new();
    for (name, fixed) in ["etc", "lib", "cache", "logs", "run"].into_iter().zip(PLACES) {
        binds.push((folder.join(name), PathBuf::from(fixed)));
    }
    binds.push((folder.join("disks"), disks.to_owned()));
    for (own, _) in &binds {
        std::fs::create_dir_all(own).with_context(|| format!("make {}", own.display()))?;
    }
    for (file, line) in ACCOUNTS {
        let (own, machines) = (folder.join(file), Path::new("/etc").join(file));
        let mut accounts = std::fs::read_to_string(&machines).context("read the machine's accounts")?;
        if !accounts.contains("\nlibvirt-qemu:") {
            accounts.push_str(line);
        }
        std::fs::write(&own, accounts).context("write accounts")?;
        binds.push((own, machines));
    }
    std::fs::write(folder.join("etc/qemu.conf"), QEMU).context("write qemu.conf")?;
    std::fs::write(folder.join("etc/libvirtd.conf"), daemon(place, folder)?)
        .context("write libvirtd.conf")?;
    Ok(binds)
}

/// Each daemon is of another machine: libvirt refuses to migrate to the same one.
fn daemon(place: &Place, folder: &Path) -> Result<String> {
    let mut text = String::from("listen_tls = 0\nlisten_tcp = 1\nauth_tcp = \"none\"\n");
    text.push_str("auth_unix_rw = \"none\"\nauth_unix_ro = \"none\"\n");
    let identifier = std::fs::read_to_string("/proc/sys/kernel/random/uuid").context("make a UUID")?;
    writeln!(text, "listen_addr = \"{}\"\nhost_uuid = \"{}\"", place.address, identifier.trim())?;
    writeln!(text, "unix_sock_dir = \"{}\"", folder.join("run").display())?;
    Ok(text)
}

/// The same machine as `plain` has it.
fn description_of(machine: &Machine, place: &Place, disk: &Path) -> Result<String> {
    let program = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .map(|folder| folder.join(&machine.program))
        .find(|program| program.is_file())
        .context("find QEMU")?;
    let (program, disk) = (program.display(), disk.display());
    let Machine { machine: kind, cpu_model, memory_kib, mac, .. } = machine;
    let Place { bridge, mtu, .. } = place;
    Ok(format!(
        "<domain type='qemu'>
  <name>{DOMAIN}</name>
  <memory unit='KiB'>{memory_kib}</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='{kind}'>hvm</type></os>
  <features><acpi/><smm state='off'/><vmport state='off'/></features>
  <cpu mode='custom' match='exact' check='none'><model fallback='forbid'>{cpu_model}</model></cpu>
  <clock offset='utc'><timer name='hpet' present='no'/></clock>
  <devices>
    <emulator>{program}</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none'/>
      <source file='{disk}'/><target dev='vda' bus='virtio'/><boot order='1'/>
    </disk>
    <controller type='usb' model='none'/>
    <interface type='bridge'>
      <mac address='{mac}'/><source bridge='{bridge}'/><model type='virtio'/><mtu size='{mtu}'/>
    </interface>
    <serial type='null'/>
    <memballoon model='none'/>
  </devices>
</domain>
"
    ))
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    fn place() -> Place {
        let address = IpAddr::from(Ipv4Addr::new(10, 0, 0, 1));
        Place { namespace: "space".into(), bridge: "bridge0".into(), mtu: 1400, address }
    }

    #[test]
    fn a_daemon_sees_folders_of_its_own_where_libvirt_has_its_places() {
        let folder = tempfile::tempdir().unwrap();
        let binds = prepare(folder.path(), &place(), Path::new("/disks")).unwrap();
        for fixed in PLACES.iter().chain(&["/disks", "/etc/passwd", "/etc/group"]) {
            let (own, _) = binds.iter().find(|(_, onto)| onto == Path::new(fixed)).unwrap();
            assert!(own.starts_with(folder.path()) && own.exists(), "{fixed}");
        }
        let accounts = std::fs::read_to_string(folder.path().join("passwd")).unwrap();
        assert_eq!(accounts.matches("libvirt-qemu:").count(), 1);
        assert!(accounts.starts_with(&std::fs::read_to_string("/etc/passwd").unwrap()));
    }

    #[test]
    fn two_daemons_are_of_two_machines() {
        let [one, other] = [(), ()].map(|()| daemon(&place(), Path::new("/run")).unwrap());
        assert!(one.contains("listen_addr = \"10.0.0.1\""));
        assert_ne!(one, other);
    }
}
