//! The same by hand with a disk that goes along, as a person does it well who has no shared storage.
//!
//! ```text
//!  source                                   target, -incoming defer
//!    |                                        | nbd-server-start, block-export-add of an empty disk
//!    | blockdev-mirror, write-blocking -----> |
//!    | ready; migrate until pre-switchover -> |
//!    | block-job-cancel: both disks alike     | block-export-del, nbd-server-stop
//!    | migrate-continue --------------------> | runs
//! ```
//!
//! Nothing of it is encrypted.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use sterna_qemu::qmp::Client;
use sterna_qemu::qmp::export::NbdExport;
use sterna_qemu::qmp::migration::{Address, Capability, Parameters, Status};
use sterna_qemu::qmp::mirror::{CopyMode, Depth, JobState, Mirror, OnError};
use tokio::process::Child;
use tokio::time::{sleep, timeout};

use super::{BANDWIDTH, DEADLINE, Hand, Moved, Style, completed, listening_port, prepare, runs, spawn};

/// What the mirror writes to, at the source.
pub const NODE: &str = "far";
/// The guest's disk, on both sides.
const DISK: &str = "d0";
const JOB: &str = "mirror";
const PORT: u16 = 10_809;
/// Somebody who waits for the next step is not what is measured.
const LOOK: Duration = Duration::from_millis(5);

impl Hand {
    /// Moves the guest to the other host, where its disk will be `disk`: an empty one of the same size.
    pub async fn migrate_with(&mut self, disk: &Path, downtime_max: Duration) -> Result<Moved> {
        let decided = Instant::now();
        let to = 1 - self.at;
        let machine = super::Machine { disk: disk.to_owned(), ..self.machine.clone() };
        let (child, target) = spawn(&machine, &self.places[to], self.started, true).await?;
        self.started += 1;
        for side in [&self.qmp, &target] {
            prepare(side, Style::Plain).await?;
        }
        self.qmp.set_migration_capabilities(&[Capability::PauseBeforeSwitchover], &[]).await?;
        let limits = Parameters {
            max_bandwidth: Some(BANDWIDTH),
            downtime_limit: Some(u64::try_from(downtime_max.as_millis())?),
            ..Parameters::default()
        };
        self.qmp.set_migration_parameters(&limits).await?;
        let ip = self.places[to].address;
        serve(&target, &ip.to_string()).await?;
        open(&self.qmp, &ip.to_string()).await?;
        copy(&self.qmp, DEADLINE).await?;
        target.migrate_incoming(&Address::Tcp { ip, port: 0 }).await?;
        let port = listening_port(&target).await?;
        self.qmp.migrate(&Address::Tcp { ip, port }).await?;
        timeout(DEADLINE, switch_over(&self.qmp, &target))
            .await
            .context("the guest is not handed over")??;
        let progress = timeout(DEADLINE, completed(&self.qmp)).await.context("the move does not end")??;
        timeout(DEADLINE, runs(&target)).await.context("the target does not run")??;
        self.replace(target, child).await?;
        (self.at, self.machine) = (to, machine);
        Ok(Moved {
            total: decided.elapsed(),
            downtime: Duration::from_millis(progress.downtime.unwrap_or(0)),
            bytes: progress.ram.unwrap_or_default().transferred,
        })
    }

    async fn replace(&mut self, target: Client, child: Child) -> Result<()> {
        let source = std::mem::replace(&mut self.qmp, target);
        // QEMU may close the connection before it answers; what counts is that the process ends.
        let _ = source.quit().await;
        self.child.wait().await.context("wait for the source")?;
        self.child = child;
        Ok(())
    }
}

/// The target's disk, to whoever calls.
async fn serve(target: &Client, host: &str) -> Result<()> {
    let address = json!({ "type": "inet", "data": { "host": host, "port": PORT.to_string() } });
    target.execute::<Value>("nbd-server-start", json!({ "addr": address })).await?;
    let export =
        NbdExport { id: DISK.to_owned(), node: DISK.to_owned(), name: DISK.to_owned(), is_writable: true };
    Ok(target.add_nbd_export(&export).await?)
}

async fn open(source: &Client, host: &str) -> Result<()> {
    let server = json!({ "type": "inet", "host": host, "port": PORT.to_string() });
    let node = json!({ "driver": "nbd", "node-name": NODE, "server": server, "export": DISK });
    source.execute::<Value>("blockdev-add", node).await.map(drop).context("open the target's disk")
}

/// Copies all of the disk to [`NODE`]; once it returns, each write waits for both.
pub async fn copy(qmp: &Client, patience: Duration) -> Result<()> {
    let job = Mirror {
        job: JOB.to_owned(),
        node: DISK.to_owned(),
        target: NODE.to_owned(),
        depth: Depth::Full,
        copy_mode: CopyMode::WriteBlocking,
        buffer: None,
        granularity: None,
        on_source_error: OnError::Report,
        on_target_error: OnError::Report,
        auto_finalize: true,
        auto_dismiss: false,
    };
    qmp.mirror(&job).await?;
    let until = Instant::now() + patience;
    loop {
        let jobs = qmp.query_block_jobs().await?;
        let job = jobs.first().context("the mirror is gone")?;
        ensure!(job.error.is_none(), "the mirror failed: {:?}", job.error);
        if job.is_ready {
            return Ok(());
        }
        ensure!(Instant::now() < until, "the mirror does not get in step");
        sleep(LOOK).await;
    }
}

/// Once the guest stands still: first the mirror ends, or QEMU dies of an assertion when it gives up the disk; then the
/// target's server, whose export would keep the guest from its disk.
async fn switch_over(source: &Client, target: &Client) -> Result<()> {
    loop {
        match source.query_migrate().await?.status {
            Status::PreSwitchover => break,
            status if status.is_final() => bail!("the move ended as {status}"),
            _ => sleep(LOOK).await,
        }
    }
    source.finish_mirror(JOB).await?;
    loop {
        let jobs = source.query_block_jobs().await?;
        let job = jobs.first().context("the mirror is gone")?;
        ensure!(job.error.is_none(), "the mirror failed: {:?}", job.error);
        if job.status == JobState::Concluded {
            break;
        }
        sleep(LOOK).await;
    }
    source.dismiss_job(JOB).await?;
    source.execute::<Value>("blockdev-del", json!({ "node-name": NODE })).await?;
    target.nbd_server_stop().await?;
    Ok(source.migrate_continue().await?)
}
