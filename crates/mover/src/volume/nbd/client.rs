//! A client of one export, with many requests in flight.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    COMMAND_DISCONNECT, COMMAND_FLUSH, COMMAND_READ, COMMAND_WRITE, COMMAND_WRITE_ZEROES, FIXED_NEWSTYLE,
    HAS_FLAGS, INFO_EXPORT, MAGIC, NO_ZEROES, OPTION_GO, OPTION_MAGIC, OPTION_REPLY_MAGIC, READ_ONLY,
    REPLY_ACK, REPLY_BYTES, REPLY_ERROR, REPLY_INFO, Request, SEND_FLUSH, SEND_WRITE_ZEROES, parse_reply,
};

/// QEMU's server answers so many at once; more would only wait there.
const IN_FLIGHT: usize = 16;
/// Of one answer to an option; names and descriptions are ours, and short.
const OPTION_REPLY_MAX: u32 = 4096;
/// For one request; longer ranges become several, so that each is answered in good time.
const ZERO_BYTES_MAX: u64 = 256 << 20;
/// Of zeros that are written as data, where the server knows no other way.
const ZERO_PIECE: u64 = 1 << 20;

#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    #[error("the export's socket cannot be read or written")]
    Io(#[source] Arc<io::Error>),
    #[error("the server speaks no fixed newstyle NBD")]
    NotNbd,
    #[error("the server offers no export {name:?}")]
    NoExport { name: String },
    #[error("the export cannot be written")]
    ReadOnly,
    #[error("the export refused a request with error number {errno}")]
    Refused { errno: u32 },
    #[error("the connection to the export has ended")]
    Closed,
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}

/// One connection. Requests may be made from many tasks at once. It ends when it is dropped.
#[derive(Debug)]
pub struct Client {
    shared: Arc<Shared>,
    queue: mpsc::Sender<(Request, Bytes)>,
    bytes: u64,
    flags: u16,
    slots: Semaphore,
    _stop: DropGuard,
}

#[derive(Debug, Default)]
struct Shared {
    pending: Mutex<Pending>,
}

#[derive(Debug, Default)]
struct Pending {
    next: u64,
    is_closed: bool,
    waiting: HashMap<u64, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    /// What follows a successful answer.
    length: usize,
    answer: oneshot::Sender<Result<Bytes, Error>>,
}

impl Shared {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        // Nothing panics while it is held.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        let mut pending = self.pending();
        pending.is_closed = true;
        // Their receivers see that nobody will answer.
        pending.waiting.clear();
    }
}

impl Client {
    pub async fn connect(path: &Path, export: &str) -> Result<Self, Error> {
        Self::over(UnixStream::connect(path).await?, export).await
    }

