//! A lab of its own for a test: another name, net and folder. Gone when dropped, also after a panic.

#![allow(dead_code)] // Not every file of tests needs all of it.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use sterna_lab::netns;
use sterna_lab::place::{Host, Lab};
use sterna_lab::probe::Stop;

pub struct World {
    dir: tempfile::TempDir,
    pub name: String,
    net: String,
}

impl World {
    /// `letter` and `second` (of the net) keep tests that run at the same time apart.
    pub fn new(letter: char, second: u8) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let name = format!("lt{letter}{}", std::process::id());
        Self { dir, name, net: format!("10.{second}.0.0/16") }
    }

    pub fn up(letter: char, second: u8) -> Self {
        Self::up_with(letter, second, &[])
    }

    pub fn up_with(letter: char, second: u8, args: &[&str]) -> Self {
        let world = Self::new(letter, second);
        world.expect(&[&["up", "--network-only"], args].concat());
        world
    }

    /// Runs `sterna-lab lab VERB ...` on this lab.
    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sterna-lab"));
        command
            .arg("lab")
            .args(args)
            .args(["--name", &self.name])
            .arg("--dir")
            .arg(self.dir.path().join("lab"));
        if args[0] == "up" {
            command.args(["--net", &self.net, "--port", "17443"]);
        }
        command
    }

    pub fn expect(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {error}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.expect(&[args, &["--json"]].concat())).unwrap()
    }

    pub fn lab(&self) -> Lab {
        Lab::load(&self.lab_dir()).unwrap().unwrap()
    }

    pub fn lab_dir(&self) -> PathBuf {
        self.dir.path().join(format!("lab-{}", self.name))
    }

    /// Whatever of this lab is on the machine.
    pub fn left(&self) -> Vec<String> {
        let shown = |args: &[&str]| {
            String::from_utf8(Command::new("ip").args(args).output().unwrap().stdout).unwrap()
        };
        let lines = shown(&["netns", "list"]) + &shown(&["-o", "link", "show"]);
        let mut left: Vec<_> = lines
            .lines()
            .filter(|line| line.contains(&format!("{}-", self.name)))
            .map(str::to_owned)
            .collect();
        let members = sterna_lab::member::all(&self.lab_dir());
        left.extend(members.iter().map(|member| format!("{} {}", member.pid, member.line)));
        let run_root = PathBuf::from(format!("/run/{}-lab", self.name));
        left.extend(
            [self.lab_dir(), run_root].iter().filter(|dir| dir.exists()).map(|dir| dir.display().to_string()),
        );
        left
    }

    /// Answers datagrams on port 7 of a host, as a guest does.
    pub fn echo(&self, host: Host) -> Echo {
        let stop = Stop::default();
        let stopped = stop.clone();
        let socket = self.socket(host, 7);
        let thread = std::thread::spawn(move || {
            let mut datagram = [0; 2048];
            while !stopped.is_stopped() {
                if let Ok((length, from)) = socket.recv_from(&mut datagram) {
                    let _ = socket.send_to(&datagram[..length], from);
                }
            }
        });
        Echo { stop, thread: Some(thread) }
    }

    pub fn socket(&self, host: Host, port: u16) -> UdpSocket {
        let space = self.lab().host_space(host);
        let bound = netns::inside(Some(&space), move || {
            let socket = UdpSocket::bind(("0.0.0.0", port))?;
            socket.set_read_timeout(Some(Duration::from_millis(100)))?;
            Ok(socket)
        });
        bound.unwrap().join().unwrap().unwrap()
    }

    pub fn address(&self, host: Host, port: u16) -> SocketAddr {
        (IpAddr::V4(self.lab().host_address(host)), port).into()
    }
}

/// Answers until it is dropped; the port is free then.
pub struct Echo {
    stop: Stop,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.stop();
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let output = self.run(&["down"]);
        if !std::thread::panicking() {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            assert_eq!(self.left(), Vec::<String>::new());
        }
    }
}

pub fn host(name: &str) -> Host {
    let number = name[1..].parse().unwrap();
    Host { site: name[..1].parse().unwrap(), number }
}

/// Polls until `condition` holds; fails after 10 s.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "not within 10 s: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
