//! One connection while it is up: writes what is ready, reads what comes, notices when nothing comes.

use std::io;
use std::sync::Mutex;
use std::time::Instant;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufWriter, ReadHalf, WriteHalf};
use tokio::sync::{Notify, watch};

use super::shared::{Misbehaved, Next, Shared};
use crate::frame::outbox::Carrier;
use crate::frame::{self, Decoder, Frame, Kind, Lane};

/// One batch and its header mostly fit: fewer and fuller TLS records.
const WRITE_BUFFER: usize = 64 << 10;
const READ_BUFFER: usize = 64 << 10;

/// Why a connection ended. Every reason leads to a new one.
#[derive(Debug, thiserror::Error)]
pub(super) enum Lost {
    #[error("the connection broke")]
    Io(#[from] io::Error),
    #[error("the connection was closed")]
    Closed,
    #[error("nothing came for too long")]
    Silent,
    #[error(transparent)]
    Frame(#[from] frame::Error),
    #[error(transparent)]
    Misbehaved(#[from] Misbehaved),
    #[error("another connection took its place")]
    Replaced,
}

/// Frames of a stream in both directions, from the hello on.
pub(super) struct Wire<S> {
    pub(super) reader: ReadHalf<S>,
    pub(super) writer: BufWriter<WriteHalf<S>>,
    pub(super) decoder: Decoder,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub(super) fn new(stream: S) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self { reader, writer: BufWriter::with_capacity(WRITE_BUFFER, writer), decoder: Decoder::default() }
    }

    pub(super) async fn write(&mut self, frame: &Frame) -> Result<(), Lost> {
        write(&mut self.writer, frame).await?;
        Ok(self.writer.flush().await?)
    }

    pub(super) async fn read(&mut self) -> Result<Frame, Lost> {
        read(&mut self.reader, &mut self.decoder).await
    }
}

async fn write<W: AsyncWrite + Unpin>(writer: &mut W, frame: &Frame) -> io::Result<()> {
    writer.write_all(&frame.header()).await?;
    writer.write_all(&frame.payload).await
}

async fn read<R: AsyncRead + Unpin>(reader: &mut R, decoder: &mut Decoder) -> Result<Frame, Lost> {
    loop {
        if let Some(frame) = decoder.next_frame()? {
            return Ok(frame);
        }
        let buffer = decoder.buffer();
        buffer.reserve(READ_BUFFER);
        if reader.read_buf(buffer).await? == 0 {
            return Err(Lost::Closed);
        }
    }
}

/// The newest ping that was not answered: one is enough, and a peer cannot make us keep more.
#[derive(Default)]
struct Pongs {
    due: Mutex<Option<Bytes>>,
    added: Notify,
}

impl Pongs {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Bytes>> {
        self.due.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Runs until the connection is lost or replaced.
pub(super) async fn run<S: AsyncRead + AsyncWrite + Unpin>(
    shared: &Shared,
    number: u8,
    wire: Wire<S>,
) -> Lost {
    let (carrier, stop) = shared.attach(number);
    let pongs = Pongs::default();
    let began = Instant::now();
    let Wire { reader, writer, decoder } = wire;
    let lost = tokio::select! {
        () = stop.cancelled() => Lost::Replaced,
        lost = read_all(shared, reader, decoder, &pongs, began) => lost,
        lost = write_all(shared, (number, carrier), writer, &pongs, began) => lost,
    };
    shared.detach(carrier);
    lost
}

async fn read_all<R: AsyncRead + Unpin>(
    shared: &Shared,
    mut reader: R,
    mut decoder: Decoder,
    pongs: &Pongs,
    began: Instant,
) -> Lost {
    loop {
        let frame = match tokio::time::timeout(shared.options.silence, read(&mut reader, &mut decoder)).await
        {
            Err(_) => return Lost::Silent,
            Ok(Err(lost)) => return lost,
            Ok(Ok(frame)) => frame,
        };
        let now = Instant::now();
        match frame.kind {
            Kind::Ping => {
                *pongs.lock() = Some(frame.payload.slice(..frame.payload.len().min(8)));
                pongs.added.notify_one();
            }
            Kind::Pong => {
                if let Some(sent) = frame.payload.first_chunk().map(|bytes| u64::from_be_bytes(*bytes)) {
                    let since = now.duration_since(began);
                    let took = since.checked_sub(std::time::Duration::from_micros(sent));
                    took.into_iter().for_each(|took| shared.on_round_trip(now, took));
                }
            }
            _ => {
                if let Err(misbehaved) = shared.on_frame(frame, now) {
                    return misbehaved.into();
                }
            }
        }
    }
}

async fn write_all<W: AsyncWrite + Unpin>(
    shared: &Shared,
    (number, carrier): (u8, Carrier),
    mut writer: W,
    pongs: &Pongs,
    began: Instant,
) -> Lost {
    let lane = if number == 0 { Lane::Urgent } else { Lane::Data };
    let mut pings = tokio::time::interval(shared.options.silence / 4);
    let mut rate = shared.options.pace.rate();
    loop {
        rate.borrow_and_update();
        let ready = shared.ready(lane).notified();
        let pong = pongs.lock().take().map(|payload| Frame::unnumbered(Kind::Pong, payload));
        let mut wait = None;
        let frame = match pong.map_or_else(|| shared.next(number, carrier, Instant::now()), Next::Write) {
            Next::Write(frame) => Some(frame),
            Next::Wait(time) => {
                wait = Some(time);
                None
            }
            Next::Nothing => None,
        };
        if let Some(frame) = frame {
            if let Err(error) = write(&mut writer, &frame).await {
                return error.into();
            }
            shared.on_written(frame.wire_bytes());
            if frame.kind == Kind::Bye {
                if let Err(error) = writer.flush().await {
                    return error.into();
                }
                shared.on_said_bye();
            }
            continue;
        }
        if let Err(error) = writer.flush().await {
            return error.into();
        }
        tokio::select! {
            () = ready, if wait.is_none() => {}
            () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
            () = another(&mut rate), if wait.is_some() => {}
            () = pongs.added.notified() => {}
            _ = pings.tick() => {
                let sent = began.elapsed().as_micros() as u64;
                let ping = Frame::unnumbered(Kind::Ping, Bytes::copy_from_slice(&sent.to_be_bytes()));
                if let Err(error) = write(&mut writer, &ping).await {
                    return error.into();
                }
            }
        }
    }
}

/// A wait under the old rate is no wait under the new one.
async fn another(rate: &mut watch::Receiver<u64>) {
    if rate.changed().await.is_err() {
        // Nobody is left who could change it.
        std::future::pending::<()>().await;
    }
}
