//! QEMU's storage daemon as a process: started once, found again by the next agent, ended with its pool.
//!
//! Both of its listening sockets are opened here and handed over (the network one as its standard input, the one for
//! commands as its standard output): the daemon runs as an unprivileged user that could make neither, and its port is
//! known before it starts. It must outlive the agent, so nothing ties it to us; the next agent knows it by two words
//! in its environment, which only root and its own user can read.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal};
use sterna_base::file;
use sterna_qemu::qmp::{self, Client};
use tokio::net::UnixStream;
use tokio::process::Command;

use super::super::error::{Error, blocking};
use super::super::folder::User;

/// Names the folder of the pool's server in the daemon's environment.
const MARK: &str = "STERNA_NBD";
const MARK_PORT: &str = "STERNA_NBD_PORT";

/// The port registered for network block devices; the first free one from here is taken and kept.
pub const PORT_FIRST: u16 = 10_809;
const PORTS: u16 = 100;

/// A daemon opens no file before it answers.
const START_DEADLINE: Duration = Duration::from_secs(10);

/// What a killed daemon may take to be gone.
const END_DEADLINE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
pub struct Settings {
    pub program: PathBuf,
    /// For the command socket and the log; of this pool alone.
    pub run_dir: PathBuf,
    /// Keeps the port over a restart.
    pub port_file: PathBuf,
    /// The host's address for storage.
    pub address: IpAddr,
    pub user: User,
}

impl Settings {
    fn socket(&self) -> PathBuf {
        self.run_dir.join("qmp.sock")
    }
}

pub struct Daemon {
    pub qmp: Client,
    pub port: u16,
}

/// The daemon of this pool: the one that runs, or a new one.
pub async fn ensure(settings: &Settings) -> Result<Daemon, Error> {
    if let Some(found) = find(settings).await? {
        let qmp = connect(settings).await?;
        tracing::info!(pid = found.pid, port = found.port, "storage daemon adopted");
        return Ok(Daemon { qmp, port: found.port });
    }
    let port = start(settings).await?;
    Ok(Daemon { qmp: connect(settings).await?, port })
}

/// Ends the daemon, if there is one, and waits until it is gone.
pub async fn end(settings: &Settings) -> Result<(), Error> {
    let Some(found) = find(settings).await? else { return Ok(()) };
    let what = "end the storage daemon";
    rustix::process::pidfd_send_signal(&found.handle, Signal::KILL)
        .map_err(|error| Error::io(what)(error.into()))?;
    let gone = blocking(move || wait_gone(&found.handle)).await;
    if gone { Ok(()) } else { Err(Error::not_yet("the storage daemon does not end")) }
}

fn wait_gone(handle: &OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let limit = Timespec { tv_sec: i64::try_from(END_DEADLINE.as_secs()).unwrap_or(10), tv_nsec: 0 };
    poll(&mut [PollFd::new(handle, PollFlags::IN)], Some(&limit)).is_ok_and(|ready| ready > 0)
}

/// A running daemon. The handle is of this very process, whatever becomes of its number.
struct Found {
    pid: i32,
    handle: OwnedFd,
    port: u16,
}

async fn find(settings: &Settings) -> Result<Option<Found>, Error> {
    let run_dir = settings.run_dir.clone();
    blocking(move || find_now(&run_dir)).await.map_err(Error::io("look for a running storage daemon"))
}

/// Kills the daemons of all pools that were served below this folder: they outlive the agent.
pub fn end_all_below(run_dir: &Path) -> std::io::Result<()> {
    for (_, handle, environment) in processes()? {
        if value_of(&environment, MARK).is_some_and(|folder| Path::new(folder).starts_with(run_dir)) {
            rustix::process::pidfd_send_signal(&handle, Signal::KILL)?;
        }
    }
    Ok(())
}

fn find_now(run_dir: &Path) -> std::io::Result<Option<Found>> {
    let mut marked = processes()?.into_iter().filter_map(|(pid, handle, environment)| {
        let port = marked_port(&environment, run_dir)?;
        Some(Found { pid, handle, port })
    });
    Ok(marked.next())
}

/// Every process whose environment can be read: its number, a handle, and the environment.
fn processes() -> std::io::Result<Vec<(i32, OwnedFd, Vec<u8>)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Some(handle) =
            Pid::from_raw(pid).and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok())
        else {
            continue;
        };
        // Read after the handle was opened: if the process is the marked one, so is the handle's.
        let Ok(environment) = std::fs::read(format!("/proc/{pid}/environ")) else { continue };
        found.push((pid, handle, environment));
    }
    Ok(found)
}

