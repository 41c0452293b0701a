//! Says what is being done and how long it took; nothing is silent for more than 5 s.

use std::io::Write;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;

/// Shorter than what people take for a hang.
const SIGN_OF_LIFE: Duration = Duration::from_secs(4);

/// How steps are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Say {
    /// Lines for people on stderr.
    Text,
    /// JSON lines on stdout.
    Json,
    /// Not at all.
    Nothing,
}

/// What a step found to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Did {
    It,
    /// It was done already.
    Nothing,
}

impl Say {
    /// Runs one step and tells of it. `what` is a verb phrase: "start the server".
    pub fn step(self, what: &str, work: impl FnOnce() -> Result<Did>) -> Result<()> {
        let began = Instant::now();
        let (done, is_done) = channel::<()>();
        let what_runs = what.to_owned();
        let teller = std::thread::spawn(move || {
            while is_done.recv_timeout(SIGN_OF_LIFE) == Err(RecvTimeoutError::Timeout) {
                self.tell(&what_runs, "working", began.elapsed());
            }
        });
        let result = work();
        drop(done);
        // It ends at once now, and a panic in it would only be a line that is missing.
        let _ = teller.join();
        let outcome = match &result {
            Ok(Did::It) => "done",
            Ok(Did::Nothing) => "was done",
            Err(_) => "failed",
        };
        self.tell(what, outcome, began.elapsed());
        result.map(drop)
    }

    fn tell(self, what: &str, outcome: &str, took: Duration) {
        let line = match self {
            Say::Text => format!("{:>7.1} s  {what}: {outcome}", took.as_secs_f64()),
            Say::Json => json!({ "step": what, "outcome": outcome, "ms": took.as_millis() }).to_string(),
            Say::Nothing => return,
        };
        self.line(&line);
    }

    /// A sentence.
    pub fn sentence(self, text: &str) {
        match self {
            Say::Text => self.line(text),
            Say::Json => self.line(&json!({ "says": text }).to_string()),
            Say::Nothing => {}
        }
    }

    /// That nobody reads is no reason to stop.
    fn line(self, line: &str) {
        let _ = match self {
            Say::Text => writeln!(std::io::stderr(), "{line}"),
            Say::Json => writeln!(std::io::stdout(), "{line}"),
            Say::Nothing => Ok(()),
        };
    }
}
