//! The folder of a pool: opened once, then worked in through its descriptors.
//!
//! ```text
//!   POOL/.sterna-pool.json     which cluster it belongs to, and an id of its own
//!   POOL/images/SHA256.FORMAT  content of images, one file for all volumes cloned from it
//!   POOL/volumes/UID.FORMAT    volumes
//!   POOL/former/UID.FORMAT     what is left of volumes that moved away
//! ```
//!
//! Names are made from uids and checksums only, and nothing below the pool follows a symbolic link. The folders let
//! QEMU's user pass but not look around; volumes belong to that user, images it may only read, and former copies are out
//! of its reach.

use std::fs::{File, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, RenameFlags, Stat, Uid};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::error::Error;

const MARKER: &str = ".sterna-pool.json";

/// Modes of subfolders: QEMU's group may pass, or nobody but us.
const PASSABLE: u32 = 0o710;
const CLOSED: u32 = 0o700;

/// A marker is 150 bytes; anything much longer is not ours.
const MARKER_MAX: u64 = 4096;

/// The unprivileged user that QEMU runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
}

/// The content of the marker file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// Whose pool it is. Two clusters in one folder would remove each other's volumes.
    pub cluster: String,
    /// Tells this folder from an empty one over which it should have been mounted.
    pub id: Uuid,
}

#[derive(Debug)]
pub struct Folder {
    pub path: PathBuf,
    pub marker: Marker,
    root: OwnedFd,
    images: OwnedFd,
    volumes: OwnedFd,
    former: OwnedFd,
}

/// Who may make the folder itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// Ours alone: it is made.
    Make,
    /// Meant to be mounted by someone else: an absent one must stay absent, or volumes would land below the mount.
    Refuse,
}

impl Folder {
    /// Opens a pool and makes what is missing in it. Blocks; on a lost NFS server for ever.
    pub fn open(path: &Path, missing: Missing, cluster: &str, user: User) -> Result<Self, Error> {
        if missing == Missing::Make {
            make_all(path)?;
        }
        let root = open_folder(CWD.as_fd(), path)
            .map_err(|error| not_a_folder(path, error))?
            .ok_or_else(|| Error::not_yet(format!("folder {path:?} is not there; is it mounted?")))?;
        let marker = ensure_marker(root.as_fd(), path, cluster)?;
        let images = ensure_subfolder(root.as_fd(), "images", user, PASSABLE)?;
        let volumes = ensure_subfolder(root.as_fd(), "volumes", user, PASSABLE)?;
        let former = ensure_subfolder(root.as_fd(), "former", user, CLOSED)?;
        check_may_enter(&path.join("images"), user)?;
        check_may_enter(&path.join("volumes"), user)?;
        Ok(Self { path: path.to_owned(), marker, root, images, volumes, former })
    }

    /// A pool has been here at some time.
    pub fn is_marked(path: &Path) -> bool {
        path.join(MARKER).symlink_metadata().is_ok()
    }

    pub fn images(&self) -> impl AsFd + '_ {
        self.images.as_fd()
    }

    pub fn volumes(&self) -> impl AsFd + '_ {
        self.volumes.as_fd()
    }

    pub fn former(&self) -> impl AsFd + '_ {
        self.former.as_fd()
    }

    pub fn images_path(&self) -> PathBuf {
        self.path.join("images")
    }

    pub fn volumes_path(&self) -> PathBuf {
        self.path.join("volumes")
    }

    /// Size of the file system, and what an ordinary user may still write, in bytes.
    pub fn space(&self) -> Result<Space, Error> {
        let answer = rustix::fs::fstatvfs(&self.root)
            .map_err(|error| Error::io(format!("ask the size of {:?}", self.path))(error.into()))?;
        Ok(Space { capacity: answer.f_blocks * answer.f_frsize, free: answer.f_bavail * answer.f_frsize })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    pub capacity: u64,
    pub free: u64,
}

/// `None`: not there.
fn open_folder(at: impl AsFd, path: &Path) -> Result<Option<OwnedFd>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(at, path, flags, Mode::empty()) {
        Ok(folder) => Ok(Some(folder)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

fn not_a_folder(path: &Path, error: Errno) -> Error {
    match error {
        // With O_DIRECTORY, a symbolic link answers NOTDIR on some kernels and LOOP on others.
        Errno::LOOP | Errno::NOTDIR => {
            Error::refused(format!("{path:?} is a symbolic link or no folder; name the folder itself"))
        }
        error => Error::io(format!("open {path:?}"))(error.into()),
    }
}

fn make_all(path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt;
    // Others may pass (QEMU's user must) but not list.
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o711).create(path);
    match made {
        // Something else of that name: said better when it is opened.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map_err(Error::io(format!("make folder {path:?}"))),
    }
}

fn ensure_subfolder(root: impl AsFd, name: &str, user: User, mode: u32) -> Result<OwnedFd, Error> {
    let what = || format!("make the pool's folder {name:?}");
    let root = root.as_fd();
    let is_new = match rustix::fs::mkdirat(root, name, Mode::from_raw_mode(mode)) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(error) => return Err(Error::io(what())(error.into())),
    };
    let folder = open_folder(root, Path::new(name))
        .map_err(|error| not_a_folder(Path::new(name), error))?
        .ok_or_else(|| Error::not_yet(format!("the pool's folder {name:?} has just vanished")))?;
    if is_new {
        rustix::fs::fchown(&folder, None, Some(Gid::from_raw(user.gid))).map_err(|error| {
            Error::io(format!("{}; an NFS export needs no_root_squash", what()))(error.into())
        })?;
        rustix::fs::fchmod(&folder, Mode::from_raw_mode(mode))
            .map_err(|error| Error::io(what())(error.into()))?;
    }
    Ok(folder)
}

