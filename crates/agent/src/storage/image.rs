//! Content of images in a pool: fetched once, checked while it arrives, never changed afterwards.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use sterna_model::image::Format;
use sterna_model::meta::Name;
use sterna_model::volume::ImageRef;
use sterna_qemu::image as content;
use tokio::sync::mpsc;

use super::error::{Error, blocking};
use super::folder::{self, Folder, User};
use super::format::word;

/// The disk a guest may see; larger than any pool, small enough that no sum overflows.
const DISK_MAX: u64 = 1 << 50;

/// Left free when an image is fetched: the VMs of the pool must still be able to write.
const RESERVE: u64 = 256 << 20;

/// A transfer that stands still for this long is given up (and tried again later).
const STALL: Duration = Duration::from_secs(30);

/// How often a host looks whether another one has finished the same image.
const LOCK_POLL: Duration = Duration::from_millis(200);

/// How often the room in the pool is looked at, in bytes.
const LOOK_EVERY: u64 = 1 << 20;

/// Pieces that wait for the disk; each is as large as the line makes them, 16 KiB as a rule.
const QUEUED_MAX: usize = 256;

/// Progress is a write to the store: a person cannot read it faster than this.
const TELL_EVERY: Duration = Duration::from_millis(500);

/// An image on its way from the server.
pub struct Fetched {
    /// Bytes to come, where the server says so.
    pub length: Option<u64>,
    pub bytes: BoxStream<'static, io::Result<Bytes>>,
}

/// The port through which images arrive.
pub trait Fetcher: Send + Sync + 'static {
    /// Starts a transfer from the first byte.
    fn fetch(&self, image: Name) -> BoxFuture<'static, io::Result<Fetched>>;
}

/// The name of an image's content in a pool. Refuses a checksum that is none: it becomes a file name.
pub fn file_name(image: &ImageRef) -> Result<String, Error> {
    let sum = &image.sha256;
    let is_sum = sum.len() == 64 && sum.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if !is_sum {
        return Err(Error::refused(format!("image {} has no SHA-256 checksum", image.name)));
    }
    Ok(format!("{sum}.{}", word(image.format)))
}

/// The name of content that has not been checked yet. Only its lock's holder uses it.
fn unfinished(name: &str) -> String {
    format!(".{name}.part")
}

/// Makes sure that the image is in the pool; answers the size of its disk. `percent` hears how far it is.
pub async fn ensure(
    pool: &Arc<Folder>,
    image: &ImageRef,
    user: User,
    fetcher: &dyn Fetcher,
    percent: &(dyn Fn(u8) + Send + Sync),
) -> Result<u64, Error> {
    let name = file_name(image)?;
    if let Some(size) = look(pool, &name, image.format).await? {
        return Ok(size);
    }
    // Held until the end: hosts that share the pool fetch an image once.
    let _lock = lock(pool, image).await?;
    if let Some(size) = look(pool, &name, image.format).await? {
        return Ok(size);
    }
    let temporary = unfinished(&name);
    let arrived = receive(pool, image, &temporary, fetcher, percent).await;
    let placed = match arrived {
        Ok(file) => {
            let (pool, image) = (Arc::clone(pool), image.clone());
            blocking(move || accept(&pool, file, &image, &name, user)).await
        }
        Err(error) => Err(error),
    };
    if placed.is_err() {
        // What matters is the error above; a left-over is overwritten by the next attempt.
        let _ = rustix::fs::unlinkat(pool.images(), &temporary, AtFlags::empty());
    }
    placed
}

/// Size of the disk in an image that is there already.
async fn look(pool: &Arc<Folder>, name: &str, format: Format) -> Result<Option<u64>, Error> {
    let (pool, name) = (Arc::clone(pool), name.to_owned());
    blocking(move || disk_size(pool.images(), &name, format)).await
}

/// Size of the disk in an image or volume; `None` when there is none of that name. Follows no link, opens no device,
/// and takes the format as told.
pub fn disk_size(folder: impl AsFd, name: &str, format: Format) -> Result<Option<u64>, Error> {
    let opened = match content::open(folder, Path::new(name)) {
        Ok(opened) => opened,
        Err(content::Refused::Unreadable { source }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(content::Refused::Unreadable { source }) => {
            return Err(Error::Io { what: format!("open {name}"), source });
        }
        Err(refused) => return Err(Error::refused(format!("{name} is not used: {refused}"))),
    };
    size_of(&opened, name, format).map(Some)
}

fn size_of(opened: &content::Opened, name: &str, format: Format) -> Result<u64, Error> {
    match format {
        Format::Raw => Ok(content::Bytes::size(opened)),
        Format::Qcow2 => content::Header::read(opened)
            .map(|header| header.virtual_size)
            .map_err(|refused| Error::refused(format!("{name} is damaged: {refused}"))),
    }
}

async fn lock(pool: &Arc<Folder>, image: &ImageRef) -> Result<File, Error> {
    let name = format!(".{}.lock", image.sha256);
    let what = || format!("lock image {}", image.name);
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = rustix::fs::openat(pool.images(), &name, flags, Mode::from_raw_mode(0o600))
        .map_err(|error| Error::io(what())(error.into()))?;
    loop {
        match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(File::from(fd)),
            Err(Errno::WOULDBLOCK) => tokio::time::sleep(LOCK_POLL).await,
            Err(error) => return Err(Error::io(what())(error.into())),
        }
    }
}

