//! Three real guards on this machine's loopback, each in a process of its own, and a VM that is a `sleep`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::*;
use crate::core::id::Epoch;
use crate::core::page::Page;

/// Set in the processes that are guards.
const CONFIG: &str = "STERNA_GUARD_TEST_CONFIG";

/// Not a test of its own: what the guards' processes run.
#[test]
fn guard_process() {
    if let Ok(path) = std::env::var(CONFIG) {
        run(Config::read(Path::new(&path)).unwrap()).unwrap();
    }
}

struct World {
    dir: tempfile::TempDir,
    settings: Value,
    processes: Vec<Child>,
}

impl Drop for World {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn host(n: usize) -> Uuid {
    Uuid::from_u128(n as u128 + 1)
}

impl World {
    /// Three guards that know each other and the profile `fast`, with a fake watchdog each.
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Two addresses each, all different, chosen by the kernel and given back for the guards to take.
        let held: Vec<_> = (0..6).map(|_| std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let addresses: Vec<String> = held.iter().map(|it| it.local_addr().unwrap().to_string()).collect();
        drop(held);
        let mut peers = BTreeMap::new();
        for n in 0..3 {
            let key = HostKey::generate().unwrap();
            let own = &addresses[2 * n..2 * n + 2];
            peers.insert(host(n), json!({ "key": key.public().unwrap(), "addresses": own }));
            prepare(&dir.path().join(n.to_string()), n, &key, own);
        }
        let voters: BTreeSet<_> = (0..3).map(host).collect();
        let settings = json!({
            "request": "configure", "version": 1, "voters": voters, "fencers": [], "profile": "fast", "peers": peers,
        });
        let mut world = Self { dir, settings, processes: Vec::new() };
        world.processes = (0..3).map(|n| world.spawn(n)).collect();
        world
    }

    fn spawn(&self, n: usize) -> Child {
        let config = self.dir.path().join(n.to_string()).join("guard.toml");
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "shell::tests::guard_process", "--nocapture"]).env(CONFIG, config);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    fn agent(&self, n: usize) -> Agent {
        let path = self.dir.path().join(n.to_string()).join("guard/guard.sock");
        // The process is on its way: there is nothing to wait on before its socket is there.
        let stream = loop {
            match UnixStream::connect(&path) {
                Ok(stream) => break stream,
                Err(_) => std::thread::yield_now(),
            }
        };
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        Agent { lines: BufReader::new(stream.try_clone().unwrap()), stream }
    }
}

/// A guard that was never anything else would be silent for thirty seconds: these have a page that says none are needed.
fn prepare(dir: &Path, n: usize, key: &HostKey, listen: &[String]) {
    std::fs::create_dir_all(dir.join("guard")).unwrap();
    std::fs::write(dir.join("key"), key.to_text().unwrap()).unwrap();
    let config = format!(
        "host = \"{}\"\nkey = {:?}\nrun_dir = {dir:?}\nlisten = {listen:?}\nwatchdog = {{ fake = {:?} }}\n",
        host(n),
        dir.join("key"),
        dir.join("watchdog"),
    );
    std::fs::write(dir.join("guard.toml"), config).unwrap();
    let (mut file, _) = PageFile::open(&dir.join("guard/page")).unwrap();
    let (boot, lease, membership) = (boot_id().unwrap(), None, None);
    let (last_epoch, quarantine, vms) = (Epoch(0), Duration::ZERO, Vec::new());
    file.write(&Page { boot, last_epoch, lease, membership, quarantine, vms }).unwrap();
}

/// The other end of a guard's socket.
struct Agent {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Agent {
    fn ask(&mut self, request: &Value) -> Value {
        writeln!(self.stream, "{request}").unwrap();
        self.until(|line| line.get("answer").is_some())
    }

    fn until(&mut self, is_it: impl Fn(&Value) -> bool) -> Value {
        loop {
            let mut line = String::new();
            self.lines.read_line(&mut line).unwrap();
            let value: Value = serde_json::from_str(&line).unwrap();
            if is_it(&value) {
                return value;
            }
        }
    }

    fn until_lease_is(&mut self, state: &str) {
        self.until(|line| line["report"] == "lease" && line["state"]["state"] == state);
    }

    fn join(&mut self, epoch: u64) {
        let status = self.ask(&json!({ "request": "status" }));
        let asked_at = &status["guard"]["now"];
        self.ask(&json!({ "request": "join", "epoch": epoch, "asked_at": asked_at }));
    }
}

fn stop(process: &Child) {
    let pid = rustix::process::Pid::from_child(process);
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
}

#[test]
fn a_host_whose_voters_are_gone_loses_its_lease_and_its_vm() {
    let world = World::start();
    let supervisor = UnixDatagram::bind(world.dir.path().join("0/watchdog")).unwrap();
    let mut agents: Vec<Agent> = (0..3).map(|n| world.agent(n)).collect();
    for agent in &mut agents {
        assert_eq!(agent.ask(&world.settings)["answer"], "done");
    }
    let agent = &mut agents[0];
    // Until the others have been up for as long as they promise, an epoch may run out.
    let mut epoch = 1;
    loop {
        agent.join(epoch);
        let line = agent.until(|line| line["report"] == "lease" && line["state"]["state"] != "candidate");
        if line["state"]["state"] == "held" {
            break;
        }
        epoch += 1;
    }
    let mut qemu = Command::new("sleep").arg("600").spawn().unwrap();
    let vm = Uuid::from_u128(0x1000);
    let listed = |starting: bool| {
        json!({ "request": "vms", "vms": [
            { "vm": vm, "epoch": 7, "host_epoch": epoch, "isolation": "kill", "starting": starting },
        ] })
    };
    let start = json!({ "request": "may-start", "vm": vm, "vm_epoch": 7, "host_epoch": epoch });
    assert_eq!(agent.ask(&start)["answer"], "refused", "not listed");
    assert_eq!(agent.ask(&listed(true))["answer"], "done");
    assert_eq!(agent.ask(&start)["answer"], "done");
    write_record(&world.dir.path().join("0/vm").join(vm.to_string()), vm, qemu.id());
    assert_eq!(agent.ask(&listed(false))["answer"], "done");
    let mut said = [0; 64];
    let length = supervisor.recv(&mut said).unwrap();
    assert_eq!(&said[..length], b"program 1000");

    world.processes[1..].iter().for_each(stop);
    agent.until_lease_is("expired");
    assert!(!qemu.wait().unwrap().success(), "killed, or this would take ten minutes");
    agent.until(|line| line["report"] == "gone");
    agent.until_lease_is("no-epoch");
}

fn write_record(dir: &Path, vm: Uuid, pid: u32) {
    std::fs::create_dir_all(dir).unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let started: u64 = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().parse().unwrap();
    let record = json!({
        "vm": "web-1", "uid": vm, "epoch": 7, "boot_id": boot_id().unwrap(), "shim_pid": pid,
        "shim_started": started, "qemu_pid": pid, "qemu_started": started,
    });
    std::fs::write(dir.join("run.json"), record.to_string()).unwrap();
}
