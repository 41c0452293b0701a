//! Mirrors of a guest's disks in its source's QEMU: begun, looked at, ended, and what those of a move that failed leave.

use std::time::Duration;

use sterna_qemu::qmp::Client;
use sterna_qemu::qmp::mirror::{BlockJob, CopyMode, Depth, JobState, Mirror, NbdNode, OnError};

use super::Error;
use crate::qemu_hypervisor::node_of;

/// Jobs, nodes and exports of ours, which have no device.
const AWAY: &str = "away";
/// A mirror that is ready ends within milliseconds, and a guest that is about to leave stands still meanwhile.
const END_WITHIN: Duration = Duration::from_secs(5);
const END_POLL: Duration = Duration::from_millis(2);

/// The name of the n-th disk's.
pub(crate) fn away(index: usize) -> String {
    format!("{AWAY}{index}")
}

fn is_ours(name: &str) -> bool {
    name.strip_prefix(AWAY)
        .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
}

/// How a disk is copied.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub depth: Depth,
    pub copy_mode: CopyMode,
    pub buffer: Option<u64>,
    pub granularity: Option<u32>,
}

/// The mirrors of one move.
pub(super) struct Jobs {
    client: Client,
    names: Vec<String>,
}

impl Jobs {
    pub fn none(client: &Client) -> Self {
        Self { client: client.clone(), names: Vec::new() }
    }

    /// Begins to copy the n-th disk to a node that is [`away`] by its name.
    pub async fn begin(&mut self, index: usize, there: NbdNode, shape: Shape) -> Result<(), Error> {
        let job = away(index);
        self.client.add_nbd_node(&there).await?;
        let mirror = Mirror {
            job: job.clone(),
            node: node_of(index),
            target: there.node,
            depth: shape.depth,
            copy_mode: shape.copy_mode,
            buffer: shape.buffer,
            granularity: shape.granularity,
            on_source_error: OnError::Report,
            on_target_error: OnError::Report,
            auto_finalize: true,
            // What went wrong with it is told until somebody has heard it.
            auto_dismiss: false,
        };
        self.client.mirror(&mirror).await?;
        self.names.push(job);
        Ok(())
    }

    /// How they are, while none has ended.
    pub async fn look(&self) -> Result<Vec<BlockJob>, Error> {
        let jobs = self.ours().await?;
        match jobs.iter().find(|job| job.status == JobState::Concluded || job.error.is_some()) {
            Some(ended) => Err(failed(ended)),
            None => Ok(jobs),
        }
    }

    async fn ours(&self) -> Result<Vec<BlockJob>, Error> {
        let mut jobs = self.client.query_block_jobs().await?;
        jobs.retain(|job| self.names.contains(&job.job));
        if jobs.len() < self.names.len() {
            return Err(Error::Mirror { why: "it is gone".to_owned() });
        }
        Ok(jobs)
    }

    /// From here on the copies cannot fall behind: each write of the guest waits for both places. `false` = an old QEMU
    /// cannot, and no write waits there.
    pub async fn make_write_blocking(&self) -> Result<bool, Error> {
        let schema = self.client.query_schema().await?;
        let mut can = !self.names.is_empty();
        for job in &self.names {
            can &= self.client.make_write_blocking(&schema, job).await?;
        }
        Ok(can)
    }

    /// The guest stands still: both sides of each mirror become alike, and QEMU's part is over.
    pub async fn end(&self) -> Result<(), Error> {
        for job in &self.names {
            self.client.finish_mirror(job).await?;
        }
        let begun = tokio::time::Instant::now();
        let mut jobs = self.ours().await?;
        while jobs.iter().any(|job| job.status != JobState::Concluded) {
            if begun.elapsed() > END_WITHIN {
                return Err(Error::Mirror { why: format!("it did not end within {END_WITHIN:?}") });
            }
            tokio::time::sleep(END_POLL).await;
            jobs = self.ours().await?;
        }
        if let Some(job) = jobs.iter().find(|job| job.error.is_some()) {
            return Err(failed(job));
        }
        for job in &self.names {
            self.client.dismiss_job(job).await?;
            self.client.remove_node(job).await?;
        }
        Ok(())
    }
}

fn failed(job: &BlockJob) -> Error {
    Error::Mirror { why: job.error.clone().unwrap_or_else(|| "it ended before its time".to_owned()) }
}

/// Removes what mirrors of a move that failed left in a QEMU, also those of an earlier agent.
pub async fn tidy(client: &Client) -> Result<(), Error> {
    cut(client).await?;
    let begun = tokio::time::Instant::now();
    loop {
        let mut jobs = client.query_block_jobs().await?;
        jobs.retain(|job| is_ours(&job.job));
        if jobs.is_empty() {
            break;
        }
        if begun.elapsed() > END_WITHIN {
            return Err(Error::Mirror { why: format!("it did not end within {END_WITHIN:?}") });
        }
        for job in jobs {
            match job.status {
                JobState::Concluded => client.dismiss_job(&job.job).await?,
                JobState::Aborting => {}
                // One that has just ended refuses.
                _ => drop(client.abort_mirror(&job.job).await),
            }
        }
        tokio::time::sleep(END_POLL).await;
    }
    let nodes = client.query_named_block_nodes().await?;
    for name in nodes.into_iter().filter_map(|node| node.node_name).filter(|name| is_ours(name)) {
        client.remove_node(&name).await?;
    }
    Ok(())
}

/// Is something of a move left in this QEMU?
pub(super) async fn is_mirroring(client: &Client) -> Result<bool, Error> {
    Ok(client.query_block_jobs().await?.iter().any(|job| is_ours(&job.job)))
}

/// Closes the lines of our nodes: a job whose server does not answer, and every write of the guest that waits for it, would
/// wait for as long as TCP does.
async fn cut(client: &Client) -> Result<(), Error> {
    let nodes = client.query_named_block_nodes().await?;
    let ours = nodes.iter().filter(|node| node.node_name.as_deref().is_some_and(is_ours));
    let there: Vec<&str> = ours.map(|node| &*node.file).collect();
    let lines = nodes.iter().filter(|node| node.driver == "nbd" && there.contains(&&*node.file));
    for line in lines.filter_map(|node| node.node_name.as_deref()) {
        if let Err(error) = client.yank_node(line).await {
            tracing::debug!(%error, "the line of a mirror is closed already");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_jobs_and_nodes_are_tidied_up() {
        assert!(is_ours("away0") && is_ours("away12"));
        assert!(!is_ours("away") && !is_ours("away-0") && !is_ours("disk0-image") && !is_ours("awayx"));
    }
}
