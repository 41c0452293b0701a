//! Puts a backup back: into a directory of its own, which then takes the place of the data directory in one step.
//!
//! Until that step nothing of what was there is touched; after it, all of it is there. The store begins a new life
//! (docs/flows/server-restore.md).

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use sterna_base::clock::Timestamp;
use sterna_base::file;
use sterna_model::key::{Key, Kind};
use sterna_model::meta::{Labels, Meta, Name, Object};
use sterna_model::store::{self, MAIN, SKIPPED_BY_RESTORE, StoreSpec};
use sterna_store::copy;
use uuid::Uuid;

use super::{Error, Manifest, Part, container, io};
use crate::ca::Ca;
use crate::config::Config;

/// What a replaced data directory has that no backup has.
const KEPT: [&str; 2] = ["images", "backups"];

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Asked {
    pub file: PathBuf,
    /// The settings file. One that is there stays and counts; else it is written from the backup.
    pub settings: PathBuf,
    /// Instead of where the settings say.
    pub data_dir: Option<PathBuf>,
    /// Put what is in the data directory aside.
    pub replace: bool,
}

/// What was done.
#[derive(Debug, Clone)]
pub struct Restored {
    pub manifest: Manifest,
    pub config: Config,
    /// The settings were written.
    pub wrote_settings: bool,
    /// Where the replaced data directory is now.
    pub aside: Option<PathBuf>,
}

/// Puts a backup back. Blocks.
pub fn restore(asked: &Asked, now: Timestamp) -> Result<Restored, Error> {
    let opened = container::open(&asked.file)?;
    let present = asked.settings.exists().then(|| read(&asked.settings)).transpose()?;
    // Before the settings in the backup are known, where to unpack it is not: beside the file that tells it.
    let (config, wrote_settings) = match present {
        Some(config) => (config, false),
        None => (container::open(&asked.file)?.settings(&asked.file)?, true),
    };
    let config = Config { data_dir: asked.data_dir.clone().unwrap_or(config.data_dir.clone()), ..config };
    let place = Place::of(&config.data_dir, asked.replace)?;
    let staged = Staged::beside(&config.data_dir)?;
    let manifest = opened.unpack(&asked.file, &staged.0)?;
    check(&manifest, &asked.file, &staged.0)?;
    begin_anew(&manifest, &staged.0.join(Part::Store.name()), now)?;
    fs::remove_file(staged.0.join(Part::Settings.name())).map_err(io(&staged.0))?;
    if place.is_full {
        keep(&config.data_dir, &staged.0)?;
    }
    let aside = place.fill(staged, now)?;
    if wrote_settings {
        let text = toml::to_string(&config)
            .map_err(|error| Error::Settings { path: asked.settings.clone(), why: error.to_string() })?;
        if let Some(directory) = asked.settings.parent() {
            fs::create_dir_all(directory).map_err(io(directory))?;
        }
        file::write_durably(&asked.settings, text.as_bytes(), 0o644).map_err(io(&asked.settings))?;
    }
    Ok(Restored { manifest, config, wrote_settings, aside })
}

fn read(settings: &Path) -> Result<Config, Error> {
    Config::read(settings).map_err(|error| Error::Settings {
        path: settings.to_owned(),
        why: std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source())
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(": "),
    })
}

/// What the sums cannot tell: that the parts belong together and can be used.
fn check(manifest: &Manifest, file: &Path, folder: &Path) -> Result<(), Error> {
    let revision = copy::revision(&folder.join(Part::Store.name()))?;
    if revision != manifest.revision {
        let why = format!("its store is at revision {revision}, not {}", manifest.revision);
        return Err(Error::Damaged { path: file.to_owned(), why });
    }
    Ca::open(folder)?;
    Ok(())
}

/// Another incarnation, in recovery mode, under later revisions.
fn begin_anew(manifest: &Manifest, store: &Path, now: Timestamp) -> Result<(), Error> {
    let name = Name::new(MAIN).expect("the literal is a DNS label");
    let key = Key::spec(Kind::Store, &name).to_string();
    copy::go_on(store, SKIPPED_BY_RESTORE, &key, |before| {
        let before = before.and_then(|value| serde_json::from_slice::<Object<StoreSpec>>(value).ok());
        let meta = before.as_ref().map_or_else(|| new_meta(name, now), |object| object.meta.clone());
        let released = before.map(|object| object.spec.released).unwrap_or_default();
        let restored = store::Restored {
            at: now,
            taken: manifest.taken,
            revision: manifest.revision,
            incarnation: manifest.incarnation,
        };
        let incarnation = Uuid::new_v4();
        let spec = StoreSpec { restored: Some(restored), released, ..StoreSpec::new(incarnation) };
        serde_json::to_vec(&Object { meta, spec }).expect("model types are plain data")
    })?;
    Ok(())
}