fn marked_port(environment: &[u8], run_dir: &Path) -> Option<u16> {
    let is_ours = Path::new(value_of(environment, MARK)?) == run_dir;
    if is_ours { value_of(environment, MARK_PORT)?.parse().ok() } else { None }
}

fn value_of<'a>(environment: &'a [u8], name: &str) -> Option<&'a str> {
    environment.split(|byte| *byte == 0).find_map(|pair| {
        let pair = std::str::from_utf8(pair).ok()?;
        pair.strip_prefix(name)?.strip_prefix('=')
    })
}

async fn start(settings: &Settings) -> Result<u16, Error> {
    let what = || "start the storage daemon";
    std::fs::create_dir_all(&settings.run_dir).map_err(Error::io(what()))?;
    let network = listen(settings)?;
    let port = network.local_addr().map_err(Error::io(what()))?.port();
    if let Some(folder) = settings.port_file.parent() {
        std::fs::create_dir_all(folder).map_err(Error::io(what()))?;
    }
    file::write_atomically(&settings.port_file, port.to_string().as_bytes(), 0o644)
        .map_err(Error::io(what()))?;
    file::remove_if_there(&settings.socket()).map_err(Error::io(what()))?;
    let commands = UnixListener::bind(settings.socket()).map_err(Error::io(what()))?;
    let log = std::fs::File::create(settings.run_dir.join("log")).map_err(Error::io(what()))?;
    let mut command = Command::new(&settings.program);
    command.args(["--nbd-server", "addr.type=fd,addr.str=0,max-connections=0"]);
    command.args(["--chardev", "socket,id=qmp,fd=1,server=on,wait=off", "--monitor", "chardev=qmp"]);
    command
        .stdin(Stdio::from(OwnedFd::from(network)))
        .stdout(Stdio::from(OwnedFd::from(commands)))
        .stderr(log);
    command.env_clear().current_dir("/").process_group(0);
    command.env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into()));
    command.env(MARK, &settings.run_dir).env(MARK_PORT, port.to_string());
    command.uid(settings.user.uid).gid(settings.user.gid);
    let mut child = command
        .spawn()
        .map_err(Error::io(format!("start {:?}; install the package qemu-utils", settings.program)))?;
    tracing::info!(pid = child.id(), port, "storage daemon started");
    // Only reaps; the daemon does not depend on this task.
    tokio::spawn(async move {
        let ended = child.wait().await;
        tracing::warn!(?ended, "storage daemon ended");
    });
    Ok(port)
}

/// The port of last time if it is free: other hosts know it.
fn listen(settings: &Settings) -> Result<TcpListener, Error> {
    let last: Option<u16> =
        std::fs::read_to_string(&settings.port_file).ok().and_then(|text| text.parse().ok());
    let ports = last.into_iter().chain(PORT_FIRST..PORT_FIRST + PORTS);
    let mut refused = None;
    for port in ports {
        match TcpListener::bind(SocketAddr::new(settings.address, port)) {
            Ok(listener) => return Ok(listener),
            Err(error) => refused = Some(error),
        }
    }
    let source = refused.unwrap_or_else(|| std::io::Error::other("no port"));
    Err(Error::Io { what: format!("listen for storage at {}", settings.address), source })
}

async fn connect(settings: &Settings) -> Result<Client, Error> {
    let what = || format!("talk to the storage daemon at {:?}", settings.socket());
    let stream = UnixStream::connect(settings.socket()).await.map_err(Error::io(what()))?;
    let options = qmp::Options { timeout: START_DEADLINE, ..qmp::Options::default() };
    Client::connect(stream, options)
        .await
        .map_err(|error| Error::Io { what: what(), source: std::io::Error::other(error) })
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    /// Stands in for a daemon of the pool served from `folder`.
    fn marked(folder: &Path) -> std::process::Child {
        let mut command = std::process::Command::new("sleep");
        command.arg("600").env(MARK, folder).env(MARK_PORT, "10809").spawn().unwrap()
    }

    #[test]
    fn the_daemons_below_a_folder_end_and_those_beside_it_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let (run, beside) = (dir.path().join("run"), dir.path().join("run2"));
        let mut ours = marked(&run.join("nbd/san"));
        let mut other = marked(&beside.join("nbd/san"));
        assert_eq!(find_now(&run.join("nbd/san")).unwrap().map(|found| found.port), Some(10_809));
        end_all_below(&run).unwrap();
        assert_eq!(ours.wait().unwrap().signal(), Some(9));
        assert!(other.try_wait().unwrap().is_none(), "a stranger was ended");
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
