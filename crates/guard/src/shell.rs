//! One thread around the core: it waits, hands over what happened, and does what it is told, in that order.
//!
//! No turn waits for anybody: sockets do not block, files are on tmpfs, and a flood gets a bounded share.

/// The agent's socket.
mod agents;
/// A VM's own cgroup.
mod cgroup;
/// `CLOCK_BOOTTIME`, and a timer that follows it.
pub mod clock;
/// `guard.toml`.
pub mod config;
/// UDP on one or two paths.
mod network;
/// What is kept for a successor.
mod page_file;
/// Freezing, killing, and seeing that nothing is left.
mod processes;
/// What the agent asks and is told.
pub mod request;
/// Locked memory, first in line for a processor.
mod steadiness;
/// What resets the host.
mod watchdog;

use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FlockOperation, flock};
use uuid::Uuid;

use crate::core::event::{Effect, Event, State};
use crate::core::guard::{Guard, StartOrder};
use crate::core::id::HostId;
use crate::core::time::BootInstant;
use crate::datagram::HostKey;
use crate::shell::agents::{Agents, Line};
use crate::shell::clock::Alarm;
use crate::shell::config::Config;
use crate::shell::network::Network;
use crate::shell::page_file::PageFile;
use crate::shell::processes::Processes;
use crate::shell::request::{Answer, Health, Request, Settings};
use crate::shell::steadiness::Steadiness;
use crate::shell::watchdog::Watchdog;

/// While VMs are dying some may have nothing to wait on: a shim that has not said yet what it starts.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A decision to feed the watchdog that is older is not carried out: the host might live longer than was promised.
const FEED_WITHIN: Duration = Duration::from_millis(100);

static ASKED_TO_END: AtomicBool = AtomicBool::new(false);

struct Shell {
    guard: Guard,
    network: Network,
    agents: Agents,
    /// The process that answers for the starts it has listed.
    agent: Option<(rustix::process::Pid, std::os::fd::OwnedFd)>,
    processes: Processes,
    watchdog: Box<dyn Watchdog>,
    watchdog_error: Option<String>,
    /// What it is to be set to, and is not.
    unprogrammed: Option<Duration>,
    page: PageFile,
    settings: Option<Settings>,
    settings_path: PathBuf,
    steadiness: Steadiness,
    alarm: Alarm,
    wake: BootInstant,
    _lock: File,
}

/// Runs until SIGTERM. An error ends it with the watchdog armed: a successor has until then.
pub fn run(config: Config) -> anyhow::Result<()> {
    config.check()?;
    let mut shell = Shell::open(&config)?;
    listen_to_signals();
    shell.recall_settings()?;
    while !ASKED_TO_END.load(Ordering::Relaxed) {
        shell.turn()?;
        shell.wait()?;
    }
    shell.end()
}

extern "C" fn on_signal(_: libc::c_int) {
    ASKED_TO_END.store(true, Ordering::Relaxed);
}

