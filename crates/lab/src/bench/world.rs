//! What the benchmarks share: a lab that is up, a guest that can be told what to do, processes to stop and kill.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sterna_client::vm::Vm;
use sterna_model::meta::Name;
use sterna_qemu::qmp::{Client, Greeting, Options};
use tokio::net::UnixStream;

use crate::member::{self, Member};
use crate::place::{Host, Lab};
use crate::probe::{self, Probes};
use crate::user::User;

/// A lab for measuring in.
pub struct World {
    pub lab: Lab,
    pub user: User,
    pub image: PathBuf,
    pub program: PathBuf,
}

/// One of the processes that a VM's life hangs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Process {
    Server,
    Agent(Host),
    Shim(Host),
    Qemu(Host),
}

/// Between two looks at something that cannot be waited for.
const LOOK: Duration = Duration::from_millis(20);
/// Datagrams that must have come back before a measurement counts as started.
const WARM: u64 = 40;

impl World {
    /// The namespace of a host.
    #[must_use]
    pub fn space(&self, host: Host) -> String {
        self.lab.host_space(host)
    }

    pub fn host_of(&self, name: &Name) -> Result<Host> {
        self.lab.host(name.as_str()).with_context(|| format!("host {name} is not in the lab"))
    }

    /// Asks a guest's workload something, from a host's namespace.
    pub async fn ask_guest(&self, from: Host, guest: Ipv4Addr, path: &str) -> Result<String> {
        let (space, path) = (self.space(from), path.to_owned());
        tokio::task::spawn_blocking(move || probe::http::once(&space, guest, &path)).await?
    }

    /// Waits until the guest answers.
    pub async fn guest_answers(&self, from: Host, guest: Ipv4Addr) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(90);
        loop {
            match self.ask_guest(from, guest, "/healthz").await {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > until => {
                    return Err(error.context("the guest does not answer"));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// Probes that already get answers.
    pub async fn probes(&self, from: Host, guest: Ipv4Addr, with_http: bool) -> Result<Probes> {
        let space = self.space(from);
        let probes = Probes::start(Some(&space), Some(guest), with_http.then_some(guest))?;
        let until = Instant::now() + Duration::from_secs(30);
        while probes.echoed().unwrap_or(0) < WARM {
            ensure!(Instant::now() < until, "the guest echoes nothing");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(probes)
    }

    /// QMP of a copy, through its shim. Takes the connection over from the agent, which must stand still.
    pub async fn qmp(&self, host: Host, vm: &Vm) -> Result<Client> {
        let socket = self.lab.run_dir(host).join("vm").join(vm.meta.uid.to_string()).join("shim.sock");
        let stream =
            UnixStream::connect(&socket).await.with_context(|| format!("connect to {}", socket.display()))?;
        let options =
            Options { greeting: Greeting::Absent, timeout: Duration::from_secs(60), ..Options::default() };
        Ok(Client::connect(stream, options).await?)
    }

    /// The process itself, never the one that restarts it. Of shims and QEMUs: of the one VM that is on the host.
    pub fn find(&self, process: Process) -> Result<Member> {
        let found = match process {
            Process::Server => self.role("server", "server run"),
            Process::Agent(host) => self.role(&host.name(), "agent run"),
            Process::Shim(host) => self.of_vm(host, |member| is_sterna(first(member))),
            Process::Qemu(host) => self.of_vm(host, is_qemu),
        };
        found.with_context(|| format!("{process:?} does not run"))
    }

    fn role(&self, role: &str, words: &str) -> Option<Member> {
        member::all(&self.lab.dir).into_iter().find(|member| {
            let rest = member.line.split_once(' ').map_or("", |(_, rest)| rest);
            member.role == role && is_sterna(first(member)) && rest.starts_with(words)
        })
    }

    fn of_vm(&self, host: Host, fits: impl Fn(&Member) -> bool) -> Option<Member> {
        let folder = self.lab.run_dir(host).join("vm");
        member::naming(&format!("{}/", folder.display())).into_iter().find(fits)
    }

    /// QEMU of a VM on that host.
    #[must_use]
    pub fn copy(&self, host: Host, vm: &Vm) -> Option<Member> {
        let folder = self.lab.run_dir(host).join("vm").join(vm.meta.uid.to_string());
        member::naming(&folder.display().to_string()).into_iter().find(is_qemu)
    }

    /// The other host of the same datacentre.
    pub fn neighbour(&self, host: Host) -> Result<Host> {
        let mut others = self.lab.hosts().filter(|other| other.site == host.site && *other != host);
        others.next().context("the datacentre has one host only")
    }

    /// The QEMUs of a VM, on all hosts.
    #[must_use]
    pub fn copies(&self, vm: &Vm) -> usize {
        let is_of_lab = |member: &Member| {
            self.lab.hosts().any(|host| member.line.contains(&self.lab.run_dir(host).display().to_string()))
        };
        let all = member::naming(&vm.meta.uid.to_string());
        all.iter().filter(|member| is_qemu(member) && is_of_lab(member)).count()
    }
}

/// Polls until `holds`; an error on the way is an end, too.
pub async fn until(
    patience: Duration,
    what: &str,
    mut holds: impl AsyncFnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + patience;
    while !holds().await? {
        ensure!(Instant::now() < deadline, "waited {} s in vain for {what}", patience.as_secs());
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

fn first(member: &Member) -> &str {
    member.line.split(' ').next().unwrap_or_default()
}

fn is_qemu(member: &Member) -> bool {
    first(member).contains("qemu-system")
}

/// Whatever the binary is called here.
fn is_sterna(program: &str) -> bool {
    std::path::Path::new(program).file_name().is_some_and(|name| name.to_string_lossy().starts_with("sterna"))
}
