//! The key of an encrypted line, where QEMU reads it: in the VM's run directory, which QEMU's user cannot change.
//!
//! ```text
//! RUN_DIR/vm/UID/line/keys.psk        QEMU's user alone may read it; gone once nobody has to
//! RUN_DIR/vm/UID/line/dh-params.pem
//! RUN_DIR/vm/UID/line/disks.json      a target's: where its disks are filled, for the next agent
//! ```
//!
//! A target draws a key for each move, and its file is there until its guest has everything: QEMU reads it at each
//! connection. A source writes what it was told, has QEMU read it, and removes it at once.

use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sterna_base::file::{read_if_there, remove_if_there, write_atomically};
use sterna_model::line::{DiskLine, LineKey};
use sterna_qemu::qmp::tls::{DH_FILE, DH_PARAMETERS, Endpoint, KEY_FILE, key_line, key_of};
use sterna_qemu::qmp::{Client, Error};

use crate::hypervisor::GuestError;

/// In a VM's run directory.
const DIRECTORY: &str = "line";
const DISKS_FILE: &str = "disks.json";
/// QEMU's name of what it made of the files.
pub const CREDENTIALS: &str = "line";

/// Where the files of one VM are.
#[derive(Debug, Clone)]
pub struct Files {
    directory: PathBuf,
    /// QEMU's own directory: its owner is who has to read.
    of_qemu: PathBuf,
}

impl Files {
    /// `of_qemu` lies in the VM's run directory.
    pub fn beside(of_qemu: &Path) -> Self {
        Self { directory: of_qemu.with_file_name(DIRECTORY), of_qemu: of_qemu.to_owned() }
    }

    fn key_file(&self) -> PathBuf {
        self.directory.join(KEY_FILE)
    }

    /// The key that an earlier agent may have drawn for the copy that is here.
    pub fn read(&self) -> io::Result<Option<LineKey>> {
        let Some(content) = read_if_there(&self.key_file())? else { return Ok(None) };
        let key = std::str::from_utf8(&content).ok().and_then(key_of).and_then(|key| key.parse().ok());
        key.map(Some).ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "it holds no key"))
    }

    fn make_directory(&self) -> io::Result<()> {
        std::fs::DirBuilder::new().recursive(true).mode(0o711).create(&self.directory)?;
        std::fs::set_permissions(&self.directory, std::fs::Permissions::from_mode(0o711))
    }

    pub fn write(&self, key: &LineKey) -> io::Result<()> {
        self.make_directory()?;
        self.put(KEY_FILE, &key_line(key.digits()))?;
        self.put(DH_FILE, DH_PARAMETERS)
    }

    /// For QEMU's user alone, before the first byte is in it.
    fn put(&self, name: &str, content: &str) -> io::Result<()> {
        let path = self.directory.join(name);
        remove_if_there(&path)?;
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o400).open(&path)?;
        let reader = std::fs::metadata(&self.of_qemu)?;
        if rustix::process::geteuid().is_root() {
            let uid = rustix::process::Uid::from_raw(reader.uid());
            let gid = rustix::process::Gid::from_raw(reader.gid());
            rustix::fs::fchown(&file, Some(uid), Some(gid))?;
        }
        io::Write::write_all(&mut file, content.as_bytes())
    }

    /// Where an earlier agent has had the disks of the copy that is here served.
    pub fn read_disks(&self) -> io::Result<Option<DiskLine>> {
        let content = read_if_there(&self.directory.join(DISKS_FILE))?;
        Ok(content.map(|content| serde_json::from_slice(&content)).transpose()?)
    }

    pub fn write_disks(&self, disks: &DiskLine) -> io::Result<()> {
        self.make_directory()?;
        write_atomically(&self.directory.join(DISKS_FILE), &serde_json::to_vec(disks)?, 0o600)
    }

    /// Nobody calls with it any more.
    pub fn remove(&self) -> io::Result<()> {
        remove_if_there(&self.directory.join(DISKS_FILE))?;
        remove_if_there(&self.key_file())
    }
}

/// A key that nobody else has.
pub fn draw() -> io::Result<LineKey> {
    let mut drawn = [0; 32];
    aws_lc_rs::rand::fill(&mut drawn).map_err(|_| io::Error::other("no randomness"))?;
    Ok(LineKey::new(drawn))
}

/// Has QEMU read the files, in the place of those of an earlier move.
pub async fn give(
    client: &Client,
    endpoint: Endpoint,
    files: &Files,
    key: &LineKey,
) -> Result<(), GuestError> {
    forget(client).await?;
    files.write(key).map_err(refused)?;
    let given = client.add_key(CREDENTIALS, endpoint, &files.directory).await;
    if given.is_err() || endpoint == Endpoint::Client {
        // One that cannot be removed goes with the copy.
        let _ = files.remove();
    }
    Ok(given?)
}

/// What QEMU holds of a key is gone, if it holds one.
pub async fn forget(client: &Client) -> Result<(), Error> {
    match client.remove_key(CREDENTIALS).await {
        Err(Error::Refused { .. }) => Ok(()),
        other => other,
    }
}

/// Nothing was begun.
pub fn refused(error: io::Error) -> GuestError {
    GuestError::Refused(format!("the key of its line: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_for_its_reader_alone_and_is_gone_when_removed() {
        let folder = tempfile::tempdir().unwrap();
        let of_qemu = folder.path().join("q");
        std::fs::create_dir(&of_qemu).unwrap();
        let files = Files::beside(&of_qemu);
        assert_eq!(files.read().unwrap(), None);
        let keys = [draw().unwrap(), draw().unwrap()];
        assert_ne!(keys[0], keys[1]);
        for key in keys {
            files.write(&key).unwrap();
            assert_eq!(files.read().unwrap(), Some(key));
        }
        let mode = std::fs::metadata(files.key_file()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o400);
        let disks = DiskLine { port: 4000, word: draw().unwrap(), blank: vec![0] };
        files.write_disks(&disks).unwrap();
        assert_eq!(files.read_disks().unwrap(), Some(disks));
        files.remove().unwrap();
        files.remove().unwrap();
        assert_eq!((files.read().unwrap(), files.read_disks().unwrap()), (None, None));
    }

    #[test]
    fn a_link_in_the_place_of_a_key_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (of_qemu, prey) = (folder.path().join("q"), folder.path().join("prey"));
        std::fs::create_dir(&of_qemu).unwrap();
        std::fs::write(&prey, "precious").unwrap();
        let files = Files::beside(&of_qemu);
        std::fs::create_dir(&files.directory).unwrap();
        std::os::unix::fs::symlink(&prey, files.key_file()).unwrap();
        files.write(&draw().unwrap()).unwrap();
        assert_eq!(std::fs::read_to_string(prey).unwrap(), "precious");
    }
}
