//! The one thread that writes: takes what is queued, does it in one transaction, answers when it is durable.
//!
//! An idle writer starts at once; while it waits for the disk the next group gathers by itself. So one commit
//! costs one sync, and a hundred concurrent ones cost two.

use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use rusqlite::{Connection, ErrorCode};
use tokio::sync::oneshot;

use crate::error::Error;

/// Most jobs in one transaction; bounds how long the first of them waits for the last.
const GROUP_MAX: usize = 256;

/// What the writer keeps in memory beside the file. A copy is put back when a transaction fails.
pub(crate) trait State: Clone + Send + 'static {
    /// The group is durable; nobody was answered yet.
    fn on_durable(&mut self);
}

/// Queues jobs for the thread. Dropping it finishes what is queued and closes the file.
#[derive(Debug)]
pub(crate) struct Writer<S> {
    queue: Option<mpsc::Sender<Box<dyn Job<S>>>>,
    thread: Option<JoinHandle<()>>,
}

/// One request. It must refuse before it writes: there is no undo for one of a group.
trait Job<S>: Send {
    /// May run again after a failure took back the first run.
    fn run(&mut self, db: &Connection, state: &mut S) -> rusqlite::Result<()>;
    fn answer(self: Box<Self>, failure: Option<Error>);
}

struct Request<T, F> {
    work: F,
    outcome: Option<Result<T, Error>>,
    reply: oneshot::Sender<Result<T, Error>>,
}

impl<S, T, F> Job<S> for Request<T, F>
where
    T: Send,
    F: FnMut(&Connection, &mut S) -> rusqlite::Result<Result<T, Error>> + Send,
{
    fn run(&mut self, db: &Connection, state: &mut S) -> rusqlite::Result<()> {
        self.outcome = Some((self.work)(db, state)?);
        Ok(())
    }

    fn answer(self: Box<Self>, failure: Option<Error>) {
        let outcome = match (failure, self.outcome) {
            (Some(failure), _) => Err(failure),
            (None, Some(outcome)) => outcome,
            (None, None) => unreachable!("a durable job was run"),
        };
        // Nobody waits any more; the commit stands all the same.
        let _ = self.reply.send(outcome);
    }
}

impl<S: State> Writer<S> {
    pub(crate) fn start(name: &str, db: Connection, state: S) -> std::io::Result<Self> {
        let (queue, jobs) = mpsc::channel();
        let mut work = Work { db, state, closed: None };
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || work.run(&jobs))?;
        Ok(Self { queue: Some(queue), thread: Some(thread) })
    }

    /// Queues a job at once, also when the future is never awaited.
    pub(crate) fn submit<T, F>(&self, work: F) -> impl Future<Output = Result<T, Error>> + Send + use<S, T, F>
    where
        T: Send + 'static,
        F: FnMut(&Connection, &mut S) -> rusqlite::Result<Result<T, Error>> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        if let Some(queue) = &self.queue {
            // When the thread is gone, the reply is dropped with the job, and that is what the caller sees.
            let _ = queue.send(Box::new(Request { work, outcome: None, reply }));
        }
        async {
            answer.await.unwrap_or_else(|_| Err(Error::Closed { reason: "the writer ended".to_owned() }))
        }
    }
}

impl<S> Drop for Writer<S> {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Work<S> {
    db: Connection,
    state: S,
    /// Set once a commit's outcome is unknown: nothing may be built on it.
    closed: Option<Error>,
}

impl<S: State> Work<S> {
    fn run(&mut self, queue: &mpsc::Receiver<Box<dyn Job<S>>>) {
        while let Ok(first) = queue.recv() {
            let mut group = vec![first];
            group.extend(queue.try_iter().take(GROUP_MAX - 1));
            self.settle(group);
        }
    }

    fn settle(&mut self, mut group: Vec<Box<dyn Job<S>>>) {
        let failure = match self.transact(&mut group) {
            Ok(()) => {
                self.state.on_durable();
                None
            }
            // One of them may be to blame: each for itself, so that the others do not suffer.
            Err(Failure::InGroup(_)) if group.len() > 1 => {
                group.into_iter().for_each(|job| self.settle(vec![job]));
                return;
            }
            Err(Failure::InGroup(error) | Failure::OfAll(error)) => Some(error),
        };
        group.into_iter().for_each(|job| job.answer(failure.clone()));
    }

    fn transact(&mut self, group: &mut [Box<dyn Job<S>>]) -> Result<(), Failure> {
        if let Some(closed) = &self.closed {
            return Err(Failure::OfAll(closed.clone()));
        }
        self.batch("BEGIN IMMEDIATE").map_err(|error| Failure::OfAll(failed(&error)))?;
        let before = self.state.clone();
        let ran = group.iter_mut().try_for_each(|job| job.run(&self.db, &mut self.state));
        let (error, at_commit) = match ran {
            Ok(()) => match self.batch("COMMIT") {
                Ok(()) => return Ok(()),
                Err(error) => (error, true),
            },
            Err(error) => (error, false),
        };
        self.state = before;
        let rolled_back = self.db.is_autocommit() || self.batch("ROLLBACK").is_ok();
        if rolled_back && (!at_commit || is_harmless(&error)) {
            return Err(Failure::InGroup(failed(&error)));
        }
        // After a failed sync the kernel may have dropped the pages, and the log may hold the commit or not.
        let closed = Error::Closed { reason: error.to_string() };
        tracing::error!(%error, "store closed: a commit failed in an unknown state");
        self.closed = Some(closed.clone());
        Err(Failure::OfAll(closed))
    }

    fn batch(&self, sql: &str) -> rusqlite::Result<()> {
        self.db.prepare_cached(sql)?.execute([]).map(|_| ())
    }
}

enum Failure {
    InGroup(Error),
    OfAll(Error),
}

/// Whether a failed COMMIT certainly left nothing in the log: the commit record is the last thing written.
fn is_harmless(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DiskFull | ErrorCode::DatabaseBusy))
}

fn failed(error: &rusqlite::Error) -> Error {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => Error::Full,
        _ => Error::Failed { reason: error.to_string() },
    }
}