fn ensure_marker(root: impl AsFd, path: &Path, cluster: &str) -> Result<Marker, Error> {
    let root = root.as_fd();
    let marker = match read_marker(root, path)? {
        Some(marker) => marker,
        None => {
            write_marker(root, path, cluster)?;
            // Another host may have been faster: what is there now counts.
            read_marker(root, path)?
                .ok_or_else(|| Error::not_yet(format!("the marker of {path:?} has vanished")))?
        }
    };
    if marker.cluster != cluster {
        return Err(Error::refused(format!(
            "{path:?} belongs to another Sterna cluster; give this one a folder of its own (or, if that cluster is \
             gone, remove {MARKER} in it)"
        )));
    }
    Ok(marker)
}

fn read_marker(root: impl AsFd, path: &Path) -> Result<Option<Marker>, Error> {
    let what = || format!("read {MARKER} in {path:?}");
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = match rustix::fs::openat(root, MARKER, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(Error::io(what())(error.into())),
    };
    let mut text = String::new();
    file.take(MARKER_MAX).read_to_string(&mut text).map_err(Error::io(what()))?;
    serde_json::from_str(&text).map(Some).map_err(|_| {
        Error::refused(format!("{MARKER} in {path:?} is not a pool's marker; remove or restore it"))
    })
}

fn write_marker(root: impl AsFd, path: &Path, cluster: &str) -> Result<(), Error> {
    let root = root.as_fd();
    let what = || format!("write {MARKER} in {path:?}");
    let marker = Marker { cluster: cluster.to_owned(), id: Uuid::new_v4() };
    let text = serde_json::to_vec(&marker).map_err(|error| Error::io(what())(error.into()))?;
    let temporary = format!("{MARKER}.{}", marker.id);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(root, &temporary, flags, Mode::from_raw_mode(0o644))
        .map_err(|error| Error::io(what())(error.into()))?;
    let mut file = File::from(fd);
    let written = file.write_all(&text).and_then(|()| file.sync_all());
    let placed = written.and_then(|()| put_in_place(root, &temporary, MARKER));
    if placed.is_err() {
        // What matters is the error above; a left-over hurts nobody.
        let _ = rustix::fs::unlinkat(root, &temporary, AtFlags::empty());
    }
    match placed {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        placed => placed.map_err(Error::io(what())),
    }
}

/// Gives a finished file its name, for good, and never replaces another.
pub fn put_in_place(folder: impl AsFd, temporary: &str, name: &str) -> io::Result<()> {
    let folder = folder.as_fd();
    rename(folder, temporary, folder, name)?;
    sync(folder)
}

/// Moves a file to another folder of the pool and never replaces another. Cut off in the middle, the file may have both
/// names.
pub fn move_over(from: impl AsFd, to: impl AsFd, name: &str) -> io::Result<()> {
    rename(from.as_fd(), name, to.as_fd(), name)?;
    sync(to)?;
    sync(from)
}

fn rename(from: BorrowedFd<'_>, old: &str, to: BorrowedFd<'_>, new: &str) -> io::Result<()> {
    match rustix::fs::renameat_with(from, old, to, new, RenameFlags::NOREPLACE) {
        // NFS does not know the flag; a second name does the same, in two steps.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            rustix::fs::linkat(from, old, to, new, AtFlags::empty())?;
            Ok(rustix::fs::unlinkat(from, old, AtFlags::empty())?)
        }
        renamed => Ok(renamed?),
    }
}

/// What a name stands for, itself if it is a link; `None` where there is none.
pub fn stat(folder: impl AsFd, name: &str) -> io::Result<Option<Stat>> {
    match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Removes a name; one that is not there counts as removed.
pub fn remove(folder: impl AsFd, name: &str) -> io::Result<()> {
    let folder = folder.as_fd();
    match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) => sync(folder),
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn sync(folder: impl AsFd) -> io::Result<()> {
    Ok(rustix::fs::fsync(folder)?)
}

/// Gives an open file its owner and mode and waits until all of it is on disk.
pub fn finish(file: &File, owner: Option<u32>, gid: u32, mode: u32) -> io::Result<()> {
    rustix::fs::fchown(file, owner.map(Uid::from_raw), Some(Gid::from_raw(gid)))?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}

/// QEMU's user must be able to pass every folder down to the pool.
fn check_may_enter(path: &Path, user: User) -> Result<(), Error> {
    let whole = std::path::absolute(path).map_err(Error::io(format!("find {path:?}")))?;
    for folder in whole.ancestors() {
        let metadata = std::fs::metadata(folder).map_err(Error::io(format!("look at {folder:?}")))?;
        let mode = metadata.mode();
        let bit = if metadata.uid() == user.uid {
            0o100
        } else if metadata.gid() == user.gid {
            0o010
        } else {
            0o001
        };
        if mode & bit == 0 {
            return Err(Error::refused(format!(
                "QEMU's user {} may not pass {folder:?}; allow it with: chmod o+x {}",
                user.uid,
                folder.display()
            )));
        }
    }
    Ok(())
}

/// Finds the folder a pool's setting names. A relative path lies below the agent's data folder, so that several hosts
/// on one machine can have a local pool each.
pub fn locate(setting: &str, data_dir: &Path) -> Result<PathBuf, Error> {
    let path = Path::new(setting);
    let is_plain = path
        .components()
        .all(|part| matches!(part, std::path::Component::Normal(_) | std::path::Component::RootDir));
    if setting.is_empty() || !is_plain || setting.chars().any(char::is_control) {
        return Err(Error::refused(format!(
            "{setting:?} is no path for a pool; use an absolute one without `..`"
        )));
    }
    Ok(if path.is_absolute() { path.to_owned() } else { data_dir.join(path) })
}