fn listen_to_signals() {
    let handler: extern "C" fn(libc::c_int) = on_signal;
    for signal in [libc::SIGTERM, libc::SIGINT] {
        // SAFETY: the handler only stores to an atomic.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
}

impl Shell {
    fn open(config: &Config) -> anyhow::Result<Self> {
        let directory = config.directory();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .context("make the guard's directory")?;
        let lock = File::create(directory.join("guard.lock")).context("open the guard's lock")?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .context("take the guard's lock: one runs here")?;
        let steadiness = steadiness::take_hold();
        if !steadiness.is_complete() {
            tracing::warn!(?steadiness, "this guard may be late: best effort only");
        }
        let text = std::fs::read_to_string(&config.key).with_context(|| format!("read {:?}", config.key))?;
        let key = HostKey::from_text(&text).context("understand the host's key")?;
        let boot = boot_id()?;
        let me = HostId(config.host);
        let (page, left) = PageFile::open(&directory.join("page"))?;
        let now = clock::now();
        Ok(Self {
            guard: Guard::start(me, boot, left, now),
            network: Network::open(me, key, &config.listen)?,
            agents: Agents::listen(&config.socket())?,
            agent: None,
            processes: Processes::new(&config.run_dir, boot),
            watchdog: watchdog::open(&config.watchdog),
            watchdog_error: None,
            unprogrammed: None,
            page,
            settings: None,
            settings_path: directory.join("settings.json"),
            steadiness,
            alarm: Alarm::new().context("make a timer")?,
            wake: now,
            _lock: lock,
        })
    }

    /// What the agent said last, to a guard before this one: renewals go on whether or not there is an agent.
    fn recall_settings(&mut self) -> anyhow::Result<()> {
        let text = sterna_base::file::read_if_there(&self.settings_path).context("read the settings")?;
        let Some(text) = text else { return Ok(()) };
        let settings: Settings = serde_json::from_slice(&text).context("understand the settings")?;
        self.tell_network(&settings)?;
        let configuration = settings.configuration()?;
        self.settings = Some(settings);
        self.step(Event::Configure(configuration))
    }

    /// Everything that is there to be done now.
    fn turn(&mut self) -> anyhow::Result<()> {
        // Before anything else: it may be late, and then the lease is over whatever else has come.
        self.step(Event::Tick)?;
        for (from, message) in self.network.receive() {
            self.step(Event::Datagram { from, message })?;
        }
        for line in self.agents.receive() {
            self.on_line(&line)?;
        }
        if self.agent.as_ref().is_some_and(|(_, process)| is_readable(process)) {
            self.agent = None;
            self.step(Event::AgentLost)?;
        }
        for vm in self.processes.reap() {
            self.step(Event::Reaped { vm })?;
        }
        Ok(())
    }

    fn step(&mut self, event: Event) -> anyhow::Result<()> {
        let now = clock::now();
        for effect in self.guard.step(now, event) {
            self.carry_out(effect, now)?;
        }
        Ok(())
    }

    /// What cannot be done and is relied upon ends the process; freezing, killing and feeding are tried again.
    fn carry_out(&mut self, effect: Effect, decided_at: BootInstant) -> anyhow::Result<()> {
        match effect {
            Effect::Freeze { vm } => warn_of("freeze", self.processes.freeze(vm)),
            Effect::Thaw { vm } => warn_of("thaw", self.processes.thaw(vm)),
            Effect::Kill { vm } => self.processes.kill(vm),
            Effect::Persist(page) => self.page.write(&page)?,
            Effect::ProgramWatchdog { timeout } => {
                self.unprogrammed = Some(timeout);
                self.program_watchdog();
            }
            Effect::Pet => self.feed(decided_at),
            Effect::Send { to, message } => self.network.send(to, &message),
            Effect::Report(report) => {
                tracing::info!(?report, "guard");
                self.agents.tell_all(&report);
            }
            Effect::NextWake(at) => self.wake = at,
        }
        Ok(())
    }

    fn feed(&mut self, decided_at: BootInstant) {
        if clock::now() >= decided_at + FEED_WITHIN {
            return;
        }
        self.program_watchdog();
        let fed = self.watchdog.feed();
        // Fed by another time-out than it was to have it protects nobody in time: that error stays.
        if self.unprogrammed.is_none() {
            self.note_watchdog(fed);
        }
    }

    /// Tried until it is done.
    fn program_watchdog(&mut self) {
        let Some(timeout) = self.unprogrammed else { return };
        let programmed = self.watchdog.program(timeout);
        if programmed.is_ok() {
            self.unprogrammed = None;
        }
        self.note_watchdog(programmed);
    }

    fn note_watchdog(&mut self, outcome: anyhow::Result<()>) {
        let error = outcome.err().map(|error| format!("{error:#}"));
        if error != self.watchdog_error
            && let Some(error) = &error
        {
            tracing::error!(error, "the watchdog does not do as it is told");
        }
        self.watchdog_error = error;
    }

    fn on_line(&mut self, line: &Line) -> anyhow::Result<()> {
        let answer = match serde_json::from_slice(&line.text) {
            Ok(request) => self.on_request(line.connection, request)?,
            Err(error) => Answer::Refused { why: format!("not a request: {error}") },
        };
        self.agents.answer(line.connection, &answer);
        Ok(())
    }

    fn on_request(&mut self, connection: u64, request: Request) -> anyhow::Result<Answer> {
        let event = match request {
            Request::Vms { vms } => match self.hold_agent(connection) {
                Ok(()) => Event::VmsChanged(vms),
                Err(error) => return Ok(Answer::Refused { why: format!("{error:#}") }),
            },
            Request::MayStart { vm, vm_epoch, host_epoch } => {
                let order = StartOrder { vm, vm_epoch, host_epoch };
                return Ok(match self.guard.may_start(order, clock::now()) {
                    Ok(()) => Answer::Done,
                    Err(refusal) => Answer::Refused { why: refusal.to_string() },
                });
            }
            Request::Join { epoch, asked_at } => Event::Join { epoch, asked_at },
            Request::Configure(settings) => return self.on_settings(settings),
            Request::Release {} => Event::Release,
            Request::Status {} => return Ok(Answer::Status(Box::new(self.health()))),
        };
        self.step(event)?;
        Ok(Answer::Done)
    }

    /// The starts of an agent are under way until it says otherwise or its process has ended, so there is one at a time.
    fn hold_agent(&mut self, connection: u64) -> anyhow::Result<()> {
        let (pid, process) = self.agents.process_of(connection)?;
        match &self.agent {
            Some((known, _)) if *known == pid => Ok(()),
            Some((known, _)) => anyhow::bail!("the agent with process id {known:?} is alive"),
            None => {
                self.agent = Some((pid, process));
                Ok(())
            }
        }
    }

    fn on_settings(&mut self, settings: Settings) -> anyhow::Result<Answer> {
        let refused = |why: String| Ok(Answer::Refused { why });
        if let Some(known) = &self.settings
            && settings.version < known.version
        {
            return refused(format!("version {} is known", known.version));
        }
        let configuration = match settings.configuration() {
            Ok(configuration) => configuration,
            Err(error) => return refused(error.to_string()),
        };
        if let Err(error) = configuration.check() {
            return refused(error.to_string());
        }
        if let Err(error) = self.tell_network(&settings).and_then(|()| self.keep(&settings)) {
            return refused(format!("{error:#}"));
        }
        self.settings = Some(settings);
        self.step(Event::Configure(configuration))?;
        Ok(Answer::Done)
    }

    fn tell_network(&mut self, settings: &Settings) -> anyhow::Result<()> {
        let keys = settings.peers.iter().map(|(host, peer)| (*host, peer.key)).collect();
        let addresses = settings.peers.iter().map(|(host, peer)| (*host, peer.addresses.clone())).collect();
        self.network.set_peers(&keys, addresses)
    }

    fn keep(&self, settings: &Settings) -> anyhow::Result<()> {
        let text = serde_json::to_vec(settings).context("write the settings")?;
        sterna_base::file::write_atomically(&self.settings_path, &text, 0o600).context("keep the settings")
    }

    fn health(&self) -> Health {
        Health {
            guard: self.guard.status(clock::now()),
            watchdog: self.watchdog.kind(),
            watchdog_error: self.watchdog_error.clone(),
            steadiness: self.steadiness.clone(),
            datagrams_refused: self.network.refused(),
            datagrams_unsent: self.network.unsent(),
        }
    }

    /// Until the alarm, or until something has come.
    fn wait(&self) -> anyhow::Result<()> {
        let now = clock::now();
        let latest = if self.processes.any_dying() { now + LOOK_AGAIN } else { BootInstant::NEVER };
        self.alarm.set(self.wake.min(latest)).context("set the timer")?;
        let mut fds = vec![PollFd::new(&self.alarm, PollFlags::IN)];
        fds.push(PollFd::new(self.agents.listener(), PollFlags::IN));
        fds.extend(self.network.sockets().iter().map(|socket| PollFd::new(socket, PollFlags::IN)));
        fds.extend(self.agents.streams().map(|stream| PollFd::new(stream, PollFlags::IN)));
        fds.extend(self.processes.dying().map(|process| PollFd::new(process, PollFlags::IN)));
        fds.extend(self.agent.iter().map(|(_, process)| PollFd::new(process, PollFlags::IN)));
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error).context("wait"),
        }
    }

    /// The watchdog stays armed unless nothing on this host needs it: whoever replaces this process has until then.
    fn end(mut self) -> anyhow::Result<()> {
        let status = self.guard.status(clock::now());
        if status.lease == State::NoEpoch && !status.is_killing && status.vms == 0 {
            self.watchdog.disarm()?;
        } else {
            tracing::warn!(?status, "ends with the watchdog armed");
        }
        Ok(())
    }
}

fn warn_of(what: &str, outcome: std::io::Result<()>) {
    if let Err(error) = outcome {
        tracing::warn!(%error, "cannot {what}");
    }
}

fn is_readable(process: &std::os::fd::OwnedFd) -> bool {
    let at_once = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&at_once)), Ok(1))
}

fn boot_id() -> anyhow::Result<Uuid> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").context("read the boot id")?;
    text.trim().parse().context("understand the boot id")
}

#[cfg(test)]
mod tests;
