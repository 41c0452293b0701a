//! Looks at images from strangers without letting QEMU open them.
//!
//! An image can name other files and network addresses that QEMU opens on its own: a backing file (even a
//! URL), an external data file (which no option can override with nothing), the extents of a VMDK, the
//! parent of a VHDX. Tables in its header can make a parser allocate or loop. So bytes are inspected here
//! first, with a bound on what is read, and only a plain raw or an upright, stand-alone qcow2 image passes.
//!
//! Reads at most the head, the tail and the two tables of a qcow2 (40 MiB); keeps at most 32 MiB of it.

mod detect;
mod qcow2;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use serde::{Deserialize, Serialize};

pub use detect::{Kind, detect};
pub use qcow2::Header;

use crate::config::Format;

/// Bytes at positions; a file, or a slice in tests.
pub trait Bytes {
    /// Length in bytes.
    fn size(&self) -> u64;

    /// Fills the buffer as far as there are bytes; answers how many.
    fn read(&self, buffer: &mut [u8], from: u64) -> io::Result<usize>;
}

impl Bytes for [u8] {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read(&self, buffer: &mut [u8], from: u64) -> io::Result<usize> {
        let rest = usize::try_from(from).ok().and_then(|from| self.get(from..)).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }
}

/// A file and its length when it was opened.
pub struct Opened {
    pub file: File,
    size: u64,
}

impl Bytes for Opened {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, buffer: &mut [u8], from: u64) -> io::Result<usize> {
        let mut count = 0;
        while count < buffer.len() {
            match self.file.read_at(&mut buffer[count..], from + count as u64) {
                Ok(0) => break,
                Ok(read) => count += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(count)
    }
}

/// An image that may be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// To be named to QEMU explicitly, always.
    pub format: Format,
    /// What it looks like; an ISO 9660 image has the format raw.
    pub kind: Kind,
    /// Size of the disk the guest would see, in bytes, a multiple of 512.
    pub virtual_size: u64,
}

/// Why an image is not used; one variant per thing its owner can do about it.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("it is {what}, not a regular file")]
    NotAFile { what: &'static str },
    #[error("the file has {links} names")]
    HardLinked { links: u64 },
    #[error("it cannot be read")]
    Unreadable { source: io::Error },
    #[error("it is empty")]
    Empty,
    #[error("its disk of {bytes} bytes is larger than the {bytes_max} allowed")]
    TooLarge { bytes: u64, bytes_max: u64 },
    #[error("it is a {kind} image")]
    OtherFormat { kind: Kind },
    #[error("it is packed ({kind})")]
    Packed { kind: Kind },
    #[error("it has the backing file {name:?}")]
    BackingFile { name: String },
    #[error("it keeps its data in another file, {name:?}")]
    DataFile { name: String },
    #[error("it is encrypted")]
    Encrypted,
    #[error("it has {count} internal snapshots")]
    Snapshots { count: u32 },
    #[error("it was not closed properly, or is marked as corrupt")]
    Unclean,
    #[error("it uses qcow2 version {version}")]
    Version { version: u32 },
    #[error("it uses features unknown here (incompatible bits {bits:#x})")]
    UnknownFeatures { bits: u64 },
    #[error("it is damaged or made to harm: {what}")]
    Malformed { what: &'static str },
}

impl Refused {
    /// What the owner of the image can do.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NotAFile { .. } | Self::HardLinked { .. } => {
                "give a copy of the image as a file of its own"
            }
            Self::Unreadable { .. } => "check the file's permissions and its disk",
            Self::Empty => "the download or copy may have failed; fetch it again",
            Self::TooLarge { .. } => "shrink the disk, or ask an administrator to raise the limit",
            Self::OtherFormat { .. } => {
                "convert it where you trust it: qemu-img convert -O qcow2 OLD NEW.qcow2"
            }
            Self::Packed { .. } => "unpack it first",
            Self::BackingFile { .. } => {
                "merge the chain into one image: qemu-img convert -O qcow2 OLD NEW.qcow2"
            }
            Self::DataFile { .. } => "merge both into one image: qemu-img convert -O qcow2 OLD NEW.qcow2",
            Self::Encrypted => "give it unencrypted; encrypt the pool instead",
            Self::Snapshots { .. } => "copy its current state: qemu-img convert -O qcow2 OLD NEW.qcow2",
            Self::Unclean => "repair a copy: qemu-img check -r all IMAGE",
            Self::Version { .. } => "write it anew: qemu-img convert -O qcow2 -o compat=1.1 OLD NEW.qcow2",
            Self::UnknownFeatures { .. } => "write it anew with QEMU 10 or older",
            Self::Malformed { .. } => "fetch it again from a source you trust and compare its checksum",
        }
    }
}

/// Opens an image below a folder without following a symbolic link anywhere on the way, and without waiting
/// for a FIFO. Work goes on with this file, never with its name: the name may point elsewhere a moment later.
pub fn open(folder: impl AsFd, relative: &Path) -> Result<Opened, Refused> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(folder, relative, flags, Mode::empty(), resolve) {
        Ok(fd) => opened(File::from(fd)),
        Err(rustix::io::Errno::LOOP) => Err(Refused::NotAFile { what: "a symbolic link" }),
        Err(rustix::io::Errno::XDEV) => Err(Refused::NotAFile { what: "outside of its folder" }),
        // A socket, or a device without a driver.
        Err(rustix::io::Errno::NXIO | rustix::io::Errno::NODEV) => {
            Err(Refused::NotAFile { what: "a device" })
        }
        Err(error) => Err(Refused::Unreadable { source: error.into() }),
    }
}

/// Takes over a file that is open already.
pub fn opened(file: File) -> Result<Opened, Refused> {
    let metadata = file.metadata().map_err(|source| Refused::Unreadable { source })?;
    let kind = metadata.file_type();
    if !kind.is_file() {
        use std::os::unix::fs::FileTypeExt;
        let what = match kind {
            kind if kind.is_dir() => "a folder",
            kind if kind.is_fifo() => "a pipe",
            _ => "a device",
        };
        return Err(Refused::NotAFile { what });
    }
    if metadata.nlink() > 1 {
        return Err(Refused::HardLinked { links: metadata.nlink() });
    }
    Ok(Opened { size: metadata.len(), file })
}

/// Inspects an image of unknown kind. `bytes_max` bounds the disk that the guest would see.
pub fn inspect(image: &(impl Bytes + ?Sized), bytes_max: u64) -> Result<Image, Refused> {
    if image.size() == 0 {
        return Err(Refused::Empty);
    }
    let kind = detect(image)?;
    let virtual_size = match kind {
        Kind::Raw | Kind::Iso => image.size(),
        Kind::Qcow2 => Header::read(image)?.checked(image)?.virtual_size,
        kind if kind.is_packed() => return Err(Refused::Packed { kind }),
        kind => return Err(Refused::OtherFormat { kind }),
    };
    if virtual_size > bytes_max {
        return Err(Refused::TooLarge { bytes: virtual_size, bytes_max });
    }
    let format = if kind == Kind::Qcow2 { Format::Qcow2 } else { Format::Raw };
    Ok(Image { format, kind, virtual_size: virtual_size.next_multiple_of(512) })
}

/// Exactly these bytes, or `None` where the image ends before.
fn read_exact<const N: usize>(image: &(impl Bytes + ?Sized), from: u64) -> Result<Option<[u8; N]>, Refused> {
    let mut bytes = [0; N];
    let read = image.read(&mut bytes, from).map_err(|source| Refused::Unreadable { source })?;
    Ok((read == N).then_some(bytes))
}
