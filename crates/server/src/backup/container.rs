//! The file: written whole or not at all, and read with every byte accounted for.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::{Error, FORMAT, Manifest, Part, PartEntry, io};
use crate::ca::hex;
use crate::config::Config;

const MAGIC: &str = "STERNA BACKUP ";
/// Five parts need a kilobyte; more is no manifest.
const LINE_MAX: u64 = 64 * 1024;
/// Quick, and a store of JSON rows is a tenth of its size with it.
const LEVEL: i32 = 3;
const CHUNK: usize = 256 * 1024;

/// Compresses one part into `to`, and says what it is.
pub(super) fn squeeze(name: Part, mut from: impl Read, to: &Path) -> Result<PartEntry, Error> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to).map_err(io(to))?;
    let mut squeezer = zstd::Encoder::new(file, LEVEL).map_err(io(to))?;
    let (mut hash, mut bytes) = (Sha256::new(), 0);
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = from.read(&mut chunk).map_err(io(to))?;
        if read == 0 {
            break;
        }
        hash.update(&chunk[..read]);
        bytes += read as u64;
        squeezer.write_all(&chunk[..read]).map_err(io(to))?;
    }
    let file = squeezer.finish().map_err(io(to))?;
    let stored = file.metadata().map_err(io(to))?.len();
    Ok(PartEntry { name, bytes, stored, sha256: hex(&hash.finalize()) })
}

/// Puts the parts, which lie in `folder` under their names, into `to`, which must not be there.
pub(super) fn assemble(manifest: &Manifest, folder: &Path, to: &Path) -> Result<u64, Error> {
    let directory = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut name = std::ffi::OsString::from(".");
    name.push(to.file_name().unwrap_or_default());
    name.push(format!(".{}.new", std::process::id()));
    let temporary = directory.join(name);
    let written = write(manifest, folder, &temporary).and_then(|bytes| {
        // Unlike a rename, a link never replaces what somebody else put there meanwhile.
        fs::hard_link(&temporary, to).map_err(|source| match source.kind() {
            std::io::ErrorKind::AlreadyExists => Error::Exists { path: to.to_owned() },
            _ => Error::Io { path: to.to_owned(), source },
        })?;
        Ok(bytes)
    });
    let removed = fs::remove_file(&temporary);
    let bytes = written?;
    removed.map_err(io(&temporary))?;
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(io(directory))?;
    Ok(bytes)
}

fn write(manifest: &Manifest, folder: &Path, to: &Path) -> Result<u64, Error> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(to);
    let mut file = BufWriter::new(file.map_err(io(to))?);
    let line = serde_json::to_string(manifest).map_err(|error| Error::Damaged {
        path: to.to_owned(),
        why: format!("the manifest cannot be written: {error}"),
    })?;
    let sum = hex(&Sha256::digest(line.as_bytes()));
    write!(file, "{MAGIC}{FORMAT}\n{line}\n{sum}\n").map_err(io(to))?;
    for part in &manifest.parts {
        let path = folder.join(part.name.name());
        let mut from = File::open(&path).map_err(io(&path))?;
        std::io::copy(&mut from, &mut file).map_err(io(to))?;
    }
    let file =
        file.into_inner().map_err(|error| Error::Io { path: to.to_owned(), source: error.into_error() })?;
    file.sync_all().map_err(io(to))?;
    Ok(file.metadata().map_err(io(to))?.len())
}

/// An open backup whose manifest was found whole and whose length is right.
pub(super) struct Opened {
    pub(super) manifest: Manifest,
    file: BufReader<File>,
}

pub(super) fn open(path: &Path) -> Result<Opened, Error> {
    let file = File::open(path).map_err(io(path))?;
    let has = file.metadata().map_err(io(path))?.len();
    let mut file = BufReader::new(file);
    let foreign = || Error::Foreign { path: path.to_owned() };
    let magic = line(&mut file, path)?.ok_or_else(foreign)?;
    let format =
        magic.strip_prefix(MAGIC).and_then(|format| format.parse::<u32>().ok()).ok_or_else(foreign)?;
    if format > FORMAT {
        return Err(Error::Newer { path: path.to_owned(), found: format, known: FORMAT });
    }
    let damaged = |why: String| Error::Damaged { path: path.to_owned(), why };
    let cut = || Error::Truncated { path: path.to_owned(), has, needs: has + 1 };
    let text = line(&mut file, path)?.ok_or_else(cut)?;
    let sum = line(&mut file, path)?.ok_or_else(cut)?;
    if hex(&Sha256::digest(text.as_bytes())) != sum {
        return Err(damaged("its manifest is not as it was written".to_owned()));
    }
    let manifest: Manifest = serde_json::from_str(&text)
        .map_err(|error| damaged(format!("its manifest cannot be read: {error}")))?;
    check(&manifest).map_err(damaged)?;
    let head = (magic.len() + text.len() + sum.len() + 3) as u64;
    let needs = manifest.parts.iter().fold(head, |sum, part| sum.saturating_add(part.stored));
    if has < needs {
        return Err(Error::Truncated { path: path.to_owned(), has, needs });
    }
    if has > needs {
        return Err(damaged(format!("{} bytes follow its end", has - needs)));
    }
    Ok(Opened { manifest, file })
}

