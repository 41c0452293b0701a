//! An export that takes writes into the journal. One client at a time, one request at a time.
//!
//! A write is answered when it is in the journal, a flush at once: nothing that is acknowledged here has to survive
//! this process, since the source's own disk is the one that counts until the barrier.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixListener;

use super::negotiate::{self, negotiate};
use super::{
    COMMAND_DISCONNECT, COMMAND_FLUSH, COMMAND_READ, COMMAND_TRIM, COMMAND_WRITE, COMMAND_WRITE_ZEROES,
    EINVAL, EIO, ENOSPC, PAYLOAD_MAX, REQUEST_BYTES, Request, reply,
};
use crate::volume::chunk::SECTOR_BYTES;
use crate::volume::intake::Intake;
use crate::volume::{Error, Volume};

/// The name under which every socket offers its volume.
pub const EXPORT: &str = "mirror";
/// From the first byte to the first request.
const NEGOTIATE_WITHIN: Duration = Duration::from_secs(10);
/// Of a write's data at a time: whatever a request announces, no more memory is used for it.
const PIECE_BYTES: usize = 256 << 10;
/// A failing `accept` (no descriptors) must not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A socket that only this user may open, and that is removed with it.
#[derive(Debug)]
pub(in crate::volume) struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    pub(in crate::volume) fn bind(path: &Path) -> io::Result<Self> {
        // Left by a process that died: nobody can connect to it any more.
        if std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
            std::fs::remove_file(path)?;
        }
        let address = SocketAddrUnix::new(path)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket: OwnedFd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // Before it has a name: there is no moment at which others could open it.
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        rustix::net::bind(&socket, &address)?;
        let path = path.to_owned();
        rustix::net::listen(&socket, 1)?;
        let listener = UnixListener::from_std(std::os::unix::net::UnixListener::from(socket))?;
        Ok(Self { listener, path })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "a mirror's socket was gone already");
        }
    }
}

/// Why a client's connection ended.
#[derive(Debug, thiserror::Error)]
enum Gone {
    #[error("the client said goodbye")]
    Disconnected,
    #[error("the connection broke")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Negotiate(#[from] negotiate::Error),
    #[error("the client was silent for too long")]
    Silent,
    #[error("the client sent what is no request")]
    NotARequest,
    #[error("the client announced {0} bytes at once")]
    TooLong(u32),
    /// Not the client's fault, and the end of the session.
    #[error("the journal failed")]
    Journal(#[source] io::Error),
}

/// Serves one client after the other. Returns only when the journal fails.
pub(in crate::volume) async fn serve(
    socket: &Socket,
    index: u16,
    volume: Volume,
    intake: &Arc<Intake>,
) -> Error {
    loop {
        let stream = match socket.listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a mirror");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        match converse(stream, index, volume, intake).await {
            Gone::Journal(error) => return Error::Journal(error),
            Gone::Disconnected => tracing::debug!(index, "a mirror has ended"),
            gone => tracing::warn!(index, error = %gone, "a mirror was lost"),
        }
    }
}

async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    index: u16,
    volume: Volume,
    intake: &Arc<Intake>,
) -> Gone {
    let export = negotiate::Export { name: EXPORT, bytes: volume.bytes };
    match tokio::time::timeout(NEGOTIATE_WITHIN, negotiate(&mut stream, export)).await {
        Err(_) => return Gone::Silent,
        Ok(Err(error)) => return error.into(),
        Ok(Ok(())) => {}
    }
    let mut client = Client { stream, index, volume, intake, buffer: vec![0; PIECE_BYTES] };
    loop {
        if let Err(gone) = client.serve_one().await {
            return gone;
        }
    }
}

struct Client<'a, S> {
    stream: S,
    index: u16,
    volume: Volume,
    intake: &'a Arc<Intake>,
    buffer: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<'_, S> {
    async fn serve_one(&mut self) -> Result<(), Gone> {
        let mut header = [0; REQUEST_BYTES];
        self.stream.read_exact(&mut header).await?;
        let request = Request::parse(&header).ok_or(Gone::NotARequest)?;
        let error = match request.command {
            COMMAND_WRITE if request.length > PAYLOAD_MAX => return Err(Gone::TooLong(request.length)),
            COMMAND_WRITE => self.write(&request).await?,
            COMMAND_WRITE_ZEROES | COMMAND_TRIM => match check(&request, self.volume.bytes) {
                Ok(()) => {
                    self.intake.zero(self.index, request.offset, request.length.into()).await;
                    0
                }
                Err(error) => error,
            },
            COMMAND_FLUSH => 0,
            COMMAND_DISCONNECT => return Err(Gone::Disconnected),
            // A mirror reads its source, never its target.
            COMMAND_READ => EIO,
            _ => EINVAL,
        };
        if matches!(request.command, COMMAND_WRITE | COMMAND_WRITE_ZEROES | COMMAND_TRIM) {
            self.intake.hold_back().await;
        }
        Ok(self.stream.write_all(&reply(request.cookie, error)).await?)
    }

    /// Takes the data in piece by piece; that of a bad request is read and dropped.
    async fn write(&mut self, request: &Request) -> Result<u32, Gone> {
        let checked = check(request, self.volume.bytes);
        let (mut offset, mut left) = (request.offset, request.length as usize);
        while left > 0 {
            let piece = &mut self.buffer[..left.min(PIECE_BYTES)];
            self.stream.read_exact(piece).await?;
            if checked.is_ok() {
                self.intake.write(self.index, offset, piece).await.map_err(Gone::Journal)?;
            }
            offset = offset.wrapping_add(piece.len() as u64);
            left -= piece.len();
        }
        Ok(checked.err().unwrap_or(0))
    }
}

/// Whole sectors inside the volume.
fn check(request: &Request, bytes: u64) -> Result<(), u32> {
    let length = u64::from(request.length);
    if request.offset.checked_add(length).is_none_or(|end| end > bytes) {
        return Err(ENOSPC);
    }
    let is_aligned = request.offset.is_multiple_of(SECTOR_BYTES) && length.is_multiple_of(SECTOR_BYTES);
    if is_aligned && length > 0 { Ok(()) } else { Err(EINVAL) }
}

#[cfg(test)]
mod tests;
