//! Read connections, each in a thread of its own, so that a read blocks neither a commit nor the async runtime.

use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};

use rusqlite::Connection;
use tokio::sync::oneshot;

use crate::disk::open::open_reader;
use crate::error::{Error, OpenError};

/// Two: a long read beside short ones. More gain nothing while a read takes microseconds.
const READERS: usize = 2;

type Job = Box<dyn FnOnce(&Connection) + Send>;

/// The pool. Dropping it waits for the reads under way and closes the connections: drop it before the writer,
/// whose connection must be the last to close, so that SQLite folds the log into the file.
#[derive(Debug)]
pub(crate) struct Readers {
    queue: Option<mpsc::Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Readers {
    pub(crate) fn open(path: &Path) -> Result<Self, OpenError> {
        let (queue, jobs) = mpsc::channel::<Job>();
        let jobs = Arc::new(Mutex::new(jobs));
        let mut readers = Self { queue: Some(queue), threads: Vec::new() };
        for number in 0..READERS {
            let db = open_reader(path)?;
            let jobs = Arc::clone(&jobs);
            let work = move || {
                while let Ok(Ok(job)) = jobs.lock().map(|jobs| jobs.recv()) {
                    job(&db);
                }
            };
            let thread = thread::Builder::new().name(format!("store-read-{number}")).spawn(work);
            readers.threads.push(thread.map_err(|source| OpenError::Io { path: path.to_owned(), source })?);
        }
        Ok(readers)
    }

    /// Runs `read` in one read transaction: all its queries see the same commit.
    pub(crate) fn read<T, F>(&self, read: F) -> impl Future<Output = Result<T, Error>> + Send + use<T, F>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<Result<T, Error>> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let job = move |db: &Connection| {
            let outcome = db.unchecked_transaction().and_then(|_transaction| read(db));
            let outcome = outcome.unwrap_or_else(|error| Err(Error::Failed { reason: error.to_string() }));
            // Nobody waits any more: the read was for nothing, and that is fine.
            let _ = reply.send(outcome);
        };
        // When no thread is left, the reply is dropped with the job, and that is what the caller sees.
        let _ = self.queue.as_ref().map(|queue| queue.send(Box::new(job)));
        async {
            answer.await.unwrap_or_else(|_| Err(Error::Closed { reason: "the readers ended".to_owned() }))
        }
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.queue = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
