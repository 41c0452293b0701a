//! What kind of image some bytes are.
//!
//! Raw is what is left when nothing else matches, so every format that any tool might take the file for has
//! to be known here, also those that are never used.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Bytes, Refused};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Raw,
    Qcow2,
    Iso,
    Qcow1,
    Vmdk,
    Vhd,
    Vhdx,
    Vdi,
    Qed,
    Parallels,
    Luks,
    Bochs,
    Cloop,
    Dmg,
    Gzip,
    Xz,
    Zstd,
    Bzip2,
    Lz4,
    Zip,
    SevenZip,
    /// Also OVA.
    Tar,
}

impl Kind {
    /// A file around an image, not an image.
    pub fn is_packed(self) -> bool {
        use Kind::*;
        matches!(self, Gzip | Xz | Zstd | Bzip2 | Lz4 | Zip | SevenZip | Tar)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Iso => "iso",
            Self::Qcow1 => "qcow1",
            Self::Vmdk => "vmdk",
            Self::Vhd => "vhd",
            Self::Vhdx => "vhdx",
            Self::Vdi => "vdi",
            Self::Qed => "qed",
            Self::Parallels => "parallels",
            Self::Luks => "luks",
            Self::Bochs => "bochs",
            Self::Cloop => "cloop",
            Self::Dmg => "dmg",
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
            Self::Lz4 => "lz4",
            Self::Zip => "zip",
            Self::SevenZip => "7z",
            Self::Tar => "tar",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Position, bytes, kind; the first that matches wins.
const MARKS: [(usize, &[u8], Kind); 23] = [
    (0, b"QFI\xfb\0\0\0\x01", Kind::Qcow1),
    (0, b"QFI\xfb", Kind::Qcow2),
    (0, b"KDMV", Kind::Vmdk),
    (0, b"COWD", Kind::Vmdk),
    (0, b"# Disk DescriptorFile", Kind::Vmdk),
    (0, b"conectix", Kind::Vhd),
    (0, b"vhdxfile", Kind::Vhdx),
    (0x40, b"\x7f\x10\xda\xbe", Kind::Vdi),
    (0, b"QED\0", Kind::Qed),
    (0, b"WithoutFreeSpace", Kind::Parallels),
    (0, b"WithouFreSpacExt", Kind::Parallels),
    (0, b"LUKS\xba\xbe", Kind::Luks),
    (0, b"Bochs Virtual HD Image", Kind::Bochs),
    (0, b"#!/bin/sh\n#V2.0 Format\n", Kind::Cloop),
    (0, b"\x1f\x8b", Kind::Gzip),
    (0, b"\xfd7zXZ\0", Kind::Xz),
    (0, b"\x28\xb5\x2f\xfd", Kind::Zstd),
    (0, b"BZh", Kind::Bzip2),
    (0, b"\x04\x22\x4d\x18", Kind::Lz4),
    (0, b"PK\x03\x04", Kind::Zip),
    (0, b"7z\xbc\xaf\x27\x1c", Kind::SevenZip),
    (257, b"ustar", Kind::Tar),
    (32_769, b"CD001", Kind::Iso),
];

/// Marks at the start of the last sector.
const TAIL_MARKS: [(&[u8], Kind); 2] = [(b"conectix", Kind::Vhd), (b"koly", Kind::Dmg)];

const HEAD: usize = 33 << 10;
const SECTOR: u64 = 512;

/// VMDK tools accept comments and white space before the descriptor's first line.
fn is_descriptor(head: &[u8]) -> bool {
    let head = &head[..head.len().min(4096)];
    let lines = head.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let mut content = lines.filter(|line| !line.is_empty() && !line.starts_with(b"#"));
    content.next().is_some_and(|line| line.to_ascii_lowercase().starts_with(b"version="))
}

/// Names the kind of these bytes.
pub fn detect(image: &(impl Bytes + ?Sized)) -> Result<Kind, Refused> {
    let mut head = vec![0; HEAD];
    let read = image.read(&mut head, 0).map_err(|source| Refused::Unreadable { source })?;
    head.truncate(read);
    let at_head =
        |(at, mark, _): &&(usize, &[u8], Kind)| head.get(*at..).is_some_and(|rest| rest.starts_with(mark));
    if let Some((_, _, kind)) = MARKS.iter().find(at_head) {
        return Ok(*kind);
    }
    if is_descriptor(&head) {
        return Ok(Kind::Vmdk);
    }
    let mut tail = [0; SECTOR as usize];
    let from = image.size().saturating_sub(SECTOR);
    let read = image.read(&mut tail, from).map_err(|source| Refused::Unreadable { source })?;
    let at_tail = TAIL_MARKS.iter().find(|(mark, _)| tail[..read].starts_with(mark));
    Ok(at_tail.map_or(Kind::Raw, |(_, kind)| *kind))
}