    pub(super) async fn over<S>(mut stream: S, export: &str) -> Result<Self, Error>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (bytes, flags) = negotiate(&mut stream, export).await?;
        if flags & READ_ONLY != 0 {
            return Err(Error::ReadOnly);
        }
        let (reader, writer) = tokio::io::split(stream);
        let (queue, queued) = mpsc::channel(IN_FLIGHT);
        let (shared, stop) = (Arc::new(Shared::default()), CancellationToken::new());
        let (stopped, closing) = (stop.clone(), Arc::clone(&shared));
        tokio::spawn(async move {
            let ended = tokio::select! {
                () = stopped.cancelled() => Ok(()),
                read = read_all(reader, &closing) => read,
                written = write_all(writer, queued) => written,
            };
            if let Err(error) = ended {
                tracing::warn!(%error, "an export was lost");
            }
            closing.close();
        });
        let slots = Semaphore::new(IN_FLIGHT);
        Ok(Self { shared, queue, bytes, flags, slots, _stop: stop.drop_guard() })
    }

    /// The size of the export.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub async fn read(&self, offset: u64, length: usize) -> Result<Bytes, Error> {
        self.request(COMMAND_READ, offset, length as u32, Bytes::new()).await
    }

    pub async fn write(&self, offset: u64, data: Bytes) -> Result<(), Error> {
        self.request(COMMAND_WRITE, offset, data.len() as u32, data).await.map(drop)
    }

    pub async fn write_zeroes(&self, mut offset: u64, mut length: u64) -> Result<(), Error> {
        let has_command = self.flags & SEND_WRITE_ZEROES != 0;
        let most = if has_command { ZERO_BYTES_MAX } else { ZERO_PIECE };
        while length > 0 {
            let piece = length.min(most);
            match has_command {
                true => self.request(COMMAND_WRITE_ZEROES, offset, piece as u32, Bytes::new()).await?,
                false => {
                    let zeros = Bytes::from(vec![0; piece as usize]);
                    self.request(COMMAND_WRITE, offset, piece as u32, zeros).await?
                }
            };
            (offset, length) = (offset + piece, length - piece);
        }
        Ok(())
    }

    /// What was written before is on the disk after this.
    pub async fn flush(&self) -> Result<(), Error> {
        if self.flags & SEND_FLUSH == 0 {
            return Ok(());
        }
        self.request(COMMAND_FLUSH, 0, 0, Bytes::new()).await.map(drop)
    }

    async fn request(&self, command: u16, offset: u64, length: u32, data: Bytes) -> Result<Bytes, Error> {
        let _slot = self.slots.acquire().await.map_err(|_| Error::Closed)?;
        let (answer, answered) = oneshot::channel();
        let cookie = {
            let mut pending = self.shared.pending();
            if pending.is_closed {
                return Err(Error::Closed);
            }
            pending.next += 1;
            let length = if command == COMMAND_READ { length as usize } else { 0 };
            let cookie = pending.next;
            pending.waiting.insert(cookie, Waiting { length, answer });
            cookie
        };
        let request = Request { flags: 0, command, cookie, offset, length };
        self.queue.send((request, data)).await.map_err(|_| Error::Closed)?;
        answered.await.unwrap_or(Err(Error::Closed))
    }
}

/// Size and flags of the export.
async fn negotiate<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    export: &str,
) -> Result<(u64, u16), Error> {
    if stream.read_u64().await? != MAGIC || stream.read_u64().await? != OPTION_MAGIC {
        return Err(Error::NotNbd);
    }
    let flags = stream.read_u16().await?;
    if flags & FIXED_NEWSTYLE == 0 {
        return Err(Error::NotNbd);
    }
    let mut go = u32::from(flags & (FIXED_NEWSTYLE | NO_ZEROES)).to_be_bytes().to_vec();
    go.extend(OPTION_MAGIC.to_be_bytes());
    go.extend(OPTION_GO.to_be_bytes());
    go.extend((export.len() as u32 + 6).to_be_bytes());
    go.extend((export.len() as u32).to_be_bytes());
    go.extend(export.as_bytes());
    go.extend([0, 0]);
    stream.write_all(&go).await?;
    let mut found = None;
    loop {
        let (magic, option) = (stream.read_u64().await?, stream.read_u32().await?);
        let (reply, length) = (stream.read_u32().await?, stream.read_u32().await?);
        if magic != OPTION_REPLY_MAGIC || option != OPTION_GO || length > OPTION_REPLY_MAX {
            return Err(Error::NotNbd);
        }
        let mut data = vec![0; length as usize];
        stream.read_exact(&mut data).await?;
        match reply {
            REPLY_INFO => found = parse_export(&data).or(found),
            REPLY_ACK => return found.ok_or(Error::NotNbd),
            error if error & REPLY_ERROR != 0 => {
                return Err(Error::NoExport { name: export.to_owned() });
            }
            _ => return Err(Error::NotNbd),
        }
    }
}

fn parse_export(data: &[u8]) -> Option<(u64, u16)> {
    let (kind, rest) = data.split_first_chunk()?;
    let (bytes, rest) = rest.split_first_chunk()?;
    let flags = u16::from_be_bytes(*rest.first_chunk()?);
    let is_export = u16::from_be_bytes(*kind) == INFO_EXPORT && flags & HAS_FLAGS != 0;
    is_export.then(|| (u64::from_be_bytes(*bytes), flags))
}

