//! One connection with the guard: a request a line, its answer, and reports that come unasked.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::Deserialize;
use sterna_guard::core::event::State;
use sterna_guard::core::id::Epoch;
use sterna_guard::core::time::BootInstant;
use sterna_guard::shell::request::Request;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use uuid::Uuid;

/// A guard answers within one turn of its loop; one that does not is asked anew, on another connection.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// What comes from a guard, and what goes to it.
pub type Ends = (Box<dyn AsyncRead + Send + Unpin>, Box<dyn AsyncWrite + Send + Unpin>);

/// Where a guard is spoken to: its socket, or what a simulation has for it.
pub trait Door: Send + Sync + 'static {
    fn open(&self) -> BoxFuture<'_, std::io::Result<Ends>>;
    /// For people.
    fn place(&self) -> String;
}

/// The production door.
pub struct Socket(pub PathBuf);

impl Door for Socket {
    fn open(&self) -> BoxFuture<'_, std::io::Result<Ends>> {
        async {
            let (input, out) = UnixStream::connect(&self.0).await?.into_split();
            Ok((Box::new(input) as _, Box::new(out) as _))
        }
        .boxed()
    }

    fn place(&self) -> String {
        self.0.display().to_string()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Broken {
    #[error("no guard answers")]
    Io(#[from] std::io::Error),
    #[error("the guard has hung up")]
    Closed,
    #[error("the guard says nothing")]
    Silent,
    #[error("the guard's words are not understood")]
    Words(#[from] serde_json::Error),
}

#[derive(Debug, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    Done,
    Refused { why: String },
    Status(Box<Health>),
}

/// As much of a guard's status as an agent needs.
#[derive(Debug, Clone, Deserialize)]
pub struct Health {
    pub guard: Status,
    pub watchdog: String,
    #[serde(default)]
    pub watchdog_error: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Status {
    pub lease: State,
    pub now: BootInstant,
    pub silent_for: Duration,
    pub configuration: Option<u64>,
    pub confirmed_configuration: Option<u64>,
    pub is_killing: bool,
}

/// Those that somebody acts upon or is told of; others are newer than this agent.
#[derive(Debug, Deserialize)]
#[serde(tag = "report", rename_all = "kebab-case")]
pub enum Report {
    Lease {
        state: State,
    },
    Frozen {
        vms: usize,
    },
    Thawed {
        vms: usize,
    },
    Killing {
        vm: Uuid,
        why: String,
    },
    Fenced {
        fenced: Epoch,
    },
    JoinRefused {
        epoch: Epoch,
        why: String,
    },
    ConfigurationRefused {
        version: u64,
        why: String,
    },
    VmsRefused {
        count: usize,
        limit: usize,
    },
    Released {
        epoch: Epoch,
    },
    #[serde(other)]
    Other,
}

pub struct Line {
    lines: Lines<BufReader<Box<dyn AsyncRead + Send + Unpin>>>,
    out: Box<dyn AsyncWrite + Send + Unpin>,
    /// Came while an answer was waited for.
    waiting: VecDeque<Report>,
}

impl Line {
    pub async fn connect(door: &dyn Door) -> Result<Self, Broken> {
        let (input, out) = door.open().await?;
        Ok(Self { lines: BufReader::new(input).lines(), out, waiting: VecDeque::new() })
    }

    pub async fn ask(&mut self, request: &Request) -> Result<Answer, Broken> {
        let mut text = serde_json::to_vec(request)?;
        text.push(b'\n');
        tokio::time::timeout(ANSWER_WITHIN, async {
            self.out.write_all(&text).await?;
            loop {
                let line = self.lines.next_line().await?.ok_or(Broken::Closed)?;
                let value: serde_json::Value = serde_json::from_str(&line)?;
                if value.get("answer").is_some() {
                    return Ok(serde_json::from_value(value)?);
                }
                self.waiting.push_back(serde_json::from_value(value)?);
            }
        })
        .await
        .unwrap_or(Err(Broken::Silent))
    }

    /// The next report; may be dropped and called again.
    pub async fn report(&mut self) -> Result<Report, Broken> {
        if let Some(report) = self.waiting.pop_front() {
            return Ok(report);
        }
        let line = self.lines.next_line().await?.ok_or(Broken::Closed)?;
        Ok(serde_json::from_str(&line)?)
    }
}
