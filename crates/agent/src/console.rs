//! Connects a person with a guest's serial port or screen: the agent dials back with a ticket and carries bytes.
//!
//! QEMU serves one reader of each at a time, so the newest one wins and the older is told.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use reqwest::StatusCode;
use reqwest::header::{CONNECTION, UPGRADE};
use sterna_wire::down::End;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::link::tls::Identity;
use crate::qemu_hypervisor::{self, QEMU_DIR, SERIAL_LOG, SERIAL_SOCKET, VNC_SOCKET};

const PROTOCOL: &str = "sterna-stream";
/// What the guest printed last, shown to one who has just come.
const LOOK_BACK: u64 = 2048;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the guest's socket cannot be reached")]
    Guest(#[source] io::Error),
    #[error(transparent)]
    Tls(#[from] crate::link::tls::Error),
    #[error("the server cannot be reached")]
    Server(#[from] reqwest::Error),
    #[error("the server answers {0}")]
    Refused(StatusCode),
}

pub struct Consoles {
    identity: Identity,
    run_dir: PathBuf,
    open: Mutex<HashMap<(Uuid, bool), CancellationToken>>,
}

impl Consoles {
    #[must_use]
    pub fn new(identity: Identity, run_dir: PathBuf) -> Arc<Self> {
        Arc::new(Self { identity, run_dir, open: Mutex::default() })
    }

    /// Begins, and answers at once.
    pub fn attach(self: &Arc<Self>, ticket: String, uid: Uuid, end: End) {
        let (consoles, ended) = (Arc::clone(self), CancellationToken::new());
        let key = (uid, end == End::Serial);
        let older = self.lock().insert(key, ended.clone());
        tokio::spawn(async move {
            if let Some(older) = older {
                older.cancel();
            }
            if let Err(error) = consoles.carry(&ticket, uid, end, &ended).await {
                tracing::warn!(%uid, %error, "a console was not connected");
            }
            ended.cancel();
            consoles.lock().retain(|_, open| !open.is_cancelled());
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(Uuid, bool), CancellationToken>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn carry(&self, ticket: &str, uid: Uuid, end: End, ended: &CancellationToken) -> Result<(), Error> {
        let directory = qemu_hypervisor::directory(&self.run_dir, uid).join(QEMU_DIR);
        let mut person = self.dial_back(ticket).await?;
        let socket = directory.join(if end == End::Serial { SERIAL_SOCKET } else { VNC_SOCKET });
        let mut guest = match connect(&socket).await {
            Ok(guest) => guest,
            Err(error) => {
                say(&mut person, end, "the guest does not run here").await;
                return Err(Error::Guest(error));
            }
        };
        if end == End::Serial
            && let Ok(last) = tail(&directory.join(SERIAL_LOG)).await
        {
            // One who is gone already is noticed below.
            let _ = person.write_all(&last).await;
        }
        tokio::select! {
            () = ended.cancelled() => say(&mut person, end, "another console took over").await,
            // Either side may go at any time: that is how a console ends.
            _ = tokio::io::copy_bidirectional(&mut person, &mut guest) => {}
        }
        let _ = person.shutdown().await;
        Ok(())
    }

    async fn dial_back(&self, ticket: &str) -> Result<reqwest::Upgraded, Error> {
        let url = self.identity.url(&format!("/agent/v1/attach/{ticket}"));
        let request = self.identity.stream_client().await?.get(url);
        let answer = request.header(CONNECTION, "upgrade").header(UPGRADE, PROTOCOL).send().await?;
        match answer.status() {
            StatusCode::SWITCHING_PROTOCOLS => Ok(answer.upgrade().await?),
            status => Err(Error::Refused(status)),
        }
    }
}

/// A word to the person; a screen has no place for one.
async fn say(person: &mut (impl AsyncWrite + Unpin), end: End, what: &str) {
    if end == End::Serial {
        let _ = person.write_all(format!("\r\n[{what}]\r\n").as_bytes()).await;
    }
}

/// The directory is QEMU's: a link laid there would lead to another guest's socket.
async fn connect(socket: &Path) -> io::Result<UnixStream> {
    use std::os::unix::fs::FileTypeExt;
    if !tokio::fs::symlink_metadata(socket).await?.file_type().is_socket() {
        return Err(io::Error::other("not a socket"));
    }
    UnixStream::connect(socket).await
}

async fn tail(log: &Path) -> io::Result<Vec<u8>> {
    let mut file = tokio::fs::OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(log).await?;
    let length = file.metadata().await?.len();
    file.seek(io::SeekFrom::Start(length.saturating_sub(LOOK_BACK))).await?;
    let mut last = Vec::new();
    file.take(LOOK_BACK).read_to_end(&mut last).await?;
    Ok(last)
}
