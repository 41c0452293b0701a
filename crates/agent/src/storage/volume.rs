//! Volumes as files of a pool: made under another name and renamed when whole, so that a volume is either there or not.
//!
//! Every step may be repeated after a crash: what is there is never made again.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Dir, Mode, OFlags};
use rustix::io::Errno;
use sterna_model::image::Format;
use sterna_qemu::img::{self, ImageFile};
use sterna_wire::assignment::VolumeAssignment;
use uuid::Uuid;

use super::error::{Error, blocking};
use super::folder::{self, Folder, User};
use super::image::{self, Fetcher};
use super::{file_lock, format, former};

/// The end of names that are not finished yet.
const UNFINISHED: &str = "new";

pub fn file_name(uid: Uuid, format: Format) -> String {
    format!("{uid}.{}", format::word(format))
}

/// What volumes are made with.
#[derive(Clone)]
pub struct Maker {
    pub qemu_img: img::Tool,
    pub fetcher: Arc<dyn Fetcher>,
    pub user: User,
}

/// Size of a volume's disk; `None` when it is not there.
pub async fn look(pool: &Arc<Folder>, uid: Uuid, format: Format) -> Result<Option<u64>, Error> {
    let pool = Arc::clone(pool);
    blocking(move || image::disk_size(pool.volumes(), &file_name(uid, format), format)).await
}

/// Makes the volume unless it is there; answers the size of its disk.
pub async fn ensure(
    pool: &Arc<Folder>,
    volume: &VolumeAssignment,
    maker: &Maker,
    percent: &(dyn Fn(u8) + Send + Sync),
) -> Result<u64, Error> {
    if let Some(size) = look(pool, volume.uid, volume.format).await? {
        return Ok(size);
    }
    check_size(volume.size.as_u64())?;
    percent(0);
    clean(pool, volume.uid).await?;
    // A fresh name for each attempt: a tool that outlived its agent may still write to an older one.
    let temporary = format!(".{}.{}.{UNFINISHED}", volume.uid, Uuid::new_v4());
    let made = make(pool, volume, maker, &temporary, percent).await;
    let placed = match made {
        Ok(()) => {
            let (pool, temporary, user) = (Arc::clone(pool), temporary.clone(), maker.user);
            let name = file_name(volume.uid, volume.format);
            blocking(move || place(&pool, &temporary, &name, user)).await
        }
        Err(error) => Err(error),
    };
    if let Err(error) = placed {
        // What matters is the error; a left-over is removed by the next attempt.
        let _ = folder::remove(pool.volumes(), &temporary);
        return Err(error);
    }
    look(pool, volume.uid, volume.format)
        .await?
        .ok_or_else(|| Error::not_yet(format!("volume {} has vanished from its pool", volume.name)))
}

/// The same for a volume that a move brings here: what an earlier one left of it is the start. Growing is not done here.
pub async fn arrive(
    pool: &Arc<Folder>,
    volume: &VolumeAssignment,
    maker: &Maker,
    percent: &(dyn Fn(u8) + Send + Sync),
) -> Result<u64, Error> {
    if let (Format::Qcow2, Some(image)) = (volume.format, &volume.image) {
        // The copy does not stand alone either.
        image::ensure(pool, image, maker.user, maker.fetcher.as_ref(), percent).await?;
    }
    match former::take(pool, volume).await {
        Err(error @ Error::NotYet { .. }) => return Err(error),
        Err(error) => {
            tracing::warn!(volume = %volume.name, why = error.explain(), "former copy is not used");
        }
        Ok(()) => {}
    }
    ensure(pool, volume, maker, percent).await
}

async fn make(
    pool: &Arc<Folder>,
    volume: &VolumeAssignment,
    maker: &Maker,
    temporary: &str,
    percent: &(dyn Fn(u8) + Send + Sync),
) -> Result<(), Error> {
    let size = volume.size.as_u64();
    let target = ImageFile::new(pool.volumes_path().join(temporary), format::of(volume.format));
    let Some(source) = &volume.image else {
        return maker.qemu_img.create_blank(&target, size).await.map_err(tool_error);
    };
    let image_size = image::ensure(pool, source, maker.user, maker.fetcher.as_ref(), percent).await?;
    if size < image_size {
        return Err(Error::refused(format!(
            "volume {} of {size} bytes is smaller than its image of {image_size}; ask for a larger one",
            volume.name
        )));
    }
    let source_path = pool.images_path().join(image::file_name(source)?);
    let source = ImageFile::new(source_path, format::of(source.format));
    if volume.format == Format::Qcow2 {
        return maker.qemu_img.create_overlay(&target.path, &source, size).await.map_err(tool_error);
    }
    let deadline = METADATA_TIME + Duration::from_secs(image_size / COPY_RATE_MIN);
    maker.qemu_img.convert(&[source], &target, deadline).await.map_err(tool_error)?;
    if size == image_size {
        return Ok(());
    }
    maker.qemu_img.grow(&target, size).await.map_err(tool_error)
}

