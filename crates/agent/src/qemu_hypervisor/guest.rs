//! One connected copy: QMP through its shim.

/// What the mover has to do with it.
mod carried;
/// Whether the guest is alive.
mod life;
/// Memory from one QEMU to the other.
mod straight;

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sterna_base::units::{Bytes, Span};
use sterna_model::forecast::{LoadSample, Written};
use sterna_model::line::Laying;
use sterna_model::migration::Progress;
use sterna_qemu::qmp::client::{Error, Heard};
use sterna_qemu::qmp::event::Event;
use sterna_qemu::qmp::machine::RunStatus;
use sterna_qemu::qmp::migration::{Announcement, Parameters, Status};
use sterna_qemu::qmp::{Client, Schema};
use sterna_wire::assignment::{Carry, Outgoing};
use tokio::sync::{OnceCell, mpsc};
use uuid::Uuid;

use crate::carrier::{self, Carriers, Departure};
use crate::hypervisor::{
    Figures, Guest, GuestError, Happened, Happenings, Limits, Listening, Pause, Run, Transfer, View,
};
use crate::process;

/// No limit: the line itself is one.
const BANDWIDTH_MAX: u64 = 100 << 30;
/// The guest is slowed by this at first when its writing outruns the line, and by so much more each time.
const THROTTLE_INITIAL: u8 = 20;
const THROTTLE_INCREMENT: u8 = 10;
/// A guest that keeps a fifth of its CPU time still answers; with 99, QEMU's own limit, it would all but stand still, and
/// for as long as the copy takes: that is the pause which nobody allowed, by another name. What does not converge at this
/// ends with the pause that would do (`vm/migrate/passes.rs`). `plan/forecast` counts with the same.
const THROTTLE_MAX: u8 = 80;
/// Switches learn at the first announcement; the others are for those that were lost.
const ANNOUNCEMENT: Announcement = Announcement { initial_ms: 10, max_ms: 200, rounds: 5, step_ms: 40 };
/// A cancelled migration that is not held up ends in this time.
const CANCEL_WITHIN: Duration = Duration::from_millis(300);
const CANCEL_POLL: Duration = Duration::from_millis(10);
/// A guest's writes over a time are known at its end, give or take a busy host.
const WRITTEN_LATE: Duration = Duration::from_secs(5);
const WRITTEN_POLL: Duration = Duration::from_millis(50);
/// The guest's console is kept up to this, on tmpfs; QEMU itself never trims it.
const SERIAL_LOG_MAX: u64 = 1 << 20;

/// A running QEMU. Clones share its connection.
#[derive(Clone)]
pub struct QemuGuest {
    client: Client,
    uid: Uuid,
    pid: u32,
    directory: PathBuf,
    carriers: Carriers,
    happened: mpsc::UnboundedSender<Happened>,
    schema: Arc<OnceCell<Schema>>,
    /// CPU time used until then.
    measured: Arc<Mutex<Option<(Instant, Duration)>>>,
    /// The guest agent's channel: one question at a time.
    agent: life::Agent,
}

/// Takes over a connection and begins to listen.
pub(super) fn attach(
    client: Client,
    pid: u32,
    directory: PathBuf,
    (uid, carriers): (Uuid, Carriers),
) -> (QemuGuest, Happenings) {
    let (happened, happenings) = mpsc::unbounded_channel();
    let mut events = client.events();
    let told = happened.clone();
    tokio::spawn(async move {
        while let Some(heard) = events.next().await {
            let is_heard = meaning(&heard).is_none_or(|it| told.send(it).is_ok());
            if !is_heard {
                return;
            }
        }
        // Nobody listens any more: nothing to tell.
        let _ = told.send(Happened::Lost);
    });
    let (schema, measured, agent) = Default::default();
    let guest = QemuGuest { client, uid, pid, directory, carriers, happened, schema, measured, agent };
    (guest, happenings)
}

fn meaning(heard: &Heard) -> Option<Happened> {
    let Heard::Event(stamped) = heard else { return Some(Happened::Changed) };
    match &stamped.event {
        Event::Resume => Some(Happened::Resumed),
        Event::Migration { status: Status::Completed } => Some(Happened::TransferCompleted),
        Event::Stop
        | Event::Migration { .. }
        | Event::Shutdown(_)
        | Event::GuestPanicked { .. }
        | Event::BlockIoError(_)
        | Event::Suspend
        | Event::Wakeup => Some(Happened::Changed),
        Event::Watchdog { .. } => Some(Happened::WatchdogBit),
        _ => None,
    }
}

