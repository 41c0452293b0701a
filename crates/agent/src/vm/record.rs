//! What an agent must not forget about a VM.
//!
//! Two places: [`Seen`] survives the machine and keeps an old order from starting a VM twice; [`Notes`] survive
//! the agent only, as the processes that they are about do.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sterna_base::clock::Timestamp;
use sterna_base::file::{read_if_there, remove_if_there, write_atomically, write_durably};
use sterna_model::meta::Name;
use sterna_model::migration::{MigrationReport, SideState};
use sterna_model::vm::Exit;
use sterna_wire::assignment::Assignment;
use uuid::Uuid;

use super::health::Resets;
use super::restart::Restarts;

/// Under what title a copy is here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "role", content = "migration", rename_all = "kebab-case")]
pub enum Title {
    Owner,
    /// Takes in this migration; has never run.
    Incoming(Name),
}

/// The highest epoch acted upon. Written before the act.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    pub name: Name,
    pub epoch: u64,
    pub title: Title,
    /// How the copy of this epoch ended, once it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    /// As in [`Notes`], should those be lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<u64>,
}

/// About the copy that is here now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notes {
    pub name: Name,
    /// What it was started or last continued under.
    pub epoch: u64,
    pub title: Title,
    /// This side of the migration that the copy takes or took part in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<MigrationReport>,
    #[serde(default)]
    pub reset_request: u64,
    /// Set before the copy is made to end, so that its end is not taken for a crash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ending: Option<Cause>,
    #[serde(default)]
    pub taps: Vec<String>,
    /// Times that it was started again under this epoch, because it had ended unasked.
    #[serde(default)]
    pub restarts: Restarts,
    /// Times that the host reset the guest by itself.
    #[serde(default)]
    pub resets: Resets,
    /// When the first copy of this epoch was started or continued here.
    #[serde(default)]
    pub began: Timestamp,
    /// The epoch of the host's lease under which the guard has the copy, as long as it lives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<u64>,
}

/// Why we make a copy end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// The guest was asked to shut down.
    Asked,
    /// Switched off.
    Forced,
    /// Another host owns the VM.
    Released,
}

impl Notes {
    #[must_use]
    pub fn side_of(&self, migration: &Name) -> Option<&SideState> {
        self.migration.as_ref().filter(|report| report.migration == *migration).map(|report| &report.side)
    }

    /// The copy's memory is on its way or gone: it may run only under a new epoch.
    #[must_use]
    pub fn is_handed_over(&self) -> bool {
        matches!(self.migration.as_ref().map(|report| &report.side), Some(SideState::Released { .. }))
    }

    #[must_use]
    pub fn is_sending(&self) -> bool {
        matches!(self.migration.as_ref().map(|report| &report.side), Some(SideState::Sending))
    }
}

/// Where both are kept; a port, so that the simulation can lose what a crash loses.
pub trait Records: Send + Sync + 'static {
    fn seen(&self, uid: Uuid) -> io::Result<Option<Seen>>;
    /// Durable when it returns.
    fn save_seen(&self, uid: Uuid, seen: &Seen) -> io::Result<()>;
    fn notes(&self, uid: Uuid) -> io::Result<Option<Notes>>;
    /// Survives the death of this process when it returns.
    fn save_notes(&self, uid: Uuid, notes: &Notes) -> io::Result<()>;
    fn remove_notes(&self, uid: Uuid) -> io::Result<()>;
    /// Every VM of which either is kept.
    fn known(&self) -> io::Result<Vec<Uuid>>;
    /// The assignment that was applied last since the machine booted.
    fn assignment(&self) -> io::Result<Option<Assignment>>;
    /// Survives the death of this process when it returns.
    fn save_assignment(&self, assignment: &Assignment) -> io::Result<()>;
}

/// Name of the last assignment, beside the VMs' run directories: it dies with the boot, as they do.
pub const ASSIGNMENT: &str = "assignment.json";

/// Name of the notes inside a VM's run directory.
const NOTES: &str = "agent.json";

/// A VM that has not been here for this long cannot be the subject of an order that is still under way.
const SEEN_KEPT: Duration = Duration::from_secs(30 * 86_400);

pub struct Files {
    seen: PathBuf,
    run: PathBuf,
    assignment: PathBuf,
}

impl Files {
    /// `data_dir/seen` and `run_dir/vm`, made if absent.
    pub fn open(data_dir: &Path, run_dir: &Path) -> io::Result<Self> {
        let files = Self {
            seen: data_dir.join("seen"),
            run: run_dir.join("vm"),
            assignment: run_dir.join(ASSIGNMENT),
        };
        std::fs::create_dir_all(&files.seen)?;
        std::fs::create_dir_all(&files.run)?;
        Ok(files)
    }

    fn seen_path(&self, uid: Uuid) -> PathBuf {
        self.seen.join(format!("{uid}.json"))
    }

    fn notes_path(&self, uid: Uuid) -> PathBuf {
        self.run.join(uid.to_string()).join(NOTES)
    }

