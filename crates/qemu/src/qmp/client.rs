//! One QMP connection.
//!
//! Two tasks own the stream. The reader never waits for anybody: replies go to the request they belong to,
//! events into a ring from which slow listeners lose the oldest, and are told so. Requests are written by
//! the other task, whole lines at a time, so that a caller who gives up cannot cut one in half.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::{
    AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader,
};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::task::JoinHandle;

use super::event::Stamped;
use crate::version::Version;

/// A reply longer than this is not QEMU's. The longest honest one, the schema, has 0.3 MB.
const LINE_MAX: u64 = 16 << 20;

/// Requests that wait to be written. More means that QEMU has stopped reading.
const QUEUE: usize = 64;

/// Whether the other side starts with QMP's greeting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Greeting {
    /// QEMU itself: a greeting comes first and capabilities must be negotiated.
    Expected,
    /// Somebody in between has done that already.
    Absent,
}

#[derive(Debug, Clone)]
pub struct Options {
    pub greeting: Greeting,
    /// How long a reply may take, unless the request says otherwise. A frozen QEMU never answers.
    pub timeout: Duration,
    /// Events kept for a listener that does not keep up.
    pub events_kept: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { greeting: Greeting::Expected, timeout: Duration::from_secs(10), events_kept: 1024 }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// QEMU understood and said no; nothing was changed.
    #[error("QEMU refused {command}: {desc}")]
    Refused { command: String, class: String, desc: String },
    /// No answer in time. The command may still take effect.
    #[error("QEMU did not answer {command} within {after:?}")]
    TimedOut { command: String, after: Duration },
    /// The connection has ended. The command may or may not have taken effect.
    #[error("the QMP connection is closed")]
    Closed,
    /// The other side does not speak QMP.
    #[error("this is not a QMP connection: {what}")]
    NotQmp { what: String },
    /// The reply has a shape this version of the crate does not know.
    #[error("the reply to {command} has an unknown shape")]
    Shape { command: String, source: serde_json::Error },
}

type Reply = Result<Value, (String, String)>;

/// What ends with the connection: the requests that wait, and the events' sending end.
struct Open {
    pending: HashMap<u64, oneshot::Sender<Reply>>,
    events: broadcast::Sender<Stamped>,
}

struct Shared {
    open: Mutex<Option<Open>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Option<Open>> {
        // No code panics while it holds this lock; if one did, the map would still be whole.
        self.open.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Every waiting request fails and every listener sees the end.
    fn close(&self) {
        drop(self.lock().take());
    }
}

struct Inner {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Vec<u8>>,
    next_id: AtomicU64,
    timeout: Duration,
    version: Option<Version>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Inner {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.shared.close();
    }
}

/// A QMP connection; clones share it. It ends when the last clone is dropped.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

impl Client {
    /// Takes over the stream and, if a greeting is expected, negotiates.
    ///
    /// Must be called inside a tokio runtime. Returns within `options.timeout` twice over.
    pub async fn connect<S>(stream: S, options: Options) -> Result<Self, Error>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (read, write) = tokio::io::split(stream);
        let mut read = BufReader::new(read);
        let version = match options.greeting {
            Greeting::Absent => None,
            Greeting::Expected => Some(greeted(&mut read, options.timeout).await?),
        };
        let (events, _) = broadcast::channel(options.events_kept.max(1));
        let open = Mutex::new(Some(Open { pending: HashMap::new(), events }));
        let shared = Arc::new(Shared { open });
        let (queue, queued) = mpsc::channel(QUEUE);
        let reader = tokio::spawn(read_all(read, Arc::clone(&shared)));
        let writer = tokio::spawn(write_all(write, queued, Arc::clone(&shared)));
        let inner = Inner {
            shared,
            queue,
            next_id: AtomicU64::new(1),
            timeout: options.timeout,
            version,
            tasks: [reader, writer],
        };
        let client = Self { inner: Arc::new(inner) };
        if options.greeting == Greeting::Expected {
            client.execute::<Value>("qmp_capabilities", Value::Null).await?;
        }
        Ok(client)
    }

    /// The version in the greeting, if there was one.
    pub fn greeted_version(&self) -> Option<Version> {
        self.inner.version
    }

    /// Events from now on. On a closed connection the receiver is at its end at once.
    pub fn events(&self) -> Events {
        let received = match self.inner.shared.lock().as_ref() {
            Some(open) => open.events.subscribe(),
            None => broadcast::channel(1).1,
        };
        Events { received }
    }

    pub fn is_closed(&self) -> bool {
        self.inner.shared.lock().is_none()
    }

    /// One command with the default timeout. `arguments` is an object, or null for none.
    pub async fn execute<R: DeserializeOwned>(&self, command: &str, arguments: Value) -> Result<R, Error> {
        self.execute_within(command, arguments, self.inner.timeout).await
    }