impl From<Error> for GuestError {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused { command, desc, .. } => Self::Refused(format!("{command}: {desc}")),
            other => Self::Unclear(other.to_string()),
        }
    }
}

impl QemuGuest {
    pub(super) async fn kill(&self) -> Result<(), GuestError> {
        Ok(self.client.execute::<Value>("shim-kill", Value::Null).await.map(drop)?)
    }

    async fn schema(&self) -> Result<&Schema, Error> {
        self.schema.get_or_try_init(|| self.client.query_schema()).await
    }

    /// `None`: QEMU gave no answer in time. Always by hashing samples, which disturbs no guest and works everywhere.
    async fn written(&self, window: Duration) -> Result<Option<Written>, GuestError> {
        self.client.calc_dirty_rate(self.schema().await?, window).await?;
        let deadline = Instant::now() + window + WRITTEN_LATE;
        tokio::time::sleep(window).await;
        while Instant::now() < deadline {
            let rate = self.client.query_dirty_rate().await?;
            if let (true, Some(mib)) = (rate.is_measured(), rate.dirty_rate) {
                let window = Span(window);
                let bytes = (mib << 20).saturating_mul(window.as_millis()) / 1000;
                return Ok(Some(Written { window, bytes: Bytes(bytes) }));
            }
            tokio::time::sleep(WRITTEN_POLL).await;
        }
        Ok(None)
    }

    /// Thousandths of one CPU since the last call; since QEMU's start at the first.
    fn cpu_milli(&self, used: Duration) -> u32 {
        let mut measured = self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        let last = measured.replace((Instant::now(), used));
        let Some((at, before)) = last else { return 0 };
        let (used, passed) = (used.saturating_sub(before).as_millis(), at.elapsed().as_millis().max(1));
        u32::try_from(used * 1000 / passed).unwrap_or(u32::MAX)
    }
}

impl Guest for QemuGuest {
    async fn view(&self) -> Result<View, GuestError> {
        // A frozen one answers nothing, and there is only one reason to freeze it.
        if self.is_frozen()? {
            return Ok(View { run: Run::Paused(Pause::Migrated), transfer: Transfer::Held });
        }
        let (state, progress) = tokio::try_join!(self.client.query_status(), self.client.query_migrate())?;
        let transfer = match progress.status {
            Status::None => Transfer::None,
            Status::Completed => Transfer::Completed,
            Status::Cancelled => Transfer::Cancelled,
            Status::Failed => {
                let why = progress.error_desc.unwrap_or_else(|| "qemu gives no reason".to_owned());
                Transfer::Failed { why }
            }
            _ => Transfer::Going,
        };
        let transfer = self.carried(transfer);
        let mut run = run_of(state.is_running, &state.status);
        if let Run::Paused(Pause::IoError(disks)) = &mut run {
            *disks = self.failed_disks().await?;
        }
        Ok(View { run, transfer })
    }

    async fn cont(&self) -> Result<(), GuestError> {
        Ok(self.client.cont().await?)
    }

    async fn stop(&self) -> Result<(), GuestError> {
        Ok(self.client.stop().await?)
    }

    async fn press_power_button(&self) -> Result<(), GuestError> {
        Ok(self.client.system_powerdown().await?)
    }

    async fn reset(&self) -> Result<(), GuestError> {
        Ok(self.client.system_reset().await?)
    }

    async fn listen(
        &self,
        at: IpAddr,
        carry: Option<&Carry>,
        laying: Option<Laying>,
    ) -> Result<Listening, GuestError> {
        let straight = carry.filter(|carry| carry.straight);
        if let (Some(carry), None) = (carry, straight) {
            let qemu = (&self.client, &*self.directory);
            let at = self.carriers.receive(self.uid, carry, at, qemu).await?;
            return Ok(Listening { at, line: None });
        }
        self.listen_straight(at, laying, straight.map_or(&[][..], |carry| &carry.disks[..])).await
    }

