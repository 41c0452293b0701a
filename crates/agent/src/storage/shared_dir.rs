//! Pools of kind `shared-dir`: one folder that several hosts mount, such as an NFS export.
//!
//! The host named in a volume's decision makes, grows and removes it; the others only open it. The folder is never made
//! here, and this host remembers which one it saw: when a mount is missing after a reboot, an empty folder is in its
//! place, and volumes made there would vanish below the mount when it returns.

use std::path::Path;

use serde::{Deserialize, Serialize};
use sterna_base::file;
use uuid::Uuid;

use super::error::Error;
use super::folder::{Folder, Missing, User};

/// What this host remembers of a shared folder (`DATA_DIR/pools/NAME.json`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    path: String,
    id: Uuid,
}

pub fn open(path: &Path, cluster: &str, user: User, memory: &Path) -> Result<Folder, Error> {
    let seen = recall(memory)?.filter(|seen| Path::new(&seen.path) == path);
    if let Some(seen) = &seen {
        // Before a marker would be written into whatever is there now.
        check_marked(path, seen)?;
    }
    let folder = Folder::open(path, Missing::Refuse, cluster, user)?;
    match seen {
        Some(seen) if seen.id == folder.marker.id => Ok(folder),
        Some(_) => Err(other_folder(path, memory)),
        None => remember(memory, path, folder.marker.id).map(|()| folder),
    }
}

fn check_marked(path: &Path, seen: &Seen) -> Result<(), Error> {
    if Folder::is_marked(path) {
        return Ok(());
    }
    Err(Error::not_yet(format!("the pool {} is not at {path:?} now; is it mounted?", seen.id)))
}

fn other_folder(path: &Path, memory: &Path) -> Error {
    Error::refused(format!(
        "{path:?} is another folder than before; mount the right one, or remove {memory:?} if it was replaced on purpose"
    ))
}

fn recall(memory: &Path) -> Result<Option<Seen>, Error> {
    let what = || format!("read {memory:?}");
    let Some(text) = file::read_if_there(memory).map_err(Error::io(what()))? else { return Ok(None) };
    serde_json::from_slice(&text).map(Some).map_err(|error| Error::io(what())(error.into()))
}

fn remember(memory: &Path, path: &Path, id: Uuid) -> Result<(), Error> {
    let what = || format!("write {memory:?}");
    let seen = Seen { path: path.to_string_lossy().into_owned(), id };
    let text = serde_json::to_vec(&seen).map_err(|error| Error::io(what())(error.into()))?;
    if let Some(folder) = memory.parent() {
        std::fs::create_dir_all(folder).map_err(Error::io(what()))?;
    }
    file::write_durably(memory, &text, 0o600).map_err(Error::io(what()))
}