    /// Forgets VMs that were last here long ago.
    pub fn prune(&self, now: SystemTime) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.seen)? {
            let entry = entry?;
            let age = now.duration_since(entry.metadata()?.modified()?).unwrap_or_default();
            let uid = uid_of(&entry.path());
            let is_here = uid.is_some_and(|uid| self.run.join(uid.to_string()).exists());
            if age > SEEN_KEPT && !is_here {
                remove_if_there(&entry.path())?;
            }
        }
        Ok(())
    }
}

fn uid_of(path: &Path) -> Option<Uuid> {
    Uuid::try_parse(path.file_stem()?.to_str()?).ok()
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let Some(bytes) = read_if_there(path)? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(io::Error::other)
}

impl Records for Files {
    fn seen(&self, uid: Uuid) -> io::Result<Option<Seen>> {
        read(&self.seen_path(uid))
    }

    fn save_seen(&self, uid: Uuid, seen: &Seen) -> io::Result<()> {
        write_durably(&self.seen_path(uid), &serde_json::to_vec(seen)?, 0o600)
    }

    fn notes(&self, uid: Uuid) -> io::Result<Option<Notes>> {
        read(&self.notes_path(uid))
    }

    fn save_notes(&self, uid: Uuid, notes: &Notes) -> io::Result<()> {
        let path = self.notes_path(uid);
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        write_atomically(&path, &serde_json::to_vec(notes)?, 0o600)
    }

    fn remove_notes(&self, uid: Uuid) -> io::Result<()> {
        remove_if_there(&self.notes_path(uid))
    }

    fn known(&self) -> io::Result<Vec<Uuid>> {
        let mut found = Vec::new();
        for directory in [&self.seen, &self.run] {
            for entry in std::fs::read_dir(directory)? {
                found.extend(uid_of(&entry?.path()));
            }
        }
        found.sort();
        found.dedup();
        Ok(found)
    }

    fn assignment(&self) -> io::Result<Option<Assignment>> {
        read(&self.assignment)
    }

    fn save_assignment(&self, assignment: &Assignment) -> io::Result<()> {
        write_atomically(&self.assignment, &serde_json::to_vec(assignment)?, 0o600)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    #[test]
    fn both_records_come_back_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::open(&folder.path().join("data"), &folder.path().join("run")).unwrap();
        let uid = Uuid::from_u128(7);
        let seen = Seen {
            name: name("web"),
            epoch: 3,
            title: Title::Incoming(name("m-1")),
            exit: None,
            lease: None,
        };
        files.save_seen(uid, &seen).unwrap();
        assert_eq!(files.seen(uid).unwrap(), Some(seen));
        let notes = Notes {
            name: name("web"),
            epoch: 3,
            title: Title::Owner,
            migration: Some(MigrationReport { migration: name("m-1"), side: SideState::Loaded }),
            reset_request: 1,
            ending: Some(Cause::Forced),
            taps: vec!["t0".into()],
            restarts: Restarts::default(),
            resets: Resets { count: 1, made: vec![], why: "x".into(), quarantine: None },
            began: Timestamp::from_millis(7),
            lease: Some(4),
        };
        files.save_notes(uid, &notes).unwrap();
        assert_eq!(files.notes(uid).unwrap(), Some(notes));
        assert_eq!(files.known().unwrap(), [uid]);
    }

    #[test]
    fn notes_of_an_earlier_agent_are_read() {
        let text = r#"{"name":"web","epoch":3,"title":{"role":"owner"},"reset_request":1,"taps":["t0"]}"#;
        let notes: Notes = serde_json::from_str(text).unwrap();
        assert_eq!((notes.epoch, notes.restarts), (3, Restarts::default()));
    }

    #[test]
    fn the_last_assignment_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::open(&folder.path().join("data"), &folder.path().join("run")).unwrap();
        assert_eq!(files.assignment().unwrap(), None);
        let text = r#"{"revision": 7, "host": "a"}"#;
        let assignment: Assignment = serde_json::from_str(text).unwrap();
        files.save_assignment(&assignment).unwrap();
        assert_eq!(files.assignment().unwrap(), Some(assignment));
        assert!(files.known().unwrap().is_empty(), "it is no VM");
    }

    #[test]
    fn a_broken_record_is_an_error_and_not_an_absence() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::open(folder.path(), folder.path()).unwrap();
        let uid = Uuid::from_u128(7);
        std::fs::write(files.seen_path(uid), b"{").unwrap();
        assert!(files.seen(uid).is_err());
    }

    #[test]
    fn only_old_records_of_absent_vms_are_pruned() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::open(&folder.path().join("data"), &folder.path().join("run")).unwrap();
        let seen = Seen { name: name("web"), epoch: 3, title: Title::Owner, exit: None, lease: None };
        let (here, gone) = (Uuid::from_u128(1), Uuid::from_u128(2));
        files.save_seen(here, &seen).unwrap();
        files.save_seen(gone, &seen).unwrap();
        std::fs::create_dir(files.run.join(here.to_string())).unwrap();
        files.prune(SystemTime::now()).unwrap();
        assert_eq!(files.known().unwrap(), [here, gone]);
        files.prune(SystemTime::now() + 2 * SEEN_KEPT).unwrap();
        assert_eq!(files.known().unwrap(), [here]);
    }
}