async fn read_all<R: AsyncRead + Unpin>(mut reader: R, shared: &Shared) -> Result<(), Error> {
    loop {
        let mut header = [0; REPLY_BYTES];
        reader.read_exact(&mut header).await?;
        let (cookie, errno) = parse_reply(&header).ok_or(Error::NotNbd)?;
        let waiting = shared.pending().waiting.remove(&cookie).ok_or(Error::NotNbd)?;
        let answer = if errno == 0 {
            // As much as was asked for, so never more than a chunk.
            let mut data = vec![0; waiting.length];
            reader.read_exact(&mut data).await?;
            Ok(Bytes::from(data))
        } else {
            Err(Error::Refused { errno })
        };
        // Who asked may have given up.
        let _ = waiting.answer.send(answer);
    }
}

async fn write_all<W: AsyncWrite + Unpin>(
    mut writer: W,
    mut queued: mpsc::Receiver<(Request, Bytes)>,
) -> Result<(), Error> {
    while let Some((request, data)) = queued.recv().await {
        writer.write_all(&request.bytes()).await?;
        writer.write_all(&data).await?;
    }
    let goodbye = Request { flags: 0, command: COMMAND_DISCONNECT, cookie: 0, offset: 0, length: 0 };
    Ok(writer.write_all(&goodbye.bytes()).await?)
}

#[cfg(test)]
mod tests {
    use super::super::reply;
    use super::*;

    /// A server that answers the option, then what it is told to.
    async fn server(flags: u16, answers: Vec<Vec<u8>>) -> Result<Client, Error> {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let serving = tokio::spawn(async move {
            far.write_u64(MAGIC).await.unwrap();
            far.write_u64(OPTION_MAGIC).await.unwrap();
            far.write_u16(FIXED_NEWSTYLE | NO_ZEROES).await.unwrap();
            far.read_exact(&mut [0; 4 + 16 + 4 + 1 + 2]).await.unwrap();
            for (kind, data) in [
                (REPLY_INFO, [&[0, 0][..], &(1_u64 << 20).to_be_bytes(), &flags.to_be_bytes()].concat()),
                (REPLY_INFO, vec![0, 9, 1]),
                (REPLY_ACK, vec![]),
            ] {
                far.write_u64(OPTION_REPLY_MAGIC).await.unwrap();
                far.write_u32(OPTION_GO).await.unwrap();
                far.write_u32(kind).await.unwrap();
                far.write_u32(data.len() as u32).await.unwrap();
                far.write_all(&data).await.unwrap();
            }
            // All requests before the first answer.
            for _ in &answers {
                far.read_exact(&mut [0; 28]).await.unwrap();
            }
            for answer in answers {
                far.write_all(&answer).await.unwrap();
            }
        });
        let client = Client::over(near, "x").await;
        tokio::spawn(serving);
        client
    }

    #[tokio::test]
    async fn answers_find_their_requests_in_whatever_order_they_come() {
        let second = [&reply(2, 0)[..], b"BBBB"].concat();
        let first = [&reply(1, 0)[..], b"AAAA"].concat();
        let client = server(HAS_FLAGS, vec![second, first, reply(3, 28).to_vec()]).await.unwrap();
        let (a, b, c) = tokio::join!(client.read(0, 4), client.read(4, 4), client.read(8, 4));
        assert_eq!((a.unwrap(), b.unwrap()), (Bytes::from_static(b"AAAA"), Bytes::from_static(b"BBBB")));
        assert!(matches!(c, Err(Error::Refused { errno: 28 })));
        // The server has gone by now, and whoever asks is told so.
        assert!(matches!(client.read(0, 4).await, Err(Error::Closed)));
    }

    #[tokio::test]
    async fn an_answer_to_nothing_ends_the_connection_for_all_who_wait() {
        let client = server(HAS_FLAGS, vec![reply(99, 0).to_vec(), vec![]]).await.unwrap();
        let (a, b) = tokio::join!(client.read(0, 4), client.read(4, 4));
        assert!(matches!((a, b), (Err(Error::Closed), Err(Error::Closed))));
    }

    #[tokio::test]
    async fn an_export_that_cannot_be_written_is_refused() {
        let refused = server(HAS_FLAGS | READ_ONLY, vec![]).await;
        assert!(matches!(refused, Err(Error::ReadOnly)), "{refused:?}");
    }
}