    async fn activate_disks(&self) -> Result<(), GuestError> {
        self.end_serving().await?;
        self.end_line();
        if self.carriers.incoming(self.uid).is_some_and(|incoming| incoming.has_disks()) {
            // From here on the guest alone writes to them.
            self.client.nbd_server_stop().await?;
        }
        let asked = self.client.execute::<Value>("blockdev-set-active", json!({ "active": true })).await;
        match asked {
            // Older QEMU has taken them at completion.
            Err(Error::Refused { class, .. }) if class == "CommandNotFound" => Ok(()),
            other => Ok(other.map(drop)?),
        }
    }

    fn loading(&self) -> Option<Span> {
        self.carriers.incoming(self.uid).and_then(|incoming| incoming.loading())
    }

    async fn answers(&self, at: Ipv4Addr) -> Option<Duration> {
        crate::network::echo::first_answer(at).await
    }

    async fn announce(&self) -> Result<(), GuestError> {
        Ok(self.client.announce_self(ANNOUNCEMENT).await?)
    }

    async fn send(&self, outgoing: &Outgoing, limits: Limits) -> Result<(), GuestError> {
        let parameters = Parameters {
            max_bandwidth: Some(BANDWIDTH_MAX),
            downtime_limit: Some(limits.max_downtime.as_millis().max(1)),
            cpu_throttle_initial: Some(THROTTLE_INITIAL),
            cpu_throttle_increment: Some(THROTTLE_INCREMENT),
            max_cpu_throttle: Some(THROTTLE_MAX),
            ..Parameters::default()
        };
        self.carriers.forget(self.uid);
        let Some(carry) = outgoing.carry.as_ref().filter(|_| outgoing.is_carried()) else {
            return self.send_straight(outgoing, parameters).await;
        };
        self.leave_line().await?;
        let departure = Departure {
            vm: self.uid,
            client: self.client.clone(),
            directory: self.directory.clone(),
            to: outgoing.to,
            carry: carry.clone(),
            parameters,
            happened: self.happened.clone(),
            seed: outgoing.seed,
            disk_bytes: Arc::default(),
            disk_delay_ms: Arc::default(),
        };
        Ok(self.carriers.send(departure).map(drop)?)
    }

    async fn freeze(&self) -> Result<(), GuestError> {
        self.stop_threads().await
    }

    async fn take_back(&self) -> Result<(), GuestError> {
        self.reclaim().await
    }

    async fn grant(&self) -> Result<(), GuestError> {
        match self.carriers.outgoing(self.uid) {
            Some(outgoing) => outgoing.grant().await,
            None => Err(GuestError::Refused("its stream ended with an earlier agent".to_owned())),
        }
    }

    async fn limit(&self, limits: Limits) -> Result<(), GuestError> {
        let outgoing = self.carriers.outgoing(self.uid);
        let beyond = outgoing.map_or(Duration::ZERO, |outgoing| outgoing.figures().beyond_qemu());
        let allowed = limits.max_downtime.0;
        let limit = Span(allowed.saturating_sub(beyond).max(allowed / 4));
        let parameters =
            Parameters { downtime_limit: Some(limit.as_millis().max(1)), ..Parameters::default() };
        Ok(self.client.set_migration_parameters(&parameters).await?)
    }

    async fn tidy(&self) -> Result<(), GuestError> {
        // A way out that is not over cleans up behind itself.
        if self.carriers.is_sending(self.uid) {
            return Ok(());
        }
        carrier::tidy(&self.client).await?;
        self.leave_line().await
    }

    async fn cancel(&self) -> Result<(), GuestError> {
        if self.is_frozen()? {
            return Err(GuestError::Refused("it is frozen".to_owned()));
        }
        if let Some(outgoing) = self.carriers.outgoing(self.uid) {
            return outgoing.abort().await;
        }
        if let Some(direct) = self.carriers.direct(self.uid)
            && direct.abort().await.is_ok()
        {
            return Ok(());
        }
        self.client.migrate_cancel().await?;
        // QEMU closes the first of several connections alone: a target that takes nothing would hold the others for ever.
        let begun = Instant::now();
        while self.client.query_migrate().await?.status == Status::Cancelling {
            if begun.elapsed() > CANCEL_WITHIN {
                if let Err(error) = self.client.yank_migration().await {
                    tracing::debug!(vm = %self.uid, %error, "its connections are closed already");
                }
                break;
            }
            tokio::time::sleep(CANCEL_POLL).await;
        }
        Ok(())
    }