/// Bytes per second of a pool that still counts as working.
const COPY_RATE_MIN: u64 = 4 << 20;
const METADATA_TIME: Duration = Duration::from_secs(60);

fn tool_error(error: img::Error) -> Error {
    match error {
        img::Error::InUse { .. } => Error::not_yet("a VM has it open"),
        error => Error::Io { what: "work on an image file".to_owned(), source: std::io::Error::other(error) },
    }
}

/// Larger than a qcow2 of default clusters can describe without a table of gigabytes; any pool is smaller.
const SIZE_MAX: u64 = 1 << 46;

fn check_size(size: u64) -> Result<(), Error> {
    if size == 0 || size > SIZE_MAX || !size.is_multiple_of(512) {
        return Err(Error::refused(format!(
            "a volume of {size} bytes cannot be made; use 512 bytes to 64 TiB, a multiple of 512 bytes"
        )));
    }
    Ok(())
}

fn place(pool: &Folder, temporary: &str, name: &str, user: User) -> Result<(), Error> {
    let what = || format!("keep volume {name}");
    let file = open(pool.volumes(), temporary)?
        .ok_or_else(|| Error::not_yet(format!("{temporary} has vanished")))?;
    folder::finish(&file, Some(user.uid), user.gid, 0o600).map_err(Error::io(what()))?;
    match folder::put_in_place(pool.volumes(), temporary, name) {
        // An earlier attempt of this same host came through after all; its volume stays.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            folder::remove(pool.volumes(), temporary).map_err(Error::io(what()))
        }
        placed => placed.map_err(Error::io(what())),
    }
}

/// Opens a file of a pool's folder; never a link's target, never waits.
pub fn open(folder: impl AsFd, name: &str) -> Result<Option<File>, Error> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    match rustix::fs::openat(folder, name, flags, Mode::empty()) {
        Ok(file) => Ok(Some(File::from(file))),
        Err(Errno::NOENT) => Ok(None),
        Err(Errno::LOOP) => Err(Error::refused(format!("{name} is a symbolic link; it is left alone"))),
        Err(error) => Err(Error::io(format!("open {name}"))(error.into())),
    }
}

/// Grows the disk of a volume that nobody has open.
pub async fn grow(
    pool: &Arc<Folder>,
    uid: Uuid,
    format: Format,
    size: u64,
    maker: &Maker,
) -> Result<(), Error> {
    check_size(size)?;
    let name = file_name(uid, format);
    let looked = {
        let (pool, name) = (Arc::clone(pool), name.clone());
        blocking(move || {
            let file =
                open(pool.volumes(), &name)?.ok_or_else(|| Error::not_yet(format!("{name} is not there")))?;
            check_free(&file, &name)
        })
    };
    looked.await?;
    let image = ImageFile::new(pool.volumes_path().join(&name), format::of(format));
    // A guest's QEMU wrote this file: it is read with no more rights than that QEMU had.
    let tool = maker.qemu_img.clone().run_as(maker.user.uid, maker.user.gid);
    tool.grow(&image, size).await.map_err(tool_error)
}

/// Removes a volume that nobody has open; one that is not there counts as removed.
pub async fn remove(pool: &Arc<Folder>, uid: Uuid, format: Format) -> Result<(), Error> {
    clean(pool, uid).await?;
    let (pool, name) = (Arc::clone(pool), file_name(uid, format));
    blocking(move || {
        if let Some(file) = open(pool.volumes(), &name)? {
            check_free(&file, &name)?;
        }
        folder::remove(pool.volumes(), &name).map_err(Error::io(format!("remove {name}")))
    })
    .await
}

/// Some process has it open: not now.
pub fn check_free(file: &File, name: &str) -> Result<(), Error> {
    let is_in_use = file_lock::is_in_use(file).map_err(Error::io(format!("look who uses {name}")))?;
    if is_in_use { Err(Error::not_yet(format!("a VM has {name} open"))) } else { Ok(()) }
}

/// Removes what earlier attempts at this volume left.
async fn clean(pool: &Arc<Folder>, uid: Uuid) -> Result<(), Error> {
    let pool = Arc::clone(pool);
    let what = "remove unfinished volumes";
    blocking(move || {
        for name in unfinished(pool.volumes(), uid).map_err(|error| Error::io(what)(error.into()))? {
            folder::remove(pool.volumes(), &name).map_err(Error::io(what))?;
        }
        Ok(())
    })
    .await
}

fn unfinished(folder: impl AsFd, uid: Uuid) -> Result<Vec<String>, Errno> {
    let start = format!(".{uid}.");
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        if name.starts_with(&start) && Path::new(name).extension().is_some_and(|end| end == UNFINISHED) {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}