/// Each part once, and those that a server needs.
fn check(manifest: &Manifest) -> Result<(), String> {
    for (index, part) in manifest.parts.iter().enumerate() {
        if manifest.parts[..index].iter().any(|other| other.name == part.name) {
            return Err(format!("{} is in it twice", part.name.name()));
        }
    }
    match Part::NEEDED.iter().find(|part| !manifest.parts.iter().any(|has| has.name == **part)) {
        Some(part) => Err(format!("{} is not in it", part.name())),
        None => Ok(()),
    }
}

/// A line without its end; `None` at the end of the file.
fn line(file: &mut BufReader<File>, path: &Path) -> Result<Option<String>, Error> {
    let mut bytes = Vec::new();
    file.by_ref().take(LINE_MAX).read_until(b'\n', &mut bytes).map_err(io(path))?;
    if bytes.pop() != Some(b'\n') {
        return Ok(None);
    }
    Ok(String::from_utf8(bytes).ok())
}

impl Opened {
    /// The settings that are in it, without unpacking the rest.
    pub(super) fn settings(mut self, path: &Path) -> Result<Config, Error> {
        let damaged = |why: String| Error::Damaged { path: path.to_owned(), why };
        let before: u64 = self
            .manifest
            .parts
            .iter()
            .take_while(|part| part.name != Part::Settings)
            .map(|part| part.stored)
            .sum();
        let part = self.manifest.parts.iter().find(|part| part.name == Part::Settings);
        // `check` found it.
        let part = part.ok_or_else(|| damaged("server.toml is not in it".to_owned()))?;
        let ahead = i64::try_from(before).map_err(|_| damaged("a part has no end".to_owned()))?;
        self.file.seek_relative(ahead).map_err(io(path))?;
        let stored = self.file.take(part.stored);
        let mut plain = Vec::new();
        let unpacked =
            zstd::Decoder::new(stored).and_then(|from| from.take(LINE_MAX).read_to_end(&mut plain));
        unpacked.map_err(|error| damaged(format!("server.toml cannot be unpacked: {error}")))?;
        if hex(&Sha256::digest(&plain)) != part.sha256 {
            return Err(damaged("server.toml is not as it was written".to_owned()));
        }
        let text = String::from_utf8(plain).map_err(|_| damaged("server.toml is not text".to_owned()))?;
        toml::from_str(&text)
            .map_err(|error| Error::Settings { path: path.to_owned(), why: error.to_string() })
    }

    /// Writes every part into `folder`, and compares it with what the manifest says.
    pub(super) fn unpack(mut self, path: &Path, folder: &Path) -> Result<Manifest, Error> {
        for part in &self.manifest.parts {
            let damaged = |why: &str| Error::Damaged {
                path: path.to_owned(),
                why: format!("{} {why}", part.name.name()),
            };
            let to = folder.join(part.name.name());
            let mut out =
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(&to).map_err(io(&to))?;
            let mut stored = self.file.by_ref().take(part.stored);
            let mut plain = zstd::Decoder::with_buffer(&mut stored).map_err(io(path))?.single_frame();
            let (mut hash, mut bytes) = (Sha256::new(), 0u64);
            let mut chunk = vec![0; CHUNK];
            loop {
                let read = plain
                    .read(&mut chunk)
                    .map_err(|error| damaged(&format!("cannot be unpacked: {error}")))?;
                bytes += read as u64;
                // A small file may unpack to a very large one.
                if bytes > part.bytes {
                    return Err(damaged("is longer than it was"));
                }
                if read == 0 {
                    break;
                }
                hash.update(&chunk[..read]);
                out.write_all(&chunk[..read]).map_err(io(&to))?;
            }
            drop(plain);
            if bytes < part.bytes || stored.limit() > 0 {
                return Err(damaged("is shorter than it was"));
            }
            if hex(&hash.finalize()) != part.sha256 {
                return Err(damaged("is not as it was written"));
            }
            out.sync_all().map_err(io(&to))?;
        }
        Ok(self.manifest)
    }
}