    async fn figures(&self) -> Result<Figures, GuestError> {
        if self.is_frozen()? {
            return Err(GuestError::Refused("it is frozen".to_owned()));
        }
        let told = self.client.query_migrate().await?;
        let carried = self.carriers.outgoing(self.uid).map(|outgoing| outgoing.figures());
        let disks = self.carriers.direct(self.uid).map(|direct| direct.figures());
        let ram = told.ram.filter(|_| disks.is_none_or(|disks| disks.has_memory)).unwrap_or_default();
        let (disks_sent, disks_left) = disks.map_or((0, 0), |disks| {
            // Once they are alike, what is left of them is what the guest writes just now.
            (disks.sent, if disks.has_memory { 0 } else { disks.left })
        });
        let sent = carried.map_or(ram.transferred + disks_sent, |carried| carried.wire_bytes);
        let progress = Progress {
            sent: Bytes(sent),
            remaining: Bytes(ram.remaining + disks_left),
            total: Bytes(ram.total + disks_sent + disks_left),
            dirty_rate: Bytes(ram.dirty_pages_rate.saturating_mul(ram.page_size)),
            // Megabit a second; a figure for people.
            send_rate: Bytes(carried.map_or((ram.mbps.max(0.0) * 125_000.0) as u64, |carried| carried.rate)),
            rounds: ram.dirty_sync_count,
            eta: None,
            throttle: told
                .cpu_throttle_percentage
                .and_then(|percent| u8::try_from(percent).ok())
                .unwrap_or(0),
            slowed: carried.and_then(|carried| carried.slowed).map(Span),
        };
        let downtime = match carried {
            Some(carried) => carried.pause.map(Span),
            None => told.downtime.map(Span::from_millis),
        };
        let round_trip = carried.and_then(|carried| carried.round_trip).map(Span);
        Ok(Figures { progress, downtime, round_trip })
    }

    async fn resize_disk(&self, index: usize, size: Bytes) -> Result<(), GuestError> {
        Ok(self.client.block_resize(&super::blueprint::node_of(index), size.as_u64()).await?)
    }

    async fn ping(&self, within: Duration) -> Result<(), GuestError> {
        self.ping_agent(within).await
    }

    async fn execute(&self, program: &str, args: &[String], within: Duration) -> Result<(), GuestError> {
        self.execute_in_guest(program, args, within).await
    }

    async fn activity(&self) -> Result<u64, GuestError> {
        self.count_activity().await
    }

    async fn load(&self, window: Option<Duration>) -> Result<LoadSample, GuestError> {
        trim(&self.directory.join(super::SERIAL_LOG));
        let unclear = |error: std::io::Error| GuestError::Unclear(format!("/proc: {error}"));
        let written = match window {
            Some(window) => self.written(window).await?,
            None => None,
        };
        let (cpu, _) = process::usage(self.pid).map_err(unclear)?;
        // What a first pass has to carry is the guest's memory that was ever touched, not QEMU's own.
        let memory = process::largest_mapping(self.pid).map_err(unclear)?;
        let written = Vec::from_iter(written);
        Ok(LoadSample { used: Bytes(memory), written, cpu_milli: self.cpu_milli(cpu) })
    }
}

fn run_of(is_running: bool, status: &RunStatus) -> Run {
    match status {
        _ if is_running => Run::Running,
        RunStatus::InMigrate => Run::Incoming,
        RunStatus::Prelaunch => Run::Paused(Pause::NotStarted),
        RunStatus::Paused => Run::Paused(Pause::Asked),
        RunStatus::FinishMigrate | RunStatus::PostMigrate => Run::Paused(Pause::Migrated),
        RunStatus::IoError => Run::Paused(Pause::IoError(Vec::new())),
        RunStatus::GuestPanicked => Run::Paused(Pause::Panicked),
        other => Run::Paused(Pause::Other(other.as_str().to_owned())),
    }
}

/// QEMU appends, so an emptied file stays in order.
fn trim(log: &Path) {
    let is_long =
        std::fs::symlink_metadata(log).is_ok_and(|meta| meta.is_file() && meta.len() > SERIAL_LOG_MAX);
    if is_long && let Ok(file) = std::fs::OpenOptions::new().write(true).open(log) {
        // A log that cannot be shortened is tried again with the next sample.
        let _ = file.set_len(0);
    }
}
