//! A volume's files as QEMU is to open them: every level named, the last one without anything below.

use std::path::PathBuf;

use sterna_model::image::Format;
use sterna_model::volume::ImageRef;
use sterna_qemu::config::{self, Backing, Source};
use uuid::Uuid;

use super::error::Error;
use super::folder::Folder;
use super::{format, image, volume};

/// How QEMU reaches the bytes of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    pub format: config::Format,
    pub source: Source,
    pub backing: Vec<Backing>,
}

pub fn files(
    pool: &Folder,
    uid: Uuid,
    volume_format: Format,
    image: Option<&ImageRef>,
) -> Result<Opened, Error> {
    let file = |path: PathBuf| Source::File { path };
    let backing = match image {
        // A raw volume is a full copy.
        Some(image) if volume_format == Format::Qcow2 => vec![Backing {
            format: format::of(image.format),
            source: file(pool.images_path().join(image::file_name(image)?)),
        }],
        _ => Vec::new(),
    };
    Ok(Opened {
        format: format::of(volume_format),
        source: file(pool.volumes_path().join(volume::file_name(uid, volume_format))),
        backing,
    })
}