/// Writes what arrives into a new file and compares it with what was promised.
async fn receive(
    pool: &Folder,
    image: &ImageRef,
    temporary: &str,
    fetcher: &dyn Fetcher,
    percent: &(dyn Fn(u8) + Send + Sync),
) -> Result<File, Error> {
    let what = || format!("fetch image {}", image.name);
    let fetched = tokio::time::timeout(STALL, fetcher.fetch(image.name.clone())).await;
    let mut fetched = fetched.map_err(|_| stalled(image))?.map_err(Error::io(what()))?;
    check_room(pool, fetched.length.unwrap_or(0))?;
    let file = new_file(pool.images(), temporary).map_err(Error::io(what()))?;
    let (chunks, queued) = mpsc::channel(QUEUED_MAX);
    // Beside the line, which would else wait for each checksum and each write.
    let writing = tokio::task::spawn_blocking(move || write(file, queued));
    let received = feed(pool, image, &mut fetched, chunks, percent).await;
    let written = writing.await.unwrap_or_else(|error| Err(io::Error::other(error)));
    let count = received?;
    let (file, sum) = written.map_err(Error::io(what()))?;
    if fetched.length.is_some_and(|length| count < length) {
        return Err(Error::not_yet(format!("image {} was cut off after {count} bytes", image.name)));
    }
    let sum: String = sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if sum != image.sha256 {
        return Err(Error::refused(format!(
            "image {} arrived with the checksum {sum} instead of {}; import it again",
            image.name, image.sha256
        )));
    }
    Ok(file)
}

/// Takes what arrives; answers how many bytes. Ends early, without an error of its own, when nobody writes them any more.
async fn feed(
    pool: &Folder,
    image: &ImageRef,
    fetched: &mut Fetched,
    chunks: mpsc::Sender<Bytes>,
    percent: &(dyn Fn(u8) + Send + Sync),
) -> Result<u64, Error> {
    let (mut count, mut looked) = (0_u64, 0);
    let (mut told, mut told_at) = (0, Instant::now());
    while let Some(chunk) =
        tokio::time::timeout(STALL, fetched.bytes.next()).await.map_err(|_| stalled(image))?
    {
        let chunk = chunk.map_err(Error::io(format!("fetch image {}", image.name)))?;
        count += chunk.len() as u64;
        if fetched.length.is_some_and(|length| count > length) {
            return Err(Error::not_yet(format!("image {} is longer than the server said", image.name)));
        }
        if count - looked >= LOOK_EVERY {
            check_room(pool, LOOK_EVERY)?;
            looked = count;
        }
        if chunks.send(chunk).await.is_err() {
            break;
        }
        let now = fetched.length.map_or(0, |length| share(count, length));
        if now > told && told_at.elapsed() >= TELL_EVERY {
            (told, told_at) = (now, Instant::now());
            percent(now);
        }
    }
    Ok(count)
}

fn write(mut file: File, mut chunks: mpsc::Receiver<Bytes>) -> io::Result<(File, Sha256)> {
    let mut sum = Sha256::new();
    while let Some(chunk) = chunks.blocking_recv() {
        sum.update(&chunk);
        io::Write::write_all(&mut file, &chunk)?;
    }
    Ok((file, sum))
}

fn stalled(image: &ImageRef) -> Error {
    Error::not_yet(format!("the server sent nothing of image {} for {} s", image.name, STALL.as_secs()))
}

fn share(count: u64, length: u64) -> u8 {
    u8::try_from(count.saturating_mul(100) / length.max(1)).unwrap_or(100).min(100)
}

fn check_room(pool: &Folder, bytes: u64) -> Result<(), Error> {
    let free = pool.space()?.free;
    if free < bytes.saturating_add(RESERVE) {
        return Err(Error::refused(format!(
            "the pool has only {} MiB free, {} MiB of them kept for running VMs; free some or add to it",
            free >> 20,
            RESERVE >> 20
        )));
    }
    Ok(())
}

/// A file that nobody else has open. A left-over of that name is somebody's who died.
fn new_file(folder: impl AsFd, name: &str) -> io::Result<File> {
    let folder = folder.as_fd();
    folder::remove(folder, name)?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::openat(folder, name, flags, Mode::from_raw_mode(0o600))?))
}

/// Looks at the bytes (the server did, too; a pool trusts nobody) and gives them their name.
fn accept(pool: &Folder, file: File, image: &ImageRef, name: &str, user: User) -> Result<u64, Error> {
    let refuse = |refused: content::Refused| {
        Error::refused(format!("image {} is not used: {refused}; {}", image.name, refused.hint()))
    };
    let opened = content::opened(file).map_err(refuse)?;
    let seen = content::inspect(&opened, DISK_MAX).map_err(refuse)?;
    if seen.format.as_str() != word(image.format) {
        return Err(Error::refused(format!(
            "image {} was announced as {} but is {}; import it again",
            image.name,
            word(image.format),
            seen.format.as_str()
        )));
    }
    folder::finish(&opened.file, None, user.gid, 0o440)
        .and_then(|()| folder::put_in_place(pool.images(), &unfinished(name), name))
        .map_err(Error::io(format!("keep image {}", image.name)))?;
    Ok(seen.virtual_size)
}
