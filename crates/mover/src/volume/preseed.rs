//! Most of a volume, hours before its VM moves: the target's side is that of a mirror, the source's is whatever can be
//! read.
//!
//! Zeros and holes are passed over: what the target has there is put right by the mirror later. How fast it goes is the
//! link's business.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use tokio::sync::{oneshot, watch};

use super::chunk::{CHUNK_BYTES, Digest, chunk_length};
use super::intake::Intake;
use super::source::{self, Feeds, Options, Source, SourceEvent};
use super::{Error, Outcome, Progress, blocking};
use crate::link::{Ended, Link};

/// Where the contents are. Calls may take as long as a disk does.
pub trait Content: Send + 'static {
    /// Where there may be something else than zeros next, at or behind `offset`; `None` if nowhere.
    fn next_data(&mut self, volume: u16, offset: u64) -> io::Result<Option<u64>> {
        let _ = volume;
        Ok(Some(offset))
    }

    /// Fills the buffer; it never reaches beyond the volume.
    fn read(&mut self, volume: u16, offset: u64, into: &mut [u8]) -> io::Result<()>;
}

/// Raw images, one for each volume.
#[derive(Debug)]
pub struct Files(pub Vec<File>);

impl Files {
    fn file(&self, volume: u16) -> io::Result<&File> {
        self.0.get(usize::from(volume)).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }
}

impl Content for Files {
    fn next_data(&mut self, volume: u16, offset: u64) -> io::Result<Option<u64>> {
        match rustix::fs::seek(self.file(volume)?, rustix::fs::SeekFrom::Data(offset)) {
            Ok(found) => Ok(Some(found)),
            Err(rustix::io::Errno::NXIO) => Ok(None),
            // A device or a file system that knows no holes.
            Err(rustix::io::Errno::INVAL) => Ok(Some(offset)),
            Err(error) => Err(error.into()),
        }
    }

    fn read(&mut self, volume: u16, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.file(volume)?.read_exact_at(into, offset)
    }
}

/// How far a pre-seed is.
#[derive(Debug)]
pub struct Preseed {
    source: Source,
    is_read: oneshot::Receiver<()>,
}

impl Preseed {
    pub fn start(link: Link, options: Options, content: impl Content) -> Result<Self, Error> {
        let intake = source::prepare(&options)?;
        let sizes: Vec<u64> = options.volumes.iter().map(|volume| volume.bytes).collect();
        let (read, is_read) = oneshot::channel();
        let (mut feeds, feeding) = (Feeds::new(), Arc::clone(&intake));
        feeds.spawn(async move {
            match feed(&feeding, &sizes, content).await {
                Err(error) => error,
                Ok(()) => {
                    // Nobody listens any more, or it is told: what remains is to wait for the end.
                    let _ = read.send(());
                    std::future::pending().await
                }
            }
        });
        let source = Source::over(link, options, intake, (feeds, Vec::new()))?;
        Ok(Self { source, is_read })
    }

    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.source.progress()
    }

    /// Returns when the target has all of it on its disks. Dropping the future gives up; what arrived stays there.
    pub async fn run(mut self) -> Result<Digest, Error> {
        let source = &self.source;
        let crossing = async {
            (&mut self.is_read).await.ok()?;
            let digest = source.barrier().await.ok()?;
            source.finish().await.ok()?;
            Some(digest)
        };
        let crossed = crossing.await;
        loop {
            match (self.source.events.recv().await, crossed) {
                (Some(SourceEvent::Ended(Outcome::Finished)), Some(digest)) => return Ok(digest),
                (Some(SourceEvent::Ended(Outcome::Failed(error))), _) => return Err(error),
                (Some(SourceEvent::Opened), _) => {}
                (Some(SourceEvent::Ended(_)) | None, _) => return Err(Ended::Stopped.into()),
            }
        }
    }
}

async fn feed(intake: &Arc<Intake>, sizes: &[u64], content: impl Content) -> Result<(), Error> {
    let mut content = content;
    for (index, bytes) in (0_u16..).zip(sizes.iter().copied()) {
        let mut chunk = 0;
        while chunk_length(bytes, chunk) > 0 {
            let (back, read) = blocking(move || {
                let read = next(&mut content, index, bytes, chunk);
                (content, read)
            })
            .await;
            content = back;
            let Some((at, data)) = read.map_err(|source| Error::Content { index, source })? else { break };
            if data.iter().any(|byte| *byte != 0) {
                let offset = at * CHUNK_BYTES as u64;
                intake.write(index, offset, &data).await.map_err(Error::Journal)?;
            }
            chunk = at + 1;
        }
    }
    Ok(())
}

/// The next chunk that is no hole, and its content.
fn next(
    content: &mut impl Content,
    index: u16,
    bytes: u64,
    chunk: u64,
) -> io::Result<Option<(u64, Vec<u8>)>> {
    let Some(data) = content.next_data(index, chunk * CHUNK_BYTES as u64)? else { return Ok(None) };
    let chunk = chunk.max(data / CHUNK_BYTES as u64);
    let length = chunk_length(bytes, chunk);
    if length == 0 {
        return Ok(None);
    }
    let mut buffer = vec![0; length];
    content.read(index, chunk * CHUNK_BYTES as u64, &mut buffer)?;
    Ok(Some((chunk, buffer)))
}
