//! A machine made of namespaces. It ends, with every process in it, when its [`Machine`] is dropped or when this
//! process ends in any way: its first process lives only as long as a pipe from here is open.

#![allow(dead_code)] // Not every file of tests needs all of it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A command that takes longer hangs.
const PATIENCE_S: &str = "150";
const START: Duration = Duration::from_secs(20);

/// Runs as process 1. `$1`: its folder, `$2`: its name. It also waits for whoever has lost his parent.
const FIRST: &str = r#"
set -e
exec 3<&0
hostname "$2"
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/bin
for file in sterna tiny.qcow2; do
    touch "/run/bin/$file"
    mount --bind "$1/$file" "/run/bin/$file"
done
touch "$1/ready"
mount --bind "$1/etc" /etc
mount --bind "$1/home" /home
mount --bind "$1/var" /var/lib
ip link set lo up
cat <&3 >/dev/null &
wait $!
"#;

pub struct Machine {
    first: Child,
    /// Removed last.
    _dir: tempfile::TempDir,
}

/// What a command printed, and how it ended.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub data: String,
    pub talk: String,
}

impl Machine {
    pub fn start(name: &str) -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let at = |name: &str| dir.path().join(name);
        for folder in ["etc", "home", "var"] {
            std::fs::create_dir(at(folder)).unwrap();
        }
        // Another build may replace the binary while the test runs.
        std::fs::hard_link(env!("CARGO_BIN_EXE_sterna"), at("sterna")).unwrap();
        std::fs::hard_link(image(), at("tiny.qcow2"))
            .or_else(|_| std::fs::copy(image(), at("tiny.qcow2")).map(drop))
            .unwrap();
        expect(Command::new("cp").args(["-a", "/etc/."]).arg(at("etc")));
        let mut command = Command::new("unshare");
        command.args([
            "--mount",
            "--net",
            "--uts",
            "--pid",
            "--fork",
            "--mount-proc",
            "--propagation",
            "private",
        ]);
        command.args(["sh", "-c", FIRST, "sh"]).arg(dir.path()).arg(name);
        let first = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let machine = Self { first, _dir: dir };
        let deadline = Instant::now() + START;
        while machine.run("mountpoint -q /var/lib && ip link show lo up | grep -q lo").code != 0 {
            assert!(Instant::now() < deadline, "machine {name} does not start");
            std::thread::yield_now();
        }
        machine
    }

    /// A cable between two machines.
    pub fn connect(&self, other: &Machine, [here, there]: [&str; 2]) {
        // Not as one of its own processes: there, the other's have no numbers.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.first.id()));
        command.args(["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns"]);
        expect(command.arg(other.first.id().to_string()));
        for (machine, address) in [(self, here), (other, there)] {
            machine
                .ok(&format!("ip address add {address}/24 dev eth0 && ip link set eth0 addrgenmode none up"));
        }
    }

    /// Runs a line as root would type it on this machine.
    pub fn run(&self, line: &str) -> Ran {
        let of = |space: &str| format!("/proc/{}/ns/{space}", self.first.id());
        let mut command = Command::new("timeout");
        command.args(["-k", "5", PATIENCE_S, "nsenter"]);
        command.arg(format!("--net={}", of("net"))).arg(format!("--uts={}", of("uts")));
        command.arg(format!("--mount={}", of("mnt"))).arg(format!("--pid={}", of("pid_for_children")));
        command.args(["sh", "-c", line]).stdin(Stdio::null()).current_dir("/");
        command.env_clear().env("HOME", "/home").env("PATH", "/run/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        let Output { status, stdout, stderr } = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ran { code: status.code().unwrap_or(-1), data: text(stdout), talk: text(stderr) }
    }

    /// Runs a line that must succeed; what it printed.
    pub fn ok(&self, line: &str) -> String {
        let ran = self.run(line);
        assert_eq!(ran.code, 0, "{line}: {}", ran.talk);
        ran.data
    }

    pub fn json(&self, line: &str) -> serde_json::Value {
        let text = self.ok(line);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{line}: {error}: {text}"))
    }

    pub fn eventually(&self, what: &str, holds: impl Fn() -> bool) {
        let deadline = Instant::now() + START;
        while !holds() {
            assert!(Instant::now() < deadline, "not in time: {what}\n{}", self.logs());
        }
    }

    /// All that Sterna could leave behind, each thing in a line.
    pub fn everything(&self) -> BTreeSet<String> {
        let processes = "ps axo args | grep -v -e '^ps ' -e '^sh -c ps ' -e '^grep '";
        let files = "find /etc /home /run /var/lib -printf '%M %p\\n'";
        let devices =
            "ip -o link | cut -d' ' -f2; ip -o address | tr -s ' ' | cut -d' ' -f2-4; ip route; ip rule";
        let others = "nft list ruleset; cat /proc/sys/net/ipv4/ip_forward /proc/mounts";
        let told = [processes, files, devices, others].map(|line| self.ok(line));
        told.iter().flat_map(|text| text.lines()).map(str::to_owned).collect()
    }

    /// What its services wrote, for the one who looks for a failure.
    pub fn logs(&self) -> String {
        self.run("tail -n 40 /run/sterna/*.log").data
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.first.stdin.take());
        // It is gone only after everything in it.
        let _ = self.first.wait();
    }
}

fn image() -> PathBuf {
    let usual = || concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/images/tiny.qcow2").into();
    let image = std::env::var_os("STERNA_TINY_IMAGE").map_or_else(usual, PathBuf::from);
    assert!(image.is_file(), "there is no guest image at {}; make it with `./dev image`", image.display());
    image
}

fn expect(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}");
}
