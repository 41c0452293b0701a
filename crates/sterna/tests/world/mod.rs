//! The binary in a folder of its own: everything it writes lies there, everything it starts ends with the test.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.
#![allow(dead_code)] // Not every file of tests needs all of it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

pub const BINARY: &str = env!("CARGO_BIN_EXE_sterna");

pub struct World {
    dir: tempfile::TempDir,
    pub port: u16,
    children: Vec<Child>,
    /// The network namespace that its commands run in.
    space: Option<String>,
}

/// What a command printed, and how it ended.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub data: String,
    pub talk: String,
}

impl World {
    pub fn new() -> Self {
        // A port that was free a moment ago; the server takes it at once.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self { dir: tempfile::tempdir().unwrap(), port, children: Vec::new(), space: None }
    }

    /// The same in a network namespace of its own; needs root.
    pub fn apart() -> Self {
        let space = format!("sterna-install-{}", std::process::id());
        run("ip", &["netns", "add", &space]);
        run("ip", &["-n", &space, "link", "set", "lo", "up"]);
        let mut world = Self::new();
        world.space = Some(space);
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn command(&self, line: &str) -> Command {
        let mut command = match &self.space {
            None => Command::new(BINARY),
            Some(space) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", space, BINARY]);
                command
            }
        };
        command.args(line.split_whitespace()).env("STERNA_CONFIG", self.path("cli/config.toml"));
        command.stdin(Stdio::null());
        command
    }

    pub fn sterna(&self, line: &str) -> Ran {
        let Output { status, stdout, stderr } = self.command(line).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ran { code: status.code().unwrap_or(-1), data: text(stdout), talk: text(stderr) }
    }

    /// Runs a command that must succeed; its stdout.
    pub fn ok(&self, line: &str) -> String {
        let ran = self.sterna(line);
        assert_eq!(ran.code, 0, "{line}: {ran:?}");
        ran.data
    }

    /// `server init` into the folder, nothing started.
    pub fn init(&self, more: &str) -> Ran {
        let dir = self.dir.path().display();
        self.sterna(&format!(
            "server init --no-start --listen 127.0.0.1:{} --data-dir {dir}/server --config-out {dir}/server.toml \
             --agent-data-dir {dir}/agent --agent-config-out {dir}/agent.toml --run-dir {dir}/run {more}",
            self.port
        ))
    }

    pub fn start(&mut self, line: &str) {
        let child = self.command(line).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        self.children.push(child);
    }

    /// Starts the server and waits until it answers.
    pub fn serve(&mut self) {
        let settings = self.path("server.toml");
        self.start(&format!("server run --settings {}", settings.display()));
        self.eventually("the server answers", |world| world.sterna("server status").code == 0);
    }

    pub fn eventually(&self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !holds(self) {
            assert!(Instant::now() < deadline, "not in time: {what}");
            std::thread::yield_now();
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Some(space) = &self.space {
            run("ip", &["netns", "del", space]);
        }
    }
}

fn run(program: &str, args: &[&str]) {
    let status = Command::new(program).args(args).status().unwrap();
    assert!(status.success(), "{program} {args:?}");
}

pub fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}