fn new_meta(name: Name, now: Timestamp) -> Meta {
    let uid = Uuid::now_v7();
    Meta { name, uid, created: now, labels: Labels::new(), notes: String::new(), deleting: None }
}

/// Images and older backups go along: links, so that what is put aside stays whole.
fn keep(from: &Path, to: &Path) -> Result<(), Error> {
    for folder in KEPT {
        let (from, to) = (from.join(folder), to.join(folder));
        if !from.is_dir() {
            continue;
        }
        make_private(&to)?;
        for entry in fs::read_dir(&from).map_err(io(&from))? {
            let entry = entry.map_err(io(&from))?;
            if entry.file_type().map_err(io(&from))?.is_file() {
                let to = to.join(entry.file_name());
                fs::hard_link(entry.path(), &to).map_err(io(&to))?;
            }
        }
    }
    Ok(())
}

fn make_private(path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().mode(0o700).create(path).map_err(io(path))
}

/// Where the data directory is, or is to be.
struct Place<'a> {
    data_dir: &'a Path,
    is_full: bool,
    /// Nobody opens the store that is put aside meanwhile.
    _claim: Option<copy::Claim>,
}

impl<'a> Place<'a> {
    fn of(data_dir: &'a Path, replace: bool) -> Result<Self, Error> {
        let is_full = match fs::read_dir(data_dir) {
            Ok(mut entries) => entries.next().is_some(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
            Err(source) => return Err(Error::Io { path: data_dir.to_owned(), source }),
        };
        if is_full && !replace {
            return Err(Error::NotEmpty { path: data_dir.to_owned() });
        }
        let store = data_dir.join(Part::Store.name());
        let claim = store.exists().then(|| copy::claim(&store)).transpose()?;
        Ok(Self { data_dir, is_full, _claim: claim })
    }

    /// Puts the staged directory in its place, and answers where what was there is.
    fn fill(self, mut staged: Staged, now: Timestamp) -> Result<Option<PathBuf>, Error> {
        let (from, to) = (staged.0.clone(), self.data_dir);
        sync(&from)?;
        let above = above(to);
        let aside = if self.is_full {
            // Under its later name before the two change places: whenever this is killed, a name says what lies there or
            // is one that nobody looks at, and what was there is never taken for a leftover.
            let mut aside = to.as_os_str().to_owned();
            aside.push(format!(".before-{}", super::keep::stamp(now)));
            let aside = PathBuf::from(aside);
            fs::rename(&from, &aside).map_err(io(&aside))?;
            staged.0.clone_from(&aside);
            exchange(&aside, to)?;
            staged.0 = PathBuf::new();
            Some(aside)
        } else {
            // An empty directory is replaced by the rename itself.
            fs::rename(&from, to).map_err(io(to))?;
            staged.0 = PathBuf::new();
            None
        };
        sync(above)?;
        Ok(aside)
    }
}

/// Both names change places in one step.
fn exchange(one: &Path, other: &Path) -> Result<(), Error> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)
        .map_err(|error| Error::Io { path: other.to_owned(), source: error.into() })
}

fn above(data_dir: &Path) -> &Path {
    data_dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn sync(directory: &Path) -> Result<(), Error> {
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(io(directory))
}

/// The directory that is being filled; it goes unless it took its place.
struct Staged(PathBuf);

impl Staged {
    fn beside(data_dir: &Path) -> Result<Self, Error> {
        let above = above(data_dir);
        // Passable: an agent's pools may be below it, which QEMU's own user must reach.
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new().recursive(true).mode(0o711).create(above).map_err(io(above))?;
        let mut name = std::ffi::OsString::from(".");
        name.push(data_dir.file_name().unwrap_or_default());
        name.push(".restoring-");
        let prefix = name.clone();
        // What a restore that was killed has left. It never was anybody's data.
        for entry in fs::read_dir(above).map_err(io(above))? {
            let entry = entry.map_err(io(above))?;
            let is_left = entry.file_name().as_encoded_bytes().starts_with(prefix.as_encoded_bytes());
            if is_left && !is_alive(&entry.file_name()) {
                fs::remove_dir_all(entry.path()).map_err(io(&entry.path()))?;
            }
        }
        name.push(std::process::id().to_string());
        let path = above.join(name);
        make_private(&path)?;
        Ok(Self(path))
    }
}

/// The process that fills it is there.
fn is_alive(name: &std::ffi::OsStr) -> bool {
    let pid = name.to_str().and_then(|name| name.rsplit('-').next()?.parse::<u32>().ok());
    pid.is_some_and(|pid| pid != std::process::id() && Path::new(&format!("/proc/{pid}")).exists())
}

impl Drop for Staged {
    fn drop(&mut self) {
        if self.0.as_os_str().is_empty() {
            return;
        }
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, folder = %self.0.display(), "what a restore began is left");
        }
    }
}
