//! Finds what runs after a restart of the agent: run directories and processes, whichever knows of a VM.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use sterna_base::file::read_if_there;
use sterna_model::meta::Name;
use sterna_wire::shim::{LAUNCH, Launch};
use uuid::Uuid;

use super::record::Records;
use crate::process;

/// VMs that have something here. `is_complete` is false when a source could not be read, or something was found
/// that cannot be named: then an absent VM must not be taken for a gone one.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub vms: BTreeMap<Uuid, Name>,
    pub is_complete: bool,
}

#[must_use]
pub fn find(run_dir: &Path, records: &dyn Records) -> Found {
    let vms = run_dir.join("vm");
    let mut found = Found { vms: BTreeMap::new(), is_complete: true };
    let directories = of_directories(&vms);
    let processes = process::of_vms(&vms).map(|all| all.into_iter().map(|(uid, _)| uid).collect::<Vec<_>>());
    for source in [directories, processes] {
        match source {
            Err(error) => {
                tracing::error!(%error, "what runs here could not be read");
                found.is_complete = false;
            }
            Ok(uids) => {
                for uid in uids {
                    match name_of(&vms, uid, records) {
                        Some(name) => drop(found.vms.insert(uid, name)),
                        None => {
                            tracing::error!(%uid, "something runs here that no record names");
                            found.is_complete = false;
                        }
                    }
                }
            }
        }
    }
    found
}

fn of_directories(vms: &Path) -> io::Result<Vec<Uuid>> {
    let mut uids = Vec::new();
    for entry in std::fs::read_dir(vms)? {
        let entry = entry?;
        // An empty one is what is left of a start that never got anywhere.
        let is_empty = std::fs::read_dir(entry.path()).is_ok_and(|mut inside| inside.next().is_none());
        uids.extend(
            entry.file_name().to_str().filter(|_| !is_empty).and_then(|name| Uuid::try_parse(name).ok()),
        );
    }
    Ok(uids)
}

fn name_of(vms: &Path, uid: Uuid, records: &dyn Records) -> Option<Name> {
    let launched = || {
        let text = read_if_there(&vms.join(uid.to_string()).join(LAUNCH)).ok()??;
        serde_json::from_slice::<Launch>(&text).ok().map(|launch| launch.vm)
    };
    let noted = || records.notes(uid).ok()?.map(|notes| notes.name);
    let seen = || records.seen(uid).ok()?.map(|seen| seen.name);
    noted().or_else(launched).or_else(seen)
}