    /// One command that may take long, such as one that contains a network handshake.
    pub async fn execute_within<R: DeserializeOwned>(
        &self,
        command: &str,
        arguments: Value,
        timeout: Duration,
    ) -> Result<R, Error> {
        let id = self.inner.next_id.fetch_add(1, Ordering::Relaxed);
        let reply = match tokio::time::timeout(timeout, self.exchange(id, command, arguments)).await {
            Ok(reply) => reply?,
            Err(_) => {
                self.forget(id);
                return Err(Error::TimedOut { command: command.to_owned(), after: timeout });
            }
        };
        let value =
            reply.map_err(|(class, desc)| Error::Refused { command: command.to_owned(), class, desc })?;
        serde_json::from_value(value).map_err(|source| Error::Shape { command: command.to_owned(), source })
    }

    async fn exchange(&self, id: u64, command: &str, arguments: Value) -> Result<Reply, Error> {
        let (answer, answered) = oneshot::channel();
        match self.inner.shared.lock().as_mut() {
            Some(open) => open.pending.insert(id, answer),
            None => return Err(Error::Closed),
        };
        // A caller who drops this future leaves no entry behind.
        let entry = Entry { client: self, id };
        let mut request = json!({ "execute": command, "id": id });
        if !arguments.is_null() {
            request["arguments"] = arguments;
        }
        let mut line = request.to_string().into_bytes();
        line.push(b'\n');
        self.inner.queue.send(line).await.map_err(|_| Error::Closed)?;
        let reply = answered.await.map_err(|_| Error::Closed);
        drop(entry);
        reply
    }

    fn forget(&self, id: u64) {
        if let Some(open) = self.inner.shared.lock().as_mut() {
            open.pending.remove(&id);
        }
    }
}

struct Entry<'a> {
    client: &'a Client,
    id: u64,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.client.forget(self.id);
    }
}

/// What a listener gets.
#[derive(Debug, Clone, PartialEq)]
pub enum Heard {
    Event(Stamped),
    /// This many events were lost because the listener was slow: ask QEMU for its state.
    Lagged(u64),
}

/// Events of one connection, for one listener.
pub struct Events {
    received: broadcast::Receiver<Stamped>,
}

impl Events {
    /// The next event, or `None` once the connection is closed and all events are read. May be dropped and
    /// called again without losing an event.
    pub async fn next(&mut self) -> Option<Heard> {
        match self.received.recv().await {
            Ok(event) => Some(Heard::Event(event)),
            Err(broadcast::error::RecvError::Lagged(lost)) => Some(Heard::Lagged(lost)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

async fn greeted(read: &mut (impl AsyncBufRead + Unpin), timeout: Duration) -> Result<Version, Error> {
    let line = match tokio::time::timeout(timeout, read_line(read)).await {
        Ok(line) => line.ok_or(Error::Closed)?,
        Err(_) => return Err(Error::TimedOut { command: "greeting".into(), after: timeout }),
    };
    let greeting: Value = serde_json::from_slice(&line)
        .map_err(|_| Error::NotQmp { what: "the first line is not JSON".into() })?;
    let qemu = &greeting["QMP"]["version"]["qemu"];
    let number = |part: &str| qemu[part].as_u64().and_then(|number| u16::try_from(number).ok());
    match (number("major"), number("minor"), number("micro")) {
        (Some(major), Some(minor), Some(micro)) => Ok(Version::new(major, minor, micro)),
        _ => Err(Error::NotQmp { what: "the first line is no greeting".into() }),
    }
}

/// The next line, or `None` at the end, after an error, or when it is too long.
async fn read_line(read: &mut (impl AsyncBufRead + Unpin)) -> Option<Vec<u8>> {
    let mut line = Vec::new();
    let outcome = read.take(LINE_MAX).read_until(b'\n', &mut line).await;
    // A QEMU that exits with unread requests resets the connection: an end like any other.
    match outcome {
        Ok(_) if line.ends_with(b"\n") => Some(line),
        _ => None,
    }
}

async fn read_all(mut read: impl AsyncBufRead + Unpin, shared: Arc<Shared>) {
    while let Some(line) = read_line(&mut read).await {
        match serde_json::from_slice(&line) {
            Ok(message) => on_message(message, &shared),
            Err(error) => {
                tracing::warn!(%error, "QMP line is not JSON; closing");
                break;
            }
        }
    }
    shared.close();
}

fn on_message(mut message: Value, shared: &Shared) {
    let mut open = shared.lock();
    let Some(open) = open.as_mut() else { return };
    if message.get("event").is_some() {
        if let Some(event) = Stamped::parse(message) {
            // Nobody listens: not an error.
            let _ = open.events.send(event);
        }
        return;
    }
    let Some(id) = message["id"].as_u64() else {
        tracing::warn!(%message, "QMP message that answers no request");
        return;
    };
    // Absent when its caller has given up.
    let Some(answer) = open.pending.remove(&id) else { return };
    let reply = match message.get_mut("error") {
        None => Ok(message["return"].take()),
        Some(error) => {
            let text = |field: &str| error[field].as_str().unwrap_or_default().to_owned();
            Err((text("class"), text("desc")))
        }
    };
    let _ = answer.send(reply);
}

async fn write_all(
    mut write: impl AsyncWrite + Unpin,
    mut queue: mpsc::Receiver<Vec<u8>>,
    shared: Arc<Shared>,
) {
    while let Some(line) = queue.recv().await {
        let written = async {
            write.write_all(&line).await?;
            write.flush().await
        };
        if written.await.is_err() {
            break;
        }
    }
    shared.close();
}
