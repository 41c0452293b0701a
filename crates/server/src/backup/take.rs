//! Takes a backup, of a server that runs or lies still: the store is copied as of one commit, whoever writes meanwhile.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use sterna_base::clock::Timestamp;
use sterna_model::key::{Key, Kind};
use sterna_model::meta::{Name, Object};
use sterna_model::store::{MAIN, StoreSpec};
use sterna_store::copy;
use uuid::Uuid;

use super::{Error, FORMAT, Manifest, Part, container, io};
use crate::ca::Ca;
use crate::config::Config;

/// A backup that is there for good.
#[derive(Debug, Clone)]
pub struct Taken {
    pub file: PathBuf,
    pub bytes: u64,
    pub manifest: Manifest,
}

/// Writes a backup of the server with these settings to `file`, which must not be there. Blocks.
pub fn take(config: &Config, file: &Path, now: Timestamp) -> Result<Taken, Error> {
    if file.symlink_metadata().is_ok() {
        return Err(Error::Exists { path: file.to_owned() });
    }
    // Making a CA is `init`'s; a backup without one would be of no use.
    Ca::open(&config.data_dir)?;
    let folder = Folder::beside(file)?;
    let (store, history) = (folder.0.join("copy"), folder.0.join("history"));
    let revision = copy::copy_store(&config.store_path(), &store)?;
    let incarnation = incarnation(&store);
    let mut parts = vec![squeeze_file(Part::Store, &store, &folder)?];
    for part in [Part::CaCertificate, Part::CaKey] {
        parts.push(squeeze_file(part, &config.data_dir.join(part.name()), &folder)?);
    }
    let settings = toml::to_string(config)
        .map_err(|error| Error::Settings { path: file.to_owned(), why: error.to_string() })?;
    let to = folder.0.join(Part::Settings.name());
    parts.push(container::squeeze(Part::Settings, settings.as_bytes(), &to)?);
    if config.backup.history && config.history_path().exists() {
        copy::copy_history(&config.history_path(), &history)?;
        parts.push(squeeze_file(Part::History, &history, &folder)?);
    }
    let sterna = env!("CARGO_PKG_VERSION").to_owned();
    let manifest = Manifest { format: FORMAT, sterna, taken: now, revision, incarnation, parts };
    let bytes = container::assemble(&manifest, &folder.0, file)?;
    Ok(Taken { file: file.to_owned(), bytes, manifest })
}

fn squeeze_file(part: Part, from: &Path, folder: &Folder) -> Result<super::PartEntry, Error> {
    let file = File::open(from).map_err(io(from))?;
    container::squeeze(part, file, &folder.0.join(part.name()))
}

/// The incarnation that the copy speaks of; a store of an older version has none.
fn incarnation(store: &Path) -> Option<Uuid> {
    let key = Key::spec(Kind::Store, &Name::new(MAIN).ok()?).to_string();
    let value = copy::value(store, &key).ok()??;
    serde_json::from_slice::<Object<StoreSpec>>(&value).ok().map(|object| object.spec.incarnation)
}

/// Where the parts are put together: beside the file, so that there is room and it is no less private. It goes in any case.
struct Folder(PathBuf);

impl Folder {
    fn beside(file: &Path) -> Result<Self, Error> {
        use std::os::unix::fs::DirBuilderExt;
        let directory =
            file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let path = directory.join(format!(".sterna-backup-{}", Uuid::new_v4().simple()));
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(io(&path))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, folder = %self.0.display(), "what a backup was made of is left");
        }
    }
}
